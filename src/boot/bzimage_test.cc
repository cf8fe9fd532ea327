#include <cstdint>
#include <string>

#include "src/boot/loader.h"
#include "src/boot/test_images.h"

#include <doctest/doctest.h>

namespace postern::boot {
namespace {

using memory::Gpa;
using testing::ByteVector;
using testing::BzImage;
using testing::MakeMemory;

constexpr std::uint64_t kMiB = 1 << 20;

Outcome<LoadedKernel> Load(const ByteVector& bytes, const memory::GuestMemory& memory) {
  return LoadKernel(Image::FromBytes(bytes, "test", "kernel"), memory);
}

bool CodeIsAt(const memory::GuestMemory& memory, std::uint64_t address, std::size_t size) {
  const ByteVector bytes = testing::Peek(memory, address, size);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != testing::Pattern(9, i)) return false;
  }
  return bytes.size() == size;
}

TEST_CASE(
    "bzimage: the protected-mode part goes where the kernel likes it and is entered 0x200 above") {
  const auto memory = MakeMemory(64 * kMiB);
  BzImage image;
  SUBCASE("exact") {}
  SUBCASE("with a signature behind it") {
    image.trailing = 1000;
  }
  SUBCASE("setup sectors 0 means 4") {
    image.header.setup_sects = 0;
  }
  const auto kernel = Load(image.Build(), *memory);
  REQUIRE(kernel);
  CHECK(kernel->protocol == Protocol::kLinux64);
  CHECK(kernel->entry == Gpa(0x1000200));
  CHECK(kernel->start == Gpa(0x1000000));
  CHECK(kernel->end == Gpa(0x1030000));
  CHECK(kernel->command_line_limit == 2047);
  CHECK(kernel->initrd_last == 0x7fffffff);
  REQUIRE(kernel->setup);
  CHECK(+kernel->setup->header == kHeaderMagic);
  CHECK(CodeIsAt(*memory, 0x1000000, 0x2000));
  // The signature is not part of the kernel.
  CHECK(memory->Read<std::uint64_t>(Gpa(0x1002000)).value() == 0);
}

TEST_CASE("bzimage: the last paragraph may be short") {
  const auto memory = MakeMemory(64 * kMiB);
  BzImage image;
  image.protected_mode = 0x2000 - 15;
  CHECK(Load(image.Build(), *memory));
  image.protected_mode = 0x2000 - 16;
  CHECK_FALSE(Load(image.Build(), *memory));
}

TEST_CASE("bzimage: a relocatable kernel goes lower when its preferred place is not RAM") {
  BzImage image;
  image.header.kernel_alignment = 0x200000;
  const auto small = MakeMemory(16 * kMiB);
  const auto kernel = Load(image.Build(), *small);
  REQUIRE(kernel);
  CHECK(kernel->start == Gpa(0x200000));
  CHECK(CodeIsAt(*small, 0x200000, 0x2000));

  image.header.relocatable_kernel = 0;
  const auto fixed = Load(image.Build(), *small);
  REQUIRE_FALSE(fixed);
  CHECK(fixed.error().cause.find("this machine has 16 MiB") != std::string::npos);
  CHECK(fixed.error().next_step.find("17 MiB") != std::string::npos);
  CHECK(Load(image.Build(), *MakeMemory(32 * kMiB)));
}

TEST_CASE("bzimage: init_size decides whether it fits, to the byte") {
  BzImage image;
  image.header.relocatable_kernel = 0;
  image.header.pref_address = 0x100000;
  image.header.init_size = static_cast<std::uint32_t>(3 * kMiB);
  CHECK(Load(image.Build(), *MakeMemory(4 * kMiB)));
  image.header.init_size += 1;
  CHECK_FALSE(Load(image.Build(), *MakeMemory(4 * kMiB)));
  // A header that announces less than it brings.
  image.header.init_size = 0;
  const auto kernel = Load(image.Build(), *MakeMemory(4 * kMiB));
  REQUIRE(kernel);
  CHECK(kernel->end == Gpa(0x102000));
}

