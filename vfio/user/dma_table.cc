#include "vfio/user/dma_table.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <limits>

namespace postern::vfio {
namespace {

Unexpected Fault() {
  return SysError("DMA of a vfio-user device", EFAULT);
}

bool Grants(memory::Access granted, memory::Access wanted) {
  const auto bits = static_cast<unsigned char>(wanted);
  return (static_cast<unsigned char>(granted) & bits) == bits;
}

}  // namespace

Result<void> DmaTable::Add(iommu::Iova at, const iommu::HostRange& from, memory::Access access) {
  if (from.length == 0 ||
      at.value > std::numeric_limits<std::uint64_t>::max() - (from.length - 1)) {
    return Err(Errc::kInvalidArgument, "DMA mapping");
  }
  const std::uint64_t last = at.value + (from.length - 1);
  const auto above = mappings_.upper_bound(last);
  if (above != mappings_.begin()) {
    const auto& [start, below] = *std::prev(above);
    if (start + (below.length - 1) >= at.value) return Err(Errc::kOverlap, "DMA mapping");
  }
  mappings_.emplace(at.value, Mapping{from.length, from.address, access});
  size_.store(mappings_.size(), std::memory_order_relaxed);
  return {};
}

Result<void> DmaTable::Remove(iommu::Iova at, std::uint64_t length) {
  const auto found = mappings_.find(at.value);
  if (found == mappings_.end() || found->second.length != length) {
    return Err(Errc::kNotFound, "DMA mapping");
  }
  mappings_.erase(found);
  size_.store(mappings_.size(), std::memory_order_relaxed);
  return {};
}

Result<memory::GuestView> DmaTable::ResolveRun(const memory::GuestMemory& memory, std::uint64_t at,
                                               std::uint64_t length, memory::Access access) const {
  const auto above = mappings_.upper_bound(at);
  if (above == mappings_.begin()) return Fault();
  const auto& [start, mapping] = *std::prev(above);
  const std::uint64_t offset = at - start;
  if (offset >= mapping.length || !Grants(mapping.access, access)) return Fault();
  const std::uint64_t run = std::min(length, mapping.length - offset);
  const std::uint64_t host = reinterpret_cast<std::uintptr_t>(mapping.address) + offset;
  for (const memory::RegionPtr& region : memory.regions()) {
    if (host < region->host_address() || host - region->host_address() >= region->size()) continue;
    const std::uint64_t inside = host - region->host_address();
    return memory.View(memory::Gpa(region->base().value + inside),
                       std::min(run, region->size() - inside), access);
  }
  return Fault();
}

Result<std::vector<memory::GuestView>> DmaTable::Resolve(const memory::GuestMemory& memory,
                                                         iommu::Iova at, std::uint64_t length,
                                                         memory::Access access) const {
  if (length == 0 || at.value > std::numeric_limits<std::uint64_t>::max() - (length - 1)) {
    return Fault();
  }
  std::vector<memory::GuestView> views;
  for (std::uint64_t done = 0; done < length; done += views.back().size()) {
    // Each view has at least a byte, and in practice a page.
    views.push_back(TRY(ResolveRun(memory, at.value + done, length - done, access)));
  }
  return views;
}

Result<void> DmaTable::Read(iommu::Iova at, std::span<std::byte> to) const {
  const memory::GuestMemoryPtr memory = memory_.Snapshot();
  std::size_t done = 0;
  for (const memory::GuestView& view :
       TRY(Resolve(*memory, at, to.size(), memory::Access::kRead))) {
    TRY(view.CopyOut(0, to.subspan(done, view.size())));
    done += view.size();
  }
  return {};
}

Result<void> DmaTable::Write(iommu::Iova at, std::span<const std::byte> from) const {
  const memory::GuestMemoryPtr memory = memory_.Snapshot();
  std::size_t done = 0;
  for (const memory::GuestView& view :
       TRY(Resolve(*memory, at, from.size(), memory::Access::kWrite))) {
    TRY(view.CopyIn(0, from.subspan(done, view.size())));
    done += view.size();
  }
  return {};
}

}  // namespace postern::vfio
