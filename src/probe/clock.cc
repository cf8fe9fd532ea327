#include "src/probe/clock.h"

namespace postern::probe {
namespace {

constexpr uint32_t kHypervisorLeaf = 0x40000000;
// The frequency leaf VMware defined and KVM-based monitors share: eax = TSC kHz, ebx = APIC bus
// kHz.
constexpr uint32_t kFrequencyLeaf = 0x40000010;
constexpr uint32_t kKvmFeaturesLeaf = 0x40000001;
constexpr uint32_t kKvmClockSource2 = 1U << 3;
constexpr uint32_t kMsrKvmSystemTimeNew = 0x4b564d01;

// struct pvclock_vcpu_time_info, Linux Documentation/virt/kvm/x86/msr.rst.
struct alignas(64) PvClock {
  uint32_t version;
  uint32_t pad0;
  uint64_t tsc_timestamp;
  uint64_t system_time;
  uint32_t tsc_to_system_mul;
  int8_t tsc_shift;
  uint8_t flags;
  uint8_t pad[2];
};
PvClock g_pv_clock;

constinit TscFrequency g_tsc{1000000, "assumed", true};

uint64_t FromHypervisorLeaf() {
  if ((Cpuid(1).ecx >> 31) == 0 || Cpuid(kHypervisorLeaf).eax < kFrequencyLeaf) return 0;
  return Cpuid(kFrequencyLeaf).eax;
}

// CPUID 0x15: TSC = crystal * ebx / eax (Intel SDM volume 2, CPUID).
uint64_t FromCrystalLeaf() {
  if (Cpuid(0).eax < 0x15) return 0;
  const CpuidRegisters r = Cpuid(0x15);
  if (r.eax == 0 || r.ebx == 0 || r.ecx == 0) return 0;
  return uint64_t{r.ecx} * r.ebx / r.eax / 1000;
}

uint64_t FromKvmClock() {
  if ((Cpuid(1).ecx >> 31) == 0) return 0;
  const CpuidRegisters id = Cpuid(kHypervisorLeaf);
  if (id.ebx != 0x4b4d564b || (Cpuid(kKvmFeaturesLeaf).eax & kKvmClockSource2) == 0)
    return 0;  // "KVMK"
  WriteMsr(kMsrKvmSystemTimeNew, reinterpret_cast<uint64_t>(&g_pv_clock) | 1);
  CompilerBarrier();
  const uint32_t mul = g_pv_clock.tsc_to_system_mul;
  const int8_t shift = g_pv_clock.tsc_shift;
  WriteMsr(kMsrKvmSystemTimeNew, 0);
  if (mul == 0 || shift < -31 || shift > 31) return 0;
  // nanoseconds = (cycles << shift) * mul / 2^32, hence kHz = 10^6 * 2^32 / mul / 2^shift.
  const uint64_t khz = (uint64_t{1000000} << 32) / mul;
  return shift >= 0 ? khz >> shift : khz << -shift;
}

// ACPI 6.5 4.8.3.3: 3.579545 MHz, at least 24 bits wide.
uint64_t FromPmTimer(uint16_t port) {
  if (port == 0) return 0;
  constexpr uint32_t kTicks = 35795;  // 10 ms
  const uint32_t start = In32(port);
  const uint64_t begin = ReadTsc();
  uint32_t elapsed = 0;
  for (uint32_t tries = 0; elapsed < kTicks; ++tries) {
    if (tries == 100000) return 0;  // it does not count
    elapsed = (In32(port) - start) & 0xffffff;
  }
  return (ReadTsc() - begin) * 3579545 / elapsed / 1000;
}

}  // namespace

void InitClock(uint16_t pm_timer_port) {
  if (const uint64_t khz = FromHypervisorLeaf(); khz != 0) {
    g_tsc = {khz, "CPUID 0x40000010", false};
  } else if (const uint64_t crystal = FromCrystalLeaf(); crystal != 0) {
    g_tsc = {crystal, "CPUID 0x15", false};
  } else if (const uint64_t kvm = FromKvmClock(); kvm != 0) {
    g_tsc = {kvm, "kvm-clock", false};
  } else if (const uint64_t pm = FromPmTimer(pm_timer_port); pm != 0) {
    g_tsc = {pm, "the ACPI timer", false};
  }
}

const TscFrequency& Tsc() {
  return g_tsc;
}

void SpinMicros(uint64_t micros) {
  const uint64_t end = ReadTsc() + CyclesOf(micros);
  while (ReadTsc() < end) Pause();
}

}  // namespace postern::probe
