// Random sequences of descriptors, batches and guest memory: Executor against PlainExecutor.

#include <random>
#include <vector>

#include "devices/siov/engine/executor_pair.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

TEST_CASE("executor: random descriptors do the same as in the plain implementation") {
  constexpr int kSequences = 250;
  std::array<std::uint32_t, 64> statuses{};
  for (int i = 0; i < kSequences; ++i) {
    std::mt19937 random(static_cast<std::uint32_t>(i));
    std::vector<std::uint8_t> bytes(1000);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    ExecutorPair pair(
        Sequence::Regions(),
        {.operations = kAllOperations, .overlapping_copy = i % 2 == 0, .cache_control = i % 3 == 0},
        Sequence::Handles());
    Sequence sequence(bytes, pair);
    while (!sequence.empty()) {
      sequence.Scribble();
      const siov::Descriptor descriptor = sequence.Next();
      CAPTURE(i);
      REQUIRE(pair.Run(Sequence::Limits(), descriptor) == "");
      ++statuses[pair.last().status & 0x3f];
    }
  }
  // Each status was seen: the sequences go where they should.
  for (const unsigned status :
       {0x01U, 0x02U, 0x03U, 0x05U, 0x06U, 0x07U, 0x08U, 0x09U, 0x10U, 0x11U, 0x12U,
        0x13U, 0x14U, 0x15U, 0x16U, 0x17U, 0x18U, 0x19U, 0x1aU, 0x1bU, 0x1cU}) {
    CAPTURE(status);
    CHECK(statuses[status] > 0);
  }
}

}  // namespace
}  // namespace postern::dsa
