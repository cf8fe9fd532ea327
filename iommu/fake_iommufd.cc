// The iommufd of FakeIommuKernel.

#include <linux/iommufd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/core.h>

#include "iommu/fake_iommu_kernel.h"
#include "iommu/iommufd_abi.h"

namespace postern::iommu {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};
constexpr std::uint64_t kPage = 4096;

template <typename T>
T Load(const void* from) {
  T value{};
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
void Store(void* to, const T& value) {
  std::memcpy(to, &value, sizeof(T));
}

void* Pointer(unsigned long argument) {
  return reinterpret_cast<void*>(argument);
}

constexpr std::uint32_t kReadWrite = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

// The rules of the flags of both kinds of map; addresses are always the caller's here.
int CheckFlags(std::uint32_t flags) {
  if ((flags & ~(kReadWrite | IOMMU_IOAS_MAP_FIXED_IOVA)) != 0) return EOPNOTSUPP;
  if ((flags & kReadWrite) == 0 || (flags & IOMMU_IOAS_MAP_FIXED_IOVA) == 0) return EINVAL;
  return 0;
}

memory::Access AccessOf(std::uint32_t flags) {
  unsigned access = 0;
  if ((flags & IOMMU_IOAS_MAP_READABLE) != 0) access |= 1;
  if ((flags & IOMMU_IOAS_MAP_WRITEABLE) != 0) access |= 2;
  return static_cast<memory::Access>(access);
}

const char* Letters(std::uint32_t flags) {
  if ((flags & IOMMU_IOAS_MAP_WRITEABLE) == 0) return "r";
  return (flags & IOMMU_IOAS_MAP_READABLE) == 0 ? "w" : "rw";
}

}  // namespace

FakeIommuKernel::IoasObject* FakeIommuKernel::FindIoas(FileId file, std::uint32_t id) {
  const auto ioas = ioas_.find(id);
  if (ioas == ioas_.end() || ioas->second.iommufd != file) return nullptr;
  return &ioas->second;
}

FakeIommuKernel::Answer FakeIommuKernel::IommufdIoctl(FileId file, unsigned long request,
                                                      unsigned long argument, std::string& line) {
  void* pointer = Pointer(argument);
  switch (request) {
    case IOMMU_IOAS_ALLOC: {
      auto alloc = Load<iommu_ioas_alloc>(pointer);
      if (alloc.size < sizeof(alloc)) return EINVAL;
      if (alloc.flags != 0) return EOPNOTSUPP;
      alloc.out_ioas_id = next_id_++;
      ioas_[alloc.out_ioas_id].iommufd = file;
      Store(pointer, alloc);
      return 0;
    }
    case IOMMU_DESTROY:
      return Destroy(file, Load<iommu_destroy>(pointer).id);
    case IOMMU_IOAS_IOVA_RANGES:
      return IoasRanges(file, pointer);
    case IOMMU_IOAS_MAP:
      return IoasMap(file, pointer, line);
    case kIoasMapFile:
      return rules.map_file ? IoasMapFile(file, pointer, line) : ENOTTY;
    case IOMMU_IOAS_UNMAP:
      return IoasUnmap(file, pointer, line);
    case IOMMU_HWPT_ALLOC:
      return HwptAlloc(file, pointer);
    case IOMMU_HWPT_SET_DIRTY_TRACKING:
      return HwptTrack(pointer, line);
    case IOMMU_HWPT_GET_DIRTY_BITMAP:
      return HwptBitmap(pointer);
    default:
      return -1;
  }
}

int FakeIommuKernel::Destroy(FileId file, std::uint32_t id) {
  if (hwpts_.erase(id) != 0) return 0;
  const IoasObject* ioas = FindIoas(file, id);
  if (ioas == nullptr) return ENOENT;
  const bool used = std::any_of(hwpts_.begin(), hwpts_.end(),
                                [&](const auto& entry) { return entry.second.ioas == id; });
  if (used || ioas->space.attached() > 0) return EBUSY;
  ioas_.erase(id);
  return 0;
}

