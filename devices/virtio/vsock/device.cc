#include "devices/virtio/vsock/device.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::virtio {
namespace {

using vsock::Connection;
using vsock::Header;
using vsock::Op;
using vsock::Packet;
using vsock::Phase;

// "<socket>_<port>" must fit a socket address.
constexpr std::size_t kMaxSocketPath = kMaxUnixPath - 11;
// Ports we give to connections from the host; the range guests do not use for services.
constexpr std::uint32_t kFirstHostPort = 1U << 30;
constexpr std::uint32_t kLastHostPort = (1U << 31) - 1;
// Payload of one packet to the guest: what Linux allows itself in the other direction.
constexpr std::uint64_t kMaxPayload = 65536;
// Replies that wait for receive buffers before the guest's next packets are left alone (5.10.6.4:
// nothing may need unbounded memory).
constexpr std::size_t kMaxReplies = 256;
constexpr std::size_t kMaxHandshakes = 64;
constexpr int kAcceptBatch = 16;
constexpr std::uint64_t kAcceptRetryMs = 1000;
constexpr std::uint64_t kResponseTimeoutMs = 10'000;
// As Linux: how long the other side may take to answer a shutdown.
constexpr std::uint64_t kCloseTimeoutMs = 8'000;
constexpr std::size_t kMaxParts = 1024;

std::uint64_t KeyOf(std::uint32_t guest_port, std::uint32_t host_port) {
  return std::uint64_t{guest_port} << 32 | host_port;
}

// "CONNECT <port>", with the line's end taken off.
std::optional<std::uint32_t> ParseConnect(std::string_view line) {
  constexpr std::string_view kVerb = "CONNECT ";
  if (!line.starts_with(kVerb)) return std::nullopt;
  line.remove_prefix(kVerb.size());
  if (line.ends_with('\r')) line.remove_suffix(1);
  std::uint32_t port = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), port);
  if (error != std::errc() || end != line.data() + line.size()) return std::nullopt;
  return port;
}

// Removes `connection` from `list`, keeping the order, and returns it; null if it is not there.
std::unique_ptr<Connection> TakeFrom(std::vector<std::unique_ptr<Connection>>& list,
                                     const Connection& connection) {
  const auto at = std::find_if(list.begin(), list.end(),
                               [&](const auto& one) { return one.get() == &connection; });
  if (at == list.end()) return nullptr;
  std::unique_ptr<Connection> taken = std::move(*at);
  list.erase(at);
  return taken;
}

}  // namespace

class Vsock::Acceptor final : public ::postern::EventHandler {
 public:
  Acceptor(Vsock& vsock, EventLoop& loop, int fd) : vsock_(vsock), loop_(loop), fd_(fd) {}
  ~Acceptor() override {
    loop_.Cancel(retry_);
    loop_.Unwatch(fd_);
  }
  [[nodiscard]] Result<void> Start() { return loop_.Watch(fd_, EPOLLIN, *this); }
  // A listener stays ready when accept fails for want of descriptors.
  void Pause() {
    loop_.Unwatch(fd_);
    retry_ = loop_.After(kAcceptRetryMs, [this] {
      if (!Start()) LOG_ERROR("vsock", "cannot watch the vsock socket any more");
    });
  }

 private:
  void OnEvent(int /*fd*/, std::uint32_t /*events*/) override { vsock_.Accept(); }
  Vsock& vsock_;
  EventLoop& loop_;
  int fd_;
  EventLoop::TimerId retry_ = 0;
};

Outcome<std::unique_ptr<Vsock>> Vsock::Create(const VsockOptions& options, EventLoop& loop) {
  if (options.guest_cid < vsock::kMinGuestCid || options.guest_cid > vsock::kMaxGuestCid) {
    return ConfigFailure(
        fmt::format("vsock: context identifier {}", options.guest_cid),
        fmt::format("use one from {} to {}", vsock::kMinGuestCid, vsock::kMaxGuestCid));
  }
  if (options.max_connections < 1)
    return ConfigFailure("vsock: no connections allowed", "allow at least 1");
  if (options.socket.empty() || options.socket.size() > kMaxSocketPath) {
    return ConfigFailure(
        fmt::format("vsock: the path of the socket has {} bytes", options.socket.size()),
        fmt::format("use 1 to {}, so that '_PORT' can be appended", kMaxSocketPath));
  }
  Outcome<UnixListener> listener = UnixListener::Create(options.socket, "vsock socket");
  if (!listener) return tl::unexpected(listener.error());
  std::unique_ptr<Vsock> vsock(new Vsock(options, std::move(*listener), loop));
  Result<void> started;
  loop.RunSync([&] { started = vsock->Start(); });
  if (!started) return HostFailure("vsock", started.error());
  return vsock;
}

