#pragma once

// What newer kernels have in <linux/vfio.h> and <linux/iommufd.h> for PASIDs, and the headers we
// build with (6.12) have not. Source: Linux 6.15 include/uapi/linux/vfio.h, structs
// vfio_device_attach_iommufd_pt and vfio_device_detach_iommufd_pt; include/uapi/linux/iommufd.h,
// enum iommufd_hwpt_alloc_flags.

#include <linux/vfio.h>

#include <cstddef>
#include <cstdint>

namespace postern::vfio {

// VFIO_DEVICE_ATTACH_IOMMUFD_PT with VFIO_DEVICE_ATTACH_PASID.
struct AttachPasidPt {
  std::uint32_t argsz = 0;
  std::uint32_t flags = 0;
  std::uint32_t pt_id = 0;
  std::uint32_t pasid = 0;
};
static_assert(sizeof(AttachPasidPt) == 16 &&
              offsetof(AttachPasidPt, pt_id) == offsetof(vfio_device_attach_iommufd_pt, pt_id));

// VFIO_DEVICE_DETACH_IOMMUFD_PT with VFIO_DEVICE_DETACH_PASID.
struct DetachPasidPt {
  std::uint32_t argsz = 0;
  std::uint32_t flags = 0;
  std::uint32_t pasid = 0;
};
static_assert(sizeof(DetachPasidPt) == 12 &&
              offsetof(DetachPasidPt, flags) == offsetof(vfio_device_detach_iommufd_pt, flags));

constexpr std::uint32_t kAttachPasid = 1U << 0;     // VFIO_DEVICE_ATTACH_PASID
constexpr std::uint32_t kDetachPasid = 1U << 0;     // VFIO_DEVICE_DETACH_PASID
constexpr std::uint32_t kHwptAllocPasid = 1U << 3;  // IOMMU_HWPT_ALLOC_PASID

}  // namespace postern::vfio
