#include "src/memory/guest_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "src/base/endian.h"
#include "src/base/thread.h"

#include <doctest/doctest.h>

namespace postern::memory {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

RegionPtr NewRegion(std::uint64_t base, std::uint64_t size, const Backing& backing = {}) {
  Result<RegionPtr> region = Region::Create(Gpa(base), size, backing);
  REQUIRE(region);
  return *region;
}

GuestMemoryPtr NewMemory(std::vector<RegionPtr> regions) {
  Result<GuestMemoryPtr> memory = GuestMemory::Create(std::move(regions));
  REQUIRE(memory);
  return *memory;
}

std::vector<std::byte> Pattern(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((0x04030201U * i) >> (i % 4 * 8) & 0xff);
  return bytes;
}

// Flags the kernel keeps for the mapping at `address`, as in /proc/self/smaps ("VmFlags: rd wr
// dd").
std::string VmFlags(std::uint64_t address) {
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &begin, &end) == 2)
      inside = address >= begin && address < end;  // NOLINT(cert-err34-c)
    if (inside && line.starts_with("VmFlags:")) return line;
  }
  return {};
}

std::size_t ResidentPages(const Region& region) {
  std::vector<unsigned char> resident(region.size() / kPage);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): mincore asks for the user address
  REQUIRE(mincore(reinterpret_cast<void*>(region.host_address()), region.size(), resident.data()) ==
          0);
  return static_cast<std::size_t>(std::count_if(
      resident.begin(), resident.end(), [](unsigned char page) { return (page & 1) != 0; }));
}

TEST_CASE("region: sizes and addresses are checked") {
  struct Row {
    const char* name;
    std::uint64_t base;
    std::uint64_t size;
    bool good;
  };
  for (const Row& row :
       {Row{"one page at 0", 0, kPage, true}, Row{"nothing", 0, 0, false},
        Row{"half a page", 0, 2048, false}, Row{"a page and a byte", 0, kPage + 1, false},
        Row{"unaligned base", 1, kPage, false},
        Row{"up to the last byte of the address space", kTop - kPage + 1, kPage, true},
        Row{"beyond the last byte", kTop - kPage + 1, 2 * kPage, false},
        Row{"more than a file may have", 0, std::uint64_t{1} << 63, false},
        Row{"all but a page of the address space", 0, 0 - kPage, false}}) {
    CAPTURE(row.name);
    const Result<RegionPtr> region = Region::Create(Gpa(row.base), row.size, {});
    CHECK(region.has_value() == row.good);
    if (!region) CHECK(region.error().code == Errc::kInvalidArgument);
  }
  // More address space than the host has: the errno is kept.
  const Result<RegionPtr> huge = Region::Create(Gpa(0), std::uint64_t{1} << 60, {});
  REQUIRE_FALSE(huge);
  CHECK(huge.error().code == Errc::kSystem);
  CHECK(huge.error().sys_errno == ENOMEM);
}

TEST_CASE("region: contains its first and its last byte and no other") {
  const RegionPtr region = NewRegion(kTop - 2 * kPage + 1, 2 * kPage);
  CHECK_FALSE(region->Contains(Gpa(kTop - 2 * kPage)));
  CHECK(region->Contains(Gpa(kTop - 2 * kPage + 1)));
  CHECK(region->Contains(Gpa(kTop)));
  CHECK_FALSE(region->Contains(Gpa(0)));
}

TEST_CASE("region: a memfd can be shared, and nobody can resize it") {
  const RegionPtr shared = NewRegion(0, 2 * kPage, {.kind = Backing::Kind::kMemfd, .shared = true});
  REQUIRE(shared->fd() >= 0);
  CHECK((fcntl(shared->fd(), F_GETFD) & FD_CLOEXEC) != 0);
  REQUIRE(NewMemory({shared})->Write(Gpa(kPage), le32(0x04030201)).has_value());
  std::uint32_t seen = 0;
  REQUIRE(pread(shared->fd(), &seen, 4, kPage) == 4);
  CHECK(seen == 0x04030201);
  CHECK(ftruncate(shared->fd(), 0) != 0);
  CHECK(errno == EPERM);
  CHECK(ftruncate(shared->fd(), 3 * kPage) != 0);

  const RegionPtr own = NewRegion(0, kPage, {.kind = Backing::Kind::kMemfd, .shared = false});
  REQUIRE(NewMemory({own})->Write(Gpa(0), le32(0x04030201)).has_value());
  REQUIRE(pread(own->fd(), &seen, 4, 0) == 4);
  CHECK(seen == 0);

  const RegionPtr anonymous =
      NewRegion(0, kPage, {.kind = Backing::Kind::kAnonymous, .shared = true});
  CHECK(anonymous->fd() == -1);
  CHECK_FALSE(anonymous->backing().shared);
}

