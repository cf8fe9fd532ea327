#pragma once

// FakeSysfs: the sysfs (and what of /proc, /dev, /run and /lib/modules goes with it) of a host in a
// temporary folder, and a kernel that reacts when its driver files are written: devices, drivers,
// IOMMU groups, modules.
//
//   FakeSysfs host;
//   host.AddDriver("nvme");
//   host.AddDevice({.bdf = "0000:3b:00.0", .driver = "nvme", .group = 14});
//   host.AddLoadable("vfio_pci", "vfio-pci");
//   vfio::Bind("3b:00.0", {}, host.roots(), host);
//   CHECK(host.Driver("0000:3b:00.0") == "vfio-pci");
//
// Links are relative and shaped like the kernel's. Ownership: the folder goes with the object.
// Threads: one.

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "vfio/sysfs.h"

namespace postern::testing {

class FakeSysfs : public vfio::SysfsWriter {
 public:
  struct Device {
    std::string bdf;
    std::string driver;  // bound to it at first; empty: none
    std::string native;  // the driver whose table it is in; empty: `driver`
    int group = -1;      // -1: none
    std::string class_code = "0x010802";
    std::string modalias = "pci:v00008086d00000A54sv00008086sd00004712bc01sc08i02";
    std::string resource;
    std::string reset_method = "flr bus";
  };

  FakeSysfs();
  ~FakeSysfs() override;
  FakeSysfs(const FakeSysfs&) = delete;
  FakeSysfs& operator=(const FakeSysfs&) = delete;

  [[nodiscard]] const vfio::HostRoots& roots() const { return roots_; }

  // `module` empty: the name with '-' as '_'. built_in: the driver has no module.
  void AddDriver(const std::string& name, std::string module = {}, bool built_in = false);
  // What LoadModule(module) brings; `driver` empty: a module without a PCI driver.
  void AddLoadable(const std::string& module, const std::string& driver);
  // Its driver has to be there. Also a member of its group.
  void AddDevice(const Device& device);
  // A disk, partition ("nvme0n1p1", dev "259:1") or interface in the device's folder.
  void AddBlock(const std::string& bdf, const std::string& name, const std::string& dev);
  void AddNet(const std::string& bdf, const std::string& name, const std::string& operstate);
  // Any file, folders made as needed; `path` starts with a root: roots().sysfs + "/class/iommu/x".
  void Put(const std::string& path, std::string_view text);
  void Link(const std::string& path, const std::string& target);
  void Remove(const std::string& path);

  [[nodiscard]] std::string Folder(const std::string& bdf) const;    // below bus/pci/devices
  [[nodiscard]] std::string Driver(const std::string& bdf) const;    // empty: none
  [[nodiscard]] std::string Override(const std::string& bdf) const;  // "(null)": none
  [[nodiscard]] std::string StateFile(const std::string& bdf) const;
  // A root, a PCI bus and an IOMMU unit without devices are there from the start.

  // The kernel's side.
  [[nodiscard]] Result<void> Write(const std::string& path, std::string_view text) override;
  [[nodiscard]] Outcome<void> LoadModule(const std::string& module) override;

  // What was done: "driver_override vfio-pci", "nvme/unbind 0000:3b:00.0", "modprobe vfio_pci".
  std::vector<std::string> done;
  // Writes to a path that ends with the key fail with this errno, and do nothing.
  std::map<std::string, int> faults;
  // Drivers whose probe fails.
  std::set<std::string> refusing;

 private:
  [[nodiscard]] Result<void> Probe(const std::string& bdf, const std::string& driver);
  [[nodiscard]] bool Matches(const std::string& bdf, const std::string& driver) const;

  std::string root_;
  vfio::HostRoots roots_;
  std::map<std::string, std::string> native_;    // device to driver
  std::map<std::string, std::string> loadable_;  // module to driver
};

}  // namespace postern::testing
