#pragma once

// BuildCpuid: what CPUID answers on one vCPU: the set KVM supports, with this machine's topology,
// frequencies and hypervisor leaves.
//
//   std::vector<CpuidEntry> entries =
//       BuildCpuid(supported, {.index = 0, .count = 4, .tsc_khz = khz, .tsc_deadline = true});
//
// Is not a CPU model: features are the host's, as KVM filters them. Threads: pure functions.
// Sources: Intel SDM vol. 2A CPUID; AMD APM vol. 3 appendix E; Linux
// Documentation/virt/kvm/x86/cpuid.rst.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/arch/x86_64/state.h"

namespace postern::x86_64 {

// Bits to set or clear in one register of one leaf after everything else (a test's MOVDIR64B, a
// masked feature).
struct CpuidOverride {
  std::uint32_t function = 0;
  std::uint32_t index = 0;
  enum class Register : std::uint8_t { kEax, kEbx, kEcx, kEdx } reg = Register::kEax;
  std::uint32_t set = 0;
  std::uint32_t clear = 0;
};

constexpr std::uint32_t kMaxCpus = 1024;

struct CpuidOptions {
  // This vCPU, also its APIC id, and how many there are: cores of one package, one thread each.
  std::uint32_t index = 0;
  std::uint32_t count = 1;
  // KVM_GET_TSC_KHZ; 0 if unknown: no frequency is then told.
  std::uint32_t tsc_khz = 0;
  // KVM's local APIC timer, unless KVM_CAP_X86_APIC_BUS_CYCLES_NS changed it.
  std::uint32_t apic_bus_hz = 1'000'000'000;
  // KVM_CAP_TSC_DEADLINE_TIMER: KVM does not report it in the supported set.
  bool tsc_deadline = false;
  // Let the guest use VMX or SVM, where KVM has it.
  bool nested = false;
  std::span<const CpuidOverride> overrides{};
};

// `supported`: KVM_GET_SUPPORTED_CPUID. An index outside the count is a caller's bug (CHECK).
[[nodiscard]] std::vector<CpuidEntry> BuildCpuid(std::span<const CpuidEntry> supported,
                                                 const CpuidOptions& options);

// CPUID 0x80000008 EAX[7:0], or 36 if the leaf is missing.
[[nodiscard]] unsigned PhysicalAddressBits(std::span<const CpuidEntry> entries);
// CPUID 0x80000001 EDX[26].
[[nodiscard]] bool HasGigabytePages(std::span<const CpuidEntry> entries);

}  // namespace postern::x86_64
