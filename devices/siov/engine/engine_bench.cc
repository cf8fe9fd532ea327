// An Engine: what a descriptor costs from submission to completion, how many go through, and what
// an engine with nothing to do costs.

#include "devices/siov/engine/engine.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"
#include "src/base/check.h"
#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

namespace postern::dsa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMove = 4096;
constexpr std::uint32_t kDepth = 32;
constexpr bool kPolled = true;
constexpr bool kTrapped = false;

constexpr std::uint64_t kRecords = 0x1000;
constexpr std::uint64_t kFrom = 0x40000;
constexpr std::uint64_t kTo = 0x80000;
constexpr std::uint64_t kMemory = 0x100000;

// One enabled queue and the driver before it.
class Bench {
 public:
  explicit Bench(bool polled, const PollPolicy& poll = {})
      : memory_(testing::MakeMemory(kMemory)),
        records_(reinterpret_cast<std::uint8_t*>(memory_.Snapshot()->regions()[0]->host_address() +
                                                 kRecords)),
        engine_(Engine::Create({.name = "bench", .operations = kAllOperations, .poll = poll},
                               {.runner = ExecutorRunners(memory_, {.operations = kAllOperations}),
                                .polled = PolledPages()})
                    .value()) {
    engine_->Attach(events_);
    CHECK(engine_->Start({.groups = {{.queues = 1, .engines = 1}}}).has_value());
    if (polled) {
      page_ = std::make_unique<PageDriver>(
          engine_->OpenPortal(0, 1, siov::PortalMode::kPolled).value());
    }
    CHECK(engine_
              ->Enable(0, {.size = kDepth,
                           .priority = 1,
                           .max_transfer = kMove,
                           .operations = kAllOperations})
              .has_value());
    for (std::uint32_t i = 0; i < kDepth; ++i) __atomic_store_n(Status(i), 1, __ATOMIC_RELAXED);
  }

  void Submit(std::uint32_t slot, std::size_t size = 0) {
    __atomic_store_n(Status(slot), 0, __ATOMIC_RELAXED);
    WorkDescriptor words{};
    const Opcode operation = size == 0 ? Opcode::kNoop : Opcode::kMove;
    words.flags_and_opcode = le32(static_cast<std::uint32_t>(operation) << 24 | Flag::kRecordValid |
                                  Flag::kRequestRecord);
    words.record = le64(kRecords + slot * kRecordSize);
    if (size != 0) {
      words.source = le64(kFrom + slot * kMove);
      words.destination = le64(kTo + slot * kMove);
      words.size = le32(static_cast<std::uint32_t>(size));
    }
    siov::Descriptor descriptor;
    std::memcpy(descriptor.data(), &words, sizeof(words));
    if (page_ != nullptr) {
      page_->Store(descriptor);
    } else {
      CHECK(engine_->Submit(0, descriptor) == siov::SubmitResult::kAccepted);
    }
  }
  void Await(std::uint32_t slot) const {
    while (__atomic_load_n(Status(slot), __ATOMIC_ACQUIRE) == 0) __builtin_ia32_pause();
  }

 private:
  // As the driver sees it.
  [[nodiscard]] std::uint8_t* Status(std::uint32_t slot) const {
    return records_ + slot * kRecordSize;
  }

  memory::MemoryMap memory_;
  std::uint8_t* records_;
  FakeBackendEvents events_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<PageDriver> page_;
};

void ReportSpread(benchmark::State& state, std::vector<double>& microseconds) {
  if (microseconds.empty()) return;
  std::sort(microseconds.begin(), microseconds.end());
  const auto at = [&](double part) {
    return microseconds[static_cast<std::size_t>(static_cast<double>(microseconds.size() - 1) *
                                                 part)];
  };
  state.counters["p50_us"] = at(0.5);
  state.counters["p90_us"] = at(0.9);
  state.counters["p99_us"] = at(0.99);
  state.counters["max_us"] = microseconds.back();
}

