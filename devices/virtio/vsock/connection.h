#pragma once

// Connection: one stream between a guest port and a UNIX socket of the host: the socket, what the
// guest sent that the socket did not take yet, and the credit of both sides. Knows the socket and
// the counts; what the packets mean is Vsock's (device.h).
//
// Ownership: owned by Vsock; owns its socket. Threads: the loop's.

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <span>

#include "devices/virtio/queue/chain.h"
#include "devices/virtio/vsock/credit.h"
#include "src/base/byte_ring.h"
#include "src/base/event_loop.h"
#include "src/base/fd.h"

namespace postern::virtio::vsock {

// What the guest may have under way to one connection, and so the most that is ever buffered for
// it. With many connections each gets less, so that a guest whose peers all stop reading cannot
// make the host keep hundreds of megabytes.
constexpr std::uint32_t kBufAlloc = 256 * 1024;
constexpr std::uint32_t kBufAllocMany = 64 * 1024;
constexpr std::size_t kManyConnections = 64;

class Connection;

class ConnectionOwner {
 public:
  virtual ~ConnectionOwner() = default;
  // The socket became readable or writable, or the other side closed it. May destroy the
  // connection.
  virtual void OnSocketEvent(Connection& connection, std::uint32_t events) = 0;
};

enum class Phase : std::uint8_t {
  kHandshake,  // a host program connected and has not said to which port
  kRequested,  // the guest was asked and has not answered
  kEstablished,
  kDraining,  // over for the guest; the socket still takes what the guest had sent
};

class Connection final : private EventHandler {
 public:
  Connection(EventLoop& loop, ConnectionOwner& owner, Fd socket, Phase first_phase,
             std::uint32_t buf_alloc)
      : loop_(loop),
        owner_(owner),
        socket_(std::move(socket)),
        ring_(buf_alloc),
        phase(first_phase),
        credit(buf_alloc) {}
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Edge-triggered: a hang-up is told once, and input the guest has no room for is not told over
  // and over.
  [[nodiscard]] Result<void> Watch();
  [[nodiscard]] int fd() const { return socket_.get(); }

  // The next `bytes` bytes of `reader` (which has them) to the socket, or what it does not take to
  // the ring (which has room for it by Credit::MayReceive). False: the socket is broken.
  [[nodiscard]] bool Deliver(Reader reader, std::uint32_t bytes, std::span<iovec> parts);
  // The ring to the socket, as far as it takes it. False: the socket is broken.
  [[nodiscard]] bool Flush();
  // For a socket that takes no more: what the guest sends is forgotten.
  void Discard();
  // As readv: bytes, 0 at the end, -errno.
  [[nodiscard]] long Receive(std::span<const iovec> parts) const;
  [[nodiscard]] bool SendAll(std::span<const std::byte> bytes) const;
  [[nodiscard]] const ByteRing& ring() const { return ring_; }

 private:
  void OnEvent(int fd, std::uint32_t events) override {
    (void)fd, owner_.OnSocketEvent(*this, events);
  }
  [[nodiscard]] bool UpdateWatch();

  EventLoop& loop_;
  ConnectionOwner& owner_;
  Fd socket_;
  bool watched_ = false;
  bool blocked_ = false;
  ByteRing ring_;

 public:
  // --- Vsock's, per connection ---
  Phase phase;
  std::uint32_t guest_port = 0;
  std::uint32_t host_port = 0;
  Credit credit;
  bool readable = false;     // the socket may have input, or its end
  bool host_closed = false;  // both directions
  bool host_takes = true;    // false once a write has failed
  bool host_ended = false;   // its end was read and told to the guest
  bool guest_receives = true;
  bool guest_sends = true;
  // Packets to send when the guest has a buffer; at most one of each.
  bool send_request = false;
  bool send_response = false;
  bool send_credit_update = false;
  bool send_credit_request = false;
  bool credit_requested = false;    // and not answered
  std::uint32_t send_shutdown = 0;  // flags
  std::uint32_t shutdown_sent = 0;
  EventLoop::TimerId timer = 0;
  // kHandshake: what was read of the line.
  std::uint32_t line_length = 0;
  std::array<char, 32> line{};
  // Links of the list of those with something to send.
  Connection* ready_prev = nullptr;
  Connection* ready_next = nullptr;
  bool ready = false;
};

// First in, first out, without allocation; a connection is on it at most once.
class ReadyList {
 public:
  [[nodiscard]] bool empty() const { return first_ == nullptr; }
  [[nodiscard]] Connection* front() const { return first_; }
  void PushBack(Connection& connection);
  void Remove(Connection& connection);

 private:
  Connection* first_ = nullptr;
  Connection* last_ = nullptr;
};

}  // namespace postern::virtio::vsock
