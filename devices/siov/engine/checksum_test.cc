#include "devices/siov/engine/checksum.h"

#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

std::uint32_t Crc32c(const Checksums& sums, const std::vector<std::byte>& data) {
  return ~sums.crc32c(~0U, data.data(), data.size());
}

std::vector<std::byte> Bytes(std::string_view text) {
  std::vector<std::byte> bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

std::vector<std::byte> Count(int from, int step) {
  std::vector<std::byte> bytes;
  bytes.reserve(32);
  for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<std::byte>(from + step * i));
  return bytes;
}

// A bit at a time.
std::uint32_t PlainCrc32c(std::uint32_t state, const std::byte* data, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    state ^= static_cast<std::uint32_t>(data[i]);
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ ((state & 1) != 0 ? 0x82f63b78 : 0);
  }
  return state;
}
std::uint16_t PlainCrc16(std::uint32_t state, const std::byte* data, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    state ^= static_cast<std::uint32_t>(data[i]) << 8;
    for (int bit = 0; bit < 8; ++bit) {
      state = state << 1 ^ ((state & 0x8000) != 0 ? 0x18bb7 : 0);
    }
  }
  return static_cast<std::uint16_t>(state);
}

// RFC 3720, B.4.
TEST_CASE("checksum: CRC-32C of the standard's examples, in every variant") {
  const std::vector<std::byte> command{
      std::byte{0x01}, std::byte{0xc0}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x14}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x04}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x14}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x18}, std::byte{0x28}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x02}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00}, std::byte{0x00},
      std::byte{0x00}, std::byte{0x00}, std::byte{0x00}};
  for (const Checksums& sums : AllChecksums()) {
    CAPTURE(sums.name);
    CHECK(Crc32c(sums, std::vector<std::byte>(32)) == 0x8a9136aa);
    CHECK(Crc32c(sums, std::vector<std::byte>(32, std::byte{0xff})) == 0x62a8ab43);
    CHECK(Crc32c(sums, Count(0, 1)) == 0x46dd794e);
    CHECK(Crc32c(sums, Count(31, -1)) == 0x113fdb5c);
    CHECK(Crc32c(sums, command) == 0xd9963a56);
    CHECK(Crc32c(sums, Bytes("123456789")) == 0xe3069283);
    CHECK(Crc32c(sums, {}) == 0);
  }
}

TEST_CASE("checksum: the CRC-16 of T10, in every variant") {
  for (const Checksums& sums : AllChecksums()) {
    CAPTURE(sums.name);
    const std::vector<std::byte> digits = Bytes("123456789");
    CHECK(sums.crc16_t10(0, digits.data(), digits.size()) == 0xd0db);
    CHECK(sums.crc16_t10(0x1234, digits.data(), 0) == 0x1234);
    // A guard behind its data makes the remainder 0.
    std::vector<std::byte> block = postern::testing::Pattern(512);
    const std::uint16_t guard = sums.crc16_t10(0, block.data(), block.size());
    block.push_back(static_cast<std::byte>(guard >> 8));
    block.push_back(static_cast<std::byte>(guard & 0xff));
    CHECK(sums.crc16_t10(0, block.data(), block.size()) == 0);
  }
}

TEST_CASE("checksum: every variant says the same at every size, place and state") {
  const std::vector<std::byte> data = postern::testing::Pattern(20000);
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size < 700; ++size) sizes.push_back(size);
  for (const std::size_t size :
       {1023U, 1024U, 3071U, 3072U, 3073U, 4096U, 4104U, 6144U, 8191U, 19000U}) {
    sizes.push_back(size);
  }
  for (const std::size_t size : sizes) {
    const std::size_t offset = size % 67;
    const auto state = static_cast<std::uint32_t>(size * 2654435761U);
    const std::uint32_t crc32c = PlainCrc32c(state, data.data() + offset, size);
    const std::uint16_t crc16 = PlainCrc16(state & 0xffff, data.data() + offset, size);
    for (const Checksums& sums : AllChecksums()) {
      CAPTURE(sums.name);
      CAPTURE(size);
      REQUIRE(sums.crc32c(state, data.data() + offset, size) == crc32c);
      REQUIRE(sums.crc16_t10(static_cast<std::uint16_t>(state), data.data() + offset, size) ==
              crc16);
    }
  }
}

TEST_CASE("checksum: a sum goes on where another ended") {
  const std::vector<std::byte> data = postern::testing::Pattern(5000);
  for (const Checksums& sums : AllChecksums()) {
    CAPTURE(sums.name);
    const std::uint32_t whole = sums.crc32c(7, data.data(), data.size());
    const std::uint16_t whole16 = sums.crc16_t10(7, data.data(), data.size());
    for (const std::size_t first : {1U, 8U, 17U, 600U, 4999U}) {
      CHECK(sums.crc32c(sums.crc32c(7, data.data(), first), data.data() + first,
                        data.size() - first) == whole);
      CHECK(sums.crc16_t10(sums.crc16_t10(7, data.data(), first), data.data() + first,
                           data.size() - first) == whole16);
    }
  }
}

TEST_CASE("checksum: the portable variant is always there and comes last") {
  REQUIRE_FALSE(AllChecksums().empty());
  CHECK(std::string_view(AllChecksums().back().name) == "portable");
  MESSAGE("the fastest here: " << BestChecksums().name);
}

}  // namespace
}  // namespace postern::dsa
