#include "devices/virtio/net/device.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bazel/testing/skip.h"
#include "devices/virtio/net/tap_test_host.h"
#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using net::PacketHeader;
using testing::DeviceRig;
using testing::TapHost;
using testing::TestFrame;

#define NEEDS_NAMESPACE() \
  if (const std::string why = testing::EnterNetworkNamespace(); !why.empty()) SKIP_TEST(why.c_str())

struct Fixture {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<Net> net;
  explicit Fixture(NetOptions options = {}) {
    EventLoop* const loops[] = {loop.get()};
    if (options.tap.empty() && options.fds.empty()) options.tap = "tap0";
    net = Net::Create(std::move(options), loops).value();
  }
};

// Guest to host: a header and a frame.
void Transmit(DeviceRig& rig, std::span<const std::byte> frame, const PacketHeader& header = {},
              std::uint16_t queue = 1) {
  rig.driver(queue).Build().ReadableObject(header).Readable(frame).Publish();
}

// The frame in a used receive buffer, possibly spread over several; empty without one.
std::vector<std::byte> TakePacket(DeviceRig& rig, std::uint16_t queue = 0) {
  const auto used = rig.WaitUsed(queue);
  if (!used) return {};
  std::vector<std::byte> bytes = rig.driver(queue).Written(used->head);
  bytes.resize(used->length);
  REQUIRE(bytes.size() >= sizeof(PacketHeader));
  PacketHeader header{};
  std::memcpy(&header, bytes.data(), sizeof(header));
  REQUIRE(header.num_buffers.get() >= 1);
  for (std::uint16_t i = 1; i < header.num_buffers.get(); ++i) {
    // 5.1.6.4.1: all of them are there as soon as the first one is.
    const auto more = rig.driver(queue).TakeUsed();
    REQUIRE(more);
    std::vector<std::byte> part = rig.driver(queue).Written(more->head);
    part.resize(more->length);
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  bytes.erase(bytes.begin(), bytes.begin() + sizeof(PacketHeader));
  return bytes;
}

std::string ReadText(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[64] = {};
  const ssize_t n = read(fd.get(), text, sizeof(text) - 1);
  return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : std::string();
}

TEST_CASE("virtio-net: packets reach the other side unchanged, both ways") {
  NEEDS_NAMESPACE();
  for (const bool merged : {true, false}) {
    CAPTURE(merged);
    Fixture f;
    DeviceRig rig(*f.net, {.features = merged ? ~std::uint64_t{0} : ~net::kFeatureMrgRxbuf,
                           .event_idx = merged});
    rig.Activate();
    const TapHost host("tap0");
    for (const std::size_t size : {14U, 60U, 61U, 1514U}) {
      CAPTURE(size);
      const auto frame = TestFrame(size, 5);
      Transmit(rig, frame);
      rig.Kick(1);
      CHECK(host.Receive() == frame);
      CHECK(rig.driver(1).TakeUsed()->length == 0);
      rig.driver(0).Build().Writable(1600).Publish();
      rig.Kick(0);
      REQUIRE(host.Send(frame));
      CHECK(TakePacket(rig) == frame);
    }
    CHECK(rig.counter("tx_packets") == 4);
    CHECK(rig.counter("rx_packets") == 4);
    CHECK(rig.counter("tx_bytes") == 14 + 60 + 61 + 1514);
    CHECK(rig.interrupt().needs_reset_count() == 0);
  }
}

TEST_CASE("virtio-net: a header and frame cut anywhere into buffers") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  const auto frame = TestFrame(200, 9);
  std::vector<std::byte> all(sizeof(PacketHeader));
  all.insert(all.end(), frame.begin(), frame.end());
  for (const std::size_t cut : {1U, 7U, 11U, 13U, 100U}) {
    CAPTURE(cut);
    auto build = rig.driver(1).Build();
    for (std::size_t at = 0; at < all.size(); at += cut)
      build.Readable(std::span(all).subspan(at, std::min(cut, all.size() - at)));
    build.Indirect().Publish();
    rig.Kick(1);
    CHECK(host.Receive() == frame);
  }
  auto build = rig.driver(0).Build();
  for (int i = 0; i < 100; ++i) build.Writable(3);
  build.Publish();
  rig.Kick(0);
  REQUIRE(host.Send(frame));
  CHECK(TakePacket(rig) == frame);
}

