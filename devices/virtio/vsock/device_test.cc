#include "devices/virtio/vsock/device.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DeviceRig;
using testing::Pattern;
using vsock::Op;
using vsock::Packet;

constexpr std::uint64_t kCid = 7;

struct Received {
  Packet packet;
  std::vector<std::byte> data;
};

// A device and its guest: the driver's side of the protocol as a test wants it.
struct Fixture {
  std::string dir = "/tmp/postern_vsock_XXXXXX";
  std::string path;
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<Vsock> vsock;
  std::unique_ptr<DeviceRig> rig;
  std::vector<std::string> names;
  std::uint32_t guest_buf_alloc = 65536;
  std::uint32_t guest_fwd_cnt = 0;

  explicit Fixture(std::uint32_t max_connections = 1024, bool activate = true) {
    REQUIRE(mkdtemp(dir.data()) != nullptr);
    path = dir + "/v";
    vsock = Vsock::Create({.guest_cid = kCid, .socket = path, .max_connections = max_connections},
                          *loop)
                .value();
    rig = std::make_unique<DeviceRig>(*vsock,
                                      DeviceRig::Options{.event_idx = true, .arena_size = 4 << 20});
    if (activate) Activate();
  }
  ~Fixture() {
    rig.reset();
    vsock.reset();
    CHECK(access(path.c_str(), F_OK) != 0);
    for (const std::string& name : names) (void)unlink(name.c_str());
    (void)rmdir(dir.c_str());
  }

  void Activate() {
    rig->Activate();
    GiveBuffers(64);
  }
  void GiveBuffers(int count, std::uint32_t size = 4096) {
    for (int i = 0; i < count; ++i) rig->driver(0).Build().Writable(size).Publish();
    rig->Kick(0);
  }

  [[nodiscard]] Packet Make(Op op, std::uint32_t guest_port, std::uint32_t host_port) const {
    Packet packet;
    packet.src_cid = kCid;
    packet.dst_cid = vsock::kHostCid;
    packet.src_port = guest_port;
    packet.dst_port = host_port;
    packet.op = op;
    packet.buf_alloc = guest_buf_alloc;
    packet.fwd_cnt = guest_fwd_cnt;
    return packet;
  }
  void Send(const Packet& packet, std::span<const std::byte> data = {}) {
    auto build = rig->driver(1).Build();
    build.ReadableObject(vsock::Encode(packet));
    if (!data.empty()) build.Readable(data);
    build.Publish();
    rig->Kick(1);
    while (rig->driver(1).TakeUsed()) {
    }
  }
  void Send(Op op, std::uint32_t guest_port, std::uint32_t host_port,
            std::span<const std::byte> data = {}, std::uint32_t flags = 0) {
    Packet packet = Make(op, guest_port, host_port);
    packet.len = static_cast<std::uint32_t>(data.size());
    packet.flags = flags;
    Send(packet, data);
  }
  // The next packet to the guest, its buffer given anew; none within a second (or at once).
  std::optional<Received> Next(bool wait = true) {
    for (int i = 0; i < 100; ++i) {
      if (const auto used = rig->driver(0).TakeUsed()) {
        std::vector<std::byte> bytes = rig->driver(0).Written(used->head);
        bytes.resize(used->length);
        Received out;
        REQUIRE(bytes.size() >= sizeof(vsock::Header));
        vsock::Header header{};
        std::memcpy(&header, bytes.data(), sizeof(header));
        out.packet = Decode(header);
        REQUIRE(out.packet.src_cid == vsock::kHostCid);
        REQUIRE(out.packet.dst_cid == kCid);
        out.data.assign(bytes.begin() + sizeof(header), bytes.end());
        REQUIRE(out.data.size() == out.packet.len);
        GiveBuffers(1);
        return out;
      }
      if (!wait) return std::nullopt;
      rig->Run(10);
    }
    return std::nullopt;
  }
  static Packet Decode(const vsock::Header& header) {
    Packet packet;
    packet.src_cid = header.src_cid.get();
    packet.dst_cid = header.dst_cid.get();
    packet.src_port = header.src_port.get();
    packet.dst_port = header.dst_port.get();
    packet.len = header.len.get();
    packet.type = header.type.get();
    packet.op = static_cast<Op>(header.op.get());
    packet.flags = header.flags.get();
    packet.buf_alloc = header.buf_alloc.get();
    packet.fwd_cnt = header.fwd_cnt.get();
    return packet;
  }
  Received Expect(Op op) {
    auto next = Next();
    REQUIRE(next);
    CHECK(static_cast<int>(next->packet.op) == static_cast<int>(op));
    return *next;
  }

