#include "devices/siov/core/trapped_portal.h"

#include <algorithm>
#include <bit>

#include "src/base/check.h"

namespace postern::siov {
namespace {

constexpr std::uint64_t kWhole = ~std::uint64_t{0};

// Bytes [at, at + width) of a slot.
constexpr std::uint64_t Lanes(std::size_t at, std::size_t width) {
  return (width >= 64 ? kWhole : (std::uint64_t{1} << width) - 1) << at;
}

}  // namespace

TrappedPortal::Slot& TrappedPortal::At(std::uint32_t slot) {
  if (slots_.empty()) slots_.resize(kSlots);
  return slots_[slot];
}

void TrappedPortal::SetPresent(Slot& slot, std::uint64_t present) {
  if (slot.present == 0 && present != 0)
    counters_->partial_slots.fetch_add(1, std::memory_order_relaxed);
  if (slot.present != 0 && present == 0)
    counters_->partial_slots.fetch_sub(1, std::memory_order_relaxed);
  slot.present = present;
}

const Descriptor* TrappedPortal::Store(std::uint32_t offset, std::span<const std::byte> data) {
  CHECK(offset < kPageSize && data.size() <= kDescriptorSize);
  const std::size_t at = offset % kDescriptorSize;
  if (data.size() > kDescriptorSize - at) {
    counters_->straddles.Add();
    return nullptr;
  }
  counters_->stores.Add();
  Slot& slot = At(offset / kDescriptorSize);
  const std::uint64_t lanes = Lanes(at, data.size());
  counters_->overwritten_bytes.Add(static_cast<std::uint64_t>(std::popcount(slot.present & lanes)));
  std::ranges::copy(data, slot.bytes.begin() + static_cast<std::ptrdiff_t>(at));
  const bool whole = (slot.present | lanes) == kWhole;
  SetPresent(slot, whole ? 0 : slot.present | lanes);
  return whole ? &slot.bytes : nullptr;
}

void TrappedPortal::Overwrite(std::uint32_t offset) {
  CHECK(offset < kPageSize);
  if (slots_.empty()) return;
  Slot& slot = slots_[offset / kDescriptorSize];
  counters_->overwritten_bytes.Add(static_cast<std::uint64_t>(std::popcount(slot.present)));
  SetPresent(slot, 0);
}

void TrappedPortal::Clear() {
  for (Slot& slot : slots_) SetPresent(slot, 0);
}

void TrappedPortal::Save(std::uint32_t queue, std::uint32_t page,
                         std::vector<PartialSlot>& to) const {
  for (std::uint32_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.present == 0) continue;
    PartialSlot partial{.queue = queue, .page = page, .slot = i, .present = slot.present};
    for (std::size_t b = 0; b < kDescriptorSize; ++b) {
      if ((slot.present >> b & 1) != 0) partial.bytes[b] = slot.bytes[b];
    }
    to.push_back(partial);
  }
}

Result<void> TrappedPortal::Restore(const PartialSlot& partial) {
  if (partial.slot >= kSlots || partial.present == 0 || partial.present == kWhole)
    return Err(Errc::kBadFormat, "partial slot of a portal");
  for (std::size_t b = 0; b < kDescriptorSize; ++b) {
    if ((partial.present >> b & 1) == 0 && partial.bytes[b] != std::byte{0})
      return Err(Errc::kBadFormat, "bytes of a portal's partial slot");
  }
  Slot& slot = At(partial.slot);
  if (slot.present != 0) return Err(Errc::kBadFormat, "partial slot of a portal, twice");
  SetPresent(slot, partial.present);
  slot.bytes = partial.bytes;
  return {};
}

}  // namespace postern::siov
