// The kernel's answers to GET_REGION_INFO and GET_IRQ_INFO, capabilities included, from the input:
// what comes out keeps the promises of RegionInfo and IrqInfo.

#include "vfio/ioctls.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "src/base/check.h"

namespace {

using postern::vfio::IrqInfo;
using postern::vfio::KernelRegion;
using postern::vfio::MapArea;

void CheckRegion(const KernelRegion& region, std::uint64_t page_size) {
  CHECK(region.info.size <= postern::vfio::kMaxRegionSize);
  CHECK(region.offset <= std::numeric_limits<std::int64_t>::max() - region.info.size);
  std::uint64_t end = 0;
  for (const MapArea& area : region.info.areas) {
    CHECK(area.length > 0 && area.offset % page_size == 0 && area.length % page_size == 0);
    CHECK(area.offset >= end);
    CHECK(area.offset <= region.info.size && area.length <= region.info.size - area.offset);
    end = area.offset + area.length;
  }
}

void CheckIrq(std::uint32_t index, std::span<const std::byte> bytes) {
  const postern::Result<IrqInfo> irq = postern::vfio::ParseIrq(index, bytes);
  if (!irq) return;
  CHECK(irq->count <= (index == postern::vfio::kMsixIrq  ? 2048u
                       : index == postern::vfio::kMsiIrq ? 32u
                                                         : 1u));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  for (const std::uint64_t page_size : {std::uint64_t{4096}, std::uint64_t{65536}}) {
    const postern::Result<KernelRegion> region = postern::vfio::ParseRegion(bytes, page_size);
    if (region) CheckRegion(*region, page_size);
  }
  for (std::uint32_t index = 0; index <= postern::vfio::kIrqCount; ++index) CheckIrq(index, bytes);
  return 0;
}
