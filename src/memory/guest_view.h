#pragma once

// GuestView: a checked window on guest memory: [gpa, gpa + size) was proven to lie inside one RAM region when it was made.
//
//   GuestView view = TRY(memory.View(Gpa(0x1000), sizeof(Header), Access::kRead));
//   Header header = TRY(view.Read<Header>(0));     // one fetch into a private copy; validate the copy, use the copy
//
// Is not a pointer: there is no data(), no iterator, no span, so that guest memory cannot be read twice by accident.
// Ownership: borrows from the GuestMemory it came from and must not outlive that snapshot. Threads: any; the guest writes
// concurrently, and only LoadAcquire16/StoreRelease16 and naturally aligned 1/2/4/8-byte Read/Write are single-copy atomic.
// Every write marks the region's dirty bitmap, if it has one.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <sys/uio.h>

#include "src/base/result.h"
#include "src/memory/dirty_bitmap.h"
#include "src/memory/gpa.h"

namespace postern::memory {

template <typename T>
concept GuestPod = std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>;

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
    T copy;
    Fetch(base_ + offset, &copy, sizeof(T));
    return copy;
  }
  template <GuestPod T>
  [[nodiscard]] Result<void> Write(std::size_t offset, const T& value) const {
    if (!Fits(offset, sizeof(T))) return Err(Errc::kGuestRange, "write guest memory");
    Put(base_ + offset, &value, sizeof(T));
    MarkDirty(offset, sizeof(T));
    return {};
  }
  // Whole-buffer copies; fail without copying anything when they do not fit.
  [[nodiscard]] Result<void> CopyOut(std::size_t offset, std::span<std::byte> to) const;
  [[nodiscard]] Result<void> CopyIn(std::size_t offset, std::span<const std::byte> from) const;
  [[nodiscard]] Result<void> Fill(std::size_t offset, std::size_t length, std::byte value) const;

  // For ring indices. `offset` must be even relative to an even gpa (the caller checked ring alignment) and fit the view: a caller's
  // duty, established once when the ring was mapped (CHECK).
  [[nodiscard]] std::uint16_t LoadAcquire16(std::size_t offset) const;
  void StoreRelease16(std::size_t offset, std::uint16_t value) const;

  // For readv/writev/io_uring: the kernel is the one that touches the bytes. A caller that lets the kernel write through it calls
  // MarkDirty when the I/O is complete.
  [[nodiscard]] iovec ToIovec() const { return {base_, size_}; }
  void MarkDirty(std::size_t offset, std::size_t length) const {
    if (dirty_ != nullptr) dirty_->Mark(region_offset_ + offset, length);
  }

 private:
  friend class GuestMemory;
  GuestView(Gpa gpa, std::byte* base, std::size_t size, DirtyBitmap* dirty,
            std::uint64_t region_offset)
      : gpa_(gpa), base_(base), size_(size), dirty_(dirty), region_offset_(region_offset) {}

  [[nodiscard]] bool Fits(std::size_t offset, std::size_t length) const {
    return offset <= size_ && size_ - offset >= length;
  }
  // Aligned 1/2/4/8-byte objects by one atomic access (a memcpy may tear or be repeated), others by a copy the compiler may not
  // look through.
  static void Fetch(const std::byte* from, void* to, std::size_t size);
  static void Put(std::byte* to, const void* from, std::size_t size);

  Gpa gpa_;
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
  DirtyBitmap* dirty_ = nullptr;
  std::uint64_t region_offset_ = 0;
};

}  // namespace postern::memory
