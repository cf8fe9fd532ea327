#include "devices/virtio/net/queue_pair.h"

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <utility>

#include "devices/virtio/net/request.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::virtio::net {
namespace {

// readv and writev take this many parts (IOV_MAX).
constexpr std::size_t kMaxParts = 1024;
// Parts of buffers held ahead, with room for a compaction now and then instead of at every packet.
constexpr std::size_t kPartsCapacity = 2 * kMaxParts;
constexpr std::size_t kCompactHeldAt = 256;
constexpr std::size_t kHeader = sizeof(PacketHeader);
// Packets after which the loop's other work has its turn.
constexpr int kBatch = 128;
// Whether the guest is shown what it has got after this many packets of a batch: soon at first, so
// that it works on those while we work on the next, then seldom, as each look of one side takes the
// ring's cache line from the other.
constexpr bool ShowAfter(int packets) {
  constexpr int kSeldom = 32;
  return packets % kSeldom == 0 ||
         (packets < kSeldom && std::has_single_bit(static_cast<unsigned>(packets)));
}
// Each kick is one event, and the eventfd need not be read.
constexpr std::uint32_t kKickEvents = EPOLLIN | EPOLLET;
// How long a packet may wait for a driver that has no more buffers to give.
constexpr std::uint64_t kDeferredMs = 20;

}  // namespace

QueuePair::QueuePair(EventLoop& loop, Tap tap, PairOwner& owner)
    : loop_(loop),
      tap_(std::move(tap)),
      owner_(owner),
      rx_parts_(std::make_unique_for_overwrite<iovec[]>(kPartsCapacity)),
      spill_(std::make_unique_for_overwrite<std::byte[]>(kHeader + kMaxPacket)),
      tx_parts_(std::make_unique_for_overwrite<iovec[]>(kMaxParts)) {}

QueuePair::~QueuePair() {
  Stop();
}

void QueuePair::Start(ActiveQueue* rx, ActiveQueue* tx, std::uint64_t negotiated, bool attached) {
  negotiated_ = negotiated;
  running_ = true;
  SetAttached(attached);
  SetTransmitQueue(tx);
  SetReceiveQueue(rx);
}

void QueuePair::Stop() {
  if (!running_) return;
  SetReceiveQueue(nullptr);
  SetTransmitQueue(nullptr);
  running_ = false;
  UpdateTapWatch();
}

void QueuePair::SetReceiveQueue(ActiveQueue* rx) {
  if (rx_ != nullptr) {
    GiveBackReceive();
    loop_.Unwatch(rx_->kick->fd());
  }
  rx_ = rx;
  if (rx_ != nullptr) {
    if (Result<void> watched = loop_.Watch(rx_->kick->fd(), kKickEvents, *this); !watched)
      return Broken(watched.error());
    if (rx_->queue.state().next_used != 0) rx_->queue.NotifyAlways();
    Receive();
  }
  UpdateTapWatch();
}

void QueuePair::SetTransmitQueue(ActiveQueue* tx) {
  if (tx_ != nullptr) {
    GiveBackTransmit();
    loop_.Unwatch(tx_->kick->fd());
  }
  tx_ = tx;
  if (tx_ != nullptr) {
    if (Result<void> watched = loop_.Watch(tx_->kick->fd(), kKickEvents, *this); !watched)
      return Broken(watched.error());
    if (tx_->queue.state().next_used != 0) tx_->queue.NotifyAlways();
    Transmit();
  }
  UpdateTapWatch();
}

void QueuePair::SetAttached(bool attached) {
  if (Result<void> done = tap_.Attach(attached); !done) {
    LOG_WARN("net", "{}: {}", tap_.name(), Describe(done.error()));
  }
  attached_ = attached;
  if (running_) UpdateTapWatch();
}

void QueuePair::Broken(const Error& error) {
  owner_.OnBroken(error);
}

void QueuePair::TapGone() {
  if (std::exchange(tap_gone_, true)) return;
  UpdateTapWatch();
  owner_.OnTapGone();
}

