#include "vfio/fake_vfio_kernel.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include <fmt/core.h>

#include "src/base/check.h"

namespace postern::vfio {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t kReadWrite = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
constexpr std::size_t kConfigSize = 4096;
constexpr const char* kDeviceFiles = "/dev/vfio/devices/";

void Touch(const std::string& path) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path).flush();
}

}  // namespace

FakeVfioKernel::FakeVfioKernel() {
  std::string folder = (fs::temp_directory_path() / "postern-vfio-XXXXXX").string();
  CHECK(mkdtemp(folder.data()) != nullptr);
  root_ = folder;
  Touch(dev() + "/vfio/vfio");
  Touch(dev() + "/iommu");
}

FakeVfioKernel::~FakeVfioKernel() {
  std::error_code ignored;
  fs::remove_all(root_, ignored);
}

// --- sysfs ---

void FakeVfioKernel::Link(const std::string& from, const std::string& to) const {
  fs::create_directories(fs::path(from).parent_path());
  fs::create_directories(to);
  fs::remove(from);
  fs::create_directory_symlink(to, from);
}

std::string FakeVfioKernel::Folder(const std::string& name) const {
  return sysfs() + "/devices/pci0000:00/" + name;
}

void FakeVfioKernel::MakeSysfs(const std::string& name, const std::string& bus, unsigned group,
                               const std::string& driver) {
  const std::string folder = Folder(name);
  const std::string groups = fmt::format("{}/kernel/iommu_groups/{}", sysfs(), group);
  fs::create_directories(folder);
  Link(folder + "/subsystem", sysfs() + "/bus/" + bus);
  Link(folder + "/iommu_group", groups);
  Link(sysfs() + "/bus/" + bus + "/devices/" + name, folder);
  Link(groups + "/devices/" + name, folder);
  if (!driver.empty()) {
    Link(folder + "/driver", fmt::format("{}/bus/{}/drivers/{}", sysfs(), bus, driver));
  }
}

FakeVfioDevice& FakeVfioKernel::Add(const std::string& name, unsigned group, const std::string& bus,
                                    const std::string& driver,
                                    const iommu::FakeHardware& hardware) {
  const bool new_group = std::none_of(devices_.begin(), devices_.end(),
                                      [&](const auto& device) { return device->group == group; });
  if (new_group) AddGroup(group, hardware);
  MakeSysfs(name, bus, group, driver);
  auto device = std::make_unique<FakeVfioDevice>();
  device->name = name;
  device->group = group;
  device->file = fmt::format("vfio{}", devices_.size());
  device->hardware = hardware;
  device->flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
  device->regions[kConfigRegion] = {
      .size = kConfigSize, .flags = kReadWrite, .bytes = std::vector<std::byte>(kConfigSize)};
  Touch(fmt::format("{}/vfio-dev/{}/dev", Folder(name), device->file));
  Touch(dev() + "/vfio/devices/" + device->file);
  Touch(fmt::format("{}/vfio/{}", dev(), group));
  devices_.push_back(std::move(device));
  return *devices_.back();
}

FakeVfioDevice& FakeVfioKernel::AddDevice(const std::string& name, unsigned group,
                                          const iommu::FakeHardware& hardware) {
  FakeVfioDevice& device = Add(name, group, "pci", "vfio-pci", hardware);
  constexpr std::size_t kBarSize = 16384;
  device.regions[0] = {.size = kBarSize,
                       .flags = kReadWrite | VFIO_REGION_INFO_FLAG_MMAP,
                       .msix_mappable = true,
                       .bytes = std::vector<std::byte>(kBarSize)};
  constexpr std::uint32_t kEvent = VFIO_IRQ_INFO_EVENTFD;
  device.irqs[kIntxIrq] = {.count = 1,
                           .flags = kEvent | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED};
  device.irqs[kMsiIrq] = {.count = 8, .flags = kEvent | VFIO_IRQ_INFO_NORESIZE};
  device.irqs[kMsixIrq] = {.count = 16, .flags = kEvent};
  device.irqs[kErrorIrq] = {.count = 1, .flags = kEvent};
  device.irqs[kRequestIrq] = {.count = 1, .flags = kEvent};
  return device;
}

FakeVfioDevice& FakeVfioKernel::AddMediated(const std::string& uuid, unsigned group) {
  FakeVfioDevice& device = Add(uuid, group, "mdev", "mtty", {});
  MakeNoiommu(group);  // the name of every group the kernel makes up
  // As the kernel's sample mtty has it: an odd size, and no answer for what it lacks.
  device.flags = VFIO_DEVICE_FLAGS_PCI;
  device.takes_intx_unmask = false;
  device.regions[kConfigRegion].size = 0xff;
  device.regions[0] = {.size = 8, .flags = kReadWrite, .bytes = std::vector<std::byte>(8)};
  device.irqs[kIntxIrq] = {
      .count = 1,
      .flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED};
  device.irqs[kMsiIrq] = {.count = 1, .flags = VFIO_IRQ_INFO_EVENTFD};
  return device;
}

