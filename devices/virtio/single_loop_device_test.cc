#include "devices/virtio/single_loop_device.h"

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "tests/support/device_rig.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DeviceRig;
using testing::DriverQueue;

// Queue 0 answers at once with the length it read; queue 1 keeps its chains until told.
class Sample final : public SingleLoopDevice {
 public:
  explicit Sample(EventLoop& loop) : SingleLoopDevice(loop, "sample") {}
  [[nodiscard]] DeviceId id() const override { return DeviceId::kConsole; }
  [[nodiscard]] std::uint64_t features() const override { return 0; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return kSizes; }
  void ReadConfig(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) override {}
  void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  [[nodiscard]] std::uint32_t config_size() const override { return 0; }

  void Answer() {
    for (Chain& chain : kept) chain.Complete(0);
    kept.clear();
    Notify(1);
  }
  void SetWanted(bool on) {
    wanted = on;
    Pump(1);
  }

  std::vector<Chain> kept;
  bool wanted = true;
  int activations = 0;
  int deactivations = 0;
  int queue_resets = 0;
  bool fails = false;
  DriverQueue* refill = nullptr;  // a driver that publishes again as soon as it is answered
  int refills_left = 0;

 private:
  static constexpr std::array<std::uint16_t, 2> kSizes{64, 64};
  void OnActivate() override {
    ++activations;
    if (fails) Broken(SysError("back end", EIO).value());
  }
  void OnDeactivate() override {
    ++deactivations;
    for (Chain& chain : kept) chain.Complete(0);
    kept.clear();
  }
  void OnQueueReset(std::uint16_t queue) override {
    ++queue_resets;
    if (queue != 1) return;
    for (Chain& chain : kept) chain.Discard();
    kept.clear();
  }
  bool WantsChain(std::uint16_t queue) override { return queue == 0 || wanted; }
  void OnChain(std::uint16_t queue, Chain chain) override {
    if (queue == 1) {
      kept.push_back(std::move(chain));
      return;
    }
    const std::uint16_t head = chain.head();
    chain.Complete(static_cast<std::uint32_t>(chain.writable_size()));
    if (refill != nullptr && refills_left-- > 0) refill->PublishHead(head);
  }
};

struct Fixture {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  Sample device{*loop};
};

TEST_CASE("virtio device: serves kicks, counts them, and interrupts once for a batch") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  CHECK(f.device.activations == 1);
  for (int i = 0; i < 3; ++i) rig.driver(0).Build().Writable(5).Publish();
  rig.Kick(0);
  for (int i = 0; i < 3; ++i) CHECK(rig.driver(0).TakeUsed()->length == 5);
  CHECK(rig.interrupt().queue_count(0) == 1);
  CHECK(rig.counter("kicks") == 1);
  CHECK(rig.counter("chains") == 3);
  // Kicks are asked for again.
  CHECK(rig.driver(0).used_flags() == 0);
}

TEST_CASE("virtio device: a kick without work is harmless") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  for (int i = 0; i < 10; ++i) rig.Kick(0);
  CHECK(rig.counter("chains") == 0);
  CHECK(rig.interrupt().queue_count(0) == 0);
}

TEST_CASE("virtio device: chains may be answered later") {
  Fixture f;
  DeviceRig rig(f.device, {.event_idx = true});
  rig.Activate();
  rig.driver(1).Build().Readable("a").Publish();
  rig.driver(1).Build().Readable("b").Publish();
  rig.Kick(1);
  CHECK(f.device.kept.size() == 2);
  CHECK_FALSE(rig.driver(1).TakeUsed().has_value());
  f.device.Answer();
  CHECK(rig.driver(1).TakeUsed().has_value());
  CHECK(rig.driver(1).TakeUsed().has_value());
  CHECK(rig.interrupt().queue_count(1) == 1);
}