void QueuePair::UpdateTapWatch() {
  const bool in = running_ && attached_ && rx_ != nullptr && !starved_ && !deferred_;
  const bool out = running_ && attached_ && tx_pending_.has_value();
  const std::uint32_t events =
      tap_gone_ ? 0 : (in ? std::uint32_t{EPOLLIN} : 0) | (out ? std::uint32_t{EPOLLOUT} : 0);
  if (events == tap_events_) return;
  if (events == 0) {
    loop_.Unwatch(tap_.fd());
  } else if (Result<void> watched = tap_events_ == 0 ? loop_.Watch(tap_.fd(), events, *this)
                                                     : loop_.Modify(tap_.fd(), events);
             !watched) {
    LOG_ERROR("net", "{}: {}", tap_.name(), Describe(watched.error()));
    return;
  }
  tap_events_ = events;
}

void QueuePair::OnEvent(int fd, std::uint32_t events) {
  if (fd == tap_.fd()) {
    // The interface was deleted: reported without end, and for good.
    if ((events & EPOLLERR) != 0) return TapGone();
    if ((events & EPOLLOUT) != 0) Transmit();
    if ((events & EPOLLIN) != 0) Receive();
    return;
  }
  counters_.kicks.Add();
  if (tx_ != nullptr && fd == tx_->kick->fd()) {
    Transmit();
  } else if (rx_ != nullptr && fd == rx_->kick->fd()) {
    if (starved_ || deferred_) Receive();
  }
}

// --- receive ---

void QueuePair::DropFirstHeld(std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const Held& one = held_[held_first_ + i];
    held_bytes_ -= one.size;
    rx_parts_first_ += one.parts;
  }
  held_first_ += count;
  if (held_first_ == held_.size()) {
    held_.clear();
    held_first_ = 0;
    rx_parts_first_ = 0;
    rx_parts_end_ = 0;
  } else if (held_first_ >= kCompactHeldAt) {
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(held_first_));
    held_first_ = 0;
  }
}

// Adds one buffer to those held. False: it cannot follow those, and went back to the ring.
bool QueuePair::TakeBuffer(Chain chain) {
  const std::uint64_t size = chain.writable_size();
  // 5.1.6.3.1: a receive buffer holds at least the header. One that does not is answered empty and
  // forgotten; but only when none is held, for those held must stay the last taken (PutBack).
  if (size < kHeader) {
    if (!held().empty()) {
      chain.PutBack();
      return false;
    }
    counters_.rx_errors.Add();
    chain.Complete(0);
    return true;
  }
  if (kPartsCapacity - rx_parts_end_ < kMaxParts) {
    std::copy(rx_parts_.get() + rx_parts_first_, rx_parts_.get() + rx_parts_end_, rx_parts_.get());
    rx_parts_end_ -= rx_parts_first_;
    rx_parts_first_ = 0;
  }
  Writer writer = chain.writer();
  // More than the largest packet is never used.
  const std::uint64_t bytes = std::min<std::uint64_t>(size, kHeader + kMaxPacket);
  // One part stays free for the spill.
  const std::size_t room = kMaxParts - 1 - (rx_parts_end_ - rx_parts_first_);
  const Result<std::size_t> parts =
      writer.Iovecs(bytes, std::span(rx_parts_.get() + rx_parts_end_, room));
  if (!parts) {
    if (!held().empty()) {
      chain.PutBack();
      return false;
    }
    counters_.rx_errors.Add();
    chain.Complete(0);
    return true;
  }
  rx_parts_end_ += *parts;
  held_bytes_ += bytes;
  held_.push_back(Held{std::move(chain), static_cast<std::uint32_t>(bytes),
                       static_cast<std::uint32_t>(*parts)});
  return true;
}

// Takes buffers until `wanted` bytes are held, or one buffer where they are not merged.
QueuePair::Fill QueuePair::TakeBuffers(std::size_t wanted) {
  Queue& queue = rx_->queue;
  const bool merged = (negotiated_ & kFeatureMrgRxbuf) != 0;
  // A driver that refills the ring with useless buffers as fast as they are refused does not keep
  // the loop.
  std::uint32_t budget = std::max<std::uint32_t>(queue.size(), 64);
  while (held_bytes_ < wanted && (merged || held().empty())) {
    if (budget-- == 0) {
      if (!held().empty() && !deferred_) return Fill::kReady;
      rx_->kick->Signal();
      return Fill::kStarved;
    }
    Result<std::optional<Chain>> next = queue.Pop();
    if (!next) {
      Broken(next.error());
      return Fill::kBroken;
    }
    if (*next) {
      if (!TakeBuffer(std::move(**next))) break;
      continue;
    }
    // Kicks are wanted only when there is nothing to go on with.
    if (!held().empty() && !deferred_) return Fill::kReady;
    ShowReceived();
    if (!queue.EnableKicks()) return Fill::kStarved;
    queue.DisableKicks();
    queue.HoldUsed();
  }
  return Fill::kReady;
}