TEST_CASE("region: advice reaches the kernel") {
  CHECK(VmFlags(NewRegion(0, kPage)->host_address()).find(" dd") != std::string::npos);
  CHECK(VmFlags(NewRegion(0, kPage, {.dump = true})->host_address()).find(" dd") ==
        std::string::npos);
  const Result<RegionPtr> thp = Region::Create(Gpa(0), 4 << 20, {.transparent_hugepages = true});
  if (thp) {
    CHECK(VmFlags((*thp)->host_address()).find(" hg") != std::string::npos);
  } else {
    CHECK(thp.error().sys_errno == EINVAL);  // a kernel without transparent huge pages
  }
  const Result<RegionPtr> ksm = Region::Create(Gpa(0), kPage, {.mergeable = true});
  if (ksm) {
    CHECK(VmFlags((*ksm)->host_address()).find(" mg") != std::string::npos);
  } else {
    CHECK(ksm.error().sys_errno == EINVAL);  // a kernel without KSM
  }
}

TEST_CASE("region: memory is touched by the guest, or before it starts if asked") {
  for (const Backing::Kind kind : {Backing::Kind::kAnonymous, Backing::Kind::kMemfd}) {
    CHECK(ResidentPages(*NewRegion(0, 64 * kPage, {.kind = kind, .shared = true})) == 0);
    CHECK(ResidentPages(
              *NewRegion(0, 64 * kPage, {.kind = kind, .shared = true, .prefault = true})) == 64);
  }
  // Large enough for more than one thread, where there is more than one processor.
  const RegionPtr large = NewRegion(0, 136 << 20, {.prefault = true});
  CHECK(ResidentPages(*large) == large->size() / kPage);
}

TEST_CASE("region: too few huge pages are an ENOMEM that names itself") {
  constexpr std::uint64_t kHuge = 2 << 20;
  std::ifstream file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
  std::uint64_t available = 0;
  const bool supported = static_cast<bool>(file >> available);
  for (const bool shared : {false, true}) {
    CAPTURE(shared);
    const Backing backing{.kind = Backing::Kind::kHugetlb, .page_size = kHuge, .shared = shared};
    const Result<RegionPtr> region = Region::Create(Gpa(0), (available + 1) * kHuge, backing);
    REQUIRE_FALSE(region);
    CHECK(region.error().code == Errc::kSystem);
    if (supported) CHECK(region.error().sys_errno == ENOMEM);
    if (available > 0) {
      const RegionPtr one = NewRegion(0, kHuge, backing);
      CHECK(VmFlags(one->host_address()).find(" ht") != std::string::npos);
      CHECK(NewMemory({one})->Write(Gpa(kHuge - 8), le64(1)).has_value());
    }
  }
  for (const std::uint64_t page :
       {std::uint64_t{0}, kPage, std::uint64_t{4} << 20, std::uint64_t{3} << 20}) {
    const Backing backing{.kind = Backing::Kind::kHugetlb, .page_size = page};
    CHECK(Region::Create(Gpa(0), 12 << 20, backing).error().code == Errc::kInvalidArgument);
  }
  const Backing backing{.kind = Backing::Kind::kHugetlb, .page_size = kHuge};
  CHECK(Region::Create(Gpa(0), kHuge + kPage, backing).error().code == Errc::kInvalidArgument);
}

