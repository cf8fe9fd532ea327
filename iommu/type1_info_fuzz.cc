// Any bytes as a container's answer: the parser ends, and what it lets through keeps the promises
// of Limits.

#include <linux/vfio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "iommu/type1.h"
#include "iommu/vfio_info.h"
#include "src/base/check.h"

namespace postern::iommu {
namespace {

void Parse(std::span<const std::byte> bytes) {
  const Result<Type1Info> info = ParseType1Info(bytes);
  if (!info) return;
  CHECK(info->limits.page_sizes != 0);
  const IovaRange* before = nullptr;
  for (const IovaRange& range : info->limits.ranges) {
    CHECK(range.first <= range.last);
    CHECK(before == nullptr || before->last < range.first);
    CHECK(info->limits.Allows(Iova(range.first), 1));
    CHECK(info->limits.Allows(Iova(range.last), 1));
    before = &range;
  }
}

// The same walk as devices and regions take, with a start of the input's choice.
void Walk(std::span<const std::byte> bytes) {
  std::uint32_t first = 0;
  if (bytes.size() < sizeof(first)) return;
  std::memcpy(&first, bytes.data(), sizeof(first));
  std::size_t count = 0;
  const std::byte* before = bytes.data();
  (void)WalkVfioCapabilities(bytes, first % 64, 16, [&](const VfioCapability& cap) -> Result<void> {
    CHECK(++count <= 64);
    CHECK(cap.bytes.size() >= sizeof(vfio_info_cap_header));
    CHECK(cap.bytes.data() > before);
    CHECK(&cap.bytes.back() == &bytes.back());
    before = cap.bytes.data();
    return {};
  });
}

}  // namespace
}  // namespace postern::iommu

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  postern::iommu::Walk(bytes);
  postern::iommu::Parse(bytes);
  // Most inputs do not have the flags: those that do are worth more.
  if (size >= sizeof(vfio_iommu_type1_info) && size < 4096) {
    std::array<std::byte, 4096> copy{};
    std::memcpy(copy.data(), data, size);
    vfio_iommu_type1_info info{};
    std::memcpy(&info, data, sizeof(info));
    info.flags |= VFIO_IOMMU_INFO_CAPS;
    info.cap_offset %= 64;
    std::memcpy(copy.data(), &info, sizeof(info));
    postern::iommu::Parse(std::span(copy).first(size));
  }
  return 0;
}