double Since(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

// Submission to completion of a no-op, one at a time, by a worker that looks all the time.
void NoopLatency(benchmark::State& state, bool polled) {
  Bench bench(polled, {.spin = std::chrono::microseconds(1000)});
  std::vector<double> samples;
  for (auto step : state) {
    (void)step;
    const Clock::time_point begin = Clock::now();
    bench.Submit(0);
    bench.Await(0);
    samples.push_back(Since(begin));
  }
  ReportSpread(state, samples);
}
void BM_Engine_NoopLatencyPolled(benchmark::State& state) {
  NoopLatency(state, kPolled);
}
void BM_Engine_NoopLatencyTrapped(benchmark::State& state) {
  NoopLatency(state, kTrapped);
}
BENCHMARK(BM_Engine_NoopLatencyPolled)->UseRealTime();
BENCHMARK(BM_Engine_NoopLatencyTrapped)->UseRealTime();

// As many as go through with a full queue.
void Throughput(benchmark::State& state, bool polled) {
  Bench bench(polled);
  const auto size = static_cast<std::size_t>(state.range(0));
  std::uint32_t slot = 0;
  for (auto step : state) {
    (void)step;
    bench.Await(slot);
    bench.Submit(slot, size);
    slot = (slot + 1) % kDepth;
  }
  for (std::uint32_t i = 0; i < kDepth; ++i) bench.Await(i);
  state.SetItemsProcessed(state.iterations());
  if (size != 0) state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(size));
}
void BM_Engine_ThroughputPolled(benchmark::State& state) {
  Throughput(state, kPolled);
}
void BM_Engine_ThroughputTrapped(benchmark::State& state) {
  Throughput(state, kTrapped);
}
BENCHMARK(BM_Engine_ThroughputPolled)->ArgName("bytes")->Arg(0)->Arg(kMove)->UseRealTime();
BENCHMARK(BM_Engine_ThroughputTrapped)->ArgName("bytes")->Arg(0)->Arg(kMove)->UseRealTime();

// The first descriptor after a rest in which the worker went to sleep, shorter and longer than it
// takes it to reach its longest sleep.
void BM_Engine_FirstAfterRestPolled(benchmark::State& state) {
  Bench bench(kPolled);
  std::vector<double> samples;
  const auto rest = static_cast<std::uint32_t>(state.range(0)) * 1000;
  std::uint32_t more = 0;
  for (auto step : state) {
    (void)step;
    // Of different lengths, so that they do not fall on the same moment of a sleep.
    more = (more * 31 + 77) % rest;
    std::this_thread::sleep_for(std::chrono::microseconds(rest + more));
    const Clock::time_point begin = Clock::now();
    bench.Submit(0);
    bench.Await(0);
    const double taken = Since(begin);
    samples.push_back(taken);
    state.SetIterationTime(taken / 1e6);
  }
  ReportSpread(state, samples);
}
BENCHMARK(BM_Engine_FirstAfterRestPolled)
    ->ArgName("rest_ms")
    ->Arg(1)
    ->Iterations(100)
    ->UseManualTime();
BENCHMARK(BM_Engine_FirstAfterRestPolled)
    ->ArgName("rest_ms")
    ->Arg(50)
    ->Iterations(30)
    ->UseManualTime();

double ProcessorSeconds() {
  rusage usage{};
  (void)getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// An enabled queue with nothing in it; of one core, in percent.
void Idle(benchmark::State& state, bool polled) {
  Bench bench(polled);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double used = ProcessorSeconds();
  const Clock::time_point begin = Clock::now();
  for (auto step : state) {
    (void)step;
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  }
  state.counters["core_percent"] = (ProcessorSeconds() - used) * 1e8 / Since(begin);
}
void BM_Engine_IdlePolled(benchmark::State& state) {
  Idle(state, kPolled);
}
void BM_Engine_IdleTrapped(benchmark::State& state) {
  Idle(state, kTrapped);
}
BENCHMARK(BM_Engine_IdlePolled)->Iterations(8)->UseRealTime();
BENCHMARK(BM_Engine_IdleTrapped)->Iterations(8)->UseRealTime();

}  // namespace
}  // namespace postern::dsa
