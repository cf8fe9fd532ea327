#pragma once

// SysfsDevice: what sysfs says of any device VFIO may have to do with: its driver and what that
// means for VFIO, its IOMMU group and who else is in it, its VFIO device file. Mediated devices are
// devices like others here. The one reader of all this: what a machine opens and what a diagnosis
// says (host_pci.h) agree.
//
//   const Outcome<SysfsDevice> device = FindSysfsDevice("/sys/bus/pci/devices/0000:3b:00.0");
//   if (!device->vfio_bound()) return NotBound(*device);
//
// Is not: a diagnosis of the device (postern doctor), nor anything that changes it. Values as of
// the call; what is malformed is absent. Threads: no state. Source: Linux
// Documentation/ABI/testing/ sysfs-kernel-iommu_groups, sysfs-devices-vfio-dev;
// drivers/vfio/{group,vfio_main}.c.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/base/failure.h"

namespace postern::vfio {

// What a driver, or none, means for the assignment of a device or of another one of its group.
enum class DriverUse : std::uint8_t {
  kVfio,      // ready to be assigned
  kNone,      // no driver: harmless
  kBridge,    // a PCI bridge with no driver, or the port driver, which does no DMA
  kStub,      // pci-stub: holds the device and does nothing with it
  kInTheWay,  // a driver of the host uses it
};
[[nodiscard]] const char* Describe(DriverUse use);
// Of the device in this folder of sysfs, whose driver is `driver` (empty: none). A driver of VFIO
// is one that made an entry in the device's vfio-dev folder (Linux 6.1), whatever its name, or one
// with "vfio" in its name.
[[nodiscard]] DriverUse UseOfDriver(const std::string& folder, const std::string& driver);
// The class of anything that forwards a bus or that the host's own bus structure hangs on.
[[nodiscard]] bool IsBridgeClass(std::optional<std::uint64_t> class_code);

struct GroupMember {
  std::string name;
  std::string driver;  // empty: none
  DriverUse use = DriverUse::kInTheWay;
};

struct SysfsDevice {
  std::string path;    // the canonical one: two paths of one device are equal
  std::string name;    // "0000:3b:00.0", or an mdev's UUID
  std::string driver;  // empty: none
  DriverUse use = DriverUse::kNone;
  bool mediated = false;
  std::string
      cdev;  // "vfio3": its name under /dev/vfio/devices; empty: the kernel has no file of it
  std::optional<unsigned> group;
  std::string group_type;          // "DMA", "DMA-FQ", "identity", ...; empty: unknown
  bool noiommu = false;            // the group is one VFIO made up: no translation, no protection
  std::vector<GroupMember> peers;  // the other members of the group
  [[nodiscard]] bool vfio_bound() const { return use == DriverUse::kVfio; }
};

// Of a folder that is there; what is not in it is absent from the answer.
[[nodiscard]] SysfsDevice ReadSysfsDevice(const std::string& folder);
// A path of a folder of sysfs, links followed. The failure names the path and what is wrong.
[[nodiscard]] Outcome<SysfsDevice> FindSysfsDevice(const std::string& path);
// The device behind an open VFIO device file; `root` is /sys.
[[nodiscard]] Outcome<SysfsDevice> FindDeviceOfFile(int fd, const std::string& root);
// The peers whose drivers keep the group from VFIO.
[[nodiscard]] std::vector<GroupMember> Blockers(const SysfsDevice& device);

// Failures that name the device and the next step.
[[nodiscard]] tl::unexpected<Failure> NotBound(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NotViable(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NoGroup(const SysfsDevice& device);
[[nodiscard]] tl::unexpected<Failure> NoIommu(const SysfsDevice& device);

}  // namespace postern::vfio
