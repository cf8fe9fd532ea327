#pragma once

// RunHostileSteps: a driver, a back end and a host that do anything in any order, as bytes say, and
// what must hold all the same (DsaRig::CheckInvariants). For the fuzz target and a test. Threads:
// one.

#include <cstdint>
#include <span>

namespace postern::dsa {

void RunHostileSteps(std::span<const std::uint8_t> bytes);

}  // namespace postern::dsa