Vsock::Vsock(const VsockOptions& options, UnixListener listener, EventLoop& loop)
    : SingleLoopDevice(loop, "vsock"),
      options_(options),
      listener_(std::move(listener)),
      next_host_port_(kFirstHostPort),
      parts_(kMaxParts) {}

Result<void> Vsock::Start() {
  acceptor_ = std::make_unique<Acceptor>(*this, loop(), listener_.fd());
  return acceptor_->Start();
}

Vsock::~Vsock() {
  loop().RunSync([this] {
    Reset();
    acceptor_.reset();
    handshakes_.clear();
    draining_.clear();
  });
}

void Vsock::ReadConfig(std::uint64_t offset, std::span<std::byte> data) {
  const le64 cid(options_.guest_cid);
  std::fill(data.begin(), data.end(), std::byte{0});
  if (offset >= sizeof(cid)) return;
  const std::size_t bytes = std::min<std::size_t>(data.size(), sizeof(cid) - offset);
  std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&cid) + offset, bytes);
}

void Vsock::OnDeactivate() {
  loop().Cancel(resume_);
  replies_.clear();
  while (!connections_.empty()) Drain(*connections_.begin()->second);
}

bool Vsock::WantsChain(std::uint16_t queue) {
  switch (queue) {
    case kReceiveQueue:
      return !replies_.empty() || !ready_.empty();
    case kTransmitQueue:
      return replies_.size() < kMaxReplies;
    default:
      return transport_reset_pending_;
  }
}

void Vsock::OnChain(std::uint16_t queue, Chain chain) {
  if (queue == kReceiveQueue) return FillReceiveBuffer(std::move(chain));
  if (queue == kEventQueue) return SendEvent(std::move(chain));
  Reader reader = chain.reader();
  if (const Result<Packet> packet = vsock::ParsePacket(reader); packet) {
    tx_packets_.Add();
    OnPacket(*packet, reader);
  } else {
    malformed_.Add();
  }
  chain.Complete(0);
}

void Vsock::OnPumped(std::uint16_t queue) {
  if (queue == kTransmitQueue && WantsChain(kReceiveQueue)) Pump(kReceiveQueue);
  // The transmit queue was left alone for want of room for replies, and there is room again. From
  // the loop, not from here: a pump of one queue that runs the other's would nest as deep as a
  // guest likes.
  if (queue == kReceiveQueue && queue_enabled(kTransmitQueue) &&
      replies_.size() < kMaxReplies / 2 && this->queue(kTransmitQueue).HasWork()) {
    loop().Cancel(resume_);
    resume_ = loop().After(0, [this] { Pump(kTransmitQueue); });
  }
}

// --- from the guest ---

void Vsock::Reply(const Packet& packet) {
  if (packet.op == Op::kRst) return;
  replies_.push_back(vsock::ResetFor(packet));
}

void Vsock::OnPacket(const Packet& packet, const Reader& payload) {
  if (packet.src_cid != options_.guest_cid) {
    misaddressed_.Add();  // an answer would go to somebody else
    return;
  }
  if (packet.dst_cid != vsock::kHostCid || packet.type != vsock::kTypeStream) {
    misaddressed_.Add();
    return Reply(packet);
  }
  const auto found = connections_.find(KeyOf(packet.src_port, packet.dst_port));
  if (found != connections_.end()) return OnConnectionPacket(*found->second, packet, payload);
  if (packet.op == Op::kRequest) return OnRequest(packet);
  Reply(packet);
}

