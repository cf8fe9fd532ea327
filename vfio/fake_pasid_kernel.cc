#include "vfio/fake_pasid_kernel.h"

#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "vfio/pasid_abi.h"

namespace postern::vfio {

Result<int> FakePasidKernel::IoctlRaw(int fd, unsigned long request, unsigned long argument,
                                      const char* op) {
  switch (request) {
    case IOMMU_HWPT_ALLOC:
      return Alloc(fd, argument, op);
    case VFIO_DEVICE_BIND_IOMMUFD:
      order.emplace_back("bind");
      break;
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
      return Attach(fd, argument, op);
    case VFIO_DEVICE_DETACH_IOMMUFD_PT:
      return Detach(fd, argument, op);
    case IOMMU_DESTROY:
      return Destroy(fd, argument, op);
    default:
      break;
  }
  return fake.IoctlRaw(fd, request, argument, op);
}

Result<int> FakePasidKernel::Alloc(int fd, unsigned long argument, const char* op) {
  auto* alloc = reinterpret_cast<iommu_hwpt_alloc*>(argument);
  if (alloc->flags != kHwptAllocPasid) return fake.IoctlRaw(fd, IOMMU_HWPT_ALLOC, argument, op);
  if (!tables) return SysError(op, EOPNOTSUPP);
  if (alloc->dev_id != 1) return SysError(op, ENOENT);
  alloc->flags = 0;
  const std::uint32_t space = alloc->pt_id;
  const Result<int> done = fake.IoctlRaw(fd, IOMMU_HWPT_ALLOC, argument, op);
  if (done) {
    allowing_.insert(alloc->out_hwpt_id);
    spaces[alloc->out_hwpt_id] = space;
    order.emplace_back("table");
  }
  return done;
}

Result<int> FakePasidKernel::Attach(int fd, unsigned long argument, const char* op) {
  AttachPasidPt attach;
  std::uint32_t size = 0;
  std::memcpy(&size, reinterpret_cast<const void*>(argument), sizeof(size));
  std::memcpy(&attach, reinterpret_cast<const void*>(argument),
              std::min<std::size_t>(size, sizeof(attach)));
  if (attach.flags == 0) {
    const Result<int> done = fake.IoctlRaw(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, argument, op);
    if (done) {
      allowed_ = allowing_.contains(attach.pt_id);
      order.emplace_back("attach");
    }
    return done;
  }
  if (!attaches || size < sizeof(attach) || attach.flags != kAttachPasid)
    return SysError(op, EINVAL);
  // "Otherwise attaching a PASID will be blocked", of the table without one; and the like.
  if (!allowed_ || !allowing_.contains(attach.pt_id)) return SysError(op, EINVAL);
  if (attached.contains(attach.pasid)) return SysError(op, EBUSY);
  attached[attach.pasid] = attach.pt_id;
  order.push_back("attach " + std::to_string(attach.pasid));
  return 0;
}

Result<int> FakePasidKernel::Detach(int fd, unsigned long argument, const char* op) {
  std::array<std::uint32_t, 2> head{};  // argsz and flags
  std::memcpy(head.data(), reinterpret_cast<const void*>(argument), sizeof(head));
  DetachPasidPt detach;
  if (head[1] == 0) {
    if (!attached.empty()) return SysError(op, EBUSY);
    order.emplace_back("detach");
    return fake.IoctlRaw(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, argument, op);
  }
  std::memcpy(&detach, reinterpret_cast<const void*>(argument), sizeof(detach));
  if (attached.erase(detach.pasid) == 0) return SysError(op, EINVAL);
  order.push_back("detach " + std::to_string(detach.pasid));
  return 0;
}

Result<int> FakePasidKernel::Destroy(int fd, unsigned long argument, const char* op) {
  const std::uint32_t id = reinterpret_cast<const iommu_destroy*>(argument)->id;
  if (!allowing_.contains(id)) return fake.IoctlRaw(fd, IOMMU_DESTROY, argument, op);
  for (const auto& [pasid, table] : attached) {
    if (table == id) return SysError(op, EBUSY);
  }
  const Result<int> done = fake.IoctlRaw(fd, IOMMU_DESTROY, argument, op);
  if (!done) return done;
  allowing_.erase(id);
  spaces.erase(id);
  order.emplace_back("destroy table");
  return done;
}

}  // namespace postern::vfio
