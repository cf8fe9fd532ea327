#include "vfio/bar_plan.h"

#include <algorithm>
#include <bit>

namespace postern::vfio {
namespace {

using pci::BarKind;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMinMemory = 16;
constexpr std::uint64_t kMinIo = 4;
constexpr std::uint64_t kMaxIo = 256;
constexpr std::uint64_t kMax32 = std::uint64_t{1} << 31;
constexpr std::uint64_t kMax64 = std::uint64_t{1} << 62;

std::uint32_t Register(std::span<const std::uint8_t> config, std::size_t index) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = value << 8 | config[pci::kBar0 + 4 * index + i];
  return value;
}

BarKind Kind(std::uint32_t bar) {
  if ((bar & pci::kBarIo) != 0) return BarKind::kIo;
  const bool prefetchable = (bar & pci::kBarPrefetchable) != 0;
  // The two other types are reserved, or the "below 1 MiB" of old: 32 bits wide both.
  if ((bar & pci::kBarTypeMask) == pci::kBarMem64)
    return prefetchable ? BarKind::kMem64Prefetchable : BarKind::kMem64;
  return prefetchable ? BarKind::kMem32Prefetchable : BarKind::kMem32;
}

std::optional<BarShape> Shape(std::uint32_t index, BarKind kind, std::uint64_t region_size) {
  const bool io = kind == BarKind::kIo;
  const std::uint64_t max = io ? kMaxIo : pci::Is64Bit(kind) ? kMax64 : kMax32;
  if (region_size > max) return std::nullopt;
  const std::uint64_t size = std::bit_ceil(std::max(region_size, io ? kMinIo : kMinMemory));
  return BarShape{index, kind, size, region_size};
}

constexpr std::uint64_t Down(std::uint64_t value) {
  return value & ~(kPage - 1);
}
constexpr std::uint64_t Up(std::uint64_t value) {
  return Down(value + kPage - 1);
}

// [begin, end) of the pieces becomes one of `use`.
void Carve(std::vector<Piece>& pieces, std::uint64_t begin, std::uint64_t end, Piece::Use use) {
  if (begin >= end) return;
  std::vector<Piece> out;
  bool placed = false;
  for (const Piece& piece : pieces) {
    const std::uint64_t piece_end = piece.offset + piece.length;
    if (piece.offset < begin)
      out.push_back({piece.offset, std::min(piece_end, begin) - piece.offset, piece.use});
    if (piece_end > begin && !placed) {
      out.push_back({begin, end - begin, use});
      placed = true;
    }
    const std::uint64_t rest = std::max(piece.offset, end);
    if (piece_end > rest) out.push_back({rest, piece_end - rest, piece.use});
  }
  pieces = std::move(out);
}

void Merge(std::vector<Piece>& pieces) {
  std::vector<Piece> out;
  for (const Piece& piece : pieces) {
    if (!out.empty() && out.back().use == piece.use && piece.use == Piece::Use::kDevice) {
      out.back().length += piece.length;
    } else {
      out.push_back(piece);
    }
  }
  pieces = std::move(out);
}

}  // namespace

BarShapes ShapeBars(std::span<const std::uint8_t> config, const DeviceInfo& info) {
  BarShapes shapes;
  for (std::uint32_t i = 0; i < pci::kBarCount; ++i) {
    const std::uint64_t size = info.regions[i].size;
    const BarKind kind = Kind(Register(config, i));
    const bool wide = pci::Is64Bit(kind);
    if (size == 0) {
      // The upper half of a 64-bit BAR that is not there is none either.
      if (wide && i + 1 < pci::kBarCount) ++i;
      continue;
    }
    if (wide && i + 1 == pci::kBarCount) {
      ++shapes.refused;
      continue;
    }
    shapes.bars[i] = Shape(i, kind, size);
    if (!shapes.bars[i]) ++shapes.refused;
    if (wide && info.regions[++i].size != 0) ++shapes.refused;
  }
  return shapes;
}

std::vector<Piece> PlanPieces(const BarShape& shape, const RegionInfo& region,
                              std::span<const Hole> holes, bool trap) {
  std::vector<Piece> pieces{{0, shape.region_size, Piece::Use::kDevice}};
  if (shape.region_size < shape.size) {
    pieces.push_back({shape.region_size, shape.size - shape.region_size, Piece::Use::kBeyond});
  }
  const bool mappable =
      !trap && region.readable && shape.kind != BarKind::kIo && region.areas.size() <= kMaxAreas;
  if (mappable) {
    for (const MapArea& area : region.areas) {
      if (area.offset >= shape.region_size) continue;
      const std::uint64_t end =
          area.offset + std::min(area.length, shape.region_size - area.offset);
      Carve(pieces, Up(area.offset), Down(end), Piece::Use::kMapped);
    }
    for (const Hole& hole : holes) {
      Carve(pieces, Down(hole.offset), std::min(Up(hole.offset + hole.length), shape.region_size),
            Piece::Use::kDevice);
    }
  }
  for (const Hole& hole : holes) {
    Carve(pieces, hole.offset, hole.offset + hole.length,
          hole.table ? Piece::Use::kTable : Piece::Use::kPba);
  }
  Merge(pieces);
  return pieces;
}

}  // namespace postern::vfio