  // A service of the host at `port`.
  UnixListener Listen(std::uint32_t port) {
    names.push_back(path + "_" + std::to_string(port));
    return UnixListener::Create(names.back(), "test service").value();
  }
  // The guest connects to a service of the host; its socket.
  Fd GuestConnects(UnixListener& listener, std::uint32_t guest_port, std::uint32_t host_port) {
    Send(Op::kRequest, guest_port, host_port);
    const Received response = Expect(Op::kResponse);
    CHECK(response.packet.src_port == host_port);
    CHECK(response.packet.dst_port == guest_port);
    CHECK(response.packet.buf_alloc > 0);
    return listener.Accept().value();
  }
  // A host program connects to `guest_port`, the guest accepts; socket and the port the host got.
  std::pair<Fd, std::uint32_t> HostConnects(std::uint32_t guest_port) {
    Fd fd = ConnectUnix(path).value();
    const std::string line = "CONNECT " + std::to_string(guest_port) + "\n";
    REQUIRE(write(fd.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size()));
    const Received request = Expect(Op::kRequest);
    CHECK(request.packet.dst_port == guest_port);
    const std::uint32_t host_port = request.packet.src_port;
    Send(Op::kResponse, guest_port, host_port);
    CHECK(Read(fd, 100) == "OK " + std::to_string(host_port) + "\n");
    return {std::move(fd), host_port};
  }
  std::string Read(const Fd& fd, std::size_t most) {
    std::string out(most, '\0');
    for (int i = 0; i < 100; ++i) {
      const ssize_t n = recv(fd.get(), out.data(), most, MSG_DONTWAIT);
      if (n >= 0) {
        out.resize(static_cast<std::size_t>(n));
        return out;
      }
      if (errno != EAGAIN) return "error";
      rig->Run(10);
    }
    return "nothing";
  }
  bool IsClosed(const Fd& fd) { return Read(fd, 1).empty(); }
};

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}
std::string Text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST_CASE("vsock: a guest's connection reaches the host's service, both ways, and ends in order") {
  Fixture f;
  UnixListener service = f.Listen(5000);
  const Fd host = f.GuestConnects(service, 1234, 5000);
  f.Send(Op::kRw, 1234, 5000, Bytes("hello host"));
  CHECK(f.Read(host, 100) == "hello host");
  REQUIRE(write(host.get(), "hello guest", 11) == 11);
  const Received data = f.Expect(Op::kRw);
  CHECK(Text(data.data) == "hello guest");
  CHECK(data.packet.fwd_cnt == 10);
  CHECK(data.packet.type == vsock::kTypeStream);
  SUBCASE("the guest closes") {
    f.Send(Op::kShutdown, 1234, 5000, {}, vsock::kShutdownBoth);
    f.Expect(Op::kRst);
    CHECK(f.IsClosed(host));
    CHECK(f.vsock->connections() == 0);
    f.Send(Op::kRst, 1234, 5000);
    CHECK_FALSE(f.Next(false));  // an RST is never answered
  }
  SUBCASE("the host closes") {
    shutdown(host.get(), SHUT_RDWR);
    const Received end = f.Expect(Op::kShutdown);
    CHECK(end.packet.flags == vsock::kShutdownBoth);
    f.Send(Op::kRst, 1234, 5000);
    CHECK(f.vsock->connections() == 0);
  }
  SUBCASE("the guest resets") {
    f.Send(Op::kRst, 1234, 5000);
    CHECK(f.IsClosed(host));
    CHECK(f.vsock->connections() == 0);
  }
}

