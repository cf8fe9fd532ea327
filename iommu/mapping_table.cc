#include "iommu/mapping_table.h"

#include <algorithm>
#include <iterator>

namespace postern::iommu {
namespace {

// Memory comes in pages of the host, whatever an IOMMU could map.
constexpr std::uint64_t kHostPage = 4096;

std::uint64_t SmallestPage(const Limits& limits) {
  return std::max(kHostPage, limits.page_sizes & -limits.page_sizes);
}

}  // namespace

Result<void> MappingTable::Check(Iova at, const HostRange& from, const Limits& limits) const {
  const auto address = reinterpret_cast<std::uintptr_t>(from.address);
  if (from.length == 0 || !at.CheckedAdd(from.length - 1)) {
    return Err(Errc::kInvalidArgument, "length of a DMA mapping");
  }
  if (from.address == nullptr || !CheckedAdd(address, from.length - 1) ||
      !CheckedAdd(from.offset, from.length)) {
    return Err(Errc::kInvalidArgument, "memory of a DMA mapping");
  }
  const std::uint64_t mask = SmallestPage(limits) - 1;
  if (((at.value | from.length | address | from.offset) & mask) != 0) {
    return Err(Errc::kInvalidArgument, "alignment of a DMA mapping");
  }
  if (Overlaps(at, from.length)) return Err(Errc::kOverlap, "DMA mapping");
  if (!limits.Allows(at, from.length)) return Err(Errc::kGuestRange, "DMA mapping");
  return {};
}

// The last mapping that starts at or below the end of [at, at + length) is the only one that can
// reach into it: the table's mappings are disjoint.
bool MappingTable::Overlaps(Iova at, std::uint64_t length) const {
  const auto after = mappings_.upper_bound(Iova(at.value + (length - 1)));
  if (after == mappings_.begin()) return false;
  const auto& [start, mapping] = *std::prev(after);
  return start.value + (mapping.from.length - 1) >= at.value;
}

void MappingTable::Add(Iova at, const HostRange& from, memory::Access access) {
  mappings_[at] = Mapping{.from = from, .access = access};
}

void MappingTable::Remove(Iova at) {
  mappings_.erase(at);
}

const Mapping* MappingTable::Find(Iova at, std::uint64_t length) const {
  const auto found = mappings_.find(at);
  if (found == mappings_.end() || found->second.from.length != length) return nullptr;
  return &found->second;
}

std::optional<Iova> MappingTable::FirstOutside(const Limits& limits) const {
  for (const auto& [at, mapping] : mappings_) {
    if (!limits.Allows(at, mapping.from.length)) return at;
  }
  return std::nullopt;
}

}  // namespace postern::iommu
