// What a portal costs the host: a look at an empty polled page, taking descriptors out of one, and
// gathering a descriptor from the stores of a trapped one (without the exits).

#include <cstring>

#include <benchmark/benchmark.h>

#include "devices/siov/core/fake_backend.h"
#include "devices/siov/core/polled_page.h"
#include "devices/siov/core/trapped_portal.h"

namespace postern::siov {
namespace {

void StoreWords(std::byte* at, const Descriptor& descriptor) {
  auto* to = static_cast<std::uint64_t*>(static_cast<void*>(at));
  for (std::size_t i = 8; i-- > 0;) {
    std::uint64_t word = 0;
    std::memcpy(&word, descriptor.data() + 8 * i, sizeof(word));
    __atomic_store_n(to + i, word, __ATOMIC_RELEASE);
  }
}

// Scans included: one every PolledPage::kScanEvery looks.
void BM_PolledPage_PollEmpty(benchmark::State& state) {
  PolledPage page = PolledPage::Create(static_cast<std::uint32_t>(state.range(0))).value();
  std::uint64_t taken = 0;
  const auto take = [&](const Descriptor& descriptor) {
    benchmark::DoNotOptimize(descriptor.data());
    ++taken;
  };
  StoreWords(page.host(0).address, FakeDescriptor(1));
  page.Poll(take);
  for (auto _ : state) benchmark::DoNotOptimize(page.Poll(take));
  if (taken != 1) state.SkipWithError("took what was not there");
}
BENCHMARK(BM_PolledPage_PollEmpty)->ArgName("pages")->Arg(1)->Arg(2);

void BM_PolledPage_Scan(benchmark::State& state) {
  PolledPage page = PolledPage::Create(1).value();
  const auto take = [](const Descriptor& descriptor) {
    benchmark::DoNotOptimize(descriptor.data());
  };
  for (auto _ : state) benchmark::DoNotOptimize(page.Scan(take));
}
BENCHMARK(BM_PolledPage_Scan);

// Stores and takes `run` descriptors in turn on one thread: the store is part of the time.
void BM_PolledPage_StoreAndTake(benchmark::State& state) {
  PolledPage page = PolledPage::Create(1).value();
  const auto run = static_cast<std::uint64_t>(state.range(0));
  const Descriptor descriptor = FakeDescriptor(1);
  std::uint64_t stored = 0;
  std::uint64_t taken = 0;
  const auto take = [&](const Descriptor& got) {
    benchmark::DoNotOptimize(got.data());
    ++taken;
  };
  for (auto _ : state) {
    for (std::uint64_t i = 0; i < run; ++i)
      StoreWords(page.host(0).address + stored++ % 64 * kDescriptorSize, descriptor);
    page.Poll(take);
  }
  if (taken != stored) state.SkipWithError("lost some");
  state.SetItemsProcessed(static_cast<std::int64_t>(taken));
}
BENCHMARK(BM_PolledPage_StoreAndTake)->ArgName("run")->Arg(1)->Arg(16)->Arg(63);

void BM_TrappedPortal_Gather(benchmark::State& state) {
  PortalCounters counters;
  TrappedPortal portal(counters);
  const Descriptor descriptor = FakeDescriptor(1);
  const auto width = static_cast<std::uint32_t>(state.range(0));
  std::uint32_t slot = 0;
  std::int64_t whole = 0;
  for (auto _ : state) {
    for (std::uint32_t at = 0; at < kDescriptorSize; at += width) {
      const auto piece = std::span<const std::byte>(descriptor).subspan(at, width);
      if (portal.Store(slot * 64 + at, piece) != nullptr) ++whole;
    }
    slot = (slot + 1) % TrappedPortal::kSlots;
  }
  if (whole != state.iterations()) state.SkipWithError("lost some");
  state.SetItemsProcessed(whole);
}
BENCHMARK(BM_TrappedPortal_Gather)->ArgName("width")->Arg(8)->Arg(4)->Arg(1);

}  // namespace
}  // namespace postern::siov