TEST_CASE("guest_memory: regions are sorted, and refused when they overlap") {
  const RegionPtr low = NewRegion(0, 2 * kPage);
  const RegionPtr middle = NewRegion(2 * kPage, kPage);
  const RegionPtr high = NewRegion(16 * kPage, kPage);
  const GuestMemoryPtr memory = NewMemory({high, low, middle});
  REQUIRE(memory->regions().size() == 3);
  CHECK(memory->regions()[0] == low);
  CHECK(memory->regions()[1] == middle);
  CHECK(memory->regions()[2] == high);
  CHECK(memory->total_size() == 4 * kPage);

  CHECK(GuestMemory::Create({low, low}).error().code == Errc::kOverlap);
  CHECK(GuestMemory::Create({low, NewRegion(kPage, kPage)}).error().code == Errc::kOverlap);
  CHECK(GuestMemory::Create({NewRegion(kPage, kPage), NewRegion(0, 4 * kPage)}).error().code ==
        Errc::kOverlap);
  CHECK(GuestMemory::Create({low, nullptr}).error().code == Errc::kInvalidArgument);

  const GuestMemoryPtr none = NewMemory({});
  CHECK(none->total_size() == 0);
  CHECK(none->View(Gpa(0), 0, Access::kRead).error().code == Errc::kGuestRange);
}

TEST_CASE("guest_memory: a map with one region more or less leaves the old one as it was") {
  const GuestMemoryPtr memory = NewMemory({NewRegion(0, kPage)});
  const Result<GuestMemoryPtr> more = memory->With(NewRegion(kPage, kPage));
  REQUIRE(more);
  CHECK((*more)->regions().size() == 2);
  CHECK(memory->regions().size() == 1);
  CHECK(memory->With(NewRegion(0, kPage)).error().code == Errc::kOverlap);
  const Result<GuestMemoryPtr> less = (*more)->Without(Gpa(0));
  REQUIRE(less);
  CHECK((*less)->regions().size() == 1);
  CHECK((*less)->View(Gpa(0), 1, Access::kRead).error().code == Errc::kGuestRange);
  CHECK((*more)->Without(Gpa(1)).error().code == Errc::kNotFound);
}

TEST_CASE("guest_memory: a view lies inside one region, up to its very last byte") {
  // Two adjacent regions, a hole, one that ends at the end of the address space.
  const GuestMemoryPtr memory =
      NewMemory({NewRegion(0, kPage), NewRegion(kPage, kPage), NewRegion(kTop - kPage + 1, kPage)});
  struct Row {
    const char* name;
    std::uint64_t gpa;
    std::uint64_t length;
    bool good;
    std::uint64_t run;  // of ViewRun, if `gpa` is in RAM
  };
  for (const Row& row :
       {Row{"nothing at the start", 0, 0, true, 0}, Row{"a whole region", 0, kPage, true, kPage},
        Row{"the last byte of a region", kPage - 1, 1, true, 1},
        Row{"nothing at the last byte", kPage - 1, 0, true, 0},
        Row{"across adjacent regions", kPage - 1, 2, false, 1},
        Row{"a region and a byte", 0, kPage + 1, false, kPage},
        Row{"the last byte before a hole", 2 * kPage - 1, 1, true, 1},
        Row{"across into a hole", 2 * kPage - 1, 2, false, 1},
        Row{"the last byte of memory", kTop, 1, true, 1},
        Row{"nothing at the last byte of memory", kTop, 0, true, 0},
        Row{"across the end of the address space", kTop, 2, false, 1},
        Row{"the last region", kTop - kPage + 1, kPage, true, kPage},
        Row{"a length that wraps", kPage, kTop, false, kPage},
        Row{"a length that wraps to the start", kTop, kTop, false, 1},
        Row{"the greatest length", 0, kTop, false, kPage}}) {
    CAPTURE(row.name);
    const Result<GuestView> view = memory->View(Gpa(row.gpa), row.length, Access::kReadWrite);
    CHECK(view.has_value() == row.good);
    if (view) {
      CHECK(view->size() == row.length);
      CHECK(view->gpa() == Gpa(row.gpa));
    } else {
      CHECK(view.error().code == Errc::kGuestRange);
    }
    const Result<GuestView> run = memory->ViewRun(Gpa(row.gpa), row.length, Access::kRead);
    REQUIRE(run);
    CHECK(run->size() == row.run);
  }
  for (const std::uint64_t gpa : {2 * kPage, 2 * kPage + 1, kTop - kPage}) {
    CAPTURE(gpa);
    for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, kTop}) {
      CHECK(memory->View(Gpa(gpa), length, Access::kRead).error().code == Errc::kGuestRange);
      CHECK(memory->ViewRun(Gpa(gpa), length, Access::kRead).error().code == Errc::kGuestRange);
    }
  }
}