TEST_CASE("virtio device: a queue that is not wanted is left alone until it is") {
  Fixture f;
  DeviceRig rig(f.device);
  f.device.wanted = false;
  rig.Activate();
  rig.driver(1).Build().Readable("a").Publish();
  rig.Kick(1);
  CHECK(rig.counter("chains") == 0);
  f.device.SetWanted(true);
  CHECK(f.device.kept.size() == 1);
}

TEST_CASE("virtio device: a driver that refills without end does not keep the loop") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  f.device.refill = &rig.driver(0);
  f.device.refills_left = 1000;
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);  // one round of the loop
  CHECK(rig.counter("chains") == 64);
  for (int i = 0; i < 20; ++i) rig.Run();
  CHECK(rig.counter("chains") == 1001);
}

TEST_CASE("virtio device: a broken rule stops all queues until the reset") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  rig.driver(1).Build().Readable("kept").Publish();
  rig.Kick(1);
  rig.driver(0).Build().Writable(1).Publish();
  rig.driver(0).PublishHead(999);
  rig.Kick(0);
  CHECK(rig.interrupt().needs_reset_count() == 1);
  CHECK(rig.interrupt().queue_count(0) == 1);  // what was good before it was answered
  rig.driver(1).Build().Readable("more").Publish();
  rig.Kick(1);
  CHECK(f.device.kept.size() == 1);
  f.device.Answer();  // late answers are harmless
  rig.Reset();
  CHECK(f.device.deactivations == 1);
  rig.Activate();
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed().has_value());
  CHECK(rig.interrupt().needs_reset_count() == 1);
}

TEST_CASE(
    "virtio device: a back end that fails at activation asks for a reset, and the guest goes on") {
  Fixture f;
  DeviceRig rig(f.device);
  f.device.fails = true;
  rig.Activate();
  CHECK(rig.interrupt().needs_reset_count() == 1);
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  CHECK(rig.counter("chains") == 0);
}

TEST_CASE(
    "virtio device: reset gives everything back, and is idempotent (regression: reset while "
    "running)") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  rig.driver(1).Build().Readable("in flight").Publish();
  rig.Kick(1);
  Resources resources = f.device.Reset();
  REQUIRE(resources.queues.size() == 2);
  CHECK(resources.queues[1]->queue.in_flight() == 0);
  CHECK(resources.memory == rig.memory());
  CHECK(f.device.Reset().queues.empty());
  CHECK(f.device.ResetQueue(0) == nullptr);
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  CHECK(rig.counter("chains") == 1);
}

TEST_CASE("virtio device: queues the driver did not enable are absent") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate({true, false});
  rig.Kick(1);
  f.device.Answer();
  CHECK(f.device.ResetQueue(1) == nullptr);
  CHECK(f.device.ResetQueue(7) == nullptr);
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed().has_value());
}

TEST_CASE(
    "virtio device: VIRTIO 1.2 2.6.1: one queue is reset and enabled anew while the other runs") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  rig.driver(1).Build().Readable("lost").Publish();
  rig.Kick(1);
  rig.ResetQueue(1);
  CHECK(f.device.queue_resets == 1);
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed().has_value());
  rig.Kick(1);
  CHECK(f.device.kept.empty());
  rig.ResumeQueue(1);
  rig.driver(1).Build().Readable("new").Publish();
  rig.Kick(1);
  CHECK(f.device.kept.size() == 1);
}

TEST_CASE(
    "virtio device: what was published before activation is served, and a restored queue "
    "interrupts once") {
  Fixture f;
  DeviceRig rig(f.device);
  rig.Activate();
  rig.driver(0).Build().Writable(1).Publish();
  rig.Kick(0);
  const auto states = rig.Reset();
  rig.driver(0).Build().Writable(2).Publish();
  const std::uint64_t before = rig.interrupt().queue_count(0);
  rig.ActivateFrom(states);
  CHECK(rig.driver(0).TakeUsed()->length == 1);
  CHECK(rig.driver(0).TakeUsed()->length == 2);
  CHECK(rig.interrupt().queue_count(0) >= before + 1);
}

}  // namespace
}  // namespace postern::virtio