void Vsock::OnConnectionPacket(Connection& connection, const Packet& packet,
                               const Reader& payload) {
  connection.credit.Learned(packet.buf_alloc, packet.fwd_cnt);
  if (connection.credit.MaySend() > 0) {
    connection.credit_requested = false;
    if (connection.readable) MakeReady(connection);
  }
  const bool established = connection.phase == Phase::kEstablished;
  switch (packet.op) {
    case Op::kRst:
      if (!established) refused_.Add();
      return Close(connection);
    case Op::kResponse:
      if (!established) return OnResponse(connection, packet);
      break;
    case Op::kShutdown:
      if (established) return OnShutdown(connection, packet.flags);
      break;
    case Op::kRw:
      if (established) return OnData(connection, packet, payload);
      break;
    case Op::kCreditUpdate:
      if (established) return;
      break;
    case Op::kCreditRequest:
      if (!established) break;
      connection.send_credit_update = true;
      return MakeReady(connection);
    default:
      break;
  }
  // A second request, an answer nobody waits for, something unknown: the guest and we do not mean
  // the same connection.
  CloseWithReset(connection);
}

void Vsock::OnRequest(const Packet& packet) {
  if (connections() >= options_.max_connections) {
    over_limit_.Add();
    return Reply(packet);
  }
  Result<Fd> socket = ConnectUnix(fmt::format("{}_{}", options_.socket, packet.dst_port));
  if (!socket) {
    refused_.Add();
    return Reply(packet);
  }
  std::unique_ptr<Connection> connection = NewConnection(std::move(*socket), Phase::kEstablished);
  if (connection == nullptr) return Reply(packet);
  requested_.Add();
  connection->guest_port = packet.src_port;
  connection->host_port = packet.dst_port;
  connection->credit.Learned(packet.buf_alloc, packet.fwd_cnt);
  connection->send_response = true;
  MakeReady(*connection);
  connections_[KeyOf(packet.src_port, packet.dst_port)] = std::move(connection);
}

void Vsock::OnResponse(Connection& connection, const Packet& /*packet*/) {
  loop().Cancel(connection.timer);
  connection.phase = Phase::kEstablished;
  const std::string line = fmt::format("OK {}\n", connection.host_port);
  if (!connection.SendAll(std::as_bytes(std::span(line)))) return CloseWithReset(connection);
  if (connection.readable) MakeReady(connection);
}

void Vsock::OnShutdown(Connection& connection, std::uint32_t flags) {
  // Best effort where the host side is gone already: reading and writing will tell.
  if ((flags & vsock::kShutdownReceive) != 0) {
    connection.guest_receives = false;
    (void)shutdown(connection.fd(), SHUT_RD);
  }
  if ((flags & vsock::kShutdownSend) != 0) connection.guest_sends = false;
  if (!connection.guest_receives && !connection.guest_sends) {
    // 5.10.6.5: a shutdown of both directions is answered by RST.
    replies_.push_back(PacketOf(connection, Op::kRst));
    return Drain(connection);
  }
  if (!connection.guest_sends && connection.ring().empty())
    (void)shutdown(connection.fd(), SHUT_WR);
}

void Vsock::OnData(Connection& connection, const Packet& packet, const Reader& payload) {
  if (!connection.guest_sends || !connection.credit.MayReceive(packet.len)) {
    credit_violations_.Add();
    return CloseWithReset(connection);
  }
  tx_bytes_.Add(packet.len);
  if (!connection.host_takes) {
    connection.credit.Received(packet.len);
    connection.credit.Forwarded(packet.len);
  } else if (!connection.Deliver(payload, packet.len, parts_)) {
    OnWriteFailed(connection);
  }
  if (connection.credit.ShouldAnnounce()) {
    connection.send_credit_update = true;
    MakeReady(connection);
  }
}

// The host program closed its end, perhaps after a last answer that is still to be read.
void Vsock::OnWriteFailed(Connection& connection) {
  connection.host_takes = false;
  connection.Discard();
  connection.readable = true;
  if (connection.shutdown_sent != vsock::kShutdownBoth) {
    connection.send_shutdown |=
        connection.guest_receives ? vsock::kShutdownReceive : vsock::kShutdownBoth;
  }
  MakeReady(connection);
}

// --- to the guest ---

void Vsock::MakeReady(Connection& connection) {
  ready_.PushBack(connection);
}

Packet Vsock::PacketOf(const Connection& connection, Op op) const {
  Packet packet;
  packet.src_cid = vsock::kHostCid;
  packet.dst_cid = options_.guest_cid;
  packet.src_port = connection.host_port;
  packet.dst_port = connection.guest_port;
  packet.op = op;
  // 5.10.6.3: in every packet of a stream.
  packet.buf_alloc = connection.credit.buf_alloc();
  packet.fwd_cnt = connection.credit.fwd_cnt();
  return packet;
}