TEST_CASE("guest_memory: copies cross adjacent regions, or copy nothing at all") {
  const GuestMemoryPtr memory =
      NewMemory({NewRegion(0, kPage), NewRegion(kPage, kPage), NewRegion(kTop - kPage + 1, kPage)});
  const std::vector<std::byte> data = Pattern(2 * kPage);
  REQUIRE(memory->CopyIn(Gpa(0), data).has_value());
  std::vector<std::byte> back(2 * kPage);
  REQUIRE(memory->CopyOut(Gpa(0), back).has_value());
  CHECK(back == data);

  // One byte too many: memory and buffer stay as they were.
  const std::vector<std::byte> zeroes(kPage + 1);
  CHECK(memory->CopyIn(Gpa(kPage), zeroes).error().code == Errc::kGuestRange);
  REQUIRE(memory->CopyOut(Gpa(0), back).has_value());
  CHECK(back == data);
  std::vector<std::byte> untouched(kPage + 1, std::byte{0x5a});
  CHECK(memory->CopyOut(Gpa(kPage), untouched).error().code == Errc::kGuestRange);
  CHECK(std::all_of(untouched.begin(), untouched.end(),
                    [](std::byte b) { return b == std::byte{0x5a}; }));

  // The end of the address space is an end, not a way to address 0.
  const std::array<std::byte, 2> two{std::byte{1}, std::byte{2}};
  CHECK(memory->CopyIn(Gpa(kTop), two).error().code == Errc::kGuestRange);
  CHECK(memory->CopyIn(Gpa(kTop), std::span(two).first(1)).has_value());
  CHECK(memory->CopyIn(Gpa(kTop - 1), two).has_value());
  CHECK(memory->Read<le16>(Gpa(kTop - 1))->get() == 0x0201);

  CHECK(memory->CopyIn(Gpa(10 * kPage), {}).has_value());
  CHECK(memory->CopyOut(Gpa(10 * kPage), {}).has_value());
}

struct Wire {
  le16 a;
  le16 b;
  le32 c;
  le64 d;
  std::uint8_t e[5];
  std::uint8_t f[3];
};
static_assert(sizeof(Wire) == 24 && GuestPod<Wire>);
static_assert(!GuestPod<std::string>);

TEST_CASE("guest_view: objects of every size and alignment are read and written exactly") {
  const GuestMemoryPtr memory = NewMemory({NewRegion(0, kPage)});
  const GuestView view = *memory->View(Gpa(0), kPage, Access::kReadWrite);
  const std::vector<std::byte> data = Pattern(64);
  REQUIRE(view.CopyIn(0, data).has_value());
  const auto expected = [&](std::size_t offset, std::size_t size) {
    std::uint64_t value = 0;
    std::memcpy(&value, data.data() + offset, size);
    return value;
  };
  for (std::size_t offset = 0; offset < 32; ++offset) {
    CAPTURE(offset);
    CHECK(view.Read<std::uint8_t>(offset) == expected(offset, 1));
    CHECK(view.Read<le16>(offset)->get() == expected(offset, 2));
    CHECK(view.Read<le32>(offset)->get() == expected(offset, 4));
    CHECK(view.Read<le64>(offset)->get() == expected(offset, 8));
    const Wire wire = *view.Read<Wire>(offset);
    CHECK(std::memcmp(&wire, data.data() + offset, sizeof(wire)) == 0);

    // A write touches its own bytes alone.
    const auto write = [&](auto value) {
      REQUIRE(view.Fill(0, 64, std::byte{0xee}).has_value());
      REQUIRE(view.Write(offset, value).has_value());
      std::vector<std::byte> want(64, std::byte{0xee});
      std::memcpy(want.data() + offset, &value, sizeof(value));
      std::vector<std::byte> got(64);
      REQUIRE(view.CopyOut(0, got).has_value());
      CHECK(got == want);
    };
    write(std::uint8_t{0x81});
    write(le16(0x8182));
    write(le32(0x81828384));
    write(le64(0x8182838485868788));
    write(wire);
    REQUIRE(view.CopyIn(0, data).has_value());
  }
}

