#pragma once

// SysfsDevice: what sysfs says of a device that VFIO is to open: its driver, its IOMMU group, its
// VFIO device file. Mediated devices are devices like others here.
//
//   const Outcome<SysfsDevice> device = FindSysfsDevice("/sys/bus/pci/devices/0000:3b:00.0");
//   if (!device->vfio_bound()) return NotBound(*device);
//
// Is not: a diagnosis of the device (postern doctor), nor anything that changes it. Values as of
// the call. Threads: no state. Source: Linux Documentation/ABI/testing/sysfs-kernel-iommu_groups,
// sysfs-devices-vfio-dev.

#include <optional>
#include <string>
#include <vector>

#include "src/base/failure.h"

namespace postern::vfio {

struct SysfsDevice {
  std::string path;    // the canonical one: two paths of one device are equal
  std::string name;    // "0000:3b:00.0", or an mdev's UUID
  std::string driver;  // empty: none
  bool mediated = false;
  std::optional<unsigned> group;
  bool noiommu = false;   // the group is one without an IOMMU
  std::string vfio_file;  // "vfio3": its name under /dev/vfio/devices; empty: not told
  [[nodiscard]] bool vfio_bound() const;
};

// Another device of the same group, with its driver.
struct Blocker {
  std::string name;
  std::string driver;
};

// A path of a folder of sysfs, links followed. The failure names the path and what is wrong.
[[nodiscard]] Outcome<SysfsDevice> FindSysfsDevice(const std::string& path);
// The device behind an open VFIO device file; `root` is /sys.
[[nodiscard]] Outcome<SysfsDevice> FindDeviceOfFile(int fd, const std::string& root);
// Those whose drivers keep the group from VFIO.
[[nodiscard]] std::vector<Blocker> Blockers(const SysfsDevice& device);

// Failures that name the device and the next step.
[[nodiscard]] tl::unexpected<Failure> NotBound(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NotViable(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NoGroup(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NoIommu(const SysfsDevice& device);

}  // namespace postern::vfio
