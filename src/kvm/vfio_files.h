#pragma once

// kvm::VfioFiles: KVM's VFIO device: tells KVM which VFIO files (groups, device files) the guest's
// devices come from. Made in the kernel with the first file, once for a virtual machine.
//
//   VfioFiles files(*vm);
//   KernelHost host(SystemCalls(), &files);
//
// Ownership: of the KVM device; the Vm outlives it, and it outlives what was added (KVM forgets
// files that are left when it is closed). Threads: control thread. Source: Linux
// Documentation/virt/kvm/devices/vfio.rst.

#include <cstdint>

#include "src/base/fd.h"
#include "src/base/result.h"
#include "src/bus/vfio_files.h"
#include "src/kvm/vm.h"

namespace postern::kvm {

class VfioFiles final : public bus::VfioFiles {
 public:
  explicit VfioFiles(const Vm& vm) : vm_(vm) {}

  // kSystem: EINVAL (not a VFIO file), EEXIST (added already), ENODEV (KVM built without it).
  [[nodiscard]] Result<void> Add(int fd) override;
  void Remove(int fd) override;
  // Whether KVM has the device yet.
  [[nodiscard]] bool created() const { return device_.valid(); }

 private:
  [[nodiscard]] Result<void> Create();
  [[nodiscard]] Result<void> Set(std::uint64_t attribute, int fd) const;

  const Vm& vm_;
  Fd device_;
};

}  // namespace postern::kvm
