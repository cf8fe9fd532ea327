#include "vfio/bar_plan.h"

#include <vector>

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using pci::BarKind;
using Use = Piece::Use;

struct Device {
  Device() : config(64) {}
  void Set(std::size_t index, std::uint32_t value, std::uint64_t size) {
    for (std::size_t i = 0; i < 4; ++i)
      config[pci::kBar0 + 4 * index + i] = static_cast<std::uint8_t>(value >> (8 * i));
    info.regions[index] = {.size = size, .readable = true, .writable = true, .areas = {}};
  }
  [[nodiscard]] BarShapes Shapes() const { return ShapeBars(config, info); }
  std::vector<std::uint8_t> config;
  DeviceInfo info;
};

TEST_CASE("bars: the kind is the register's, the size the region's") {
  const struct {
    const char* name;
    std::uint32_t value;
    BarKind kind;
  } rows[] = {
      {"32-bit", 0xfe000000, BarKind::kMem32},
      {"32-bit prefetchable", 0xfe000008, BarKind::kMem32Prefetchable},
      {"64-bit", 0xfe000004, BarKind::kMem64},
      {"64-bit prefetchable", 0x0000000c, BarKind::kMem64Prefetchable},
      {"below 1 MiB, of old", 0x00000002, BarKind::kMem32},
      {"reserved type", 0x00000006, BarKind::kMem32},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    Device d;
    d.Set(1, row.value, 0x10000);  // an odd register is as good for a 64-bit BAR
    const BarShapes shapes = d.Shapes();
    REQUIRE(shapes.bars[1].has_value());
    CHECK(shapes.bars[1]->kind == row.kind);
    CHECK(shapes.bars[1]->size == 0x10000);
    CHECK(!shapes.bars[2].has_value());
    CHECK(shapes.refused == 0);
  }
  Device io;
  io.Set(5, 0xd001, 64);
  REQUIRE(io.Shapes().bars[5].has_value());
  CHECK(io.Shapes().bars[5]->kind == BarKind::kIo);
}

TEST_CASE("bars: sizes at their limits") {
  const struct {
    const char* name;
    std::uint32_t value;
    std::uint64_t region;
    std::uint64_t size;  // 0: refused
  } rows[] = {
      {"1 byte", 0, 1, 16},
      {"no power of two", 0, 0x1801, 0x2000},
      {"largest of 32 bits", 0, 0x80000000, 0x80000000},
      {"one more", 0, 0x80000001, 0},
      {"largest of 64 bits", 4, std::uint64_t{1} << 62, std::uint64_t{1} << 62},
      {"one more", 4, (std::uint64_t{1} << 62) + 1, 0},
      {"all ones", 4, ~std::uint64_t{0}, 0},
      {"1 port", 1, 1, 4},
      {"256 ports", 1, 256, 256},
      {"257 ports", 1, 257, 0},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    CAPTURE(row.region);
    Device d;
    d.Set(0, row.value, row.region);
    const BarShapes shapes = d.Shapes();
    CHECK(shapes.bars[0].has_value() == (row.size != 0));
    CHECK(shapes.refused == (row.size == 0 ? 1 : 0));
    if (shapes.bars[0]) {
      CHECK(shapes.bars[0]->size == row.size);
      CHECK(shapes.bars[0]->region_size == row.region);
    }
  }
}

TEST_CASE("bars: a 64-bit BAR takes the next register, whatever region the device claims there") {
  Device last;
  last.Set(5, 4, 0x1000);
  CHECK(!last.Shapes().bars[5].has_value());
  CHECK(last.Shapes().refused == 1);

  Device d;
  d.Set(0, 0xc, 0x1000);
  d.Set(1, 0, 0x1000);
  d.Set(2, 0, 0x1000);
  CHECK(d.Shapes().bars[0].has_value());
  CHECK(!d.Shapes().bars[1].has_value());
  CHECK(d.Shapes().bars[2].has_value());
  CHECK(d.Shapes().refused == 1);

  // An empty one hides what its upper half looks like.
  Device empty;
  empty.Set(0, 4, 0);
  empty.Set(1, 1, 0);
  CHECK(!empty.Shapes().bars[0].has_value());
  CHECK(empty.Shapes().refused == 0);
}

RegionInfo Region(std::uint64_t size, std::vector<MapArea> areas) {
  return {.size = size, .readable = true, .writable = true, .areas = std::move(areas)};
}
BarShape Shape(std::uint64_t region_size, std::uint64_t size) {
  return {.index = 0, .kind = BarKind::kMem64, .size = size, .region_size = region_size};
}

void CheckCover(const std::vector<Piece>& pieces, std::uint64_t size) {
  std::uint64_t next = 0;
  for (const Piece& piece : pieces) {
    CHECK(piece.offset == next);
    CHECK(piece.length != 0);
    if (piece.use == Use::kMapped) {
      CHECK(piece.offset % 4096 == 0);
      CHECK(piece.length % 4096 == 0);
    }
    next += piece.length;
  }
  CHECK(next == size);
}

