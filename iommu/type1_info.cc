// ParseType1Info: what a container says of itself.

#include <linux/vfio.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "iommu/type1.h"
#include "iommu/vfio_info.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kHostPage = 4096;
// Interrupt messages of x86 are writes to this window: never memory. Intel SDM 3A, 11.11.
constexpr IovaRange kBelowMsi = {0, 0xfedfffff};
constexpr IovaRange kAboveMsi = {0xfef00000, ~std::uint64_t{0}};

Unexpected Malformed() {
  return SysError("VFIO_IOMMU_GET_INFO", EPROTO);
}

// The fixed part of a capability's struct; what follows it is the rest of `bytes`.
template <typename T>
Result<T> Fixed(std::span<const std::byte> bytes, std::size_t size = sizeof(T)) {
  T value{};
  if (bytes.size() < size) return Malformed();
  std::memcpy(&value, bytes.data(), size);
  return value;
}

Result<std::vector<IovaRange>> ParseRanges(std::span<const std::byte> bytes) {
  constexpr std::size_t kHead = offsetof(vfio_iommu_type1_info_cap_iova_range, iova_ranges);
  // Not the whole struct: its flexible array does not fit into a Result.
  constexpr std::size_t kCount = offsetof(vfio_iommu_type1_info_cap_iova_range, nr_iovas);
  if (bytes.size() < kHead) return Malformed();
  const auto count = TRY(Fixed<std::uint32_t>(bytes.subspan(kCount)));
  const std::span<const std::byte> list = bytes.subspan(kHead);
  if (count > list.size() / sizeof(vfio_iova_range)) return Malformed();
  std::vector<IovaRange> ranges;
  ranges.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto range = TRY(Fixed<vfio_iova_range>(list.subspan(i * sizeof(vfio_iova_range))));
    if (range.start > range.end) return Malformed();
    if (!ranges.empty() && range.start <= ranges.back().last) return Malformed();
    ranges.push_back({range.start, range.end});
  }
  return ranges;
}

Result<void> ParseCapability(const VfioCapability& cap, Type1Info& info) {
  if (cap.version != 1) return {};  // of a kernel to come: not for us
  switch (cap.id) {
    case VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
      info.limits.ranges = TRY(ParseRanges(cap.bytes));
      return {};
    case VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: {
      const auto migration = TRY(Fixed<vfio_iommu_type1_info_cap_migration>(cap.bytes));
      info.dirty_page_sizes = migration.pgsize_bitmap;
      info.max_dirty_bitmap_bytes = migration.max_dirty_bitmap_size;
      return {};
    }
    case VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
      info.limits.mappings_left = TRY(Fixed<vfio_iommu_type1_info_dma_avail>(cap.bytes)).avail;
      return {};
    default:
      return {};
  }
}

}  // namespace

Type1Info DefaultType1Info() {
  Type1Info info;
  info.limits.ranges = {kBelowMsi, kAboveMsi};
  info.limits.page_sizes = kHostPage;
  return info;
}

Result<Type1Info> ParseType1Info(std::span<const std::byte> bytes) {
  // Kernels before 5.4 end with iova_pgsizes.
  constexpr std::size_t kOld = offsetof(vfio_iommu_type1_info, cap_offset);
  const auto fixed = TRY(Fixed<vfio_iommu_type1_info>(
      bytes, bytes.size() < sizeof(vfio_iommu_type1_info) ? kOld : sizeof(vfio_iommu_type1_info)));
  Type1Info info = DefaultType1Info();
  if ((fixed.flags & VFIO_IOMMU_INFO_PGSIZES) != 0) info.limits.page_sizes = fixed.iova_pgsizes;
  if (info.limits.page_sizes == 0) return Malformed();
  if ((fixed.flags & VFIO_IOMMU_INFO_CAPS) != 0) {
    TRY(WalkVfioCapabilities(
        bytes, fixed.cap_offset, sizeof(fixed),
        [&](const VfioCapability& cap) { return ParseCapability(cap, info); }));
  }
  return info;
}

}  // namespace postern::iommu
