#pragma once

// boot_params, the "zero page" of Linux, and the setup header in it; the parts a loader fills.
// Offsets are those of Linux Documentation/arch/x86/zero-page.rst and boot.rst (protocol 2.15),
// checked by static_assert.

#include <array>
#include <cstddef>
#include <cstdint>

namespace postern::boot {

template <std::size_t N>
using Bytes = std::array<std::uint8_t, N>;

#pragma pack(push, 1)
// boot.rst, "Details of Header Fields"; at offset 0x1f1 of a bzImage and of boot_params.
struct SetupHeader {
  std::uint8_t setup_sects;
  std::uint16_t root_flags;
  std::uint32_t syssize;
  std::uint16_t ram_size;
  std::uint16_t vid_mode;
  std::uint16_t root_dev;
  std::uint16_t boot_flag;
  std::uint16_t jump;
  std::uint32_t header;
  std::uint16_t version;
  std::uint32_t realmode_swtch;
  std::uint16_t start_sys_seg;
  std::uint16_t kernel_version;
  std::uint8_t type_of_loader;
  std::uint8_t loadflags;
  std::uint16_t setup_move_size;
  std::uint32_t code32_start;
  std::uint32_t ramdisk_image;
  std::uint32_t ramdisk_size;
  std::uint32_t bootsect_kludge;
  std::uint16_t heap_end_ptr;
  std::uint8_t ext_loader_ver;
  std::uint8_t ext_loader_type;
  std::uint32_t cmd_line_ptr;
  std::uint32_t initrd_addr_max;
  std::uint32_t kernel_alignment;
  std::uint8_t relocatable_kernel;
  std::uint8_t min_alignment;
  std::uint16_t xloadflags;
  std::uint32_t cmdline_size;
  std::uint32_t hardware_subarch;
  std::uint64_t hardware_subarch_data;
  std::uint32_t payload_offset;
  std::uint32_t payload_length;
  std::uint64_t setup_data;
  std::uint64_t pref_address;
  std::uint32_t init_size;
  std::uint32_t handover_offset;
  std::uint32_t kernel_info_offset;
};

struct E820Entry {
  std::uint64_t address;
  std::uint64_t size;
  std::uint32_t type;
};

struct BootParams {
  Bytes<0x70> screen_info;               // 0x000: screen_info, apm_bios_info, ...; zero: no display
  std::uint64_t acpi_rsdp_addr;          // 0x070
  Bytes<0x168> legacy;                   // 0x078: disks, EDID, EFI, ...; zero: none
  std::uint32_t alt_mem_k;               // 0x1e0
  std::uint32_t scratch;                 // 0x1e4
  std::uint8_t e820_entries;             // 0x1e8
  std::uint8_t eddbuf_entries;           // 0x1e9
  std::uint8_t edd_mbr_sig_buf_entries;  // 0x1ea
  std::uint8_t kbd_status;               // 0x1eb
  std::uint8_t secure_boot;              // 0x1ec
  Bytes<2> reserved1;                    // 0x1ed
  std::uint8_t sentinel;   // 0x1ef: non-zero makes the kernel clear what a careless loader left
  std::uint8_t reserved2;  // 0x1f0
  SetupHeader header;      // 0x1f1
  Bytes<0x290 - 0x1f1 - sizeof(SetupHeader)> reserved3;
  Bytes<0x40> edd_mbr_sig_buffer;         // 0x290
  std::array<E820Entry, 128> e820_table;  // 0x2d0
  Bytes<0x330> reserved4;                 // 0xcd0: EDD data and padding
};
#pragma pack(pop)

static_assert(sizeof(SetupHeader) == 0x26c - 0x1f1);
static_assert(offsetof(SetupHeader, boot_flag) == 0x1fe - 0x1f1);
static_assert(offsetof(SetupHeader, header) == 0x202 - 0x1f1);
static_assert(offsetof(SetupHeader, version) == 0x206 - 0x1f1);
static_assert(offsetof(SetupHeader, type_of_loader) == 0x210 - 0x1f1);
static_assert(offsetof(SetupHeader, code32_start) == 0x214 - 0x1f1);
static_assert(offsetof(SetupHeader, ramdisk_image) == 0x218 - 0x1f1);
static_assert(offsetof(SetupHeader, cmd_line_ptr) == 0x228 - 0x1f1);
static_assert(offsetof(SetupHeader, initrd_addr_max) == 0x22c - 0x1f1);
static_assert(offsetof(SetupHeader, kernel_alignment) == 0x230 - 0x1f1);
static_assert(offsetof(SetupHeader, xloadflags) == 0x236 - 0x1f1);
static_assert(offsetof(SetupHeader, cmdline_size) == 0x238 - 0x1f1);
static_assert(offsetof(SetupHeader, payload_offset) == 0x248 - 0x1f1);
static_assert(offsetof(SetupHeader, setup_data) == 0x250 - 0x1f1);
static_assert(offsetof(SetupHeader, pref_address) == 0x258 - 0x1f1);
static_assert(offsetof(SetupHeader, init_size) == 0x260 - 0x1f1);
static_assert(sizeof(E820Entry) == 20);
static_assert(offsetof(BootParams, acpi_rsdp_addr) == 0x70);
static_assert(offsetof(BootParams, alt_mem_k) == 0x1e0);
static_assert(offsetof(BootParams, e820_entries) == 0x1e8);
static_assert(offsetof(BootParams, sentinel) == 0x1ef);
static_assert(offsetof(BootParams, header) == 0x1f1);
static_assert(offsetof(BootParams, edd_mbr_sig_buffer) == 0x290);
static_assert(offsetof(BootParams, e820_table) == 0x2d0);
static_assert(sizeof(BootParams) == 0x1000);

// boot.rst: values of the header.
constexpr std::uint16_t kBootFlag = 0xaa55;
constexpr std::uint32_t kHeaderMagic = 0x53726448;  // "HdrS"
// Type_of_loader: a loader without an assigned number.
constexpr std::uint8_t kLoaderUndefined = 0xff;
constexpr std::uint8_t kLoadedHigh = 1U << 0;    // loadflags
constexpr std::uint8_t kKeepSegments = 1U << 6;  // loadflags
constexpr std::uint16_t kKernel64 = 1U << 0;     // xloadflags: 64-bit entry point at 0x200

}  // namespace postern::boot