TEST_CASE("pieces: the mappable areas as they are, the rest trapped") {
  CHECK(PlanPieces(Shape(0x4000, 0x4000), Region(0x4000, {{0, 0x4000}}), {}, false) ==
        std::vector<Piece>{{0, 0x4000, Use::kMapped}});
  CHECK(PlanPieces(Shape(0x4000, 0x4000), Region(0x4000, {}), {}, false) ==
        std::vector<Piece>{{0, 0x4000, Use::kDevice}});
  CHECK(PlanPieces(Shape(0x5000, 0x8000), Region(0x5000, {{0x1000, 0x1000}, {0x3000, 0x2000}}), {},
                   false) == std::vector<Piece>{{0, 0x1000, Use::kDevice},
                                                {0x1000, 0x1000, Use::kMapped},
                                                {0x2000, 0x1000, Use::kDevice},
                                                {0x3000, 0x2000, Use::kMapped},
                                                {0x5000, 0x3000, Use::kBeyond}});
  // Forced, not readable, or too many areas.
  CHECK(PlanPieces(Shape(0x4000, 0x4000), Region(0x4000, {{0, 0x4000}}), {}, true).size() == 1);
  RegionInfo blind = Region(0x4000, {{0, 0x4000}});
  blind.readable = false;
  CHECK(PlanPieces(Shape(0x4000, 0x4000), blind, {}, false)[0].use == Use::kDevice);
  std::vector<MapArea> many;
  for (std::uint64_t i = 0; i <= kMaxAreas; ++i) many.push_back({i * 0x2000, 0x1000});
  CHECK(PlanPieces(Shape(0x80000, 0x80000), Region(0x80000, many), {}, false).size() == 1);
  many.pop_back();
  CHECK(PlanPieces(Shape(0x80000, 0x80000), Region(0x80000, many), {}, false).size() ==
        2 * kMaxAreas);
}

TEST_CASE("pieces: regression #7939: sub-page regions and areas beyond the region are not mapped") {
  CHECK(PlanPieces(Shape(0x800, 0x800), Region(0x800, {{0, 0x1000}}), {}, false) ==
        std::vector<Piece>{{0, 0x800, Use::kDevice}});
  CHECK(PlanPieces(Shape(0x1800, 0x2000), Region(0x1800, {{0, 0x2000}}), {}, false) ==
        std::vector<Piece>{{0, 0x1000, Use::kMapped},
                           {0x1000, 0x800, Use::kDevice},
                           {0x1800, 0x800, Use::kBeyond}});
  const auto far =
      PlanPieces(Shape(0x2000, 0x2000),
                 Region(0x2000, {{0x800, 0x1000}, {0x5000, ~std::uint64_t{0}}}), {}, false);
  CHECK(far == std::vector<Piece>{{0, 0x2000, Use::kDevice}});
}

TEST_CASE("pieces: whole pages around the MSI-X table and pending bits are trapped") {
  const RegionInfo region = Region(0x8000, {{0, 0x8000}});
  // Regression e892738ed: table and pending bits in one page, and in one hole.
  const std::vector<Hole> one_page{{0x2000, 0x40, true}, {0x2800, 8, false}};
  CHECK(PlanPieces(Shape(0x8000, 0x8000), region, one_page, false) ==
        std::vector<Piece>{{0, 0x2000, Use::kMapped},
                           {0x2000, 0x40, Use::kTable},
                           {0x2040, 0x7c0, Use::kDevice},
                           {0x2800, 8, Use::kPba},
                           {0x2808, 0x7f8, Use::kDevice},
                           {0x3000, 0x5000, Use::kMapped}});
  const std::vector<Hole> apart{{0x1ff0, 0x20, true}, {0x7ff8, 8, false}};
  const auto pieces = PlanPieces(Shape(0x8000, 0x8000), region, apart, false);
  CheckCover(pieces, 0x8000);
  CHECK(pieces.front() == Piece{0, 0x1000, Use::kMapped});
  CHECK(pieces[1] == Piece{0x1000, 0xff0, Use::kDevice});
  CHECK(pieces.back() == Piece{0x7ff8, 8, Use::kPba});
  // Regression eb98b0b02: the kernel left the hole out already.
  const RegionInfo sparse = Region(0x8000, {{0, 0x1000}, {0x3000, 0x4000}});
  CheckCover(PlanPieces(Shape(0x8000, 0x8000), sparse, apart, false), 0x8000);
  // Trapped whole: the tables are emulated all the same.
  CHECK(PlanPieces(Shape(0x8000, 0x8000), region, one_page, true)[1].use == Use::kTable);
}

TEST_CASE("pieces: any table anywhere leaves a whole cover with page-aligned mappings") {
  for (std::uint64_t region = 0x1000; region <= 0x5000; region += 0x7f8) {
    for (std::uint64_t table = 0; table + 0x40 <= region; table += 0x338) {
      const std::uint64_t pba = table + 0x40 + 0x198;
      std::vector<Hole> holes{{table, 0x40, true}};
      if (pba + 8 <= region) holes.push_back({pba, 8, false});
      CAPTURE(region);
      CAPTURE(table);
      CheckCover(PlanPieces(Shape(region, 0x8000), Region(region, {{0, 0x8000}}), holes, false),
                 0x8000);
    }
  }
}

}  // namespace
}  // namespace postern::vfio
