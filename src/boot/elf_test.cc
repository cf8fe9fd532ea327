#include <cstdint>
#include <string>

#include "src/boot/loader.h"
#include "src/boot/test_images.h"

#include <doctest/doctest.h>

namespace postern::boot {
namespace {

using memory::Gpa;
using testing::ByteVector;
using testing::ElfImage;
using testing::MakeMemory;
using testing::PutAt;

constexpr std::uint64_t kMiB = 1 << 20;

Outcome<LoadedKernel> Load(const ByteVector& bytes, const memory::GuestMemory& memory,
                           LoadOptions options = {}) {
  return LoadKernel(Image::FromBytes(bytes, "test", "kernel"), memory, options);
}

// Two segments, the second with a .bss, and an entry in the first.
ElfImage TwoSegments() {
  ElfImage elf;
  elf.Load(0x1000000, 0x3000, 0x3000);
  elf.Load(0x1200000, 0x1800, 0x5000);
  elf.header.entry = 0x1000040;
  return elf;
}

bool SegmentIsThere(const memory::GuestMemory& memory, std::uint64_t address, std::size_t size,
                    std::uint64_t tag) {
  const ByteVector bytes = testing::Peek(memory, address, size);
  if (bytes.size() != size) return false;
  for (std::size_t i = 0; i < size; ++i) {
    if (bytes[i] != testing::Pattern(tag, i)) return false;
  }
  return true;
}

TEST_CASE(
    "elf: segments go to their physical addresses and the 64-bit protocol is used without a note") {
  const auto memory = MakeMemory(64 * kMiB);
  const auto kernel = Load(TwoSegments().Build(), *memory);
  REQUIRE(kernel);
  CHECK(kernel->protocol == Protocol::kLinux64);
  CHECK(kernel->entry == Gpa(0x1000040));
  CHECK(kernel->start == Gpa(0x1000000));
  CHECK(kernel->end == Gpa(0x1205000));
  CHECK_FALSE(kernel->setup.has_value());
  CHECK(SegmentIsThere(*memory, 0x1000000, 0x3000, 0));
  CHECK(SegmentIsThere(*memory, 0x1200000, 0x1800, 1));
  CHECK(memory->Read<std::uint64_t>(Gpa(0x1201800)).value() == 0);
}

TEST_CASE("elf: a PVH note chooses PVH, in either size and alignment") {
  const auto memory = MakeMemory(64 * kMiB);
  ElfImage elf = TwoSegments();
  SUBCASE("4 bytes") {
    elf.PvhNote(0x1000100, 4);
  }
  SUBCASE("8 bytes") {
    elf.PvhNote(0x1000100, 8);
  }
  SUBCASE("8 bytes, aligned to 8") {
    elf.PvhNote(0x1000100, 8, 8);
  }
  const auto kernel = Load(elf.Build(), *memory);
  REQUIRE(kernel);
  CHECK(kernel->protocol == Protocol::kPvh);
  CHECK(kernel->entry == Gpa(0x1000100));
  const auto forced = Load(elf.Build(), *memory, {.ignore_pvh = true});
  REQUIRE(forced);
  CHECK(forced->protocol == Protocol::kLinux64);
  CHECK(forced->entry == Gpa(0x1000040));
}

TEST_CASE("elf: notes that are not the PVH entry do not choose it") {
  const auto memory = MakeMemory(64 * kMiB);
  ElfImage elf = TwoSegments();
  ByteVector notes;
  SUBCASE("another name") {
    ElfImage::AppendNote(notes, std::string("Yen\0", 4), 18, ByteVector(8));
  }
  SUBCASE("a name that only starts the same") {
    ElfImage::AppendNote(notes, std::string("Xenon\0", 6), 18, ByteVector(8));
  }
  SUBCASE("another type") {
    ElfImage::AppendNote(notes, std::string("Xen\0", 4), 17, ByteVector(8));
  }
  SUBCASE("another size") {
    ElfImage::AppendNote(notes, std::string("Xen\0", 4), 18, ByteVector(5));
  }
  SUBCASE("no bytes at all") {}
  elf.Notes(notes);
  const auto kernel = Load(elf.Build(), *memory);
  REQUIRE(kernel);
  CHECK(kernel->protocol == Protocol::kLinux64);
}

// CVE-2022-23523: sizes in a note that lead outside the segment, or nowhere.
TEST_CASE("elf: damaged notes neither loop nor read outside") {
  const auto memory = MakeMemory(64 * kMiB);
  struct Sizes {
    std::string name;
    std::uint32_t namesz;
    std::uint32_t descsz;
  };
  for (const Sizes& sizes :
       {Sizes{"all zero", 0, 0}, Sizes{"name beyond the segment", 0x1000, 0},
        Sizes{"contents beyond the segment", 4, 0x1000}, Sizes{"name is 2^32 - 1", UINT32_MAX, 0},
        Sizes{"contents are 2^32 - 1", 4, UINT32_MAX},
        Sizes{"both wrap 32 bits", UINT32_MAX, UINT32_MAX},
        Sizes{"sum is 2^32", 0x80000000, 0x80000000},
        Sizes{"alignment wraps", UINT32_MAX - 2, 1}}) {
    CAPTURE(sizes.name);
    ByteVector notes;
    ElfNoteHeader note{};
    note.namesz = sizes.namesz;
    note.descsz = sizes.descsz;
    note.type = kXenNotePhys32Entry;
    PutAt(notes, 0, note);
    notes.resize(40);
    ElfImage elf = TwoSegments();
    elf.Notes(notes);
    const auto kernel = Load(elf.Build(), *memory);
    REQUIRE(kernel);
    CHECK(kernel->protocol == Protocol::kLinux64);
  }
  // A header cut off by the end of the segment, at each length.
  for (std::size_t length = 1; length < 44; ++length) {
    ByteVector notes;
    const std::uint64_t entry = 0x1000100;
    ElfImage::AppendNote(notes, std::string("GNU\0", 4), 3, ByteVector(4));
    ElfImage::AppendNote(notes, std::string("Xen\0", 4), 18, std::as_bytes(std::span(&entry, 1)));
    REQUIRE(notes.size() == 44);
    notes.resize(length);
    ElfImage elf = TwoSegments();
    elf.Notes(notes);
    const auto kernel = Load(elf.Build(), *memory);
    REQUIRE(kernel);
    CHECK(kernel->protocol == Protocol::kLinux64);
  }
}

TEST_CASE("elf: an image cut off anywhere is refused in one line and nothing is loaded") {
  ElfImage elf;
  elf.Load(0x100000, 0x40, 0x40);
  elf.PvhNote(0x100000);
  elf.header.entry = 0x100000;
  const ByteVector whole = elf.Build();
  const auto memory = MakeMemory(4 * kMiB);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    const auto kernel = Load(
        ByteVector(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)), *memory);
    REQUIRE_FALSE(kernel);
    CHECK(kernel.error().kind == Failure::Kind::kConfig);
    CHECK(kernel.error().cause.find('\n') == std::string::npos);
    CHECK_FALSE(kernel.error().next_step.empty());
    CHECK(memory->Read<std::uint64_t>(Gpa(0x100000)).value() == 0);
  }
  CHECK(Load(whole, *memory));
}

