#include "iommu/ioas.h"

#include <fcntl.h>
#include <linux/iommufd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "iommu/iommufd_abi.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kHostPage = 4096;
constexpr std::uint32_t kFirstRanges = 16;
constexpr std::uint32_t kMaxRanges = 65536;  // 1 MiB of them

Unexpected Malformed() {
  return SysError("IOMMU_IOAS_IOVA_RANGES", EPROTO);
}

bool Is(const Error& error, int sys_errno) {
  return error.code == Errc::kSystem && error.sys_errno == sys_errno;
}

std::uint32_t MapFlags(memory::Access access) {
  std::uint32_t flags = IOMMU_IOAS_MAP_FIXED_IOVA;
  const auto bits = static_cast<unsigned>(access);
  if ((bits & static_cast<unsigned>(memory::Access::kRead)) != 0) flags |= IOMMU_IOAS_MAP_READABLE;
  if ((bits & static_cast<unsigned>(memory::Access::kWrite)) != 0) {
    flags |= IOMMU_IOAS_MAP_WRITEABLE;
  }
  return flags;
}

// Alignment 1 (nothing attached) is that of the host's pages to us.
Result<Limits> CheckedLimits(std::span<const iommu_iova_range> ranges, std::uint64_t alignment) {
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) return Malformed();
  Limits limits;
  limits.page_sizes = std::max(alignment, kHostPage);
  limits.ranges.reserve(ranges.size());
  for (const iommu_iova_range& range : ranges) {
    if (range.start > range.last) return Malformed();
    if (!limits.ranges.empty() && range.start <= limits.ranges.back().last) return Malformed();
    limits.ranges.push_back({range.start, range.last});
  }
  return limits;
}

Unexpected MapError(const Error& error) {
  if (Is(error, EEXIST)) return Err(Errc::kOverlap, error.op);
  return Unexpected(error);
}

}  // namespace

Ioas::Ioas(KernelCalls& calls, Fd iommufd, std::uint32_t id)
    : calls_(calls), iommufd_(std::move(iommufd)), id_(id) {}

Result<std::unique_ptr<Ioas>> Ioas::Open(KernelCalls& calls, Fd iommufd) {
  Fd fd = std::move(iommufd);
  if (!fd.valid()) fd = TRY(calls.Open("/dev/iommu", O_RDWR));
  iommu_ioas_alloc alloc{};
  alloc.size = sizeof(alloc);
  TRY(calls.Ioctl(fd.get(), IOMMU_IOAS_ALLOC, &alloc, "IOMMU_IOAS_ALLOC"));
  std::unique_ptr<Ioas> ioas(new Ioas(calls, std::move(fd), alloc.out_ioas_id));
  TRY(ioas->Attached());
  return ioas;
}

Ioas::~Ioas() {
  iommu_destroy destroy{};
  destroy.size = sizeof(destroy);
  destroy.id = id_;
  const Result<int> destroyed =
      calls_.Ioctl(iommufd_.get(), IOMMU_DESTROY, &destroy, "IOMMU_DESTROY");
  // A device is attached still: the IOAS goes when that and the iommufd are closed.
  if (!destroyed) LOG_WARN("iommu", "IOAS {}: {}", id_, Describe(destroyed.error()));
}

// --- ranges ---

Result<void> Ioas::Attached() {
  const MutexLock lock(mutex_);
  limits_ = TRY(ReadRanges());
  if (table_.FirstOutside(limits_)) {
    return Err(Errc::kGuestRange, "DMA mapping beyond the reach of the device");
  }
  return {};
}

Result<Limits> Ioas::ReadRanges() const {
  constexpr const char* kOp = "IOMMU_IOAS_IOVA_RANGES";
  std::vector<iommu_iova_range> ranges(kFirstRanges);
  // Between two calls a device of another process's making cannot come, but our own can.
  for (unsigned attempt = 0; attempt < 4; ++attempt) {
    iommu_ioas_iova_ranges query{};
    query.size = sizeof(query);
    query.ioas_id = id_;
    query.num_iovas = static_cast<std::uint32_t>(ranges.size());
    query.allowed_iovas = reinterpret_cast<std::uintptr_t>(ranges.data());
    const Result<int> answer = calls_.Ioctl(iommufd_.get(), IOMMU_IOAS_IOVA_RANGES, &query, kOp);
    if (answer) {
      if (query.num_iovas > ranges.size()) return Malformed();
      return CheckedLimits(std::span(ranges).first(query.num_iovas), query.out_iova_alignment);
    }
    if (!Is(answer.error(), EMSGSIZE)) return Unexpected(answer.error());
    if (query.num_iovas <= ranges.size() || query.num_iovas > kMaxRanges) return Malformed();
    ranges.assign(query.num_iovas, {});
  }
  return Malformed();
}

Limits Ioas::limits() const {
  const MutexLock lock(mutex_);
  return limits_;
}

// --- mappings ---

Result<void> Ioas::Map(Iova at, const HostRange& from, memory::Access access) {
  const MutexLock lock(mutex_);
  TRY(table_.Check(at, from, limits_));
  TRY(MapInKernel(at, from, access));
  table_.Add(at, from, access);
  return {};
}

