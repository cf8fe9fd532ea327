#include "src/boot/boot.h"

#include <cstring>
#include <string>
#include <vector>

#include "src/arch/x86_64/layout.h"
#include "src/boot/pvh.h"
#include "src/boot/test_images.h"

#include <doctest/doctest.h>

namespace postern::boot {
namespace {

using memory::Gpa;
using testing::ByteVector;
using testing::BzImage;
using testing::ElfImage;
using testing::MakeMemory;

constexpr std::uint64_t kMiB = 1 << 20;

template <typename T>
T ReadStruct(const memory::GuestMemory& memory, std::uint64_t address) {
  T value{};
  REQUIRE(memory.CopyOut(Gpa(address), std::as_writable_bytes(std::span(&value, 1))));
  return value;
}

std::string ReadText(const memory::GuestMemory& memory, std::uint64_t address, std::size_t length) {
  const ByteVector bytes = testing::Peek(memory, address, length);
  std::string text(length, '\0');
  std::memcpy(text.data(), bytes.data(), bytes.size());
  return text;
}

TEST_CASE("memory map: low RAM keeps off the PC's holes, high RAM follows, ECAM is reserved") {
  using Map = std::vector<MemoryMapEntry>;
  const MemoryMapEntry ecam{0xe0000000, 256 * kMiB, MemoryType::kReserved};
  CHECK(BuildMemoryMap(*MakeMemory(64 * kMiB)) == Map{{0, 0x9fc00, MemoryType::kRam},
                                                      {0xe0000, 0x10000, MemoryType::kAcpi},
                                                      {0xf0000, 0x10000, MemoryType::kReserved},
                                                      {0x100000, 63 * kMiB, MemoryType::kRam},
                                                      ecam});
  CHECK(BuildMemoryMap(*MakeMemory(64 * kMiB, 32 * kMiB)) ==
        Map{{0, 0x9fc00, MemoryType::kRam},
            {0xe0000, 0x10000, MemoryType::kAcpi},
            {0xf0000, 0x10000, MemoryType::kReserved},
            {0x100000, 63 * kMiB, MemoryType::kRam},
            ecam,
            {0x100000000, 32 * kMiB, MemoryType::kRam}});
  CHECK(BuildMemoryMap(*MakeMemory(0x80000)) == Map{{0, 0x80000, MemoryType::kRam}, ecam});
  CHECK(BuildMemoryMap(*MakeMemory(kMiB)) == Map{{0, 0x9fc00, MemoryType::kRam},
                                                 {0xe0000, 0x10000, MemoryType::kAcpi},
                                                 {0xf0000, 0x10000, MemoryType::kReserved},
                                                 ecam});
}

TEST_CASE(
    "boot: a bzImage finds its own header, command line, initrd, E820 and RSDP in boot_params") {
  const auto memory = MakeMemory(64 * kMiB, 16 * kMiB);
  const ByteVector kernel_bytes = BzImage().Build();
  const Image kernel = Image::FromBytes(kernel_bytes, "k", "kernel");
  ByteVector initrd_bytes;
  for (std::size_t i = 0; i < 5000; ++i) initrd_bytes.push_back(testing::Pattern(5, i));
  const Image initrd = Image::FromBytes(initrd_bytes, "i", "initrd");
  CommandLine line("root=/dev/vda");
  line.Add("console=hvc0");

  const auto state = PrepareBoot(*memory, {.kernel = &kernel,
                                           .initrd = &initrd,
                                           .command_line = &line,
                                           .rsdp = Gpa(0xe0000),
                                           .load = {}});
  REQUIRE(state);
  CHECK(state->protocol == Protocol::kLinux64);
  CHECK(state->entry == Gpa(0x1000200));
  CHECK(state->info == Gpa(x86_64::kZeroPage));
  CHECK(state->command_line == "root=/dev/vda console=hvc0");

  const auto params = ReadStruct<BootParams>(*memory, x86_64::kZeroPage);
  CHECK(+params.header.header == kHeaderMagic);
  CHECK(+params.header.version == 0x20f);
  CHECK(+params.header.type_of_loader == 0xff);
  CHECK((params.header.loadflags & kLoadedHigh) != 0);
  CHECK(+params.header.pref_address == 0x1000000);
  CHECK(+params.header.code32_start == 0x1000000);
  CHECK(+params.header.setup_data == 0);
  CHECK(+params.sentinel == 0);
  CHECK(+params.acpi_rsdp_addr == 0xe0000);
  CHECK(+params.e820_entries == 6);
  CHECK(+params.e820_table[0].size == 0x9fc00);
  CHECK(+params.e820_table[1].type == 3);
  CHECK(+params.e820_table[5].address == 0x100000000);
  CHECK(+params.e820_table[5].size == 16 * kMiB);
  CHECK(+params.e820_table[5].type == 1);
  CHECK(ReadText(*memory, params.header.cmd_line_ptr, 27) ==
        std::string("root=/dev/vda console=hvc0") + '\0');
  // As high as it goes, on a page of its own.
  CHECK(+params.header.ramdisk_image == 64 * kMiB - 0x2000);
  CHECK(+params.header.ramdisk_size == 5000);
  const ByteVector loaded = testing::Peek(*memory, params.header.ramdisk_image, 5000);
  CHECK(loaded == initrd_bytes);
}

TEST_CASE("boot: a vmlinux by the 64-bit protocol gets a header that says how it was loaded") {
  const auto memory = MakeMemory(64 * kMiB);
  ElfImage elf;
  elf.Load(0x1000000, 0x1000, 0x1000);
  elf.header.entry = 0x1000000;
  const ByteVector bytes = elf.Build();
  const Image kernel = Image::FromBytes(bytes, "k", "kernel");
  const CommandLine line("");
  const auto state = PrepareBoot(
      *memory,
      {.kernel = &kernel, .initrd = nullptr, .command_line = &line, .rsdp = Gpa(0), .load = {}});
  REQUIRE(state);
  const auto params = ReadStruct<BootParams>(*memory, x86_64::kZeroPage);
  CHECK(+params.header.boot_flag == kBootFlag);
  CHECK(+params.header.header == kHeaderMagic);
  CHECK(+params.header.type_of_loader == 0xff);
  CHECK(+params.header.ramdisk_size == 0);
  CHECK(+params.acpi_rsdp_addr == 0);
}

TEST_CASE("boot: a PVH kernel finds start info, memory map and one module") {
  const auto memory = MakeMemory(64 * kMiB);
  ElfImage elf;
  elf.Load(0x1000000, 0x1000, 0x1000);
  elf.header.entry = 0x1000000;
  elf.PvhNote(0x1000080);
  const ByteVector bytes = elf.Build();
  const Image kernel = Image::FromBytes(bytes, "k", "kernel");
  const ByteVector initrd_bytes(0x1001, std::byte{0x5a});
  const Image initrd = Image::FromBytes(initrd_bytes, "i", "initrd");
  const CommandLine line("a b");
  const bool with_initrd = true;
  for (const bool has_initrd : {with_initrd, false}) {
    const auto state = PrepareBoot(*memory, {.kernel = &kernel,
                                             .initrd = has_initrd ? &initrd : nullptr,
                                             .command_line = &line,
                                             .rsdp = Gpa(0xe0000),
                                             .load = {}});
    REQUIRE(state);
    CHECK(state->protocol == Protocol::kPvh);
    CHECK(state->entry == Gpa(0x1000080));
    const auto info = ReadStruct<PvhStartInfo>(*memory, state->info.value);
    CHECK(info.magic.get() == kPvhMagic);
    CHECK(info.version.get() == 1);
    CHECK(info.rsdp_paddr.get() == 0xe0000);
    CHECK(ReadText(*memory, info.cmdline_paddr.get(), 4) == std::string("a b\0", 4));
    CHECK(info.memmap_entries.get() == 5);
    const auto ram = ReadStruct<PvhMemoryMapEntry>(
        *memory, info.memmap_paddr.get() + 3 * sizeof(PvhMemoryMapEntry));
    CHECK(ram.address.get() == 0x100000);
    CHECK(ram.size.get() == 63 * kMiB);
    CHECK(ram.type.get() == 1);
    CHECK(info.nr_modules.get() == (has_initrd ? 1 : 0));
    if (has_initrd) {
      const auto module = ReadStruct<PvhModule>(*memory, info.modlist_paddr.get());
      CHECK(module.paddr.get() == 64 * kMiB - 0x2000);
      CHECK(module.size.get() == 0x1001);
    }
  }
}

TEST_CASE("boot: a restart through the firmware's real-mode entry writes to the reset register") {
  const auto memory = MakeMemory(64 * kMiB);
  const ByteVector bytes = BzImage().Build();
  const Image kernel = Image::FromBytes(bytes, "k", "kernel");
  const CommandLine line("");
  REQUIRE(PrepareBoot(
      *memory,
      {.kernel = &kernel, .initrd = nullptr, .command_line = &line, .rsdp = Gpa(0), .load = {}}));
  // Interprets the three instructions that matter.
  const ByteVector code = testing::Peek(*memory, 0xffff0, 10);
  REQUIRE(code.size() == 10);
  CHECK(code[0] == std::byte{0xb0});
  CHECK(code[1] == std::byte{x86_64::kResetValue});
  CHECK(code[2] == std::byte{0xba});
  CHECK((std::to_integer<unsigned>(code[3]) | std::to_integer<unsigned>(code[4]) << 8) ==
        x86_64::kResetPort);
  CHECK(code[5] == std::byte{0xee});
  // And should that return, stays where it is.
  CHECK(code[7] == std::byte{0xf4});
  CHECK(code[8] == std::byte{0xeb});
  CHECK(code[9] == std::byte{0xfd});
}

TEST_CASE("initrd: placement respects RAM, the kernel and its limit") {
  LoadedKernel kernel;
  kernel.start = Gpa(0x100000);
  kernel.end = Gpa(0x200001);
  const auto memory = MakeMemory(4 * kMiB);
  const auto load = [&](std::size_t size) {
    const ByteVector bytes(size, std::byte{1});
    return LoadInitrd(Image::FromBytes(bytes, "i", "initrd"), *memory, kernel);
  };
  CHECK(load(1).value().base == Gpa(4 * kMiB - 0x1000));
  // The kernel's last byte takes a page of its own.
  CHECK(load(2 * kMiB - 0x1000).value().base == Gpa(0x201000));
  CHECK_FALSE(load(2 * kMiB - 0xfff));
  CHECK_FALSE(load(0));
  kernel.initrd_last = 0x2fffff;
  CHECK(load(0x1000).value().base == Gpa(0x2ff000));
  kernel.initrd_last = 0x2ffffe;  // one byte less costs a page
  CHECK(load(0x1000).value().base == Gpa(0x2fe000));
  kernel.initrd_last = 0;
  CHECK_FALSE(load(1));
  kernel.initrd_last = UINT64_MAX;
  CHECK(load(1).value().base == Gpa(4 * kMiB - 0x1000));
  kernel.end = Gpa(UINT64_MAX & ~std::uint64_t{0xfff});
  CHECK_FALSE(load(1));
}

TEST_CASE("boot: failures of the parts come through") {
  const auto memory = MakeMemory(64 * kMiB);
  const ByteVector bytes = BzImage().Build();
  const Image kernel = Image::FromBytes(bytes, "k", "kernel");
  const Image bad = Image::FromBytes({}, "b", "initrd");
  const CommandLine line("x");
  const CommandLine long_line(std::string(2048, 'x'));
  const auto bad_initrd = PrepareBoot(
      *memory,
      {.kernel = &kernel, .initrd = &bad, .command_line = &line, .rsdp = Gpa(0), .load = {}});
  REQUIRE_FALSE(bad_initrd);
  CHECK(bad_initrd.error().cause == "initrd 'b' is empty");
  const auto too_long = PrepareBoot(*memory, {.kernel = &kernel,
                                              .initrd = nullptr,
                                              .command_line = &long_line,
                                              .rsdp = Gpa(0),
                                              .load = {}});
  REQUIRE_FALSE(too_long);
  CHECK(too_long.error().cause.find("this kernel takes 2047") != std::string::npos);
}

}  // namespace
}  // namespace postern::boot