void FakeVfioKernel::AddStranger(const std::string& name, unsigned group,
                                 const std::string& driver) {
  MakeSysfs(name, "pci", group, driver);
}

void FakeVfioKernel::Bind(const std::string& name, const std::string& driver) {
  fs::remove(Folder(name) + "/driver");
  fs::remove_all(Folder(name) + "/vfio-dev");
  if (!driver.empty()) Link(Folder(name) + "/driver", sysfs() + "/bus/pci/drivers/" + driver);
}

void FakeVfioKernel::RemoveGroupLink(const std::string& name) {
  fs::remove(Folder(name) + "/iommu_group");
}

void FakeVfioKernel::MakeNoiommu(unsigned group) {
  std::ofstream(fmt::format("{}/kernel/iommu_groups/{}/name", sysfs(), group)) << "vfio-noiommu\n";
}

void FakeVfioKernel::RemoveDeviceFiles() {
  fs::remove_all(dev() + "/vfio/devices");
  for (const auto& device : devices_) {
    fs::remove(fmt::format("{}/vfio-dev/{}/dev", Folder(device->name), device->file));
  }
}

// --- KVM ---

Result<void> FakeVfioKernel::Kvm::Add(int fd) {
  kernel.Reap();
  const std::string name = kernel.FileName(fd);
  kernel.Record("KVM add " + name);
  if (error != 0) return SysError("KVM_SET_DEVICE_ATTR VFIO_FILE", std::exchange(error, 0));
  const FileId id = kernel.Identify(fd);
  if (id == 0) return SysError("KVM_SET_DEVICE_ATTR VFIO_FILE", EINVAL);
  if (held.contains(id)) return SysError("KVM_SET_DEVICE_ATTR VFIO_FILE", EEXIST);
  Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  CHECK(copy.valid());
  held[id] = std::move(copy);
  return {};
}

void FakeVfioKernel::Kvm::Remove(int fd) {
  kernel.Reap();
  kernel.Record("KVM remove " + kernel.FileName(fd));
  held.erase(kernel.Identify(fd));
}

std::string FakeVfioKernel::FileName(int fd) {
  if (const std::optional<unsigned> group = GroupOf(fd)) return fmt::format("group {}", *group);
  const MutexLock lock(devices_mutex_);
  const OpenDevice* open = Find(fd);
  return open != nullptr ? open->device->name : "?";
}

// --- files ---

Result<Fd> FakeVfioKernel::Open(const std::string& path, int flags) {
  std::string name = path;
  if (name.starts_with(dev())) name.replace(0, dev().size(), "/dev");
  return FakeIommuKernel::Open(name, flags);
}

Result<Fd> FakeVfioKernel::OpenOther(const std::string& path, int /*flags*/) {
  if (!path.starts_with(kDeviceFiles)) return SysError("open", ENOENT);
  const std::string file = path.substr(std::strlen(kDeviceFiles));
  for (const auto& device : devices_) {
    if (device->file != file) continue;
    Fd fd = TRY(NewFile(path));
    const MutexLock lock(devices_mutex_);
    open_[Identify(fd.get())] = {.device = device.get(), .by_file = true};
    return fd;
  }
  return SysError("open", ENOENT);
}

FakeVfioKernel::OpenDevice* FakeVfioKernel::Find(int fd) {
  const auto found = open_.find(Identify(fd));
  return found == open_.end() ? nullptr : &found->second;
}

bool FakeVfioKernel::GroupBusy(unsigned number) {
  const MutexLock lock(devices_mutex_);
  return std::any_of(open_.begin(), open_.end(), [&](const auto& entry) {
    return !entry.second.by_file && entry.second.device->group == number;
  });
}

void FakeVfioKernel::Closed(FileId file, const std::string& /*name*/) {
  std::string enabled;
  bool attached = false;
  {
    const MutexLock lock(devices_mutex_);
    const auto found = open_.find(file);
    if (found == open_.end()) return;
    for (FakeVfioDevice::Irq& irq : found->second.device->irqs) {
      if (irq.enabled) enabled = found->second.device->name + " closed with interrupts enabled";
      irq.enabled = false;
      irq.events.clear();
    }
    attached = found->second.attached;
    open_.erase(found);
  }
  if (!enabled.empty()) Record(enabled);
  if (attached) DetachDevice(file);
}