TEST_CASE("vsock: a host program connects by CONNECT, and reads OK with its port") {
  Fixture f;
  auto [fd, port] = f.HostConnects(52);
  auto [fd2, port2] = f.HostConnects(52);
  CHECK(port != port2);
  CHECK(port >= 1U << 30);
  REQUIRE(write(fd.get(), "ping", 4) == 4);
  const Received data = f.Expect(Op::kRw);
  CHECK(data.packet.dst_port == 52);
  CHECK(data.packet.src_port == port);
  CHECK(Text(data.data) == "ping");
  f.Send(Op::kRw, 52, port2, Bytes("pong2"));
  CHECK(f.Read(fd2, 100) == "pong2");
  CHECK(f.rig->counter("connections_from_host") == 2);
}

TEST_CASE("vsock: bytes that follow the CONNECT line belong to the stream, however they are cut") {
  Fixture f;
  const std::string all = "CONNECT 99\r\nfirst bytes";
  for (const std::size_t cut : {std::size_t{1}, std::size_t{5}, std::size_t{11}, std::size_t{12},
                                std::size_t{14}, all.size()}) {
    CAPTURE(cut);
    const Fd fd = ConnectUnix(f.path).value();
    for (std::size_t at = 0; at < all.size(); at += cut) {
      const std::string part = all.substr(at, cut);
      REQUIRE(write(fd.get(), part.data(), part.size()) == static_cast<ssize_t>(part.size()));
      f.rig->Run(1);
    }
    const Received request = f.Expect(Op::kRequest);
    CHECK_FALSE(f.Next(false));  // no data before the guest has accepted
    f.Send(Op::kResponse, 99, request.packet.src_port);
    std::string got;
    while (got.size() < 11) got += Text(f.Expect(Op::kRw).data);
    CHECK(got == "first bytes");
    f.Send(Op::kRst, 99, request.packet.src_port);
  }
}

TEST_CASE("vsock: whatever is no CONNECT line is closed, and a refusal ends the stream") {
  Fixture f;
  for (const std::string& bad :
       {std::string("HELLO\n"), std::string("CONNECT\n"), std::string("CONNECT \n"),
        std::string("CONNECT -1\n"), std::string("CONNECT 4294967296\n"),
        std::string("CONNECT 1 2\n"), std::string("connect 1\n"), std::string(40, 'x'),
        std::string("\n"), std::string("CONNECT 1\0\n", 11)}) {
    CAPTURE(bad);
    const Fd fd = ConnectUnix(f.path).value();
    REQUIRE(write(fd.get(), bad.data(), bad.size()) == static_cast<ssize_t>(bad.size()));
    f.rig->Run(10);
    const std::string got = f.Read(fd, 1);
    CHECK((got.empty() || got == "error"));
  }
  CHECK(f.rig->counter("bad_handshakes") == 10);
  CHECK_FALSE(f.Next(false));

  const Fd fd = ConnectUnix(f.path).value();
  REQUIRE(write(fd.get(), "CONNECT 8\n", 10) == 10);
  const Received request = f.Expect(Op::kRequest);
  f.Send(Op::kRst, 8, request.packet.src_port);
  CHECK(f.IsClosed(fd));
  CHECK(f.vsock->connections() == 0);

  // A program that gives up before the guest has answered.
  Fd early = ConnectUnix(f.path).value();
  REQUIRE(write(early.get(), "CONNECT 8\n", 10) == 10);
  const Received second = f.Expect(Op::kRequest);
  early.Close();
  f.Expect(Op::kRst);
  f.Send(Op::kResponse, 8, second.packet.src_port);
  f.Expect(Op::kRst);
  CHECK(f.vsock->connections() == 0);
}

