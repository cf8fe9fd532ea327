#include "devices/siov/engine/back_off.h"

#include <chrono>

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

TEST_CASE("back-off: sleeps double from the first to the longest, and start anew after work") {
  BackOff back_off(
      {.first_sleep = microseconds(20), .max_sleep = microseconds(100), .idle_permille = 1000});
  for (int round = 0; round < 2; ++round) {
    CHECK(back_off.Next() == microseconds(20));
    CHECK(back_off.Next() == microseconds(40));
    CHECK(back_off.Next() == microseconds(80));
    for (int i = 0; i < 100; ++i) CHECK(back_off.Next() == microseconds(100));
    CHECK(back_off.sleeps() == 103);
    back_off.Restart();
    CHECK(back_off.sleeps() == 0);
  }
}

// Sleeps that cost `cost` each; the longest one.
nanoseconds Settled(const PollPolicy& policy, nanoseconds cost) {
  BackOff back_off(policy);
  nanoseconds used(12345);
  nanoseconds longest(0);
  for (int i = 0; i < 64; ++i, used += cost) longest = back_off.NextAt(used);
  return longest;
}

TEST_CASE("back-off: the longest sleep is as long as the share of a core asks, within its bounds") {
  PollPolicy policy{.max_sleep = microseconds(10'000), .idle_permille = 5};
  CHECK(Settled(policy, microseconds(3)) == microseconds(600));
  CHECK(Settled(policy, microseconds(40)) == microseconds(8000));
  CHECK(Settled(policy, microseconds(50)) == microseconds(10'000));
  CHECK(Settled(policy, microseconds(51)) == microseconds(10'000));
  CHECK(Settled(policy, microseconds(0)) == policy.first_sleep);
  policy.max_sleep = microseconds(1);
  policy.first_sleep = microseconds(1);
  CHECK(Settled(policy, microseconds(40)) == microseconds(1));
}

TEST_CASE("back-off: what work costs is not taken for what sleeping costs") {
  BackOff back_off({.max_sleep = microseconds(10'000), .idle_permille = 5});
  nanoseconds used(0);
  for (int i = 0; i < 64; ++i, used += microseconds(3)) (void)back_off.NextAt(used);
  used += std::chrono::seconds(10);
  back_off.Restart();
  nanoseconds longest(0);
  for (int i = 0; i < 64; ++i, used += microseconds(3))
    longest = std::max(longest, back_off.NextAt(used));
  CHECK(longest == microseconds(600));
}

}  // namespace
}  // namespace postern::dsa