TEST_CASE("virtio-net: a large packet is spread over merged buffers, shown all at once") {
  NEEDS_NAMESPACE();
  Fixture f({.mtu = 65000});
  DeviceRig rig(*f.net, {.event_idx = true});
  rig.Activate();
  const TapHost host("tap0");
  CHECK(rig.ConfigAt<le16>(10).get() == 65000);
  CHECK(ReadText("/sys/class/net/tap0/mtu").substr(0, 5).size() <= 5);
  for (int i = 0; i < 80; ++i) rig.driver(0).Build().Writable(1024).Publish();
  rig.Kick(0);
  const auto big = TestFrame(40000, 3);
  const auto small = TestFrame(100, 4);
  REQUIRE(host.Send(big));
  REQUIRE(host.Send(small));
  CHECK(TakePacket(rig) == big);
  CHECK(TakePacket(rig) == small);
  CHECK(rig.counter("rx_packets") == 2);
  CHECK(rig.counter("rx_dropped") == 0);
}

TEST_CASE("virtio-net: a packet larger than what the guest had offered waits for more buffers") {
  NEEDS_NAMESPACE();
  Fixture f({.mtu = 65000});
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  const auto big = TestFrame(5000, 3);
  rig.driver(0).Build().Writable(2000).Publish();
  rig.Kick(0);
  REQUIRE(host.Send(big));
  rig.Run(50);
  CHECK_FALSE(rig.driver(0).TakeUsed());
  SUBCASE("the driver gives them in time") {
    rig.driver(0).Build().Writable(2000).Publish();
    rig.driver(0).Build().Writable(500).Writable(1500).Publish();
    rig.Kick(0);
    if (rig.counter("rx_dropped") ==
        0) {  // else this machine stalled for longer than the driver has
      CHECK(TakePacket(rig) == big);
      CHECK(rig.counter("rx_packets") == 1);
    }
  }
  SUBCASE("the driver has no more: the packet is lost, the buffer is not") {
    for (int i = 0; i < 200 && rig.counter("rx_dropped") == 0; ++i) rig.Run(10);
    CHECK(rig.counter("rx_dropped") == 1);
    const auto small = TestFrame(900, 7);
    REQUIRE(host.Send(small));
    CHECK(TakePacket(rig) == small);
  }
}

TEST_CASE(
    "virtio-net: without merged buffers a packet that does not fit is lost, and the buffer is used "
    "for the next") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net, {.features = ~net::kFeatureMrgRxbuf});
  rig.Activate();
  const TapHost host("tap0");
  rig.driver(0).Build().Writable(12 + 200).Publish();
  rig.Kick(0);
  REQUIRE(host.Send(TestFrame(201, 1)));
  REQUIRE(host.Send(TestFrame(200, 2)));
  CHECK(TakePacket(rig) == TestFrame(200, 2));
  CHECK(rig.counter("rx_dropped") == 1);
}

TEST_CASE("regression CVE-2020-16843: without receive buffers the TAP is left alone until a kick") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  std::vector<std::vector<std::byte>> frames;
  for (std::uint32_t i = 0; i < 20; ++i) frames.push_back(TestFrame(300, i));
  for (const auto& frame : frames) REQUIRE(host.Send(frame));
  rig.Run(20);
  CHECK(rig.counter("rx_starved") == 1);
  timespec before{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
  for (int i = 0; i < 5; ++i) rig.Run(20);
  timespec after{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
  CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 20000000);
  CHECK(rig.counter("rx_starved") == 1);
  // Transmission goes on.
  Transmit(rig, TestFrame(64, 99));
  rig.Kick(1);
  CHECK(host.Receive() == TestFrame(64, 99));
  for (std::uint32_t i = 0; i < 20; ++i) {
    rig.driver(0).Build().Writable(400).Publish();
    rig.Kick(0);
    CHECK(TakePacket(rig) == frames[i]);
  }
}