TEST_CASE("vsock: without a driver a connection is closed at once") {
  Fixture f(16, false);
  const Fd fd = ConnectUnix(f.path).value();
  REQUIRE(write(fd.get(), "CONNECT 8\n", 10) == 10);
  CHECK(f.IsClosed(fd));
  f.Activate();
  CHECK(f.HostConnects(8).first.valid());
}

TEST_CASE(
    "vsock: nobody listens, wrong addresses, unknown connections and operations are answered by "
    "RST") {
  Fixture f;
  f.Send(Op::kRequest, 1, 404);
  CHECK(f.Expect(Op::kRst).packet.src_port == 404);
  for (const Op op : {Op::kRw, Op::kShutdown, Op::kResponse, Op::kCreditUpdate, Op::kCreditRequest,
                      Op::kInvalid, static_cast<Op>(77)}) {
    CAPTURE(static_cast<int>(op));
    f.Send(op, 1, 2);
    f.Expect(Op::kRst);
  }
  Packet packet = f.Make(Op::kRequest, 1, 2);
  packet.type = 2;
  f.Send(packet);
  CHECK(f.Expect(Op::kRst).packet.type == 2);
  packet = f.Make(Op::kRequest, 1, 2);
  packet.src_cid = 8;
  f.Send(packet);
  CHECK_FALSE(f.Next(false));
  packet = f.Make(Op::kRst, 1, 2);
  f.Send(packet);
  CHECK_FALSE(f.Next(false));
  CHECK(f.rig->counter("misaddressed") == 2);
  CHECK(f.rig->counter("refused") == 1);
  f.rig->driver(1).Build().Readable("short").Publish();
  f.rig->Kick(1);
  CHECK(f.rig->counter("malformed") == 1);
  CHECK(f.rig->interrupt().needs_reset_count() == 0);

  UnixListener service = f.Listen(5000);
  for (const Op op : {Op::kRequest, Op::kResponse, static_cast<Op>(8)}) {
    const Fd host = f.GuestConnects(service, 10, 5000);
    f.Send(op, 10, 5000);
    f.Expect(Op::kRst);
    CHECK(f.IsClosed(host));
  }
}

TEST_CASE(
    "vsock: a slow host program is waited for, and the guest's credit is never too large or lost") {
  Fixture f;
  UnixListener service = f.Listen(1);
  const Fd host = f.GuestConnects(service, 9, 1);
  const std::vector<std::byte> chunk = Pattern(8192, 3);
  // The guest sends as much as it may and the program reads nothing: all of it is kept.
  std::uint64_t sent = 0;
  std::uint32_t fwd_cnt = 0;
  const auto learn = [&](bool wait) {
    while (const auto next = f.Next(wait)) {
      CHECK(next->packet.op == Op::kCreditUpdate);
      CHECK(next->packet.buf_alloc == vsock::kBufAlloc);
      fwd_cnt = next->packet.fwd_cnt;
      if (wait) return;
    }
  };
  const auto free_space = [&] {
    return vsock::kBufAlloc - static_cast<std::uint32_t>(sent - fwd_cnt);
  };
  while (free_space() >= chunk.size()) {
    f.Send(Op::kRw, 9, 1, chunk);
    sent += chunk.size();
    learn(false);
  }
  CHECK(f.rig->counter("credit_violations") == 0);
  // Then it reads slowly; every byte arrives in order, and the credit comes back.
  std::string received;
  std::string expected;
  for (std::uint64_t i = 0; i < sent / chunk.size(); ++i) expected += Text(chunk);
  while (received.size() < sent) {
    const std::string part = f.Read(host, 10000);
    REQUIRE(part != "nothing");
    received += part;
    f.rig->Run();
  }
  CHECK(received == expected);
  f.Send(Op::kCreditRequest, 9, 1);
  learn(false);
  CHECK(fwd_cnt == static_cast<std::uint32_t>(sent));
  // One byte more than was announced ends the connection.
  SUBCASE("exactly the credit is fine") {
    int size = 4096;
    REQUIRE(setsockopt(host.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)) == 0);
    for (std::uint32_t i = 0; i < vsock::kBufAlloc / 65536; ++i)
      f.Send(Op::kRw, 9, 1, Pattern(65536));
    CHECK(f.rig->counter("credit_violations") == 0);
  }
  SUBCASE("more than the credit is a violation") {
    for (std::uint32_t i = 0;
         i < 3 * vsock::kBufAlloc / 65536 && f.rig->counter("credit_violations") == 0; ++i)
      f.Send(Op::kRw, 9, 1, Pattern(65536));
    CHECK(f.rig->counter("credit_violations") == 1);
    std::optional<Received> last;
    while (auto next = f.Next(false)) last = next;
    REQUIRE(last);
    CHECK(last->packet.op == Op::kRst);
  }
}

