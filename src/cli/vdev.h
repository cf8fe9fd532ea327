#pragma once

// `postern vdev`: `serve` puts a virtual device on a vfio-user socket, for guests of other
// processes; `list` is vdev_list.h's.

#include <string>
#include <vector>

namespace postern::cli {

// 0 when it was told to end, 1 when the host refused something, 2 for wrong flags.
[[nodiscard]] int Vdev(const std::vector<std::string>& arguments);

}  // namespace postern::cli
