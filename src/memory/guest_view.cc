#include "src/memory/guest_view.h"

namespace postern::memory {

Result<GuestView> GuestView::Sub(std::size_t offset, std::size_t length) const {
  if (!Fits(offset, length)) return Err(Errc::kGuestRange, "part of a guest range");
  // The address cannot wrap: the whole view lies in one region.
  return GuestView(Gpa(gpa_.value + offset), base_ + offset, length, dirty_,
                   region_offset_ + offset);
}

Result<void> GuestView::CopyOut(std::size_t offset, std::span<std::byte> to) const {
  if (!Fits(offset, to.size())) return Err(Errc::kGuestRange, "copy from guest memory");
  if (!to.empty()) internal::CopyShared(to.data(), base_ + offset, to.size());
  return {};
}

Result<void> GuestView::CopyIn(std::size_t offset, std::span<const std::byte> from) const {
  if (!Fits(offset, from.size())) return Err(Errc::kGuestRange, "copy to guest memory");
  if (from.empty()) return {};
  internal::CopyShared(base_ + offset, from.data(), from.size());
  MarkDirty(offset, from.size());
  return {};
}

Result<void> GuestView::Fill(std::size_t offset, std::size_t length, std::byte value) const {
  if (!Fits(offset, length)) return Err(Errc::kGuestRange, "fill guest memory");
  if (length == 0) return {};
#if defined(POSTERN_TSAN)
  auto* target = reinterpret_cast<unsigned char*>(base_ + offset);
  for (std::size_t i = 0; i < length; ++i) {
    __atomic_store_n(target + i, static_cast<unsigned char>(value), __ATOMIC_RELAXED);
  }
#else
  std::memset(base_ + offset, static_cast<int>(value), length);
  asm volatile("" : : : "memory");
#endif
  MarkDirty(offset, length);
  return {};
}

}  // namespace postern::memory
