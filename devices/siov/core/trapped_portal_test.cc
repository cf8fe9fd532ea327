#include "devices/siov/core/trapped_portal.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

Descriptor Pattern(unsigned seed) {
  Descriptor descriptor{};
  for (std::size_t i = 0; i < descriptor.size(); ++i)
    descriptor[i] = static_cast<std::byte>(seed + 3 * i + 1);
  return descriptor;
}

struct Page {
  PortalCounters counters;
  TrappedPortal portal{counters};

  // Bytes [at, at + width) of `from`, to the same place in the slot at `base`.
  const Descriptor* Put(const Descriptor& from, std::size_t at, std::size_t width,
                        std::uint32_t base = 0) {
    return portal.Store(base + static_cast<std::uint32_t>(at),
                        std::span<const std::byte>(from).subspan(at, width));
  }
};

TEST_CASE("trapped portal: 64 bytes in pieces of each width make a descriptor") {
  for (const std::size_t width : {1U, 2U, 4U, 8U}) {
    CAPTURE(width);
    Page page;
    const Descriptor from = Pattern(7);
    for (int round = 0; round < 2; ++round) {
      for (std::size_t at = 0; at + width < 64; at += width) {
        CHECK(page.Put(from, at, width) == nullptr);
        CHECK(page.counters.partial_slots == 1);
      }
      const Descriptor* whole = page.Put(from, 64 - width, width);
      REQUIRE(whole != nullptr);
      CHECK(*whole == from);
      CHECK(page.counters.partial_slots == 0);
    }
    CHECK(page.counters.stores.Get() == 128 / width);
    CHECK(page.counters.overwritten_bytes.Get() == 0);
  }
}

