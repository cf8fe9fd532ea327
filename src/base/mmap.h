#pragma once

// Mmap: sole owner of a mapping made by mmap(2). Move-only; unmaps once.
// The owner of a mapping that KVM or an IOMMU also maps removes it there first; nothing here knows
// about them.

#include <cstddef>
#include <cstdint>
#include <utility>

#include "src/base/result.h"

namespace postern {

class Mmap {
 public:
  Mmap() = default;
  // `prot`, `flags`, `fd`, `offset` as mmap(2). `fd` is -1 for anonymous memory and is not kept.
  [[nodiscard]] static Result<Mmap> Create(std::size_t size, int prot, int flags, int fd = -1,
                                           std::uint64_t offset = 0);
  // The same of a file, at an address that is congruent with `offset` modulo the largest power of
  // two in `size` up to 1 GiB, so that huge pages can map it. Anywhere, if there is no such place.
  [[nodiscard]] static Result<Mmap> CreateCongruent(std::size_t size, int prot, int flags, int fd,
                                                    std::uint64_t offset);
  Mmap(Mmap&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mmap& operator=(Mmap&& other) noexcept;
  Mmap(const Mmap&) = delete;
  Mmap& operator=(const Mmap&) = delete;
  ~Mmap() { Unmap(); }

  [[nodiscard]] std::byte* data() const { return base_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  void Unmap();

 private:
  Mmap(std::byte* base, std::size_t size) : base_(base), size_(size) {}
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace postern