TEST_CASE("virtio-net: malformed transmissions are counted and answered, and harm nobody") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  const auto frame = TestFrame(100, 1);
  rig.driver(1).Build().Readable("short").Publish();
  rig.driver(1).Build().ReadableObject(PacketHeader{}).Publish();
  Transmit(rig, TestFrame(14, 1).size() > 13 ? std::span(frame).first(13) : std::span(frame));
  PacketHeader bad{};
  bad.flags = net::kHeaderNeedsCsum;
  bad.csum_start = 99;
  Transmit(rig, frame, bad);
  rig.driver(1)
      .Build()
      .ReadableObject(PacketHeader{})
      .ReadableAt(0, 65536)
      .ReadableAt(0, 65536)
      .Publish();
  rig.driver(1).Build().Writable(100).Publish();
  rig.Kick(1);
  for (int i = 0; i < 6; ++i) CHECK(rig.driver(1).TakeUsed());
  CHECK(rig.counter("tx_malformed") == 6);
  Transmit(rig, frame);
  rig.Kick(1);
  CHECK(host.Receive() == frame);
  // A receive buffer that cannot hold a header is given back empty.
  rig.driver(0).Build().Writable(11).Publish();
  rig.driver(0).Build().Writable(300).Publish();
  rig.Kick(0);
  REQUIRE(host.Send(frame));
  CHECK(rig.WaitUsed(0)->length == 0);
  CHECK(TakePacket(rig) == frame);
  CHECK(rig.interrupt().needs_reset_count() == 0);
}

TEST_CASE(
    "virtio-net: a useless buffer between others is given back in its turn, and does not hinder a "
    "reset") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  for (const std::uint32_t size : {2000U, 5U, 2000U, 11U})
    rig.driver(0).Build().Writable(size).Publish();
  rig.Kick(0);
  REQUIRE(host.Send(TestFrame(60, 1)));
  CHECK(TakePacket(rig) == TestFrame(60, 1));
  SUBCASE("reset") {
    const std::vector<QueueState> states = rig.Reset();
    CHECK(states[0].next_avail == states[0].next_used);
  }
  SUBCASE("go on") {
    REQUIRE(host.Send(TestFrame(61, 2)));
    CHECK(rig.WaitUsed(0)->length == 0);
    CHECK(TakePacket(rig) == TestFrame(61, 2));
  }
}

TEST_CASE("virtio-net: an interface that goes down or away") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const Fd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "tap0");  // NOLINT(clang-analyzer-security.insecureAPI.strcpy)
  REQUIRE(ioctl(control.get(), SIOCGIFFLAGS, &request) == 0);
  CHECK((request.ifr_flags & IFF_UP) != 0);
  request.ifr_flags = static_cast<short>(request.ifr_flags & ~IFF_UP);
  REQUIRE(ioctl(control.get(), SIOCSIFFLAGS, &request) == 0);
  Transmit(rig, TestFrame(100, 1));
  rig.Kick(1);
  CHECK(rig.driver(1).TakeUsed());
  CHECK(rig.counter("tx_errors") == 1);
  rig.Run(10);
  CHECK((rig.ConfigAt<le16>(6).get() & net::kStatusLinkUp) != 0);
}

TEST_CASE("virtio-net: features, configuration and addresses") {
  NEEDS_NAMESPACE();
  {
    Fixture f({.mac = net::MacAddress{2, 1, 2, 3, 4, 5}});
    DeviceRig rig(*f.net);
    CHECK(rig.ConfigAt<net::MacAddress>(0) == net::MacAddress{2, 1, 2, 3, 4, 5});
    CHECK(rig.ConfigAt<le16>(6).get() == net::kStatusLinkUp);
    CHECK(rig.ConfigAt<le16>(8).get() == 1);
    CHECK(rig.ConfigAt<le16>(10).get() == 1500);
    CHECK(rig.ConfigAt<le32>(12).get() == 10000);
    CHECK(rig.ConfigAt<std::uint8_t>(16) == 1);
    CHECK(rig.ConfigAt<le64>(17).get() == 0);
    CHECK(rig.ConfigAt<le64>(~std::uint64_t{0}).get() == 0);
    CHECK((f.net->features() & net::kFeatureHostTso4) != 0);
    CHECK((f.net->features() & net::kFeatureMq) == 0);
    CHECK(f.net->queue_sizes().size() == 3);
  }
  {
    Fixture f({.queue_pairs = 2, .offload = false});
    CHECK((f.net->features() & (net::kGuestOffloads | net::kFeatureCsum | net::kFeatureHostTso4 |
                                net::kFeatureHostUso)) == 0);
    CHECK((f.net->features() & net::kFeatureMq) != 0);
    const net::MacAddress mac = f.net->mac();
    CHECK((mac[0] & 3) == 2);
    CHECK(Fixture({.tap = "tap1"}).net->mac() != mac);
  }
}