int FakeVfioKernel::GetDevice(unsigned group, int fd, const char* name, int& value) {
  if (!HasDomain(group)) return EINVAL;
  for (const auto& device : devices_) {
    if (device->name != name || device->group != group) continue;
    if (device->gone) return ENODEV;
    Result<Fd> file = NewFile("device " + device->name);
    if (!file) return EMFILE;
    open_[Identify(file->get())] = {.device = device.get()};
    Record(fmt::format("{} opened, KVM {}, {} mappings", device->name,
                       kvm_.held.contains(Identify(fd)) ? "knows" : "does not know",
                       MappingsOfGroup(group).size()));
    value = file->release();
    return 0;
  }
  return ENODEV;
}

Result<int> FakeVfioKernel::IoctlOther(int fd, unsigned long request, unsigned long argument,
                                       const char* op) {
  int value = 0;
  int error = ENOTTY;
  const std::optional<unsigned> group = GroupOf(fd);
  const MutexLock lock(devices_mutex_);
  if (group && request == VFIO_GROUP_GET_DEVICE_FD) {
    error = GetDevice(*group, fd, reinterpret_cast<const char*>(argument), value);
  } else if (OpenDevice* open = Find(fd); open != nullptr) {
    error = DeviceIoctl(Identify(fd), *open, fd, request, reinterpret_cast<void*>(argument), value);
  }
  if (error != 0) return SysError(op, error);
  return value;
}

// --- registers ---

std::optional<std::pair<std::size_t, std::uint64_t>> FakeVfioKernel::Locate(
    const FakeVfioDevice& device, std::uint64_t offset, std::size_t length) const {
  for (std::size_t i = 0; i < kRegionCount; ++i) {
    const FakeVfioDevice::Region& region = device.regions[i];
    const std::uint64_t base = region.offset.value_or(std::uint64_t{i} << 40);
    if (offset < base || offset - base > region.size || length > region.size - (offset - base)) {
      continue;
    }
    return std::pair{i, offset - base};
  }
  return std::nullopt;
}

Result<std::size_t> FakeVfioKernel::Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                                         const char* op) {
  const MutexLock lock(devices_mutex_);
  const OpenDevice* open = Find(fd);
  if (open == nullptr) return SysError(op, EINVAL);
  FakeVfioDevice& device = *open->device;
  ++device.reads;
  if (device.gone) return SysError(op, ENODEV);
  const auto place = Locate(device, offset, to.size());
  if (!place) return SysError(op, EINVAL);
  if (place->first != kConfigRegion && device.memory_off) return SysError(op, EIO);
  const std::vector<std::byte>& bytes = device.regions[place->first].bytes;
  const std::size_t count = std::min(to.size(), device.transfer);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t at = place->second + i;
    to[i] = at < bytes.size() ? bytes[at] : std::byte{0};
  }
  return count;
}

Result<std::size_t> FakeVfioKernel::Write(int fd, std::span<const std::byte> from,
                                          std::uint64_t offset, const char* op) {
  const MutexLock lock(devices_mutex_);
  const OpenDevice* open = Find(fd);
  if (open == nullptr) return SysError(op, EINVAL);
  FakeVfioDevice& device = *open->device;
  if (device.gone) return SysError(op, ENODEV);
  const auto place = Locate(device, offset, from.size());
  if (!place) return SysError(op, EINVAL);
  if (place->first != kConfigRegion && device.memory_off) return SysError(op, EIO);
  std::vector<std::byte>& bytes = device.regions[place->first].bytes;
  const std::size_t count = std::min(from.size(), device.transfer);
  for (std::size_t i = 0; i < count && place->second + i < bytes.size(); ++i) {
    bytes[place->second + i] = from[i];
  }
  return count;
}

Result<Mmap> FakeVfioKernel::Map(int fd, std::uint64_t offset, std::size_t size, int prot,
                                 const char* op) {
  const MutexLock lock(devices_mutex_);
  const OpenDevice* open = Find(fd);
  if (open == nullptr) return SysError(op, EINVAL);
  if (open->device->gone) return SysError(op, ENODEV);
  const auto place = Locate(*open->device, offset, size);
  if (!place) return SysError(op, EINVAL);
  const std::uint32_t flags = open->device->regions[place->first].flags;
  const bool allowed = (flags & VFIO_REGION_INFO_FLAG_MMAP) != 0 &&
                       ((prot & PROT_READ) == 0 || (flags & VFIO_REGION_INFO_FLAG_READ) != 0) &&
                       ((prot & PROT_WRITE) == 0 || (flags & VFIO_REGION_INFO_FLAG_WRITE) != 0);
  if (!allowed) return SysError(op, EINVAL);
  Record(fmt::format("{} map region {} {:#x}+{:#x} prot {}", open->device->name, place->first,
                     place->second, size, prot));
  return Mmap::Create(size, prot, MAP_PRIVATE | MAP_NORESERVE);
}

}  // namespace postern::vfio
