#pragma once

// RegionTile: a trapped part of a BAR that is a part of a device's region: each access is a read or
// write of the region.
//
// Reads answer all ones when the device fails, is lost, does not allow reading, or has nothing
// there (a BAR is a power of two, a region need not be); writes are dropped then. Both are counted.
//
// Ownership: borrows its owner and counters. Threads: the function's lock.

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "vfio/host_device.h"

namespace postern::vfio {

struct RegionCounters {
  Counter reads, writes, refused;
};

class RegionOwner {
 public:
  virtual ~RegionOwner() = default;
  [[nodiscard]] virtual bool Reachable() = 0;
  [[nodiscard]] virtual HostDevice& Device() = 0;
  virtual void OnRegionError(const Error& error) = 0;
};

class RegionTile final : public bus::MmioHandler {
 public:
  // The tile starts at `offset` of `region`.
  RegionTile(RegionOwner& owner, std::uint32_t region, std::uint64_t offset,
             RegionCounters& counters)
      : owner_(owner), region_(region), offset_(offset), counters_(counters) {}
  void Read(std::uint64_t offset, std::span<std::byte> data) override;
  void Write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  // Whether the access lies inside the region.
  [[nodiscard]] bool Inside(std::uint64_t offset, std::size_t width) const;

  RegionOwner& owner_;
  const std::uint32_t region_;
  const std::uint64_t offset_;
  RegionCounters& counters_;
};

}  // namespace postern::vfio
