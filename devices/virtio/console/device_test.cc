#include "devices/virtio/console/device.h"

#include <string>
#include <vector>

#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DeviceRig;

// A back end in the test's hands.
struct FakeBackend : console::ConsoleBackend {
  console::ConsoleClient* client = nullptr;
  std::string input;
  std::string output;
  std::size_t room = ~std::size_t{0};  // how much more output is taken
  console::WindowSize size{80, 25};
  void Attach(console::ConsoleClient& c) override { client = &c; }
  void Detach() override { client = nullptr; }
  std::size_t Write(std::span<const iovec> from) override {
    std::size_t taken = 0;
    for (const iovec& part : from) {
      const std::size_t n = std::min(room, part.iov_len);
      output.append(static_cast<const char*>(part.iov_base), n);
      room -= n;
      taken += n;
      if (n < part.iov_len) break;
    }
    return taken;
  }
  std::size_t Read(std::span<std::byte> to) override {
    const std::size_t n = std::min(to.size(), input.size());
    std::copy_n(reinterpret_cast<const std::byte*>(input.data()), n, to.begin());
    input.erase(0, n);
    return n;
  }
  [[nodiscard]] bool has_input() const override { return !input.empty(); }
  [[nodiscard]] console::WindowSize window_size() const override { return size; }
  [[nodiscard]] std::string description() const override { return "fake"; }
  void ReportCounters(CounterSink& /*sink*/) const override {}
  void Type(std::string_view text) {
    input += text;
    client->OnInput();
  }
};

struct Fixture {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  FakeBackend* backend;
  Console console;
  Fixture() : Fixture(std::make_unique<FakeBackend>()) {}
  explicit Fixture(std::unique_ptr<FakeBackend> made)
      : backend(made.get()), console(std::move(made), *loop) {}
};

std::string Text(const std::vector<std::byte>& bytes, std::size_t length) {
  return {reinterpret_cast<const char*>(bytes.data()), std::min(length, bytes.size())};
}

TEST_CASE("virtio console: output goes to the back end in order") {
  Fixture f;
  DeviceRig rig(f.console, {.event_idx = true});
  rig.Activate();
  rig.driver(1).Build().Readable("hello ").Readable("world").Publish();
  rig.driver(1).Build().Readable("!\n").Publish();
  rig.Kick(1);
  CHECK(f.backend->output == "hello world!\n");
  CHECK(rig.driver(1).TakeUsed()->length == 0);
  CHECK(rig.driver(1).TakeUsed().has_value());
  CHECK(rig.counter("transmitted_bytes") == 13);
}

TEST_CASE("virtio console: input waits for buffers, and fills no more than it needs") {
  Fixture f;
  DeviceRig rig(f.console, {});
  rig.Activate();
  f.backend->Type("typed early");
  CHECK(f.backend->input == "typed early");
  rig.driver(0).Build().Writable(5).Publish();
  rig.driver(0).Build().Writable(2).Writable(100).Publish();
  rig.driver(0).Build().Writable(100).Publish();
  rig.Kick(0);
  auto used = rig.driver(0).TakeUsed();
  REQUIRE(used);
  CHECK(used->length == 5);
  CHECK(Text(rig.driver(0).Written(used->head), 5) == "typed");
  used = rig.driver(0).TakeUsed();
  REQUIRE(used);
  CHECK(Text(rig.driver(0).Written(used->head), used->length) == " early");
  CHECK(!rig.driver(0).TakeUsed());  // no empty buffer is given back
  f.backend->Type("x");
  rig.Run();
  CHECK(rig.driver(0).TakeUsed()->length == 1);
  CHECK(rig.interrupt().queue_count(0) >= 2);
}

TEST_CASE("virtio console: output a slow back end refuses stays in the guest's buffers") {
  Fixture f;
  DeviceRig rig(f.console, {});
  rig.Activate();
  f.backend->room = 7;
  rig.driver(1).Build().Readable("0123").Readable("456789").Publish();
  rig.driver(1).Build().Readable("next").Publish();
  rig.Kick(1);
  CHECK(f.backend->output == "0123456");
  CHECK(!rig.driver(1).TakeUsed());
  CHECK(rig.counter("transmit_stalls") == 1);
  f.backend->room = 5;
  f.backend->client->OnWritable();
  CHECK(f.backend->output == "0123456789ne");
  CHECK(rig.driver(1).TakeUsed());
  CHECK(!rig.driver(1).TakeUsed());
  f.backend->room = 100;
  f.backend->client->OnWritable();
  CHECK(f.backend->output == "0123456789next");
  CHECK(rig.driver(1).TakeUsed());
}

