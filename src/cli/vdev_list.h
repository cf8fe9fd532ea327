#pragma once

// `postern vdev list`: what virtual devices can be composed on this host, and of what: types and
// profiles, back ends, the DSAs among its PCI functions and whether Postern may drive them, the
// queues its idxd driver offers. Reads and changes nothing.
//
//   return VdevList(arguments);
//
// Everything read is untrusted text and printed escaped. Threads: one. Source: Linux
// Documentation/ABI/stable/sysfs-driver-dma-idxd.

#include <string>
#include <vector>

#include "vfio/sysfs.h"

namespace postern::cli {

// 0, or 2 for wrong input.
[[nodiscard]] int VdevList(const std::vector<std::string>& arguments);

// What it prints, of a host whose folders are there.
[[nodiscard]] std::string DescribeVdevs(const vfio::HostRoots& roots);

}  // namespace postern::cli
