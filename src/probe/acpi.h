// The ACPI tables, as far as a machine without firmware needs them, and the two ways out: power-off
// and reset.
#pragma once

#include <cstddef>
#include <cstdint>

namespace postern::probe {

struct IoApic {
  uint64_t address;
  uint32_t gsi_base;
};

// MADT interrupt source override: which GSI an ISA interrupt is wired to, and how it signals.
struct GsiOverride {
  uint8_t isa_irq;
  uint32_t gsi;
  bool level;
  bool active_low;
};

// ACPI generic address structure, decoded.
struct AcpiRegister {
  uint8_t space;  // 0 = memory, 1 = I/O port
  uint8_t bits;
  uint64_t address;
};

struct Acpi {
  static constexpr size_t kMaxTables = 24;
  static constexpr size_t kMaxProcessors = 256;
  static constexpr size_t kMaxIoApics = 4;
  static constexpr size_t kMaxOverrides = 24;

  uint64_t rsdp = 0;
  uint64_t xsdt = 0;  // or the RSDT, if there is no XSDT
  uint64_t tables[kMaxTables]{};
  size_t table_count = 0;

  uint64_t fadt = 0;
  uint64_t dsdt = 0;
  bool hardware_reduced = false;
  AcpiRegister reset{};
  uint8_t reset_value = 0;
  bool has_reset = false;
  AcpiRegister sleep_control{};  // address 0: absent
  uint16_t pm1a_control = 0;     // port; 0: absent
  uint16_t pm_timer = 0;         // port; 0: absent

  uint64_t lapic = 0;
  uint32_t apic_ids[kMaxProcessors]{};
  size_t processor_count = 0;
  IoApic ioapics[kMaxIoApics]{};
  size_t ioapic_count = 0;
  GsiOverride overrides[kMaxOverrides]{};
  size_t override_count = 0;

  uint64_t ecam = 0;
  uint8_t first_bus = 0;
  uint8_t last_bus = 0;
};

// `rsdp` 0: look for it where a BIOS leaves it.
void InitAcpi(uint64_t rsdp);
const Acpi& AcpiInfo();

// Ends the machine: ACPI S5, or the reset register. Returns only if the machine does not know how.
void PowerOff();
void ResetMachine();

}  // namespace postern::probe
