#pragma once

// PolledPages: portals of an Engine that are siov::PolledPage.
//
//   auto engine = TRY(Engine::Create(options, {.runner = ..., .polled = PolledPages()}));

#include "devices/siov/engine/polled_source.h"

namespace postern::dsa {

[[nodiscard]] PolledFactory PolledPages();

}  // namespace postern::dsa
