#pragma once

// `postern doctor`: what this host can do for a microVM, as a table or as JSON. Changes nothing on
// the host.

#include <string>
#include <vector>

namespace postern::cli {

// 0 when microVMs with Linux guests can run here, 1 when something they need is missing, 2 for
// wrong flags.
[[nodiscard]] int Doctor(const std::vector<std::string>& arguments);

}  // namespace postern::cli
