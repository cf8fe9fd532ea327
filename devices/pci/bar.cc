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
  CHECK(!mapped_);
  Result<void> result = MapTiles(space, base, lock, name);
  if (!result) {
    Unmap();
    return result;
  }
  mapped_ = base;
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

Result<void> Bar::MapTiles(BarSpace& space, std::uint64_t base, Mutex& lock,
                           const std::string& name) {
  const bool io = kind_ == BarKind::kIo;
  claim_ = TRY(space.Take(io, base, size_));
  bus::Bus& bus =
      io ? *space.ports() : space.memory();  // Take refuses I/O where there are no ports
  for (const Tile& tile : tiles_) {
    if (const auto* trapped = std::get_if<Trapped>(&tile)) {
      registrations_.push_back(
          TRY(bus.Add(base + trapped->offset, trapped->length, *trapped->handler, lock,
                      name + " " + std::string(trapped->name))));
    } else {
      const auto& pages = std::get<Pages>(tile);
      mappings_.push_back(
          TRY(space.pages().Map(memory::Gpa(base + pages.offset), pages.host, pages.access)));
    }
  }
  return {};
}

void Bar::Unmap() {
  bells_.clear();
  mappings_.clear();
  registrations_.clear();
  claim_.Release();
  mapped_.reset();
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
