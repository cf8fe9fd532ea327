// What an access to a device in another process costs: a round trip over the socket, by a thread
// here that has to wake one there and back.

#include "vfio/user/client.h"

#include <array>
#include <cstdint>

#include <benchmark/benchmark.h>

#include "vfio/user/client_rig.h"

namespace postern::vfio {
namespace {

void BM_VfioUser_ReadRegister(benchmark::State& state) {
  ClientRig rig;
  const testing::VfioUserServer server;
  const auto device = rig.Connect(server);
  for (auto _ : state) {
    benchmark::DoNotOptimize(ReadWord(*device, 0, testing::kEngineId));
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_VfioUser_ReadRegister);

void BM_VfioUser_WriteRegister(benchmark::State& state) {
  ClientRig rig;
  const testing::VfioUserServer server;
  const auto device = rig.Connect(server, {.posted_writes = state.range(0) != 0});
  for (auto _ : state) WriteWord(*device, 0, testing::kEngineScratch, 1);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_VfioUser_WriteRegister)->ArgName("posted")->Arg(0)->Arg(1);

// A copy by the device, from the doorbell to the end: in shared memory or by messages.
void BM_VfioUser_Copy(benchmark::State& state) {
  ClientRig rig(true);
  const testing::VfioUserServer server({.dma_by_message = state.range(0) != 0});
  const auto device = rig.Connect(server);
  rig.MapAll(*device);
  const auto length = static_cast<std::uint32_t>(state.range(1));
  StartCopy(*device, 0x1000, 0x200000, length, 0);
  for (auto _ : state) WriteWord(*device, 0, testing::kEngineDoorbell, 1);
  state.SetBytesProcessed(state.iterations() * state.range(1));
}
BENCHMARK(BM_VfioUser_Copy)
    ->ArgNames({"message", "bytes"})
    ->Args({0, 4096})
    ->Args({1, 4096})
    ->Args({0, 1 << 20})
    ->Args({1, 1 << 20});

}  // namespace
}  // namespace postern::vfio
