#include "src/boot/loader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "src/arch/x86_64/layout.h"
#include "src/base/strong.h"
#include "src/boot/elf.h"
#include "src/boot/loader_internal.h"

namespace postern::boot {
namespace internal {

std::string Hex(std::uint64_t value) {
  std::string digits;
  do {
    digits.insert(digits.begin(), "0123456789abcdef"[value & 0xf]);
    value >>= 4;
  } while (value != 0);
  return "0x" + digits;
}

std::uint64_t LowRamEnd(const memory::GuestMemory& memory) {
  for (const memory::RegionPtr& region : memory.regions()) {
    if (region->base().value == 0) return region->size();
  }
  return 0;
}

bool IsKernelRam(const memory::GuestMemory& memory, std::uint64_t address, std::uint64_t size) {
  const std::optional<std::uint64_t> end = CheckedAdd(address, size);
  return end && address >= x86_64::kKernelLowest && *end <= LowRamEnd(memory);
}

tl::unexpected<Failure> Damaged(const Image& image, const std::string& how) {
  return ConfigFailure(image.Label() + " is damaged: " + how, "fetch or build it again");
}

tl::unexpected<Failure> NeedsMemory(const Image& image, const memory::GuestMemory& memory,
                                    std::uint64_t address, std::uint64_t size) {
  const std::uint64_t mib = memory.total_size() / x86_64::kMiB;
  std::string cause = image.Label() + " wants " + Hex(size) + " bytes of RAM at " + Hex(address) +
                      "; this machine has " + std::to_string(mib) + " MiB";
  const std::optional<std::uint64_t> end = CheckedAdd(address, size);
  if (!end || address < x86_64::kKernelLowest || *end > x86_64::kHole) {
    return ConfigFailure(std::move(cause) + ", and kernels live from 1 MiB to 3 GiB",
                         "give a kernel for x86-64 PCs; if it is one, it is damaged");
  }
  const std::uint64_t wanted = (*end + x86_64::kMiB - 1) / x86_64::kMiB;
  return ConfigFailure(std::move(cause),
                       "give it more than " + std::to_string(wanted) + " MiB of memory");
}

tl::unexpected<Failure> ReadFailure(const Image& image, const Error& error) {
  if (error.code == Errc::kBadFormat) {
    return Damaged(image, "it ends after " + std::to_string(image.size()) +
                              " bytes, in the middle of a structure");
  }
  return HostFailure("cannot read " + image.Label(), error);
}

}  // namespace internal

namespace {

constexpr std::uint64_t kPage = 4096;

struct Signature {
  std::string_view bytes;
  const char* meaning;
  const char* next_step;
};

constexpr const char* kUnpack = "unpack it first";
constexpr const char* kGiveKernel = "give a bzImage or a vmlinux";
constexpr auto kOthers = std::to_array<Signature>({
    {{"\x1f\x8b", 2}, "a gzip archive", kUnpack},
    {{"\xfd"
      "7zXZ\0",
      6},
     "an xz archive",
     kUnpack},
    {{"\x28\xb5\x2f\xfd", 4}, "a zstd archive", kUnpack},
    {{"BZh", 3}, "a bzip2 archive", kUnpack},
    {{"\x04\x22\x4d\x18", 4}, "an lz4 archive", kUnpack},
    {{"\x02\x21\x4c\x18", 4}, "an lz4 archive", kUnpack},
    {{"\x5d\0\0", 3}, "an lzma archive", kUnpack},
    {{"PK\x03\x04", 4}, "a zip archive", kUnpack},
    {{"!<arch>\n", 8},
     "a Debian package or an archive",
     "unpack it (dpkg -x) and give its boot/vmlinuz file"},
    {{"\xed\xab\xee\xdb", 4}, "an RPM package", "unpack it and give its vmlinuz file"},
    {{"070701", 6}, "a cpio archive: an initramfs, not a kernel", "give it as the initrd"},
    {{"hsqs", 4}, "a squashfs file system, not a kernel", "give it as a disk"},
    {{"QFI\xfb", 4}, "a qcow2 disk image, not a kernel", kGiveKernel},
    {{"#!", 2}, "a script", kGiveKernel},
    {{"MZ", 2},
     "an EFI program without a Linux boot header",
     "give a bzImage or a vmlinux for x86-64"},
});

constexpr std::string_view kArm64Magic{"ARM\x64", 4};
constexpr std::size_t kArm64MagicOffset = 0x38;

// The most specific thing that can be said of bytes that are no kernel.
tl::unexpected<Failure> NotAKernel(const Image& image, std::string_view head) {
  if (head.size() >= kArm64MagicOffset + kArm64Magic.size() &&
      head.substr(kArm64MagicOffset, kArm64Magic.size()) == kArm64Magic) {
    return ConfigFailure(image.Label() + " is a kernel for 64-bit ARM",
                         "give a kernel built for 64-bit x86");
  }
  for (const Signature& other : kOthers) {
    if (head.starts_with(other.bytes)) {
      return ConfigFailure(image.Label() + " is " + other.meaning, other.next_step);
    }
  }
  return ConfigFailure(image.Label() + " is neither a bzImage nor an ELF file", kGiveKernel);
}

}  // namespace

Outcome<LoadedKernel> LoadKernel(const Image& image, const memory::GuestMemory& memory,
                                 const LoadOptions& options) {
  if (image.size() == 0) return ConfigFailure(image.Label() + " is empty", kGiveKernel);
  // Enough to tell the formats apart: the boot sector with "HdrS" at 0x202.
  std::array<char, 0x206> buffer{};
  const std::size_t length = std::min<std::uint64_t>(buffer.size(), image.size());
  if (auto read = image.Read(0, std::as_writable_bytes(std::span(buffer).first(length))); !read) {
    return internal::ReadFailure(image, read.error());
  }
  const std::string_view head(buffer.data(), length);
  if (head.size() >= kElfMagic.size() &&
      std::memcmp(head.data(), kElfMagic.data(), kElfMagic.size()) == 0) {
    return internal::LoadElf(image, memory, options);
  }
  // boot.rst: 0xaa55 at 0x1fe, "HdrS" at 0x202.
  if (head.size() == buffer.size() && head.substr(0x1fe, 2) == "\x55\xaa" &&
      head.substr(0x202, 4) == "HdrS") {
    return internal::LoadBzImage(image, memory);
  }
  return NotAKernel(image, head);
}

Outcome<LoadedInitrd> LoadInitrd(const Image& image, const memory::GuestMemory& memory,
                                 const LoadedKernel& kernel) {
  if (image.size() == 0)
    return ConfigFailure(image.Label() + " is empty", "give a cpio archive, or none");
  const std::uint64_t ram_end = internal::LowRamEnd(memory);
  // initrd_last is the address of the last byte.
  const std::uint64_t ceiling =
      std::min(ram_end, kernel.initrd_last >= ram_end ? ram_end : kernel.initrd_last + 1);
  const std::uint64_t floor = (kernel.end.value + kPage - 1) / kPage * kPage;
  const std::uint64_t room = ceiling > floor ? (ceiling - floor) / kPage * kPage : 0;
  if (image.size() > room) {
    return ConfigFailure(image.Label() + " has " + std::to_string(image.size()) +
                             " bytes; beside the kernel there is room for " + std::to_string(room),
                         "give the machine more memory, or a smaller initrd");
  }
  LoadedInitrd initrd;
  initrd.base = memory::Gpa((ceiling - image.size()) / kPage * kPage);
  initrd.size = image.size();
  if (auto read = image.ReadInto(memory, initrd.base, 0, image.size()); !read) {
    return internal::ReadFailure(image, read.error());
  }
  return initrd;
}

}  // namespace postern::boot