void Vsock::Complete(Chain& chain, const Packet& packet) {
  Writer writer = chain.writer();
  // Whoever calls this has seen that a header fits.
  CHECK(writer.Write(vsock::Encode(packet)).has_value());
  chain.Complete(static_cast<std::uint32_t>(sizeof(Header)) + packet.len);
  rx_packets_.Add();
  rx_bytes_.Add(packet.len);
  if (packet.op == Op::kRst) resets_sent_.Add();
}

void Vsock::FillReceiveBuffer(Chain chain) {
  if (chain.writable_size() < sizeof(Header)) {
    bad_buffers_.Add();
    return chain.Complete(0);
  }
  while (true) {
    if (!replies_.empty()) {
      const Packet packet = replies_.front();
      replies_.pop_front();
      return Complete(chain, packet);
    }
    Connection* connection = ready_.front();
    if (connection == nullptr) break;
    ready_.Remove(*connection);
    if (SendFrom(*connection, chain) == Sent::kPacket) return;
  }
  // Those that were ready had nothing to send after all.
  chain.PutBack();
}

bool Vsock::HasControl(const Connection& connection) {
  return connection.send_request || connection.send_response || connection.send_credit_request ||
         connection.send_credit_update || connection.send_shutdown != 0;
}

Packet Vsock::TakeControl(Connection& connection) {
  Op op = Op::kCreditUpdate;
  std::uint32_t flags = 0;
  if (std::exchange(connection.send_request, false)) {
    op = Op::kRequest;
  } else if (std::exchange(connection.send_response, false)) {
    op = Op::kResponse;
  } else if (std::exchange(connection.send_credit_request, false)) {
    op = Op::kCreditRequest;
  } else if (!std::exchange(connection.send_credit_update, false)) {
    op = Op::kShutdown;
    connection.shutdown_sent |= std::exchange(connection.send_shutdown, 0);
    flags = connection.shutdown_sent;
    if (flags == vsock::kShutdownBoth) {
      StartTimer(connection, kCloseTimeoutMs);
    }
  }
  Packet packet = PacketOf(connection, op);
  packet.flags = flags;
  connection.credit.Announced();
  return packet;
}

void Vsock::StartTimer(Connection& connection, std::uint64_t milliseconds) {
  loop().Cancel(connection.timer);
  // The connection cancels it when it goes.
  connection.timer = loop().After(milliseconds, [this, &connection] {
    timeouts_.Add();
    CloseWithReset(connection);
    Pump(kReceiveQueue);
  });
}

Vsock::Sent Vsock::SendFrom(Connection& connection, Chain& chain) {
  if (!HasControl(connection)) return SendData(connection, chain);
  Complete(chain, TakeControl(connection));
  if (HasControl(connection) || connection.readable) MakeReady(connection);
  return Sent::kPacket;
}

Vsock::Sent Vsock::SendData(Connection& connection, Chain& chain) {
  if (connection.phase != Phase::kEstablished || !connection.readable ||
      !connection.guest_receives || connection.host_ended) {
    return Sent::kNothing;
  }
  const std::uint32_t credit = connection.credit.MaySend();
  if (credit == 0) {
    // Asked once; any packet of the guest that brings credit makes the connection ready again.
    if (std::exchange(connection.credit_requested, true)) return Sent::kNothing;
    connection.send_credit_request = true;
    return SendFrom(connection, chain);
  }
  Writer writer = chain.writer();
  CHECK(writer.Skip(sizeof(Header)).has_value());
  const std::uint64_t wanted = std::min({std::uint64_t{credit}, writer.remaining(), kMaxPayload});
  const Result<std::size_t> parts = writer.Iovecs(wanted, parts_);
  if (wanted == 0 || !parts) {
    // A buffer for headers alone: of no use here, and not worth waiting with.
    bad_buffers_.Add();
    chain.Complete(0);
    MakeReady(connection);
    return Sent::kPacket;
  }
  const long n = connection.Receive(std::span(parts_).first(*parts));
  if (n == -EAGAIN) {
    connection.readable = false;
    return Sent::kNothing;
  }
  // A host program that closed with bytes of the guest unread: also an end, not a failure.
  if (n == -ECONNRESET) connection.host_closed = true;
  if (n < 0 && n != -ECONNRESET) {
    CloseWithReset(connection);
    return Sent::kNothing;
  }
  if (n <= 0) {
    connection.host_ended = true;
    connection.send_shutdown = connection.host_closed || !connection.host_takes
                                   ? vsock::kShutdownBoth
                                   : vsock::kShutdownSend;
    return SendFrom(connection, chain);
  }
  Packet packet = PacketOf(connection, Op::kRw);
  packet.len = static_cast<std::uint32_t>(n);
  connection.credit.Sent(packet.len);
  connection.credit.Announced();
  Complete(chain, packet);
  MakeReady(connection);
  return Sent::kPacket;
}

