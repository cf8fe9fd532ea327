#pragma once

// Bar plan: which BARs the guest sees of a device's regions, and what each byte of them is: a page
// of the device, a register reached by read and write, or a part of the MSI-X tables we emulate.
// Pure functions over what the device says of itself, all of it hostile.
//
//   BarShapes shapes = ShapeBars(config_bytes, info);
//   for (const Piece& piece : PlanPieces(*shapes.bars[0], info.regions[0], holes, false)) ...
//
// Reactions to what does not fit: a size that is no power of two is rounded up, and what lies
// beyond the region reads as ones; a region too large for its register, or a 64-bit BAR in the last
// register, is no BAR; a region where the upper half of a 64-bit BAR is, is ignored. The last two
// are counted in `refused`. Source: PCI 3.0, 6.2.5.1.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "devices/pci/bar.h"
#include "devices/pci/pci_regs.h"
#include "vfio/host_device.h"

namespace postern::vfio {

struct BarShape {
  std::uint32_t index = 0;
  pci::BarKind kind = pci::BarKind::kMem32;
  std::uint64_t size = 0;         // a power of two
  std::uint64_t region_size = 0;  // 1 to size
};

struct BarShapes {
  std::array<std::optional<BarShape>, pci::kBarCount> bars;
  unsigned refused = 0;
};

// `config`: at least the 64 bytes of the header.
[[nodiscard]] BarShapes ShapeBars(std::span<const std::uint8_t> config, const DeviceInfo& info);

// Where the MSI-X table and pending bits lie in one BAR.
struct Hole {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool table = false;  // else the pending bits
};

struct Piece {
  enum class Use : std::uint8_t { kMapped, kDevice, kTable, kPba, kBeyond };
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  Use use = Use::kDevice;
  friend bool operator==(const Piece&, const Piece&) = default;
};

// Ascending, without gap or overlap, from 0 to shape.size. Mapped pieces are whole pages of the
// region's areas, without the pages a hole touches; none if `trap` or if the guest could read what
// the device does not allow. Holes lie inside the region and do not overlap.
[[nodiscard]] std::vector<Piece> PlanPieces(const BarShape& shape, const RegionInfo& region,
                                            std::span<const Hole> holes, bool trap);

// More mapped areas than this in one region: it is trapped. No device has as many; each would take
// one of the machine's memory slots.
constexpr std::size_t kMaxAreas = 32;

}  // namespace postern::vfio
