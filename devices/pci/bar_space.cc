#include "devices/pci/bar_space.h"

#include <iterator>
#include <utility>

namespace postern::pci {

Claim::Claim(Claim&& other) noexcept
    : space_(std::exchange(other.space_, nullptr)), io_(other.io_), base_(other.base_) {}

Claim& Claim::operator=(Claim&& other) noexcept {
  if (this != &other) {
    Release();
    space_ = std::exchange(other.space_, nullptr);
    io_ = other.io_;
    base_ = other.base_;
  }
  return *this;
}

void Claim::Release() {
  BarSpace* space = std::exchange(space_, nullptr);
  if (space == nullptr) return;
  const MutexLock lock(space->mutex_);
  (io_ ? space->io_claims_ : space->memory_claims_).erase(base_);
}

Result<Claim> BarSpace::Take(bool io, std::uint64_t base, std::uint64_t size) {
  const bool inside =
      io ? ports_ != nullptr && windows_.io.Contains(base, size)
         : windows_.memory32.Contains(base, size) || windows_.memory64.Contains(base, size);
  if (!inside || size == 0)
    return Err(Errc::kGuestRange, "decode BAR outside the bridge's windows");
  const MutexLock lock(mutex_);
  Ranges& ranges = io ? io_claims_ : memory_claims_;
  const auto above = ranges.lower_bound(base);
  if (above != ranges.end() && above->first - base < size) return Err(Errc::kOverlap, "decode BAR");
  if (above != ranges.begin()) {
    const auto below = std::prev(above);
    if (base - below->first < below->second) return Err(Errc::kOverlap, "decode BAR");
  }
  ranges.emplace(base, size);
  return Claim(this, io, base);
}

}  // namespace postern::pci
