#include "src/base/byte_ring.h"

#include <deque>
#include <random>
#include <vector>

#include <doctest/doctest.h>

namespace postern {
namespace {

std::vector<std::byte> Pattern(std::size_t bytes, unsigned start = 1) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>((start + i) * 7);
  return out;
}

TEST_CASE("byte ring: takes what fits and gives it back in order") {
  ByteRing ring(8);
  CHECK(ring.Write(Pattern(10)) == 8);
  CHECK(ring.room() == 0);
  std::vector<std::byte> out(5);
  CHECK(ring.Read(out) == 5);
  CHECK(out == Pattern(5));
  CHECK(ring.Write(Pattern(5, 9)) == 5);  // wraps
  out.resize(8);
  CHECK(ring.Read(out) == 8);
  std::vector<std::byte> want = Pattern(3, 6);
  for (std::byte b : Pattern(5, 9)) want.push_back(b);
  CHECK(out == want);
  CHECK(ring.empty());
  CHECK(ring.Read(out) == 0);
}

TEST_CASE("byte ring: drops the oldest bytes when asked to") {
  ByteRing ring(4);
  CHECK(ring.WriteDroppingOldest(Pattern(3)) == 0);
  CHECK(ring.WriteDroppingOldest(Pattern(3, 4)) == 2);
  std::vector<std::byte> out(4);
  CHECK(ring.Read(out) == 4);
  CHECK(out == Pattern(4, 3));
  CHECK(ring.WriteDroppingOldest(Pattern(9)) == 5);
  CHECK(ring.Read(out) == 4);
  CHECK(out == Pattern(4, 6));
}

TEST_CASE("byte ring: behaves as a queue under random use in place") {
  std::mt19937 random(3);
  ByteRing ring(61);
  std::deque<std::byte> model;
  unsigned next = 0;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0) {
      std::size_t bytes = random() % (ring.room() + 1);
      const std::size_t committed = bytes;
      for (const iovec& part : ring.Room()) {
        for (std::size_t i = 0; i < part.iov_len && bytes > 0; ++i, --bytes) {
          static_cast<std::byte*>(part.iov_base)[i] = static_cast<std::byte>(next);
          model.push_back(static_cast<std::byte>(next++));
        }
      }
      REQUIRE(bytes == 0);
      ring.Commit(committed);
    } else {
      std::size_t bytes = random() % (ring.size() + 1);
      const std::size_t consumed = bytes;
      for (const iovec& part : ring.Contents()) {
        for (std::size_t i = 0; i < part.iov_len && bytes > 0; ++i, --bytes) {
          REQUIRE(static_cast<std::byte*>(part.iov_base)[i] == model.front());
          model.pop_front();
        }
      }
      REQUIRE(bytes == 0);
      ring.Consume(consumed);
    }
    REQUIRE(ring.size() == model.size());
  }
  ring.Release();
  CHECK(ring.empty());
  CHECK(ring.Write(Pattern(3)) == 3);
}

}  // namespace
}  // namespace postern
