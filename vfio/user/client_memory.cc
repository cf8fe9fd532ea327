#include "vfio/user/client_memory.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "src/base/check.h"

namespace postern::vfio {
namespace {

constexpr std::uint64_t kPage = 4096;

}  // namespace

Result<std::unique_ptr<ClientMemory>> ClientMemory::Create(std::size_t max_mappings) {
  memory::GuestMemoryPtr nothing = TRY(memory::GuestMemory::Create({}));
  return std::unique_ptr<ClientMemory>(new ClientMemory(std::move(nothing), max_mappings));
}

bool ClientMemory::Overlaps(std::uint64_t address, std::uint64_t size) const {
  const auto above = mappings_.upper_bound(address + (size - 1));
  if (above == mappings_.begin()) return false;
  const auto& [start, below] = *std::prev(above);
  return start + (below.size - 1) >= address;
}

Result<void> ClientMemory::Map(const UserDmaMap& map, const Fd& file) {
  const auto refuse = [&](const Unexpected& why) {
    maps_refused_.Add();
    return why;
  };
  if (map.address % kPage != 0 || map.size == 0 || map.size % kPage != 0 ||
      map.offset % kPage != 0 || map.address + (map.size - 1) < map.address ||
      (!map.readable && !map.writable)) {
    return refuse(Err(Errc::kInvalidArgument, "DMA mapping that is not whole pages"));
  }
  if (Overlaps(map.address, map.size)) return refuse(Err(Errc::kOverlap, "DMA mapping"));
  if (mappings_.size() >= max_mappings_)
    return refuse(Err(Errc::kExhausted, "number of DMA mappings"));
  if (!file.valid()) {
    maps_without_file_.Add();
    return refuse(Err(Errc::kUnsupported,
                      "it came without a file, so the device cannot reach it; a guest's RAM must "
                      "be shared (QEMU: -object memory-backend-memfd,share=on as the machine's "
                      "memory-backend; Postern: --memory SIZE,shared; Cloud Hypervisor: "
                      "--memory shared=on)"));
  }
  memory::RegionPtr reached;
  if (map.readable && map.writable) {
    Result<memory::RegionPtr> region =
        memory::Region::Adopt(memory::Gpa(map.address), map.size, file.get(), map.offset);
    if (!region) return refuse(Unexpected(region.error()));
    if (Result<void> added = map_.Add(*region); !added) return refuse(Unexpected(added.error()));
    reached = std::move(*region);
  }
  mappings_.emplace(map.address, Mapping{map.size, std::move(reached)});
  maps_.Add();
  most_mappings_ = std::max(most_mappings_, mappings_.size());
  most_bytes_ = std::max(most_bytes_, bytes());
  return {};
}

void ClientMemory::Remove(Mappings::iterator mapping) {
  // It was added when the mapping was.
  if (mapping->second.region != nullptr) {
    CHECK(map_.Remove(memory::Gpa(mapping->first)).has_value());
    lost_ += mapping->second.region->lost() ? 1 : 0;
  }
  mappings_.erase(mapping);
  unmaps_.Add();
}

Result<void> ClientMemory::Unmap(const UserDmaUnmap& unmap) {
  if (unmap.all) {
    while (!mappings_.empty()) Remove(mappings_.begin());
    return {};
  }
  if (unmap.size == 0 || unmap.address + (unmap.size - 1) < unmap.address)
    return Err(Errc::kInvalidArgument, "range to unmap");
  const std::uint64_t last = unmap.address + (unmap.size - 1);
  auto first = mappings_.lower_bound(unmap.address);
  if (first != mappings_.begin()) {
    const auto& [start, below] = *std::prev(first);
    if (start + (below.size - 1) >= unmap.address)
      return Err(Errc::kInvalidArgument, "range to unmap begins inside a mapping");
  }
  if (first == mappings_.end() || first->first > last)
    return Err(Errc::kNotFound, "mapping in the range to unmap");
  const auto end = mappings_.upper_bound(last);
  const auto& [start, highest] = *std::prev(end);
  if (start + (highest.size - 1) > last)
    return Err(Errc::kInvalidArgument, "range to unmap ends inside a mapping");
  while (first != end) Remove(first++);
  return {};
}

std::uint64_t ClientMemory::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [address, mapping] : mappings_) {
    if (mapping.region != nullptr) sum += mapping.size;
  }
  return sum;
}

std::uint64_t ClientMemory::lost() const {
  std::uint64_t sum = lost_;
  for (const auto& [address, mapping] : mappings_)
    sum += mapping.region != nullptr && mapping.region->lost() ? 1 : 0;
  return sum;
}

void ClientMemory::ReportCounters(CounterSink& sink) const {
  sink.Add("dma_maps", maps_.Get());
  sink.Add("dma_unmaps", unmaps_.Get());
  sink.Add("dma_maps_refused", maps_refused_.Get());
  sink.Add("dma_maps_without_file", maps_without_file_.Get());
  sink.Add("dma_files_shortened", lost());
}

}  // namespace postern::vfio
