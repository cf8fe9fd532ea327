#pragma once

// `postern run`: a Config from flags and file, a Machine from it, and the signals of a process that
// is one.

#include <string>
#include <vector>

namespace postern::cli {

// Returns the process's exit code.
[[nodiscard]] int Run(const std::vector<std::string>& arguments);

}  // namespace postern::cli
