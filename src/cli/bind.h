#pragma once

// `postern bind` and `postern unbind`: PCI devices of the host change their driver, and only here.

#include <string>
#include <vector>

namespace postern::cli {

// 0 when every device is where it should be, 1 when the host refused one, 2 for wrong input (then
// nothing was changed).
[[nodiscard]] int Bind(const std::vector<std::string>& arguments);
[[nodiscard]] int Unbind(const std::vector<std::string>& arguments);

}  // namespace postern::cli
