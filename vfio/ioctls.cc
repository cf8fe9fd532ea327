#include "vfio/ioctls.h"

#include <linux/vfio.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "iommu/vfio_info.h"

namespace postern::vfio {
namespace {

// argsz as of the last member used: a caller that knows the structure up to there.
constexpr std::uint32_t kDeviceInfoSize =
    offsetof(vfio_device_info, num_irqs) + sizeof(vfio_device_info::num_irqs);
constexpr std::uint32_t kRegionInfoSize =
    offsetof(vfio_region_info, offset) + sizeof(vfio_region_info::offset);
constexpr std::uint32_t kIrqInfoSize =
    offsetof(vfio_irq_info, count) + sizeof(vfio_irq_info::count);
constexpr std::uint32_t kIrqSetSize = offsetof(vfio_irq_set, data);
constexpr std::uint32_t kBindSize =
    offsetof(vfio_device_bind_iommufd, out_devid) + sizeof(vfio_device_bind_iommufd::out_devid);
constexpr std::uint32_t kAttachSize =
    offsetof(vfio_device_attach_iommufd_pt, pt_id) + sizeof(vfio_device_attach_iommufd_pt::pt_id);
constexpr std::uint32_t kDetachSize =
    offsetof(vfio_device_detach_iommufd_pt, flags) + sizeof(vfio_device_detach_iommufd_pt::flags);

template <typename T>
T Load(std::span<const std::byte> bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

Result<std::vector<MapArea>> ParseSparse(std::span<const std::byte> capability) {
  constexpr std::size_t kAreas = offsetof(vfio_region_info_cap_sparse_mmap, areas);
  if (capability.size() < kAreas) return Err(Errc::kBadFormat, "SPARSE_MMAP is cut off");
  const auto count =
      Load<std::uint32_t>(capability, offsetof(vfio_region_info_cap_sparse_mmap, nr_areas));
  if (count > (capability.size() - kAreas) / sizeof(vfio_region_sparse_mmap_area)) {
    return Err(Errc::kBadFormat, "SPARSE_MMAP has more areas than bytes");
  }
  std::vector<MapArea> areas;
  areas.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto area = Load<vfio_region_sparse_mmap_area>(
        capability, kAreas + i * sizeof(vfio_region_sparse_mmap_area));
    areas.push_back({.offset = area.offset, .length = area.size});
  }
  return areas;
}

Result<void> TakeCapability(const iommu::VfioCapability& capability, KernelRegion& region,
                            std::optional<std::vector<MapArea>>& sparse) {
  const std::uint16_t id = capability.id;
  const std::span<const std::byte> bytes = capability.bytes;
  if (id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
    if (sparse) return Err(Errc::kBadFormat, "SPARSE_MMAP twice");
    sparse = TRY(ParseSparse(bytes));
  } else if (id == VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) {
    region.msix_mappable = true;
  } else if (id == VFIO_REGION_INFO_CAP_TYPE) {
    if (bytes.size() < sizeof(vfio_region_info_cap_type)) {
      return Err(Errc::kBadFormat, "region TYPE is cut off");
    }
    region.type = Load<std::uint32_t>(bytes, offsetof(vfio_region_info_cap_type, type));
    region.subtype = Load<std::uint32_t>(bytes, offsetof(vfio_region_info_cap_type, subtype));
  }
  return {};
}

// A mapped area costs a memory slot of the guest.
constexpr std::size_t kMaxAreas = 256;

// Ascending and disjoint, each inside the region and made of whole pages; the others are dropped.
std::uint32_t Sanitise(std::vector<MapArea>& areas, std::uint64_t size, std::uint64_t page_size) {
  const std::size_t before = areas.size();
  std::erase_if(areas, [&](const MapArea& area) {
    return area.length == 0 || area.offset % page_size != 0 || area.length % page_size != 0 ||
           area.offset > size || area.length > size - area.offset;
  });
  std::sort(areas.begin(), areas.end(),
            [](const MapArea& a, const MapArea& b) { return a.offset < b.offset; });
  std::uint64_t end = 0;
  std::erase_if(areas, [&](const MapArea& area) {
    if (area.offset < end) return true;
    end = area.offset + area.length;
    return false;
  });
  if (areas.size() > kMaxAreas) areas.resize(kMaxAreas);
  return static_cast<std::uint32_t>(before - areas.size());
}

std::uint32_t Flags(IrqAction action) {
  switch (action) {
    case IrqAction::kMask:
      return VFIO_IRQ_SET_ACTION_MASK;
    case IrqAction::kUnmask:
      return VFIO_IRQ_SET_ACTION_UNMASK;
    case IrqAction::kTrigger:
      break;
  }
  return VFIO_IRQ_SET_ACTION_TRIGGER;
}

// vfio_irq_set up to its data.
std::array<std::uint32_t, 5> IrqHeader(std::size_t data, std::uint32_t flags, std::uint32_t index,
                                       std::uint32_t start, std::size_t count) {
  return {static_cast<std::uint32_t>(kIrqSetSize + data), flags, index, start,
          static_cast<std::uint32_t>(count)};
}
static_assert(sizeof(IrqHeader(0, 0, 0, 0, 0)) == kIrqSetSize);

bool IsSystem(const Error& error, int number) {
  return error.code == Errc::kSystem && error.sys_errno == number;
}

}  // namespace

Result<bool> GroupIsViable(KernelCalls& calls, int group) {
  vfio_group_status status{.argsz = sizeof(status)};
  TRY(calls.Ioctl(group, VFIO_GROUP_GET_STATUS, &status, "VFIO_GROUP_GET_STATUS"));
  // One bit of several: CONTAINER_SET may be there too.
  return (status.flags & VFIO_GROUP_FLAGS_VIABLE) != 0;
}

Result<Fd> GroupGetDevice(KernelCalls& calls, int group, const std::string& name) {
  return Fd(
      TRY(calls.Ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name.c_str(), "VFIO_GROUP_GET_DEVICE_FD")));
}

