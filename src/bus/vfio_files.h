#pragma once

// VfioFiles: the hypervisor's list of VFIO files (groups or devices) its guest uses. KVM wants to
// know of them: for cache coherence, and because some drivers need the VM. A platform without KVM
// has none.
//
// Threads: control thread. Source: Linux Documentation/virt/kvm/devices/vfio.rst.

#include "src/base/result.h"

namespace postern::bus {

class VfioFiles {
 public:
  virtual ~VfioFiles() = default;
  // Before the device is opened (group) or bound (cdev): the kernel looks then.
  [[nodiscard]] virtual Result<void> Add(int fd) = 0;
  // After the device was closed.
  virtual void Remove(int fd) = 0;
};

}  // namespace postern::bus
