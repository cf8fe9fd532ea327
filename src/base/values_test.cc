// Bits, little-endian integers, addresses, errors, text and sizes: the parts of base that touch no
// system call.

#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "src/base/bits.h"
#include "src/base/counters.h"
#include "src/base/endian.h"
#include "src/base/failure.h"
#include "src/base/result.h"
#include "src/base/strong.h"
#include "src/base/text.h"
#include "src/base/units.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

struct Control : Bits<std::uint32_t> {
  using Top = Bit<31>;
  using Mode = Field<15, 8>;
  using Low = Field<3, 0, std::uint8_t>;
};

using Address = StrongAddress<struct TestTag>;

TEST_CASE("bits: fields are read and set without touching their neighbours") {
  Control reg{{0x8000'ab5c}};
  CHECK(reg.Get<Control::Top>());
  CHECK(reg.Get<Control::Mode>() == 0xab);
  CHECK(reg.Get<Control::Low>() == 0xc);
  reg.Set<Control::Mode>(0x12);
  CHECK(reg.raw == 0x8000'125c);
  reg.Set<Control::Top>(false);
  reg.Set<Control::Low>(0);
  CHECK(reg.raw == 0x0000'1250);
  static_assert(Field<63, 0>::kMask == std::numeric_limits<std::uint64_t>::max());
  static_assert(Bit<63>::kMask == std::uint64_t{1} << 63);
}

TEST_CASE("endian: bytes lie in memory lowest first") {
  const le64 wide(0x0807060504030201);
  unsigned char bytes[8];
  std::memcpy(bytes, &wide, 8);
  for (unsigned i = 0; i < 8; ++i) CHECK(bytes[i] == i + 1);
  CHECK(wide.get() == 0x0807060504030201);
  le16 narrow;
  narrow = 0x1234;
  CHECK(narrow.get() == 0x1234);
  CHECK(narrow == le16(0x1234));
  static_assert(std::has_unique_object_representations_v<le32> && sizeof(le32) == 4 &&
                alignof(le32) == 4);
}

TEST_CASE("strong: address arithmetic does not wrap") {
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
  CHECK(Address(kMax - 1).CheckedAdd(1) == Address(kMax));
  CHECK_FALSE(Address(kMax).CheckedAdd(1).has_value());
  CHECK_FALSE(Address(1).CheckedAdd(kMax).has_value());
  CHECK(Address(0).CheckedAdd(0) == Address(0));
  CHECK(Address(10).OffsetFrom(Address(4)) == 6U);
  CHECK_FALSE(Address(3).OffsetFrom(Address(4)).has_value());
  CHECK(Address(3) < Address(4));
  CHECK_FALSE(CheckedAdd(kMax, 1).has_value());
  CHECK(CheckedAdd(kMax, 0) == kMax);
}

Result<int> Positive(int value) {
  if (value <= 0) return Err(Errc::kInvalidArgument, "number");
  return value;
}
Result<int> Twice(int value) {
  return 2 * TRY(Positive(value));
}
Result<void> Check(int value) {
  TRY(Positive(value));
  return {};
}

TEST_CASE("result: TRY gives the value or leaves with the error and the place it came from") {
  CHECK(*Twice(21) == 42);
  const Result<int> bad = Twice(0);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == Errc::kInvalidArgument);
  CHECK(std::string(bad.error().op) == "number");
  CHECK(std::string(bad.error().file).ends_with("values_test.cc"));
  CHECK(Check(1).has_value());
  CHECK_FALSE(Check(-1).has_value());
}

TEST_CASE("failure: an error becomes one line of cause") {
  const Error system = SysError("open disk", ENOENT).value();
  CHECK(Describe(system) == "open disk: No such file or directory");
  CHECK(Describe(SysError("KVM_RUN", 4095).value()) == "KVM_RUN: errno 4095");
  CHECK(Describe(Err(Errc::kInvalidArgument, "virtqueue size").value()) ==
        "virtqueue size: invalid argument");
  const auto host = HostFailure("disk 'a.img'", system, "create it").value();
  CHECK(host.kind == Failure::Kind::kHost);
  CHECK(host.cause == "disk 'a.img': open disk: No such file or directory");
  CHECK(host.next_step == "create it");
  CHECK(ConfigFailure("bad", "do good").value().kind == Failure::Kind::kConfig);
  for (int code = 0; code <= static_cast<int>(Errc::kBadFormat); ++code) {
    if (static_cast<Errc>(code) == Errc::kSystem) continue;
    CAPTURE(code);
    const std::string text = Describe(Err(static_cast<Errc>(code), "x").value());
    CHECK(text.size() > 4);
    CHECK(text != "x: unknown error");
  }
}

TEST_CASE("text: nothing a stranger sends ends the line or steers the terminal") {
  struct Row {
    std::string_view in;
    std::string_view out;
  };
  using namespace std::string_view_literals;
  for (const Row& row : std::vector<Row>{
           {"plain text ~!", "plain text ~!"},
           {"", ""},
           {"a\nb\r\tc", "a\\x0ab\\x0d\\x09c"},
           {"\0"sv, "\\x00"},
           {"\x1b[31mred\x7f", "\\x1b[31mred\\x7f"},
           {"gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x9a\xaa",
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x9a\xaa"},
           {"\xc2\x9b"
            "31m",
            "\\xc2\\x9b31m"},         // CSI as a C1 control character
           {"\xc2\xa0", "\xc2\xa0"},  // first after C1
           {"\xe2\x80\xa8\xe2\x80\xa9",
            "\\xe2\\x80\\xa8\\xe2\\x80\\xa9"},            // line and paragraph separator
           {"\x80\xff", "\\x80\\xff"},                    // not UTF-8
           {"\xc0\x8a", "\\xc0\\x8a"},                    // overlong line feed
           {"\xe0\x80\x8a", "\\xe0\\x80\\x8a"},           // overlong line feed
           {"\xf0\x80\x80\x8a", "\\xf0\\x80\\x80\\x8a"},  // overlong line feed
           {"\xed\xa0\x80", "\\xed\\xa0\\x80"},           // surrogate
           {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"},  // above U+10FFFF
           {"\xe2\x82", "\\xe2\\x82"},                    // cut short
           {"\xc3(", "\\xc3("},
       }) {
    CAPTURE(row.out);
    CHECK(Escaped(row.in) == row.out);
  }
  CHECK(Escaped("abcdef", 3) == "abc...");
  CHECK(Escaped("abc", 3) == "abc");
}

TEST_CASE("units: sizes are read exactly or refused") {
  struct Row {
    std::string_view text;
    std::uint64_t bytes;
  };
  constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
  constexpr std::uint64_t kGib = std::uint64_t{1} << 30;
  for (const Row& row : std::vector<Row>{{"0", 0},
                                         {"1", 1},
                                         {"4096", 4096},
                                         {"512M", 512 * kMib},
                                         {"512m", 512 * kMib},
                                         {"512MiB", 512 * kMib},
                                         {"4GiB", 4 * kGib},
                                         {"1k", 1024},
                                         {"3T", 3072 * kGib},
                                         {"16777215T", 16777215 * (1024 * kGib)},
                                         {"18446744073709551615", ~std::uint64_t{0}}}) {
    CAPTURE(row.text);
    const Result<std::uint64_t> size = ParseSize(row.text);
    REQUIRE(size);
    CHECK(*size == row.bytes);
    CHECK(*ParseSize(FormatSize(*size)) == row.bytes);
  }
  for (const std::string_view text :
       {"", "M", "-1", "+1", " 1", "1 ", "1 M", "1.5G", "1MB", "1mib ", "1Mi", "1GIB", "1P", "0x10",
        "1e3", "18446744073709551616", "16777216T", "18014398509481985K"}) {
    CAPTURE(text);
    const Result<std::uint64_t> size = ParseSize(text);
    REQUIRE_FALSE(size);
    CHECK(size.error().code == Errc::kInvalidArgument);
  }
  CHECK(FormatSize(0) == "0");
  CHECK(FormatSize(1025) == "1025");
  CHECK(FormatSize(std::uint64_t{512} << 20) == "512M");
  CHECK(FormatSize(kGib * 2048) == "2T");
  CHECK(FormatSize(kGib * 1024 * 1024) == "1024T");
}

TEST_CASE("counters: count") {
  Counter counter;
  counter.Add();
  counter.Add(41);
  CHECK(counter.Get() == 42);
}

}  // namespace
}  // namespace postern