TEST_CASE("guest_view: nothing beyond its end is reachable") {
  const GuestMemoryPtr memory = NewMemory({NewRegion(0, kPage)});
  const GuestView view = *memory->View(Gpa(16), 16, Access::kReadWrite);
  constexpr std::size_t kMax = std::numeric_limits<std::size_t>::max();
  std::array<std::byte, 17> buffer{};
  for (const std::size_t offset :
       {std::size_t{9}, std::size_t{16}, std::size_t{17}, kMax, kMax - 6, kMax - 7}) {
    CAPTURE(offset);
    CHECK(view.Read<le64>(offset).error().code == Errc::kGuestRange);
    CHECK(view.Write(offset, le64(1)).error().code == Errc::kGuestRange);
    CHECK(view.CopyIn(offset, std::span(buffer).first(8)).error().code == Errc::kGuestRange);
    CHECK(view.CopyOut(offset, std::span(buffer).first(8)).error().code == Errc::kGuestRange);
    CHECK(view.Fill(offset, 8, std::byte{1}).error().code == Errc::kGuestRange);
    CHECK(view.Sub(offset, 8).error().code == Errc::kGuestRange);
  }
  CHECK(view.Read<le64>(8).has_value());
  CHECK(view.CopyIn(0, buffer).error().code == Errc::kGuestRange);
  CHECK(view.Fill(1, kMax, std::byte{1}).error().code == Errc::kGuestRange);
  CHECK(view.Sub(1, kMax).error().code == Errc::kGuestRange);
  CHECK(view.CopyIn(16, {}).has_value());
  CHECK(view.Fill(16, 0, std::byte{1}).has_value());

  const GuestView part = *view.Sub(8, 8);
  CHECK(part.gpa() == Gpa(24));
  REQUIRE(part.Write(0, le64(7)).has_value());
  CHECK(memory->Read<le64>(Gpa(24))->get() == 7);
  CHECK(part.Sub(8, 0)->size() == 0);
  CHECK(part.Sub(0, 9).error().code == Errc::kGuestRange);
  CHECK(part.ToIovec().iov_len == 8);

  const GuestView nothing;
  CHECK(nothing.Read<std::uint8_t>(0).error().code == Errc::kGuestRange);
  CHECK(nothing.CopyIn(0, {}).has_value());
  CHECK(nothing.Fill(0, 0, std::byte{}).has_value());
  nothing.MarkDirty(0, 1);
}

TEST_CASE("guest_view: ring indices are little-endian and mark their page") {
  const RegionPtr region = NewRegion(0, 2 * kPage, {.track_dirty = true});
  const GuestMemoryPtr memory = NewMemory({region});
  const GuestView view = *memory->View(Gpa(kPage), 4, Access::kReadWrite);
  view.StoreRelease16(2, 0x1234);
  CHECK(view.LoadAcquire16(2) == 0x1234);
  CHECK(memory->Read<std::uint8_t>(Gpa(kPage + 2)) == 0x34);
  CHECK_FALSE(region->dirty()->IsDirty(0));
  CHECK(region->dirty()->IsDirty(kPage));
}

