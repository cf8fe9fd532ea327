#pragma once

// Group: an IOMMU group this process holds for all its devices: one descriptor, one container, one
// entry in KVM's list.
//
//   auto group = Group::Open(calls, device, "/dev", -1);
//   TRY((*group)->Attach(container));       // guest memory is mapped now
//   TRY((*group)->Announce(files));         // KVM knows before a device is opened
//   Fd fd = TRY((*group)->OpenDevice("0000:3b:00.0"));
//
// Is not: the devices, nor the choice of a container (KernelHost makes it). Destroyed after its
// devices were closed: KVM forgets the group, it leaves the container, it is closed.
//
// Ownership: of the descriptor; the container and `files` outlive it. Threads: control thread.
// Source: Linux Documentation/driver-api/vfio.rst.

#include <memory>
#include <string>

#include "iommu/type1.h"
#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/result.h"
#include "src/bus/vfio_files.h"
#include "vfio/sysfs_device.h"

namespace postern::vfio {

class Group {
 public:
  // The device's group, viable; through `given` (an open group, duplicated) if that is not -1.
  [[nodiscard]] static Outcome<std::unique_ptr<Group>> Open(KernelCalls& calls,
                                                            const SysfsDevice& device,
                                                            const std::string& dev_root, int given);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  [[nodiscard]] Result<void> Attach(iommu::Type1Container& container);
  // Null: there is no KVM.
  [[nodiscard]] Result<void> Announce(bus::VfioFiles* files);
  [[nodiscard]] Result<Fd> OpenDevice(const std::string& name);

  [[nodiscard]] unsigned number() const { return number_; }
  [[nodiscard]] iommu::Type1Container* container() const { return container_; }
  // How many devices of it are open.
  unsigned users = 0;

 private:
  Group(KernelCalls& calls, unsigned number, Fd fd)
      : calls_(calls), number_(number), fd_(std::move(fd)) {}

  KernelCalls& calls_;
  unsigned number_;
  Fd fd_;
  iommu::Type1Container* container_ = nullptr;
  bus::VfioFiles* files_ = nullptr;
};

}  // namespace postern::vfio
