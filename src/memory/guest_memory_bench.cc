// GPA to view, typed reads and copies: what every descriptor of every request pays.

#include "src/memory/guest_memory.h"

#include <cstdlib>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "src/base/endian.h"

namespace postern::memory {
namespace {

constexpr std::uint64_t kRegionSize = 1 << 20;

// `count` regions of 1 MiB, a hole of 1 MiB after each.
GuestMemoryPtr NewMemory(std::int64_t count, bool track_dirty = false) {
  std::vector<RegionPtr> regions;
  for (std::int64_t i = 0; i < count; ++i) {
    auto region = Region::Create(Gpa(static_cast<std::uint64_t>(i) * 2 * kRegionSize), kRegionSize,
                                 {.prefault = true, .track_dirty = track_dirty});
    if (!region) std::abort();
    regions.push_back(std::move(*region));
  }
  auto memory = GuestMemory::Create(std::move(regions));
  if (!memory) std::abort();
  return std::move(*memory);
}

void BM_GuestMemory_View(benchmark::State& state) {
  const GuestMemoryPtr memory = NewMemory(state.range(0));
  const auto regions = static_cast<std::uint64_t>(state.range(0));
  std::uint64_t i = 0;
  for (auto _ : state) {
    const std::uint64_t base = i++ % regions * 2 * kRegionSize;
    benchmark::DoNotOptimize(memory->View(Gpa(base + 64), 16, Access::kRead));
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_GuestMemory_View)->ArgName("regions")->Arg(1)->Arg(2)->Arg(8);

void BM_GuestMemory_ViewMiss(benchmark::State& state) {
  const GuestMemoryPtr memory = NewMemory(2);
  for (auto _ : state)
    benchmark::DoNotOptimize(memory->View(Gpa(kRegionSize + 64), 16, Access::kRead));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_GuestMemory_ViewMiss);

void BM_MemoryMap_Snapshot(benchmark::State& state) {
  const MemoryMap map(NewMemory(2));
  for (auto _ : state) benchmark::DoNotOptimize(map.Snapshot());
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_MemoryMap_Snapshot);

template <typename T>
void BM_GuestView_Read(benchmark::State& state) {
  const GuestMemoryPtr memory = NewMemory(1);
  const GuestView view = memory->View(Gpa(0), 4096, Access::kRead).value();
  std::size_t offset = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(view.Read<T>(offset));
    offset = (offset + sizeof(T)) % 4096;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_GuestView_Read<le16>);
BENCHMARK(BM_GuestView_Read<le64>);
struct Descriptor {
  le64 address;
  le32 length;
  le16 flags;
  le16 next;
};
BENCHMARK(BM_GuestView_Read<Descriptor>);

void BM_GuestView_Write(benchmark::State& state) {
  const GuestMemoryPtr memory = NewMemory(1, state.range(0) != 0);
  const GuestView view = memory->View(Gpa(0), 4096, Access::kWrite).value();
  std::size_t offset = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(view.Write(offset, le64(offset)));
    offset = (offset + 8) % 4096;
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_GuestView_Write)->ArgName("track_dirty")->Arg(0)->Arg(1);

void BM_GuestMemory_CopyIn(benchmark::State& state) {
  const GuestMemoryPtr memory = NewMemory(1);
  const std::vector<std::byte> data(static_cast<std::size_t>(state.range(0)), std::byte{1});
  for (auto _ : state) benchmark::DoNotOptimize(memory->CopyIn(Gpa(0), data));
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_GuestMemory_CopyIn)->ArgName("bytes")->Arg(64)->Arg(4096)->Arg(65536);

}  // namespace
}  // namespace postern::memory
