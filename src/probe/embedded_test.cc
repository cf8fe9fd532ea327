#include "src/probe/embedded.h"

#include <elf.h>

#include <cstring>
#include <string>

#include <doctest/doctest.h>

namespace postern::probe {
namespace {

template <typename T>
T ReadAt(std::span<const std::byte> image, std::size_t offset) {
  T value{};
  REQUIRE(offset <= image.size());
  REQUIRE(sizeof(T) <= image.size() - offset);
  std::memcpy(&value, image.data() + offset, sizeof(T));
  return value;
}

TEST_CASE(
    "probe image: a small static ELF64 for x86-64 whose segments lie at 1 MiB and inside the "
    "file") {
  const std::span<const std::byte> image = ProbeImage();
  CHECK(image.size() < 96 * 1024);
  const auto header = ReadAt<Elf64_Ehdr>(image, 0);
  REQUIRE(std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0);
  CHECK(header.e_ident[EI_CLASS] == ELFCLASS64);
  CHECK(header.e_type == ET_EXEC);
  CHECK(header.e_machine == EM_X86_64);
  bool entry_inside = false;
  unsigned loads = 0;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const auto segment = ReadAt<Elf64_Phdr>(image, header.e_phoff + i * sizeof(Elf64_Phdr));
    CHECK(segment.p_type != PT_INTERP);
    CHECK(segment.p_type != PT_DYNAMIC);
    if (segment.p_type != PT_LOAD) continue;
    ++loads;
    CHECK(segment.p_offset + segment.p_filesz <= image.size());
    CHECK(segment.p_paddr >= 0x100000);
    CHECK(segment.p_paddr + segment.p_memsz <= 0x400000);
    CHECK(segment.p_paddr == segment.p_vaddr);
    entry_inside = entry_inside || (header.e_entry >= segment.p_paddr &&
                                    header.e_entry < segment.p_paddr + segment.p_filesz);
  }
  CHECK(loads == 2);
  CHECK(entry_inside);
}

TEST_CASE("probe image: the PVH note names an entry inside the code") {
  const std::span<const std::byte> image = ProbeImage();
  const auto header = ReadAt<Elf64_Ehdr>(image, 0);
  constexpr Elf64_Word kPhys32Entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
  unsigned notes = 0;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const auto segment = ReadAt<Elf64_Phdr>(image, header.e_phoff + i * sizeof(Elf64_Phdr));
    if (segment.p_type != PT_NOTE) continue;
    const auto note = ReadAt<Elf64_Nhdr>(image, segment.p_offset);
    CHECK(note.n_type == kPhys32Entry);
    REQUIRE(note.n_namesz == 4);
    REQUIRE(note.n_descsz == 8);
    CHECK(ReadAt<uint32_t>(image, segment.p_offset + sizeof(note)) == 0x006e6558);  // "Xen"
    const auto entry = ReadAt<uint64_t>(image, segment.p_offset + sizeof(note) + 4);
    CHECK(entry >= 0x100000);
    CHECK(entry < 0x100000 + image.size());
    ++notes;
  }
  CHECK(notes == 1);
}

}  // namespace
}  // namespace postern::probe
