// Moves against memcpy, and CRC-32C against a plain loop of the crc32 instruction: both in one run,
// in turns, so that what else the machine does meets both. The ratio of the best rounds is the
// number to look at: 1.0 is as fast as the other.

#include "devices/siov/engine/executor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "devices/siov/engine/checksum.h"
#include "devices/siov/engine/descriptor.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace postern::dsa {
namespace {

using Clock = std::chrono::steady_clock;

class NullEnvironment final : public ExecutorEnvironment {
 public:
  [[nodiscard]] bool IsHandle(std::uint32_t) const override { return false; }
  void SignalHandle(std::uint32_t) override {}
  void OnError(const siov::ErrorRecord&) override {}
  void WaitForEarlier() override {}
  [[nodiscard]] bool aborted() const override { return false; }
};

constexpr std::uint64_t kRecord = 0xfc0;
constexpr std::uint64_t kData = 1 << 20;

// Guest memory with an executor on it, and as much memory of our own, of the same kind.
class Bench {
 public:
  explicit Bench(std::uint64_t size)
      : region_(NewRegion(size)), own_(NewRegion(size)), map_(NewMemory(region_)) {}

  Executed Run(const siov::Descriptor& descriptor) {
    return executor_.Execute(kLimits, descriptor);
  }
  // For memcpy alone, on memory no guest has.
  [[nodiscard]] std::byte* own() const {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<std::byte*>(own_->host_address());
  }

 private:
  static constexpr QueueLimits kLimits{
      .max_transfer = 1U << 31, .max_batch = 1024, .operations = kAllOperations};

  static memory::RegionPtr NewRegion(std::uint64_t size) {
    auto region = memory::Region::Create(memory::Gpa(0), size,
                                         {.prefault = true, .transparent_hugepages = true});
    if (!region) std::abort();
    return *region;
  }
  static memory::GuestMemoryPtr NewMemory(const memory::RegionPtr& region) {
    auto memory = memory::GuestMemory::Create({region});
    if (!memory) std::abort();
    return *memory;
  }

  memory::RegionPtr region_;
  memory::RegionPtr own_;
  memory::MemoryMap map_;
  NullEnvironment environment_;
  Executor executor_{map_, {.operations = kAllOperations}, environment_};
};

WorkDescriptor Make(Opcode opcode) {
  WorkDescriptor descriptor{};
  descriptor.flags_and_opcode = std::uint32_t{static_cast<std::uint8_t>(opcode)} << 24 |
                                Flag::kRecordValid | Flag::kRequestRecord;
  descriptor.record = kRecord;
  return descriptor;
}

// Two ways to do the same, in turns; the best of each.
class Race {
 public:
  template <typename F, typename G>
  void Round(F&& ours, G&& theirs) {
    Keep(best_[0], Time(ours));
    Keep(best_[1], Time(theirs));
  }
  // Bytes of one round.
  void Report(benchmark::State& state, double bytes) const {
    state.counters["GBs"] = bytes / best_[0] / 1e9;
    state.counters["other_GBs"] = bytes / best_[1] / 1e9;
    state.counters["ratio"] = best_[1] / best_[0];
  }

 private:
  template <typename F>
  static double Time(F& work) {
    const Clock::time_point begin = Clock::now();
    work();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }
  static void Keep(double& best, double time) {
    if (best == 0 || time < best) best = time;
  }
  std::array<double, 2> best_{};
};

// Over as many places as `footprint` has room for, source and destination far apart. Descriptors
// are written some ahead, as by a driver: to read one in the moment it is stored costs more than to
// run it.
void BM_Executor_Move(benchmark::State& state) {
  const auto size = static_cast<std::uint64_t>(state.range(0));
  const auto footprint = static_cast<std::uint64_t>(state.range(1));
  const std::uint64_t places = std::max<std::uint64_t>(1, footprint / size);
  const std::uint64_t apart = std::max<std::uint64_t>(places * size, 1 << 20);
  Bench bench(kData + 2 * apart + (1 << 21));
  WorkDescriptor move = Make(Opcode::kMove);
  move.size = static_cast<std::uint32_t>(size);
  std::array<WorkDescriptor, 64> queue{};
  queue.fill(move);
  const std::uint64_t depth = std::clamp<std::uint64_t>((1 << 20) / size, 1, queue.size());
  const std::uint64_t rounds = std::max<std::uint64_t>(1, (4 << 20) / size / depth);
  std::uint64_t ours = 0;
  std::uint64_t theirs = 0;
  const auto run = [&] {
    for (std::uint64_t i = 0; i < depth; ++i) {
      const std::uint64_t at = kData + ours++ % places * size;
      queue[i].source = at;
      queue[i].destination = at + apart;
    }
    for (std::uint64_t i = 0; i < depth; ++i) {
      benchmark::DoNotOptimize(bench.Run(std::bit_cast<siov::Descriptor>(queue[i])));
    }
  };
  Race race;
  for (auto _ : state) {
    race.Round(
        [&] {
          for (std::uint64_t i = 0; i < rounds; ++i) run();
        },
        [&] {
          for (std::uint64_t i = 0; i < rounds * depth; ++i) {
            std::byte* at = bench.own() + kData + theirs++ % places * size;
            std::memcpy(at + apart, at, size);
            benchmark::ClobberMemory();
          }
        });
  }
  race.Report(state, static_cast<double>(rounds * depth * size));
}
BENCHMARK(BM_Executor_Move)
    ->ArgNames({"bytes", "footprint"})
    ->Args({4 << 10, 4 << 10})
    ->Args({4 << 10, 1 << 20})
    ->Args({4 << 10, 64 << 20})
    ->Args({64 << 10, 64 << 10})
    ->Args({64 << 10, 64 << 20})
    ->Args({1 << 20, 1 << 20})
    ->Args({1 << 20, 64 << 20})
    ->Args({8 << 20, 64 << 20})
    ->Args({16 << 20, 64 << 20})
    ->Args({64 << 20, 64 << 20});

#if defined(__x86_64__)
[[gnu::target("sse4.2")]] std::uint32_t InstructionLoop(const std::byte* data, std::size_t size) {
  std::uint64_t crc = ~std::uint32_t{0};
  for (std::size_t i = 0; i < size; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, sizeof(word));
    crc = _mm_crc32_u64(crc, word);
  }
  return static_cast<std::uint32_t>(crc);
}

