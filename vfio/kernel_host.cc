#include "vfio/kernel_host.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/core.h>

#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "vfio/explain.h"
#include "vfio/ioctls.h"
#include "vfio/kernel_device.h"

namespace postern::vfio {
namespace {

constexpr std::string_view kSystemSysfs = "/sys/";

bool MayUse(const std::string& path) {
  return access(path.c_str(), R_OK | W_OK) == 0;
}

tl::unexpected<Failure> Pass(Failure failure) {
  return tl::unexpected<Failure>(std::move(failure));
}

}  // namespace

// A device of a group: closed before the group is left.
class KernelHost::GroupAttachment final : public Attachment {
 public:
  GroupAttachment(KernelHost& host, Group& group, std::string key)
      : host_(host), group_(group), key_(std::move(key)) {}
  [[nodiscard]] iommu::AddressSpace& address_space() override { return *group_.container(); }
  void Release(Fd device) override {
    device.Close();
    std::erase(host_.open_, key_);
    host_.LeaveGroup(group_);
  }

 private:
  KernelHost& host_;
  Group& group_;
  std::string key_;
};

// A device file: off its page table, forgotten by KVM (which holds the file open), closed.
class KernelHost::FileAttachment final : public Attachment {
 public:
  FileAttachment(KernelHost& host, iommu::Ioas& ioas, std::string key)
      : host_(host), ioas_(ioas), key_(std::move(key)) {}
  [[nodiscard]] iommu::AddressSpace& address_space() override { return ioas_; }
  void Release(Fd device) override {
    if (attached) {
      const Result<void> detached = DetachIoas(host_.calls_, device.get());
      // Closing detaches as well.
      if (!detached) LOG_DEBUG("vfio", "{}: {}", key_, Describe(detached.error()));
      // What this device alone could not reach is free again.
      const Result<void> ranges = ioas_.Attached();
      if (!ranges) LOG_WARN("vfio", "{}: {}", key_, Describe(ranges.error()));
    }
    if (announced) host_.files_->Remove(device.get());
    device.Close();
    std::erase(host_.open_, key_);
  }
  bool announced = false;
  bool attached = false;

 private:
  KernelHost& host_;
  iommu::Ioas& ioas_;
  std::string key_;
};

// A device file with a page table for each PASID. The descriptor here is a second one of it.
class KernelHost::PasidAttachment final : public Attachment {
 public:
  PasidAttachment(KernelHost& host, std::unique_ptr<PasidDevice> pasids, std::string key)
      : host_(host), pasids_(std::move(pasids)), key_(std::move(key)) {}
  [[nodiscard]] iommu::AddressSpace& address_space() override { return pasids_->nothing(); }
  void Release(Fd device) override {
    device.Close();
    if (announced) host_.files_->Remove(pasids_->file());
    pasids_.reset();
    std::erase(host_.open_, key_);
  }
  [[nodiscard]] PasidDevice* pasids() { return pasids_.get(); }
  bool announced = false;

