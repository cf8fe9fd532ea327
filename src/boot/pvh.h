#pragma once

// The structures of the PVH direct-boot protocol (Xen include/public/arch-x86/hvm/start_info.h,
// version 1; docs/misc/pvh.pandoc).

#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::boot {

struct PvhStartInfo {
  le32 magic;
  le32 version;
  le32 flags;
  le32 nr_modules;
  le64 modlist_paddr;
  le64 cmdline_paddr;
  le64 rsdp_paddr;
  le64 memmap_paddr;
  le32 memmap_entries;
  le32 reserved;
};
static_assert(sizeof(PvhStartInfo) == 56);
static_assert(offsetof(PvhStartInfo, modlist_paddr) == 16);
static_assert(offsetof(PvhStartInfo, cmdline_paddr) == 24);
static_assert(offsetof(PvhStartInfo, rsdp_paddr) == 32);
static_assert(offsetof(PvhStartInfo, memmap_paddr) == 40);

struct PvhModule {
  le64 paddr;
  le64 size;
  le64 cmdline_paddr;
  le64 reserved;
};
static_assert(sizeof(PvhModule) == 32);

struct PvhMemoryMapEntry {
  le64 address;
  le64 size;
  le32 type;
  le32 reserved;
};
static_assert(sizeof(PvhMemoryMapEntry) == 24);

constexpr std::uint32_t kPvhMagic = 0x336ec578;
constexpr std::uint32_t kPvhVersion = 1;

}  // namespace postern::boot
