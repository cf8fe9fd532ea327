// What a submission that exits costs on the host's side, but for the device's (here memory behind
// two writes to its region) and the exit.

#include <algorithm>

#include <benchmark/benchmark.h>

#include "devices/siov/host/portal_page.h"
#include "vfio/fake_host_device.h"

namespace postern::dsa {
namespace {

void BM_PortalPage_Store(benchmark::State& state) {
  vfio::FakeHostDevice device;
  device.Put<std::uint16_t>(4, 2);  // memory decoding
  auto page = PortalPage::Open(device, 0, true).value();
  siov::Descriptor descriptor;
  std::ranges::fill(descriptor, std::byte{0x5a});
  for (auto _ : state) {
    if (!page->Store(descriptor)) state.SkipWithError("not taken");
    // It writes down every call.
    state.PauseTiming();
    (void)device.TakeCalls();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_PortalPage_Store);

}  // namespace
}  // namespace postern::dsa
