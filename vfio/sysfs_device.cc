#include "vfio/sysfs_device.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include <fmt/core.h>

#include "src/base/text.h"
#include "vfio/sysfs.h"

namespace postern::vfio {
namespace {

constexpr std::size_t kMaxMembers = 4096;

// "vfio0": what the kernel calls a device it gave to VFIO.
bool IsDeviceEntry(const std::string& name) {
  return name.starts_with("vfio") && ParseNumber(name.substr(4)).has_value();
}

void ReadDeviceFile(SysfsDevice& device) {
  const std::string folder = device.path + "/vfio-dev/";
  for (const std::string& name : ListFolder(folder)) {
    // The entry is there on kernels without CONFIG_VFIO_DEVICE_CDEV too; its number is not.
    if (!IsDeviceEntry(name) || !Exists(folder + name + "/dev")) continue;
    device.cdev = name;
    return;
  }
}

void ReadGroup(SysfsDevice& device) {
  const std::string folder = device.path + "/iommu_group";
  const std::optional<std::uint64_t> number = ParseNumber(LinkName(folder));
  if (!number || *number > std::numeric_limits<unsigned>::max()) return;
  device.group = static_cast<unsigned>(*number);
  device.group_type = ReadLine(folder + "/type").value_or("");
  // The groups the kernel makes up for mediated devices, which translate by themselves, have that
  // name as well.
  device.noiommu = ReadLine(folder + "/name") == "vfio-noiommu" && !device.mediated;
  for (const std::string& name : ListFolder(folder + "/devices")) {
    if (name == device.name || device.peers.size() == kMaxMembers) continue;
    const std::string member = fmt::format("{}/devices/{}", folder, name);
    std::string driver = LinkName(member + "/driver");
    const DriverUse use = UseOfDriver(member, driver);
    device.peers.push_back({name, std::move(driver), use});
  }
}

std::string With(const GroupMember& member) {
  return fmt::format("{} (driver {})", Escaped(member.name), Escaped(member.driver));
}

}  // namespace

const char* Describe(DriverUse use) {
  switch (use) {
    case DriverUse::kVfio:
      return "ready to be assigned";
    case DriverUse::kNone:
      return "no driver";
    case DriverUse::kBridge:
      return "bridge, not in the way";
    case DriverUse::kStub:
      return "held by pci-stub, not in the way";
    case DriverUse::kInTheWay:
      return "in use by the host";
  }
  return "";
}

bool IsBridgeClass(std::optional<std::uint64_t> class_code) {
  // Base class 6 but for "other": 0x0680 is also what accelerators call themselves.
  return class_code && *class_code >> 16 == 0x06 && (*class_code >> 8 & 0xff) != 0x80;
}

DriverUse UseOfDriver(const std::string& folder, const std::string& driver) {
  if (driver.empty()) {
    const std::optional<std::uint64_t> class_code = ReadNumber(folder + "/class", 16);
    const bool bridge = class_code.value_or(0) <= 0xffffff && IsBridgeClass(class_code);
    return bridge ? DriverUse::kBridge : DriverUse::kNone;
  }
  const std::vector<std::string> entries = ListFolder(folder + "/vfio-dev");
  if (std::any_of(entries.begin(), entries.end(), IsDeviceEntry) ||
      driver.find("vfio") != std::string::npos) {
    return DriverUse::kVfio;
  }
  // Also of ports that are no bridges, such as event collectors.
  if (driver == "pcieport") return DriverUse::kBridge;
  return driver == "pci-stub" ? DriverUse::kStub : DriverUse::kInTheWay;
}

SysfsDevice ReadSysfsDevice(const std::string& folder) {
  SysfsDevice device;
  device.path = RealPath(folder);
  device.name = device.path.substr(device.path.rfind('/') + 1);
  device.mediated = LinkName(device.path + "/subsystem") == "mdev";
  device.driver = LinkName(device.path + "/driver");
  device.use = device.mediated ? DriverUse::kVfio : UseOfDriver(device.path, device.driver);
  ReadDeviceFile(device);
  ReadGroup(device);
  return device;
}

Outcome<SysfsDevice> FindSysfsDevice(const std::string& path) {
  const std::string canonical = RealPath(path);
  if (canonical.empty()) {
    return ConfigFailure(
        fmt::format("no device at '{}': {}", Escaped(path), strerrordesc_np(errno)),
        "check the address: lspci -D lists PCI devices, /sys/bus/mdev/devices mediated ones");
  }
  if (LinkName(canonical + "/subsystem").empty()) {
    return ConfigFailure(fmt::format("'{}' is not a device of sysfs", Escaped(path)),
                         "give a device's folder, such as /sys/bus/pci/devices/0000:3b:00.0");
  }
  return ReadSysfsDevice(canonical);
}

Outcome<SysfsDevice> FindDeviceOfFile(int fd, const std::string& root) {
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISCHR(status.st_mode)) {
    return ConfigFailure(fmt::format("descriptor {} is no device file", fd));
  }
  return FindSysfsDevice(
      fmt::format("{}/dev/char/{}:{}/device", root, major(status.st_rdev), minor(status.st_rdev)));
}

std::vector<GroupMember> Blockers(const SysfsDevice& device) {
  std::vector<GroupMember> blockers;
  std::copy_if(device.peers.begin(), device.peers.end(), std::back_inserter(blockers),
               [](const GroupMember& peer) { return peer.use == DriverUse::kInTheWay; });
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
  for (const GroupMember& member : Blockers(device)) {
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
