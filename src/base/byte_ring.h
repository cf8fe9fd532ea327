#pragma once

// ByteRing: a bounded first-in, first-out buffer of bytes, with in-place access for readv(2) and
// writev(2).
//
//   ByteRing ring(4096);
//   auto room = ring.Room();                       // at most two iovecs
//   ring.Commit(readv(fd, room.data(), 2));
//   std::size_t n = ring.Read(destination);
//
// The storage is allocated by the first byte and given back by Release, so that an idle ring costs
// nothing. Threads: one owner.

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <memory>
#include <span>

namespace postern {

class ByteRing {
 public:
  // `capacity` in bytes; at least 1.
  explicit ByteRing(std::size_t capacity) : capacity_(capacity) {}

  [[nodiscard]] std::size_t capacity() const { return capacity_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] std::size_t room() const { return capacity_ - size_; }

  // Appends as much as fits and says how much that was.
  std::size_t Write(std::span<const std::byte> from);
  // Appends all of `from` that a ring of this capacity can hold, dropping the oldest bytes; says
  // how many bytes were dropped, of the ring and of the start of `from` together.
  std::size_t WriteDroppingOldest(std::span<const std::byte> from);
  // Takes up to to.size() bytes and says how many.
  std::size_t Read(std::span<std::byte> to);

  // The bytes inside, oldest first; entries of length 0 come last. Valid until the next change.
  // Consume removes from the front, at most size() bytes.
  [[nodiscard]] std::array<iovec, 2> Contents() const;
  void Consume(std::size_t bytes);
  // The free space in the order it will be read back. Commit makes its first bytes part of the
  // contents, at most room() of them.
  [[nodiscard]] std::array<iovec, 2> Room();
  void Commit(std::size_t bytes);

  void Clear() { Consume(size_); }
  // Empties the ring and frees its storage.
  void Release();

 private:
  void Allocate();
  std::size_t capacity_;
  std::size_t head_ = 0;  // of the oldest byte, below capacity_
  std::size_t size_ = 0;
  std::unique_ptr<std::byte[]> storage_;
};

}  // namespace postern
