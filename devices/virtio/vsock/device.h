#pragma once

// Vsock: virtio-vsock (VIRTIO 1.2, 5.10), stream sockets, served in user space over UNIX sockets.
//
//   auto vsock = Vsock::Create({.guest_cid = 3, .socket = "/run/vm.vsock"}, loop);     // Outcome
//
// A host program connects to the socket, writes "CONNECT <port>\n", and reads "OK <host port>\n"
// when the guest accepted, or the end of the stream when it did not. A guest's connection to port P
// of the host goes to the UNIX socket "<socket>_P", and is refused when nobody listens there.
//
// Ownership: owns the listening socket (removed with it) and all connections. Threads: the loop's;
// configuration from any.

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "devices/virtio/single_loop_device.h"
#include "devices/virtio/vsock/connection.h"
#include "devices/virtio/vsock/packet.h"
#include "src/base/failure.h"
#include "src/base/unix_socket.h"

namespace postern::virtio {

struct VsockOptions {
  std::uint64_t guest_cid = 3;           // 3 .. 2^32 - 2
  std::string socket;                    // at most 96 bytes
  std::uint32_t max_connections = 1024;  // at least 1
};

// Connections do not survive a restore: the guest is told so by a transport reset event.
struct VsockState {
  static constexpr std::uint32_t kVersion = 1;
  std::uint32_t version = kVersion;
  std::uint64_t guest_cid = 0;
  std::uint32_t next_host_port = 0;
  bool transport_reset_pending = false;
  friend bool operator==(const VsockState&, const VsockState&) = default;
};

class Vsock final : public SingleLoopDevice, private vsock::ConnectionOwner {
 public:
  // VIRTIO 1.2 5.10.2
  static constexpr std::uint16_t kReceiveQueue = 0;
  static constexpr std::uint16_t kTransmitQueue = 1;
  static constexpr std::uint16_t kEventQueue = 2;

  [[nodiscard]] static Outcome<std::unique_ptr<Vsock>> Create(const VsockOptions& options,
                                                              EventLoop& loop);
  ~Vsock() override;

  [[nodiscard]] DeviceId id() const override { return DeviceId::kVsock; }
  [[nodiscard]] std::uint64_t features() const override { return vsock::kFeatureStream; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return kQueueSizes; }
  [[nodiscard]] std::uint32_t config_size() const override { return sizeof(le64); }
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override;
  void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  void ReportCounters(CounterSink& sink) const override;

  [[nodiscard]] VsockState Save() const;
  // Only while idle (kBadState).
  [[nodiscard]] Result<void> Restore(const VsockState& state);

  [[nodiscard]] const std::string& socket() const { return options_.socket; }
  // In whatever phase.
  [[nodiscard]] std::size_t connections() const {
    return connections_.size() + handshakes_.size() + draining_.size();
  }

 private:
  class Acceptor;
  using Connection = vsock::Connection;
  using Packet = vsock::Packet;
  using Key = std::uint64_t;  // guest port, host port
  static constexpr std::array<std::uint16_t, 3> kQueueSizes{256, 256, 16};

  Vsock(const VsockOptions& options, UnixListener listener, EventLoop& loop);
  [[nodiscard]] Result<void> Start();

  // SingleLoopDevice
  void OnChain(std::uint16_t queue, Chain chain) override;
  bool WantsChain(std::uint16_t queue) override;
  void OnPumped(std::uint16_t queue) override;
  void OnDeactivate() override;

  // From the guest.
  void OnPacket(const Packet& packet, const Reader& payload);
  void OnConnectionPacket(Connection& connection, const Packet& packet, const Reader& payload);
  void OnRequest(const Packet& packet);
  void OnResponse(Connection& connection, const Packet& packet);
  void OnShutdown(Connection& connection, std::uint32_t flags);
  void OnData(Connection& connection, const Packet& packet, const Reader& payload);
  void OnWriteFailed(Connection& connection);
  void Reply(const Packet& packet);

  // To the guest.
  enum class Sent : std::uint8_t { kPacket, kNothing };
  void FillReceiveBuffer(Chain chain);
  void Complete(Chain& chain, const Packet& packet);
  [[nodiscard]] Sent SendFrom(Connection& connection, Chain& chain);
  [[nodiscard]] Sent SendData(Connection& connection, Chain& chain);
  [[nodiscard]] static bool HasControl(const Connection& connection);
  [[nodiscard]] Packet TakeControl(Connection& connection);
  [[nodiscard]] Packet PacketOf(const Connection& connection, vsock::Op op) const;
  void StartTimer(Connection& connection, std::uint64_t milliseconds);
  void SendEvent(Chain chain);
  void MakeReady(Connection& connection);

  // From the host.
  void OnSocketEvent(Connection& connection, std::uint32_t events) override;
  // Null when it cannot be watched.
  [[nodiscard]] std::unique_ptr<Connection> NewConnection(Fd socket, vsock::Phase phase);
  void OnEstablishedEvent(Connection& connection);
  void Accept();
  void ReadHandshake(Connection& connection);
  void Request(Connection& connection, std::uint32_t guest_port);

  // Takes the connection off its container; the caller decides how it ends.
  [[nodiscard]] std::unique_ptr<Connection> Take(Connection& connection);
  void Close(Connection& connection);
  void CloseWithReset(Connection& connection);
  // The guest is done: what it has sent still goes to the host.
  void Drain(Connection& connection);

  VsockOptions options_;
  UnixListener listener_;
  std::unique_ptr<Acceptor> acceptor_;
  std::unordered_map<Key, std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> handshakes_;  // oldest first
  std::vector<std::unique_ptr<Connection>> draining_;
  vsock::ReadyList ready_;
  std::deque<Packet> replies_;  // packets that belong to no connection (any more)
  std::uint32_t next_host_port_;
  bool transport_reset_pending_ = false;
  EventLoop::TimerId resume_ = 0;
  std::vector<iovec> parts_;  // scratch of one call
  Counter rx_packets_, rx_bytes_, tx_packets_, tx_bytes_, malformed_, misaddressed_, resets_sent_;
  Counter accepted_, requested_, refused_, over_limit_, bad_handshakes_, credit_violations_,
      timeouts_, bad_buffers_;
};

}  // namespace postern::virtio
