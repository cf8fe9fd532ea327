#pragma once

// WriteTables: the ACPI tables of a hardware-reduced machine (ACPI 6.5, 4.1): RSDP, XSDT, FADT,
// MADT, MCFG and a DSDT with the PCIe host bridge, virtio-mmio devices, the serial port, a power
// button behind a Generic Event Device, and \_S5. Addresses, ports and GSIs are those of
// src/arch/x86_64/layout.h. Threads: pure but for the write into guest memory.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "src/arch/x86_64/layout.h"
#include "src/base/failure.h"
#include "src/memory/guest_memory.h"

namespace postern::boot::acpi {

struct PciRoot {
  std::uint32_t buses = 1;  // 1..256
  x86_64::AddressRange window32{x86_64::kPciWindow32, x86_64::kPciWindow32Size};
  x86_64::AddressRange window64;  // size 0: none
  x86_64::AddressRange ports{x86_64::kPciPorts, x86_64::kPciPortsSize};
};

struct VirtioMmioDevice {
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  std::uint32_t gsi = 0;
};

struct Config {
  std::uint32_t cpus = 1;
  std::optional<PciRoot> pci;
  std::vector<VirtioMmioDevice> virtio_mmio;
  bool serial = false;
  bool power_button = true;
};

// The tables as they will lie at `base` (RSDP first).
[[nodiscard]] std::vector<std::byte> BuildTables(const Config& config, std::uint64_t base);
[[nodiscard]] std::vector<std::byte> BuildDsdt(const Config& config);
// Into the ACPI area; returns the RSDP. Fails when the configuration needs more room than there is.
[[nodiscard]] Outcome<memory::Gpa> WriteTables(const memory::GuestMemory& memory,
                                               const Config& config);

}  // namespace postern::boot::acpi
