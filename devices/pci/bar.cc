#include "devices/pci/bar.h"

#include <bit>
#include <utility>

#include "src/base/check.h"

namespace postern::pci {
namespace {

constexpr std::uint64_t kPageSize = 4096;

bool SizeFits(BarKind kind, std::uint64_t size) {
  if (!std::has_single_bit(size)) return false;
  if (kind == BarKind::kIo)
    return size >= 4 && size <= 256;  // PCI 3.0 6.2.5.1: a function asks for at most 256 ports
  return size >= 16 && size <= (Is64Bit(kind) ? std::uint64_t{1} << 62 : std::uint64_t{1} << 31);
}

bool TileFits(BarKind kind, const Tile& tile) {
  if (const auto* trapped = std::get_if<Trapped>(&tile))
    return trapped->length != 0 && trapped->handler != nullptr;
  const auto& pages = std::get<Pages>(tile);
  return kind != BarKind::kIo && pages.host.length != 0 && pages.offset % kPageSize == 0 &&
         pages.host.length % kPageSize == 0;
}

}  // namespace

std::uint64_t TileOffset(const Tile& tile) {
  return std::visit([](const auto& t) { return t.offset; }, tile);
}

std::uint64_t TileLength(const Tile& tile) {
  if (const auto* trapped = std::get_if<Trapped>(&tile)) return trapped->length;
  return std::get<Pages>(tile).host.length;
}

std::string_view TileName(const Tile& tile) {
  return std::visit([](const auto& t) { return t.name; }, tile);
}

Result<Bar> Bar::Create(BarKind kind, std::uint64_t size, std::vector<Tile> tiles,
                        std::vector<BarDoorbell> doorbells) {
  if (!SizeFits(kind, size)) return Err(Errc::kInvalidArgument, "BAR size");
  std::uint64_t next = 0;
  for (const Tile& tile : tiles) {
    if (!TileFits(kind, tile)) return Err(Errc::kInvalidArgument, "BAR tile");
    if (TileOffset(tile) != next || TileLength(tile) > size - next) {
      return Err(Errc::kInvalidArgument, "BAR tiles with a gap or overlap");
    }
    next += TileLength(tile);
  }
  if (next != size) return Err(Errc::kInvalidArgument, "BAR tiles do not cover it");
  Bar bar(kind, size, std::move(tiles), {});
  for (const BarDoorbell& bell : doorbells) {
    const std::size_t width = bell.width == 0 ? 1 : bell.width;
    if (bell.event == nullptr || bar.FindTrapped(bell.offset, width) == nullptr) {
      return Err(Errc::kInvalidArgument, "BAR doorbell outside a trapped tile");
    }
  }
  bar.doorbells_ = std::move(doorbells);
  return bar;
}

Result<void> Bar::Map(BarSpace& space, std::uint64_t base, Mutex& lock, const std::string& name) {
  CHECK(!place_);
  Place place{.space = &space, .base = base, .lock = &lock, .name = name};
  Result<void> result = MapTiles(place);
  if (!result) {
    Unmap();
    return result;
  }
  place_ = std::move(place);
  if (kind_ == BarKind::kIo) return {};
  for (const BarDoorbell& bell : doorbells_) {
    auto registered = space.doorbells().Register(memory::Gpa(base + bell.offset), bell.width,
                                                 bell.match, *bell.event);
    if (registered) {
      bells_.push_back(std::move(*registered));
    } else {
      ++missing_doorbells_;
    }
  }
  return {};
}

Result<void> Bar::MapTiles(const Place& place) {
  claim_ = TRY(place.space->Take(kind_ == BarKind::kIo, place.base, size_));
  for (const Tile& tile : tiles_) placed_.push_back(TRY(MapTile(place, tile)));
  return {};
}

Result<Bar::PlacedTile> Bar::MapTile(const Place& place, const Tile& tile) const {
  PlacedTile placed;
  if (const auto* trapped = std::get_if<Trapped>(&tile)) {
    // Take refuses I/O where there are no ports.
    bus::Bus& bus = kind_ == BarKind::kIo ? *place.space->ports() : place.space->memory();
    placed.registration =
        TRY(bus.Add(place.base + trapped->offset, trapped->length, *trapped->handler, *place.lock,
                    place.name + " " + std::string(trapped->name)));
  } else {
    const auto& pages = std::get<Pages>(tile);
    placed.mapping = TRY(
        place.space->pages().Map(memory::Gpa(place.base + pages.offset), pages.host, pages.access));
  }
  return placed;
}

void Bar::Unmap() {
  bells_.clear();
  placed_.clear();
  claim_.Release();
  place_.reset();
}

Result<void> Bar::TrapPages(std::size_t index, const Trapped& tile) {
  const Tile now = tile;
  if (index >= tiles_.size() || !std::holds_alternative<Pages>(tiles_[index]) ||
      !TileFits(kind_, now) || tile.offset != TileOffset(tiles_[index]) ||
      tile.length != TileLength(tiles_[index])) {
    return Err(Errc::kInvalidArgument, "trapped tile in the place of pages");
  }
  if (place_) {
    // Both are there for a moment: an access to a mapped page never reaches the bus.
    PlacedTile placed = TRY(MapTile(*place_, now));
    placed_[index] = std::move(placed);
  }
  tiles_[index] = now;
  return {};
}

const Trapped* Bar::FindTrapped(std::uint64_t offset, std::size_t width) const {
  for (const Tile& tile : tiles_) {
    const auto* trapped = std::get_if<Trapped>(&tile);
    if (trapped == nullptr || offset < trapped->offset) continue;
    const std::uint64_t at = offset - trapped->offset;
    if (at <= trapped->length && width <= trapped->length - at) return trapped;
  }
  return nullptr;
}

bool Bar::Read(std::uint64_t offset, std::span<std::byte> data) const {
  const Trapped* tile = FindTrapped(offset, data.size());
  if (tile == nullptr) return false;
  tile->handler->Read(offset - tile->offset, data);
  return true;
}

bool Bar::Write(std::uint64_t offset, std::span<const std::byte> data) const {
  const Trapped* tile = FindTrapped(offset, data.size());
  if (tile == nullptr) return false;
  tile->handler->Write(offset - tile->offset, data);
  return true;
}

}  // namespace postern::pci
