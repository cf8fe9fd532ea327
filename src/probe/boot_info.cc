#include "src/probe/boot_info.h"

#include "src/probe/paging.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

// struct hvm_start_info and its memory map entries (xen/include/public/arch-x86/hvm/start_info.h).
constexpr uint32_t kStartInfoMagic = 0x336ec578;
struct StartInfo {
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t module_count;
  uint64_t module_list;
  uint64_t command_line;
  uint64_t rsdp;
  uint64_t memory_map;  // from version 1 on
  uint32_t memory_map_entries;
  uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56);
struct StartInfoRange {
  uint64_t address;
  uint64_t size;
  uint32_t type;
  uint32_t reserved;
};
static_assert(sizeof(StartInfoRange) == 24);

// struct boot_params, Linux Documentation/arch/x86/zero-page.rst and boot.rst.
constexpr uint64_t kZeroPageRsdp = 0x070;
constexpr uint64_t kZeroPageCommandLineHigh = 0x0c8;
constexpr uint64_t kZeroPageE820Entries = 0x1e8;
constexpr uint64_t kZeroPageHeaderMagic = 0x202;
constexpr uint64_t kZeroPageCommandLine = 0x228;
constexpr uint64_t kZeroPageE820Table = 0x2d0;
constexpr uint64_t kE820EntrySize = 20;
constexpr uint32_t kHeaderMagic = 0x53726448;  // "HdrS"

char g_command_line[BootInfo::kMaxCommandLine];

void CopyCommandLine(uint64_t address, BootInfo& boot) {
  if (address == 0) return;
  MapPhysical(address, BootInfo::kMaxCommandLine, Caching::kNormal);
  size_t n = 0;
  while (n < BootInfo::kMaxCommandLine) {
    const uint8_t c = Read8(address + n);
    if (c == 0) break;
    g_command_line[n++] = static_cast<char>(c);
  }
  boot.command_line = {g_command_line, n};
}

void AddRange(uint64_t address, uint64_t size, uint32_t type, BootInfo& boot) {
  if (boot.range_count < BootInfo::kMaxRanges)
    boot.ranges[boot.range_count++] = {address, size, type};
}

}  // namespace

uint64_t BootInfo::RamBytes() const {
  uint64_t total = 0;
  for (size_t i = 0; i < range_count; ++i) {
    if (ranges[i].type == 1) total += ranges[i].size;
  }
  return total;
}

bool BootInfo::IsRam(uint64_t address, uint64_t size) const {
  for (size_t i = 0; i < range_count; ++i) {
    const MemoryRange& range = ranges[i];
    if (range.type == 1 && address >= range.address && size <= range.size &&
        address - range.address <= range.size - size) {
      return true;
    }
  }
  return false;
}

void ReadBootInfo(BootProtocol protocol, uint64_t info, BootInfo& boot) {
  boot.protocol = protocol;
  MapPhysical(info, 4096, Caching::kNormal);
  if (protocol == BootProtocol::kPvh) {
    const auto* start = reinterpret_cast<const StartInfo*>(info);
    boot.valid = start->magic == kStartInfoMagic;
    if (!boot.valid) return;
    boot.rsdp = start->rsdp;
    if (start->version >= 1 && start->memory_map != 0) {
      MapPhysical(start->memory_map, BootInfo::kMaxRanges * sizeof(StartInfoRange),
                  Caching::kNormal);
      const auto* range = reinterpret_cast<const StartInfoRange*>(start->memory_map);
      for (uint32_t i = 0; i < start->memory_map_entries && i < BootInfo::kMaxRanges; ++i) {
        AddRange(range[i].address, range[i].size, range[i].type, boot);
      }
    }
    CopyCommandLine(start->command_line, boot);
    return;
  }
  boot.valid = Read32(info + kZeroPageHeaderMagic) == kHeaderMagic;
  boot.rsdp = Read64(info + kZeroPageRsdp);
  const unsigned entries = Read8(info + kZeroPageE820Entries);
  for (unsigned i = 0; i < entries && i < BootInfo::kMaxRanges; ++i) {
    const uint64_t entry = info + kZeroPageE820Table + i * kE820EntrySize;
    AddRange(Read64(entry), Read64(entry + 8), Read32(entry + 16), boot);
  }
  CopyCommandLine(
      Read32(info + kZeroPageCommandLine) | uint64_t{Read32(info + kZeroPageCommandLineHigh)} << 32,
      boot);
}

}  // namespace postern::probe
