// What a container says of itself, taken apart: hostile bytes.

#include <linux/vfio.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "iommu/type1.h"
#include "iommu/vfio_info.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

constexpr std::uint64_t kTop = ~std::uint64_t{0};
constexpr std::uint32_t kFixed = sizeof(vfio_iommu_type1_info);
constexpr std::uint32_t kBoth = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;

template <typename T>
void Put(std::vector<std::byte>& bytes, std::size_t at, const T& value) {
  if (bytes.size() < at + sizeof(T)) bytes.resize(at + sizeof(T));
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

std::vector<std::byte> Info(std::uint32_t flags, std::uint64_t page_sizes, std::uint32_t first) {
  std::vector<std::byte> bytes;
  vfio_iommu_type1_info info{};
  info.argsz = kFixed;
  info.flags = flags;
  info.iova_pgsizes = page_sizes;
  info.cap_offset = first;
  Put(bytes, 0, info);
  return bytes;
}

void PutCap(std::vector<std::byte>& bytes, std::size_t at, std::uint16_t id, std::uint32_t next,
            std::uint16_t version = 1) {
  Put(bytes, at, vfio_info_cap_header{.id = id, .version = version, .next = next});
}

void PutRanges(std::vector<std::byte>& bytes, std::size_t at, std::uint32_t next,
               std::uint32_t count, const std::vector<vfio_iova_range>& ranges) {
  PutCap(bytes, at, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, next);
  Put(bytes, at + 8, count);
  Put(bytes, at + 12, std::uint32_t{0});
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    Put(bytes, at + 16 + i * sizeof(vfio_iova_range), ranges[i]);
  }
}

bool Malformed(const std::vector<std::byte>& bytes) {
  const Result<Type1Info> info = ParseType1Info(bytes);
  return !info && info.error().code == Errc::kSystem && info.error().sys_errno == EPROTO;
}

TEST_CASE("type1: ranges, page sizes, mappings left and dirty logging are read from the chain") {
  std::vector<std::byte> bytes = Info(kBoth, 0x40201000, kFixed);
  PutCap(bytes, kFixed, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, kFixed + 32);
  Put(bytes, kFixed + 16, std::uint64_t{4096});
  Put(bytes, kFixed + 24, std::uint64_t{1} << 28);
  // Kernels before 6.6 put the next one at a multiple of 4.
  PutCap(bytes, kFixed + 32, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, kFixed + 44);
  Put(bytes, kFixed + 40, std::uint32_t{65535});
  PutRanges(bytes, kFixed + 44, 0, 2, {{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}});
  const Result<Type1Info> info = ParseType1Info(bytes);
  REQUIRE(info.has_value());
  CHECK(info->limits.ranges == std::vector<IovaRange>{{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}});
  CHECK(info->limits.page_sizes == 0x40201000);
  CHECK(info->limits.mappings_left == 65535);
  CHECK(info->dirty_page_sizes == 4096);
  CHECK(info->max_dirty_bitmap_bytes == std::uint64_t{1} << 28);
}

TEST_CASE("type1: without the list of ranges it is all but the interrupt window") {
  const std::vector<IovaRange> expected = {{0, 0xfedfffff}, {0xfef00000, kTop}};
  SUBCASE("no capabilities") {
    const Result<Type1Info> info = ParseType1Info(Info(VFIO_IOMMU_INFO_PGSIZES, 0x1000, 0));
    REQUIRE(info.has_value());
    CHECK(info->limits.ranges == expected);
    CHECK(info->limits.page_sizes == 0x1000);
    CHECK(info->limits.mappings_left == 0);
  }
  SUBCASE("an old kernel's shorter answer") {
    std::vector<std::byte> bytes = Info(VFIO_IOMMU_INFO_PGSIZES, 0x200000, 0);
    bytes.resize(offsetof(vfio_iommu_type1_info, cap_offset));
    const Result<Type1Info> info = ParseType1Info(bytes);
    REQUIRE(info.has_value());
    CHECK(info->limits.ranges == expected);
    CHECK(info->limits.page_sizes == 0x200000);
  }
  SUBCASE("no page sizes either") {
    const Result<Type1Info> info = ParseType1Info(Info(0, 0, 0));
    REQUIRE(info.has_value());
    CHECK(*info == DefaultType1Info());
  }
  SUBCASE("an offset without the flag that makes it one") {
    const Result<Type1Info> info = ParseType1Info(Info(VFIO_IOMMU_INFO_PGSIZES, 0x1000, 0xffff));
    REQUIRE(info.has_value());
    CHECK(info->limits.ranges == expected);
  }
  SUBCASE("a list in a version to come, and an unknown capability") {
    std::vector<std::byte> bytes = Info(kBoth, 0x1000, kFixed);
    PutCap(bytes, kFixed, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, kFixed + 8, 2);
    PutCap(bytes, kFixed + 8, 0x1234, 0);
    const Result<Type1Info> info = ParseType1Info(bytes);
    REQUIRE(info.has_value());
    CHECK(info->limits.ranges == expected);
  }
}

