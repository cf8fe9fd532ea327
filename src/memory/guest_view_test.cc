// What a GuestView does between two places of guest memory: move, fill, compare, sum, flush.

#include "src/memory/guest_view.h"

#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include "src/base/thread.h"
#include "src/memory/guest_memory.h"

#include <doctest/doctest.h>

namespace postern::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kSize = 64 * kPage;

GuestMemoryPtr NewMemory(std::uint64_t size = kSize) {
  Result<RegionPtr> region = Region::Create(Gpa(0), size, {.track_dirty = true});
  REQUIRE(region);
  Result<GuestMemoryPtr> memory = GuestMemory::Create({*region});
  REQUIRE(memory);
  return *memory;
}

GuestView Whole(const GuestMemoryPtr& memory) {
  Result<GuestView> view = memory->View(Gpa(0), memory->total_size(), Access::kReadWrite);
  REQUIRE(view);
  return *view;
}

std::vector<std::byte> Random(std::size_t size, std::uint32_t state = 1) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

std::vector<std::byte> Bytes(const GuestView& view) {
  std::vector<std::byte> bytes(view.size());
  REQUIRE(view.CopyOut(0, bytes));
  return bytes;
}

TEST_CASE("guest view: a move is a memmove, at any offsets and sizes, streamed or not") {
  const GuestMemoryPtr memory = NewMemory();
  const GuestView view = Whole(memory);
  std::vector<std::byte> model = Random(kSize);
  REQUIRE(view.CopyIn(0, model));
  std::uint32_t state = 7;
  const auto next = [&state](std::uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::size_t size = next(round % 2 == 0 ? 300 : 9000);
    const std::size_t from = next(static_cast<std::uint32_t>(kSize - size));
    // Every other one overlaps, by a little or a lot, on either side.
    std::size_t to = next(static_cast<std::uint32_t>(kSize - size));
    if (round % 4 < 2) to = std::min(from + next(80), kSize - size);
    if (round % 4 == 2) to = from - std::min<std::size_t>(from, next(80));
    const Stores stores = round % 3 == 0 ? Stores::kStreamed : Stores::kCached;
    CAPTURE(size);
    CAPTURE(from);
    CAPTURE(to);
    REQUIRE(view.CopyTo(from, view, to, size, stores));
    std::memmove(model.data() + to, model.data() + from, size);
    if (round % 50 == 0) REQUIRE(Bytes(view) == model);
  }
  REQUIRE(Bytes(view) == model);
}

TEST_CASE("guest view: a pattern fills from its lowest byte, and only what was asked for") {
  const GuestMemoryPtr memory = NewMemory(kPage);
  const GuestView view = Whole(memory);
  for (const std::uint64_t pattern : {0x0807060504030201ULL, 0x5a5a5a5a5a5a5a5aULL, 0ULL}) {
    for (std::size_t offset = 0; offset < 20; ++offset) {
      for (std::size_t size = 0; size < 150; ++size) {
        REQUIRE(view.Fill(0, 256, std::byte{0xee}));
        REQUIRE(view.FillPattern(offset, size, pattern));
        const std::vector<std::byte> bytes = Bytes(view);
        std::vector<std::byte> model(256, std::byte{0xee});
        for (std::size_t i = 0; i < size; ++i)
          model[offset + i] = static_cast<std::byte>(pattern >> (i % 8 * 8));
        REQUIRE(std::equal(model.begin(), model.end(), bytes.begin()));
        CHECK(view.SameAsPattern(offset, size, pattern).value() == size);
      }
    }
  }
}

TEST_CASE("guest view: a comparison finds the first byte that differs, wherever it is") {
  const GuestMemoryPtr memory = NewMemory();
  const GuestView view = Whole(memory);
  constexpr std::uint64_t kPattern = 0x8877665544332211;
  for (const std::size_t size : {1U, 15U, 16U, 17U, 63U, 64U, 65U, 200U}) {
    for (const std::size_t offset : {0U, 1U, 7U, 33U}) {
      REQUIRE(view.FillPattern(offset, size, kPattern));
      REQUIRE(view.FillPattern(kPage + 3, size, kPattern));
      CHECK(view.SameAs(offset, view, kPage + 3, size).value() == size);
      for (std::size_t at = 0; at < size; ++at) {
        CAPTURE(size);
        CAPTURE(at);
        // Something differs further on, too, and right behind the range.
        REQUIRE(view.Fill(kPage + 3 + at, size - at + 1, std::byte{0xee}));
        CHECK(view.SameAs(offset, view, kPage + 3, size).value() == at);
        CHECK(view.SameAsPattern(kPage + 3, size, kPattern).value() == at);
        REQUIRE(view.FillPattern(kPage + 3, size, kPattern));
      }
    }
  }
  CHECK(view.SameAs(0, view, 9, 0).value() == 0);
}

