#include "src/base/byte_ring.h"

#include <algorithm>
#include <cstring>

#include "src/base/check.h"

namespace postern {

void ByteRing::Allocate() {
  if (storage_ == nullptr) storage_ = std::make_unique_for_overwrite<std::byte[]>(capacity_);
}

std::array<iovec, 2> ByteRing::Contents() const {
  const std::size_t first = std::min(size_, capacity_ - head_);
  return {{{storage_.get() + head_, first}, {storage_.get(), size_ - first}}};
}

std::array<iovec, 2> ByteRing::Room() {
  Allocate();
  const std::size_t tail = (head_ + size_) % capacity_;
  const std::size_t first = std::min(room(), capacity_ - tail);
  return {{{storage_.get() + tail, first}, {storage_.get(), room() - first}}};
}

void ByteRing::Commit(std::size_t bytes) {
  CHECK(bytes <= room());
  size_ += bytes;
}

void ByteRing::Consume(std::size_t bytes) {
  CHECK(bytes <= size_);
  size_ -= bytes;
  // An empty ring starts over, so that the next readv needs one iovec.
  head_ = size_ == 0 ? 0 : (head_ + bytes) % capacity_;
}

std::size_t ByteRing::Write(std::span<const std::byte> from) {
  const std::size_t bytes = std::min(from.size(), room());
  if (bytes == 0) return 0;
  const std::array<iovec, 2> to = Room();
  const std::size_t first = std::min(bytes, to[0].iov_len);
  std::memcpy(to[0].iov_base, from.data(), first);
  if (bytes > first) std::memcpy(to[1].iov_base, from.data() + first, bytes - first);
  size_ += bytes;
  return bytes;
}

std::size_t ByteRing::WriteDroppingOldest(std::span<const std::byte> from) {
  std::size_t dropped = 0;
  if (from.size() > capacity_) {
    dropped = from.size() - capacity_;
    from = from.subspan(dropped);
  }
  if (from.size() > room()) {
    const std::size_t old = from.size() - room();
    Consume(old);
    dropped += old;
  }
  Write(from);
  return dropped;
}

std::size_t ByteRing::Read(std::span<std::byte> to) {
  const std::size_t bytes = std::min(to.size(), size_);
  if (bytes == 0) return 0;
  const std::array<iovec, 2> from = Contents();
  const std::size_t first = std::min(bytes, from[0].iov_len);
  std::memcpy(to.data(), from[0].iov_base, first);
  if (bytes > first) std::memcpy(to.data() + first, from[1].iov_base, bytes - first);
  Consume(bytes);
  return bytes;
}

void ByteRing::Release() {
  size_ = 0;
  head_ = 0;
  storage_.reset();
}

}  // namespace postern
