#include "devices/virtio/rng/rng.h"

#include <algorithm>
#include <set>

#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DeviceRig;
using testing::HostileDriver;

struct Fixture {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  Rng rng{*loop};
};

TEST_CASE("rng: is an entropy device with one queue and no configuration") {
  const Fixture f;
  CHECK(f.rng.id() == DeviceId::kEntropy);
  CHECK(f.rng.features() == 0);
  CHECK(f.rng.queue_sizes().size() == 1);
  CHECK(f.rng.config_size() == 0);
  std::array<std::byte, 8> data{};
  data.fill(std::byte{0xff});
  Rng{*f.loop}.ReadConfig(0, data);
  CHECK(std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("rng: fills buffers whole, each time differently") {
  Fixture f;
  DeviceRig rig(f.rng, {.event_idx = true});
  rig.Activate();
  std::set<std::vector<std::byte>> seen;
  for (const std::uint32_t length : {16U, 100U, 4096U, 5000U, 65536U}) {
    CAPTURE(length);
    const std::uint16_t head = rig.driver(0).Build().Writable(length).Publish();
    rig.driver(0).SetUsedEvent(rig.driver(0).used_idx());
    rig.Kick(0);
    const auto used = rig.driver(0).TakeUsed();
    REQUIRE(used.has_value());
    CHECK(used->head == head);
    CHECK(used->length == length);
    const auto bytes = rig.driver(0).Written(head);
    // The last 16 bytes are as random as the first: nothing was left out.
    CHECK(seen.emplace(bytes.begin(), bytes.begin() + 16).second);
    if (length >= 32) CHECK(seen.emplace(bytes.end() - 16, bytes.end()).second);
  }
  CHECK(rig.interrupt().queue_count(0) == 5);
  CHECK(rig.counter("bytes") == 16 + 100 + 4096 + 5000 + 65536);
  CHECK(rig.counter("chains") == 5);
}

TEST_CASE("rng: one request gets no more than 64 KiB, however much it asks for (regression)") {
  Fixture f;
  DeviceRig rig(f.rng, {.arena_size = 4 << 20});
  rig.Activate();
  const std::uint16_t head = rig.driver(0).Build().Writable(1 << 20).Writable(1 << 20).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed()->length == Rng::kMaxBytesPerRequest);
  const auto bytes = rig.driver(0).Written(head);
  CHECK(std::all_of(bytes.begin() + Rng::kMaxBytesPerRequest, bytes.end(),
                    [](std::byte b) { return b == std::byte{0}; }));
}

TEST_CASE("rng: readable buffers are left alone, empty ones answered with nothing") {
  Fixture f;
  DeviceRig rig(f.rng);
  rig.Activate();
  rig.driver(0).Build().Readable("what is this").Publish();
  rig.driver(0).Build().Readable("seed").Writable(8).Publish();
  rig.driver(0).Build().Raw(0, 0, kDescWrite).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed()->length == 0);
  CHECK(rig.driver(0).TakeUsed()->length == 8);
  CHECK(rig.driver(0).TakeUsed()->length == 0);
  CHECK(rig.interrupt().needs_reset_count() == 0);
}

TEST_CASE("rng: a broken ring stops the device until it is reset") {
  Fixture f;
  DeviceRig rig(f.rng);
  rig.Activate();
  rig.driver(0).PublishHead(0xffff);
  rig.Kick(0);
  CHECK(rig.interrupt().needs_reset_count() == 1);
  rig.driver(0).Build().Writable(8).Publish();
  rig.Kick(0);
  CHECK_FALSE(rig.driver(0).TakeUsed().has_value());
  CHECK(rig.counter("protocol_errors") == 1);
  rig.Reset();
  rig.Activate();
  rig.driver(0).Build().Writable(8).Publish();
  rig.Kick(0);
  CHECK(rig.driver(0).TakeUsed()->length == 8);
}

TEST_CASE("rng: state of another version is refused") {
  Fixture f;
  CHECK(f.rng.Restore(f.rng.Save()).has_value());
  CHECK_FALSE(f.rng.Restore({.version = 2}).has_value());
  CHECK_FALSE(f.rng.Restore({.version = 0}).has_value());
}

TEST_CASE("rng: a hostile driver cannot end or stall it") {
  Fixture f;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    DeviceRig rig(f.rng, {.event_idx = seed % 2 == 0, .queue_size = 16});
    rig.Activate();
    HostileDriver hostile(rig.driver(0), seed);
    for (int step = 0; step < 300; ++step) {
      hostile.Step();
      const std::uint64_t broken = rig.interrupt().needs_reset_count();
      rig.Kick(0);
      if (rig.interrupt().needs_reset_count() > broken) {
        rig.Reset();
        rig.Activate();
      }
    }
  }
}

}  // namespace
}  // namespace postern::virtio