Result<void> BindIommufd(KernelCalls& calls, int device, int iommufd) {
  vfio_device_bind_iommufd bind{.argsz = kBindSize, .flags = 0, .iommufd = iommufd};
  TRY(calls.Ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind, "VFIO_DEVICE_BIND_IOMMUFD"));
  return {};
}

Result<void> AttachIoas(KernelCalls& calls, int device, std::uint32_t ioas) {
  vfio_device_attach_iommufd_pt attach{.argsz = kAttachSize, .flags = 0, .pt_id = ioas};
  TRY(calls.Ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach, "VFIO_DEVICE_ATTACH_IOMMUFD_PT"));
  return {};
}

Result<void> DetachIoas(KernelCalls& calls, int device) {
  vfio_device_detach_iommufd_pt detach{.argsz = kDetachSize, .flags = 0};
  TRY(calls.Ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach, "VFIO_DEVICE_DETACH_IOMMUFD_PT"));
  return {};
}

FileKind ProbeFile(KernelCalls& calls, int fd) {
  if (calls.Ioctl(fd, VFIO_GET_API_VERSION, "VFIO_GET_API_VERSION")) return FileKind::kContainer;
  if (GroupIsViable(calls, fd)) return FileKind::kGroup;
  vfio_device_info info{.argsz = kDeviceInfoSize};
  const Result<int> answer = calls.Ioctl(fd, VFIO_DEVICE_GET_INFO, &info, "VFIO_DEVICE_GET_INFO");
  if (answer) return FileKind::kOpenDevice;
  // A cdev that is not bound refuses all but binding with EINVAL; files of other kinds do not know
  // the request (ENOTTY).
  return IsSystem(answer.error(), EINVAL) ? FileKind::kUnboundDevice : FileKind::kOther;
}

Result<DeviceCounts> GetDeviceCounts(KernelCalls& calls, int device) {
  vfio_device_info info{.argsz = kDeviceInfoSize};
  TRY(calls.Ioctl(device, VFIO_DEVICE_GET_INFO, &info, "VFIO_DEVICE_GET_INFO"));
  if ((info.flags & VFIO_DEVICE_FLAGS_PCI) == 0) {
    return Err(Errc::kUnsupported, "VFIO device that is not PCI");
  }
  return DeviceCounts{.can_reset = (info.flags & VFIO_DEVICE_FLAGS_RESET) != 0,
                      .regions = info.num_regions,
                      .irqs = info.num_irqs};
}

Result<KernelRegion> GetRegion(KernelCalls& calls, int device, std::uint32_t index,
                               std::uint64_t page_size) {
  const vfio_region_info request{.argsz = kRegionInfoSize, .index = index};
  const Result<std::vector<std::byte>> answer = iommu::ReadVfioInfo(
      calls, device, VFIO_DEVICE_GET_REGION_INFO,
      std::as_bytes(std::span(&request, 1)).first(kRegionInfoSize), "VFIO_DEVICE_GET_REGION_INFO");
  if (answer) return ParseRegion(*answer, page_size);
  if (IsSystem(answer.error(), EINVAL)) return KernelRegion{};
  return Unexpected(answer.error());
}

