#pragma once

// Stores of 64 bytes in one piece, as the portals of accelerators take them: MOVDIR64B.
//
//   if (HasMovdir64b()) StoreBlock(portal, block);
//
// Threads: any. Source: Intel SDM vol. 2, MOVDIR64B.

#include <cstddef>
#include <span>

namespace postern {

// Of this processor.
[[nodiscard]] bool HasMovdir64b();

// `to` is aligned to 64 bytes (CHECK). Without MOVDIR64B: eight stores of 8 bytes, the first word
// last, which memory that somebody polls takes as well and hardware does not.
void StoreBlock(std::byte* to, std::span<const std::byte, 64> from);

}  // namespace postern