void Vsock::SendEvent(Chain chain) {
  Writer writer = chain.writer();
  if (!writer.Write(vsock::Event{le32(vsock::kEventTransportReset)})) {
    bad_buffers_.Add();
    return chain.Complete(0);
  }
  transport_reset_pending_ = false;
  chain.Complete(sizeof(vsock::Event));
}

// --- from the host ---

std::unique_ptr<Connection> Vsock::NewConnection(Fd socket, Phase phase) {
  const std::uint32_t buf_alloc =
      connections() < vsock::kManyConnections ? vsock::kBufAlloc : vsock::kBufAllocMany;
  vsock::ConnectionOwner& owner = *this;
  auto connection =
      std::make_unique<Connection>(loop(), owner, std::move(socket), phase, buf_alloc);
  if (Result<void> watched = connection->Watch(); !watched) {
    GUEST_LOG("vsock", "{}", Describe(watched.error()));
    return nullptr;
  }
  return connection;
}

void Vsock::Accept() {
  for (int i = 0; i < kAcceptBatch; ++i) {
    Result<Fd> socket = listener_.Accept();
    if (!socket) {
      if (socket.error().code != Errc::kSystem) return;
      GUEST_LOG("vsock", "cannot accept a connection: {}", Describe(socket.error()));
      return acceptor_->Pause();
    }
    if (handshakes_.size() >= kMaxHandshakes) {
      bad_handshakes_.Add();
      handshakes_.erase(handshakes_.begin());
    }
    if (connections() >= options_.max_connections) {
      over_limit_.Add();
      continue;
    }
    std::unique_ptr<Connection> connection = NewConnection(std::move(*socket), Phase::kHandshake);
    if (connection == nullptr) continue;
    accepted_.Add();
    handshakes_.push_back(std::move(connection));
  }
}

void Vsock::ReadHandshake(Connection& connection) {
  while (true) {
    // Looked at first: what follows the line belongs to the stream.
    char* const end = connection.line.data() + connection.line_length;
    const std::size_t room = connection.line.size() - connection.line_length;
    const ssize_t peeked = recv(connection.fd(), end, room, MSG_PEEK | MSG_DONTWAIT);
    if (peeked < 0 && errno == EAGAIN) return;
    if (peeked <= 0) return Close(connection);
    const std::string_view seen(end, static_cast<std::size_t>(peeked));
    const std::size_t newline = seen.find('\n');
    const std::size_t take = newline == std::string_view::npos ? seen.size() : newline + 1;
    if (recv(connection.fd(), end, take, MSG_DONTWAIT) != static_cast<ssize_t>(take))
      return Close(connection);
    connection.line_length += static_cast<std::uint32_t>(take);
    if (newline != std::string_view::npos) break;
    if (connection.line_length == connection.line.size()) {
      bad_handshakes_.Add();
      return Close(connection);
    }
  }
  const std::optional<std::uint32_t> port =
      ParseConnect(std::string_view(connection.line.data(), connection.line_length - 1));
  if (!port) {
    bad_handshakes_.Add();
    return Close(connection);
  }
  Request(connection, *port);
}

void Vsock::Request(Connection& connection, std::uint32_t guest_port) {
  if (!active()) {
    refused_.Add();  // no driver: better now than after a timeout
    return Close(connection);
  }
  connection.guest_port = guest_port;
  // More ports than connections can be: it ends.
  do {
    connection.host_port = next_host_port_;
    next_host_port_ = next_host_port_ == kLastHostPort ? kFirstHostPort : next_host_port_ + 1;
  } while (connections_.contains(KeyOf(guest_port, connection.host_port)));
  std::unique_ptr<Connection> taken = Take(connection);
  connection.phase = Phase::kRequested;
  connection.readable = true;  // the rest of what was peeked at
  connection.send_request = true;
  StartTimer(connection, kResponseTimeoutMs);
  MakeReady(connection);
  connections_[KeyOf(guest_port, connection.host_port)] = std::move(taken);
}

