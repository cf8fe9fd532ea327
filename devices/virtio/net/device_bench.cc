// The data path of virtio-net over a real TAP in a namespace of its own; the other side is a packet
// socket on the same thread, so that a figure is the sum of both. Without permission for that the
// benches say so and skip.
#include "devices/virtio/net/device.h"

#include <benchmark/benchmark.h>

#include "devices/virtio/net/tap_test_host.h"
#include "tests/support/device_rig.h"

namespace postern::virtio {
namespace {

struct Setup {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<Net> net;
  explicit Setup(benchmark::State& state) {
    if (const std::string why = testing::EnterNetworkNamespace(); !why.empty()) {
      state.SkipWithError(why.c_str());
      return;
    }
    EventLoop* const loops[] = {loop.get()};
    net = Net::Create({.tap = "tapbench", .mtu = 9000}, loops).value();
  }
};

constexpr int kBatch = 32;

void BM_Net_Transmit(benchmark::State& state) {
  const Setup setup(state);
  if (setup.net == nullptr) return;
  testing::DeviceRig rig(*setup.net, {.event_idx = true, .arena_size = 1 << 20});
  rig.Activate();
  const auto frame = testing::TestFrame(static_cast<std::size_t>(state.range(0)), 1);
  for (auto _ : state) {
    for (int i = 0; i < kBatch; ++i)
      rig.driver(1).Build().ReadableObject(net::PacketHeader{}).Readable(frame).Publish();
    rig.Kick(1);
    for (int i = 0; i < kBatch; ++i) benchmark::DoNotOptimize(rig.driver(1).TakeUsed());
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
  state.SetBytesProcessed(state.iterations() * kBatch * state.range(0));
}
BENCHMARK(BM_Net_Transmit)->ArgName("bytes")->Arg(60)->Arg(1514)->Arg(9014);

void BM_Net_Receive(benchmark::State& state) {
  const Setup setup(state);
  if (setup.net == nullptr) return;
  testing::DeviceRig rig(*setup.net, {.event_idx = true, .arena_size = 1 << 20});
  rig.Activate();
  const testing::TapHost host("tapbench");
  const auto frame = testing::TestFrame(static_cast<std::size_t>(state.range(0)), 1);
  std::int64_t outstanding = 0;
  for (auto _ : state) {
    for (; outstanding < 128; ++outstanding) rig.driver(0).Build().Writable(2048).Publish();
    rig.Kick(0);
    for (int i = 0; i < kBatch; ++i) benchmark::DoNotOptimize(host.Send(frame));
    rig.Run();
    while (rig.driver(0).TakeUsed()) --outstanding;
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(rig.counter("rx_packets")));
  state.SetBytesProcessed(static_cast<std::int64_t>(rig.counter("rx_bytes")));
}
BENCHMARK(BM_Net_Receive)->ArgName("bytes")->Arg(60)->Arg(1514)->Arg(9014);

void BM_Net_CheckTransmitHeader(benchmark::State& state) {
  net::PacketHeader header{};
  header.flags = net::kHeaderNeedsCsum;
  header.gso_type = net::kGsoTcpV4;
  header.gso_size = 1448;
  header.csum_start = 34;
  header.csum_offset = 16;
  for (auto _ : state) {
    benchmark::DoNotOptimize(header);
    benchmark::DoNotOptimize(net::CheckTransmitHeader(header, 60000, ~std::uint64_t{0}));
  }
}
BENCHMARK(BM_Net_CheckTransmitHeader);

}  // namespace
}  // namespace postern::virtio
