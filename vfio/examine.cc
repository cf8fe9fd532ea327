// Examine: from what sysfs says to what a person has to do.

#include <unistd.h>

#include <fmt/format.h>

#include "src/base/text.h"
#include "vfio/host_pci.h"

namespace postern::vfio {
namespace {

void Block(std::vector<Finding>& findings, std::string cause, std::string next_step) {
  findings.push_back({true, std::move(cause), std::move(next_step)});
}
void Remark(std::vector<Finding>& findings, std::string cause, std::string next_step = {}) {
  findings.push_back({false, std::move(cause), std::move(next_step)});
}

void ExamineIommu(const HostPciDevice& device, std::vector<Finding>& findings) {
  if (!device.iommu.present()) {
    Block(findings, "the host has no IOMMU, or it is off",
          "switch VT-d or AMD-Vi on in the firmware; on Intel boot the host with intel_iommu=on");
  } else if (device.noiommu) {
    Block(findings,
          fmt::format("group {} is one without an IOMMU (enable_unsafe_noiommu_mode): the device "
                      "could read and write all memory of the host",
                      device.group.value_or(0)),
          "use a device behind an IOMMU");
  } else if (!device.group) {
    Block(findings, "the device is in no IOMMU group: its DMA is not translated",
          "move it to a slot behind the IOMMU; the firmware may exempt it");
  }
  if (device.iommu.present() && device.iommu.remapping == HostIommu::Remapping::kOff &&
      device.iommu.type1_allows_unsafe != true && device.iommu.iommufd_allows_unsafe != true) {
    Block(findings, "interrupt remapping is off: a guest could send any interrupt to the host",
          "switch it on in the firmware (x2APIC or interrupt remapping); or, if you trust the "
          "guest, load vfio_iommu_type1 with allow_unsafe_interrupts=1");
  }
}

void ExamineDriver(const HostPciDevice& device, std::vector<Finding>& findings) {
  if (IsBridgeClass(device.class_code)) {
    Block(findings, "it is a bridge: the host needs it to reach other devices",
          "assign the devices behind it");
    return;
  }
  if (device.use == DriverUse::kVfio) return;
  Block(findings,
        device.driver.empty() ? std::string("it has no driver; VFIO needs one of its own")
                              : fmt::format("it is bound to '{}'", Escaped(device.driver, 64)),
        fmt::format("postern bind {}", device.name));
}

void ExaminePeers(const HostPciDevice& device, std::vector<Finding>& findings) {
  std::string names;
  std::string addresses;
  for (const GroupMember& peer : Blockers(device)) {
    names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", Escaped(peer.name, 64),
                         Escaped(peer.driver, 64));
    addresses += fmt::format(" {}", Escaped(peer.name, 64));
  }
  if (names.empty()) return;
  Block(findings,
        fmt::format("the host uses other members of IOMMU group {}: {}", device.group.value_or(0),
                    names),
        fmt::format("postern bind{}; or move the device to a slot with a group of its own",
                    addresses));
}

// The node that a machine opens exists only once the device is bound.
void ExamineNode(const HostPciDevice& device, const HostRoots& roots,
                 std::vector<Finding>& findings) {
  if (device.use != DriverUse::kVfio || !device.group) return;
  const std::string group = fmt::format("{}/vfio/{}", roots.dev, *device.group);
  const std::string cdev = fmt::format("{}/vfio/devices/{}", roots.dev, device.cdev);
  const bool has_cdev = !device.cdev.empty() && Exists(cdev);
  if (!has_cdev && !Exists(group)) {
    Block(findings, fmt::format("there is no {}", group),
          "modprobe vfio-pci; in a container, pass the node in");
    return;
  }
  if (access(group.c_str(), R_OK | W_OK) == 0) return;
  if (has_cdev && access(cdev.c_str(), R_OK | W_OK) == 0) return;
  Block(findings,
        fmt::format("this user may not open {}", has_cdev && !Exists(group) ? cdev : group),
        "run as root, or give the node to the user who runs Postern (chown, or a udev rule)");
}

void ExamineRest(const HostPciDevice& device, std::vector<Finding>& findings) {
  if (device.reset_methods ? device.reset_methods->empty() : !device.can_reset) {
    Remark(findings,
           "the kernel knows no way to reset it: a guest finds it as the last one left it");
  }
  if (device.num_vfs.value_or(0) != 0) {
    Remark(findings, fmt::format("{} of its virtual functions are enabled", *device.num_vfs),
           "assign one of these instead, or switch them off first: echo 0 > sriov_numvfs");
  }
  for (const HostBar& bar : device.bars) {
    if (bar.assigned || bar.index == kRomIndex) continue;
    Remark(findings, fmt::format("the host found no room for BAR {}", bar.index),
           "enable 64-bit BARs (\"above 4G decoding\") in the firmware");
  }
}

}  // namespace

std::vector<Finding> Examine(const HostPciDevice& device, const HostRoots& roots) {
  std::vector<Finding> findings;
  ExamineIommu(device, findings);
  ExamineDriver(device, findings);
  ExaminePeers(device, findings);
  ExamineNode(device, roots, findings);
  ExamineRest(device, findings);
  return findings;
}

}  // namespace postern::vfio
