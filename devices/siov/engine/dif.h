#pragma once

// The sizes of DIF blocks. No logic of the operations (operations.h has them). Threads: any;
// values.

#include <cstdint>

#include "devices/siov/engine/descriptor.h"

namespace postern::dsa::internal {

[[nodiscard]] constexpr bool IsDif(Opcode opcode) {
  return opcode >= Opcode::kDifCheck && opcode <= Opcode::kDifUpdate;
}

struct DifSteps {
  std::uint32_t block;             // bytes of data
  std::uint32_t source_step;       // bytes of a block in the source, with its tags if it has any
  std::uint32_t destination_step;  // bytes of a block written
};

[[nodiscard]] DifSteps DifLayout(const WorkDescriptor& descriptor);

}  // namespace postern::dsa::internal
