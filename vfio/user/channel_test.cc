#include "vfio/user/channel.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <utility>

#include "src/base/event_fd.h"
#include "src/base/fd_passing.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

std::pair<Fd, Fd> SocketPair() {
  std::array<int, 2> fds{};
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()) == 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

std::ptrdiff_t OpenFds() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                       std::filesystem::directory_iterator());
}

void Write(const Fd& to, std::span<const std::byte> bytes, std::span<const int> fds = {}) {
  const auto sent = SendWithFds(to.get(), bytes, fds);
  REQUIRE(sent);
  REQUIRE(*sent == bytes.size());
}

bool Gone(const Error& error) {
  return error.code == Errc::kSystem && error.sys_errno == ENODEV;
}

std::array<std::byte, kUserHeaderSize> HeaderOf(std::uint32_t size) {
  return BuildHeader({.id = 9, .command = UserCommand::kRegionRead, .size = size});
}

TEST_CASE("vfio-user channel: messages with descriptors arrive whole, one at a time") {
  auto [a, b] = SocketPair();
  UserChannel left(std::move(a), {});
  UserChannel right(std::move(b), {});
  const EventFd event = EventFd::Create().value();
  const std::vector<std::byte> payload(100, std::byte{7});
  REQUIRE(left.Send({.id = 1, .command = UserCommand::kSetIrqs}, payload, std::array{event.fd()}));
  REQUIRE(left.Send({.id = 2, .command = UserCommand::kReset}, {}));
  auto first = right.Receive();
  REQUIRE(first);
  REQUIRE(*first);
  CHECK((*first)->header.id == 1);
  CHECK((*first)->payload == payload);
  REQUIRE((*first)->fds.size() == 1);
  EventFd(std::move((*first)->fds[0])).Signal();
  CHECK(event.Pending());
  auto second = right.Receive();
  REQUIRE(second);
  REQUIRE(*second);
  CHECK((*second)->header.id == 2);
  CHECK((*second)->fds.empty());
  auto third = right.Receive();
  REQUIRE(third);
  CHECK_FALSE(*third);
}

TEST_CASE("vfio-user channel: a message that comes byte by byte is put together") {
  auto [a, b] = SocketPair();
  UserChannel channel(std::move(a), {});
  std::vector<std::byte> bytes(20);
  const auto header = HeaderOf(20);
  std::copy(header.begin(), header.end(), bytes.begin());
  const EventFd event = EventFd::Create().value();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto none = channel.Receive();
    REQUIRE(none);
    CHECK_FALSE(*none);
    // Descriptors may come with any part.
    std::vector<int> fds;
    if (i == 3 || i == 18) fds.push_back(event.fd());
    Write(b, std::span(bytes).subspan(i, 1), fds);
  }
  auto message = channel.Receive();
  REQUIRE(message);
  REQUIRE(*message);
  CHECK((*message)->payload.size() == 4);
  CHECK((*message)->fds.size() == 2);
}

TEST_CASE("vfio-user channel: what breaks the framing closes it, with a reason, for good") {
  const std::ptrdiff_t before = OpenFds();
  for (const std::uint32_t size :
       {0U, 15U, static_cast<std::uint32_t>(kUserMaxPayload + 17), 0x80000000U, 0xffffffffU}) {
    CAPTURE(size);
    auto [a, b] = SocketPair();
    UserChannel channel(std::move(a), {});
    Write(b, HeaderOf(size));
    auto message = channel.Receive();
    REQUIRE_FALSE(message);
    CHECK(Gone(message.error()));
    REQUIRE(channel.closed());
    CHECK(channel.closed()->code == Errc::kPeerProtocol);
    CHECK(channel.fd() == -1);
    // Every later call.
    CHECK(Gone(channel.Receive().error()));
    CHECK(Gone(channel.Send({}, {}).error()));
    CHECK(Gone(channel.Flush().error()));
    CHECK(Gone(channel.Wait(DeadlineIn(1000)).error()));
    // The peer sees the end.
    std::byte byte{};
    CHECK(recv(b.get(), &byte, 1, 0) == 0);
  }
  CHECK(OpenFds() == before);
}

TEST_CASE("vfio-user channel: too many descriptors close it, in one part or in several") {
  const std::ptrdiff_t before = OpenFds();
  {
    auto [a, b] = SocketPair();
    UserChannel channel(std::move(a), {.max_fds = 3});
    Write(b, HeaderOf(16), std::vector<int>(4, b.get()));
    CHECK_FALSE(channel.Receive());
    CHECK(channel.closed()->code == Errc::kPeerProtocol);
  }
  {
    auto [a, b] = SocketPair();
    UserChannel channel(std::move(a), {.max_fds = 3});
    const auto header = HeaderOf(16);
    Write(b, std::span(header).first(8), std::vector<int>(2, b.get()));
    Write(b, std::span(header).subspan(8), std::vector<int>(2, b.get()));
    CHECK_FALSE(channel.Receive());
    CHECK(channel.closed()->code == Errc::kPeerProtocol);
  }
  CHECK(OpenFds() == before);
}

TEST_CASE("vfio-user channel: an end between messages and one inside are told apart") {
  for (const std::size_t sent : {std::size_t{0}, std::size_t{7}, std::size_t{16}}) {
    CAPTURE(sent);
    auto [a, b] = SocketPair();
    UserChannel channel(std::move(a), {});
    const auto header = HeaderOf(20);
    if (sent > 0) Write(b, std::span(header).first(sent));
    b.Close();
    CHECK_FALSE(channel.Receive());
    CHECK((channel.closed()->code == Errc::kSystem) == (sent == 0));
  }
}

TEST_CASE(
    "vfio-user channel: what the socket does not take waits, with its descriptors, in order") {
  auto [a, b] = SocketPair();
  UserChannel left(std::move(a), {});
  UserChannel right(std::move(b), {});
  const std::vector<std::byte> payload(100'000, std::byte{3});
  constexpr std::uint16_t kMessages = 20;
  for (std::uint16_t i = 0; i < kMessages; ++i) {
    const EventFd event = EventFd::Create().value();  // closed before it is sent
    REQUIRE(
        left.Send({.id = i, .command = UserCommand::kSetIrqs}, payload, std::array{event.fd()}));
  }
  CHECK(left.backlog() > payload.size());
  std::uint16_t received = 0;
  while (received < kMessages) {
    REQUIRE(left.Flush());
    auto message = right.Receive();
    REQUIRE(message);
    if (!*message) continue;
    CHECK((*message)->header.id == received++);
    CHECK((*message)->payload == payload);
    REQUIRE((*message)->fds.size() == 1);
    CHECK(fcntl((*message)->fds[0].get(), F_GETFD) == FD_CLOEXEC);
  }
  CHECK(left.backlog() == 0);
}

TEST_CASE("vfio-user channel: Wait ends at its deadline, and when something comes") {
  auto [a, b] = SocketPair();
  UserChannel channel(std::move(a), {});
  CHECK_FALSE(channel.Wait(DeadlineIn(10)).value());
  Write(b, HeaderOf(16));
  CHECK(channel.Wait(DeadlineIn(10'000)).value());
  CHECK_FALSE(channel.Wait(DeadlineIn(0)).value());
}

}  // namespace
}  // namespace postern::vfio
