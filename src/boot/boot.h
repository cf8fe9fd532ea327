#pragma once

// PrepareBoot: everything a kernel finds in memory at its first instruction, by either protocol:
// image, initrd, command line, memory map, boot_params or PVH start info. The ACPI tables are
// written first, by src/boot/acpi/tables.h.
//
//   Outcome<Gpa> rsdp = acpi::WriteTables(memory, acpi_config);
//   Outcome<BootState> boot =
//       PrepareBoot(memory, {.kernel = &image, .command_line = &line, .rsdp = *rsdp});
//   // boot->protocol, boot->entry, boot->info -> x86_64::Linux64State or PvhState
//
// Is not: registers (src/arch/x86_64/regs.h). Threads: before vCPUs run.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/failure.h"
#include "src/boot/command_line.h"
#include "src/boot/image.h"
#include "src/boot/loader.h"
#include "src/memory/guest_memory.h"

namespace postern::boot {

// ACPI 6.5 15, table 15.4; the types of E820 and of the PVH memory map are the same.
enum class MemoryType : std::uint32_t { kRam = 1, kReserved = 2, kAcpi = 3 };

struct MemoryMapEntry {
  std::uint64_t address = 0;
  std::uint64_t size = 0;
  MemoryType type = MemoryType::kRam;
  friend bool operator==(const MemoryMapEntry&, const MemoryMapEntry&) = default;
};

// What the kernel is told about the regions of `memory`, with the areas layout.h keeps from it.
[[nodiscard]] std::vector<MemoryMapEntry> BuildMemoryMap(const memory::GuestMemory& memory);

struct BootRequest {
  const Image* kernel = nullptr;              // required
  const Image* initrd = nullptr;              // optional
  const CommandLine* command_line = nullptr;  // required
  memory::Gpa rsdp;                           // 0: no ACPI
  LoadOptions load;
};

struct BootState {
  Protocol protocol = Protocol::kLinux64;
  memory::Gpa entry;
  memory::Gpa info;  // boot_params or hvm_start_info
  std::string command_line;
  LoadedKernel kernel;
};

[[nodiscard]] Outcome<BootState> PrepareBoot(const memory::GuestMemory& memory,
                                             const BootRequest& request);

}  // namespace postern::boot
