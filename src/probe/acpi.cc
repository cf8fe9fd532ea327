#include "src/probe/acpi.h"

#include "src/probe/acpi_parse.h"
#include "src/probe/clock.h"
#include "src/probe/paging.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint64_t kHeaderSize = 36;
constexpr uint32_t kMaxTableSize = 1U << 20;

constexpr uint32_t Signature(const char (&name)[5]) {
  return static_cast<uint32_t>(name[0]) | static_cast<uint32_t>(name[1]) << 8 |
         static_cast<uint32_t>(name[2]) << 16 | static_cast<uint32_t>(name[3]) << 24;
}

constinit Acpi g_acpi;

// FADT fields by offset, ACPI 6.5 table 5.9.
constexpr uint64_t kFadtDsdt = 40;
constexpr uint64_t kFadtPm1aControl = 64;
constexpr uint64_t kFadtPmTimer = 76;
constexpr uint64_t kFadtFlags = 112;
constexpr uint64_t kFadtReset = 116;
constexpr uint64_t kFadtResetValue = 128;
constexpr uint64_t kFadtXDsdt = 140;
constexpr uint64_t kFadtSleepControl = 244;
constexpr uint32_t kFlagResetSupported = 1U << 10;
constexpr uint32_t kFlagHardwareReduced = 1U << 20;

// The length of the table at `address`, all of it mapped; 0 if it makes no sense.
uint32_t MapTable(uint64_t address) {
  MapPhysical(address, kHeaderSize, Caching::kNormal);
  const uint32_t length = Read32(address + 4);
  if (length < kHeaderSize || length > kMaxTableSize) return 0;
  MapPhysical(address, length, Caching::kNormal);
  return length;
}

AcpiRegister ReadRegister(uint64_t address) {
  return {Read8(address), Read8(address + 1), Read64(address + 4)};
}

void WriteRegister(const AcpiRegister& reg, uint8_t value) {
  if (reg.address == 0) return;
  if (reg.space == 1) {
    Out8(static_cast<uint16_t>(reg.address), value);
  } else if (reg.space == 0) {
    MapPhysical(reg.address, 1, Caching::kDevice);
    Write8(reg.address, value);
  }
}

void ReadFadt(uint64_t address, uint32_t length) {
  g_acpi.fadt = address;
  if (length < kFadtFlags + 4) return;
  const uint32_t flags = Read32(address + kFadtFlags);
  g_acpi.hardware_reduced = (flags & kFlagHardwareReduced) != 0;
  g_acpi.dsdt = Read32(address + kFadtDsdt);
  if (!g_acpi.hardware_reduced) {
    g_acpi.pm1a_control = static_cast<uint16_t>(Read32(address + kFadtPm1aControl));
    g_acpi.pm_timer = static_cast<uint16_t>(Read32(address + kFadtPmTimer));
  }
  if (length > kFadtResetValue && (flags & kFlagResetSupported) != 0) {
    g_acpi.reset = ReadRegister(address + kFadtReset);
    g_acpi.reset_value = Read8(address + kFadtResetValue);
    g_acpi.has_reset = true;
  }
  if (length >= kFadtXDsdt + 8 && Read64(address + kFadtXDsdt) != 0)
    g_acpi.dsdt = Read64(address + kFadtXDsdt);
  if (length >= kFadtSleepControl + 12)
    g_acpi.sleep_control = ReadRegister(address + kFadtSleepControl);
}

void AddProcessor(uint32_t apic_id, uint32_t flags) {
  // Bit 0: enabled. Only-capable (bit 1) ones are for hot plug.
  if ((flags & 1) == 0 || g_acpi.processor_count == Acpi::kMaxProcessors) return;
  g_acpi.apic_ids[g_acpi.processor_count++] = apic_id;
}