void BM_Executor_Crc(benchmark::State& state) {
  if (!__builtin_cpu_supports("sse4.2")) {
    state.SkipWithError("the processor has no crc32 instruction");
    return;
  }
  const auto size = static_cast<std::uint64_t>(state.range(0));
  Bench bench(kData + (4 << 20));
  WorkDescriptor crc = Make(Opcode::kCrc);
  crc.source = kData;
  crc.size = static_cast<std::uint32_t>(size);
  const auto descriptor = std::bit_cast<siov::Descriptor>(crc);
  const std::uint64_t rounds = std::max<std::uint64_t>(1, (1 << 20) / size);
  Race race;
  for (auto _ : state) {
    race.Round(
        [&] {
          for (std::uint64_t i = 0; i < rounds; ++i)
            benchmark::DoNotOptimize(bench.Run(descriptor));
        },
        [&] {
          for (std::uint64_t i = 0; i < rounds; ++i) {
            benchmark::DoNotOptimize(InstructionLoop(bench.own() + kData, size));
          }
        });
  }
  race.Report(state, static_cast<double>(rounds * size));
}
BENCHMARK(BM_Executor_Crc)->ArgName("bytes")->Arg(4 << 10)->Arg(64 << 10)->Arg(1 << 20);
#endif

template <typename F>
void RunChecksum(benchmark::State& state, F&& sum) {
  const std::vector<std::byte> data(static_cast<std::size_t>(state.range(1)), std::byte{0x5a});
  for (auto _ : state) benchmark::DoNotOptimize(sum(data));
  state.SetBytesProcessed(state.iterations() * state.range(1));
}
void BM_Crc32c(benchmark::State& state) {
  const auto all = AllChecksums();
  const Checksums& sums = all[std::min(all.size() - 1, static_cast<std::size_t>(state.range(0)))];
  state.SetLabel(sums.name);
  RunChecksum(state, [&](const auto& data) { return sums.crc32c(0, data.data(), data.size()); });
}
BENCHMARK(BM_Crc32c)->ArgNames({"variant", "bytes"})->ArgsProduct({{0, 1, 2}, {512, 65536}});
void BM_Crc16T10(benchmark::State& state) {
  const auto all = AllChecksums();
  const Checksums& sums = all[std::min(all.size() - 1, static_cast<std::size_t>(state.range(0)))];
  state.SetLabel(sums.name);
  RunChecksum(state, [&](const auto& data) { return sums.crc16_t10(0, data.data(), data.size()); });
}
BENCHMARK(BM_Crc16T10)->ArgNames({"variant", "bytes"})->ArgsProduct({{0, 2}, {512, 4104}});

void BM_Executor_Noop(benchmark::State& state) {
  Bench bench(kData);
  const auto noop = std::bit_cast<siov::Descriptor>(Make(Opcode::kNoop));
  for (auto _ : state) benchmark::DoNotOptimize(bench.Run(noop));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Executor_Noop);

// One descriptor of each of the other kinds, 4 KiB.
void BM_Executor_Operation(benchmark::State& state) {
  Bench bench(kData + (1 << 20));
  const auto opcode = static_cast<Opcode>(state.range(0));
  WorkDescriptor descriptor = Make(opcode);
  descriptor.source = kData;
  descriptor.destination = kData + 0x10000;
  descriptor.size = 4096;
  if (opcode == Opcode::kCacheFlush) descriptor.source = 0;
  if (opcode == Opcode::kCreateDelta) {
    descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(
        CreateDeltaFields{.record = le64(kData + 0x20000), .max_size = le32(4090)});
  }
  if (opcode == Opcode::kDualcast) {
    descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(
        DualcastFields{.destination2 = le64(kData + 0x20000)});
  }
  const auto bytes = std::bit_cast<siov::Descriptor>(descriptor);
  if (bench.Run(bytes).status != 1) state.SkipWithError("the descriptor does not succeed");
  for (auto _ : state) benchmark::DoNotOptimize(bench.Run(bytes));
  state.SetBytesProcessed(state.iterations() * 4096);
}
BENCHMARK(BM_Executor_Operation)
    ->ArgName("opcode")
    ->Arg(0x04)
    ->Arg(0x05)
    ->Arg(0x07)
    ->Arg(0x09)
    ->Arg(0x11)
    ->Arg(0x13)
    ->Arg(0x20);

}  // namespace
}  // namespace postern::dsa