std::uint8_t Control(DeviceRig& rig, std::uint16_t queue, const std::vector<std::uint8_t>& bytes) {
  rig.driver(queue)
      .Build()
      .Readable(std::as_bytes(std::span(bytes)))
      .Writable(1, std::byte{0x55})
      .Publish();
  rig.Kick(queue);
  const auto used = rig.driver(queue).TakeUsed();
  REQUIRE(used);
  CHECK(used->length == 1);
  return static_cast<std::uint8_t>(rig.driver(queue).Written(used->head)[0]);
}

TEST_CASE("virtio-net: control queue changes what it says, and a reset undoes it") {
  NEEDS_NAMESPACE();
  Fixture f({.mac = net::MacAddress{2, 0, 0, 0, 0, 1}});
  DeviceRig rig(*f.net);
  rig.Activate();
  CHECK(Control(rig, 2, {1, 1, 2, 0, 0, 0, 0, 9}) == net::kControlOk);
  CHECK(rig.ConfigAt<net::MacAddress>(0) == net::MacAddress{2, 0, 0, 0, 0, 9});
  CHECK(Control(rig, 2, {1, 1, 1, 0, 0, 0, 0, 9}) == net::kControlError);  // a group address
  CHECK(Control(rig, 2, {0, 0, 1}) == net::kControlOk);
  CHECK(Control(rig, 2, {0, 1, 1}) == net::kControlOk);
  CHECK(Control(rig, 2, {0, 0, 0}) == net::kControlOk);
  CHECK(Control(rig, 2, {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1}) == net::kControlOk);
  CHECK(Control(rig, 2, {5, 0, 2, 0, 0, 0, 0, 0, 0, 0}) == net::kControlOk);
  CHECK(Control(rig, 2, {7, 0}) == net::kControlError);
  const NetState state = f.net->Save();
  CHECK(state.rx_modes == 2);
  CHECK(state.multicast.size() == 1);
  CHECK(state.guest_offloads == net::kFeatureGuestCsum);
  CHECK(rig.counter("control_refused") == 2);
  // No room for the answer: none is given.
  rig.driver(2).Build().Readable("\x07").Publish();
  rig.Kick(2);
  CHECK(rig.driver(2).TakeUsed()->length == 0);
  CHECK(f.net->Restore(state).error().code == Errc::kBadState);

  rig.Reset();
  CHECK(rig.ConfigAt<net::MacAddress>(0) == net::MacAddress{2, 0, 0, 0, 0, 1});
  REQUIRE(f.net->Restore(state));
  rig.Activate();
  CHECK(f.net->Save() == state);
  rig.Reset();

  for (int i = 0; i < 6; ++i) {
    NetState bad = state;
    if (i == 0) bad.version = 9;
    if (i == 1) bad.active_pairs = 2;
    if (i == 2) bad.active_pairs = 0;
    if (i == 3) bad.guest_offloads = 1;
    if (i == 4) bad.unicast.resize(65);
    if (i == 5) bad.rx_modes = 0x40;
    CAPTURE(i);
    CHECK(f.net->Restore(bad).error().code == Errc::kBadFormat);
  }
}