// Regression CVE-2020-13759 (vm-memory): an aligned object copied by memcpy may be seen half old,
// half new.
template <typename T, typename U>
void Hammer(U a, U b) {
  const GuestMemoryPtr memory = NewMemory({NewRegion(0, kPage)});
  const GuestView view = *memory->View(Gpa(64), 64, Access::kReadWrite);
  REQUIRE(view.Write(8, T(a)).has_value());
  std::atomic<bool> stop{false};
  Thread guest = std::move(*Thread::Start("guest", [&] {
    while (!stop.load(std::memory_order_relaxed)) {
      (void)view.Write(8, T(a));
      (void)view.Write(8, T(b));
    }
  }));
  bool torn = false;
  for (int i = 0; i < 200'000; ++i) {
    const U seen = view.Read<T>(8)->get();
    torn = torn || (seen != a && seen != b);
  }
  stop = true;
  guest.Join();
  CHECK_FALSE(torn);
}

TEST_CASE(
    "guest_view: aligned objects do not tear under a racing writer (regression CVE-2020-13759)") {
  Hammer<le16, std::uint16_t>(0x0000, 0xffff);
  Hammer<le32, std::uint32_t>(0x0000'0000, 0xffff'ffff);
  Hammer<le64, std::uint64_t>(0, ~std::uint64_t{0});
}

TEST_CASE(
    "guest_view: bulk copies against a racing guest are defined, and a release publishes what was "
    "copied") {
  const GuestMemoryPtr memory = NewMemory({NewRegion(0, 2 * kPage)});
  const GuestView index = *memory->View(Gpa(0), 2, Access::kReadWrite);
  const GuestView buffer = *memory->View(Gpa(kPage), 512, Access::kReadWrite);
  Thread guest = std::move(*Thread::Start("guest", [&] {
    for (std::uint16_t i = 1; i <= 1000; ++i) {
      const std::vector<std::byte> data(512, static_cast<std::byte>(i & 0xff));
      (void)buffer.CopyIn(0, data);
      index.StoreRelease16(0, i);
    }
  }));
  std::uint16_t seen = 0;
  std::vector<std::byte> copy(512);
  while (seen < 1000) {
    seen = index.LoadAcquire16(0);
    REQUIRE(buffer.CopyOut(0, copy).has_value());
    // What is read is from this round or a later one.
    if (seen == 1000)
      CHECK(copy == std::vector<std::byte>(512, static_cast<std::byte>(1000 & 0xff)));
  }
  guest.Join();
}

TEST_CASE("dirty_bitmap: marks every page a range touches, and cuts off what lies beyond") {
  struct Row {
    const char* name;
    std::uint64_t offset;
    std::uint64_t length;
    std::vector<std::uint64_t> pages;
  };
  const auto pages = [](std::uint64_t first, std::uint64_t last) {
    std::vector<std::uint64_t> list(last - first + 1);
    std::iota(list.begin(), list.end(), first);
    return list;
  };
  for (const Row& row :
       std::vector<Row>{{"nothing", 0, 0, {}},
                        {"a byte", 0, 1, {0}},
                        {"a last byte", kPage - 1, 1, {0}},
                        {"two bytes across a border", kPage - 1, 2, {0, 1}},
                        {"one page", kPage, kPage, {1}},
                        {"across words", 60 * kPage, 10 * kPage, pages(60, 69)},
                        {"a whole word", 64 * kPage, 64 * kPage, pages(64, 127)},
                        {"several words", 0, 130 * kPage, pages(0, 129)},
                        {"the last page", 129 * kPage, kPage, {129}},
                        {"beyond", 130 * kPage, kPage, {}},
                        {"across the end", 129 * kPage, 5 * kPage, {129}},
                        {"a length that wraps", 128 * kPage, kTop, pages(128, 129)},
                        {"the top", kTop, kTop, {}}}) {
    CAPTURE(row.name);
    DirtyBitmap bitmap(130 * kPage);
    bitmap.Mark(row.offset, row.length);
    std::vector<std::uint64_t> want(3);
    for (const std::uint64_t page : row.pages) {
      CHECK(bitmap.IsDirty(page * kPage));
      want[page / 64] |= std::uint64_t{1} << page % 64;
    }
    CHECK_FALSE(bitmap.IsDirty(130 * kPage));
    CHECK_FALSE(bitmap.IsDirty(kTop));
    CHECK(bitmap.Take() == want);
    CHECK(bitmap.Take() == std::vector<std::uint64_t>(3));
  }
  CHECK(DirtyBitmap(0).Take().empty());
  CHECK(DirtyBitmap(1).Take().size() == 1);
}

