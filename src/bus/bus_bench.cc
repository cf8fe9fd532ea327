// What a trapped access costs from its address to the device's handler.

#include "src/bus/bus.h"

#include <array>
#include <cstdlib>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

namespace postern::bus {
namespace {

class Sink : public MmioHandler {
 public:
  void Read(std::uint64_t offset, std::span<std::byte> data) override {
    for (std::byte& byte : data) byte = static_cast<std::byte>(offset & 0xff);
  }
  void Write(std::uint64_t offset, std::span<const std::byte> data) override {
    benchmark::DoNotOptimize(offset);
    benchmark::DoNotOptimize(data.data());
  }
};

struct Setup {
  explicit Setup(std::int64_t ranges) {
    for (std::int64_t i = 0; i < ranges; ++i) {
      auto added = bus.Add(static_cast<std::uint64_t>(i) * 0x10000, 0x1000, sink, lock, "range");
      if (!added) std::abort();
      registrations.push_back(std::move(*added));
    }
  }
  Bus bus;
  Sink sink;
  Mutex lock;
  std::vector<Registration> registrations;
};

void BM_Bus_Read(benchmark::State& state) {
  Setup setup(state.range(0));
  const auto ranges = static_cast<std::uint64_t>(state.range(0));
  std::array<std::byte, 4> data{};
  std::uint64_t i = 0;
  for (auto _ : state) {
    setup.bus.Read(i++ % ranges * 0x10000 + 0x10, data);
    benchmark::DoNotOptimize(data);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Bus_Read)->ArgName("ranges")->Arg(1)->Arg(8)->Arg(32);

void BM_Bus_Write(benchmark::State& state) {
  Setup setup(state.range(0));
  const auto ranges = static_cast<std::uint64_t>(state.range(0));
  const std::array<std::byte, 4> data{};
  std::uint64_t i = 0;
  for (auto _ : state) setup.bus.Write(i++ % ranges * 0x10000 + 0x10, data);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Bus_Write)->ArgName("ranges")->Arg(1)->Arg(8)->Arg(32);

void BM_Bus_ReadMiss(benchmark::State& state) {
  Setup setup(state.range(0));
  std::array<std::byte, 4> data{};
  for (auto _ : state) {
    setup.bus.Read(0x8000, data);
    benchmark::DoNotOptimize(data);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Bus_ReadMiss)->ArgName("ranges")->Arg(1)->Arg(8)->Arg(32);

}  // namespace
}  // namespace postern::bus
