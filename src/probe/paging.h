// The identity map. Nothing but the image is mapped at the start; the rest is mapped 2 MiB at a
// time when it is first needed.
#pragma once

#include <cstdint>

namespace postern::probe {

enum class Caching : uint8_t { kNormal, kDevice };

// Maps [address, address + size) onto itself, rounded out to 2 MiB; already mapped parts keep their
// caching. Addresses beyond 47 bits, or a pool of page tables that is used up, are not mapped:
// touching them then faults, which is reported.
void MapPhysical(uint64_t address, uint64_t size, Caching caching);

}  // namespace postern::probe