TEST_CASE("dirty_bitmap: every way to write marks its own region alone") {
  const RegionPtr low = NewRegion(0, 4 * kPage, {.track_dirty = true});
  const RegionPtr high = NewRegion(4 * kPage, 4 * kPage, {.track_dirty = true});
  const GuestMemoryPtr memory = NewMemory({low, high});
  const auto dirty = [&](std::uint64_t low_bits, std::uint64_t high_bits) {
    CHECK(low->dirty()->Take() == std::vector<std::uint64_t>{low_bits});
    CHECK(high->dirty()->Take() == std::vector<std::uint64_t>{high_bits});
  };
  const GuestView view = *memory->View(Gpa(5 * kPage), 2 * kPage, Access::kReadWrite);
  dirty(0, 0);
  std::vector<std::byte> buffer(16);
  (void)view.Read<le64>(0);
  (void)view.CopyOut(0, buffer);
  (void)view.LoadAcquire16(0);
  dirty(0, 0);
  (void)view.Write(kPage - 4, le64(1));
  dirty(0, 0b0110);
  (void)view.CopyIn(kPage, buffer);
  dirty(0, 0b0100);
  (void)view.Fill(0, 1, std::byte{1});
  dirty(0, 0b0010);
  (void)view.Sub(kPage, kPage)->Write(0, le16(1));
  dirty(0, 0b0100);
  view.MarkDirty(0, kTop);  // the view's end is the limit, not the region's
  dirty(0, 0b0110);
  view.MarkDirty(2 * kPage, 1);
  dirty(0, 0);
  (void)memory->CopyIn(Gpa(4 * kPage - 8), buffer);
  dirty(0b1000, 0b0001);
  (void)memory->CopyIn(Gpa(8 * kPage - 8), buffer);  // refused
  dirty(0, 0);
}

TEST_CASE("dirty_bitmap: no mark is lost between threads") {
  DirtyBitmap bitmap(64 * kPage);
  std::vector<Thread> threads;
  threads.reserve(4);
  std::atomic<int> left{4};
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.push_back(std::move(*Thread::Start("marker", [&bitmap, &left, t] {
      for (std::uint64_t page = t; page < 64; page += 4) bitmap.Mark(page * kPage, 1);
      --left;
    })));
  }
  std::uint64_t all = 0;
  while (left > 0) all |= bitmap.Take()[0];
  all |= bitmap.Take()[0];
  CHECK(all == ~std::uint64_t{0});
}

class RecordingObserver : public MemoryObserver {
 public:
  RecordingObserver(std::string name, std::vector<std::string>& log, MemoryMap** map = nullptr)
      : name_(std::move(name)), log_(log), map_(map) {}
  Result<void> Added(const Region& region) override {
    if (region.base() == fail_at) return SysError("ioctl", ENOSPC);
    Note("+", region);
    return {};
  }
  void Removing(const Region& region) override {
    Note("-", region);
    // Still mapped: the observer may need to look.
    CHECK(msync(reinterpret_cast<void*>(region.host_address()), region.size(), MS_ASYNC) ==
          0);  // NOLINT(performance-no-int-to-ptr)
  }
  Gpa fail_at{kTop};

 private:
  void Note(const char* sign, const Region& region) {
    std::ostringstream out;
    out << name_ << sign << region.base().value / kPage;
    // Whether devices can see the region at this moment.
    if (map_ != nullptr)
      out << ((*map_)->Snapshot()->View(region.base(), 1, Access::kRead) ? "v" : "h");
    log_.push_back(out.str());
  }
  std::string name_;
  std::vector<std::string>& log_;
  MemoryMap** map_;
};

