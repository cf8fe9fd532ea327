#include "iommu/mapping_table.h"

#include <vector>

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Access;

constexpr std::uint64_t kTop = ~std::uint64_t{0};

// Never touched.
std::byte* Host(std::uint64_t address) {
  return reinterpret_cast<std::byte*>(address);
}

Limits Everything() {
  Limits limits;
  limits.ranges = {{0, kTop}};
  limits.page_sizes = 4096 | 2U << 20;
  return limits;
}

TEST_CASE("iommu: a mapping that is empty, wraps or is not aligned is refused") {
  const MappingTable table;
  struct Row {
    const char* name;
    std::uint64_t at;
    HostRange from;
    bool good;
  };
  const std::vector<Row> rows = {
      {"a page", 0x1000, {Host(0x10000), -1, 0, 0x1000}, true},
      {"the last page", kTop - 0xfff, {Host(0x10000), -1, 0, 0x1000}, true},
      {"empty", 0x1000, {Host(0x10000), -1, 0, 0}, false},
      {"wraps", kTop - 0xfff, {Host(0x10000), -1, 0, 0x2000}, false},
      {"everything and more", 0x1000, {Host(0x10000), -1, 0, kTop}, false},
      {"no memory", 0x1000, {nullptr, -1, 0, 0x1000}, false},
      {"memory wraps", 0x1000, {Host(kTop - 0xfff), -1, 0, 0x2000}, false},
      {"file offset wraps", 0x1000, {Host(0x10000), 3, kTop - 0xfff, 0x2000}, false},
      {"address", 0x1001, {Host(0x10000), -1, 0, 0x1000}, false},
      {"length", 0x1000, {Host(0x10000), -1, 0, 0x1001}, false},
      {"short", 0x1000, {Host(0x10000), -1, 0, 0xfff}, false},
      {"memory", 0x1000, {Host(0x10800), -1, 0, 0x1000}, false},
      {"file offset", 0x1000, {Host(0x10000), 3, 0x10, 0x1000}, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const Result<void> checked = table.Check(Iova(row.at), row.from, Everything());
    CHECK(checked.has_value() == row.good);
    if (!checked) CHECK(checked.error().code == Errc::kInvalidArgument);
  }
}

TEST_CASE("iommu: alignment is to the smallest page of the IOMMU and at least the host's") {
  const MappingTable table;
  Limits limits = Everything();
  const auto check = [&](std::uint64_t at, std::uint64_t length) {
    return table.Check(Iova(at), {Host(0x10000), -1, 0, length}, limits).has_value();
  };
  limits.page_sizes = 0x10000 | 2U << 20;
  CHECK_FALSE(check(0, 0x1000));
  CHECK_FALSE(check(0x1000, 0x10000));
  CHECK(check(0x10000, 0x10000));
  limits.page_sizes = 1;  // any
  CHECK_FALSE(check(0, 0x800));
  CHECK(check(0, 0x1000));
}

TEST_CASE("iommu: mappings do not overlap, by a byte or by all") {
  MappingTable table;
  table.Add(Iova(0x4000), {Host(0x10000), -1, 0, 0x4000}, Access::kRead);
  table.Add(Iova(kTop - 0xfff), {Host(0x20000), -1, 0, 0x1000}, Access::kRead);
  struct Row {
    std::uint64_t at;
    std::uint64_t length;
    bool good;
  };
  const std::vector<Row> rows = {
      {0x0, 0x4000, true},           {0x0, 0x5000, false},          {0x3000, 0x1000, true},
      {0x3000, 0x6000, false},       {0x4000, 0x4000, false},       {0x5000, 0x1000, false},
      {0x7000, 0x1000, false},       {0x7000, 0x2000, false},       {0x8000, 0x1000, true},
      {0x0, 0x10000, false},         {kTop - 0xfff, 0x1000, false}, {kTop - 0x1fff, 0x2000, false},
      {kTop - 0x1fff, 0x1000, true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.at);
    CAPTURE(row.length);
    const Result<void> checked =
        table.Check(Iova(row.at), {Host(0x10000), -1, 0, row.length}, Everything());
    CHECK(checked.has_value() == row.good);
    if (!checked) CHECK(checked.error().code == Errc::kOverlap);
  }
}

TEST_CASE("iommu: a mapping lies inside one range") {
  const MappingTable table;
  Limits limits = Everything();
  limits.ranges = {{0, 0xfedfffff}, {0xfef00000, 0xffffffffff}};
  const auto check = [&](std::uint64_t at, std::uint64_t length) {
    return table.Check(Iova(at), {Host(0x10000), -1, 0, length}, limits);
  };
  CHECK(check(0, 0xfee00000).has_value());
  CHECK(check(0xfef00000, 0x1000).has_value());
  CHECK(check(0xfffffff000, 0x1000).has_value());
  CHECK(check(0, 0xfee01000).error().code == Errc::kGuestRange);
  CHECK(check(0xfee00000, 0x1000).error().code == Errc::kGuestRange);
  CHECK(check(0, 0x100000000).error().code == Errc::kGuestRange);
  CHECK(check(0xfffffff000, 0x2000).error().code == Errc::kGuestRange);
  CHECK(check(0x10000000000, 0x1000).error().code == Errc::kGuestRange);
  limits.ranges.clear();
  CHECK(check(0, 0x1000).error().code == Errc::kGuestRange);
}

TEST_CASE("iommu: what is found is exactly one mapping") {
  MappingTable table;
  table.Add(Iova(0x4000), {Host(0x10000), 5, 0x1000, 0x4000}, Access::kRead);
  CHECK(table.Find(Iova(0x4000), 0x3000) == nullptr);
  CHECK(table.Find(Iova(0x4000), 0x5000) == nullptr);
  CHECK(table.Find(Iova(0x5000), 0x3000) == nullptr);
  const Mapping* mapping = table.Find(Iova(0x4000), 0x4000);
  REQUIRE(mapping != nullptr);
  CHECK(mapping->from.address == Host(0x10000));
  CHECK(mapping->from.fd == 5);
  CHECK(mapping->from.offset == 0x1000);
  CHECK(mapping->access == Access::kRead);
  CHECK_FALSE(table.FirstOutside(Everything()).has_value());
  Limits narrow = Everything();
  narrow.ranges = {{0, 0x6fff}};
  CHECK(table.FirstOutside(narrow) == Iova(0x4000));
  table.Remove(Iova(0x4000));
  CHECK(table.all().empty());
}

}  // namespace
}  // namespace postern::iommu