 private:
  KernelHost& host_;
  std::unique_ptr<PasidDevice> pasids_;
  std::string key_;
};

KernelHost::KernelHost(KernelCalls& calls, bus::VfioFiles* files, std::string sysfs_root,
                       std::string dev_root, Fill fill)
    : calls_(calls),
      files_(files),
      sysfs_root_(std::move(sysfs_root)),
      dev_root_(std::move(dev_root)),
      fill_(std::move(fill)) {}

KernelHost::~KernelHost() {
  // A device left over would come back here when it goes.
  CHECK(open_.empty());
}

Outcome<KernelHost::Target> KernelHost::ResolveFree(const Spec& spec) const {
  Outcome<Target> target = Resolve(spec);
  if (target && std::find(open_.begin(), open_.end(), target->key) != open_.end()) {
    return ConfigFailure(
        fmt::format("{} is assigned to this machine already", Escaped(target->name)),
        "name each device once");
  }
  return target;
}

Outcome<std::unique_ptr<HostDevice>> KernelHost::Open(const Spec& spec) {
  Outcome<Target> target = ResolveFree(spec);
  if (!target) return Pass(target.error());
  const Outcome<bool> iommufd = UseIommufd(spec, *target);
  if (!iommufd) return Pass(iommufd.error());
  return *iommufd ? OpenByFile(spec, *target) : OpenByGroup(*target);
}

// --- what is meant, and which way to go ---

Outcome<KernelHost::Target> KernelHost::Resolve(const Spec& spec) const {
  Target target;
  if (!spec.sysfs.empty()) {
    std::string path = spec.sysfs;
    // Elsewhere in tests and jails.
    if (path.starts_with(kSystemSysfs)) path.replace(0, kSystemSysfs.size() - 1, sysfs_root_);
    Outcome<SysfsDevice> found = FindSysfsDevice(path);
    if (!found) return Pass(found.error());
    target.sysfs = std::make_unique<SysfsDevice>(std::move(*found));
  } else if (spec.fd < 0) {
    return ConfigFailure("no device named", "give its address, its path in sysfs or a descriptor");
  }
  if (spec.fd >= 0) {
    const Outcome<void> resolved = ResolveFd(spec, target);
    if (!resolved) return Pass(resolved.error());
  }
  if (target.sysfs != nullptr) {
    target.name = target.sysfs->name;
    target.key = target.sysfs->path;
  } else {
    target.name = target.key = fmt::format("the device of descriptor {}", spec.fd);
  }
  return target;
}

Outcome<void> KernelHost::ResolveFd(const Spec& spec, Target& target) const {
  Outcome<Fd> copy = DuplicateGiven(spec.fd);
  if (!copy) return Pass(copy.error());
  const std::string what = fmt::format("descriptor {}", spec.fd);
  const std::string wanted =
      "pass a VFIO device file (/dev/vfio/devices/vfioN), or the device's "
      "group (/dev/vfio/N) together with its path";
  switch (ProbeFile(calls_, copy->get())) {
    case FileKind::kGroup:
      if (target.sysfs == nullptr) {
        return ConfigFailure(what + " is a VFIO group: which of its devices is not said",
                             "give the device's path in sysfs as well");
      }
      // Duplicated again when it is needed: its group may be open already.
      target.group_fd = spec.fd;
      return {};
    case FileKind::kUnboundDevice:
      target.file = std::move(*copy);
      return NameFile(spec, target);
    case FileKind::kOpenDevice:
      return ConfigFailure(what + " is a VFIO device that is open or bound already", wanted);
    case FileKind::kContainer:
      return ConfigFailure(what + " is a VFIO container or an iommufd, not a device", wanted);
    case FileKind::kOther:
      break;
  }
  return ConfigFailure(what + " is not a VFIO file", wanted);
}

// The device of a device file, where sysfs tells; it must be the one asked for, if one was.
Outcome<void> KernelHost::NameFile(const Spec& spec, Target& target) const {
  Outcome<SysfsDevice> found = FindDeviceOfFile(target.file.get(), sysfs_root_);
  if (!found) return {};
  if (target.sysfs != nullptr && target.sysfs->path != found->path) {
    return ConfigFailure(fmt::format("descriptor {} is the device file of {}, not of {}", spec.fd,
                                     Escaped(found->name), Escaped(target.sysfs->name)),
                         "pass the device's own file, or leave out the path");
  }
  target.sysfs = std::make_unique<SysfsDevice>(std::move(*found));
  return {};
}

Outcome<bool> KernelHost::UseIommufd(const Spec& spec, const Target& target) const {
  const bool forced = spec.iommufd == Spec::Iommufd::kOn || spec.iommufd_fd >= 0;
  if (spec.iommufd == Spec::Iommufd::kOff && (target.file.valid() || spec.iommufd_fd >= 0)) {
    return ConfigFailure(
        fmt::format("{}: a device file or an iommufd was passed in, and iommufd is off",
                    Escaped(target.name)),
        "leave out iommufd=off, or pass the device's group");
  }
  if (target.file.valid()) return true;
  if (target.group_fd >= 0) {
    if (!forced) return false;
    return ConfigFailure(
        fmt::format("{}: a group cannot be used with an iommufd", Escaped(target.name)),
        "pass the device's own file (/dev/vfio/devices/vfioN)");
  }
  if (spec.iommufd == Spec::Iommufd::kOff) return false;
  const SysfsDevice& device = *target.sysfs;
  const bool group_open = std::any_of(groups_.begin(), groups_.end(), [&](const auto& group) {
    return device.group == group->number();
  });
  // The kernel lets a group be used one way at a time.
  if (!forced && group_open) return false;
  const std::string file = fmt::format("{}/vfio/devices/{}", dev_root_, device.cdev);
  const bool has_file = !device.cdev.empty() && MayUse(file);
  const bool has_iommufd = spec.iommufd_fd >= 0 || MayUse(dev_root_ + "/iommu");
  if (!forced) return has_file && has_iommufd;
  if (!device.vfio_bound()) return NotBound(device);
  if (device.cdev.empty() || access(file.c_str(), F_OK) != 0) {
    return HostFailure(fmt::format("{} has no device file: the host's kernel is without them",
                                   Escaped(device.name)),
                       "leave out iommufd=on or say iommufd=off; device files come with "
                       "CONFIG_VFIO_DEVICE_CDEV of Linux 6.6");
  }
  return true;
}

// --- group and container ---

Outcome<std::unique_ptr<HostDevice>> KernelHost::OpenByGroup(Target& target) {
  const Outcome<Group*> group = JoinGroup(target);
  if (!group) return Pass(group.error());
  auto attachment = std::make_unique<GroupAttachment>(*this, **group, target.key);
  ++(*group)->users;
  Result<Fd> device = (*group)->OpenDevice(target.name);
  if (!device) {
    attachment->Release(Fd());
    return ExplainDevice(target.name, device.error());
  }
  return Finish(std::move(*device), target, std::move(attachment));
}

// The group with its memory mapped and known to KVM: a device of it may be opened.
Outcome<Group*> KernelHost::JoinGroup(const Target& target) {
  for (const std::unique_ptr<Group>& group : groups_) {
    if (target.sysfs->group == group->number()) return group.get();
  }
  Outcome<std::unique_ptr<Group>> group =
      Group::Open(calls_, *target.sysfs, dev_root_, target.group_fd);
  if (!group) return Pass(group.error());
  const Outcome<void> placed = PlaceGroup(**group, target.name);
  if (!placed) return Pass(placed.error());
  const Result<void> announced = (*group)->Announce(files_);
  if (!announced) {
    return HostFailure(fmt::format("KVM does not take {}", Escaped(target.name)),
                       announced.error());
  }
  groups_.push_back(std::move(*group));
  return groups_.back().get();
}

// Into a container that takes it, or a new one.
Outcome<void> KernelHost::PlaceGroup(Group& group, const std::string& name) {
  for (const std::unique_ptr<Container>& container : containers_) {
    const Result<void> attached = group.Attach(*container->space);
    if (attached) return FillOnce(*container->space, container->filled);
    if (attached.error().code != Errc::kUnsupported) return ExplainAttach(name, attached.error());
  }
  Result<std::unique_ptr<iommu::Type1Container>> opened = iommu::Type1Container::Open(calls_);
  if (!opened) return ExplainOpen("/dev/vfio/vfio", name, opened.error());
  const Result<void> attached = group.Attach(**opened);
  if (!attached) return ExplainAttach(name, attached.error());
  containers_.push_back(
      std::make_unique<Container>(Container{.space = std::move(*opened), .filled = false}));
  return FillOnce(*containers_.back()->space, containers_.back()->filled);
}

void KernelHost::LeaveGroup(Group& group) {
  if (--group.users > 0) return;
  std::erase_if(groups_, [&](const auto& held) { return held.get() == &group; });
}

// --- device file and iommufd ---

Outcome<std::unique_ptr<HostDevice>> KernelHost::OpenByFile(const Spec& spec, Target& target) {
  const Outcome<IoasEntry*> ioas = FindIoas(spec.iommufd_fd);
  if (!ioas) return Pass(ioas.error());
  Outcome<Fd> file = OpenFile(target);
  if (!file) return Pass(file.error());
  auto attachment = std::make_unique<FileAttachment>(*this, *(*ioas)->space, target.key);
  const Outcome<void> bound = BindFile(file->get(), target.name, **ioas, *attachment);
  if (!bound) {
    attachment->Release(std::move(*file));
    return Pass(bound.error());
  }
  return Finish(std::move(*file), target, std::move(attachment));
}

Outcome<Fd> KernelHost::OpenFile(Target& target) {
  if (target.file.valid()) return std::move(target.file);
  const std::string path = fmt::format("{}/vfio/devices/{}", dev_root_, target.sysfs->cdev);
  Result<Fd> opened = calls_.Open(path, O_RDWR);
  if (!opened) return ExplainOpen(path, target.name, opened.error());
  return std::move(*opened);
}

Outcome<Fd> KernelHost::OpenIommufd(int given, const std::string& user) const {
  if (given >= 0) return DuplicateGiven(given);
  const std::string path = dev_root_ + "/iommu";
  Result<Fd> opened = calls_.Open(path, O_RDWR);
  if (!opened) return ExplainOpen(path, user, opened.error());
  return std::move(*opened);
}

// KVM first: the kernel looks for its virtual machine while it binds.
Outcome<void> KernelHost::Announce(int file, const std::string& name, bool& announced) {
  if (files_ == nullptr) return {};
  const Result<void> added = files_->Add(file);
  if (!added) return HostFailure(fmt::format("KVM does not take {}", Escaped(name)), added.error());
  announced = true;
  return {};
}

Outcome<KernelHost::Shared> KernelHost::OpenShared(const Spec& spec) {
  Outcome<Target> target = ResolveFree(spec);
  if (!target) return Pass(target.error());
  const std::string name = Escaped(target->name);
  if (target->group_fd >= 0 || spec.iommufd == Spec::Iommufd::kOff) {
    return ConfigFailure(fmt::format("{}: sharing a device needs its file and an iommufd", name),
                         "pass the device's own file (/dev/vfio/devices/vfioN), not its group");
  }
  Spec forced = spec;
  forced.iommufd = Spec::Iommufd::kOn;
  if (const Outcome<bool> usable = UseIommufd(forced, *target); !usable)
    return Pass(usable.error());
  Outcome<Fd> iommufd = OpenIommufd(spec.iommufd_fd, name);
  if (!iommufd) return Pass(iommufd.error());
  Outcome<Fd> file = OpenFile(*target);
  if (!file) return Pass(file.error());
  Outcome<Fd> second = DuplicateGiven(file->get());
  if (!second) return Pass(second.error());
  bool announced = false;
  if (const Outcome<void> done = Announce(file->get(), target->name, announced); !done)
    return Pass(done.error());
  Result<std::unique_ptr<PasidDevice>> pasids =
      PasidDevice::Open(calls_, std::move(*file), std::move(*iommufd));
  if (!pasids) {
    if (announced) files_->Remove(second->get());
    if (pasids.error().code != Errc::kUnsupported)
      return ExplainDevice(target->name, pasids.error());
    return HostFailure(fmt::format("{} cannot be shared", name), pasids.error(),
                       "give it to one guest alone");
  }
  auto attachment = std::make_unique<PasidAttachment>(*this, std::move(*pasids), target->key);
  attachment->announced = announced;
  PasidDevice* const shared = attachment->pasids();
  Outcome<std::unique_ptr<HostDevice>> device =
      Finish(std::move(*second), *target, std::move(attachment));
  if (!device) return Pass(device.error());
  return Shared{.device = std::move(*device), .pasids = shared};
}

Outcome<KernelHost::IoasEntry*> KernelHost::FindIoas(int given) {
  for (const std::unique_ptr<IoasEntry>& entry : ioases_) {
    if (entry->given == given) return entry.get();
  }
  Outcome<Fd> iommufd = OpenIommufd(given, "the devices");
  if (!iommufd) return Pass(iommufd.error());
  Result<std::unique_ptr<iommu::Ioas>> opened = iommu::Ioas::Open(calls_, std::move(*iommufd));
  if (!opened) {
    if (given < 0) return ExplainOpen("/dev/iommu", "the devices", opened.error());
    return ConfigFailure(
        fmt::format("descriptor {} is no iommufd: {}", given, Describe(opened.error())),
        "pass an open /dev/iommu");
  }
  ioases_.push_back(std::make_unique<IoasEntry>(
      IoasEntry{.given = given, .space = std::move(*opened), .filled = false}));
  return ioases_.back().get();
}

Outcome<void> KernelHost::BindFile(int file, const std::string& name, IoasEntry& ioas,
                                   FileAttachment& attachment) {
  if (Outcome<void> done = Announce(file, name, attachment.announced); !done) return done;
  const Result<void> bound =
      RetryWhileBusy([&] { return BindIommufd(calls_, file, ioas.space->iommufd()); });
  if (!bound) return ExplainDevice(name, bound.error());
  const Result<void> attached = AttachIoas(calls_, file, ioas.space->id());
  if (!attached) return ExplainAttach(name, attached.error());
  attachment.attached = true;
  const Result<void> fits = ioas.space->Attached();
  if (!fits) return ExplainAttach(name, fits.error());
  return FillOnce(*ioas.space, ioas.filled);
}

// --- both ---

Outcome<void> KernelHost::FillOnce(iommu::AddressSpace& space, bool& filled) {
  if (filled) return {};
  if (fill_) {
    Outcome<void> done = fill_(space);
    if (!done) return done;
  }
  filled = true;
  return {};
}

Outcome<std::unique_ptr<HostDevice>> KernelHost::Finish(Fd device, const Target& target,
                                                        std::unique_ptr<Attachment> attachment) {
  open_.push_back(target.key);
  const std::string_view space = attachment->address_space().name();
  Result<std::unique_ptr<KernelDevice>> made =
      KernelDevice::Create(calls_, std::move(device), target.name, std::move(attachment));
  if (!made) {
    return HostFailure(fmt::format("cannot use {}", Escaped(target.name)), made.error(),
                       "this device, or its driver, is not one Postern can assign");
  }
  LOG_INFO("vfio", "{}: opened, address space {}", target.name, space);
  return std::move(*made);
}

}  // namespace postern::vfio