TEST_CASE(
    "memory_map: observers hear of a region before devices see it and after they no longer do, "
    "last one first") {
  std::vector<std::string> log;
  MemoryMap map(NewMemory({NewRegion(0, kPage), NewRegion(kPage, kPage)}));
  MemoryMap* pointer = &map;
  RecordingObserver kvm("kvm", log, &pointer);
  RecordingObserver iommu("iommu", log, &pointer);
  REQUIRE(map.Observe(kvm).has_value());
  REQUIRE(map.Observe(iommu).has_value());
  CHECK(log == std::vector<std::string>{"kvm+0v", "kvm+1v", "iommu+0v", "iommu+1v"});
  log.clear();
  REQUIRE(map.Add(NewRegion(8 * kPage, kPage)).has_value());
  CHECK(log == std::vector<std::string>{"kvm+8h", "iommu+8h"});
  CHECK(map.Snapshot()->View(Gpa(8 * kPage), kPage, Access::kRead).has_value());
  log.clear();
  REQUIRE(map.Remove(Gpa(8 * kPage)).has_value());
  CHECK(log == std::vector<std::string>{"iommu-8h", "kvm-8h"});
  log.clear();
  map.Unobserve(iommu);
  REQUIRE(map.Remove(Gpa(0)).has_value());
  CHECK(log == std::vector<std::string>{"kvm-0h"});
}

TEST_CASE(
    "memory_map: what an observer refuses is taken back from those before it, and the map stays") {
  std::vector<std::string> log;
  MemoryMap map(NewMemory({NewRegion(0, kPage), NewRegion(kPage, kPage)}));
  RecordingObserver first("a", log);
  RecordingObserver second("b", log);
  second.fail_at = Gpa(8 * kPage);
  REQUIRE(map.Observe(first).has_value());
  REQUIRE(map.Observe(second).has_value());
  log.clear();
  const Result<void> added = map.Add(NewRegion(8 * kPage, kPage));
  REQUIRE_FALSE(added);
  CHECK(added.error().sys_errno == ENOSPC);
  CHECK(log == std::vector<std::string>{"a+8", "a-8"});
  CHECK(map.Snapshot()->regions().size() == 2);
  log.clear();
  CHECK(map.Add(NewRegion(kPage, kPage)).error().code == Errc::kOverlap);
  CHECK(map.Remove(Gpa(64 * kPage)).error().code == Errc::kNotFound);
  CHECK(log.empty());

  RecordingObserver late("c", log);
  late.fail_at = Gpa(kPage);
  CHECK_FALSE(map.Observe(late).has_value());
  CHECK(log == std::vector<std::string>{"c+0", "c-0"});
  log.clear();
  REQUIRE(map.Remove(Gpa(0)).has_value());  // it is not among the observers
  CHECK(log == std::vector<std::string>{"b-0", "a-0"});
}

TEST_CASE("memory_map: a snapshot keeps its regions mapped after they were removed") {
  MemoryMap map(NewMemory({NewRegion(0, kPage)}));
  const GuestMemoryPtr snapshot = map.Snapshot();
  REQUIRE(snapshot->Write(Gpa(8), le64(42)).has_value());
  REQUIRE(map.Remove(Gpa(0)).has_value());
  CHECK(map.Snapshot()->regions().empty());
  CHECK(snapshot->Read<le64>(Gpa(8))->get() == 42);
}

TEST_CASE("memory_map: snapshots and changes from different threads are whole") {
  MemoryMap map(NewMemory({NewRegion(0, kPage)}));
  std::atomic<bool> stop{false};
  std::vector<Thread> readers;
  readers.reserve(2);
  std::atomic<std::uint64_t> bad{0};
  for (int t = 0; t < 2; ++t) {
    readers.push_back(std::move(*Thread::Start("reader", [&] {
      while (!stop.load(std::memory_order_relaxed)) {
        const GuestMemoryPtr memory = map.Snapshot();
        if (!memory->Write(Gpa(0), le64(1))) ++bad;
        if (memory->regions().size() == 2 && !memory->Write(Gpa(kPage), le64(1))) ++bad;
      }
    })));
  }
  for (int i = 0; i < 300; ++i) {
    REQUIRE(map.Add(NewRegion(kPage, kPage)).has_value());
    REQUIRE(map.Remove(Gpa(kPage)).has_value());
  }
  stop = true;
  readers.clear();
  CHECK(bad == 0);
}

}  // namespace
}  // namespace postern::memory
