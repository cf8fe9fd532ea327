#pragma once

// PasidDevice: a VFIO device file whose DMA goes to a table of its own for each PASID, so that
// several guests of one process can share the device: nothing is reachable without a PASID, and
// with one what its owner mapped.
//
//   auto device = TRY(PasidDevice::Open(calls, std::move(file)));
//   auto space = TRY(device->NewSpace());                  // of one guest; map its memory there
//   const std::uint32_t pasid = TRY(device->Attach(*space));  // its descriptors go there
//   ...
//   TRY(device->Detach(pasid));                            // before the space goes
//
// The kernel's order, kept here: bind the device; a page table that allows PASIDs (over an address
// space with nothing in it) for what has none, attached first; then for each guest such a table
// over its address space, attached at its PASID. A table over an address space directly, without
// the allowance, is refused by the kernel in either place.
//
// Is not: a HostDevice (KernelHost::OpenShared makes one of the same file), nor a program of the
// device that lets it use a PASID: that is its driver's (DsaHost). Not run on a kernel so far: the
// fake of its test keeps the order.
//
// Errors: kUnsupported where the kernel has no PASIDs for VFIO (before Linux 6.15), or its IOMMU no
// scalable mode; kSystem; kExhausted, kNotFound of a PASID.
// Ownership: of the descriptor and the iommufd; spaces outlive their attachment and go before this.
// Threads: any; calls exclude each other. Source: Linux 6.15
// Documentation/userspace-api/iommufd.rst, drivers/vfio/iommufd.c, drivers/iommu/iommufd/device.c.

#include <cstdint>
#include <map>
#include <memory>

#include "iommu/ioas.h"
#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/mutex.h"
#include "src/base/result.h"

namespace postern::vfio {

class PasidDevice {
 public:
  static constexpr std::uint32_t kMaxPasid = 0xfffff;

  // `file`: a device file (/dev/vfio/devices/vfioN) nobody has bound. Opens /dev/iommu if no
  // iommufd is given.
  [[nodiscard]] static Result<std::unique_ptr<PasidDevice>> Open(KernelCalls& calls, Fd file,
                                                                 Fd iommufd = {});
  // Everything is detached.
  ~PasidDevice();
  PasidDevice(const PasidDevice&) = delete;
  PasidDevice& operator=(const PasidDevice&) = delete;

  [[nodiscard]] int file() const { return file_.get(); }
  // What the device reaches without a PASID: nothing, as long as nobody maps something here.
  [[nodiscard]] iommu::AddressSpace& nothing() { return *nothing_; }
  [[nodiscard]] Result<std::unique_ptr<iommu::Ioas>> NewSpace();
  // `space` is one of NewSpace. The lowest PASID that is free, as devices have fewer bits of it
  // than 20; 0 is the kernel's own. Call the space's Attached afterwards.
  [[nodiscard]] Result<std::uint32_t> Attach(const iommu::Ioas& space);
  // When it returns the device reaches nothing by this PASID.
  [[nodiscard]] Result<void> Detach(std::uint32_t pasid);

 private:
  PasidDevice(KernelCalls& calls, Fd file) : calls_(calls), file_(std::move(file)) {}
  [[nodiscard]] Result<void> Init(Fd iommufd);
  [[nodiscard]] Result<std::uint32_t> NewTable(std::uint32_t ioas);
  void DestroyTable(std::uint32_t table);

  KernelCalls& calls_;
  const Fd file_;
  std::unique_ptr<iommu::Ioas> nothing_;  // what there is to reach without a PASID
  std::uint32_t device_id_ = 0;           // the iommufd's number of the device
  std::uint32_t table_ = 0;               // over nothing_
  bool attached_ = false;
  Mutex mutex_;                                                       // held over ioctls
  std::map<std::uint32_t, std::uint32_t> tables_ GUARDED_BY(mutex_);  // by PASID
};

}  // namespace postern::vfio
