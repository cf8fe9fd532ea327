#include "src/bus/register_map.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

namespace postern::bus {
namespace {

constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

// One row of each kind, a gap at 0x0c, rows of every width.
constexpr auto kRows = std::to_array<RegisterRow>({
    {0x00, 4, "MAGIC", 0, 0, 0x74726976, kNone},
    {0x04, 4, "CTRL", 0x0000'ff0f, 0, 0x0000'0001, kOnWrite},
    {0x08, 4, "CAUSE", 0x0000'ff00, 0x0000'001f, 0x0000'001f, kOnWrite},
    {0x10, 8, "TABLE", 0xffff'ffff'ffff'f000, 0, 0, kNone},
    {0x18, 2, "INDEX", 0xffff, 0, 0, kOnBoth},
    {0x1a, 1, "BYTE", 0x7f, 0x80, 0x80, kNone},
    {0x1b, 1, "OTHER", 0xff, 0, 0x5a, kNone},
    {0x1c, 4, "STATUS", 0, 0, 0x04030201, kOnRead},
    {0x20, 4, "LOW", 0xffff'ffff, 0, 0, kOnWrite},
    {0x24, 4, "HIGH", 0xffff'ffff, 0, 0, kOnWrite},
    {0x28, 8, "COMMAND", 0, 0, 0, kOnWrite},
});
static_assert(IsWellFormed(kRows));

template <typename... Rows>
constexpr bool WellFormed(Rows... rows) {
  const std::array<RegisterRow, sizeof...(Rows)> table{rows...};
  return IsWellFormed(table);
}
static_assert(IsWellFormed({}));
static_assert(WellFormed(RegisterRow{0xfffffff8, 8, "last", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 3, "odd width", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 0, "no width", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{2, 4, "unaligned", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{4, 4, "b", 0, 0, 0, kNone},
                          RegisterRow{0, 4, "unsorted", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 8, "a", 0, 0, 0, kNone},
                          RegisterRow{4, 4, "overlaps", 0, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 2, "writable beyond width", 0x1'0000, 0, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 1, "w1c beyond width", 0, 0x100, 0, kNone}));
static_assert(!WellFormed(RegisterRow{0, 4, "reset beyond width", 0, 0, std::uint64_t{1} << 32,
                                      kNone}));
static_assert(!WellFormed(RegisterRow{0, 4, "writable and w1c", 1, 1, 0, kNone}));

struct Event {
  std::string name;
  std::uint64_t old;
  std::uint64_t now;
  std::uint64_t written;
  friend bool operator==(const Event&, const Event&) = default;
};

class Owner : public RegisterOwner {
 public:
  void OnWrite(const RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override {
    events.push_back({std::string(row.name), old, now, written});
  }
  std::uint64_t OnRead(const RegisterRow& row, std::uint64_t stored) override {
    ++reads;
    return row.name == "STATUS" ? answer : stored;
  }
  std::vector<Event> events;
  int reads = 0;
  std::uint64_t answer = 0x1'0403'0201;  // one bit more than the row has
};

struct Fixture {
  Owner owner;
  RegisterFile file{kRows, owner, "test"};

  std::uint64_t Read(std::uint64_t offset, std::size_t width) {
    std::array<std::byte, 16> data{};
    data.fill(std::byte{0xcc});
    file.Read(offset, std::span(data).first(width));
    std::uint64_t value = 0;
    std::memcpy(&value, data.data(), std::min<std::size_t>(width, 8));
    return value;
  }
  void Write(std::uint64_t offset, std::uint64_t value, std::size_t width) {
    std::array<std::byte, 16> data{};
    std::memcpy(data.data(), &value, 8);
    file.Write(offset, std::span<const std::byte>(data).first(width));
  }
};

TEST_CASE_FIXTURE(Fixture,
                  "register_file: every row reads its reset value, at first and after Reset") {
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < kRows.size(); ++i) {
      CAPTURE(kRows[i].name);
      CHECK(Read(kRows[i].offset, kRows[i].width) == kRows[i].reset);
      CHECK(file.accesses(i) == static_cast<std::uint64_t>(round) * 2 + 1);
      Write(kRows[i].offset, kTop, kRows[i].width);
    }
    file.Reset();
  }
  CHECK(file.refused() == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: a write changes the writable bits, clears the W1C bits it sets, "
                  "and no others") {
  for (const RegisterRow& row : kRows) {
    CAPTURE(row.name);
    const std::uint64_t mask = kTop >> (64 - 8 * row.width);
    for (const std::uint64_t start :
         {std::uint64_t{0}, mask, mask & 0x5555555555555555, mask & 0x0807060504030201}) {
      for (const std::uint64_t value :
           {std::uint64_t{0}, mask, mask & 0xaaaaaaaaaaaaaaaa, mask & 0x0102040810204080}) {
        CAPTURE(start);
        CAPTURE(value);
        file.Set(row.offset, start);
        Write(row.offset, value, row.width);
        const std::uint64_t now = file.Get(row.offset);
        CHECK((now & row.writable) == (value & row.writable));
        CHECK((now & row.w1c) == (start & row.w1c & ~value));
        const std::uint64_t rest = mask & ~row.writable & ~row.w1c;  // read-only and reserved
        CHECK((now & rest) == (start & rest));
      }
    }
  }
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: the owner hears of writes to the rows that ask for it, with "
                  "masked and raw values") {
  Write(0x00, 1, 4);  // nobody asked
  Write(0x10, kTop, 8);
  CHECK(owner.events.empty());
  Write(0x04, 0xffff'fffe, 4);
  Write(0x08, 0xffff'ff01, 4);
  Write(0x28, 0x0807060504030201, 8);  // a command: nothing is stored
  Write(0x28, 0x0807060504030201, 8);  // and the same again is a second one
  CHECK(owner.events == std::vector<Event>{{"CTRL", 0x1, 0xff0e, 0xffff'fffe},
                                           {"CAUSE", 0x1f, 0xff1e, 0xffff'ff01},
                                           {"COMMAND", 0, 0, 0x0807060504030201},
                                           {"COMMAND", 0, 0, 0x0807060504030201}});
}

TEST_CASE_FIXTURE(
    Fixture, "register_file: the owner answers reads of the rows that ask for it, cut to the row") {
  CHECK(Read(0x1c, 4) == 0x04030201);
  CHECK(owner.reads == 1);
  CHECK(file.Get(0x1c) == 0x04030201);
  owner.answer = 0xddccbbaa;
  CHECK(Read(0x1e, 1) == 0xcc);
  CHECK(Read(0x1c, 2) == 0xbbaa);
  CHECK(owner.reads == 3);
  CHECK(file.Get(0x1c) == 0x04030201);  // the store is as it was
  Read(0x00, 4);
  CHECK(owner.reads == 3);
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: a narrower access reads and writes its own bytes of the row") {
  file.Set(0x00, 0x04030201);
  for (std::uint64_t i = 0; i < 4; ++i) CHECK(Read(i, 1) == i + 1);
  CHECK(Read(2, 2) == 0x0403);
  Write(0x10, 0x0807'0605'0403'0201, 8);
  CHECK(Read(0x10, 4) == 0x0403'0000);
  CHECK(Read(0x14, 4) == 0x0807'0605);
  Write(0x14, 0xffff'ffff, 4);
  CHECK(file.Get(0x10) == 0xffff'ffff'0403'0000);
  Write(0x11, 0xee, 1);
  CHECK(file.Get(0x10) == 0xffff'ffff'0403'e000);

  // W1C sees only the written bytes, and the owner's raw value has zeroes in the others.
  Write(0x09, 0xff, 1);
  CHECK(file.Get(0x08) == 0xff1f);
  Write(0x08, 0x03, 1);
  CHECK(file.Get(0x08) == 0xff1c);
  CHECK(owner.events ==
        std::vector<Event>{{"CAUSE", 0x1f, 0xff1f, 0xff00}, {"CAUSE", 0xff1f, 0xff1c, 0x03}});
  CHECK(file.refused() == 0);
}

TEST_CASE_FIXTURE(
    Fixture,
    "register_file: eight bytes over two adjacent four-byte rows are two accesses, low one first") {
  Write(0x20, 0x0807'0605'0403'0201, 8);
  CHECK(owner.events == std::vector<Event>{{"LOW", 0, 0x0403'0201, 0x0403'0201},
                                           {"HIGH", 0, 0x0807'0605, 0x0807'0605}});
  CHECK(Read(0x20, 8) == 0x0807'0605'0403'0201);
  CHECK(Read(0x00, 8) == 0x0000'0001'7472'6976);
  CHECK(file.accesses(8) == 2);
  CHECK(file.accesses(9) == 2);
  CHECK(file.refused() == 0);
  // Not where only one half is such a row: a gap above CAUSE, smaller rows below STATUS.
  CHECK(Read(0x08, 8) == 0);
  CHECK(Read(0x18, 8) == 0);
  CHECK(file.refused() == 2);
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: everything else reads zero, is not written, and is counted") {
  struct Row {
    const char* name;
    std::uint64_t offset;
    std::size_t width;
  };
  std::uint64_t refused = 0;
  const std::vector<std::uint64_t> before = file.Save();
  for (const Row& row : std::vector<Row>{{"a gap", 0x0c, 4},
                                         {"a byte of a gap", 0x0f, 1},
                                         {"right after the last row", 0x30, 4},
                                         {"far beyond", 0x1000, 4},
                                         {"2^32 above a row", 0x1'0000'0000, 4},
                                         {"2^32 above a row, 8 bytes", 0x1'0000'0000, 8},
                                         {"the last byte", kTop, 1},
                                         {"the last eight bytes", kTop - 7, 8},
                                         {"wraps", kTop, 8},
                                         {"no bytes", 0x00, 0},
                                         {"3 bytes", 0x00, 3},
                                         {"5 bytes", 0x10, 5},
                                         {"6 bytes", 0x10, 6},
                                         {"7 bytes", 0x10, 7},
                                         {"9 bytes", 0x10, 9},
                                         {"16 bytes", 0x10, 16},
                                         {"unaligned 2", 0x01, 2},
                                         {"unaligned 4 in an 8-byte row", 0x12, 4},
                                         {"unaligned 8 over two rows", 0x24, 8},
                                         {"across two rows", 0x02, 4},
                                         {"wider than the row, 4 on 2", 0x18, 4},
                                         {"wider than the row, 2 on 1", 0x1a, 2},
                                         {"row and gap", 0x08, 8}}) {
    CAPTURE(row.name);
    std::vector<std::byte> data(row.width, std::byte{0xcc});
    file.Read(row.offset, data);
    CHECK(data == std::vector<std::byte>(row.width));
    CHECK(file.refused() == ++refused);
    const std::vector<std::byte> ones(row.width, std::byte{0xff});
    file.Write(row.offset, ones);
    CHECK(file.refused() == ++refused);
    CHECK(file.Save() == before);
  }
  CHECK(owner.events.empty());
  CHECK(owner.reads == 0);
}

TEST_CASE("register_file: a table without rows refuses everything") {
  Owner owner;
  RegisterFile file({}, owner, "none");
  std::array<std::byte, 4> data{};
  file.Read(0, data);
  file.Write(0, data);
  CHECK(file.refused() == 2);
  CHECK(file.Save().empty());
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: the device's own side ignores masks and stays inside the row") {
  file.Set(0x00, 0x1'2345'6789);
  CHECK(file.Get(0x00) == 0x2345'6789);
  CHECK(owner.events.empty());
  CHECK(Read(0x00, 4) == 0x2345'6789);
}

TEST_CASE_FIXTURE(Fixture,
                  "register_file: saved values come back, and others are refused whole (lengths as "
                  "CVE-2023-50711)") {
  Write(0x10, kTop, 8);
  Write(0x04, 0xff00, 4);
  const std::vector<std::uint64_t> saved = file.Save();
  CHECK(saved.size() == kRows.size());
  file.Reset();
  const std::vector<std::uint64_t> fresh = file.Save();
  std::vector<std::uint64_t> bad = saved;
  bad.pop_back();
  CHECK(file.Load(bad).error().code == Errc::kBadFormat);
  bad = saved;
  bad.push_back(0);
  CHECK(file.Load(bad).error().code == Errc::kBadFormat);
  CHECK(file.Load({}).error().code == Errc::kBadFormat);
  bad = saved;
  bad[5] = 0x100;  // BYTE
  CHECK(file.Load(bad).error().code == Errc::kBadFormat);
  CHECK(file.Save() == fresh);
  REQUIRE(file.Load(saved).has_value());
  CHECK(file.Get(0x10) == 0xffff'ffff'ffff'f000);
  CHECK(file.Save() == saved);
}

}  // namespace
}  // namespace postern::bus
