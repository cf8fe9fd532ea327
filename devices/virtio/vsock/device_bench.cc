// The data path of virtio-vsock over one connection; the host program is on the same thread, so
// that a figure is the sum of both sides.
#include "devices/virtio/vsock/device.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "tests/support/device_rig.h"
#include "tests/support/memory.h"

namespace postern::virtio {
namespace {

using vsock::Op;
using vsock::Packet;

struct Setup {
  std::string dir = "/tmp/postern_vsock_bench_XXXXXX";
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<Vsock> vsock;
  std::unique_ptr<testing::DeviceRig> rig;
  Fd host;
  Setup() {
    if (mkdtemp(dir.data()) == nullptr) std::abort();
    vsock = Vsock::Create({.guest_cid = 3, .socket = dir + "/v"}, *loop).value();
    rig = std::make_unique<testing::DeviceRig>(
        *vsock, testing::DeviceRig::Options{.event_idx = true, .arena_size = 8 << 20});
    rig->Activate();
    UnixListener service = UnixListener::Create(dir + "/v_1", "service").value();
    rig->driver(0).Build().Writable(44).Publish();
    Send(Op::kRequest, {});
    while (rig->driver(0).TakeUsed()) {
    }
    host = service.Accept().value();
  }
  ~Setup() {
    rig.reset();
    vsock.reset();
    (void)rmdir(dir.c_str());
  }
  void Send(Op op, std::span<const std::byte> data, std::uint32_t fwd_cnt = 0) const {
    Packet packet;
    packet.src_cid = 3;
    packet.dst_cid = vsock::kHostCid;
    packet.src_port = 9;
    packet.dst_port = 1;
    packet.op = op;
    packet.len = static_cast<std::uint32_t>(data.size());
    packet.buf_alloc = 1 << 30;
    packet.fwd_cnt = fwd_cnt;
    auto build = rig->driver(1).Build();
    build.ReadableObject(vsock::Encode(packet));
    if (!data.empty()) build.Readable(data);
    build.Publish();
    rig->Kick(1);
    while (rig->driver(1).TakeUsed()) {
    }
  }
};

void BM_Vsock_GuestToHost(benchmark::State& state) {
  const Setup setup;
  const auto data = testing::Pattern(static_cast<std::size_t>(state.range(0)));
  std::vector<std::byte> sink(1 << 20);
  // For credit updates, one of which answers many packets.
  int buffers = 0;
  for (auto _ : state) {
    for (; buffers < 8; ++buffers) setup.rig->driver(0).Build().Writable(4096).Publish();
    setup.Send(Op::kRw, data);
    benchmark::DoNotOptimize(recv(setup.host.get(), sink.data(), sink.size(), MSG_DONTWAIT));
    while (setup.rig->driver(0).TakeUsed()) --buffers;
  }
  state.SetItemsProcessed(state.iterations());
  state.SetBytesProcessed(static_cast<std::int64_t>(setup.rig->counter("tx_bytes")));
}
BENCHMARK(BM_Vsock_GuestToHost)->ArgName("bytes")->Arg(64)->Arg(4096)->Arg(65536);

void BM_Vsock_HostToGuest(benchmark::State& state) {
  const Setup setup;
  const auto data = testing::Pattern(static_cast<std::size_t>(state.range(0)));
  std::uint32_t received = 0;
  int buffers = 0;
  for (auto _ : state) {
    for (; buffers < 64; ++buffers) setup.rig->driver(0).Build().Writable(4096).Publish();
    benchmark::DoNotOptimize(send(setup.host.get(), data.data(), data.size(), MSG_DONTWAIT));
    setup.rig->Kick(0);
    while (const auto used = setup.rig->driver(0).TakeUsed()) {
      received += used->length - static_cast<std::uint32_t>(sizeof(vsock::Header));
      --buffers;
    }
    if (received > 1 << 28) {
      setup.Send(Op::kCreditUpdate, {}, static_cast<std::uint32_t>(setup.rig->counter("rx_bytes")));
      received = 0;
    }
  }
  state.SetItemsProcessed(state.iterations());
  state.SetBytesProcessed(static_cast<std::int64_t>(setup.rig->counter("rx_bytes")));
}
BENCHMARK(BM_Vsock_HostToGuest)->ArgName("bytes")->Arg(64)->Arg(4096)->Arg(65536);

}  // namespace
}  // namespace postern::virtio
