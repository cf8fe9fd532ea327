#include "vfio/region_tile.h"

#include <algorithm>

namespace postern::vfio {

bool RegionTile::Inside(std::uint64_t offset, std::size_t width) const {
  const std::uint64_t size = owner_.Device().info().regions[region_].size;
  return offset <= size && offset_ <= size - offset && width <= size - offset - offset_;
}

void RegionTile::Read(std::uint64_t offset, std::span<std::byte> data) {
  counters_.reads.Add();
  const bool readable = owner_.Device().info().regions[region_].readable;
  if (owner_.Reachable() && readable && Inside(offset, data.size())) {
    Result<void> done = owner_.Device().ReadRegion(region_, offset_ + offset, data);
    if (done) return;
    owner_.OnRegionError(done.error());
  }
  counters_.refused.Add();
  std::ranges::fill(data, std::byte{0xff});
}

void RegionTile::Write(std::uint64_t offset, std::span<const std::byte> data) {
  counters_.writes.Add();
  const bool writable = owner_.Device().info().regions[region_].writable;
  if (owner_.Reachable() && writable && Inside(offset, data.size())) {
    Result<void> done = owner_.Device().WriteRegion(region_, offset_ + offset, data);
    if (done) return;
    owner_.OnRegionError(done.error());
  }
  counters_.refused.Add();
}

}  // namespace postern::vfio