void Vsock::OnSocketEvent(Connection& connection, std::uint32_t events) {
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) connection.host_closed = true;
  switch (connection.phase) {
    case Phase::kHandshake:
      ReadHandshake(connection);
      break;
    case Phase::kDraining:
      if (!connection.Flush() || connection.ring().empty()) Close(connection);
      return;
    case Phase::kRequested:
      connection.readable = true;
      if (connection.host_closed) CloseWithReset(connection);
      break;
    case Phase::kEstablished:
      OnEstablishedEvent(connection);
      break;
  }
  Pump(kReceiveQueue);
}

void Vsock::OnEstablishedEvent(Connection& connection) {
  if (!connection.ring().empty()) {
    if (!connection.Flush()) {
      OnWriteFailed(connection);
    } else if (!connection.guest_sends && connection.ring().empty()) {
      (void)shutdown(connection.fd(), SHUT_WR);
    }
    if (connection.credit.ShouldAnnounce()) connection.send_credit_update = true;
  }
  connection.readable = true;
  if (connection.host_closed && (connection.host_ended || !connection.guest_receives)) {
    // Nothing is left to read: both directions are over.
    if (connection.shutdown_sent != vsock::kShutdownBoth)
      connection.send_shutdown = vsock::kShutdownBoth;
  }
  MakeReady(connection);
}

// --- the end of a connection ---

std::unique_ptr<Connection> Vsock::Take(Connection& connection) {
  ready_.Remove(connection);
  switch (connection.phase) {
    case Phase::kHandshake:
      return TakeFrom(handshakes_, connection);
    case Phase::kDraining:
      return TakeFrom(draining_, connection);
    case Phase::kRequested:
    case Phase::kEstablished:
      break;
  }
  auto node = connections_.extract(KeyOf(connection.guest_port, connection.host_port));
  CHECK(!node.empty());
  return std::move(node.mapped());
}

void Vsock::Close(Connection& connection) {
  static_cast<void>(Take(connection));
}

void Vsock::CloseWithReset(Connection& connection) {
  replies_.push_back(PacketOf(connection, Op::kRst));
  Close(connection);
}

void Vsock::Drain(Connection& connection) {
  std::unique_ptr<Connection> taken = Take(connection);
  if (taken->ring().empty()) return;
  loop().Cancel(taken->timer);
  taken->phase = Phase::kDraining;
  draining_.push_back(std::move(taken));
}

VsockState Vsock::Save() const {
  VsockState state;
  state.guest_cid = options_.guest_cid;
  state.next_host_port = next_host_port_;
  state.transport_reset_pending = transport_reset_pending_;
  return state;
}

Result<void> Vsock::Restore(const VsockState& state) {
  if (active()) return Err(Errc::kBadState, "restore vsock");
  if (state.version != VsockState::kVersion || state.guest_cid < vsock::kMinGuestCid ||
      state.guest_cid > vsock::kMaxGuestCid || state.next_host_port < kFirstHostPort ||
      state.next_host_port > kLastHostPort) {
    return Err(Errc::kBadFormat, "vsock state");
  }
  next_host_port_ = state.next_host_port;
  // 5.10.6.7: connections are gone, and the context identifier may be another.
  transport_reset_pending_ = true;
  return {};
}

void Vsock::ReportCounters(CounterSink& sink) const {
  SingleLoopDevice::ReportCounters(sink);
  sink.Add("rx_packets", rx_packets_.Get());
  sink.Add("rx_bytes", rx_bytes_.Get());
  sink.Add("tx_packets", tx_packets_.Get());
  sink.Add("tx_bytes", tx_bytes_.Get());
  sink.Add("connections_from_host", accepted_.Get());
  sink.Add("connections_from_guest", requested_.Get());
  sink.Add("refused", refused_.Get());
  sink.Add("over_limit", over_limit_.Get());
  sink.Add("bad_handshakes", bad_handshakes_.Get());
  sink.Add("timeouts", timeouts_.Get());
  sink.Add("malformed", malformed_.Get());
  sink.Add("misaddressed", misaddressed_.Get());
  sink.Add("credit_violations", credit_violations_.Get());
  sink.Add("bad_buffers", bad_buffers_.Get());
  sink.Add("resets_sent", resets_sent_.Get());
}

}  // namespace postern::virtio
