#include "vfio/sysfs_device.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include <fmt/core.h>

#include "src/base/text.h"
#include "vfio/sysfs.h"

namespace postern::vfio {
namespace {

std::optional<unsigned> Number(const std::string& text) {
  unsigned value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

bool IsVfioDriver(const std::string& driver) {
  return driver.find("vfio") != std::string::npos;
}

std::string With(const Blocker& member) {
  return fmt::format("{} (driver {})", Escaped(member.name), Escaped(member.driver));
}

}  // namespace

bool SysfsDevice::vfio_bound() const {
  // Kernels before 6.1 have no vfio-dev folder.
  return !vfio_file.empty() || mediated || IsVfioDriver(driver);
}

Outcome<SysfsDevice> FindSysfsDevice(const std::string& path) {
  SysfsDevice device;
  device.path = RealPath(path);
  if (device.path.empty()) {
    return ConfigFailure(
        fmt::format("no device at '{}': {}", Escaped(path), strerrordesc_np(errno)),
        "check the address: lspci -D lists PCI devices, /sys/bus/mdev/devices mediated ones");
  }
  device.name = device.path.substr(device.path.rfind('/') + 1);
  const std::string subsystem = LinkName(device.path + "/subsystem");
  if (subsystem.empty()) {
    return ConfigFailure(fmt::format("'{}' is not a device of sysfs", Escaped(path)),
                         "give a device's folder, such as /sys/bus/pci/devices/0000:3b:00.0");
  }
  device.mediated = subsystem == "mdev";
  device.driver = LinkName(device.path + "/driver");
  device.group = Number(LinkName(device.path + "/iommu_group"));
  const std::string name = ReadLine(device.path + "/iommu_group/name").value_or("");
  // The groups the kernel makes up for mediated devices, which translate by themselves, have that
  // name as well.
  device.noiommu = name == "vfio-noiommu" && !device.mediated;
  for (const std::string& entry : ListFolder(device.path + "/vfio-dev")) {
    if (entry.starts_with("vfio")) {
      device.vfio_file = entry;
      break;
    }
  }
  return device;
}

Outcome<SysfsDevice> FindDeviceOfFile(int fd, const std::string& root) {
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISCHR(status.st_mode)) {
    return ConfigFailure(fmt::format("descriptor {} is no device file", fd));
  }
  return FindSysfsDevice(
      fmt::format("{}/dev/char/{}:{}/device", root, major(status.st_rdev), minor(status.st_rdev)));
}

std::vector<Blocker> Blockers(const SysfsDevice& device) {
  std::vector<Blocker> blockers;
  const std::string folder = device.path + "/iommu_group/devices";
  for (const std::string& name : ListFolder(folder)) {
    const std::string member = fmt::format("{}/{}", folder, name);
    const std::string driver = LinkName(member + "/driver");
    // The kernel lets bridges keep theirs.
    if (driver.empty() || IsVfioDriver(driver) || driver == "pcieport") continue;
    if (Exists(member + "/vfio-dev")) continue;
    blockers.push_back({name, driver});
  }
  return blockers;
}

tl::unexpected<Failure> NotBound(const SysfsDevice& device) {
  const std::string bound =
      device.driver.empty() ? "no driver" : fmt::format("'{}'", Escaped(device.driver));
  return HostFailure(
      fmt::format("{} is bound to {}, not to a VFIO driver", Escaped(device.name), bound),
      fmt::format("run: postern bind {}", Escaped(device.name)));
}

tl::unexpected<Failure> NotViable(const SysfsDevice& device) {
  std::string others;
  std::string commands;
  for (const Blocker& member : Blockers(device)) {
    if (!others.empty()) others += ", ";
    others += With(member);
    commands += (commands.empty() ? "postern bind " : "; postern bind ") + Escaped(member.name);
  }
  if (others.empty()) others = "a device whose driver is not told";
  return HostFailure(
      fmt::format("{} cannot be used: others of its IOMMU group {} have drivers of the host: {}",
                  Escaped(device.name), device.group.value_or(0), others),
      commands.empty() ? "unbind the group's other devices from their drivers"
                       : fmt::format("run: {}", commands));
}

tl::unexpected<Failure> NoGroup(const SysfsDevice& device) {
  return HostFailure(fmt::format("{} is in no IOMMU group: the host has no IOMMU, or it is off",
                                 Escaped(device.name)),
                     "switch the IOMMU on in the firmware (VT-d, AMD-Vi) and, on Intel hosts, with "
                     "intel_iommu=on on the kernel's command line");
}

tl::unexpected<Failure> NoIommu(const SysfsDevice& device) {
  return HostFailure(
      fmt::format("{} has no IOMMU (noiommu group {}): the guest could write to any memory of the "
                  "host, and its addresses would not be translated",
                  Escaped(device.name), device.group.value_or(0)),
      "use a host with an IOMMU; Postern does not assign devices without one");
}

}  // namespace postern::vfio
