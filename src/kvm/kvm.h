#pragma once

// Kvm: the /dev/kvm system interface: opening it, its capabilities, and what guests may be given.
// Is not a virtual machine (vm.h). Threads: any. Source: Linux Documentation/virt/kvm/api.rst.

#include <cstdint>
#include <vector>

#include "src/arch/x86_64/state.h"
#include "src/base/fd.h"
#include "src/base/result.h"

namespace postern::kvm {

class Kvm {
 public:
  // `path` is /dev/kvm but for tests. kSystem with ENOENT, EACCES, ENODEV; kUnsupported when the
  // API version is not 12.
  [[nodiscard]] static Result<Kvm> Open(const char* path = "/dev/kvm");

  // KVM_CHECK_EXTENSION: 0 when absent. `capability` is a KVM_CAP_* number.
  [[nodiscard]] int Check(int capability) const;
  // KVM_GET_SUPPORTED_CPUID.
  [[nodiscard]] Result<std::vector<x86_64::CpuidEntry>> SupportedCpuid() const;
  // Bytes of a vCPU's shared run area.
  [[nodiscard]] Result<std::size_t> VcpuMmapSize() const;
  [[nodiscard]] Result<Fd> CreateVm() const;
  [[nodiscard]] int max_vcpus() const;
  // Whether the in-kernel local APIC has TSC-deadline mode; KVM_GET_SUPPORTED_CPUID does not say.
  [[nodiscard]] bool tsc_deadline() const;
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  explicit Kvm(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

// One row of what this host's KVM can do, for diagnosis.
struct Capability {
  const char* name;
  const char* purpose;
  bool required;
  int value;
};
[[nodiscard]] std::vector<Capability> Survey(const Kvm& kvm);

// Whether this KVM runs guest kernels: carries out, in a throw-away VM, an instruction that every
// 64-bit kernel uses and that a KVM without hardware virtualisation cannot emulate (cmpxchg16b).
enum class GuestKernels { kYes, kNo, kUnknown };
[[nodiscard]] GuestKernels CanRunGuestKernels(const Kvm& kvm);

}  // namespace postern::kvm
