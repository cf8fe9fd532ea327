#pragma once

// What newer kernels have in <linux/iommufd.h> and the header we build with (6.12) has not.
// Source: Linux 6.13 include/uapi/linux/iommufd.h, struct iommu_ioas_map_file.

#include <linux/ioctl.h>
#include <linux/iommufd.h>

#include <cstdint>

namespace postern::iommu {

// IOMMU_IOAS_MAP_FILE: as IOMMU_IOAS_MAP, but of [start, start + length) of a memfd rather than of
// this process's addresses.
struct IoasMapFile {
  std::uint32_t size = 0;
  std::uint32_t flags = 0;  // enum iommufd_ioas_map_flags
  std::uint32_t ioas_id = 0;
  std::int32_t fd = -1;
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  std::uint64_t iova = 0;
};
static_assert(sizeof(IoasMapFile) == 40);

constexpr unsigned long kIoasMapFile = _IO(IOMMUFD_TYPE, 0x8f);
static_assert(kIoasMapFile == 0x3b8f);

}  // namespace postern::iommu
