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
  return FillPattern(offset, length, static_cast<std::uint64_t>(value) * 0x0101010101010101);
}

Result<void> GuestView::FillPattern(std::size_t offset, std::size_t length,
                                    std::uint64_t pattern) const {
  if (!Fits(offset, length)) return Err(Errc::kGuestRange, "fill guest memory");
  if (length == 0) return {};
  internal::FillShared(base_ + offset, length, pattern);
  MarkDirty(offset, length);
  return {};
}

Result<std::size_t> GuestView::SameAs(std::size_t offset, const GuestView& other,
                                      std::size_t other_offset, std::size_t length) const {
  if (!Fits(offset, length) || !other.Fits(other_offset, length)) {
    return Err(Errc::kGuestRange, "compare guest memory");
  }
  if (length == 0) return length;
  return internal::SameShared(base_ + offset, other.base_ + other_offset, length);
}

Result<std::size_t> GuestView::SameAsPattern(std::size_t offset, std::size_t length,
                                             std::uint64_t pattern) const {
  if (!Fits(offset, length)) return Err(Errc::kGuestRange, "compare guest memory");
  if (length == 0) return length;
  return internal::SameSharedPattern(base_ + offset, length, pattern);
}

Result<void> GuestView::FlushCache(std::size_t offset, std::size_t length, CacheLines lines) const {
  if (!Fits(offset, length)) return Err(Errc::kGuestRange, "flush guest memory");
  if (length > 0) internal::FlushShared(base_ + offset, length, lines);
  return {};
}

}  // namespace postern::memory