Result<KernelRegion> ParseRegion(std::span<const std::byte> answer, std::uint64_t page_size) {
  constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();
  if (answer.size() < kRegionInfoSize) return Err(Errc::kBadFormat, "region info is cut off");
  const auto raw = Load<vfio_region_info>(answer, 0);
  if (raw.size > kMaxRegionSize) return Err(Errc::kBadFormat, "region over 2^62 bytes");
  if (raw.offset > kMaxOffset || raw.size > kMaxOffset - raw.offset) {
    return Err(Errc::kBadFormat, "region past the end of the device file");
  }
  KernelRegion region;
  region.offset = raw.offset;
  region.info.size = raw.size;
  region.info.readable = (raw.flags & VFIO_REGION_INFO_FLAG_READ) != 0;
  region.info.writable = (raw.flags & VFIO_REGION_INFO_FLAG_WRITE) != 0;
  std::optional<std::vector<MapArea>> sparse;
  if ((raw.flags & VFIO_REGION_INFO_FLAG_CAPS) != 0) {
    TRY(iommu::WalkVfioCapabilities(answer, raw.cap_offset, kRegionInfoSize,
                                    [&](const iommu::VfioCapability& capability) {
                                      return TakeCapability(capability, region, sparse);
                                    }));
  }
  if ((raw.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0) return region;
  if (sparse) {
    region.info.areas = std::move(*sparse);
  } else if (raw.size >= page_size) {
    region.info.areas = {{.offset = 0, .length = raw.size / page_size * page_size}};
  }
  region.dropped_areas = Sanitise(region.info.areas, raw.size, page_size);
  return region;
}

Result<IrqInfo> GetIrq(KernelCalls& calls, int device, std::uint32_t index) {
  vfio_irq_info info{.argsz = kIrqInfoSize, .index = index};
  const Result<int> answer =
      calls.Ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info, "VFIO_DEVICE_GET_IRQ_INFO");
  if (!answer) {
    if (IsSystem(answer.error(), EINVAL)) return IrqInfo{};
    return Unexpected(answer.error());
  }
  return ParseIrq(index, std::as_bytes(std::span(&info, 1)));
}

Result<IrqInfo> ParseIrq(std::uint32_t index, std::span<const std::byte> answer) {
  if (answer.size() < kIrqInfoSize) return Err(Errc::kBadFormat, "irq info is cut off");
  const auto raw = Load<vfio_irq_info>(answer, 0);
  std::uint32_t most = 1;
  if (index == kMsiIrq) most = kMaxMsiVectors;
  if (index == kMsixIrq) most = kMaxMsixVectors;
  return IrqInfo{.count = std::min(raw.count, most),
                 .eventfd = (raw.flags & VFIO_IRQ_INFO_EVENTFD) != 0,
                 .maskable = (raw.flags & VFIO_IRQ_INFO_MASKABLE) != 0,
                 .automasked = (raw.flags & VFIO_IRQ_INFO_AUTOMASKED) != 0,
                 .noresize = (raw.flags & VFIO_IRQ_INFO_NORESIZE) != 0};
}

Result<int> SetIrqs(KernelCalls& calls, int device, IrqAction action, std::uint32_t index,
                    std::uint32_t start, std::span<const int> events) {
  static_assert(sizeof(int) == 4, "the kernel reads s32");
  if (events.empty() || events.size() > kMaxMsixVectors) {
    return Err(Errc::kInvalidArgument, "VFIO_DEVICE_SET_IRQS of no or too many vectors");
  }
  std::vector<std::byte> buffer(kIrqSetSize + events.size_bytes());
  const auto header = IrqHeader(events.size_bytes(), VFIO_IRQ_SET_DATA_EVENTFD | Flags(action),
                                index, start, events.size());
  std::memcpy(buffer.data(), header.data(), sizeof(header));
  std::memcpy(buffer.data() + kIrqSetSize, events.data(), events.size_bytes());
  return calls.Ioctl(device, VFIO_DEVICE_SET_IRQS, buffer.data(), "VFIO_DEVICE_SET_IRQS");
}

Result<void> DoIrqs(KernelCalls& calls, int device, IrqAction action, std::uint32_t index,
                    std::uint32_t count) {
  auto set = IrqHeader(0, VFIO_IRQ_SET_DATA_NONE | Flags(action), index, 0, count);
  TRY(calls.Ioctl(device, VFIO_DEVICE_SET_IRQS, set.data(), "VFIO_DEVICE_SET_IRQS"));
  return {};
}

Result<void> ResetDevice(KernelCalls& calls, int device) {
  TRY(calls.Ioctl(device, VFIO_DEVICE_RESET, "VFIO_DEVICE_RESET"));
  return {};
}

}  // namespace postern::vfio
