#include "src/kvm/kvm.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <span>

#include "src/base/mmap.h"
#include "src/kvm/fam.h"

namespace postern::kvm {

Result<Kvm> Kvm::Open(const char* path) {
  Fd fd(open(path, O_RDWR | O_CLOEXEC));
  if (!fd.valid()) return SysError("open /dev/kvm");
  const int version = ioctl(fd.get(), KVM_GET_API_VERSION, 0);
  if (version < 0) return SysError("KVM_GET_API_VERSION");
  // api.rst 4.1: 12 is the only version there will be; others are to be refused.
  if (version != KVM_API_VERSION) return Err(Errc::kUnsupported, "KVM API version");
  return Kvm(std::move(fd));
}

int Kvm::Check(int capability) const {
  const int value = ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
  return value < 0 ? 0 : value;
}

Result<std::vector<x86_64::CpuidEntry>> Kvm::SupportedCpuid() const {
  // The kernel answers E2BIG when there is not enough room.
  for (std::uint32_t room = 128; room <= 1024; room *= 2) {
    FamBuffer<CpuidHeader, kvm_cpuid_entry2> buffer({.nent = room}, room);
    if (ioctl(fd_.get(), kGetSupportedCpuid, buffer.data()) < 0) {
      if (errno == E2BIG) continue;
      return SysError("KVM_GET_SUPPORTED_CPUID");
    }
    std::vector<x86_64::CpuidEntry> entries;
    for (const kvm_cpuid_entry2& entry : buffer.Entries(buffer.header().nent)) {
      entries.push_back({.function = entry.function,
                         .index = entry.index,
                         .flags = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                         .eax = entry.eax,
                         .ebx = entry.ebx,
                         .ecx = entry.ecx,
                         .edx = entry.edx});
    }
    return entries;
  }
  return SysError("KVM_GET_SUPPORTED_CPUID", E2BIG);
}

Result<std::size_t> Kvm::VcpuMmapSize() const {
  const int size = ioctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < 0) return SysError("KVM_GET_VCPU_MMAP_SIZE");
  if (static_cast<std::size_t>(size) < sizeof(kvm_run))
    return Err(Errc::kUnsupported, "KVM_GET_VCPU_MMAP_SIZE");
  return static_cast<std::size_t>(size);
}

Result<Fd> Kvm::CreateVm() const {
  while (true) {
    const int fd = ioctl(fd_.get(), KVM_CREATE_VM, 0);
    if (fd >= 0) return Fd(fd);
    // A signal in the middle of the kernel's allocations: the call is to be repeated.
    if (errno != EINTR) return SysError("KVM_CREATE_VM");
  }
}

int Kvm::max_vcpus() const {
  // api.rst 4.4: without KVM_CAP_MAX_VCPUS the recommended number stands; without that, 4.
  if (const int max = Check(KVM_CAP_MAX_VCPUS); max > 0) return max;
  if (const int recommended = Check(KVM_CAP_NR_VCPUS); recommended > 0) return recommended;
  return 4;
}

bool Kvm::tsc_deadline() const {
  return Check(KVM_CAP_TSC_DEADLINE_TIMER) != 0;
}

