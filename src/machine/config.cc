#include "src/machine/config.h"

#include <set>

#include <fmt/format.h>

#include "src/arch/x86_64/cpuid.h"
#include "src/arch/x86_64/layout.h"
#include "src/base/text.h"
#include "src/base/units.h"

namespace postern {
namespace {

Outcome<void> ValidateMemory(const MemoryConfig& memory) {
  constexpr std::uint64_t kPage2M = 2 * x86_64::kMiB;
  constexpr std::uint64_t kPage1G = x86_64::kGiB;
  if (memory.hugepages != 0 && memory.hugepages != kPage2M && memory.hugepages != kPage1G) {
    return ConfigFailure(
        fmt::format("memory.hugepages: {} is no huge page size", FormatSize(memory.hugepages)),
        "use 2M or 1G");
  }
  const std::uint64_t page = memory.hugepages != 0 ? memory.hugepages : 4096;
  if (memory.size % page != 0) {
    return ConfigFailure(fmt::format("memory.size: {} is not a multiple of the page size {}",
                                     FormatSize(memory.size), FormatSize(page)),
                         "round it up");
  }
  if (memory.size < x86_64::kMinRam || memory.size > x86_64::kMaxRam) {
    return ConfigFailure(fmt::format("memory.size: {} is outside {} .. {}", FormatSize(memory.size),
                                     FormatSize(x86_64::kMinRam), FormatSize(x86_64::kMaxRam)),
                         "choose a size in that range");
  }
  if (memory.hugepages != 0 && memory.thp) {
    return ConfigFailure("memory.thp: huge pages of the host are already huge",
                         "use hugepages or thp, not both");
  }
  if (memory.mergeable && (memory.shared || memory.hugepages != 0)) {
    return ConfigFailure("memory.mergeable: KSM merges private 4 KiB pages only",
                         "leave out shared and hugepages");
  }
  return {};
}

Outcome<void> ValidateId(const std::string& id, const std::string& where) {
  for (const char c : id) {
    const bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '_' || c == '-';
    if (!good || id.size() > 64) {
      return ConfigFailure(fmt::format("{}.id: '{}' is not a name", where, Escaped(id, 80)),
                           "use up to 64 letters, digits, _ and -");
    }
  }
  return {};
}

Outcome<void> ValidateDisk(const DiskConfig& disk, const std::string& where) {
  if (disk.path.empty())
    return ConfigFailure(where + ".path: missing", "give the image file or block device");
  if (disk.serial.size() > 20)
    return ConfigFailure(where + ".serial: longer than 20 bytes", "shorten it");
  if ((disk.queue_size & (disk.queue_size - 1)) != 0) {
    return ConfigFailure(
        fmt::format("{}.queue_size: {} is no power of two", where, disk.queue_size),
        "use 128, 256, ...");
  }
  return {};
}

template <typename T>
Outcome<void> ValidateIds(const std::vector<T>& list, const char* what,
                          std::set<std::string>& seen) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::string& id = list[i].id;
    if (id.empty()) continue;
    if (Outcome<void> r = ValidateId(id, fmt::format("{}[{}]", what, i)); !r) return r;
    if (!seen.insert(id).second)
      return ConfigFailure(fmt::format("{}[{}].id: '{}' is taken", what, i, id),
                           "choose another id");
  }
  return {};
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Outcome<void> ValidateSource(const AssignedConfig& device, const std::string& where) {
  const int given = (device.host.empty() ? 0 : 1) + (device.path.empty() ? 0 : 1) +
                    (device.fd < 0 ? 0 : 1) + (device.socket.empty() ? 0 : 1);
  if (given != 1) {
    return ConfigFailure(
        fmt::format("{}: needs one of host, path, fd and socket, and has {}", where, given),
        "give host=0000:3b:00.0 for a PCI device of this host");
  }
  const bool has_iommufd =
      device.iommufd != AssignedConfig::Iommufd::kAuto || device.iommufd_fd >= 0;
  if (!device.socket.empty() && has_iommufd) {
    return ConfigFailure(where + ".iommufd: a vfio-user device uses none", "leave it out");
  }
  return {};
}

Outcome<void> ValidateCdev(const VdevConfig& vdev, const std::string& where) {
  const bool cdev = vdev.backend == VdevConfig::Backend::kCdev;
  if (!cdev && !vdev.path.empty()) {
    return ConfigFailure(where + ".path: only backend=cdev has a queue of the host's driver",
                         "add backend=cdev, or leave it out");
  }
  if (!cdev) return {};
  if (vdev.path.empty()) {
    return ConfigFailure(where + ": backend=cdev needs path",
                         "give path=/dev/dsa/wqX.Y; 'postern vdev list' shows them");
  }
  if (vdev.engines != 1) {
    return ConfigFailure(where + ".engines: backend=cdev has those of the host's queue",
                         "leave it out");
  }
  if (vdev.wqs > 1) {
    return ConfigFailure(fmt::format("{}.wqs: backend=cdev is one queue, not {}", where, vdev.wqs),
                         "leave it out, or give the guest one vdev for each queue");
  }
  if (vdev.portal != VdevConfig::Portal::kAuto && vdev.portal != VdevConfig::Portal::kTrapped) {
    return ConfigFailure(
        where + ".portal: backend=cdev checks each descriptor, so that its portals are trapped",
        "use portal=auto");
  }
  return {};
}

Outcome<void> ValidateBackend(const VdevConfig& vdev, const std::string& where) {
  if (Outcome<void> r = ValidateCdev(vdev, where); !r) return r;
  const bool vfio = vdev.backend == VdevConfig::Backend::kVfio;
  if (!vfio && (!vdev.host.empty() || !vdev.socket.empty())) {
    return ConfigFailure(fmt::format("{}.{}: only backend=vfio has a device of the host", where,
                                     vdev.host.empty() ? "socket" : "host"),
                         "add backend=vfio, or leave it out");
  }
  if (vfio && vdev.host.empty() == vdev.socket.empty()) {
    return ConfigFailure(where + ": backend=vfio needs one of host and socket",
                         "give host=BDF of a DSA; 'postern vdev list' shows them");
  }
  if (vfio && vdev.engines != 1) {
    return ConfigFailure(where + ".engines: backend=vfio has those of the device", "leave it out");
  }
  if (vfio && vdev.portal == VdevConfig::Portal::kPolled) {
    return ConfigFailure(where + ".portal: pages of a host's device are direct, not polled",
                         "use portal=auto, direct or trapped");
  }
  if (!vfio && vdev.portal == VdevConfig::Portal::kDirect) {
    return ConfigFailure(where + ".portal: direct needs pages of a device, which the engine is not",
                         "use portal=auto, or backend=vfio");
  }
  return {};
}

Outcome<void> ValidateVdevs(const Config& config, std::set<std::string>& ids) {
  if (Outcome<void> r = ValidateIds(config.vdevs, "vdevs", ids); !r) return r;
  for (std::size_t i = 0; i < config.vdevs.size(); ++i) {
    const VdevConfig& vdev = config.vdevs[i];
    if (Outcome<void> r = ValidateBackend(vdev, fmt::format("vdevs[{}]", i)); !r) return r;
    if (vdev.portal != VdevConfig::Portal::kPolled) continue;
    if (config.cpus != 1) {
      return ConfigFailure(
          fmt::format("vdevs[{}].portal: a polled portal loses descriptors that two CPUs store to "
                      "one slot, and this guest has {} CPUs",
                      i, config.cpus),
          "use portal=auto, or --cpus 1");
    }
    if (vdev.wq_size > 63) {
      return ConfigFailure(
          fmt::format("vdevs[{}].wq_size: a polled portal holds 63, not {}", i, vdev.wq_size),
          "use wq-size=63, or portal=trapped");
    }
  }
  if (!config.vdevs.empty() && config.transport != Transport::kPci) {
    return ConfigFailure("vdevs: a guest without PCI cannot have them", "use --transport pci");
  }
  return {};
}

Outcome<void> ValidateAssigned(const Config& config, std::set<std::string>& ids) {
  if (Outcome<void> r = ValidateIds(config.devices, "devices", ids); !r) return r;
  std::set<std::string> sources;
  for (std::size_t i = 0; i < config.devices.size(); ++i) {
    const AssignedConfig& device = config.devices[i];
    if (Outcome<void> r = ValidateSource(device, fmt::format("devices[{}]", i)); !r) return r;
    const std::string source = !device.host.empty()     ? device.host
                               : !device.path.empty()   ? device.path
                               : !device.socket.empty() ? device.socket
                                                        : fmt::format("fd {}", device.fd);
    if (!sources.insert(source).second)
      return ConfigFailure(fmt::format("devices[{}]: {} is given twice", i, source),
                           "give it once");
  }
  if (!config.devices.empty() && config.transport != Transport::kPci) {
    return ConfigFailure("devices: a guest without PCI cannot have them", "use --transport pci");
  }
  if (!config.devices.empty() && config.memory.mergeable) {
    return ConfigFailure("memory.mergeable: pages that a device writes to cannot be merged",
                         "leave out mergeable, or the devices");
  }
  return {};
}

}  // namespace

