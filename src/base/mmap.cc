#include "src/base/mmap.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <limits>

namespace postern {

Result<Mmap> Mmap::Create(std::size_t size, int prot, int flags, int fd, std::uint64_t offset) {
  if (size == 0) return Err(Errc::kInvalidArgument, "mmap of nothing");
  if (offset > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return Err(Errc::kInvalidArgument, "mmap offset");
  }
  if (fd < 0) flags |= MAP_ANONYMOUS;
  void* base = mmap(nullptr, size, prot, flags, fd, static_cast<off_t>(offset));
  if (base == MAP_FAILED) return SysError("mmap");
  return Mmap(static_cast<std::byte*>(base), size);
}

Result<Mmap> Mmap::CreateCongruent(std::size_t size, int prot, int flags, int fd,
                                   std::uint64_t offset) {
  constexpr std::size_t kSmallestHugePage = std::size_t{2} << 20;
  constexpr std::size_t kLargestHugePage = std::size_t{1} << 30;
  if (fd < 0 || size < kSmallestHugePage || size > std::numeric_limits<std::size_t>::max() / 2 ||
      size % static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) != 0 ||
      offset > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return Create(size, prot, flags, fd, offset);
  }
  const std::size_t alignment = std::min(std::bit_floor(size), kLargestHugePage);
  // Address space with such a place somewhere in it; what is beside that place is given back.
  Result<Mmap> space =
      Create(size + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!space) return Create(size, prot, flags, fd, offset);
  const std::size_t skip =
      (static_cast<std::size_t>(offset) - reinterpret_cast<std::uintptr_t>(space->data())) &
      (alignment - 1);
  std::byte* const place = space->data() + skip;
  if (mmap(place, size, prot, flags | MAP_FIXED, fd, static_cast<off_t>(offset)) == MAP_FAILED) {
    return SysError("mmap");
  }
  // Whole pages on both sides: as in Unmap, these do not fail.
  if (skip != 0) munmap(space->data(), skip);
  munmap(place + size, alignment - skip);
  space->base_ = place;
  space->size_ = size;
  return space;
}

Mmap& Mmap::operator=(Mmap&& other) noexcept {
  if (this != &other) {
    Unmap();
    base_ = std::exchange(other.base_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

void Mmap::Unmap() {
  if (base_ == nullptr) return;
  // Fails only for arguments that are not a mapping's, or when splitting one needs memory: both
  // impossible for a whole mapping.
  munmap(std::exchange(base_, nullptr), std::exchange(size_, 0));
}

}  // namespace postern