std::vector<Capability> Survey(const Kvm& kvm) {
  struct Row {
    int number;
    const char* name;
    const char* purpose;
    bool required;
  };
  constexpr Row kRows[] = {
      {KVM_CAP_IRQCHIP, "IRQCHIP", "interrupt controllers in the kernel", true},
      {KVM_CAP_USER_MEMORY, "USER_MEMORY", "guest RAM from user memory", true},
      {KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR", "real mode on Intel", true},
      {KVM_CAP_IRQFD, "IRQFD", "interrupts without a user-space hop", true},
      {KVM_CAP_IOEVENTFD, "IOEVENTFD", "doorbells without a user-space exit", true},
      {KVM_CAP_IOEVENTFD_ANY_LENGTH, "IOEVENTFD_ANY_LENGTH", "doorbells of any width", false},
      {KVM_CAP_IRQ_ROUTING, "IRQ_ROUTING", "MSI routes; the value is how many", true},
      {KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI", "direct message-signalled interrupts", false},
      {KVM_CAP_IRQFD_RESAMPLE, "IRQFD_RESAMPLE", "level interrupts of assigned devices", false},
      {KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT", "race-free vCPU kicks", true},
      {KVM_CAP_X2APIC_API, "X2APIC_API", "more than 255 vCPUs", false},
      {KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER", "precise guest timers", false},
      {KVM_CAP_GET_TSC_KHZ, "GET_TSC_KHZ", "TSC frequency told to the guest", false},
      {KVM_CAP_READONLY_MEM, "READONLY_MEM", "read-only mapped pages", false},
      {KVM_CAP_MAX_VCPUS, "MAX_VCPUS", "vCPUs per machine", false},
      {KVM_CAP_NR_MEMSLOTS, "NR_MEMSLOTS", "memory slots per machine", false},
      {KVM_CAP_XSAVE2, "XSAVE2", "large vector state", false},
      {KVM_CAP_DIRTY_LOG_RING, "DIRTY_LOG_RING", "dirty page ring", false},
      {KVM_CAP_BINARY_STATS_FD, "BINARY_STATS_FD", "KVM's own counters in the metrics", false},
  };
  std::vector<Capability> out;
  out.reserve(std::size(kRows));
  for (const Row& row : kRows)
    out.push_back({row.name, row.purpose, row.required, kvm.Check(row.number)});
  return out;
}

GuestKernels CanRunGuestKernels(const Kvm& kvm) {
  constexpr std::size_t kSize = 0x4000;
  constexpr std::uint64_t kPml4 = 0x0, kPdpt = 0x1000, kPd = 0x2000, kCode = 0x3000;
  Result<Fd> vm = kvm.CreateVm();
  Result<std::size_t> run_size = kvm.VcpuMmapSize();
  Result<Mmap> ram = Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!vm || !run_size || !ram) return GuestKernels::kUnknown;

  // Long mode with one 2 MiB identity page, then: lock cmpxchg16b [0x3800]; hlt. Kernels use that
  // instruction early and without a fallback on x86-64, and emulation alone does not offer it.
  const auto put64 = [&](std::uint64_t at, std::uint64_t value) {
    std::memcpy(ram->data() + at, &value, 8);
  };
  put64(kPml4, kPdpt | 3);
  put64(kPdpt, kPd | 3);
  put64(kPd, 0x83);
  constexpr std::uint8_t kProgram[] = {0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25,
                                       0x00, 0x38, 0x00, 0x00, 0xf4};
  std::memcpy(ram->data() + kCode, kProgram, sizeof(kProgram));

  ioctl(vm->get(), KVM_SET_TSS_ADDR, 0xfffbd000);
  kvm_userspace_memory_region region{};
  region.memory_size = kSize;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(ram->data());
  if (ioctl(vm->get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) return GuestKernels::kUnknown;
  Fd vcpu(ioctl(vm->get(), KVM_CREATE_VCPU, 0));
  if (!vcpu.valid()) return GuestKernels::kUnknown;
  Result<Mmap> run_map = Mmap::Create(*run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get());
  if (!run_map) return GuestKernels::kUnknown;

  // The guest's CPUID must offer long mode and cmpxchg16b for KVM to allow either.
  FamBuffer<CpuidHeader, kvm_cpuid_entry2> cpuid({.nent = 256}, 256);
  if (ioctl(kvm.fd(), kGetSupportedCpuid, cpuid.data()) < 0 ||
      ioctl(vcpu.get(), kSetCpuid2, cpuid.data()) < 0) {
    return GuestKernels::kUnknown;
  }

  kvm_sregs sregs{};
  if (ioctl(vcpu.get(), KVM_GET_SREGS, &sregs) < 0) return GuestKernels::kUnknown;
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector = 0x8;
  code.type = 11;
  code.present = code.s = code.l = code.g = 1;
  kvm_segment data = code;
  data.selector = 0x10;
  data.type = 3;
  data.l = 0;
  data.db = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.cr3 = kPml4;
  sregs.cr4 = 1u << 5;
  sregs.cr0 = 0x80000001;
  sregs.efer = 0x500;
  kvm_regs regs{};
  regs.rip = kCode;
  regs.rflags = 2;
  if (ioctl(vcpu.get(), KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu.get(), KVM_SET_REGS, &regs) < 0) {
    return GuestKernels::kUnknown;
  }
  for (int tries = 0; tries < 100; ++tries) {
    if (ioctl(vcpu.get(), KVM_RUN, 0) < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return GuestKernels::kUnknown;
    }
    kvm_run run{};
    std::memcpy(&run, run_map->data(), sizeof(run));
    if (run.exit_reason == KVM_EXIT_HLT) return GuestKernels::kYes;
    if (run.exit_reason == KVM_EXIT_INTERNAL_ERROR) return GuestKernels::kNo;
    return GuestKernels::kUnknown;
  }
  return GuestKernels::kUnknown;
}

}  // namespace postern::kvm
