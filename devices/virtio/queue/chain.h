#pragma once

// Reader, Writer and Chain: one request of a driver: a descriptor chain that was validated as a
// whole when it was popped.
//
// A device never sees a descriptor: it reads the chain's device-readable bytes front to back
// through chain.reader() and writes its device-writable bytes through chain.writer(). Source:
// VIRTIO 1.2, 2.7 "Split Virtqueues".
//
// Ownership: a Chain is a move-only token that must be given back exactly once: by Complete, or by
// PutBack or Discard where their comments allow it. Dropping one completes it with 0 bytes and
// counts it as dropped (a bug: CHECK in debug builds). It shares its queue's rings and memory
// snapshot, so it stays safe to hold, and does nothing more, once that Queue was reset or
// destroyed. Cursors borrow from their chain. Threads: the queue's owner thread.

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// Segments of a chain that follow each other. At most the queue size of them; a segment that spans
// two RAM regions counts as two.
using Segments = std::span<const memory::GuestView>;

namespace internal {

struct Ring;
// A counted reference to a Ring.
struct Unref {
  void operator()(Ring* ring) const;
};
using RingRef = std::unique_ptr<Ring, Unref>;

// A position in a run of segments; what Reader and Writer have in common.
class Cursor {
 public:
  [[nodiscard]] std::uint64_t remaining() const { return remaining_; }

 protected:
  explicit Cursor(Segments segments);
  Cursor(Segments segments, std::uint64_t size) : segments_(segments), remaining_(size) {}
  // Calls step(view, offset, length) for each piece of the next `bytes` bytes and moves past them.
  // Refuses more than remain, before the first step.
  template <typename Step>
  Result<void> Advance(std::uint64_t bytes, Step step);
  // See Reader::Iovecs.
  Result<std::size_t> TakeIovecs(std::uint64_t bytes, std::span<iovec> out);

  Segments segments_;
  std::size_t index_ = 0;
  std::uint64_t offset_ = 0;  // in segments_[index_]
  std::uint64_t remaining_ = 0;
};

}  // namespace internal

// A cursor over the device-readable part.
class Reader : public internal::Cursor {
 public:
  explicit Reader(Segments segments) : Cursor(segments) {}
  // Copies the next sizeof(T) bytes; kGuestProtocol when fewer remain.
  template <memory::GuestPod T>
  [[nodiscard]] Result<T> Read() {
    T value{};
    TRY(Copy(std::as_writable_bytes(std::span<T, 1>(&value, 1))));
    return value;
  }
  [[nodiscard]] Result<void> Copy(std::span<std::byte> to);
  [[nodiscard]] Result<void> Skip(std::uint64_t bytes);
  // The next `bytes` bytes as iovecs for a system call (the kernel reads them); advances. Fills at
  // most out.size() entries and says how many; kExhausted (and nothing moves) when they do not
  // suffice, kGuestProtocol when fewer bytes remain.
  [[nodiscard]] Result<std::size_t> Iovecs(std::uint64_t bytes, std::span<iovec> out);

 private:
  friend class Chain;
  Reader(Segments segments, std::uint64_t size) : Cursor(segments, size) {}
};

// A cursor over the device-writable part.
class Writer : public internal::Cursor {
 public:
  explicit Writer(Segments segments) : Cursor(segments) {}
  [[nodiscard]] std::uint64_t written() const { return written_; }
  template <memory::GuestPod T>
  [[nodiscard]] Result<void> Write(const T& value) {
    return Copy(std::as_bytes(std::span<const T, 1>(&value, 1)));
  }
  [[nodiscard]] Result<void> Copy(std::span<const std::byte> from);
  [[nodiscard]] Result<void> Fill(std::byte value, std::uint64_t bytes);
  [[nodiscard]] Result<void> Skip(std::uint64_t bytes);
  // As Reader::Iovecs; the kernel writes them. Counts as written; Chain::Complete marks those bytes
  // dirty.
  [[nodiscard]] Result<std::size_t> Iovecs(std::uint64_t bytes, std::span<iovec> out);
  // A cursor over the last `bytes` bytes of this part (virtio-blk's status byte, say), taken off
  // this one.
  [[nodiscard]] Result<Writer> SplitOffTail(std::uint64_t bytes);

 private:
  friend class Chain;
  Writer(Segments segments, std::uint64_t size) : Cursor(segments, size) {}
  std::uint64_t written_ = 0;
};

class Chain {
 public:
  Chain(Chain&& other) noexcept;
  Chain& operator=(Chain&& other) noexcept;
  Chain(const Chain&) = delete;
  Chain& operator=(const Chain&) = delete;
  ~Chain();

  // The index of the first descriptor: below the queue size, and unlike that of every other chain
  // in flight.
  [[nodiscard]] std::uint16_t head() const { return head_; }
  // Fresh cursors at the start of each part.
  [[nodiscard]] Reader reader() const;
  [[nodiscard]] Writer writer() const;
  [[nodiscard]] std::uint64_t readable_size() const;
  [[nodiscard]] std::uint64_t writable_size() const;

  // Puts the chain on the used ring with `written` bytes (cut to the size of the writable part) and
  // marks them dirty. Whether to interrupt is the queue's to say, once per batch:
  // Queue::NotifyIfNeeded.
  void Complete(std::uint32_t written);
  // Marks the whole writable part dirty: for a request that failed after the kernel may have
  // written any part of it.
  void MarkWritableDirty() const;
  // Un-pops the chain: the next Pop returns it again. Only for the chain popped last of those not
  // put back (CHECK).
  void PutBack();
  // Gives the chain up without an answer: for a device that is being reset.
  void Discard();

 private:
  friend class Queue;
  Chain(internal::RingRef ring, std::uint16_t head) : ring_(std::move(ring)), head_(head) {}
  void Drop();
  internal::RingRef ring_;  // null once given back
  std::uint16_t head_;
};

}  // namespace postern::virtio
