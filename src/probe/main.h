// What the whole program shares: its options and what the loader told it.
#ifndef POSTERN_SRC_PROBE_MAIN_H_
#define POSTERN_SRC_PROBE_MAIN_H_

#include "src/probe/boot_info.h"
#include "src/probe/cmdline.h"

namespace postern::probe {

const Options& ProbeOptions();
const BootInfo& Boot();

}  // namespace postern::probe

#endif  // POSTERN_SRC_PROBE_MAIN_H_