TEST_CASE("vsock: the guest is never sent more than its credit, and asked when it is used up") {
  Fixture f;
  UnixListener service = f.Listen(1);
  f.guest_buf_alloc = 1000;
  const Fd host = f.GuestConnects(service, 9, 1);
  const std::vector<std::byte> stream = Pattern(5000, 1);
  REQUIRE(write(host.get(), stream.data(), stream.size()) == 5000);
  std::vector<std::byte> got;
  int requests = 0;
  std::uint32_t fwd_cnt = 0;
  while (got.size() < stream.size()) {
    const auto next = f.Next();
    REQUIRE(next);
    if (next->packet.op == Op::kRw) {
      got.insert(got.end(), next->data.begin(), next->data.end());
      REQUIRE(got.size() - fwd_cnt <= 1000);
    } else {
      REQUIRE(next->packet.op == Op::kCreditRequest);
      ++requests;
      REQUIRE(got.size() - fwd_cnt == 1000);
      CHECK_FALSE(f.Next(false));  // asked once
      fwd_cnt = static_cast<std::uint32_t>(got.size());
      f.guest_fwd_cnt = fwd_cnt;
      f.Send(Op::kCreditUpdate, 9, 1);
    }
  }
  CHECK(got == stream);
  CHECK(requests == 4);
}