int FakeIommuKernel::IoasRanges(FileId file, void* argument) {
  auto query = Load<iommu_ioas_iova_ranges>(argument);
  if (query.size < sizeof(query)) return EINVAL;
  const IoasObject* ioas = FindIoas(file, query.ioas_id);
  if (ioas == nullptr) return ENOENT;
  const std::vector<IovaRange> ranges = ioas->space.Ranges();
  const std::size_t count = std::min<std::size_t>(ranges.size(), query.num_iovas);
  for (std::size_t i = 0; i < count; ++i) {
    const iommu_iova_range range{.start = ranges[i].first, .last = ranges[i].last};
    Store(reinterpret_cast<std::byte*>(query.allowed_iovas) + i * sizeof(range), range);
  }
  const bool fits = ranges.size() <= query.num_iovas;
  query.num_iovas = static_cast<std::uint32_t>(ranges.size());
  const std::uint64_t sizes = ioas->space.PageSizes();
  query.out_iova_alignment = ioas->space.attached() == 0 ? 1 : (sizes & -sizes);
  Store(argument, query);
  return fits ? 0 : EMSGSIZE;
}

int FakeIommuKernel::AddToIoas(IoasObject& ioas, const FakeMapping& mapping) {
  if (mapping.iova == kAll || mapping.length == kAll) return EOVERFLOW;
  if (const int error = ioas.space.Check(mapping.iova, mapping.length); error != 0) return error;
  const std::uint64_t bytes = ioas.space.bytes();
  if (ioas.space.attached() > 0 &&
      (bytes > rules.memlock || mapping.length > rules.memlock - bytes)) {
    return ENOMEM;
  }
  ioas.space.Add(mapping);
  return 0;
}

int FakeIommuKernel::IoasMap(FileId file, const void* argument, std::string& line) {
  const auto map = Load<iommu_ioas_map>(argument);
  line += fmt::format(" {:#x}+{:#x} {}", map.iova, map.length, Letters(map.flags));
  if (map.size < sizeof(map)) return EINVAL;
  if (const int error = CheckFlags(map.flags); error != 0) return error;
  IoasObject* ioas = FindIoas(file, map.ioas_id);
  if (ioas == nullptr) return ENOENT;
  if (ioas->space.attached() > 0 &&
      msync(reinterpret_cast<void*>(map.user_va & ~(kPage - 1)), map.length, MS_ASYNC) != 0) {
    return EFAULT;
  }
  return AddToIoas(*ioas, {.iova = map.iova,
                           .length = map.length,
                           .address = reinterpret_cast<std::byte*>(map.user_va),
                           .file = {},
                           .access = AccessOf(map.flags)});
}

int FakeIommuKernel::IoasMapFile(FileId file, const void* argument, std::string& line) {
  const auto map = Load<struct IoasMapFile>(argument);
  line += fmt::format(" {:#x}+{:#x} {}", map.iova, map.length, Letters(map.flags));
  if (map.size < sizeof(map)) return EINVAL;
  if (const int error = CheckFlags(map.flags); error != 0) return error;
  IoasObject* ioas = FindIoas(file, map.ioas_id);
  if (ioas == nullptr) return ENOENT;
  struct stat status {};
  if (fstat(map.fd, &status) != 0) return EBADF;
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (map.start > size || map.length > size - map.start) return EINVAL;
  Result<Mmap> view =
      Mmap::Create(map.length, PROT_READ | PROT_WRITE, MAP_SHARED, map.fd, map.start);
  if (!view) return EINVAL;  // not a file of memory
  const auto shared = std::make_shared<const Mmap>(std::move(*view));
  return AddToIoas(*ioas, {.iova = map.iova,
                           .length = map.length,
                           .address = shared->data(),
                           .file = shared,
                           .access = AccessOf(map.flags)});
}

int FakeIommuKernel::IoasUnmap(FileId file, void* argument, std::string& line) {
  auto unmap = Load<iommu_ioas_unmap>(argument);
  line += fmt::format(" {:#x}+{:#x}", unmap.iova, unmap.length);
  if (unmap.size < sizeof(unmap)) return EINVAL;
  IoasObject* ioas = FindIoas(file, unmap.ioas_id);
  if (ioas == nullptr) return ENOENT;
  if (unmap.length == 0 || unmap.length - 1 > ~unmap.iova) return EOVERFLOW;
  const std::int64_t bytes = ioas->space.Remove(unmap.iova, unmap.length);
  if (bytes <= 0) return ENOENT;
  unmap.length = static_cast<std::uint64_t>(bytes);
  Store(argument, unmap);
  return 0;
}

// --- hardware page tables ---

