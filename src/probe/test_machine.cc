// The machine without its devices: CPUID, ACPI tables, timer.
#include <span>

#include "src/probe/acpi.h"
#include "src/probe/acpi_parse.h"
#include "src/probe/interrupts.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {

bool TestCpu(Row& row) {
  const CpuidRegisters base = Cpuid(0);
  const CpuidRegisters features = Cpuid(1);
  // Leaf 0x0b (Intel SDM volume 2, CPUID): the x2APIC ID must be the local APIC's own.
  if (base.eax >= 0x0b && Cpuid(0x0b).ebx != 0 && Cpuid(0x0b).edx != LocalApicId()) {
    row.Fail("CPUID 0x0b: x2APIC ID", Cpuid(0x0b).edx);
  }
  if (features.ebx >> 24 != (LocalApicId() & 0xff))
    row.Fail("CPUID 1: initial APIC ID", features.ebx >> 24);
  uint64_t last = ReadTsc();
  for (int i = 0; i < 16; ++i) {
    const uint64_t now = ReadTsc();
    if (now < last) row.Fail("the TSC runs backwards");
    last = now;
  }
  row.tested().Add("CPUID topology, APIC ID, TSC");
  Line& out = row.figures();
  out.Put(HasX2Apic() ? "x2APIC" : "xAPIC",
          HasTscDeadline() ? ", TSC deadline" : ", counting timer");
  if (features.ecx >> 31 != 0) {
    const CpuidRegisters hypervisor = Cpuid(0x40000000);
    out.Add(", ");
    for (uint32_t word : {hypervisor.ebx, hypervisor.ecx, hypervisor.edx}) {
      for (int i = 0; i < 4; ++i) {
        const char c = static_cast<char>(word >> (8 * i));
        if (c >= ' ' && c <= '~') out.Add(c);
      }
    }
  }
  return true;
}

bool TestAcpi(Row& row) {
  const Acpi& acpi = AcpiInfo();
  if (acpi.rsdp == 0) return false;
  row.address().Hex(acpi.rsdp, 8);
  const auto bytes = [](uint64_t address, size_t size) {
    return std::span<const uint8_t>(reinterpret_cast<const uint8_t*>(address), size);
  };
  // ACPI 6.5 5.2.5.3: the first 20 bytes sum to zero by themselves, from revision 2 on all 36 do as
  // well.
  if (!HasZeroSum(bytes(acpi.rsdp, 20))) row.Fail("RSDP checksum");
  if (Read8(acpi.rsdp + 15) >= 2 && !HasZeroSum(bytes(acpi.rsdp, 36)))
    row.Fail("RSDP extended checksum");
  size_t total = 0;
  Line names;
  const auto check = [&](uint64_t table) {
    const uint32_t length = Read32(table + 4);
    total += length;
    Line name;
    for (size_t i = 0; i < 4; ++i) name.Add(static_cast<char>(Read8(table + i)));
    names.Put(' ', name.view());
    if (!HasZeroSum(bytes(table, length))) row.Fail(name.Add(" checksum").view());
  };
  check(acpi.xsdt);
  for (size_t i = 0; i < acpi.table_count; ++i) check(acpi.tables[i]);
  if (acpi.dsdt == 0) {
    row.Fail("no DSDT");
  } else {
    check(acpi.dsdt);
  }
  if (acpi.fadt == 0) row.Fail("no FADT");
  if (acpi.processor_count == 0) row.Fail("no processor in the MADT");
  if (acpi.hardware_reduced && acpi.sleep_control.address == 0)
    row.Fail("hardware-reduced, yet no sleep control register");
  row.tested().Put("checksums:", names.view());
  row.figures().Put(total, " bytes", acpi.hardware_reduced ? ", hardware-reduced" : "");
  return true;
}

bool TestTimer(Row& row) {
  constexpr uint64_t kShots = 5;
  constexpr uint64_t kDelay = 1000;
  uint64_t late_total = 0;
  for (uint64_t i = 0; i < kShots && !row.failed(); ++i) {
    const uint32_t before = InterruptCount(kTimerVector);
    const uint64_t begin = ReadTsc();
    const uint64_t deadline = begin + CyclesOf(kDelay);
    const uint64_t limit = begin + CyclesOf(2'000'000);
    DisableInterrupts();
    ArmTimer(deadline);
    EnableInterrupts();
    // Not asleep: a timer that never fires must end in a failed row rather than in silence.
    while (InterruptCount(kTimerVector) == before && ReadTsc() < limit) Pause();
    const uint64_t now = ReadTsc();
    if (InterruptCount(kTimerVector) == before) {
      row.Fail("no timer interrupt within 2 s");
    } else if (HasTscDeadline() && now < deadline) {
      row.Fail("the timer fired early, us:", MicrosOf(deadline - now));
    } else {
      late_total += now > deadline ? now - deadline : 0;
    }
  }
  StopTimer();
  row.tested().Add(HasTscDeadline() ? "TSC deadline interrupts" : "local APIC timer interrupts");
  row.figures().Put(kShots, " shots of ", kDelay, " us, late by ", MicrosOf(late_total) / kShots,
                    " us");
  return true;
}

}  // namespace postern::probe
