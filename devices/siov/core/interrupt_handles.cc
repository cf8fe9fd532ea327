#include "devices/siov/core/interrupt_handles.h"

#include <algorithm>

namespace postern::siov {
namespace {

constexpr std::uint64_t kOpen = std::uint64_t{1} << 63;

constexpr std::uint64_t Entry(std::uint32_t handle, std::uint16_t vector) {
  return kOpen | std::uint64_t{vector} << 32 | handle;
}
constexpr bool Holds(std::uint64_t entry, std::uint32_t handle) {
  return (entry & kOpen) != 0 && static_cast<std::uint32_t>(entry) == handle;
}
constexpr std::uint16_t VectorIn(std::uint64_t entry) {
  return static_cast<std::uint16_t>(entry >> 32);
}

}  // namespace

InterruptHandles::InterruptHandles(std::uint16_t vectors)
    : vectors_(vectors),
      capacity_(std::max<std::size_t>(2 * std::size_t{vectors}, 1)),
      entries_(std::make_unique<std::atomic<std::uint64_t>[]>(capacity_)) {}

Result<void> InterruptHandles::Open(std::uint32_t handle, std::uint16_t vector) {
  if (vector >= vectors_) return Err(Errc::kInvalidArgument, "interrupt handle's vector");
  if (IsHandle(handle)) return Err(Errc::kOverlap, "interrupt handle");
  for (std::size_t i = 0; i < capacity_; ++i) {
    std::atomic<std::uint64_t>& entry = entries_[(Home(handle) + i) % capacity_];
    if ((entry.load(std::memory_order_relaxed) & kOpen) != 0) continue;
    entry.store(Entry(handle, vector), std::memory_order_release);  // pairs with VectorOf
    return {};
  }
  return Err(Errc::kExhausted, "interrupt handles");
}

bool InterruptHandles::Close(std::uint32_t handle) {
  for (std::size_t i = 0; i < capacity_; ++i) {
    std::atomic<std::uint64_t>& entry = entries_[(Home(handle) + i) % capacity_];
    if (!Holds(entry.load(std::memory_order_relaxed), handle)) continue;
    entry.store(0, std::memory_order_release);
    return true;
  }
  return false;
}

std::uint32_t InterruptHandles::RevokeAll() {
  std::uint32_t open = 0;
  for (std::size_t i = 0; i < capacity_; ++i) {
    if ((entries_[i].exchange(0, std::memory_order_acq_rel) & kOpen) != 0) ++open;
  }
  return open;
}

std::optional<std::uint16_t> InterruptHandles::VectorOf(std::uint32_t handle) const {
  for (std::size_t i = 0; i < capacity_; ++i) {
    const std::uint64_t entry =
        entries_[(Home(handle) + i) % capacity_].load(std::memory_order_acquire);
    if (Holds(entry, handle)) return VectorIn(entry);
  }
  return std::nullopt;
}

std::vector<std::uint32_t> InterruptHandles::List() const {
  std::vector<std::uint32_t> handles;
  for (std::size_t i = 0; i < capacity_; ++i) {
    const std::uint64_t entry = entries_[i].load(std::memory_order_relaxed);
    if ((entry & kOpen) != 0) handles.push_back(static_cast<std::uint32_t>(entry));
  }
  std::ranges::sort(handles);
  return handles;
}

}  // namespace postern::siov
