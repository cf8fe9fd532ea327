// Any accesses, answers of the back end, events, resets, saved states: see hostile_steps.cc.

#include <cstddef>
#include <cstdint>
#include <span>

#include "devices/siov/dsa/hostile_steps.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::dsa::RunHostileSteps(std::span(data, size));
  return 0;
}
