#pragma once

// What the host itself does with a PCI device right now: mounted disks, swap, disk stacks (device
// mapper, md), network interfaces that are up. Taking such a device away loses data or the way into
// the host.
//
//   for (const HostUse& use : FindHostUses("0000:3b:00.0", HostRoots{})) Print(use.what);
//
// Is not complete: a program may have the device or its disk open without any of these. A snapshot:
// nothing stops the host from starting to use it afterwards. Reads /sys/class/{block,net} and
// /proc/{self/mountinfo,swaps}. Ownership: values. Threads: any.

#include <string>
#include <vector>

#include "vfio/sysfs.h"

namespace postern::vfio {

struct HostUse {
  std::string what;   // "nvme0n1p2 is mounted at /home"
  bool root = false;  // the file system at / lies on it
};

// `name`: "0000:3b:00.0".
[[nodiscard]] std::vector<HostUse> FindHostUses(const std::string& name, const HostRoots& roots);

}  // namespace postern::vfio
