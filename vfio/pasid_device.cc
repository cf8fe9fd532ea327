#include "vfio/pasid_device.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "src/base/failure.h"
#include "src/base/log.h"
#include "vfio/pasid_abi.h"

namespace postern::vfio {
namespace {

constexpr std::uint32_t kBindSize =
    offsetof(vfio_device_bind_iommufd, out_devid) + sizeof(vfio_device_bind_iommufd::out_devid);
constexpr std::uint32_t kAttachSize =
    offsetof(vfio_device_attach_iommufd_pt, pt_id) + sizeof(vfio_device_attach_iommufd_pt::pt_id);

// A kernel that does not know the flag answers EOPNOTSUPP or EINVAL.
template <typename T>
Result<T> KnownToKernel(Result<T> result, const char* what) {
  if (result || result.error().code != Errc::kSystem) return result;
  const int error = result.error().sys_errno;
  if (error == EOPNOTSUPP || error == EINVAL || error == ENOTTY)
    return Err(Errc::kUnsupported, what);
  return result;
}

}  // namespace

Result<std::unique_ptr<PasidDevice>> PasidDevice::Open(KernelCalls& calls, Fd file, Fd iommufd) {
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  std::unique_ptr<PasidDevice> device(new PasidDevice(calls, std::move(file)));
  TRY(device->Init(std::move(iommufd)));
  return device;
}

Result<void> PasidDevice::Init(Fd iommufd) {
  nothing_ = TRY(iommu::Ioas::Open(calls_, std::move(iommufd)));
  vfio_device_bind_iommufd bind{.argsz = kBindSize, .flags = 0, .iommufd = nothing_->iommufd()};
  TRY(calls_.Ioctl(file_.get(), VFIO_DEVICE_BIND_IOMMUFD, &bind, "VFIO_DEVICE_BIND_IOMMUFD"));
  device_id_ = bind.out_devid;
  table_ = TRY(NewTable(nothing_->id()));
  vfio_device_attach_iommufd_pt attach{.argsz = kAttachSize, .flags = 0, .pt_id = table_};
  TRY(calls_.Ioctl(file_.get(), VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach,
                   "VFIO_DEVICE_ATTACH_IOMMUFD_PT"));
  attached_ = true;
  return {};
}

PasidDevice::~PasidDevice() {
  while (true) {
    std::uint32_t pasid = 0;
    {
      const MutexLock lock(mutex_);
      if (tables_.empty()) break;
      pasid = tables_.begin()->first;
    }
    if (const Result<void> detached = Detach(pasid); !detached) {
      LOG_WARN("vfio", "PASID {}: {}", pasid, Describe(detached.error()));
      // Closing the device detaches it.
      const MutexLock lock(mutex_);
      tables_.erase(pasid);
    }
  }
  if (attached_) {
    vfio_device_detach_iommufd_pt detach{.argsz = sizeof(detach), .flags = 0};
    (void)calls_.Ioctl(file_.get(), VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach,
                       "VFIO_DEVICE_DETACH_IOMMUFD_PT");
  }
  if (table_ != 0) DestroyTable(table_);
}

Result<std::unique_ptr<iommu::Ioas>> PasidDevice::NewSpace() {
  Fd copy(fcntl(nothing_->iommufd(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return SysError("duplicate iommufd");
  return iommu::Ioas::Open(calls_, std::move(copy));
}

Result<std::uint32_t> PasidDevice::NewTable(std::uint32_t ioas) {
  iommu_hwpt_alloc alloc{};
  alloc.size = sizeof(alloc);
  alloc.flags = kHwptAllocPasid;
  alloc.dev_id = device_id_;
  alloc.pt_id = ioas;
  TRY(KnownToKernel(calls_.Ioctl(nothing_->iommufd(), IOMMU_HWPT_ALLOC, &alloc, "IOMMU_HWPT_ALLOC"),
                    "page tables for PASIDs (Linux 6.15 and an IOMMU in scalable mode)"));
  return alloc.out_hwpt_id;
}

void PasidDevice::DestroyTable(std::uint32_t table) {
  iommu_destroy destroy{};
  destroy.size = sizeof(destroy);
  destroy.id = table;
  const Result<int> done =
      calls_.Ioctl(nothing_->iommufd(), IOMMU_DESTROY, &destroy, "IOMMU_DESTROY");
  if (!done) LOG_WARN("vfio", "page table {}: {}", table, Describe(done.error()));
}

Result<std::uint32_t> PasidDevice::Attach(const iommu::Ioas& space) {
  const MutexLock lock(mutex_);
  std::uint32_t pasid = 1;
  while (tables_.contains(pasid)) ++pasid;
  if (pasid > kMaxPasid) return Err(Errc::kExhausted, "PASIDs");
  const std::uint32_t table = TRY(NewTable(space.id()));
  AttachPasidPt attach{
      .argsz = sizeof(attach), .flags = kAttachPasid, .pt_id = table, .pasid = pasid};
  const Result<int> attached =
      KnownToKernel(calls_.Ioctl(file_.get(), VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach,
                                 "VFIO_DEVICE_ATTACH_IOMMUFD_PT"),
                    "attaching a PASID (Linux 6.15)");
  if (!attached) {
    DestroyTable(table);
    return Unexpected(attached.error());
  }
  tables_.emplace(pasid, table);
  return pasid;
}

Result<void> PasidDevice::Detach(std::uint32_t pasid) {
  const MutexLock lock(mutex_);
  const auto found = tables_.find(pasid);
  if (found == tables_.end()) return Err(Errc::kNotFound, "PASID");
  DetachPasidPt detach{.argsz = sizeof(detach), .flags = kDetachPasid, .pasid = pasid};
  TRY(calls_.Ioctl(file_.get(), VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach,
                   "VFIO_DEVICE_DETACH_IOMMUFD_PT"));
  DestroyTable(found->second);
  tables_.erase(found);
  return {};
}

}  // namespace postern::vfio