// ACPI 6.5 5.2.12.
void ReadMadt(uint64_t address, uint32_t length) {
  g_acpi.lapic = Read32(address + 36);
  uint64_t at = 44;
  while (at + 2 <= length) {
    const uint64_t entry = address + at;
    const uint8_t size = Read8(entry + 1);
    if (size < 2 || size > length - at) break;
    switch (Read8(entry)) {
      case 0:  // local APIC
        if (size >= 8) AddProcessor(Read8(entry + 3), Read32(entry + 4));
        break;
      case 1:  // I/O APIC
        if (size >= 12 && g_acpi.ioapic_count < Acpi::kMaxIoApics) {
          g_acpi.ioapics[g_acpi.ioapic_count++] = {Read32(entry + 4), Read32(entry + 8)};
        }
        break;
      case 2:  // interrupt source override; polarity 3 = active low, trigger 3 = level
        if (size >= 10 && g_acpi.override_count < Acpi::kMaxOverrides) {
          const uint16_t flags = Read16(entry + 8);
          g_acpi.overrides[g_acpi.override_count++] = {Read8(entry + 3), Read32(entry + 4),
                                                       (flags >> 2 & 3) == 3, (flags & 3) == 3};
        }
        break;
      case 9:  // local x2APIC
        if (size >= 16) AddProcessor(Read32(entry + 4), Read32(entry + 8));
        break;
      default:
        break;
    }
    at += size;
  }
}

// PCI Firmware Specification 3.3, 4.1.2: the first segment group's window.
void ReadMcfg(uint64_t address, uint32_t length) {
  if (length < 60) return;
  g_acpi.ecam = Read64(address + 44);
  g_acpi.first_bus = Read8(address + 54);
  g_acpi.last_bus = Read8(address + 55);
}

uint64_t FindRsdp() {
  for (uint64_t at = 0xe0000; at < 0x100000; at += 16) {
    if (Read64(at) == 0x2052545020445352) return at;  // "RSD PTR "
  }
  return 0;
}

}  // namespace

const Acpi& AcpiInfo() {
  return g_acpi;
}

void InitAcpi(uint64_t rsdp) {
  g_acpi.lapic = 0xfee00000;  // the architecture's, unless the MADT knows better
  g_acpi.rsdp = rsdp != 0 ? rsdp : FindRsdp();
  if (g_acpi.rsdp == 0) return;
  MapPhysical(g_acpi.rsdp, 36, Caching::kNormal);
  const bool extended = Read8(g_acpi.rsdp + 15) >= 2 && Read64(g_acpi.rsdp + 24) != 0;
  g_acpi.xsdt = extended ? Read64(g_acpi.rsdp + 24) : Read32(g_acpi.rsdp + 16);
  const uint64_t entry_size = extended ? 8 : 4;
  const uint32_t root_length = MapTable(g_acpi.xsdt);
  for (uint64_t at = kHeaderSize; at + entry_size <= root_length; at += entry_size) {
    const uint64_t table = extended ? Read64(g_acpi.xsdt + at) : Read32(g_acpi.xsdt + at);
    const uint32_t length = MapTable(table);
    if (length == 0 || g_acpi.table_count == Acpi::kMaxTables) continue;
    g_acpi.tables[g_acpi.table_count++] = table;
    switch (Read32(table)) {
      case Signature("FACP"):
        ReadFadt(table, length);
        break;
      case Signature("APIC"):
        ReadMadt(table, length);
        break;
      case Signature("MCFG"):
        ReadMcfg(table, length);
        break;
      default:
        break;
    }
  }
  if (g_acpi.dsdt != 0 && MapTable(g_acpi.dsdt) == 0) g_acpi.dsdt = 0;
}

void PowerOff() {
  uint8_t type = 0;
  if (g_acpi.dsdt != 0) {
    const std::span<const uint8_t> aml(reinterpret_cast<const uint8_t*>(g_acpi.dsdt),
                                       Read32(g_acpi.dsdt + 4));
    if (!FindS5Type(aml.subspan(kHeaderSize), type)) type = 0;
  }
  // ACPI 6.5 4.8.3.7: SLP_TYP in bits 4:2, SLP_EN bit 5. 4.8.3.2.1: in PM1 control, bits 12:10
  // and 13.
  WriteRegister(g_acpi.sleep_control, static_cast<uint8_t>(type << 2 | 1U << 5));
  if (g_acpi.pm1a_control != 0)
    Out16(g_acpi.pm1a_control, static_cast<uint16_t>(type << 10 | 1U << 13));
  SpinMicros(100000);
}

void ResetMachine() {
  if (g_acpi.has_reset) WriteRegister(g_acpi.reset, g_acpi.reset_value);
  SpinMicros(100000);
}

}  // namespace postern::probe