TEST_CASE("virtio-net: several queue pairs on several loops") {
  NEEDS_NAMESPACE();
  auto loop0 = EventLoop::Create().value();
  auto loop1 = EventLoop::Create().value();
  std::thread thread([&] { loop1->Run(); });
  {
    EventLoop* const loops[] = {loop0.get(), loop1.get()};
    auto net = Net::Create({.tap = "tapmq", .queue_pairs = 3}, loops).value();
    DeviceRig rig(*net);
    rig.Activate();
    const TapHost host("tapmq");
    CHECK(net->queue_sizes().size() == 7);
    CHECK(rig.ConfigAt<le16>(8).get() == 3);
    CHECK(Control(rig, 6, {4, 0, 4, 0}) == net::kControlError);
    CHECK(Control(rig, 6, {4, 0, 3, 0}) == net::kControlOk);
    for (std::uint16_t pair = 0; pair < 3; ++pair) {
      const auto frame = TestFrame(100, pair);
      Transmit(rig, frame, {}, static_cast<std::uint16_t>(2 * pair + 1));
      rig.Kick(static_cast<std::uint16_t>(2 * pair + 1));
      CHECK(host.Receive() == frame);
    }
    // One pair again: all packets come by it, whatever their flow.
    CHECK(Control(rig, 6, {4, 0, 1, 0}) == net::kControlOk);
    for (std::uint32_t i = 0; i < 12; ++i) {
      rig.driver(0).Build().Writable(2000).Publish();
      rig.Kick(0);
      auto frame = TestFrame(100, i);
      frame[11] = static_cast<std::byte>(i);
      REQUIRE(host.Send(frame));
      CHECK(TakePacket(rig) == frame);
    }
    rig.Reset();
  }
  loop1->Stop();
  thread.join();
}

TEST_CASE("virtio-net: reset, queue reset and pause give all buffers back in order") {
  NEEDS_NAMESPACE();
  Fixture f;
  DeviceRig rig(*f.net);
  rig.Activate();
  const TapHost host("tap0");
  for (int i = 0; i < 10; ++i) rig.driver(0).Build().Writable(2000).Publish();
  rig.Kick(0);
  REQUIRE(host.Send(TestFrame(60, 1)));
  CHECK(TakePacket(rig) == TestFrame(60, 1));
  SUBCASE("pause") {
    f.net->Pause();
    REQUIRE(host.Send(TestFrame(61, 2)));
    rig.Run(20);
    CHECK_FALSE(rig.driver(0).TakeUsed());
    f.net->Resume();
    CHECK(TakePacket(rig) == TestFrame(61, 2));
  }
  SUBCASE("save and restore of the queues") {
    const std::vector<QueueState> states = rig.Reset();
    CHECK(states[0].next_avail == 1);
    CHECK(states[0].next_used == 1);
    rig.ActivateFrom(states);
    REQUIRE(host.Send(TestFrame(61, 2)));
    CHECK(TakePacket(rig) == TestFrame(61, 2));
  }
  SUBCASE("queue reset") {
    rig.ResetQueue(0);
    REQUIRE(host.Send(TestFrame(61, 2)));
    rig.Run(20);
    rig.ResumeQueue(0);
    rig.driver(0).Build().Writable(2000).Publish();
    rig.Kick(0);
    CHECK(TakePacket(rig) == TestFrame(61, 2));
    rig.ResetQueue(1);
    rig.ResumeQueue(1);
    Transmit(rig, TestFrame(70, 3));
    rig.Kick(1);
    CHECK(host.Receive() == TestFrame(70, 3));
  }
}

int OpenTap(const char* name, int flags) {
  const int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = static_cast<short>(flags);
  REQUIRE(ioctl(fd, TUNSETIFF, &request) == 0);
  return fd;
}

TEST_CASE("virtio-net: interfaces that cannot be used are refused with cause and next step") {
  NEEDS_NAMESPACE();
  auto loop = EventLoop::Create().value();
  EventLoop* const loops[] = {loop.get()};
  const auto refused = [&](NetOptions options) {
    auto net = Net::Create(std::move(options), loops);
    REQUIRE(!net);
    CHECK(!net.error().next_step.empty());
    MESSAGE(net.error().cause << " -> " << net.error().next_step);
    return net.error();
  };
  CHECK(refused({}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "name-of-16-bytes"}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "a/b"}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "t%d"}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "t", .mac = net::MacAddress{1, 0, 0, 0, 0, 0}}).kind ==
        Failure::Kind::kConfig);
  CHECK(refused({.tap = "t", .mtu = 67}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "t", .queue_pairs = 0}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "t", .queue_pairs = 17}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "t", .queue_size = 3}).kind == Failure::Kind::kConfig);
  CHECK(refused({.tap = "lo"}).cause.find("no TAP interface") != std::string::npos);

  const Fd busy(OpenTap("busy", IFF_TAP | IFF_NO_PI));
  CHECK(refused({.tap = "busy"}).cause.find("another process") != std::string::npos);

  CHECK(refused({.fds = {-1}}).kind == Failure::Kind::kConfig);
  CHECK(refused({.fds = {open("/dev/null", O_RDWR | O_CLOEXEC)}}).cause.find("no open TAP") !=
        std::string::npos);
  CHECK(refused({.fds = {OpenTap("nohdr", IFF_TAP | IFF_NO_PI)}}).cause.find("IFF_VNET_HDR") !=
        std::string::npos);
  CHECK(refused({.fds = {OpenTap("tun9", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)}})
            .cause.find("IFF_TAP") != std::string::npos);
  CHECK(if_nametoindex("t") == 0);  // nothing half-made stays
  CHECK(if_nametoindex("nohdr") == 0);
}

