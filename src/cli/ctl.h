#pragma once

// postern ctl: one command to the control socket of a running machine. Threads: the main thread.

#include <string>
#include <vector>

namespace postern::cli {

// Exit code: 0 done, 1 the machine or its guest could not, 2 the command is wrong.
[[nodiscard]] int Ctl(const std::vector<std::string>& arguments);

}  // namespace postern::cli