void QueuePair::ShowReceived() {
  rx_->queue.ShowUsed();
  rx_->queue.NotifyIfNeeded();
}

void QueuePair::Receive() {
  if (rx_ == nullptr || !attached_ || tap_gone_ || owner_.broken()) return;
  starved_ = false;
  rx_->queue.DisableKicks();
  rx_->queue.HoldUsed();
  for (int i = 1; i <= kBatch; ++i) {
    if (!ReceiveOne()) break;
    if (ShowAfter(i)) {
      ShowReceived();
      rx_->queue.HoldUsed();
    }
  }
  ShowReceived();
  UpdateTapWatch();
}

// False: nothing more can be received now.
bool QueuePair::ReceiveOne() {
  if (deferred_) {
    const Fill fill = TakeBuffers(deferred_->total);
    if (fill != Fill::kReady) return false;
    if (held_bytes_ < deferred_->total) {
      // Out of parts, not of buffers: the driver's buffers are too many and too small for this
      // packet.
      DropDeferred();
    } else {
      DeliverDeferred();
    }
    return true;
  }
  const Fill fill = TakeBuffers(kHeader + kMaxPacket);
  if (fill != Fill::kReady) {
    if (fill == Fill::kStarved) {
      // CVE-2020-16843 in a peer: without buffers the TAP must be left alone, and looked at again
      // at the next kick.
      starved_ = true;
      counters_.rx_starved.Add();
    }
    return false;
  }
  // The part behind the guest's buffers shows whether the packet was larger than they are.
  rx_parts_[rx_parts_end_] = iovec{spill_.get(), kHeader + kMaxPacket};
  const long n =
      tap_.Read(std::span(rx_parts_.get() + rx_parts_first_, rx_parts_end_ - rx_parts_first_ + 1));
  if (n < 0) {
    if (n == -EBADFD) TapGone();
    if (n != -EAGAIN && n != -EINTR) counters_.rx_errors.Add();
    return false;
  }
  const auto bytes = static_cast<std::size_t>(n);
  if (bytes < kHeader) {
    counters_.rx_errors.Add();
  } else if (bytes <= held_bytes_) {
    Deliver(bytes);
  } else if ((negotiated_ & kFeatureMrgRxbuf) != 0) {
    deferred_ = Deferred{bytes, held_bytes_};
    loop_.Cancel(deferred_timer_);
    deferred_timer_ = loop_.After(kDeferredMs, [this] {
      if (!deferred_) return;
      DropDeferred();
      Receive();
    });
  } else {
    counters_.rx_dropped.Add();
  }
  return true;
}

// A packet of `bytes` bytes with its header lies in the first buffers held: completes these.
void QueuePair::Deliver(std::size_t bytes) {
  const std::span<Held> buffers = held();
  std::size_t count = 0;
  for (std::size_t covered = 0; covered < bytes; ++count) covered += buffers[count].size;
  // 5.1.6.4.1: num_buffers is 1 without MRG_RXBUF. The kernel leaves the field as it is.
  Writer header = buffers[0].chain.writer();
  if ((negotiated_ & kFeatureGuestCsum) == 0) {
    // 5.1.6.4.1: flags are 0 then; the kernel also tells of checksums it has verified.
    CHECK(header.Write(std::uint8_t{0}).has_value());
    CHECK(header.Skip(offsetof(PacketHeader, num_buffers) - 1).has_value());
  } else {
    CHECK(header.Skip(offsetof(PacketHeader, num_buffers)).has_value());
  }
  CHECK(header.Write(le16(static_cast<std::uint16_t>(count))).has_value());
  std::size_t left = bytes;
  for (Held& buffer : buffers.first(count)) {
    const std::size_t part = std::min<std::size_t>(left, buffer.size);
    buffer.chain.Complete(static_cast<std::uint32_t>(part));
    left -= part;
  }
  DropFirstHeld(count);
  counters_.rx_packets.Add();
  counters_.rx_bytes.Add(bytes - kHeader);
}