struct Damage {
  std::string name;
  void (*apply)(ElfImage&);
  const char* expected;  // part of the message
};

TEST_CASE("elf: every number that does not fit file or RAM is refused with its cause") {
  using E = ElfImage;
  const Damage damages[] = {
      {"32-bit class", [](E& e) { e.header.ident[kElfIdentClass] = 1; },
       "another kind of processor"},
      {"big-endian", [](E& e) { e.header.ident[kElfIdentData] = 2; }, "another kind of processor"},
      {"ARM64", [](E& e) { e.header.machine = 183; }, "another kind of processor"},
      {"shared object", [](E& e) { e.header.type = kElfTypeDyn; }, "position-independent"},
      {"relocatable object", [](E& e) { e.header.type = 1; }, "object file"},
      {"program of an OS", [](E& e) { e.Notes(ByteVector(8)).header.type = kElfSegmentInterp; },
       "operating system"},
      {"65535 program headers", [](E& e) { e.header.phnum = 0xffff; }, "65535 program headers"},
      {"257 program headers", [](E& e) { e.header.phnum = 257; }, "257 program headers"},
      {"table one byte over the end", [](E& e) { e.header.phoff = 0x4841; }, "ends after"},
      {"header size 0", [](E& e) { e.header.phentsize = 0; }, "0 bytes instead of 56"},
      {"header size 32", [](E& e) { e.header.phentsize = 32; }, "32 bytes instead of 56"},
      {"table beyond the end", [](E& e) { e.header.phoff = 0x100000; }, "ends after"},
      {"table wraps", [](E& e) { e.header.phoff = UINT64_MAX - 8; }, "ends after"},
      {"file size over memory size", [](E& e) { e.segments[0].header.memsz = 0x2fff; },
       "larger in the file"},
      {"offset beyond the end", [](E& e) { e.segments[0].header.offset = 0x100000; },
       "beyond the end"},
      {"offset wraps", [](E& e) { e.segments[0].header.offset = UINT64_MAX; }, "beyond the end"},
      {"file size wraps",
       [](E& e) {
         e.segments[0].header.filesz = UINT64_MAX;
         e.segments[0].header.memsz = UINT64_MAX;
       },
       "beyond the end"},
      {"memory size 2^64-1", [](E& e) { e.segments[1].header.memsz = UINT64_MAX; }, "wants"},
      {"address in the loader's area", [](E& e) { e.segments[0].header.paddr = 0x7000; }, "wants"},
      {"ends above RAM by one byte",
       [](E& e) { e.segments[1].header.memsz = 64 * kMiB - 0x1200000 + 1; }, "wants"},
      {"address at 2^64 - 4096", [](E& e) { e.segments[0].header.paddr = 0xfffffffffffff000; },
       "wants"},
      {"address in the device hole", [](E& e) { e.segments[0].header.paddr = 0xd0000000; },
       "1 MiB to 3 GiB"},
      {"address above 4 GiB", [](E& e) { e.segments[0].header.paddr = 0x100000000; },
       "1 MiB to 3 GiB"},
      {"entry outside", [](E& e) { e.header.entry = 0x2000000; }, "in no segment"},
      {"entry in .bss", [](E& e) { e.header.entry = 0x1201800; }, "in no segment"},
      {"entry 0", [](E& e) { e.header.entry = 0; }, "in no segment"},
      {"PVH entry outside", [](E& e) { e.PvhNote(0x123); }, "in no segment"},
      {"notes of 4 GiB",
       [](E& e) { e.Notes(ByteVector(16)).header.filesz = std::uint64_t{1} << 32; },
       "bytes of notes"},
      {"notes beyond the end", [](E& e) { e.Notes(ByteVector(16)).header.offset = 0x8000; },
       "ends after"},
      {"nothing to load",
       [](E& e) {
         e.segments.erase(e.segments.begin(), e.segments.end()), e.Notes(ByteVector(16));
       },
       "nothing to load"},
  };
  const auto memory = MakeMemory(64 * kMiB, 64 * kMiB);
  for (const Damage& damage : damages) {
    CAPTURE(damage.name);
    ElfImage elf = TwoSegments();
    damage.apply(elf);
    const auto kernel = Load(elf.Build(), *memory);
    REQUIRE_FALSE(kernel);
    CAPTURE(kernel.error().cause);
    CHECK(kernel.error().cause.find(damage.expected) != std::string::npos);
    CHECK(kernel.error().cause.starts_with("kernel 'test' "));
    CHECK(kernel.error().cause.find('\n') == std::string::npos);
    CHECK_FALSE(kernel.error().next_step.empty());
    CHECK(memory->Read<std::uint64_t>(Gpa(0x1000000)).value() == 0);
  }
}

