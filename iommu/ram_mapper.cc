#include "iommu/ram_mapper.h"

#include "iommu/prefault.h"
#include "src/base/log.h"

namespace postern::iommu {

Result<void> RamMapper::Added(const memory::Region& region) {
  last_error_.reset();
  const Result<void> mapped = MapRegion(region);
  if (mapped) {
    mapped_bytes_ += region.size();
  } else {
    last_error_ = MapError{region.base(), region.size(), mapped.error()};
  }
  return mapped;
}

Result<void> RamMapper::MapRegion(const memory::Region& region) {
  const memory::Backing& backing = region.backing();
  auto* address = reinterpret_cast<std::byte*>(region.host_address());
  // What cannot be mapped anyhow is not worth a touch.
  if (!space_.limits().Allows(Iova(region.base().value), region.size())) {
    return Err(Errc::kGuestRange, "DMA mapping");
  }
  if (prefault_threads_ > 0 && !backing.prefault) {
    TRY(Prefault(address, region.size(),
                 {.threads = prefault_threads_, .page = backing.page_size}));
  }
  // A private mapping of a file has pages of its own: by file the device would get others.
  const int fd = backing.shared ? region.fd() : -1;
  return space_.Map(Iova(region.base().value),
                    {.address = address, .fd = fd, .offset = 0, .length = region.size()},
                    memory::Access::kReadWrite);
}

void RamMapper::Removing(const memory::Region& region) {
  const Result<void> unmapped = space_.Unmap(Iova(region.base().value), region.size());
  if (!unmapped) {
    LOG_ERROR("iommu", "guest memory at {:#x} stays mapped for devices ({}): {}",
              region.base().value, space_.name(), Describe(unmapped.error()));
    return;
  }
  mapped_bytes_ -= region.size();
}

}  // namespace postern::iommu