void QueuePair::DeliverDeferred() {
  const Deferred packet = *std::exchange(deferred_, std::nullopt);
  loop_.Cancel(deferred_timer_);
  std::size_t covered = 0;
  for (Held& buffer : held()) {
    const std::size_t start = covered;
    covered += buffer.size;
    if (covered <= packet.in_buffers) continue;
    if (start >= packet.total) break;
    // Buffers taken later start exactly where those of the time of the read ended.
    const std::size_t bytes = std::min<std::size_t>(buffer.size, packet.total - start);
    Writer writer = buffer.chain.writer();
    CHECK(writer.Copy(std::span(spill_.get() + (start - packet.in_buffers), bytes)).has_value());
  }
  Deliver(packet.total);
}

void QueuePair::DropDeferred() {
  deferred_.reset();
  loop_.Cancel(deferred_timer_);
  counters_.rx_dropped.Add();
}

void QueuePair::GiveBackReceive() {
  if (deferred_) DropDeferred();
  // Last taken, first back.
  for (std::size_t i = held_.size(); i > held_first_; --i) held_[i - 1].chain.PutBack();
  held_.clear();
  held_first_ = 0;
  held_bytes_ = 0;
  rx_parts_first_ = 0;
  rx_parts_end_ = 0;
  starved_ = false;
}

// --- transmit ---

void QueuePair::Transmit() {
  if (tx_ == nullptr || owner_.broken()) return;
  Queue& queue = tx_->queue;
  if (tx_pending_) {
    Chain chain = std::move(*tx_pending_);
    tx_pending_.reset();
    if (!Send(std::move(chain))) return;
  }
  queue.DisableKicks();
  queue.HoldUsed();
  for (int i = 1; i <= kBatch; ++i) {
    Result<std::optional<Chain>> next = queue.Pop();
    if (!next) {
      queue.ShowUsed();
      queue.NotifyIfNeeded();
      return Broken(next.error());
    }
    if (!*next) {
      queue.ShowUsed();
      queue.NotifyIfNeeded();
      if (!queue.EnableKicks()) return UpdateTapWatch();
      queue.DisableKicks();
      queue.HoldUsed();
      continue;
    }
    if (!Send(std::move(**next))) {
      queue.ShowUsed();
      queue.NotifyIfNeeded();
      return UpdateTapWatch();
    }
    if (ShowAfter(i)) {
      queue.ShowUsed();
      queue.NotifyIfNeeded();
      queue.HoldUsed();
    }
  }
  queue.ShowUsed();
  queue.NotifyIfNeeded();
  // The rest waits for its turn.
  tx_->kick->Signal();
  UpdateTapWatch();
}

bool QueuePair::Send(Chain chain) {
  Reader reader = chain.reader();
  const Result<PacketHeader> header = reader.Read<PacketHeader>();
  const std::uint64_t size = reader.remaining();
  if (!header || size < kEthernetHeader || size > kMaxPacket) {
    counters_.tx_malformed.Add();
    chain.Complete(0);
    return true;
  }
  Result<PacketHeader> checked = CheckTransmitHeader(*header, size, negotiated_);
  const Result<std::size_t> parts =
      reader.Iovecs(size, std::span(tx_parts_.get() + 1, kMaxParts - 1));
  if (!checked || !parts) {
    counters_.tx_malformed.Add();
    chain.Complete(0);
    return true;
  }
  if (tap_gone_ || !attached_) {
    counters_.tx_dropped.Add();
    chain.Complete(0);
    return true;
  }
  tx_parts_[0] = iovec{&*checked, kHeader};
  const long n = tap_.Write(std::span(tx_parts_.get(), *parts + 1));
  if (n == -EAGAIN) {
    tx_pending_.emplace(std::move(chain));
    counters_.tx_blocked.Add();
    return false;
  }
  if (n < 0) {
    // The interface is down (EIO), or the kernel finds fault with the packet: the packet is lost,
    // as on a wire.
    counters_.tx_errors.Add();
    if (n == -EBADFD) TapGone();
  } else {
    counters_.tx_packets.Add();
    counters_.tx_bytes.Add(size);
  }
  chain.Complete(0);
  return true;
}

void QueuePair::GiveBackTransmit() {
  if (!tx_pending_) return;
  tx_pending_->PutBack();
  tx_pending_.reset();
}

}  // namespace postern::virtio::net
