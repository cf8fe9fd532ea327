#include "iommu/type1.h"

#include <fcntl.h>
#include <linux/vfio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "iommu/vfio_info.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::iommu {
namespace {

constexpr const char* kSetContainer = "VFIO_GROUP_SET_CONTAINER";

bool Is(const Error& error, int sys_errno) {
  return error.code == Errc::kSystem && error.sys_errno == sys_errno;
}

}  // namespace

Type1Container::Type1Container(KernelCalls& calls, Fd container)
    : calls_(calls), container_(std::move(container)), info_(DefaultType1Info()) {}

Result<std::unique_ptr<Type1Container>> Type1Container::Open(KernelCalls& calls) {
  Fd fd = TRY(calls.Open("/dev/vfio/vfio", O_RDWR));
  if (TRY(calls.Ioctl(fd.get(), VFIO_GET_API_VERSION, "VFIO_GET_API_VERSION")) !=
      VFIO_API_VERSION) {
    return Err(Errc::kUnsupported, "VFIO_GET_API_VERSION");
  }
  if (TRY(calls.IoctlRaw(fd.get(), VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU,
                         "VFIO_CHECK_EXTENSION")) != 1) {
    return Err(Errc::kUnsupported, "VFIO_CHECK_EXTENSION(VFIO_TYPE1v2_IOMMU)");
  }
  return std::unique_ptr<Type1Container>(new Type1Container(calls, std::move(fd)));
}

// --- groups ---

Result<void> Type1Container::Attach(int group) {
  const MutexLock lock(mutex_);
  if (std::find(groups_.begin(), groups_.end(), group) != groups_.end()) {
    return Err(Errc::kBadState, kSetContainer);
  }
  const bool first = groups_.empty();
  std::int32_t container = container_.get();
  const Result<int> set = calls_.Ioctl(group, VFIO_GROUP_SET_CONTAINER, &container, kSetContainer);
  if (!set) {
    // Refused next to others: other page tables than theirs, or a mapping it cannot have.
    const bool unlike = !first && (Is(set.error(), EINVAL) || Is(set.error(), EBUSY));
    return unlike ? Result<void>(Err(Errc::kUnsupported, kSetContainer))
                  : Result<void>(Unexpected(set.error()));
  }
  groups_.push_back(group);
  const Type1Info before = info_;
  const Result<void> attached = first ? AttachFirst() : AttachNext();
  if (!attached) {
    Leave(group);
    info_ = before;
  }
  return attached;
}