TEST_CASE("guest view: a sum is given every byte once and in order") {
  const GuestMemoryPtr memory = NewMemory();
  const GuestView view = Whole(memory);
  const std::vector<std::byte> bytes = Random(kSize);
  REQUIRE(view.CopyIn(0, bytes));
  std::vector<std::byte> seen;
  REQUIRE(view.Sum(3, 10000, [&seen](std::span<const std::byte> part) {
    seen.insert(seen.end(), part.begin(), part.end());
  }));
  CHECK(seen == std::vector<std::byte>(bytes.begin() + 3, bytes.begin() + 10003));
}

TEST_CASE("guest view: what does not fit is refused and nothing happens") {
  const GuestMemoryPtr memory = NewMemory(2 * kPage);
  const GuestView view = memory->View(Gpa(0), kPage, Access::kReadWrite).value();
  const GuestView small = memory->View(Gpa(kPage), 16, Access::kReadWrite).value();
  constexpr std::size_t kMax = ~std::size_t{0};
  struct Row {
    std::size_t offset;
    std::size_t length;
  };
  for (const Row row : {Row{0, kPage + 1}, Row{1, kPage}, Row{kPage + 1, 0}, Row{kMax, 1},
                        Row{1, kMax}, Row{kMax, kMax}}) {
    CHECK_FALSE(view.CopyTo(row.offset, view, 0, row.length));
    CHECK_FALSE(view.CopyTo(0, view, row.offset, row.length));
    CHECK_FALSE(view.FillPattern(row.offset, row.length, 1));
    CHECK_FALSE(view.SameAs(row.offset, view, 0, row.length));
    CHECK_FALSE(view.SameAs(0, view, row.offset, row.length));
    CHECK_FALSE(view.SameAsPattern(row.offset, row.length, 1));
    CHECK_FALSE(view.FlushCache(row.offset, row.length, CacheLines::kEvict));
    CHECK_FALSE(view.Sum(row.offset, row.length, [](auto) { FAIL("called"); }));
  }
  CHECK_FALSE(view.CopyTo(0, small, 0, 17));
  CHECK_FALSE(view.CopyTo(0, small, 8, 9));
  CHECK(view.CopyTo(0, small, 8, 8));
  CHECK(memory->regions()[0]->dirty()->Take() == std::vector<std::uint64_t>{2});
}

TEST_CASE("guest view: moves and fills mark the pages they wrote, reading marks none") {
  const GuestMemoryPtr memory = NewMemory();
  const GuestView view = Whole(memory);
  DirtyBitmap* dirty = memory->regions()[0]->dirty();
  CHECK(view.CopyTo(0, view, 5 * kPage - 1, 2));
  CHECK(dirty->Take() == std::vector<std::uint64_t>{0b110000});
  CHECK(view.FillPattern(kPage, kPage, 0x0102030405060708));
  CHECK(dirty->Take() == std::vector<std::uint64_t>{0b10});
  view.StoreRelease64(2 * kPage, 0x0102030405060708);
  CHECK(dirty->Take() == std::vector<std::uint64_t>{0b100});
  CHECK(view.Read<le64>(2 * kPage).value().get() == 0x0102030405060708);
  CHECK(view.SameAs(0, view, kPage, kPage));
  CHECK(view.SameAsPattern(0, kPage, 1));
  CHECK(view.Sum(0, kPage, [](auto) {}));
  CHECK(view.FlushCache(1, kPage, CacheLines::kEvict));
  CHECK(view.FlushCache(1, kPage, CacheLines::kKeep));
  CHECK(view.CopyTo(0, view, kPage, 0));
  CHECK(dirty->Take() == std::vector<std::uint64_t>{0});
}

TEST_CASE("guest view: a flush changes nothing") {
  const GuestMemoryPtr memory = NewMemory();
  const GuestView view = Whole(memory);
  const std::vector<std::byte> bytes = Random(kSize);
  REQUIRE(view.CopyIn(0, bytes));
  CHECK(view.FlushCache(0, kSize, CacheLines::kEvict));
  CHECK(view.FlushCache(63, 2, CacheLines::kKeep));
  CHECK(Bytes(view) == bytes);
}

