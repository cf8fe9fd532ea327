#include "iommu/fake_dma_space.h"

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace postern::iommu {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

// Takes [first, last] out of ascending, disjoint ranges.
std::vector<IovaRange> Without(const std::vector<IovaRange>& ranges, const IovaRange& hole) {
  std::vector<IovaRange> left;
  for (const IovaRange& range : ranges) {
    if (hole.last < range.first || hole.first > range.last) {
      left.push_back(range);
      continue;
    }
    if (range.first < hole.first) left.push_back({range.first, hole.first - 1});
    if (range.last > hole.last) left.push_back({hole.last + 1, range.last});
  }
  return left;
}

std::vector<IovaRange> Narrowed(std::vector<IovaRange> ranges, const FakeHardware& hardware) {
  if (hardware.last != kAll) ranges = Without(ranges, {hardware.last + 1, kAll});
  for (const IovaRange& hole : hardware.reserved) ranges = Without(ranges, hole);
  return ranges;
}

bool Contained(const std::vector<IovaRange>& ranges, std::uint64_t iova, std::uint64_t length) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const IovaRange& range) { return range.Contains(iova, length); });
}

}  // namespace

std::vector<IovaRange> FakeDmaSpace::Ranges() const {
  std::vector<IovaRange> ranges = {{0, kAll}};
  for (const auto& [who, hardware] : attached_) ranges = Narrowed(std::move(ranges), hardware);
  return ranges;
}

std::uint64_t FakeDmaSpace::PageSizes() const {
  std::uint64_t sizes = ~std::uint64_t{4095};
  for (const auto& [who, hardware] : attached_) sizes &= hardware.page_sizes;
  return sizes;
}

std::uint64_t FakeDmaSpace::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [iova, mapping] : mappings_) sum += mapping.length;
  return sum;
}

std::vector<FakeMapping> FakeDmaSpace::mappings() const {
  std::vector<FakeMapping> all;
  for (const auto& [iova, mapping] : mappings_) all.push_back(mapping);
  return all;
}

int FakeDmaSpace::Check(std::uint64_t iova, std::uint64_t length) const {
  const std::uint64_t page = PageSizes() & -PageSizes();
  if (length == 0 || page == 0 || ((iova | length) & (page - 1)) != 0) return EINVAL;
  if (length - 1 > kAll - iova) return EINVAL;
  const auto after = mappings_.upper_bound(iova + (length - 1));
  if (after != mappings_.begin()) {
    const FakeMapping& before = std::prev(after)->second;
    if (before.iova + (before.length - 1) >= iova) return EEXIST;
  }
  return Contained(Ranges(), iova, length) ? 0 : EINVAL;
}

void FakeDmaSpace::Add(const FakeMapping& mapping) {
  mappings_[mapping.iova] = mapping;
}

std::int64_t FakeDmaSpace::Remove(std::uint64_t iova, std::uint64_t length) {
  const std::uint64_t last = iova + (length - 1);
  std::vector<std::uint64_t> inside;
  std::int64_t bytes = 0;
  for (const auto& [start, mapping] : mappings_) {
    const std::uint64_t end = start + (mapping.length - 1);
    if (end < iova || start > last) continue;
    if (start < iova || end > last) return -1;
    inside.push_back(start);
    bytes += static_cast<std::int64_t>(mapping.length);
  }
  for (const std::uint64_t start : inside) mappings_.erase(start);
  return bytes;
}

bool FakeDmaSpace::CanAttach(const FakeHardware& hardware) const {
  const std::vector<IovaRange> ranges = Narrowed(Ranges(), hardware);
  return std::all_of(mappings_.begin(), mappings_.end(), [&](const auto& entry) {
    return Contained(ranges, entry.second.iova, entry.second.length);
  });
}

std::byte* FakeDmaSpace::Dma(std::uint64_t iova, std::uint64_t length,
                             memory::Access access) const {
  auto after = mappings_.upper_bound(iova);
  if (attached_.empty() || after == mappings_.begin()) return nullptr;
  const FakeMapping& mapping = std::prev(after)->second;
  const std::uint64_t offset = iova - mapping.iova;
  if (offset >= mapping.length || length > mapping.length - offset) return nullptr;
  const auto allowed = static_cast<unsigned>(mapping.access);
  const auto wanted = static_cast<unsigned>(access);
  if ((allowed & wanted) != wanted) return nullptr;
  return mapping.address + offset;
}

}  // namespace postern::iommu
