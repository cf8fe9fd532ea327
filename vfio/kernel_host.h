#pragma once

// KernelHost: the kernel's VFIO as all devices of a machine share it: containers and groups, or an
// iommufd. Opens a device by its path in sysfs, or by a descriptor passed in.
//
//   KernelHost host(SystemCalls(), &kvm_vfio, "/sys", "/dev",
//                   [&](iommu::AddressSpace& space) { return MapAllRam(space); });
//   auto nvme = host.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.0"});
//   auto vf = host.Open({.fd = 5});                       // a VFIO device file, opened by others
//   auto nic = host.Open({.sysfs = ".../0000:5e:00.0", .fd = 6});  // fd: its group's file
//
// Which way: device file and iommufd where the host has both and this process may open them, else
// group and container; Spec::iommufd forces one. Devices of one group share it. A group that cannot
// share the domain of the others gets a container of its own. Containers stay, with what is mapped,
// after their last device; they are used again.
//
// Is not: a driver binder: it never changes what a device is bound to. Descriptors passed in are
// duplicated: the caller closes its own, or the host does not get the device back.
//
// Ownership: outlives the devices it opened; `files` outlives it. Threads: control thread, which
// also destroys the devices. Source: Linux Documentation/driver-api/vfio.rst.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "iommu/address_space.h"
#include "iommu/ioas.h"
#include "iommu/type1.h"
#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/bus/vfio_files.h"
#include "vfio/group.h"
#include "vfio/host_device.h"
#include "vfio/pasid_device.h"
#include "vfio/sysfs_device.h"

namespace postern::vfio {

class Attachment;

class KernelHost {
 public:
  struct Spec {
    enum class Iommufd : std::uint8_t { kAuto, kOn, kOff };
    std::string sysfs;  // "/sys/bus/pci/devices/0000:3b:00.0", or an mdev's path; or empty
    int fd = -1;        // a VFIO device file; or the device's group, with `sysfs`
    Iommufd iommufd = Iommufd::kAuto;
    int iommufd_fd = -1;  // an iommufd to use instead of opening one
  };
  // Called with each new address space once its first device is attached, before that device is
  // opened or handed out: maps guest memory. After an error nothing of it stays mapped, and it is
  // called again with the next device.
  using Fill = std::function<Outcome<void>(iommu::AddressSpace&)>;

  // `files`: null without KVM.
  KernelHost(KernelCalls& calls, bus::VfioFiles* files, std::string sysfs_root = "/sys",
             std::string dev_root = "/dev", Fill fill = {});
  ~KernelHost();
  KernelHost(const KernelHost&) = delete;
  KernelHost& operator=(const KernelHost&) = delete;

  [[nodiscard]] Outcome<std::unique_ptr<HostDevice>> Open(const Spec& spec);

  // A device for several guests of this process: each has an address space of its own, reached by a
  // PASID. What the device's address_space() maps is nobody's and stays empty: `fill` is not
  // called.
  struct Shared {
    std::unique_ptr<HostDevice> device;
    PasidDevice* pasids = nullptr;  // goes with the device
  };
  // Needs a device file and an iommufd; the failure says so where the host's kernel has no PASIDs.
  [[nodiscard]] Outcome<Shared> OpenShared(const Spec& spec);

  // How many address spaces there are.
  [[nodiscard]] std::size_t spaces() const { return containers_.size() + ioases_.size(); }

 private:
  class GroupAttachment;
  class FileAttachment;
  class PasidAttachment;
  struct Container {
    std::unique_ptr<iommu::Type1Container> space;
    bool filled = false;
  };
  struct IoasEntry {
    int given = -1;  // the number of the iommufd passed in; -1: opened here
    std::unique_ptr<iommu::Ioas> space;
    bool filled = false;
  };
  // What a Spec names.
  struct Target {
    std::string name;                    // for people and, of a group's device, for the kernel
    std::string key;                     // equal for one device
    std::unique_ptr<SysfsDevice> sysfs;  // null: known by its descriptor alone
    Fd file;                             // a device file passed in
    int group_fd = -1;                   // a group passed in
  };

  // Not one that is open here already.
  [[nodiscard]] Outcome<Target> ResolveFree(const Spec& spec) const;
  [[nodiscard]] Outcome<Target> Resolve(const Spec& spec) const;
  [[nodiscard]] Outcome<void> ResolveFd(const Spec& spec, Target& target) const;
  [[nodiscard]] Outcome<void> NameFile(const Spec& spec, Target& target) const;
  [[nodiscard]] Outcome<bool> UseIommufd(const Spec& spec, const Target& target) const;

  [[nodiscard]] Outcome<std::unique_ptr<HostDevice>> OpenByGroup(Target& target);
  [[nodiscard]] Outcome<Group*> JoinGroup(const Target& target);
  [[nodiscard]] Outcome<void> PlaceGroup(Group& group, const std::string& name);
  void LeaveGroup(Group& group);

  [[nodiscard]] Outcome<std::unique_ptr<HostDevice>> OpenByFile(const Spec& spec, Target& target);
  [[nodiscard]] Outcome<Fd> OpenFile(Target& target);
  // given: the number of the iommufd passed in, or -1.
  [[nodiscard]] Outcome<Fd> OpenIommufd(int given, const std::string& user) const;
  [[nodiscard]] Outcome<IoasEntry*> FindIoas(int given);
  [[nodiscard]] Outcome<void> Announce(int file, const std::string& name, bool& announced);
  [[nodiscard]] Outcome<void> BindFile(int file, const std::string& name, IoasEntry& ioas,
                                       FileAttachment& attachment);

  [[nodiscard]] Outcome<void> FillOnce(iommu::AddressSpace& space, bool& filled);
  [[nodiscard]] Outcome<std::unique_ptr<HostDevice>> Finish(Fd device, const Target& target,
                                                            std::unique_ptr<Attachment> attachment);

  KernelCalls& calls_;
  bus::VfioFiles* files_;
  std::string sysfs_root_;
  std::string dev_root_;
  Fill fill_;
  std::vector<std::unique_ptr<Container>> containers_;
  std::vector<std::unique_ptr<IoasEntry>> ioases_;
  std::vector<std::unique_ptr<Group>> groups_;  // after the containers: gone before them
  std::vector<std::string> open_;               // keys of the devices handed out
};

}  // namespace postern::vfio
