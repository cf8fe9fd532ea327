// ELF images of any content: the input is the image; a second pass overlays it on a well-formed
// one, so that the parts behind the first checks are reached.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "src/base/check.h"
#include "src/boot/loader.h"
#include "src/boot/test_images.h"

namespace postern::boot {
namespace {

void Load(std::span<const std::byte> bytes) {
  static const memory::GuestMemoryPtr memory = testing::MakeMemory(4 << 20);
  const auto kernel = LoadKernel(Image::FromBytes(bytes, "fuzz", "kernel"), *memory);
  if (!kernel) {
    CHECK(!kernel.error().cause.empty() && !kernel.error().next_step.empty());
    CHECK(kernel.error().cause.find('\n') == std::string::npos);
    return;
  }
  CHECK(kernel->start <= kernel->entry && kernel->entry < kernel->end);
  CHECK(kernel->end.value <= (4U << 20));
}

std::vector<std::byte> WellFormed() {
  testing::ElfImage elf;
  elf.Load(0x100000, 0x80, 0x100);
  elf.header.entry = 0x100000;
  elf.PvhNote(0x100010);
  return elf.Build();
}

}  // namespace
}  // namespace postern::boot

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::boot;
  const auto input = std::as_bytes(std::span(data, size));
  Load(input);
  // Pairs of offset and byte patched into a good image.
  std::vector<std::byte> image = WellFormed();
  for (std::size_t i = 0; i + 3 <= size; i += 3) {
    const std::size_t at = (std::size_t{data[i]} | std::size_t{data[i + 1]} << 8) % image.size();
    image[at] = input[i + 2];
  }
  Load(image);
  if (size != 0) image.resize(image.size() - data[0] % image.size());
  Load(image);
  return 0;
}
