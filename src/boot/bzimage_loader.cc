// LoadBzImage: Linux's compressed x86 image, entered at its 64-bit entry point.

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "src/arch/x86_64/layout.h"
#include "src/boot/boot_params.h"
#include "src/boot/loader_internal.h"

namespace postern::boot::internal {
namespace {

using memory::Gpa;
using memory::GuestMemory;

constexpr std::uint64_t kHeaderOffset = 0x1f1;
constexpr std::uint64_t kSectorSize = 512;
constexpr std::uint64_t kParagraph = 16;
// boot.rst: the 64-bit entry point is 0x200 above the start of the protected-mode part.
constexpr std::uint64_t kEntry64 = 0x200;
// 2.12 (Linux 3.8) brought xloadflags.
constexpr std::uint16_t kOldestProtocol = 0x20c;
// The header ends at 0x202 plus the byte at 0x201, the operand of the jump over it.
constexpr std::uint64_t kJumpTarget = 0x202;

// The header as far as this image has one, the rest zero.
Outcome<SetupHeader> ReadHeader(const Image& image) {
  SetupHeader header{};
  if (auto read = image.Read(kHeaderOffset, std::as_writable_bytes(std::span(&header, 1))); !read) {
    return ReadFailure(image, read.error());
  }
  const std::uint64_t length =
      std::min<std::uint64_t>(kJumpTarget + (header.jump >> 8) - kHeaderOffset, sizeof(header));
  std::memset(reinterpret_cast<std::byte*>(&header) + length, 0, sizeof(header) - length);
  return header;
}

Outcome<void> CheckHeader(const Image& image, const SetupHeader& header) {
  const std::string protocol =
      std::to_string(header.version >> 8) + "." + std::to_string(header.version & 0xff);
  if (header.version < kOldestProtocol) {
    return ConfigFailure(image.Label() + " speaks boot protocol " + protocol + ", older than 2.12",
                         "give a kernel of Linux 3.8 or later");
  }
  if ((header.loadflags & kLoadedHigh) == 0) {
    return ConfigFailure(image.Label() + " is a zImage, which loads below 1 MiB",
                         "give a bzImage or a vmlinux");
  }
  if ((header.xloadflags & kKernel64) == 0) {
    return ConfigFailure(image.Label() + " is a 32-bit kernel",
                         "give a kernel built for 64-bit x86");
  }
  return {};
}

// Where to put `size` bytes: where the kernel would like to be, or as low as it may.
Outcome<std::uint64_t> PlaceKernel(const Image& image, const GuestMemory& memory,
                                   const SetupHeader& header, std::uint64_t size) {
  const std::uint64_t preferred = header.pref_address;
  if (IsKernelRam(memory, preferred, size)) return preferred;
  if (header.relocatable_kernel == 0) return NeedsMemory(image, memory, preferred, size);
  const std::uint64_t alignment = header.kernel_alignment;
  if (!std::has_single_bit(alignment) || alignment < 0x1000) {
    return Damaged(image, "its alignment is " + Hex(alignment));
  }
  const std::uint64_t lowest = (x86_64::kKernelLowest + alignment - 1) / alignment * alignment;
  if (!IsKernelRam(memory, lowest, size)) return NeedsMemory(image, memory, lowest, size);
  return lowest;
}

}  // namespace

Outcome<LoadedKernel> LoadBzImage(const Image& image, const GuestMemory& memory) {
  Outcome<SetupHeader> header = ReadHeader(image);
  if (!header) return tl::unexpected(std::move(header.error()));
  if (auto good = CheckHeader(image, *header); !good)
    return tl::unexpected(std::move(good.error()));

  // boot.rst: 0 means 4, for the sake of very old kernels; the boot sector comes on top.
  const std::uint64_t setup_sectors = header->setup_sects == 0 ? 4 : header->setup_sects;
  const std::uint64_t setup_size = (setup_sectors + 1) * kSectorSize;
  const std::uint64_t announced = std::uint64_t{header->syssize} * kParagraph;
  if (announced == 0) return Damaged(image, "its length field is 0");
  // syssize is rounded up to paragraphs; what follows it in the file (a signature) is not loaded.
  if (setup_size >= image.size() || image.size() - setup_size + kParagraph <= announced) {
    return Damaged(image, "it ends after " + std::to_string(image.size()) + " of " +
                              std::to_string(setup_size + announced) + " bytes");
  }
  const std::uint64_t length = std::min(announced, image.size() - setup_size);
  if (length <= kEntry64) return Damaged(image, "it ends before its entry point");
  // 2.08: where the compressed kernel lies in this part.
  if (std::uint64_t{header->payload_offset} + header->payload_length > length) {
    return Damaged(image, "its payload lies beyond its end");
  }

  // 2.10: what the kernel needs before it looks at the memory map.
  const std::uint64_t needed = std::max<std::uint64_t>(header->init_size, length);
  Outcome<std::uint64_t> address = PlaceKernel(image, memory, *header, needed);
  if (!address) return tl::unexpected(std::move(address.error()));
  if (auto read = image.ReadInto(memory, Gpa(*address), setup_size, length); !read) {
    return ReadFailure(image, read.error());
  }

  LoadedKernel kernel;
  kernel.protocol = Protocol::kLinux64;
  kernel.entry = Gpa(*address + kEntry64);
  kernel.start = Gpa(*address);
  kernel.end = Gpa(*address + needed);
  kernel.setup = *header;
  if (header->cmdline_size != 0) kernel.command_line_limit = header->cmdline_size;
  if (header->initrd_addr_max != 0) kernel.initrd_last = header->initrd_addr_max;
  return kernel;
}

}  // namespace postern::boot::internal
