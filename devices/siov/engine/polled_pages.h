#pragma once

// PolledPages: portals of an Engine that are siov::PolledPage.
//
//   auto engine = TRY(Engine::Create(options, {.runner = ..., .polled = PolledPages()}));

// All pages of one Engine lie in one file, those of its n-th queue that is polled at
// n * kPolledStride: where all queues are, as BAR 2 has them. So one descriptor and the BAR's own
// offsets hand them to another process.

#include <cstdint>

#include "devices/siov/engine/polled_source.h"

namespace postern::dsa {

// Intel DSA Architecture Specification 3.0: four portal pages a queue.
constexpr std::uint64_t kPolledStride = std::uint64_t{4} * 4096;

// The answer is for one Engine.
[[nodiscard]] PolledFactory PolledPages();

}  // namespace postern::dsa
