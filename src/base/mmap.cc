#include "src/base/mmap.h"

#include <sys/mman.h>

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
