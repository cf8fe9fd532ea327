// What one trapped register costs, from the bus down, and the interrupt of a used buffer.

#include <cstdint>

#include <benchmark/benchmark.h>

#include "devices/virtio/transport_rig.h"

namespace {

using postern::testing::MmioRig;
using postern::testing::PciRig;
namespace virtio = postern::virtio;

void BM_Ecam_ReadConfig(benchmark::State& state) {
  PciRig rig;
  for (auto _ : state) {
    benchmark::DoNotOptimize(rig.bridge.Config<std::uint32_t>(rig.at, postern::pci::kVendorId));
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Ecam_ReadConfig);

void BM_Ecam_WriteCommandSame(benchmark::State& state) {
  PciRig rig;
  for (auto _ : state) rig.bridge.Config<std::uint16_t>(rig.at, postern::pci::kCommand, 0x6);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Ecam_WriteCommandSame);

void BM_Ecam_ToggleMemory(benchmark::State& state) {
  PciRig rig;
  std::uint16_t command = 0x6;
  for (auto _ : state) {
    command ^= 0x2;
    rig.bridge.Config<std::uint16_t>(rig.at, postern::pci::kCommand, command);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Ecam_ToggleMemory);

void BM_PciCommon_ReadStatus(benchmark::State& state) {
  PciRig rig;
  for (auto _ : state) benchmark::DoNotOptimize(rig.ReadStatus());
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_PciCommon_ReadStatus);

void BM_PciCommon_SelectQueue(benchmark::State& state) {
  PciRig rig;
  std::uint32_t queue = 0;
  for (auto _ : state) rig.SelectQueue(queue++ % 3);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_PciCommon_SelectQueue);

void BM_Mmio_ReadStatus(benchmark::State& state) {
  MmioRig rig;
  for (auto _ : state) benchmark::DoNotOptimize(rig.ReadStatus());
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Mmio_ReadStatus);

void BM_Mmio_SelectQueue(benchmark::State& state) {
  MmioRig rig;
  std::uint32_t queue = 0;
  for (auto _ : state) rig.SelectQueue(queue++ % 3);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Mmio_SelectQueue);

void BM_Pci_KickTrapped(benchmark::State& state) {
  PciRig rig;
  for (auto _ : state) rig.Kick(0, true);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Pci_KickTrapped);

// Up to the eventfd's write.
template <typename Rig>
void BM_QueueInterrupt(benchmark::State& state) {
  Rig rig;
  rig.Start(virtio::kFeatureVersion1, {});
  for (auto _ : state) rig.transport().Queue(0);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_QueueInterrupt<PciRig>);
BENCHMARK(BM_QueueInterrupt<MmioRig>);

// From status 0 to DRIVER_OK with one queue, and back.
template <typename Rig>
void BM_BringUp(benchmark::State& state) {
  Rig rig;
  auto queue = rig.MakeQueue(0);
  for (auto _ : state) {
    rig.Start(virtio::kFeatureVersion1, {{0, &queue}});
    rig.WriteStatus(0);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_BringUp<PciRig>);
BENCHMARK(BM_BringUp<MmioRig>);

}  // namespace
