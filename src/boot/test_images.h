#pragma once

// Kernel images made by hand, and guest memory to load them into. For tests and fuzz targets.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "src/boot/boot_params.h"
#include "src/boot/elf.h"
#include "src/memory/guest_memory.h"

namespace postern::boot::testing {

using ByteVector = std::vector<std::byte>;

template <typename T>
void PutAt(ByteVector& bytes, std::size_t offset, const T& value) {
  if (bytes.size() < offset + sizeof(T)) bytes.resize(offset + sizeof(T));
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

inline memory::GuestMemoryPtr MakeMemory(std::uint64_t low, std::uint64_t high = 0) {
  std::vector<memory::RegionPtr> regions;
  regions.push_back(memory::Region::Create(memory::Gpa(0), low, {}).value());
  if (high != 0)
    regions.push_back(memory::Region::Create(memory::Gpa(0x100000000), high, {}).value());
  return memory::GuestMemory::Create(std::move(regions)).value();
}

inline ByteVector Peek(const memory::GuestMemory& memory, std::uint64_t address,
                       std::size_t length) {
  ByteVector bytes(length);
  if (!memory.CopyOut(memory::Gpa(address), bytes)) bytes.clear();
  return bytes;
}

// Byte i of the contents of segment `tag`: a pattern in which a shift or a swap shows.
inline std::byte Pattern(std::uint64_t tag, std::uint64_t i) {
  return static_cast<std::byte>(tag * 31 + i * 7 + i / 256);
}

// An ELF64 x86-64 executable; every number can be made wrong before Build.
struct ElfImage {
  struct Segment {
    Elf64ProgramHeader header{};
    ByteVector contents;
  };
  Elf64Header header{};
  std::vector<Segment> segments;

  ElfImage() {
    std::memcpy(header.ident.data(), kElfMagic.data(), kElfMagic.size());
    header.ident[kElfIdentClass] = kElfClass64;
    header.ident[kElfIdentData] = kElfDataLittle;
    header.ident[6] = 1;
    header.type = kElfTypeExec;
    header.machine = kElfMachineAmd64;
    header.version = 1;
    header.ehsize = sizeof(Elf64Header);
    header.phentsize = sizeof(Elf64ProgramHeader);
    header.phoff = sizeof(Elf64Header);
  }

  Segment& Load(std::uint64_t paddr, std::size_t filesz, std::uint64_t memsz) {
    Segment segment;
    segment.header.type = kElfSegmentLoad;
    segment.header.paddr = paddr;
    segment.header.vaddr = paddr + 0xffffffff80000000;
    segment.header.memsz = memsz;
    segment.header.align = 0x1000;
    for (std::size_t i = 0; i < filesz; ++i)
      segment.contents.push_back(Pattern(segments.size(), i));
    return segments.emplace_back(std::move(segment));
  }

  static void AppendNote(ByteVector& notes, const std::string& name, std::uint32_t type,
                         std::span<const std::byte> desc, std::size_t alignment = 4) {
    ElfNoteHeader note{};
    note.namesz = static_cast<std::uint32_t>(name.size());
    note.descsz = static_cast<std::uint32_t>(desc.size());
    note.type = type;
    PutAt(notes, notes.size(), note);
    for (const char c : name) notes.push_back(static_cast<std::byte>(c));
    while (notes.size() % alignment != 0) notes.push_back(std::byte{0});
    notes.insert(notes.end(), desc.begin(), desc.end());
    while (notes.size() % alignment != 0) notes.push_back(std::byte{0});
  }

  Segment& Notes(ByteVector notes, std::uint64_t alignment = 4) {
    Segment segment;
    segment.header.type = kElfSegmentNote;
    segment.header.align = alignment;
    segment.header.memsz = notes.size();
    segment.contents = std::move(notes);
    return segments.emplace_back(std::move(segment));
  }

  Segment& PvhNote(std::uint64_t entry, std::size_t desc_size = 8, std::size_t alignment = 4) {
    ByteVector desc(desc_size);
    std::memcpy(desc.data(), &entry, std::min<std::size_t>(desc_size, sizeof(entry)));
    ByteVector notes;
    AppendNote(notes, std::string("GNU\0", 4), 3, ByteVector(20),
               alignment);  // a build id comes first in a vmlinux
    AppendNote(notes, std::string("Xen\0", 4), kXenNotePhys32Entry, desc, alignment);
    return Notes(std::move(notes), alignment);
  }

  // Contents follow the program headers in order; offsets and file sizes are filled where they are
  // zero.
  [[nodiscard]] ByteVector Build() const {
    ByteVector bytes;
    Elf64Header out = header;
    if (out.phnum.get() == 0) out.phnum = static_cast<std::uint16_t>(segments.size());
    PutAt(bytes, 0, out);
    bytes.resize(sizeof(Elf64Header) + segments.size() * sizeof(Elf64ProgramHeader));
    for (std::size_t i = 0; i < segments.size(); ++i) {
      Elf64ProgramHeader segment = segments[i].header;
      if (segment.offset.get() == 0) segment.offset = bytes.size();
      if (segment.filesz.get() == 0) segment.filesz = segments[i].contents.size();
      bytes.insert(bytes.end(), segments[i].contents.begin(), segments[i].contents.end());
      PutAt(bytes, sizeof(Elf64Header) + i * sizeof(Elf64ProgramHeader), segment);
    }
    return bytes;
  }
};

// A bzImage as far as a loader sees one: setup sectors, then `protected_mode` bytes.
struct BzImage {
  SetupHeader header{};
  std::size_t protected_mode = 0x2000;
  std::size_t trailing = 0;  // bytes after what the header announces, like a signature

  BzImage() {
    header.setup_sects = 3;
    header.boot_flag = kBootFlag;
    header.jump = static_cast<std::uint16_t>((0x26c - 0x202) << 8 | 0xeb);
    header.header = kHeaderMagic;
    header.version = 0x20f;
    header.loadflags = kLoadedHigh;
    header.code32_start = 0x100000;
    header.initrd_addr_max = 0x7fffffff;
    header.kernel_alignment = 0x200000;
    header.relocatable_kernel = 1;
    header.xloadflags = kKernel64;
    header.cmdline_size = 2047;
    header.pref_address = 0x1000000;
    header.init_size = 0x30000;
    header.payload_offset = 0x400;
    header.payload_length = 0x800;
    header.syssize = static_cast<std::uint32_t>(protected_mode / 16);
  }

  [[nodiscard]] std::size_t SetupSize() const {
    const std::size_t sectors = header.setup_sects == 0 ? 5U : header.setup_sects + 1U;
    return sectors * 512;
  }

  [[nodiscard]] ByteVector Build() const {
    ByteVector bytes(SetupSize());
    PutAt(bytes, 0, std::uint16_t{0x5a4d});  // "MZ": an EFI stub begins it
    PutAt(bytes, 0x1f1, header);
    bytes.resize(SetupSize());
    for (std::size_t i = 0; i < protected_mode; ++i) bytes.push_back(Pattern(9, i));
    bytes.resize(bytes.size() + trailing, std::byte{0xee});
    return bytes;
  }
};

}  // namespace postern::boot::testing