TEST_CASE("bzimage: an older, shorter header reads as zero beyond its end") {
  BzImage image;
  image.header.version = 0x20c;
  image.header.jump =
      static_cast<std::uint16_t>((0x238 - 0x202) << 8 | 0xeb);  // ends before cmdline_size
  image.header.pref_address = 0x5000000;
  const auto memory = MakeMemory(64 * kMiB);
  const auto kernel = Load(image.Build(), *memory);
  REQUIRE(kernel);
  CHECK(+kernel->setup->pref_address == 0);
  CHECK(kernel->command_line_limit == LoadedKernel::kDefaultCommandLineLimit);
  CHECK(kernel->start == Gpa(0x200000));
}

TEST_CASE("bzimage: bad headers are refused with their cause") {
  struct Damage {
    std::string name;
    void (*apply)(BzImage&);
    const char* expected;
  };
  const Damage damages[] = {
      {"protocol 2.11", [](BzImage& b) { b.header.version = 0x20b; }, "protocol 2.11"},
      {"zImage", [](BzImage& b) { b.header.loadflags = 0; }, "zImage"},
      {"32-bit", [](BzImage& b) { b.header.xloadflags = 0; }, "32-bit kernel"},
      {"length 0", [](BzImage& b) { b.header.syssize = 0; }, "length field is 0"},
      {"length 2^32 paragraphs", [](BzImage& b) { b.header.syssize = UINT32_MAX; },
       "it ends after"},
      {"length one paragraph over", [](BzImage& b) { b.header.syssize += 1; }, "it ends after"},
      {"setup beyond the end", [](BzImage& b) { b.header.setup_sects = 3, b.protected_mode = 0; },
       "it ends after"},
      {"ends at the entry point", [](BzImage& b) { b.header.syssize = 0x200 / 16; },
       "before its entry point"},
      {"payload beyond the end", [](BzImage& b) { b.header.payload_length = 0x2000; },
       "payload lies beyond"},
      {"payload wraps",
       [](BzImage& b) { b.header.payload_offset = b.header.payload_length = UINT32_MAX; },
       "payload lies beyond"},
      {"address 0, fixed",
       [](BzImage& b) { b.header.pref_address = 0, b.header.relocatable_kernel = 0; },
       "1 MiB to 3 GiB"},
      {"address wraps, fixed",
       [](BzImage& b) { b.header.pref_address = UINT64_MAX, b.header.relocatable_kernel = 0; },
       "1 MiB to 3 GiB"},
      {"alignment 0", [](BzImage& b) { b.header.pref_address = 0, b.header.kernel_alignment = 0; },
       "alignment is 0x0"},
      {"alignment 3",
       [](BzImage& b) { b.header.pref_address = 0, b.header.kernel_alignment = 0x3000; },
       "alignment is 0x3000"},
      {"alignment 2 GiB",
       [](BzImage& b) { b.header.pref_address = 0, b.header.kernel_alignment = 0x80000000; },
       "wants"},
      {"init_size 4 GiB", [](BzImage& b) { b.header.init_size = UINT32_MAX; }, "wants"},
  };
  const auto memory = MakeMemory(64 * kMiB);
  for (const Damage& damage : damages) {
    CAPTURE(damage.name);
    BzImage image;
    damage.apply(image);
    const auto kernel = Load(image.Build(), *memory);
    REQUIRE_FALSE(kernel);
    CAPTURE(kernel.error().cause);
    CHECK(kernel.error().cause.find(damage.expected) != std::string::npos);
    CHECK_FALSE(kernel.error().next_step.empty());
  }
}

TEST_CASE("bzimage: an image cut off anywhere is refused") {
  const auto memory = MakeMemory(64 * kMiB);
  BzImage image;
  image.protected_mode = 0x600;
  image.header.syssize = 0x60;
  image.header.payload_offset = 0;
  image.header.payload_length = 0;
  const ByteVector whole = image.Build();
  REQUIRE(Load(whole, *memory));
  for (std::size_t length = 0; length + 16 <= whole.size(); ++length) {
    CAPTURE(length);
    const auto kernel = Load(
        ByteVector(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)), *memory);
    REQUIRE_FALSE(kernel);
    CHECK(kernel.error().kind == Failure::Kind::kConfig);
  }
}

}  // namespace
}  // namespace postern::boot