TEST_CASE(
    "vsock: without receive buffers host data waits, without a spin, and is delivered later") {
  Fixture f(16, false);
  f.rig->Activate();
  UnixListener service = f.Listen(1);
  f.Send(Op::kRequest, 9, 1);
  const Fd host = service.Accept().value();
  REQUIRE(write(host.get(), "waits", 5) == 5);
  for (int i = 0; i < 5; ++i) f.rig->Run(10);
  timespec before{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
  for (int i = 0; i < 10; ++i) f.rig->Run(20);
  timespec after{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
  CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 20000000);
  f.rig->driver(0).Build().Writable(10).Publish();  // no room for a header: given back empty
  f.rig->driver(0).Build().Writable(44).Publish();
  f.rig->driver(0).Build().Writable(44).Publish();  // no room for data
  f.rig->driver(0).Build().Writable(46).Publish();
  f.rig->driver(0).Build().Writable(20).Writable(27).Writable(4000).Publish();
  f.rig->Kick(0);
  CHECK(f.rig->driver(0).TakeUsed()->length == 0);
  CHECK(f.Expect(Op::kResponse).packet.src_port == 1);
  f.GiveBuffers(0);
  CHECK(f.rig->driver(0).TakeUsed()->length == 0);
  CHECK(Text(f.Expect(Op::kRw).data) == "wa");
  CHECK(Text(f.Expect(Op::kRw).data) == "its");
  CHECK(f.rig->counter("bad_buffers") == 2);
}

TEST_CASE("vsock: half-closed in either direction, the other goes on") {
  Fixture f;
  UnixListener service = f.Listen(1);
  const Fd host = f.GuestConnects(service, 9, 1);
  SUBCASE("the host sends no more") {
    shutdown(host.get(), SHUT_WR);
    CHECK(f.Expect(Op::kShutdown).packet.flags == vsock::kShutdownSend);
    f.Send(Op::kRw, 9, 1, Bytes("still"));
    CHECK(f.Read(host, 10) == "still");
    f.Send(Op::kShutdown, 9, 1, {}, vsock::kShutdownBoth);
    f.Expect(Op::kRst);
    CHECK(f.IsClosed(host));
  }
  SUBCASE("the guest sends no more") {
    f.Send(Op::kShutdown, 9, 1, {}, vsock::kShutdownSend);
    CHECK(f.IsClosed(host));
    REQUIRE(write(host.get(), "still", 5) == 5);
    CHECK(Text(f.Expect(Op::kRw).data) == "still");
    f.Send(Op::kRw, 9, 1, Bytes("liar"));
    f.Expect(Op::kRst);
  }
  SUBCASE("the guest reads no more") {
    f.Send(Op::kShutdown, 9, 1, {}, vsock::kShutdownReceive);
    CHECK(send(host.get(), "x", 1, MSG_NOSIGNAL) < 0);
    f.Send(Op::kRw, 9, 1, Bytes("still"));
    CHECK(f.Read(host, 10) == "still");
    f.Send(Op::kShutdown, 9, 1, {}, vsock::kShutdownSend);
    f.Expect(Op::kRst);
    CHECK(f.vsock->connections() == 0);
  }
}

TEST_CASE("vsock: the host's last words arrive although it closed while the guest was sending") {
  Fixture f;
  UnixListener service = f.Listen(1);
  Fd host = f.GuestConnects(service, 9, 1);
  REQUIRE(write(host.get(), "last words", 10) == 10);
  host.Close();
  f.Send(Op::kRw, 9, 1, Bytes("nobody reads this"));
  std::string got;
  std::uint32_t flags = 0;
  for (int i = 0; i < 6 && flags != vsock::kShutdownBoth; ++i) {
    const auto next = f.Next();
    REQUIRE(next);
    if (next->packet.op == Op::kRw) got += Text(next->data);
    if (next->packet.op == Op::kShutdown) flags |= next->packet.flags;
  }
  CHECK(got == "last words");
  CHECK(flags == vsock::kShutdownBoth);
}

TEST_CASE(
    "vsock: a host program that closes with bytes unread ends the stream, it does not break it") {
  Fixture f;
  UnixListener service = f.Listen(1);
  Fd host = f.GuestConnects(service, 9, 1);
  f.Send(Op::kRw, 9, 1, Bytes("never read"));
  REQUIRE(write(host.get(), "answer", 6) == 6);
  CHECK(Text(f.Expect(Op::kRw).data) == "answer");
  host.Close();
  CHECK(f.Expect(Op::kShutdown).packet.flags == vsock::kShutdownBoth);
}

TEST_CASE("vsock: what the guest sent before it closed still reaches a slow host program") {
  Fixture f;
  UnixListener service = f.Listen(1);
  const Fd host = f.GuestConnects(service, 9, 1);
  const std::vector<std::byte> chunk = Pattern(65536, 8);
  for (int i = 0; i < 4; ++i) f.Send(Op::kRw, 9, 1, chunk);
  // Until the socket is full and the rest is in our buffer.
  std::uint64_t sent = 4 * chunk.size();
  std::uint32_t fwd = 0;
  for (int i = 0; i < 8; ++i) {
    while (auto next = f.Next(false)) fwd = next->packet.fwd_cnt;
    if (vsock::kBufAlloc - (static_cast<std::uint32_t>(sent) - fwd) < 65536) break;
    f.Send(Op::kRw, 9, 1, chunk);
    sent += 65536;
  }
  f.Send(Op::kShutdown, 9, 1, {}, vsock::kShutdownBoth);
  while (auto next = f.Next(false))
    CHECK((next->packet.op == Op::kRst || next->packet.op == Op::kCreditUpdate));
  SUBCASE("and the ports are free at once") {
    const Fd again = f.GuestConnects(service, 9, 1);
    CHECK(again.valid());
    f.Send(Op::kRst, 9, 1);
  }
  SUBCASE("and a guest that is reset") {
    f.rig->Reset();
  }
  std::uint64_t received = 0;
  while (true) {
    const std::string part = f.Read(host, 65536);
    REQUIRE(part != "nothing");
    if (part.empty()) break;
    received += part.size();
    f.rig->Run();
  }
  CHECK(received == sent);
  CHECK(f.vsock->connections() == 0);
}

TEST_CASE("vsock: a reset of the guest closes all its connections") {
  Fixture f;
  UnixListener service = f.Listen(1);
  const Fd from_guest = f.GuestConnects(service, 9, 1);
  auto [from_host, port] = f.HostConnects(50);
  CHECK(f.vsock->connections() == 2);
  f.rig->Reset();
  CHECK(f.IsClosed(from_guest));
  CHECK(f.IsClosed(from_host));
  f.Activate();
  f.Send(Op::kRw, 9, 1, Bytes("from before"));
  f.Expect(Op::kRst);
  CHECK(f.GuestConnects(service, 9, 1).valid());
}

TEST_CASE("vsock: connections are limited, and the limit is counted") {
  Fixture f(4);
  UnixListener service = f.Listen(1);
  std::vector<Fd> open;
  open.reserve(4);
  for (std::uint32_t i = 0; i < 4; ++i) open.push_back(f.GuestConnects(service, 100 + i, 1));
  f.Send(Op::kRequest, 200, 1);
  f.Expect(Op::kRst);
  const Fd fd = ConnectUnix(f.path).value();
  CHECK(f.IsClosed(fd));
  CHECK(f.rig->counter("over_limit") == 2);
  f.Send(Op::kRst, 100, 1);
  CHECK(f.GuestConnects(service, 200, 1).valid());
}

TEST_CASE("vsock: silent clients cannot keep others out") {
  Fixture f;
  std::vector<Fd> silent;
  silent.reserve(100);
  for (int i = 0; i < 100; ++i) silent.push_back(ConnectUnix(f.path).value());
  f.rig->Run(10);
  for (int i = 0; i < 10; ++i) f.rig->Run();
  CHECK(f.vsock->connections() == 64);
  CHECK(f.HostConnects(7).first.valid());
}

TEST_CASE("vsock: replies that find no buffer stop the transmit queue instead of growing") {
  Fixture f(16, false);
  f.rig->Activate();
  for (int i = 0; i < 600; ++i) {
    f.rig->driver(1)
        .Build()
        .ReadableObject(vsock::Encode(f.Make(Op::kRw, 1, static_cast<std::uint32_t>(i))))
        .Publish();
    if (i % 100 == 99) f.rig->Kick(1);
    while (f.rig->driver(1).TakeUsed()) {
    }
    if (i >= 511) break;  // the ring holds 256 more than there is room for replies
  }
  f.rig->Kick(1);
  CHECK(f.rig->counter("tx_packets") == 256);
  int resets = 0;
  f.GiveBuffers(128);
  for (int i = 0; i < 2000 && resets < 512; ++i) {
    const auto next = f.Next();
    REQUIRE(next);
    CHECK(next->packet.op == Op::kRst);
    CHECK(next->packet.src_port == static_cast<std::uint32_t>(resets));
    ++resets;
    while (f.rig->driver(1).TakeUsed()) {
    }
  }
  CHECK(resets == 512);
}

TEST_CASE("vsock: configuration, save, restore and the transport reset event") {
  Fixture f;
  CHECK(f.rig->ConfigAt<le64>(0).get() == kCid);
  CHECK(f.rig->ConfigAt<le64>(8).get() == 0);
  f.rig->driver(2).Build().Writable(4).Publish();
  f.rig->Kick(2);
  CHECK_FALSE(f.rig->driver(2).TakeUsed());
  const VsockState state = f.vsock->Save();
  CHECK(f.vsock->Restore(state).error().code == Errc::kBadState);
  f.rig->Reset();
  for (int i = 0; i < 4; ++i) {
    VsockState bad = state;
    if (i == 0) bad.version = 0;
    if (i == 1) bad.guest_cid = 2;
    if (i == 2) bad.next_host_port = 5;
    if (i == 3) bad.guest_cid = std::uint64_t{1} << 40;
    CHECK(f.vsock->Restore(bad).error().code == Errc::kBadFormat);
  }
  REQUIRE(f.vsock->Restore(state));
  f.rig->Activate();
  f.rig->driver(2).Build().Writable(3).Publish();
  f.rig->driver(2).Build().Writable(4, std::byte{9}).Publish();
  f.rig->driver(2).Build().Writable(4).Publish();
  f.rig->Kick(2);
  CHECK(f.rig->driver(2).TakeUsed()->length == 0);
  const auto used = f.rig->driver(2).TakeUsed();
  REQUIRE(used);
  CHECK(used->length == 4);
  CHECK(f.rig->driver(2).Written(used->head) == std::vector<std::byte>(4));
  CHECK_FALSE(f.rig->driver(2).TakeUsed());
}

TEST_CASE("vsock: options that cannot be, and a socket that is taken") {
  auto loop = EventLoop::Create().value();
  for (const VsockOptions& bad :
       {VsockOptions{.guest_cid = 2, .socket = "/tmp/x"},
        VsockOptions{.guest_cid = 0xffffffff, .socket = "/tmp/x"},
        VsockOptions{.guest_cid = 3, .socket = ""},
        VsockOptions{.guest_cid = 3, .socket = std::string(97, 'a')},
        VsockOptions{.guest_cid = 3, .socket = "/tmp/x", .max_connections = 0}}) {
    const auto vsock = Vsock::Create(bad, *loop);
    REQUIRE(!vsock);
    CHECK(vsock.error().kind == Failure::Kind::kConfig);
    CHECK(!vsock.error().next_step.empty());
  }
  Fixture f;
  const auto second = Vsock::Create({.guest_cid = 3, .socket = f.path}, *loop);
  REQUIRE(!second);
  CHECK(second.error().cause.find("another process listens") != std::string::npos);
  CHECK(!Vsock::Create({.guest_cid = 3, .socket = "/nonexistent/x"}, *loop));
}

TEST_CASE("vsock: a hostile driver harms nobody") {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    CAPTURE(seed);
    Fixture f(32);
    UnixListener service = f.Listen(1);
    std::vector<Fd> accepted;
    testing::HostileDriver rx(f.rig->driver(0), seed);
    testing::HostileDriver tx(f.rig->driver(1), seed * 5);
    for (const Op op : {Op::kRequest, Op::kRw, Op::kShutdown, Op::kCreditRequest, Op::kResponse}) {
      for (std::uint32_t port = 1; port < 4; ++port) {
        Packet packet = f.Make(op, port, 1);
        packet.len = 100 * port;
        packet.flags = port;
        const vsock::Header header = vsock::Encode(packet);
        const auto bytes = std::as_bytes(std::span(&header, 1));
        tx.AddPrefix(bytes);
        // As a driver that also means it.
        f.rig->driver(1).Build().Readable(bytes).Readable(Pattern(400)).Publish();
      }
    }
    for (int i = 0; i < 150; ++i) {
      tx.Step();
      if (i % 3 == 0) rx.Step();
      f.rig->Kick(0);
      f.rig->Kick(1);
      if (Result<Fd> fd = service.Accept(); fd) accepted.push_back(std::move(*fd));
      for (const Fd& fd : accepted) {
        if (tx.Below(4) == 0 && send(fd.get(), "some bytes", 10, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
          continue;
      }
      if (tx.Below(25) == 0) accepted.clear();
      REQUIRE(f.vsock->connections() <= 32);
    }
    f.rig->Reset();
    f.Activate();
    CHECK(f.HostConnects(77).first.valid());
  }
}

}  // namespace
}  // namespace postern::virtio
