#pragma once

// LoadKernel: puts a kernel image into guest memory and says how to enter it.
//
// Understands: bzImage of boot protocol 2.12 and later with a 64-bit entry point (the compressed
// form every distribution ships); ELF64 x86-64 executables (vmlinux), by PVH if they carry the note
// XEN_ELFNOTE_PHYS32_ENTRY, by the 64-bit boot protocol else. Anything else is refused with what it
// looks like and what to do. Needs guest memory that still reads zero: the zero-filled tails of
// segments (.bss) are not written. Every number of the image is checked against its size and
// against RAM before it is used. Sources: Linux Documentation/arch/x86/boot.rst; ELF-64 Object File
// Format 1.5; Xen include/public/elfnote.h.

#include <cstdint>
#include <optional>

#include "src/base/failure.h"
#include "src/boot/boot_params.h"
#include "src/boot/image.h"
#include "src/memory/gpa.h"
#include "src/memory/guest_memory.h"

namespace postern::boot {

enum class Protocol : std::uint8_t { kLinux64, kPvh };

struct LoadedKernel {
  Protocol protocol = Protocol::kLinux64;
  memory::Gpa entry;
  memory::Gpa start;  // lowest byte the kernel occupies
  memory::Gpa end;    // first byte above what the kernel needs before it has read the memory map
                      // (.bss, init_size)
  // bzImage: its own header, which boot_params must repeat. Absent for ELF.
  std::optional<SetupHeader> setup;
  // The longest command line the kernel takes, without the NUL.
  std::uint32_t command_line_limit = kDefaultCommandLineLimit;
  // The highest address of the last byte of an initrd.
  std::uint64_t initrd_last = kDefaultInitrdLast;

  static constexpr std::uint32_t kDefaultCommandLineLimit = 2047;
  static constexpr std::uint64_t kDefaultInitrdLast = 0xffffffff;
};

struct LoadOptions {
  // Forces the 64-bit boot protocol on an ELF image that has a PVH note.
  bool ignore_pvh = false;
};

[[nodiscard]] Outcome<LoadedKernel> LoadKernel(const Image& image,
                                               const memory::GuestMemory& memory,
                                               const LoadOptions& options = {});

struct LoadedInitrd {
  memory::Gpa base;
  std::uint64_t size = 0;
};
// As high in low RAM as the kernel allows, above the kernel, page-aligned.
[[nodiscard]] Outcome<LoadedInitrd> LoadInitrd(const Image& image,
                                               const memory::GuestMemory& memory,
                                               const LoadedKernel& kernel);

}  // namespace postern::boot