TEST_CASE("elf: a segment that ends with the last byte of RAM fits") {
  ElfImage elf;
  elf.Load(0x100000, 0x1000, 3 * kMiB);
  elf.header.entry = 0x100000;
  CHECK(Load(elf.Build(), *MakeMemory(4 * kMiB)));
  CHECK_FALSE(Load(elf.Build(), *MakeMemory(4 * kMiB - 0x1000)));
}

TEST_CASE("elf: empty segments are nothing, and no headers is damage") {
  const auto memory = MakeMemory(64 * kMiB);
  ElfImage elf = TwoSegments();
  elf.Load(0xffffffff00000000, 0, 0);
  CHECK(Load(elf.Build(), *memory));
  const auto none = Load(ElfImage().Build(), *memory);
  REQUIRE_FALSE(none);
  CHECK(none.error().cause.find("no program headers") != std::string::npos);
}

TEST_CASE("kernel: what is no kernel is named") {
  const auto memory = MakeMemory(4 * kMiB);
  struct Sample {
    std::string bytes;
    std::string expected;
  };
  const Sample samples[] = {
      {"", "is empty"},
      {"x", "neither a bzImage nor an ELF"},
      {std::string("\x1f\x8b\x08\x00", 4), "gzip"},
      {std::string("\xfd"
                   "7zXZ\0",
                   6),
       "xz archive"},
      {"\x28\xb5\x2f\xfd", "zstd"},
      {"BZh91AY", "bzip2"},
      {"070701000", "initramfs"},
      {"!<arch>\ndebian-binary", "Debian package"},
      {"#!/bin/sh\n", "a script"},
      {"QFI\xfb", "qcow2"},
      {"MZ" + std::string(0x36, '\0') + "ARM\x64", "64-bit ARM"},
      {"MZ" + std::string(0x400, '\0'), "EFI program"},
      {std::string(0x1000, '\0'), "neither a bzImage nor an ELF"},
      {std::string(0x205, 'H'), "neither a bzImage nor an ELF"},
  };
  for (const Sample& sample : samples) {
    CAPTURE(sample.expected);
    const auto kernel = LoadKernel(
        Image::FromBytes(std::as_bytes(std::span(sample.bytes)), "f", "kernel"), *memory);
    REQUIRE_FALSE(kernel);
    CAPTURE(kernel.error().cause);
    CHECK(kernel.error().cause.find(sample.expected) != std::string::npos);
    CHECK_FALSE(kernel.error().next_step.empty());
  }
}

}  // namespace
}  // namespace postern::boot