TEST_CASE("virtio console: one giant chain does not keep the loop") {
  Fixture f;
  DeviceRig rig(f.console, {});
  rig.Activate();
  auto build = rig.driver(1).Build();
  for (int i = 0; i < 8; ++i) build.ReadableAt(0, 65536);
  build.Publish();
  rig.driver(1).Build().Readable("end").Publish();
  rig.Kick(1);
  CHECK(f.backend->output.size() < 8 * 65536);  // in turns, between which others have theirs
  for (int i = 0; i < 20; ++i) rig.Run();
  CHECK(f.backend->output.size() == 8 * 65536 + 3);
  CHECK(rig.driver(1).TakeUsed());
  CHECK(rig.driver(1).TakeUsed());
}

TEST_CASE("virtio console: window size is configuration, and its change an interrupt") {
  Fixture f;
  SUBCASE("with SIZE") {
    DeviceRig rig(f.console, {});
    rig.Activate();
    CHECK(rig.interrupt().config_count() == 1);  // the size it starts with
    CHECK(rig.ConfigAt<le16>(0).get() == 80);
    CHECK(rig.ConfigAt<le16>(2).get() == 25);
    CHECK(rig.ConfigAt<le32>(4).get() == 1);
    CHECK(rig.ConfigAt<le64>(12).get() == 0);
    CHECK(rig.ConfigAt<le64>(~std::uint64_t{0}).get() == 0);
    f.backend->client->OnResize({132, 43});
    f.backend->client->OnResize({132, 43});
    CHECK(rig.interrupt().config_count() == 2);
    CHECK(rig.ConfigAt<le32>(0).get() == (43U << 16 | 132U));
  }
  SUBCASE("without SIZE") {
    DeviceRig rig(f.console, {.features = 0});
    rig.Activate();
    f.backend->client->OnResize({1, 2});
    CHECK(rig.interrupt().config_count() == 0);
  }
}

TEST_CASE("virtio console: reset with output pending, and a new start") {
  Fixture f;
  DeviceRig rig(f.console, {});
  rig.Activate();
  f.backend->room = 1;
  rig.driver(1).Build().Readable("abc").Publish();
  rig.Kick(1);
  SUBCASE("device") {
    rig.Reset();
    f.backend->client->OnWritable();  // of nobody
    f.backend->Type("t");
    CHECK(f.backend->output == "a");
    rig.Activate();
  }
  SUBCASE("queue") {
    rig.ResetQueue(1);
    f.backend->client->OnWritable();
    CHECK(f.backend->output == "a");
    rig.ResumeQueue(1);
  }
  f.backend->room = 100;
  rig.driver(1).Build().Readable("XYZ").Publish();
  rig.Kick(1);
  CHECK(f.backend->output == "aXYZ");
}

TEST_CASE("virtio console: a saved console goes on where it was") {
  Fixture f;
  DeviceRig rig(f.console, {});
  rig.Activate();
  f.backend->room = 4;
  rig.driver(1).Build().Readable("0123456789").Publish();
  rig.driver(1).Build().Readable("later").Publish();
  rig.Kick(1);
  f.console.Quiesce();
  CHECK(rig.driver(1).TakeUsed());
  const ConsoleState state = f.console.Save();
  CHECK(f.console.Restore(state).error().code == Errc::kBadState);
  const std::vector<QueueState> queues = rig.Reset();
  CHECK(f.console.Save().output.empty());

  Fixture g;
  g.backend->size = {};
  REQUIRE(g.console.Restore(state));
  CHECK(g.console.Save() == state);
  g.backend->room = 3;
  DeviceRig second(g.console, {});
  second.Activate();
  CHECK(g.backend->output == "456");
  second.driver(1).Build().Readable("later").Publish();
  second.Kick(1);
  g.backend->room = 100;
  g.backend->client->OnWritable();
  CHECK(g.backend->output == "456789later");
  CHECK(second.ConfigAt<le16>(0).get() == 80);

  ConsoleState bad = state;
  bad.version = 2;
  Fixture h;
  CHECK(h.console.Restore(bad).error().code == Errc::kBadFormat);
  bad = state;
  bad.output.resize(Console::kMaxSavedOutput + 1);
  CHECK(h.console.Restore(bad).error().code == Errc::kBadFormat);
}

TEST_CASE("virtio console: a hostile driver harms nobody") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Fixture f;
    DeviceRig rig(f.console, {.event_idx = seed % 2 == 0});
    rig.Activate();
    testing::HostileDriver rx(rig.driver(0), seed);
    testing::HostileDriver tx(rig.driver(1), seed * 77);
    for (int i = 0; i < 200; ++i) {
      rx.Step();
      tx.Step();
      f.backend->room = tx.Below(3) == 0 ? tx.Below(100000) : 1 << 20;
      if (f.backend->output.size() > 1 << 20) f.backend->output.clear();
      if (f.backend->input.size() < 10000) f.backend->Type("some input");
      rig.Kick(0);
      rig.Kick(1);
      f.backend->client->OnWritable();
      if (rx.Below(20) == 0) {
        rig.Reset();
        rig.Activate();
      }
    }
  }
}

}  // namespace
}  // namespace postern::virtio