TEST_CASE("guest memory: a run up to a byte ends there and begins no earlier than its region") {
  constexpr std::uint64_t kTop = ~std::uint64_t{0};
  std::vector<RegionPtr> regions;
  for (const std::uint64_t base : {std::uint64_t{0}, kPage, 3 * kPage, kTop - kPage + 1}) {
    regions.push_back(Region::Create(Gpa(base), kPage, {}).value());
  }
  const GuestMemoryPtr memory = GuestMemory::Create(regions).value();
  struct Row {
    std::uint64_t last;
    std::uint64_t length;
    std::uint64_t base;
    std::uint64_t size;
  };
  for (const Row row : {Row{0, 1, 0, 1}, Row{0, 100, 0, 1}, Row{99, 100, 0, 100},
                        Row{99, 101, 0, 100}, Row{kPage, 50, kPage, 1},
                        Row{kPage + 60, 50, kPage + 11, 50}, Row{2 * kPage - 1, kTop, kPage, kPage},
                        Row{kTop, 7, kTop - 6, 7}, Row{kTop, kTop, kTop - kPage + 1, kPage}}) {
    CAPTURE(row.last);
    CAPTURE(row.length);
    const Result<GuestView> view = memory->ViewRunUpTo(Gpa(row.last), row.length, Access::kRead);
    REQUIRE(view);
    CHECK(view->gpa().value == row.base);
    CHECK(view->size() == row.size);
  }
  CHECK_FALSE(memory->ViewRunUpTo(Gpa(2 * kPage), 1, Access::kRead));
  CHECK_FALSE(memory->ViewRunUpTo(Gpa(kTop - kPage), 1, Access::kRead));
  const GuestView run = memory->ViewRunUpTo(Gpa(kPage + 9), 4, Access::kWrite).value();
  REQUIRE(run.Fill(0, 4, std::byte{1}));
  CHECK(memory->Read<le32>(Gpa(kPage + 6)).value().get() == 0x01010101);
  CHECK(memory->Read<le16>(Gpa(kPage + 10)).value().get() == 0);
}

TEST_CASE("guest memory: a run is as long as its region goes, and empty where there is none") {
  constexpr std::uint64_t kTop = ~std::uint64_t{0};
  std::vector<RegionPtr> regions;
  for (const std::uint64_t base : {std::uint64_t{0}, kPage, 3 * kPage, kTop - kPage + 1}) {
    regions.push_back(Region::Create(Gpa(base), kPage, {.track_dirty = true}).value());
  }
  const GuestMemoryPtr memory = GuestMemory::Create(regions).value();
  for (const std::uint64_t gpa : {std::uint64_t{0}, std::uint64_t{5}, kPage - 1, kPage, 2 * kPage,
                                  3 * kPage - 1, 3 * kPage + 7, kTop - kPage, kTop}) {
    for (const std::uint64_t length : {std::uint64_t{1}, std::uint64_t{100}, kPage, kTop}) {
      CAPTURE(gpa);
      CAPTURE(length);
      const GuestView run = memory->Run(Gpa(gpa), length);
      const Result<GuestView> same = memory->ViewRun(Gpa(gpa), length, Access::kRead);
      REQUIRE(run.size() == (same ? same->size() : 0));
      if (!same) continue;
      CHECK(run.gpa() == same->gpa());
      CHECK(run.Fill(0, 1, std::byte{0x5a}));
      CHECK(same->Read<std::uint8_t>(0).value() == 0x5a);
    }
  }
  CHECK(regions[3]->dirty()->IsDirty(kPage - 1));
  CHECK(GuestMemory::Create({}).value()->Run(Gpa(0), 1).size() == 0);
}

TEST_CASE("memory map: its generation changes with every change and at no other time") {
  MemoryMap map(NewMemory(kPage));
  const std::uint64_t first = map.generation();
  static_cast<void>(map.Snapshot());
  CHECK(map.generation() == first);
  const RegionPtr region = Region::Create(Gpa(kSize), kPage, {}).value();
  REQUIRE(map.Add(region));
  const std::uint64_t second = map.generation();
  CHECK(second != first);
  CHECK_FALSE(map.Add(region));
  CHECK(map.generation() == second);
  REQUIRE(map.Remove(Gpa(kSize)));
  CHECK(map.generation() != second);
}

// For ThreadSanitizer: moving and comparing what another thread writes is not a race of ours.
TEST_CASE("guest view: another thread may write meanwhile") {
  const GuestMemoryPtr memory = NewMemory(4 * kPage);
  const GuestView view = Whole(memory);
  std::atomic<bool> stop{false};
  Result<Thread> guest = Thread::Start("guest", [&] {
    for (std::uint64_t i = 0; !stop.load(); ++i) REQUIRE(view.FillPattern(0, 3 * kPage, i));
  });
  REQUIRE(guest);
  std::size_t sum = 0;
  for (int i = 0; i < 50; ++i) {
    REQUIRE(view.CopyTo(0, view, kPage + 8, kPage));
    REQUIRE(view.CopyTo(0, view, kPage, kPage, Stores::kStreamed));
    CHECK(view.SameAs(0, view, kPage, kPage).value() <= kPage);
    CHECK(view.SameAsPattern(0, kPage, 0).value() <= kPage);
    REQUIRE(view.Sum(0, kPage, [&sum](auto part) { sum += part.size(); }));
    view.StoreRelease64(0, 1);
  }
  stop = true;
  CHECK(sum == 50 * kPage);
}

}  // namespace
}  // namespace postern::memory
