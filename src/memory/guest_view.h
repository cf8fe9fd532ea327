#pragma once

// GuestView: a checked window on guest memory: [gpa, gpa + size) was proven to lie inside one RAM
// region when it was made.
//
//   GuestView view = TRY(memory.View(Gpa(0x1000), sizeof(Header), Access::kRead));
//   Header header = TRY(view.Read<Header>(0));   // one fetch; validate the copy, use the copy
//
// Is not a pointer: there is no data(), no iterator, no span, so that guest memory cannot be read
// twice by accident. Ownership: borrows from the GuestMemory it came from and must not outlive that
// snapshot. Threads: any; the guest writes concurrently, and only LoadAcquire16/StoreRelease16 and
// naturally aligned 1/2/4/8-byte Read/Write are single-copy atomic. Every write marks the region's
// dirty bitmap, if it has one.

#include <sys/uio.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "src/base/check.h"
#include "src/base/endian.h"
#include "src/base/result.h"
#include "src/memory/dirty_bitmap.h"
#include "src/memory/gpa.h"
#include "src/memory/shared_bytes.h"

namespace postern::memory {

template <typename T>
concept GuestPod = std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>;

namespace internal {

template <std::size_t N>
inline constexpr bool kIsWord = N == 1 || N == 2 || N == 4 || N == 8;
template <std::size_t N>
using Word = std::conditional_t<
    N == 1, std::uint8_t,
    std::conditional_t<N == 2, std::uint16_t,
                       std::conditional_t<N == 4, std::uint32_t, std::uint64_t>>>;

template <std::size_t N>
bool IsAligned(const std::byte* at) {
  return reinterpret_cast<std::uintptr_t>(at) % N == 0;
}
// Through void: what the bytes are aligned to was checked, not known to the compiler.
template <typename W>
W* WordPointer(const std::byte* at) {
  return static_cast<W*>(static_cast<const void*>(at));
}
template <typename W>
W* WordPointer(std::byte* at) {
  return static_cast<W*>(static_cast<void*>(at));
}

}  // namespace internal

class GuestView {
 public:
  GuestView() = default;

