#pragma once

// QueuePair: the data path of one receive and one transmit queue over one TAP queue. The kernel
// copies packets straight into and out of the guest's buffers; only headers are looked at here.
//
// Receiving takes buffers from the ring ahead of the packet, enough for the largest one while the
// guest has them. Without a buffer the TAP is not read until the guest kicks; a packet that turns
// out larger than what the guest had offered waits for more (a driver without merged buffers loses
// it). Transmitting waits for the TAP with the packet left in the guest's buffers.
//
// Ownership: owns its Tap; the queues belong to Net, which calls Stop before they go. Threads: all
// calls on the loop's thread, except ReportCounters.

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/virtio/device.h"
#include "devices/virtio/net/net_regs.h"
#include "devices/virtio/net/tap.h"
#include "src/base/counters.h"
#include "src/base/event_loop.h"

namespace postern::virtio::net {

struct PairCounters {
  Counter rx_packets, rx_bytes, rx_dropped, rx_starved, rx_errors;
  Counter tx_packets, tx_bytes, tx_dropped, tx_malformed, tx_blocked, tx_errors;
  Counter kicks;
};

// What a pair tells its device. Called on the pair's loop.
class PairOwner {
 public:
  virtual ~PairOwner() = default;
  // A driver broke a rule of the ring.
  virtual void OnBroken(const Error& error) = 0;
  // The interface was deleted.
  virtual void OnTapGone() = 0;
  // The device waits for its reset: rings are left alone.
  [[nodiscard]] virtual bool broken() const = 0;
};

class QueuePair final : private EventHandler {
 public:
  QueuePair(EventLoop& loop, Tap tap, PairOwner& owner);
  ~QueuePair() override;

  [[nodiscard]] EventLoop& loop() const { return loop_; }
  [[nodiscard]] Tap& tap() { return tap_; }

  // Either may be null. `attached`: whether the kernel shall give this queue packets.
  void Start(ActiveQueue* rx, ActiveQueue* tx, std::uint64_t negotiated, bool attached);
  // Unwatches all, and puts the buffers held back on their rings as if never taken. Idempotent.
  void Stop();
  void SetReceiveQueue(ActiveQueue* rx);
  void SetTransmitQueue(ActiveQueue* tx);
  void SetAttached(bool attached);

  [[nodiscard]] const PairCounters& counters() const { return counters_; }

 private:
  // A receive buffer taken ahead of its packet; its iovecs lie in rx_parts_, in the same order.
  struct Held {
    Chain chain;
    std::uint32_t size;
    std::uint32_t parts;
  };
  // A packet of which a part was larger than the buffers: that part is in spill_.
  struct Deferred {
    std::size_t total;
    std::size_t in_buffers;
  };
  enum class Fill : std::uint8_t { kReady, kStarved, kBroken };

  void OnEvent(int fd, std::uint32_t events) override;
  void UpdateTapWatch();
  void TapGone();
  void Broken(const Error& error);

  void Receive();
  [[nodiscard]] Fill TakeBuffers(std::size_t wanted);
  [[nodiscard]] bool TakeBuffer(Chain chain);
  [[nodiscard]] bool ReceiveOne();
  void Deliver(std::size_t bytes);
  void DeliverDeferred();
  void DropDeferred();
  void GiveBackReceive();
  void ShowReceived();
  [[nodiscard]] std::span<Held> held() { return std::span(held_).subspan(held_first_); }
  [[nodiscard]] std::size_t held_bytes() const { return held_bytes_; }
  void DropFirstHeld(std::size_t count);

  void Transmit();
  // False: the TAP is full, and the chain is kept in tx_pending_.
  [[nodiscard]] bool Send(Chain chain);
  void GiveBackTransmit();

  EventLoop& loop_;
  Tap tap_;
  PairOwner& owner_;
  ActiveQueue* rx_ = nullptr;
  ActiveQueue* tx_ = nullptr;
  std::uint64_t negotiated_ = 0;
  bool running_ = false;
  bool attached_ = false;
  bool tap_gone_ = false;
  std::uint32_t tap_events_ = 0;  // watched now

  std::vector<Held> held_;
  std::size_t held_first_ = 0;
  std::size_t held_bytes_ = 0;
  std::unique_ptr<iovec[]> rx_parts_;
  std::size_t rx_parts_first_ = 0;
  std::size_t rx_parts_end_ = 0;
  std::unique_ptr<std::byte[]> spill_;
  std::optional<Deferred> deferred_;
  EventLoop::TimerId deferred_timer_ = 0;
  bool starved_ = false;

  std::unique_ptr<iovec[]> tx_parts_;
  std::optional<Chain> tx_pending_;
  PairCounters counters_;
};

}  // namespace postern::virtio::net
