// The ioctls of FakeVfioKernel's devices.

#include <linux/vfio.h>

#include <algorithm>
#include <cstring>

#include <fmt/core.h>

#include "vfio/fake_vfio_kernel.h"

namespace postern::vfio {
namespace {

template <typename T>
T Load(const void* from, std::size_t bytes = sizeof(T)) {
  T value{};
  std::memcpy(&value, from, bytes);
  return value;
}

template <typename T>
void Append(std::vector<std::byte>& to, const T& value) {
  const std::size_t at = to.size();
  to.resize(at + sizeof(T));
  std::memcpy(to.data() + at, &value, sizeof(T));
}

constexpr std::size_t kRegionInfo = sizeof(vfio_region_info);

std::vector<std::byte> Capabilities(const FakeVfioDevice::Region& region) {
  std::vector<std::byte> bytes;
  if (region.sparse) {
    const std::size_t size = sizeof(vfio_info_cap_header) + 8 +
                             region.sparse->size() * sizeof(vfio_region_sparse_mmap_area);
    const auto next = static_cast<std::uint32_t>(region.msix_mappable ? kRegionInfo + size : 0);
    Append(bytes, vfio_info_cap_header{
                      .id = VFIO_REGION_INFO_CAP_SPARSE_MMAP, .version = 1, .next = next});
    Append(bytes, static_cast<std::uint32_t>(region.sparse->size()));
    Append(bytes, std::uint32_t{0});
    for (const MapArea& area : *region.sparse) {
      Append(bytes, vfio_region_sparse_mmap_area{.offset = area.offset, .size = area.length});
    }
  }
  if (region.msix_mappable) {
    Append(bytes,
           vfio_info_cap_header{.id = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, .version = 1, .next = 0});
  }
  return bytes;
}

const char* ActionName(std::uint32_t flags) {
  if ((flags & VFIO_IRQ_SET_ACTION_MASK) != 0) return "mask";
  return (flags & VFIO_IRQ_SET_ACTION_UNMASK) != 0 ? "unmask" : "trigger";
}

bool IsMsi(std::uint32_t index) {
  return index == kMsiIrq || index == kMsixIrq;
}

}  // namespace

int FakeVfioKernel::DeviceIoctl(FileId file, OpenDevice& open, int fd, unsigned long request,
                                void* argument, int& value) {
  FakeVfioDevice& device = *open.device;
  if (device.gone) return ENODEV;
  if (request == VFIO_DEVICE_BIND_IOMMUFD) return Bind(open, fd, argument);
  if (open.by_file && open.iommufd < 0) return EINVAL;
  switch (request) {
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
      return Attach(file, open, argument);
    case VFIO_DEVICE_DETACH_IOMMUFD_PT:
      if (!open.by_file) return ENOTTY;
      if (open.attached) DetachDevice(file);
      open.attached = false;
      return 0;
    case VFIO_DEVICE_GET_INFO: {
      constexpr std::size_t kMinimum = 16;
      auto info = Load<vfio_device_info>(argument, kMinimum);
      if (info.argsz < kMinimum) return EINVAL;
      info.flags = device.flags;
      info.num_regions = device.region_count;
      info.num_irqs = device.irq_count;
      std::memcpy(argument, &info, kMinimum);
      return 0;
    }
    case VFIO_DEVICE_GET_REGION_INFO:
      return RegionInfoOf(device, argument);
    case VFIO_DEVICE_GET_IRQ_INFO:
      return IrqInfoOf(device, argument);
    case VFIO_DEVICE_SET_IRQS:
      return SetIrqs(device, argument, value);
    case VFIO_DEVICE_RESET:
      if ((device.flags & VFIO_DEVICE_FLAGS_RESET) == 0) return EINVAL;
      ++device.resets;
      return 0;
    default:
      return ENOTTY;
  }
}

int FakeVfioKernel::Bind(OpenDevice& open, int fd, void* argument) {
  auto bind = Load<vfio_device_bind_iommufd>(argument);
  if (!open.by_file) return EINVAL;
  if (bind.argsz < sizeof(bind) || bind.flags != 0) return EINVAL;
  if (open.iommufd >= 0) return EINVAL;
  for (const auto& [id, other] : open_) {
    if (!other.by_file && other.device->group == open.device->group) return EBUSY;
    if (other.device == open.device && other.iommufd >= 0) return EINVAL;
  }
  if (!IsIommufd(bind.iommufd)) return EBADFD;
  open.iommufd = bind.iommufd;
  bind.out_devid = 1;
  std::memcpy(argument, &bind, sizeof(bind));
  Record(fmt::format("{} bound, KVM {}", open.device->name,
                     kvm_.held.contains(Identify(fd)) ? "knows" : "does not know"));
  return 0;
}

int FakeVfioKernel::Attach(FileId file, OpenDevice& open, void* argument) {
  const auto attach = Load<vfio_device_attach_iommufd_pt>(argument);
  if (!open.by_file) return ENOTTY;
  if (attach.argsz < sizeof(attach) || attach.flags != 0) return EINVAL;
  const Result<void> done = AttachDevice(open.iommufd, attach.pt_id, file, open.device->hardware);
  if (!done) return done.error().sys_errno;
  open.attached = true;
  return 0;
}

int FakeVfioKernel::RegionInfoOf(const FakeVfioDevice& device, void* argument) const {
  auto info = Load<vfio_region_info>(argument);
  if (info.argsz < kRegionInfo || info.index >= kRegionCount) return EINVAL;
  const FakeVfioDevice::Region& region = device.regions[info.index];
  if (region.error != 0) return region.error;
  if (!region.raw.empty()) {
    const auto needed = static_cast<std::uint32_t>(region.raw.size());
    std::memcpy(argument, region.raw.data(), std::min<std::size_t>(info.argsz, needed));
    if (info.argsz < needed) std::memcpy(argument, &needed, sizeof(needed));
    return 0;
  }
  const std::vector<std::byte> capabilities = Capabilities(region);
  info.flags = region.flags;
  info.size = region.size;
  info.offset = region.offset.value_or(std::uint64_t{info.index} << 40);
  info.cap_offset = 0;
  if (!capabilities.empty()) {
    info.flags |= VFIO_REGION_INFO_FLAG_CAPS;
    if (info.argsz < kRegionInfo + capabilities.size()) {
      info.argsz = static_cast<std::uint32_t>(kRegionInfo + capabilities.size());
    } else {
      info.cap_offset = kRegionInfo;
      std::memcpy(static_cast<std::byte*>(argument) + kRegionInfo, capabilities.data(),
                  capabilities.size());
    }
  }
  std::memcpy(argument, &info, sizeof(info));
  return 0;
}

int FakeVfioKernel::IrqInfoOf(const FakeVfioDevice& device, void* argument) const {
  auto info = Load<vfio_irq_info>(argument);
  if (info.argsz < sizeof(info) || info.index >= kIrqCount) return EINVAL;
  const FakeVfioDevice::Irq& irq = device.irqs[info.index];
  if (irq.count == 0) return EINVAL;
  info.count = irq.count;
  info.flags = irq.flags;
  std::memcpy(argument, &info, sizeof(info));
  return 0;
}

int FakeVfioKernel::SetIntxMask(FakeVfioDevice& device, std::uint32_t flags, int event) const {
  if (!device.irqs[kIntxIrq].enabled) return EINVAL;
  if ((flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0) {
    if ((flags & VFIO_IRQ_SET_ACTION_MASK) != 0 || !device.takes_intx_unmask) return ENOTTY;
    device.intx_unmask = event;
  } else {
    device.intx_masked = (flags & VFIO_IRQ_SET_ACTION_MASK) != 0;
  }
  return 0;
}

int FakeVfioKernel::SetIrqs(FakeVfioDevice& device, const void* argument, int& value) {
  constexpr std::size_t kHeader = offsetof(vfio_irq_set, data);
  vfio_irq_set set{};
  std::memcpy(&set, argument, kHeader);
  const bool events = (set.flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0;
  Record(fmt::format("{} irqs {} {} {} {}+{}", device.name, set.index, ActionName(set.flags),
                     events ? "eventfd" : "none", set.start, set.count));
  if (set.argsz < kHeader || set.index >= kIrqCount) return EINVAL;
  FakeVfioDevice::Irq& irq = device.irqs[set.index];
  if (set.start >= irq.count || set.count > irq.count - set.start) return EINVAL;
  if (events && (set.count == 0 || set.argsz - kHeader < set.count * sizeof(int))) return EINVAL;
  std::vector<int> fds(events ? set.count : 0);
  if (events) {
    std::memcpy(fds.data(), static_cast<const std::byte*>(argument) + kHeader,
                fds.size() * sizeof(int));
  }
  if ((set.flags & VFIO_IRQ_SET_ACTION_TRIGGER) == 0) {
    if (set.index != kIntxIrq) return ENOTTY;
    if (set.start != 0 || set.count != 1) return EINVAL;
    return SetIntxMask(device, set.flags, events ? fds[0] : -1);
  }
  if (!events) {
    if (!irq.enabled) return EINVAL;
    if (set.count != 0) return 0;  // a loop-back signal
    irq.enabled = false;
    irq.events.clear();
    return 0;
  }
  for (std::uint32_t other = kIntxIrq; other <= kMsixIrq && set.index <= kMsixIrq; ++other) {
    if (other != set.index && device.irqs[other].enabled) return EINVAL;
  }
  if (IsMsi(set.index) && irq.available != 0 && !irq.enabled) {
    value = irq.available;
    return 0;
  }
  // Error and request are enabled by having an event.
  irq.enabled = set.index <= kMsixIrq || fds[0] >= 0;
  irq.events.resize(std::max<std::size_t>(irq.events.size(), set.start + set.count), -1);
  std::copy(fds.begin(), fds.end(), irq.events.begin() + set.start);
  return 0;
}

}  // namespace postern::vfio