TEST_CASE("trapped portal: the order of the pieces does not matter") {
  const Descriptor from = Pattern(1);
  std::vector<std::size_t> order(8);
  std::iota(order.begin(), order.end(), 0);
  int tried = 0;
  do {
    Page page;
    const Descriptor* whole = nullptr;
    for (const std::size_t i : order) {
      CHECK(whole == nullptr);
      whole = page.Put(from, 8 * i, 8);
    }
    REQUIRE(whole != nullptr);
    CHECK(*whole == from);
  } while (++tried < 500 && std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("trapped portal: stores of mixed widths, and one not aligned, count by bytes") {
  Page page;
  const Descriptor from = Pattern(9);
  CHECK(page.Put(from, 1, 8) == nullptr);
  CHECK(page.Put(from, 0, 1) == nullptr);
  CHECK(page.Put(from, 9, 4) == nullptr);
  CHECK(page.Put(from, 13, 2) == nullptr);
  CHECK(page.Put(from, 15, 1) == nullptr);
  for (std::size_t at = 16; at < 56; at += 8) CHECK(page.Put(from, at, 8) == nullptr);
  const Descriptor* whole = page.Put(from, 56, 8);
  REQUIRE(whole != nullptr);
  CHECK(*whole == from);
}

TEST_CASE("trapped portal: a byte stored twice has the newer value and is counted") {
  Page page;
  const Descriptor old = Pattern(1);
  const Descriptor now = Pattern(2);
  CHECK(page.Put(old, 0, 8) == nullptr);
  CHECK(page.Put(old, 8, 8) == nullptr);
  CHECK(page.Put(now, 4, 8) == nullptr);
  CHECK(page.counters.overwritten_bytes.Get() == 8);
  const Descriptor* whole = nullptr;
  for (std::size_t at = 16; at < 64; at += 8) whole = page.Put(now, at, 8);
  REQUIRE(whole != nullptr);
  CHECK(std::equal(whole->begin(), whole->begin() + 4, old.begin()));
  CHECK(std::equal(whole->begin() + 4, whole->begin() + 12, now.begin() + 4));
  CHECK(std::equal(whole->begin() + 12, whole->begin() + 16, old.begin() + 12));
  CHECK(std::equal(whole->begin() + 16, whole->end(), now.begin() + 16));
}

TEST_CASE(
    "trapped portal: a driver that gave up half-way is stored over by the next, in its order") {
  Page page;
  const Descriptor old = Pattern(1);
  const Descriptor now = Pattern(2);
  for (std::size_t at = 0; at < 32; at += 8) CHECK(page.Put(old, at, 8) == nullptr);
  const Descriptor* whole = nullptr;
  for (std::size_t at = 0; at < 64; at += 8) {
    CHECK(whole == nullptr);
    whole = page.Put(now, at, 8);
  }
  REQUIRE(whole != nullptr);
  CHECK(*whole == now);
  CHECK(page.counters.overwritten_bytes.Get() == 32);
}

TEST_CASE("trapped portal: slots are gathered apart") {
  Page page;
  const Descriptor first = Pattern(1);
  const Descriptor second = Pattern(2);
  for (std::size_t at = 0; at < 56; at += 8) {
    CHECK(page.Put(first, at, 8, 0) == nullptr);
    CHECK(page.Put(second, at, 8, 0xfc0) == nullptr);
  }
  CHECK(page.counters.partial_slots == 2);
  const Descriptor* whole = page.Put(second, 56, 8, 0xfc0);
  REQUIRE(whole != nullptr);
  CHECK(*whole == second);
  whole = page.Put(first, 56, 8, 0);
  REQUIRE(whole != nullptr);
  CHECK(*whole == first);
  CHECK(page.counters.partial_slots == 0);
}

TEST_CASE("trapped portal: a store across the end of its slot is ignored and counted") {
  Page page;
  const Descriptor from = Pattern(1);
  CHECK(page.portal.Store(60, std::span<const std::byte>(from).first(8)) == nullptr);
  CHECK(page.portal.Store(0xfff, std::span<const std::byte>(from).first(2)) == nullptr);
  CHECK(page.counters.straddles.Get() == 2);
  CHECK(page.counters.stores.Get() == 0);
  CHECK(page.counters.partial_slots == 0);
}

TEST_CASE("trapped portal: a whole store, and Clear, drop what a slot held") {
  Page page;
  const Descriptor from = Pattern(1);
  page.portal.Overwrite(0x40);  // nothing there
  CHECK(page.Put(from, 0, 8, 0x40) == nullptr);
  CHECK(page.Put(from, 0, 8, 0x80) == nullptr);
  page.portal.Overwrite(0x40);
  CHECK(page.counters.overwritten_bytes.Get() == 8);
  CHECK(page.counters.partial_slots == 1);
  page.portal.Clear();
  CHECK(page.counters.partial_slots == 0);
  // Neither counts towards the next.
  const Descriptor* whole = nullptr;
  for (std::size_t at = 8; at < 64; at += 8) CHECK(page.Put(from, at, 8, 0x80) == nullptr);
  whole = page.Put(from, 0, 8, 0x80);
  REQUIRE(whole != nullptr);
  CHECK(*whole == from);
}

TEST_CASE("trapped portal: partial slots are saved, and completed elsewhere") {
  Page page;
  const Descriptor from = Pattern(5);
  CHECK(page.Put(from, 8, 8, 0x40) == nullptr);
  CHECK(page.Put(from, 63, 1, 0xfc0) == nullptr);
  std::vector<PartialSlot> saved;
  page.portal.Save(2, 1, saved);
  REQUIRE(saved.size() == 2);
  CHECK(saved[0].queue == 2);
  CHECK(saved[0].page == 1);
  CHECK(saved[0].slot == 1);
  CHECK(saved[0].present == 0xff00);
  CHECK(saved[0].bytes[0] == std::byte{0});
  CHECK(saved[0].bytes[8] == from[8]);
  CHECK(saved[1].slot == 63);
  CHECK(saved[1].present == std::uint64_t{1} << 63);

  Page other;
  for (const PartialSlot& slot : saved) CHECK(other.portal.Restore(slot));
  CHECK(other.counters.partial_slots == 2);
  const Descriptor* whole = nullptr;
  for (std::size_t at = 0; at < 64; at += 8) {
    if (at != 8) whole = other.Put(from, at, 8, 0x40);
  }
  REQUIRE(whole != nullptr);
  CHECK(*whole == from);
}

TEST_CASE("trapped portal: state that no portal gave is refused") {
  PartialSlot good;
  good.slot = 3;
  good.present = 1;
  good.bytes[0] = std::byte{9};
  const auto code = [](const PartialSlot& slot) {
    Page page;
    const Result<void> restored = page.portal.Restore(slot);
    return restored ? Errc::kNotFound : restored.error().code;
  };
  CHECK(code(good) == Errc::kNotFound);
  PartialSlot bad = good;
  bad.slot = 64;
  CHECK(code(bad) == Errc::kBadFormat);
  bad.slot = 0xffffffff;
  CHECK(code(bad) == Errc::kBadFormat);
  bad = good;
  bad.present = 0;
  CHECK(code(bad) == Errc::kBadFormat);
  bad.present = ~std::uint64_t{0};
  CHECK(code(bad) == Errc::kBadFormat);
  bad = good;
  bad.bytes[1] = std::byte{1};
  CHECK(code(bad) == Errc::kBadFormat);
  Page page;
  CHECK(page.portal.Restore(good));
  CHECK(page.portal.Restore(good).error().code == Errc::kBadFormat);
}

}  // namespace
}  // namespace postern::siov