std::optional<std::array<std::uint8_t, 6>> ParseMac(std::string_view text) {
  std::array<std::uint8_t, 6> mac{};
  if (text.size() != 17) return std::nullopt;
  for (std::size_t i = 0; i < mac.size(); ++i) {
    const int high = HexDigit(text[3 * i]);
    const int low = HexDigit(text[3 * i + 1]);
    if (high < 0 || low < 0 || (i < 5 && text[3 * i + 2] != ':')) return std::nullopt;
    mac[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  // IEEE 802: bit 0 of the first byte marks a group.
  if ((mac[0] & 1) != 0 || mac == std::array<std::uint8_t, 6>{}) return std::nullopt;
  return mac;
}

Outcome<void> Validate(const Config& config) {
  if (config.cpus < 1 || config.cpus > x86_64::kMaxCpus) {
    return ConfigFailure(fmt::format("cpus: {} is outside 1 .. {}", config.cpus, x86_64::kMaxCpus),
                         "choose a number in that range");
  }
  if (Outcome<void> r = ValidateMemory(config.memory); !r) return r;
  if (config.kernel.empty() && !config.initrd.empty()) {
    return ConfigFailure("initrd: the built-in guest takes none",
                         "give a kernel too, or leave out the initrd");
  }
  std::set<std::string> ids;
  if (Outcome<void> r = ValidateIds(config.disks, "disks", ids); !r) return r;
  if (Outcome<void> r = ValidateIds(config.nets, "nets", ids); !r) return r;
  for (std::size_t i = 0; i < config.disks.size(); ++i) {
    if (Outcome<void> r = ValidateDisk(config.disks[i], fmt::format("disks[{}]", i)); !r) return r;
  }
  for (std::size_t i = 0; i < config.nets.size(); ++i) {
    const NetConfig& net = config.nets[i];
    if (net.tap.empty() == (net.fd < 0)) {
      return ConfigFailure(
          fmt::format("nets[{}]: needs a TAP interface by name or by descriptor, and one of them",
                      i),
          "give tap=NAME or fd=N");
    }
    if (!net.mac.empty() && !ParseMac(net.mac).has_value()) {
      return ConfigFailure(fmt::format("nets[{}].mac: '{}' is no interface's address", i, net.mac),
                           "write it as 02:00:00:00:00:01");
    }
    if (net.fd >= 0 && net.queue_pairs != 1) {
      return ConfigFailure(fmt::format("nets[{}].queue_pairs: one descriptor is one queue pair", i),
                           "give the TAP by name");
    }
    if ((net.queue_size & (net.queue_size - 1)) != 0) {
      return ConfigFailure(
          fmt::format("nets[{}].queue_size: {} is no power of two", i, net.queue_size),
          "use 128, 256, ...");
    }
  }
  if (Outcome<void> r = ValidateAssigned(config, ids); !r) return r;
  if (Outcome<void> r = ValidateVdevs(config, ids); !r) return r;
  if (config.console.mode == ConsoleConfig::Mode::kStdio &&
      config.serial.mode == ConsoleConfig::Mode::kStdio) {
    return ConfigFailure("serial: standard input and output already belong to the console",
                         "add --console off, or send one of them elsewhere (--serial file=PATH)");
  }
  const std::size_t devices = config.disks.size() + config.nets.size() + config.devices.size() +
                              config.vdevs.size() + (config.vsock.has_value() ? 1 : 0) +
                              (config.rng ? 1 : 0) +
                              (config.console.mode != ConsoleConfig::Mode::kOff ? 1 : 0);
  const std::size_t most = config.transport == Transport::kPci ? 31 : x86_64::kMaxVirtioMmio;
  if (config.hotplug_ports != 0 && config.transport != Transport::kPci)
    return ConfigFailure("hotplug_ports: only the PCI transport has them",
                         "leave it out, or use --transport pci");
  if (devices + config.hotplug_ports > most && devices <= most) {
    return ConfigFailure(
        fmt::format("hotplug_ports: {} do not fit beside {} devices: the bus has {} slots",
                    config.hotplug_ports, devices, most),
        fmt::format("use at most {}", most - devices));
  }
  if (devices > most) {
    return ConfigFailure(
        fmt::format("{} devices do not fit: this transport has room for {}", devices, most),
        config.transport == Transport::kPci ? "remove some"
                                            : "remove some, or use --transport pci");
  }
  return {};
}

Outcome<void> Validate(const DeviceConfig& device, const std::string& where) {
  if (const auto* const disk = std::get_if<DiskConfig>(&device)) {
    if (Outcome<void> r = ValidateId(disk->id, where); !r) return r;
    return ValidateDisk(*disk, where);
  }
  const auto& assigned = std::get<AssignedConfig>(device);
  if (Outcome<void> r = ValidateId(assigned.id, where); !r) return r;
  return ValidateSource(assigned, where);
}

}  // namespace postern