TEST_CASE("virtio-net: persistent interfaces, of one queue or several, are attached to and stay") {
  NEEDS_NAMESPACE();
  for (const bool multi : {false, true}) {
    CAPTURE(multi);
    {
      const Fd fd(OpenTap("keep", IFF_TAP | IFF_NO_PI | (multi ? IFF_MULTI_QUEUE : 0)));
      REQUIRE(ioctl(fd.get(), TUNSETPERSIST, 1UL) == 0);
    }
    { const Fixture f({.tap = "keep"}); }
    if (multi) {
      const Fixture f({.tap = "keep", .queue_pairs = 2});
    } else {
      auto loop = EventLoop::Create().value();
      EventLoop* const loops[] = {loop.get()};
      const auto net = Net::Create({.tap = "keep", .queue_pairs = 2}, loops);
      REQUIRE(!net);
      CHECK(net.error().next_step.find("multi_queue") != std::string::npos);
    }
    CHECK(if_nametoindex("keep") != 0);
    const Fd fd(OpenTap("keep", IFF_TAP | IFF_NO_PI | (multi ? IFF_MULTI_QUEUE : 0)));
    REQUIRE(ioctl(fd.get(), TUNSETPERSIST, 0UL) == 0);
  }
}

TEST_CASE("virtio-net: an open descriptor is taken over") {
  NEEDS_NAMESPACE();
  {
    Fixture f({.fds = {OpenTap("byfd", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)}});
    CHECK(f.net->tap_name() == "byfd");
  }
  CHECK(if_nametoindex("byfd") == 0);
}

TEST_CASE("virtio-net: a hostile driver harms nobody") {
  NEEDS_NAMESPACE();
  Fixture f;
  std::uint64_t stops = 0;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    CAPTURE(seed);
    DeviceRig rig(*f.net, {.event_idx = seed % 2 == 0});
    rig.Activate();
    const TapHost host("tap0");
    testing::HostileDriver rx(rig.driver(0), seed);
    testing::HostileDriver tx(rig.driver(1), seed * 3);
    testing::HostileDriver control(rig.driver(2), seed * 7);
    tx.AddPrefix(std::vector<std::byte>(100));
    for (const std::byte first : {std::byte{0}, std::byte{1}, std::byte{4}, std::byte{5}}) {
      control.AddPrefix(std::vector<std::byte>{first, std::byte{0}, std::byte{1}});
    }
    for (int i = 0; i < 100; ++i) {
      rx.Step();
      tx.Step();
      control.Step();
      static_cast<void>(host.Send(TestFrame(14 + rx.Below(1486), static_cast<std::uint32_t>(i))));
      for (std::uint16_t queue = 0; queue < 3; ++queue) rig.Kick(queue);
    }
    stops += rig.interrupt().needs_reset_count();
    rig.Reset();
    rig.Activate();
    REQUIRE(host.Receive(0).size() < 70001);
    Transmit(rig, TestFrame(99, 1));
    rig.Kick(1);
    bool seen = false;
    for (int i = 0; i < 3000 && !seen; ++i) seen = host.Receive(100) == TestFrame(99, 1);
    CHECK(seen);
    rig.Reset();
  }
  CHECK(stops > 0);
}

}  // namespace
}  // namespace postern::virtio
