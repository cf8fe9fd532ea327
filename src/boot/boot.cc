#include "src/boot/boot.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <utility>

#include "src/arch/x86_64/layout.h"
#include "src/base/check.h"
#include "src/boot/boot_params.h"
#include "src/boot/pvh.h"

namespace postern::boot {
namespace {

using memory::Gpa;
using memory::GuestMemory;

void AddLowRam(std::uint64_t end, std::vector<MemoryMapEntry>& map) {
  map.push_back({0, std::min(end, x86_64::kLowRamEnd), MemoryType::kRam});
  // What lies between is RAM to KVM but belongs to VGA and option ROMs on every PC: kernels keep
  // off it unless told.
  if (end >= x86_64::kFirmwareAreaEnd) {
    map.push_back({x86_64::kAcpiArea, x86_64::kAcpiAreaEnd - x86_64::kAcpiArea, MemoryType::kAcpi});
    map.push_back({x86_64::kFirmwareArea, x86_64::kFirmwareAreaEnd - x86_64::kFirmwareArea,
                   MemoryType::kReserved});
  }
  if (end > x86_64::kKernelLowest) {
    map.push_back({x86_64::kKernelLowest, end - x86_64::kKernelLowest, MemoryType::kRam});
  }
}

// A kernel that restarts the PC way jumps to the firmware in real mode. Linux does so on every
// hardware-reduced machine without EFI (reboot_init in arch/x86/kernel/reboot.c prefers EFI there
// and falls back to the BIOS, past the ACPI reset register).
Result<void> WriteFirmwareEntry(const GuestMemory& memory) {
  constexpr std::uint8_t kPortLow = x86_64::kResetPort & 0xff;
  constexpr std::uint8_t kPortHigh = x86_64::kResetPort >> 8;
  static constexpr std::array<std::uint8_t, 10> kCode = {
      0xb0,      x86_64::kResetValue,  // mov al, kResetValue
      0xba,      kPortLow,
      kPortHigh,        // mov dx, kResetPort
      0xee,             // out dx, al
      0xfa,             // cli
      0xf4,             // hlt
      0xeb,      0xfd,  // jmp to the hlt
  };
  static_assert(x86_64::kFirmwareEntry + sizeof(kCode) <= x86_64::kFirmwareAreaEnd);
  return memory.CopyIn(Gpa(x86_64::kFirmwareEntry), std::as_bytes(std::span(kCode)));
}

Result<void> WriteBootParams(const GuestMemory& memory, const BootRequest& request,
                             const LoadedKernel& kernel, const LoadedInitrd& initrd,
                             std::span<const MemoryMapEntry> map) {
  BootParams params{};
  if (kernel.setup) {
    params.header = *kernel.setup;
  } else {
    // A vmlinux has no header of its own; what it reads of ours are the fields below.
    params.header.boot_flag = kBootFlag;
    params.header.header = kHeaderMagic;
    params.header.version = 0x20f;
    params.header.loadflags = kLoadedHigh;
  }
  params.header.type_of_loader = kLoaderUndefined;
  params.header.loadflags = static_cast<std::uint8_t>(params.header.loadflags | kKeepSegments);
  params.header.code32_start = static_cast<std::uint32_t>(kernel.start.value);
  params.header.cmd_line_ptr = static_cast<std::uint32_t>(x86_64::kCommandLine);
  params.header.ramdisk_image = static_cast<std::uint32_t>(initrd.base.value);
  params.header.ramdisk_size = static_cast<std::uint32_t>(initrd.size);
  params.header.setup_data = 0;
  params.acpi_rsdp_addr = request.rsdp.value;
  CHECK(map.size() <= params.e820_table.size());
  params.e820_entries = static_cast<std::uint8_t>(map.size());
  for (std::size_t i = 0; i < map.size(); ++i) {
    params.e820_table[i] = {map[i].address, map[i].size, static_cast<std::uint32_t>(map[i].type)};
  }
  return memory.CopyIn(Gpa(x86_64::kZeroPage), std::as_bytes(std::span(&params, 1)));
}

Result<void> WritePvhStartInfo(const GuestMemory& memory, const BootRequest& request,
                               const LoadedInitrd& initrd, std::span<const MemoryMapEntry> map) {
  PvhStartInfo info{};
  info.magic = kPvhMagic;
  info.version = kPvhVersion;
  info.cmdline_paddr = x86_64::kCommandLine;
  info.rsdp_paddr = request.rsdp.value;
  info.memmap_paddr = x86_64::kPvhMemoryMap;
  info.memmap_entries = static_cast<std::uint32_t>(map.size());
  if (initrd.size != 0) {
    PvhModule module{};
    module.paddr = initrd.base.value;
    module.size = initrd.size;
    info.nr_modules = 1;
    info.modlist_paddr = x86_64::kPvhModules;
    TRY(memory.CopyIn(Gpa(x86_64::kPvhModules), std::as_bytes(std::span(&module, 1))));
  }
  std::vector<PvhMemoryMapEntry> entries(map.size());
  for (std::size_t i = 0; i < map.size(); ++i) {
    entries[i].address = map[i].address;
    entries[i].size = map[i].size;
    entries[i].type = static_cast<std::uint32_t>(map[i].type);
  }
  TRY(memory.CopyIn(Gpa(x86_64::kPvhMemoryMap), std::as_bytes(std::span(entries))));
  return memory.CopyIn(Gpa(x86_64::kPvhStartInfo), std::as_bytes(std::span(&info, 1)));
}

}  // namespace

std::vector<MemoryMapEntry> BuildMemoryMap(const GuestMemory& memory) {
  std::vector<MemoryMapEntry> map;
  for (const memory::RegionPtr& region : memory.regions()) {
    if (region->base().value == 0) {
      AddLowRam(region->size(), map);
    } else {
      map.push_back({region->base().value, region->size(), MemoryType::kRam});
    }
  }
  // PCI Firmware Specification 3.3, 4.1.2: configuration space is reserved memory. Linux believes
  // MCFG only where it is told so.
  map.push_back({x86_64::kEcam, x86_64::kEcamReserved, MemoryType::kReserved});
  std::sort(map.begin(), map.end(),
            [](const MemoryMapEntry& a, const MemoryMapEntry& b) { return a.address < b.address; });
  return map;
}

Outcome<BootState> PrepareBoot(const GuestMemory& memory, const BootRequest& request) {
  CHECK(request.kernel != nullptr && request.command_line != nullptr);
  Outcome<LoadedKernel> kernel = LoadKernel(*request.kernel, memory, request.load);
  if (!kernel) return tl::unexpected(std::move(kernel.error()));
  LoadedInitrd initrd;
  if (request.initrd != nullptr) {
    Outcome<LoadedInitrd> loaded = LoadInitrd(*request.initrd, memory, *kernel);
    if (!loaded) return tl::unexpected(std::move(loaded.error()));
    initrd = *loaded;
  }
  const std::size_t limit =
      std::min<std::uint64_t>(kernel->command_line_limit, x86_64::kCommandLineCapacity - 1);
  Outcome<std::string> line = request.command_line->Build(limit);
  if (!line) return tl::unexpected(std::move(line.error()));

  const std::vector<MemoryMapEntry> map = BuildMemoryMap(memory);
  if (map.size() > x86_64::kMaxMemoryMapEntries) {
    return ConfigFailure("the machine's RAM is in " + std::to_string(map.size()) +
                             " pieces, more than the boot protocols carry",
                         "use fewer memory regions");
  }
  const std::string& text = *line;
  Result<void> written = memory.CopyIn(Gpa(x86_64::kCommandLine),
                                       std::as_bytes(std::span(text.c_str(), text.size() + 1)));
  if (written) written = WriteFirmwareEntry(memory);
  if (written) {
    written = kernel->protocol == Protocol::kPvh
                  ? WritePvhStartInfo(memory, request, initrd, map)
                  : WriteBootParams(memory, request, *kernel, initrd, map);
  }
  if (!written) {
    return ConfigFailure(
        "the machine has too little memory for the boot structures",
        "give it at least " + std::to_string(x86_64::kMinRam / x86_64::kMiB) + " MiB");
  }
  BootState state;
  state.protocol = kernel->protocol;
  state.entry = kernel->entry;
  state.info = Gpa(kernel->protocol == Protocol::kPvh ? x86_64::kPvhStartInfo : x86_64::kZeroPage);
  state.command_line = *std::move(line);
  state.kernel = *std::move(kernel);
  return state;
}

}  // namespace postern::boot