  [[nodiscard]] Gpa gpa() const { return gpa_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  // The part [offset, offset + length), or kGuestRange.
  [[nodiscard]] Result<GuestView> Sub(std::size_t offset, std::size_t length) const;

  template <GuestPod T>
  [[nodiscard]] Result<T> Read(std::size_t offset) const {
    if (!Fits(offset, sizeof(T))) return Err(Errc::kGuestRange, "read guest memory");
    T copy{};
    Fetch(base_ + offset, &copy);
    return copy;
  }
  template <GuestPod T>
  [[nodiscard]] Result<void> Write(std::size_t offset, const T& value) const {
    if (!Fits(offset, sizeof(T))) return Err(Errc::kGuestRange, "write guest memory");
    Put(base_ + offset, &value);
    MarkDirty(offset, sizeof(T));
    return {};
  }
  // Whole-buffer copies; fail without copying anything when they do not fit.
  [[nodiscard]] Result<void> CopyOut(std::size_t offset, std::span<std::byte> to) const;
  [[nodiscard]] Result<void> CopyIn(std::size_t offset, std::span<const std::byte> from) const;
  [[nodiscard]] Result<void> Fill(std::size_t offset, std::size_t length, std::byte value) const;

  // From one checked range to another, without a copy of ours between them. As memmove.
  [[nodiscard]] Result<void> CopyTo(std::size_t offset, const GuestView& to, std::size_t to_offset,
                                    std::size_t length, Stores stores = Stores::kCached) const {
    if (!Fits(offset, length) || !to.Fits(to_offset, length)) {
      return Err(Errc::kGuestRange, "copy in guest memory");
    }
    if (length == 0) return {};
    internal::MoveShared(to.base_ + to_offset, base_ + offset, length, stores);
    to.MarkDirty(to_offset, length);
    return {};
  }
  // The eight bytes of `pattern`, lowest first, over and over.
  [[nodiscard]] Result<void> FillPattern(std::size_t offset, std::size_t length,
                                         std::uint64_t pattern) const;
  // How many bytes are the same before the first that is not; `length` if all are. Each byte is
  // read once at most.
  [[nodiscard]] Result<std::size_t> SameAs(std::size_t offset, const GuestView& other,
                                           std::size_t other_offset, std::size_t length) const;
  [[nodiscard]] Result<std::size_t> SameAsPattern(std::size_t offset, std::size_t length,
                                                  std::uint64_t pattern) const;
  // Out of the host's caches (kEvict), or to memory and still in them (kKeep).
  [[nodiscard]] Result<void> FlushCache(std::size_t offset, std::size_t length,
                                        CacheLines lines) const;
  // Gives consume(span of bytes) the range in place, in order and whole, in one or more pieces. For
  // functions that only sum bytes up: one that reads a byte twice, or acts on what it reads, takes
  // a copy.
  template <typename F>
  [[nodiscard]] Result<void> Sum(std::size_t offset, std::size_t length, F&& consume) const {
    if (!Fits(offset, length)) return Err(Errc::kGuestRange, "read guest memory");
    internal::VisitShared(base_ + offset, length, consume);
    return {};
  }

  // For ring indices, little-endian in memory and native here. `offset` must be even relative to an
  // even gpa (the caller checked ring alignment) and fit the view: a caller's duty, established
  // once when the ring was mapped (CHECK).
  [[nodiscard]] std::uint16_t LoadAcquire16(std::size_t offset) const {
    CHECK(Fits(offset, 2) && internal::IsAligned<2>(base_ + offset));
    const auto raw = __atomic_load_n(internal::WordPointer<const std::uint16_t>(base_ + offset),
                                     __ATOMIC_ACQUIRE);
    return std::bit_cast<le16>(raw).get();
  }
  void StoreRelease16(std::size_t offset, std::uint16_t value) const {
    CHECK(Fits(offset, 2) && internal::IsAligned<2>(base_ + offset));
    __atomic_store_n(internal::WordPointer<std::uint16_t>(base_ + offset),
                     std::bit_cast<std::uint16_t>(le16(value)), __ATOMIC_RELEASE);
    MarkDirty(offset, 2);
  }
  // For words that publish what was written before, e.g. the first of a completion record; the same
  // duty, for 8.
  void StoreRelease64(std::size_t offset, std::uint64_t value) const {
    CHECK(Fits(offset, 8) && internal::IsAligned<8>(base_ + offset));
    __atomic_store_n(internal::WordPointer<std::uint64_t>(base_ + offset),
                     std::bit_cast<std::uint64_t>(le64(value)), __ATOMIC_RELEASE);
    MarkDirty(offset, 8);
  }

  // For readv/writev/io_uring: the kernel is the one that touches the bytes. A caller that lets the
  // kernel write through it calls MarkDirty when the I/O is complete.
  [[nodiscard]] iovec ToIovec() const { return {base_, size_}; }
  // What does not lie in the view is cut off.
  void MarkDirty(std::size_t offset, std::size_t length) const {
    if (dirty_ == nullptr || offset >= size_) return;
    dirty_->Mark(region_offset_ + offset, std::min(length, size_ - offset));
  }

 private:
  friend class GuestMemory;
  GuestView(Gpa gpa, std::byte* base, std::size_t size, DirtyBitmap* dirty,
            std::uint64_t region_offset)
      : gpa_(gpa), base_(base), size_(size), dirty_(dirty), region_offset_(region_offset) {}

  [[nodiscard]] bool Fits(std::size_t offset, std::size_t length) const {
    return offset <= size_ && size_ - offset >= length;
  }
  // Aligned 1/2/4/8-byte objects by one atomic access (a memcpy may tear or be repeated), others by
  // a copy the compiler may not look through.
  template <typename T>
  static void Fetch(const std::byte* from, T* to) {
    if constexpr (internal::kIsWord<sizeof(T)>) {
      if (internal::IsAligned<sizeof(T)>(from)) {
        const auto word = __atomic_load_n(
            internal::WordPointer<const internal::Word<sizeof(T)>>(from), __ATOMIC_RELAXED);
        std::memcpy(static_cast<void*>(to), &word, sizeof(T));
        return;
      }
    }
    internal::CopyShared(reinterpret_cast<std::byte*>(to), from, sizeof(T));
  }
  template <typename T>
  static void Put(std::byte* to, const T* from) {
    if constexpr (internal::kIsWord<sizeof(T)>) {
      if (internal::IsAligned<sizeof(T)>(to)) {
        internal::Word<sizeof(T)> word;
        std::memcpy(&word, from, sizeof(T));
        __atomic_store_n(internal::WordPointer<internal::Word<sizeof(T)>>(to), word,
                         __ATOMIC_RELAXED);
        return;
      }
    }
    internal::CopyShared(to, reinterpret_cast<const std::byte*>(from), sizeof(T));
  }

  Gpa gpa_;
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
  DirtyBitmap* dirty_ = nullptr;
  std::uint64_t region_offset_ = 0;
};

}  // namespace postern::memory
