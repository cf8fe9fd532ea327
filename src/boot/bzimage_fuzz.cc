// bzImages of any content: the input patches a well-formed image, then cuts it off.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "src/base/check.h"
#include "src/boot/boot.h"
#include "src/boot/test_images.h"

namespace postern::boot {
namespace {

void Load(std::span<const std::byte> bytes) {
  static const memory::GuestMemoryPtr memory = testing::MakeMemory(4 << 20);
  const Image image = Image::FromBytes(bytes, "fuzz", "kernel");
  const Image initrd = Image::FromBytes(bytes, "fuzz", "initrd");
  const CommandLine line("console=hvc0");
  const auto boot = PrepareBoot(*memory, {.kernel = &image,
                                          .initrd = &initrd,
                                          .command_line = &line,
                                          .rsdp = memory::Gpa(0xe0000),
                                          .load = {}});
  if (!boot) {
    CHECK(!boot.error().cause.empty() && !boot.error().next_step.empty());
    CHECK(boot.error().cause.find('\n') == std::string::npos);
    return;
  }
  CHECK(boot->kernel.start <= boot->entry && boot->entry < boot->kernel.end);
  CHECK(boot->kernel.end.value <= (4U << 20));
}

}  // namespace
}  // namespace postern::boot

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::boot;
  testing::BzImage good;
  good.protected_mode = 0x600;
  good.header.syssize = 0x60;
  good.header.pref_address = 0x100000;
  good.header.kernel_alignment = 0x1000;
  good.header.payload_length = 0x100;
  std::vector<std::byte> image = good.Build();
  Load(image);
  // Offsets within the header (0x1f1..0x2f0) or anywhere, by turns.
  for (std::size_t i = 0; i + 3 <= size; i += 3) {
    const std::size_t at = (data[i] & 0x80) != 0
                               ? 0x1f1 + std::size_t{data[i + 1]}
                               : std::size_t{data[i]} << 8 | std::size_t{data[i + 1]};
    image[at % image.size()] = std::byte{data[i + 2]};
  }
  Load(image);
  if (size != 0) image.resize(image.size() - std::size_t{data[0]} * 8 % image.size());
  Load(image);
  return 0;
}
