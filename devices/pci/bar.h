#pragma once

// Bar: one base address register's range, tiled: every byte is either trapped to a handler or a
// page mapped into the guest.
//
//   std::vector<Tile> tiles{Trapped{0, 0x2000, &registers, "regs"},
//                           Pages{0x2000, portal, Access::kWrite, "portal"}};
//   Bar bar = TRY(Bar::Create(BarKind::kMem64, 0x4000, std::move(tiles)));
//   TRY(bar.Map(space, base, function_lock, "00:03.0 bar0"));
//
// Is not the register in config space: PciFunction reads that, and maps and unmaps by COMMAND.
//
// Ownership: borrows handlers, host pages and events, which outlive it. Threads: the function's
// lock, under which Map and Unmap run and with which its handlers are registered; after Unmap no
// handler call is in progress and no page is mapped. A handler sees offsets from the start of its
// tile.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "devices/pci/bar_space.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/bus.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/memory/gpa.h"

namespace postern::pci {

enum class BarKind : std::uint8_t { kMem32, kMem32Prefetchable, kMem64, kMem64Prefetchable, kIo };

[[nodiscard]] constexpr bool Is64Bit(BarKind kind) {
  return kind == BarKind::kMem64 || kind == BarKind::kMem64Prefetchable;
}

// Accesses exit to the handler. `name` (static text) is for listings.
struct Trapped {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bus::MmioHandler* handler = nullptr;
  std::string_view name;
};

// Accesses go straight to the page. offset and host.length are multiples of 4096.
struct Pages {
  std::uint64_t offset = 0;
  bus::HostPages host;
  memory::Access access = memory::Access::kReadWrite;
  std::string_view name;
};

using Tile = std::variant<Trapped, Pages>;

[[nodiscard]] std::uint64_t TileOffset(const Tile& tile);
[[nodiscard]] std::uint64_t TileLength(const Tile& tile);
[[nodiscard]] std::string_view TileName(const Tile& tile);

// A write at `offset` inside a Trapped tile that should signal `event` without an exit. Where the
// platform cannot (or no longer has room), the write reaches the tile's handler instead, which must
// do the same.
struct BarDoorbell {
  std::uint64_t offset = 0;
  std::uint32_t width = 0;  // 0: any
  std::optional<std::uint64_t> match;
  const EventFd* event = nullptr;
};

class Bar {
 public:
  // size: a power of two: memory 16 bytes up to 2^31 (32-bit) or 2^62, I/O 4 to 256 bytes. Tiles in
  // ascending order cover it without gap or overlap (kInvalidArgument); only Trapped ones in an I/O
  // BAR.
  [[nodiscard]] static Result<Bar> Create(BarKind kind, std::uint64_t size, std::vector<Tile> tiles,
                                          std::vector<BarDoorbell> doorbells = {});

  [[nodiscard]] BarKind kind() const { return kind_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] std::span<const Tile> tiles() const { return tiles_; }
  // Where it is decoded now, if it is.
  [[nodiscard]] std::optional<std::uint64_t> mapped() const {
    return place_ ? std::optional(place_->base) : std::nullopt;
  }

  // Whole or not at all. Not mapped already (CHECK). Errors: BarSpace::Take's, and what the bus or
  // the page mapper refuses. A doorbell the platform refuses is no error; missing_doorbells()
  // counts them.
  [[nodiscard]] Result<void> Map(BarSpace& space, std::uint64_t base, Mutex& lock,
                                 const std::string& name);
  void Unmap();
  [[nodiscard]] std::uint64_t missing_doorbells() const { return missing_doorbells_; }

  // tiles()[index], which are Pages, become `tile`, a Trapped one of the same range. While the BAR
  // is decoded no access is lost: the handler is there before the pages go, and when it returns no
  // page of the tile is mapped any more. kInvalidArgument for anything else; what the bus refuses
  // changes nothing.
  [[nodiscard]] Result<void> TrapPages(std::size_t index, const Trapped& tile);

  // An access by other means than the bus (a window in config space), with the function's lock
  // held. False, and nothing done, when it does not lie inside one Trapped tile.
  [[nodiscard]] bool Read(std::uint64_t offset, std::span<std::byte> data) const;
  [[nodiscard]] bool Write(std::uint64_t offset, std::span<const std::byte> data) const;

 private:
  Bar(BarKind kind, std::uint64_t size, std::vector<Tile> tiles, std::vector<BarDoorbell> doorbells)
      : kind_(kind), size_(size), tiles_(std::move(tiles)), doorbells_(std::move(doorbells)) {}
  [[nodiscard]] const Trapped* FindTrapped(std::uint64_t offset, std::size_t width) const;
  // While it is decoded.
  struct Place {
    BarSpace* space;
    std::uint64_t base;
    Mutex* lock;
    std::string name;
  };
  // What stands for one tile there: one of the two.
  struct PlacedTile {
    bus::Registration registration;
    std::unique_ptr<bus::Mapping> mapping;
  };
  [[nodiscard]] Result<void> MapTiles(const Place& place);
  [[nodiscard]] Result<PlacedTile> MapTile(const Place& place, const Tile& tile) const;

  BarKind kind_;
  std::uint64_t size_;
  std::vector<Tile> tiles_;
  std::vector<BarDoorbell> doorbells_;
  std::uint64_t missing_doorbells_ = 0;
  // Given up in reverse: doorbells first, the claim last.
  std::optional<Place> place_;
  Claim claim_;
  std::vector<PlacedTile> placed_;  // as tiles_
  std::vector<std::unique_ptr<bus::Doorbell>> bells_;
};

}  // namespace postern::pci
