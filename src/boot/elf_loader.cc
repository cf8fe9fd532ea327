// LoadElf: ELF64 executables, by PVH or by the 64-bit boot protocol.

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/strong.h"
#include "src/boot/elf.h"
#include "src/boot/loader_internal.h"

namespace postern::boot::internal {
namespace {

using memory::Gpa;
using memory::GuestMemory;

// A Linux vmlinux has about five; more than this is a damaged count.
constexpr std::size_t kMaxProgramHeaders = 256;
// All notes of a vmlinux are a few hundred bytes.
constexpr std::uint64_t kMaxNoteBytes = 0x10000;

constexpr std::uint64_t AlignUp(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

// One PT_NOTE segment. CVE-2022-23523 is this walk with sizes believed: here every step is measured
// against the bytes left, and each takes at least a header, so it ends. All sums are of 32-bit
// values in 64 bits.
std::optional<std::uint64_t> FindPvhEntry(std::span<const std::byte> notes,
                                          std::uint64_t segment_align) {
  // ELF-64 1.5 speaks of 8-byte alignment, practice is 4 unless the segment says 8.
  const std::uint64_t alignment = segment_align == 8 ? 8 : 4;
  std::uint64_t at = 0;
  while (notes.size() - at >= sizeof(ElfNoteHeader)) {
    ElfNoteHeader header{};
    std::memcpy(&header, notes.data() + at, sizeof(header));
    const std::uint64_t name_at = at + sizeof(header);
    const std::uint64_t desc_at = AlignUp(name_at + header.namesz.get(), alignment);
    const std::uint64_t desc_end = desc_at + header.descsz.get();
    if (desc_end > notes.size()) return std::nullopt;
    static constexpr std::array<char, 4> kXen = {'X', 'e', 'n', '\0'};
    if (header.type.get() == kXenNotePhys32Entry && header.namesz.get() == kXen.size() &&
        std::memcmp(notes.data() + name_at, kXen.data(), kXen.size()) == 0) {
      if (header.descsz.get() == 4) {
        le32 entry;
        std::memcpy(&entry, notes.data() + desc_at, sizeof(entry));
        return entry.get();
      }
      if (header.descsz.get() == 8) {
        le64 entry;
        std::memcpy(&entry, notes.data() + desc_at, sizeof(entry));
        return entry.get();
      }
    }
    at = AlignUp(desc_end, alignment);
    if (at > notes.size()) return std::nullopt;
  }
  return std::nullopt;
}

Outcome<std::vector<Elf64ProgramHeader>> ReadProgramHeaders(const Image& image,
                                                            const Elf64Header& header) {
  const std::size_t count = header.phnum.get();
  if (count == 0) return Damaged(image, "it has no program headers");
  if (count > kMaxProgramHeaders)
    return Damaged(image, "it claims " + std::to_string(count) + " program headers");
  if (header.phentsize.get() != sizeof(Elf64ProgramHeader)) {
    return Damaged(image, "its program headers have " + std::to_string(header.phentsize.get()) +
                              " bytes instead of 56");
  }
  std::vector<Elf64ProgramHeader> headers(count);
  if (auto read = image.Read(header.phoff.get(), std::as_writable_bytes(std::span(headers)));
      !read) {
    return ReadFailure(image, read.error());
  }
  return headers;
}

Outcome<void> CheckSegment(const Image& image, const GuestMemory& memory,
                           const Elf64ProgramHeader& segment, std::size_t index) {
  const std::string name = "segment " + std::to_string(index);
  if (segment.filesz.get() > segment.memsz.get()) {
    return Damaged(image, name + " is larger in the file than in memory");
  }
  const std::optional<std::uint64_t> file_end =
      CheckedAdd(segment.offset.get(), segment.filesz.get());
  if (!file_end || *file_end > image.size())
    return Damaged(image, name + " lies beyond the end of the file");
  if (!IsKernelRam(memory, segment.paddr.get(), segment.memsz.get())) {
    return NeedsMemory(image, memory, segment.paddr.get(), segment.memsz.get());
  }
  return {};
}

}  // namespace

Outcome<LoadedKernel> LoadElf(const Image& image, const GuestMemory& memory,
                              const LoadOptions& options) {
  Elf64Header header{};
  if (auto read = image.Read(0, std::as_writable_bytes(std::span(&header, 1))); !read) {
    return ReadFailure(image, read.error());
  }
  if (header.ident[kElfIdentClass] != kElfClass64 ||
      header.ident[kElfIdentData] != kElfDataLittle || header.machine.get() != kElfMachineAmd64) {
    return ConfigFailure(image.Label() + " is an ELF file for another kind of processor (machine " +
                             std::to_string(header.machine.get()) + ")",
                         "give a kernel built for 64-bit x86");
  }
  if (header.type.get() != kElfTypeExec) {
    return ConfigFailure(image.Label() + (header.type.get() == kElfTypeDyn
                                              ? " is a position-independent program, not a kernel"
                                              : " is an object file or a core dump, not a kernel"),
                         "give a vmlinux or a bzImage");
  }
  Outcome<std::vector<Elf64ProgramHeader>> headers = ReadProgramHeaders(image, header);
  if (!headers) return tl::unexpected(std::move(headers.error()));

  LoadedKernel kernel;
  kernel.start = Gpa(UINT64_MAX);
  bool loadable = false;
  std::optional<std::uint64_t> pvh_entry;
  // Everything is checked before anything is written.
  for (std::size_t i = 0; i < headers->size(); ++i) {
    const Elf64ProgramHeader& segment = (*headers)[i];
    switch (segment.type.get()) {
      case kElfSegmentInterp:
        return ConfigFailure(image.Label() + " is a program for an operating system, not a kernel",
                             "give a vmlinux or a bzImage");
      case kElfSegmentLoad: {
        if (segment.memsz.get() == 0) break;
        if (auto fits = CheckSegment(image, memory, segment, i); !fits)
          return tl::unexpected(std::move(fits.error()));
        loadable = true;
        kernel.start = std::min(kernel.start, Gpa(segment.paddr.get()));
        kernel.end = std::max(kernel.end, Gpa(segment.paddr.get() + segment.memsz.get()));
        break;
      }
      case kElfSegmentNote: {
        if (pvh_entry || options.ignore_pvh) break;
        if (segment.filesz.get() > kMaxNoteBytes) {
          return Damaged(image, "segment " + std::to_string(i) + " claims " +
                                    std::to_string(segment.filesz.get()) + " bytes of notes");
        }
        std::vector<std::byte> notes(segment.filesz.get());
        if (auto read = image.Read(segment.offset.get(), notes); !read)
          return ReadFailure(image, read.error());
        pvh_entry = FindPvhEntry(notes, segment.align.get());
        break;
      }
      default:
        break;
    }
  }
  if (!loadable) return Damaged(image, "it has nothing to load");

  const std::uint64_t entry = pvh_entry.value_or(header.entry.get());
  const bool entry_loaded =
      std::any_of(headers->begin(), headers->end(), [entry](const Elf64ProgramHeader& segment) {
        return segment.type.get() == kElfSegmentLoad && entry >= segment.paddr.get() &&
               entry - segment.paddr.get() < segment.filesz.get();
      });
  if (!entry_loaded) return Damaged(image, "its entry point " + Hex(entry) + " is in no segment");
  // pvh.pandoc: entered in 32-bit mode.
  if (pvh_entry && entry > UINT32_MAX) return Damaged(image, "its PVH entry point is above 4 GiB");
  kernel.protocol = pvh_entry ? Protocol::kPvh : Protocol::kLinux64;
  kernel.entry = Gpa(entry);

  for (const Elf64ProgramHeader& segment : *headers) {
    if (segment.type.get() != kElfSegmentLoad || segment.filesz.get() == 0) continue;
    if (auto read = image.ReadInto(memory, Gpa(segment.paddr.get()), segment.offset.get(),
                                   segment.filesz.get());
        !read) {
      return ReadFailure(image, read.error());
    }
  }
  return kernel;
}

}  // namespace postern::boot::internal
