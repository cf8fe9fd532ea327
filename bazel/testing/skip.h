#pragma once

// SKIP_TEST: leaves a doctest case that this machine cannot run (no usable /dev/kvm, not root, ...)
// and says why. The case is then counted as skipped by ./check, never as passed. Only from the body
// of a TEST_CASE, on the test's own thread.
//
//   if (access("/dev/kvm", R_OK | W_OK) != 0) SKIP_TEST("/dev/kvm cannot be opened");

namespace postern::testing {

// Copies `reason` and attaches it to the running test case.
void MarkSkipped(const char* reason);

}  // namespace postern::testing

#define SKIP_TEST(reason)                    \
  do {                                       \
    ::postern::testing::MarkSkipped(reason); \
    return;                                  \
  } while (false)