TEST_CASE("type1: a list of no ranges allows nothing") {
  std::vector<std::byte> bytes = Info(kBoth, 0x1000, kFixed);
  PutRanges(bytes, kFixed, 0, 0, {});
  const Result<Type1Info> info = ParseType1Info(bytes);
  REQUIRE(info.has_value());
  CHECK(info->limits.ranges.empty());
}

TEST_CASE("type1: a chain that loops, goes back or leads outside is malformed") {
  std::vector<std::byte> bytes = Info(kBoth, 0x1000, kFixed);
  PutCap(bytes, kFixed, 77, 0);
  PutCap(bytes, kFixed + 8, 78, 0);
  REQUIRE_FALSE(Malformed(bytes));
  SUBCASE("to itself") {
    PutCap(bytes, kFixed, 77, kFixed);
  }
  SUBCASE("back") {
    PutCap(bytes, kFixed, 77, kFixed + 8);
    PutCap(bytes, kFixed + 8, 78, kFixed);
  }
  SUBCASE("into its own header, which reads as the end of a chain from there") {
    PutCap(bytes, kFixed, 77, kFixed + 4);
    PutCap(bytes, kFixed + 8, 0, 0, 0);
  }
  SUBCASE("into the struct") {
    PutCap(bytes, kFixed, 77, 8);
  }
  SUBCASE("starts in the struct") {
    bytes = Info(kBoth, 0x1000, 4);
  }
  SUBCASE("starts behind the end") {
    bytes = Info(kBoth, 0x1000, kFixed);
  }
  SUBCASE("to the end") {
    PutCap(bytes, kFixed, 77, kFixed + 16);
  }
  SUBCASE("header cut off") {
    PutCap(bytes, kFixed, 77, kFixed + 9);
  }
  SUBCASE("far outside") {
    PutCap(bytes, kFixed, 77, 0xffffffff);
  }
  SUBCASE("a thousand of them") {
    for (std::uint32_t i = 0; i < 1000; ++i) {
      PutCap(bytes, kFixed + i * 8, 77, kFixed + (i + 1) * 8);
    }
    PutCap(bytes, kFixed + 8000, 77, 0);
  }
  CHECK(Malformed(bytes));
}

TEST_CASE("type1: a capability shorter than it says is malformed") {
  std::vector<std::byte> bytes = Info(kBoth, 0x1000, kFixed);
  SUBCASE("ranges without a count") {
    PutCap(bytes, kFixed, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 0);
    Put(bytes, kFixed + 8, std::uint32_t{0});
  }
  SUBCASE("one range too many") {
    PutRanges(bytes, kFixed, 0, 2, {{0, 0xfff}});
  }
  SUBCASE("four thousand million ranges") {
    PutRanges(bytes, kFixed, 0, 0xffffffff, {{0, 0xfff}});
  }
  SUBCASE("half a range") {
    PutRanges(bytes, kFixed, 0, 1, {{0, 0xfff}});
    bytes.pop_back();
  }
  SUBCASE("migration") {
    PutCap(bytes, kFixed, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, 0);
    Put(bytes, kFixed + 16, std::uint64_t{4096});
  }
  SUBCASE("mappings left") {
    PutCap(bytes, kFixed, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 0);
    Put(bytes, kFixed + 8, std::uint16_t{1});
  }
  CHECK(Malformed(bytes));
}

TEST_CASE("type1: ranges that are reversed, unordered or overlap are malformed") {
  std::vector<std::byte> bytes = Info(kBoth, 0x1000, kFixed);
  SUBCASE("reversed") {
    PutRanges(bytes, kFixed, 0, 1, {{0x2000, 0x1000}});
  }
  SUBCASE("unordered") {
    PutRanges(bytes, kFixed, 0, 2, {{0x4000, 0x4fff}, {0, 0xfff}});
  }
  SUBCASE("overlap") {
    PutRanges(bytes, kFixed, 0, 2, {{0, 0x1fff}, {0x1fff, 0x2fff}});
  }
  SUBCASE("twice everything") {
    PutRanges(bytes, kFixed, 0, 2, {{0, kTop}, {0, kTop}});
  }
  CHECK(Malformed(bytes));
}

TEST_CASE("type1: no page size at all, and no answer at all, are malformed") {
  CHECK(Malformed(Info(VFIO_IOMMU_INFO_PGSIZES, 0, 0)));
  CHECK(Malformed({}));
  CHECK(Malformed(std::vector<std::byte>(offsetof(vfio_iommu_type1_info, cap_offset) - 1)));
}

}  // namespace
}  // namespace postern::iommu