Result<void> Type1Container::AttachFirst() {
  TRY(calls_.IoctlRaw(container_.get(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, "VFIO_SET_IOMMU"));
  info_ = TRY(ReadInfo());
  return Replay();
}

// The kernel has made the mappings for the new group's hardware already.
Result<void> Type1Container::AttachNext() {
  info_ = TRY(ReadInfo());
  if (table_.FirstOutside(info_.limits)) {
    return Err(Errc::kGuestRange, "DMA mapping beyond the reach of the group");
  }
  return {};
}

Result<void> Type1Container::Replay() {
  for (const auto& [at, mapping] : table_.all()) {
    if (!info_.limits.Allows(at, mapping.from.length)) {
      return Err(Errc::kGuestRange, "DMA mapping beyond the reach of the group");
    }
    TRY(MapInKernel(at, mapping));
  }
  return {};
}

void Type1Container::Detach(int group) {
  const MutexLock lock(mutex_);
  if (std::find(groups_.begin(), groups_.end(), group) == groups_.end()) return;
  Leave(group);
  if (groups_.empty()) {
    info_ = DefaultType1Info();
    return;
  }
  // What this group alone could not reach is free again.
  Result<Type1Info> info = ReadInfo();
  if (info) info_ = std::move(*info);
}

void Type1Container::Leave(int group) {
  const Result<int> unset =
      calls_.Ioctl(group, VFIO_GROUP_UNSET_CONTAINER, "VFIO_GROUP_UNSET_CONTAINER");
  if (!unset && !HasLeft(unset.error(), group)) {
    LOG_ERROR("iommu", "group leaves its container: {}", Describe(unset.error()));
    // The domain stays until the group is closed; its devices are to reach nothing by then.
    if (groups_.size() == 1) UnmapAllInKernel();
  }
  groups_.erase(std::remove(groups_.begin(), groups_.end(), group), groups_.end());
}

// Linux takes a group out by itself when its last device goes (drivers/vfio/group.c,
// vfio_device_remove_group): there is nothing to leave, and no domain either.
bool Type1Container::HasLeft(const Error& error, int group) {
  if (!Is(error, EINVAL)) return false;
  vfio_group_status status{.argsz = sizeof(status), .flags = 0};
  const Result<int> asked =
      calls_.Ioctl(group, VFIO_GROUP_GET_STATUS, &status, "VFIO_GROUP_GET_STATUS");
  if (!asked) return Is(asked.error(), ENODEV);
  return (status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET) == 0;
}

void Type1Container::UnmapAllInKernel() {
  for (const auto& [at, mapping] : table_.all()) {
    const Result<void> unmapped = UnmapInKernel(at, mapping.from.length);
    if (!unmapped) LOG_ERROR("iommu", "{:#x}: {}", at.value, Describe(unmapped.error()));
  }
}

std::size_t Type1Container::groups() const {
  const MutexLock lock(mutex_);
  return groups_.size();
}

Type1Info Type1Container::info() const {
  const MutexLock lock(mutex_);
  return info_;
}

Limits Type1Container::limits() const {
  const MutexLock lock(mutex_);
  return info_.limits;
}

Result<Type1Info> Type1Container::ReadInfo() {
  const vfio_iommu_type1_info request{};
  const std::vector<std::byte> info =
      TRY(ReadVfioInfo(calls_, container_.get(), VFIO_IOMMU_GET_INFO,
                       std::as_bytes(std::span(&request, 1)), "VFIO_IOMMU_GET_INFO"));
  return ParseType1Info(info);
}

// --- mappings ---

Result<void> Type1Container::Map(Iova at, const HostRange& from, memory::Access access) {
  const MutexLock lock(mutex_);
  TRY(table_.Check(at, from, info_.limits));
  if (!groups_.empty()) TRY(MapInKernel(at, {.from = from, .access = access}));
  table_.Add(at, from, access);
  return {};
}

Result<void> Type1Container::MapInKernel(Iova at, const Mapping& mapping) {
  const auto access = static_cast<unsigned>(mapping.access);
  vfio_iommu_type1_dma_map map{};
  map.argsz = sizeof(map);
  if ((access & static_cast<unsigned>(memory::Access::kRead)) != 0) {
    map.flags |= VFIO_DMA_MAP_FLAG_READ;
  }
  if ((access & static_cast<unsigned>(memory::Access::kWrite)) != 0) {
    map.flags |= VFIO_DMA_MAP_FLAG_WRITE;
  }
  map.vaddr = reinterpret_cast<std::uintptr_t>(mapping.from.address);
  map.iova = at.value;
  map.size = mapping.from.length;
  const Result<int> mapped =
      calls_.Ioctl(container_.get(), VFIO_IOMMU_MAP_DMA, &map, "VFIO_IOMMU_MAP_DMA");
  if (mapped) return {};
  if (Is(mapped.error(), EEXIST)) return Err(Errc::kOverlap, "VFIO_IOMMU_MAP_DMA");
  return Unexpected(mapped.error());
}

Result<void> Type1Container::Unmap(Iova at, std::uint64_t length) {
  const MutexLock lock(mutex_);
  if (table_.Find(at, length) == nullptr) return Err(Errc::kNotFound, "DMA mapping");
  if (!groups_.empty()) TRY(UnmapInKernel(at, length));
  table_.Remove(at);
  return {};
}

Result<void> Type1Container::UnmapInKernel(Iova at, std::uint64_t length) {
  vfio_iommu_type1_dma_unmap unmap{};
  unmap.argsz = sizeof(unmap);
  unmap.iova = at.value;
  unmap.size = length;
  TRY(calls_.Ioctl(container_.get(), VFIO_IOMMU_UNMAP_DMA, &unmap, "VFIO_IOMMU_UNMAP_DMA"));
  // The kernel reports success for a range in which it found nothing.
  if (unmap.size != length) return SysError("VFIO_IOMMU_UNMAP_DMA", EPROTO);
  return {};
}

Result<void> Type1Container::TrackDirty(bool /*on*/) {
  return Err(Errc::kUnsupported, "dirty tracking of type 1");
}

Result<void> Type1Container::TakeDirty(Iova /*at*/, std::uint64_t /*length*/,
                                       std::uint64_t /*page_size*/,
                                       std::span<std::uint64_t> /*bits*/) {
  return Err(Errc::kUnsupported, "dirty tracking of type 1");
}

}  // namespace postern::iommu
