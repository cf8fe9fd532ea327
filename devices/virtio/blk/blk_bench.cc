// What one request costs in this process: from the kick to the used ring, for a file in the page
// cache.

#include "devices/virtio/blk/blk.h"

#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "src/base/check.h"
#include "tests/support/device_rig.h"

namespace postern::virtio {
namespace {

using testing::DeviceRig;
using testing::DriverQueue;

constexpr std::uint64_t kDiskBytes = 16 << 20;

std::string MakeFile() {
  std::string path = "./blk_bench.XXXXXX";
  const Fd fd(mkostemp(path.data(), 0));
  CHECK(fd.valid());
  const std::vector<std::byte> chunk(1 << 20, std::byte{0x5a});
  for (std::uint64_t i = 0; i < kDiskBytes; i += chunk.size()) {
    CHECK(write(fd.get(), chunk.data(), chunk.size()) == static_cast<ssize_t>(chunk.size()));
  }
  return path;
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void Run(benchmark::State& state, std::uint32_t type, bool direct) {
  const auto engine = static_cast<BlkOptions::Engine>(state.range(0));
  const auto depth = static_cast<std::uint32_t>(state.range(1));
  const std::string path = MakeFile();
  auto loop = EventLoop::Create().value();
  EventLoop* loops[] = {loop.get()};
  auto blk = Blk::Create({.path = path, .direct = direct, .engine = engine}, loops).value();
  {
    DeviceRig rig(*blk, {.event_idx = true, .arena_size = 4 << 20});
    rig.Activate();
    DriverQueue& driver = rig.driver(0);
    std::vector<std::uint16_t> heads;
    std::vector<std::uint64_t> headers;
    for (std::uint32_t i = 0; i < depth; ++i) {
      const std::uint64_t header = driver.Allocate(sizeof(BlkHeader));
      const std::uint64_t buffer = driver.Allocate(4096, 4096);
      auto request = driver.Build();
      request.ReadableAt(header, sizeof(BlkHeader));
      if (type == kBlkTypeIn) {
        request.WritableAt(buffer, 4096);
      } else {
        request.ReadableAt(buffer, 4096);
      }
      heads.push_back(request.Writable(1).Place());
      headers.push_back(header);
    }
    std::uint64_t random = 1;
    const double cpu_before = CpuSeconds();
    std::uint16_t done = 0;
    for (auto _ : state) {
      for (std::uint32_t i = 0; i < depth; ++i) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const BlkHeader header{le32(type), le32(0), le64((random >> 33) % (kDiskBytes / 4096) * 8)};
        CHECK(rig.memory()->Write(memory::Gpa(headers[i]), header).has_value());
        driver.StageHead(heads[i]);
      }
      driver.SetUsedEvent(static_cast<std::uint16_t>(done + depth - 1));
      driver.PublishStaged();
      done = static_cast<std::uint16_t>(done + depth);
      rig.Kick(0);
      while (driver.used_idx() != done) rig.Run(10);
    }
    const double requests = static_cast<double>(state.iterations()) * depth;
    state.SetItemsProcessed(state.iterations() * depth);
    state.counters["cpu_ns_per_request"] = (CpuSeconds() - cpu_before) * 1e9 / requests;
    state.counters["commits_per_request"] = static_cast<double>(rig.counter("commits")) / requests;
  }
  blk.reset();
  unlink(path.c_str());
}

void BM_Blk_Read4k(benchmark::State& state) {
  Run(state, kBlkTypeIn, false);
}
void BM_Blk_Read4kDirect(benchmark::State& state) {
  Run(state, kBlkTypeIn, true);
}
void BM_Blk_Write4k(benchmark::State& state) {
  Run(state, kBlkTypeOut, false);
}

void Arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"engine", "depth"});  // engine: 1 io_uring, 2 plain system calls
  for (const int engine : {1, 2}) {
    for (const int depth : {1, 8, 32}) bench->Args({engine, depth});
  }
  bench->UseRealTime();
}
BENCHMARK(BM_Blk_Read4k)->Apply(Arguments);
BENCHMARK(BM_Blk_Read4kDirect)->Apply(Arguments);
BENCHMARK(BM_Blk_Write4k)->Apply(Arguments);

}  // namespace
}  // namespace postern::virtio
