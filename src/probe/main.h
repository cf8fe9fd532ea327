// What the whole program shares: its options and what the loader told it.
#pragma once

#include "src/probe/boot_info.h"
#include "src/probe/cmdline.h"

namespace postern::probe {

const Options& ProbeOptions();
const BootInfo& Boot();

}  // namespace postern::probe