Result<void> Ioas::MapInKernel(Iova at, const HostRange& from, memory::Access access) {
  const std::uint32_t flags = MapFlags(access);
  if (from.fd < 0 || !map_by_file_) return MapAddress(at, from, flags);
  const Result<void> by_file = MapFile(at, from, flags);
  if (by_file) return {};
  const Error& error = by_file.error();
  // ENOTTY: a kernel before 6.13. EOPNOTSUPP, EINVAL: not with this kind of file.
  if (!Is(error, ENOTTY) && !Is(error, EOPNOTSUPP) && !Is(error, EINVAL)) return MapError(error);
  const Result<void> by_address = MapAddress(at, from, flags);
  // If that fails too it says nothing of files.
  if (by_address || Is(error, ENOTTY)) map_by_file_ = false;
  return by_address;
}

Result<void> Ioas::MapFile(Iova at, const HostRange& from, std::uint32_t flags) {
  IoasMapFile map;
  map.size = sizeof(map);
  map.flags = flags;
  map.ioas_id = id_;
  map.fd = from.fd;
  map.start = from.offset;
  map.length = from.length;
  map.iova = at.value;
  TRY(calls_.Ioctl(iommufd_.get(), kIoasMapFile, &map, "IOMMU_IOAS_MAP_FILE"));
  return {};
}

Result<void> Ioas::MapAddress(Iova at, const HostRange& from, std::uint32_t flags) {
  iommu_ioas_map map{};
  map.size = sizeof(map);
  map.flags = flags;
  map.ioas_id = id_;
  map.user_va = reinterpret_cast<std::uintptr_t>(from.address);
  map.length = from.length;
  map.iova = at.value;
  const Result<int> mapped = calls_.Ioctl(iommufd_.get(), IOMMU_IOAS_MAP, &map, "IOMMU_IOAS_MAP");
  if (!mapped) return MapError(mapped.error());
  return {};
}

Result<void> Ioas::Unmap(Iova at, std::uint64_t length) {
  const MutexLock lock(mutex_);
  if (table_.Find(at, length) == nullptr) return Err(Errc::kNotFound, "DMA mapping");
  iommu_ioas_unmap unmap{};
  unmap.size = sizeof(unmap);
  unmap.ioas_id = id_;
  unmap.iova = at.value;
  unmap.length = length;
  TRY(calls_.Ioctl(iommufd_.get(), IOMMU_IOAS_UNMAP, &unmap, "IOMMU_IOAS_UNMAP"));
  if (unmap.length != length) return SysError("IOMMU_IOAS_UNMAP", EPROTO);
  table_.Remove(at);
  return {};
}

// --- writes of devices ---

Result<void> Ioas::AddHwpt(std::uint32_t id) {
  const MutexLock lock(mutex_);
  if (tracking_) return Err(Errc::kBadState, "IOMMU_HWPT_SET_DIRTY_TRACKING");
  if (std::find(hwpts_.begin(), hwpts_.end(), id) == hwpts_.end()) hwpts_.push_back(id);
  return {};
}

void Ioas::RemoveHwpt(std::uint32_t id) {
  const MutexLock lock(mutex_);
  hwpts_.erase(std::remove(hwpts_.begin(), hwpts_.end(), id), hwpts_.end());
}

Result<void> Ioas::SetTracking(std::uint32_t hwpt, bool on) {
  iommu_hwpt_set_dirty_tracking track{};
  track.size = sizeof(track);
  track.flags = on ? IOMMU_HWPT_DIRTY_TRACKING_ENABLE : 0;
  track.hwpt_id = hwpt;
  TRY(calls_.Ioctl(iommufd_.get(), IOMMU_HWPT_SET_DIRTY_TRACKING, &track,
                   "IOMMU_HWPT_SET_DIRTY_TRACKING"));
  return {};
}

Result<void> Ioas::TrackDirty(bool on) {
  const MutexLock lock(mutex_);
  if (hwpts_.empty()) return Err(Errc::kUnsupported, "IOMMU_HWPT_SET_DIRTY_TRACKING");
  for (std::size_t i = 0; i < hwpts_.size(); ++i) {
    const Result<void> set = SetTracking(hwpts_[i], on);
    if (set) continue;
    // All or none: a table that is not asked would hide what its devices write.
    while (on && i > 0) (void)SetTracking(hwpts_[--i], false);
    tracking_ = tracking_ && !on;
    return set;
  }
  tracking_ = on;
  return {};
}

Result<void> Ioas::TakeDirty(Iova at, std::uint64_t length, std::uint64_t page_size,
                             std::span<std::uint64_t> bits) {
  constexpr const char* kOp = "IOMMU_HWPT_GET_DIRTY_BITMAP";
  const MutexLock lock(mutex_);
  if (hwpts_.empty()) return Err(Errc::kUnsupported, kOp);
  if (!tracking_) return Err(Errc::kBadState, kOp);
  const bool power = page_size != 0 && (page_size & (page_size - 1)) == 0;
  if (!power || length == 0 || ((at.value | length) & (page_size - 1)) != 0 ||
      !at.CheckedAdd(length - 1) || (length / page_size - 1) / 64 >= bits.size()) {
    return Err(Errc::kInvalidArgument, kOp);
  }
  for (const std::uint32_t hwpt : hwpts_) {
    iommu_hwpt_get_dirty_bitmap query{};
    query.size = sizeof(query);
    query.hwpt_id = hwpt;
    query.iova = at.value;
    query.length = length;
    query.page_size = page_size;
    query.data = reinterpret_cast<std::uintptr_t>(bits.data());
    TRY(calls_.Ioctl(iommufd_.get(), IOMMU_HWPT_GET_DIRTY_BITMAP, &query, kOp));
  }
  return {};
}

}  // namespace postern::iommu