int FakeIommuKernel::HwptAlloc(FileId file, void* argument) {
  auto alloc = Load<iommu_hwpt_alloc>(argument);
  if (alloc.size < offsetof(iommu_hwpt_alloc, data_type)) return EINVAL;
  if ((alloc.flags & ~std::uint32_t{IOMMU_HWPT_ALLOC_DIRTY_TRACKING}) != 0) return EOPNOTSUPP;
  if (FindIoas(file, alloc.pt_id) == nullptr) return ENOENT;
  alloc.out_hwpt_id = next_id_++;
  hwpts_[alloc.out_hwpt_id] = Hwpt{.ioas = alloc.pt_id, .dirty_tracking = alloc.flags != 0};
  std::memcpy(argument, &alloc, offsetof(iommu_hwpt_alloc, data_type));
  return 0;
}

int FakeIommuKernel::HwptTrack(const void* argument, std::string& line) {
  const auto track = Load<iommu_hwpt_set_dirty_tracking>(argument);
  line += fmt::format(" {} {}", track.hwpt_id, track.flags != 0 ? "on" : "off");
  const auto hwpt = hwpts_.find(track.hwpt_id);
  if (hwpt == hwpts_.end()) return ENOENT;
  if (!hwpt->second.dirty_tracking) return EOPNOTSUPP;
  hwpt->second.on = track.flags != 0;
  hwpt->second.dirty.clear();
  return 0;
}

int FakeIommuKernel::HwptBitmap(void* argument) {
  const auto query = Load<iommu_hwpt_get_dirty_bitmap>(argument);
  const auto found = hwpts_.find(query.hwpt_id);
  if (found == hwpts_.end()) return ENOENT;
  Hwpt& hwpt = found->second;
  if (!hwpt.on || query.page_size == 0 || query.length < query.page_size) return EINVAL;
  auto* bits = reinterpret_cast<std::uint64_t*>(query.data);
  std::erase_if(hwpt.dirty, [&](std::uint64_t page) {
    if (page < query.iova || page - query.iova >= query.length) return false;
    const std::uint64_t bit = (page - query.iova) / query.page_size;
    bits[bit / 64] |= std::uint64_t{1} << (bit % 64);
    return true;
  });
  return 0;
}

void FakeIommuKernel::MarkDirty(std::uint32_t hwpt, std::uint64_t iova, std::uint64_t length) {
  const MutexLock lock(mutex_);
  const auto found = hwpts_.find(hwpt);
  if (found == hwpts_.end() || !found->second.on) return;
  for (std::uint64_t page = iova & ~(kPage - 1); page < iova + length; page += kPage) {
    found->second.dirty.insert(page);
  }
}

// --- devices ---

Result<void> FakeIommuKernel::AttachDevice(int iommufd, std::uint32_t page_table, std::uint64_t who,
                                           const FakeHardware& hardware) {
  Reap();
  const MutexLock lock(mutex_);
  const auto hwpt = hwpts_.find(page_table);
  IoasObject* ioas = FindIoas(Find(iommufd), hwpt != hwpts_.end() ? hwpt->second.ioas : page_table);
  if (ioas == nullptr) return SysError("attach", ENOENT);
  if (!ioas->space.CanAttach(hardware)) return SysError("attach", EADDRINUSE);
  if (ioas->space.bytes() > rules.memlock) return SysError("attach", ENOMEM);
  ioas->space.Attach(who, hardware);
  return {};
}

void FakeIommuKernel::DetachDevice(std::uint64_t who) {
  const MutexLock lock(mutex_);
  for (auto& [id, ioas] : ioas_) ioas.space.Detach(who);
}

std::byte* FakeIommuKernel::DmaOfIoas(std::uint32_t ioas, std::uint64_t iova, std::uint64_t length,
                                      memory::Access access) {
  Reap();
  const MutexLock lock(mutex_);
  const auto found = ioas_.find(ioas);
  return found == ioas_.end() ? nullptr : found->second.space.Dma(iova, length, access);
}

std::vector<FakeMapping> FakeIommuKernel::MappingsOfIoas(std::uint32_t ioas) {
  Reap();
  const MutexLock lock(mutex_);
  const auto found = ioas_.find(ioas);
  return found == ioas_.end() ? std::vector<FakeMapping>{} : found->second.space.mappings();
}

std::size_t FakeIommuKernel::ioas_count() {
  Reap();
  const MutexLock lock(mutex_);
  return ioas_.size();
}

}  // namespace postern::iommu
