// Both queues of a console under a hostile driver, with a back end that is fast, slow and talkative
// as the input says.
#include "devices/virtio/console/device.h"

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

namespace postern::virtio {
namespace {

struct Backend : console::ConsoleBackend {
  console::ConsoleClient* client = nullptr;
  std::size_t input = 0;
  std::size_t room = 0;
  void Attach(console::ConsoleClient& c) override { client = &c; }
  void Detach() override { client = nullptr; }
  std::size_t Write(std::span<const iovec> from) override {
    std::size_t taken = 0;
    for (const iovec& part : from) taken += part.iov_len;
    if (taken > room) taken = room;
    room -= taken;
    return taken;
  }
  std::size_t Read(std::span<std::byte> to) override {
    const std::size_t n = to.size() < input ? to.size() : input;
    input -= n;
    return n;
  }
  [[nodiscard]] bool has_input() const override { return input > 0; }
  [[nodiscard]] std::string description() const override { return {}; }
  void ReportCounters(CounterSink& /*sink*/) const override {}
};

}  // namespace
}  // namespace postern::virtio

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern;  // NOLINT(google-build-using-namespace): this one function
  static const std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  auto owned = std::make_unique<virtio::Backend>();
  virtio::Backend& backend = *owned;
  virtio::Console console(std::move(owned), *loop);
  testing::DeviceRig rig(console, {.event_idx = size % 2 == 0});
  rig.Activate();
  testing::HostileDriver rx(rig.driver(0), std::span(data, size));
  testing::HostileDriver tx(rig.driver(1), std::span(data, size));
  for (int i = 0; i < 64 && tx.input_left(); ++i) {
    rx.Step();
    tx.Step();
    backend.room = tx.Below(1 << 18);
    backend.input += tx.Below(300);
    backend.client->OnInput();
    rig.Kick(0);
    rig.Kick(1);
    backend.room += tx.Below(1 << 18);
    backend.client->OnWritable();
    if (tx.Below(16) == 0) console.Quiesce();
    if (tx.Below(16) == 0) {
      rig.Reset();
      if (!console.Restore(console.Save())) __builtin_trap();
      rig.Activate();
    }
  }
  return 0;
}
