#pragma once

// The parts of ELF-64 and of Xen's ELF notes a kernel loader reads.
// Sources: ELF-64 Object File Format, version 1.5; Xen include/public/elfnote.h.

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::boot {

struct Elf64Header {
  std::array<std::uint8_t, 16> ident;
  le16 type;
  le16 machine;
  le32 version;
  le64 entry;
  le64 phoff;
  le64 shoff;
  le32 flags;
  le16 ehsize;
  le16 phentsize;
  le16 phnum;
  le16 shentsize;
  le16 shnum;
  le16 shstrndx;
};
static_assert(sizeof(Elf64Header) == 64);
static_assert(offsetof(Elf64Header, entry) == 24 && offsetof(Elf64Header, phnum) == 56);

struct Elf64ProgramHeader {
  le32 type;
  le32 flags;
  le64 offset;
  le64 vaddr;
  le64 paddr;
  le64 filesz;
  le64 memsz;
  le64 align;
};
static_assert(sizeof(Elf64ProgramHeader) == 56);
static_assert(offsetof(Elf64ProgramHeader, paddr) == 24 &&
              offsetof(Elf64ProgramHeader, memsz) == 40);

struct ElfNoteHeader {
  le32 namesz;
  le32 descsz;
  le32 type;
};
static_assert(sizeof(ElfNoteHeader) == 12);

constexpr std::array<std::uint8_t, 4> kElfMagic = {0x7f, 'E', 'L', 'F'};
constexpr std::size_t kElfIdentClass = 4;
constexpr std::size_t kElfIdentData = 5;
constexpr std::uint8_t kElfClass64 = 2;
constexpr std::uint8_t kElfDataLittle = 1;
constexpr std::uint16_t kElfTypeExec = 2;
constexpr std::uint16_t kElfTypeDyn = 3;
constexpr std::uint16_t kElfMachineAmd64 = 62;
constexpr std::uint32_t kElfSegmentLoad = 1;
constexpr std::uint32_t kElfSegmentInterp = 3;
constexpr std::uint32_t kElfSegmentNote = 4;
constexpr std::uint32_t kXenNotePhys32Entry = 18;

}  // namespace postern::boot
