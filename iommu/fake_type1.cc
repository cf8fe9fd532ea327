// The groups and containers of FakeIommuKernel.

#include <linux/vfio.h>
#include <sys/mman.h>

#include <cstring>
#include <iterator>

#include <fmt/core.h>

#include "iommu/fake_iommu_kernel.h"

namespace postern::iommu {
namespace {

template <typename T>
T Load(const void* from) {
  T value{};
  std::memcpy(&value, from, sizeof(T));
  return value;
}

void* Pointer(unsigned long argument) {
  return reinterpret_cast<void*>(argument);
}

bool Present(std::uint64_t address, std::uint64_t length) {
  // Fails with ENOMEM where nothing is mapped.
  return msync(reinterpret_cast<void*>(address), length, MS_ASYNC) == 0;
}

const char* Letters(std::uint32_t flags) {
  if ((flags & VFIO_DMA_MAP_FLAG_WRITE) == 0) return "r";
  return (flags & VFIO_DMA_MAP_FLAG_READ) == 0 ? "w" : "rw";
}

template <typename T>
void Append(std::vector<std::byte>& to, const T& value) {
  const std::size_t at = to.size();
  to.resize(at + sizeof(T));
  std::memcpy(to.data() + at, &value, sizeof(T));
}

std::vector<std::byte> Capabilities(const FakeIommuKernel::Rules& rules, const FakeDmaSpace& space,
                                    std::size_t fixed) {
  std::vector<std::byte> bytes;
  std::size_t last = 0;
  bool any = false;
  const auto begin = [&](std::uint16_t id) {
    const auto next = static_cast<std::uint32_t>(fixed + bytes.size());
    if (any) {
      std::memcpy(bytes.data() + last + offsetof(vfio_info_cap_header, next), &next, sizeof(next));
    }
    any = true;
    last = bytes.size();
    Append(bytes, vfio_info_cap_header{.id = id, .version = 1, .next = 0});
  };
  if (rules.migration_cap) {
    begin(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION);
    Append(bytes, std::uint64_t{0});  // flags and padding
    Append(bytes, std::uint64_t{4096});
    Append(bytes, std::uint64_t{1} << 28);
  }
  if (rules.dma_avail_cap) {
    begin(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    Append(bytes, static_cast<std::uint32_t>(rules.entry_limit - space.mappings().size()));
    Append(bytes, std::uint32_t{0});  // the next one starts at a multiple of 8
  }
  if (rules.iova_range_cap) {
    const std::vector<IovaRange> ranges = space.Ranges();
    begin(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    Append(bytes, static_cast<std::uint32_t>(ranges.size()));
    Append(bytes, std::uint32_t{0});
    for (const IovaRange& range : ranges) {
      Append(bytes, vfio_iova_range{.start = range.first, .end = range.last});
    }
  }
  return bytes;
}

}  // namespace

// --- groups ---

std::map<unsigned, FakeIommuKernel::Group>::iterator FakeIommuKernel::FindGroup(FileId file) {
  if (file == 0) return groups_.end();
  for (auto it = groups_.begin(); it != groups_.end(); ++it) {
    if (it->second.file == file) return it;
  }
  return groups_.end();
}

FakeIommuKernel::Answer FakeIommuKernel::GroupIoctl(unsigned number, unsigned long request,
                                                    unsigned long argument, bool busy) {
  Group& group = groups_[number];
  switch (request) {
    case VFIO_GROUP_GET_STATUS: {
      auto status = Load<vfio_group_status>(Pointer(argument));
      if (status.argsz < sizeof(status)) return EINVAL;
      if (group.gone) return ENODEV;
      status.flags = (group.viable ? VFIO_GROUP_FLAGS_VIABLE : 0U) |
                     (group.container != 0 ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0U);
      std::memcpy(Pointer(argument), &status, sizeof(status));
      return 0;
    }
    case VFIO_GROUP_SET_CONTAINER:
      return SetContainer(number, group, Load<std::int32_t>(Pointer(argument)));
    case VFIO_GROUP_UNSET_CONTAINER:
      if (group.container == 0) return EINVAL;
      if (busy) return EBUSY;
      Leave(number, group);
      return 0;
    default:
      return -1;
  }
}

int FakeIommuKernel::SetContainer(unsigned number, Group& group, int container_fd) {
  const auto found = containers_.find(Find(container_fd));
  if (found == containers_.end()) return EBADF;
  if (group.container != 0) return EINVAL;
  if (!group.viable) return EPERM;
  Container& container = found->second;
  if (container.iommu) {
    for (const unsigned other : container.groups) {
      if (groups_[other].hardware.kind != group.hardware.kind) return EINVAL;
    }
    if (!container.space.CanAttach(group.hardware)) return EINVAL;
  }
  container.groups.insert(number);
  if (container.iommu) container.space.Attach(number, group.hardware);
  group.container = found->first;
  return 0;
}

// With the last group go the domain and all its mappings.
void FakeIommuKernel::Leave(unsigned number, Group& group) {
  Container& container = containers_[group.container];
  container.groups.erase(number);
  container.space.Detach(number);
  const FileId id = std::exchange(group.container, 0);
  if (!container.groups.empty()) return;
  container.iommu = false;
  container.space.Clear();
  if (!files_.contains(id)) containers_.erase(id);
}

std::byte* FakeIommuKernel::DmaOfGroup(unsigned number, std::uint64_t iova, std::uint64_t length,
                                       memory::Access access) {
  Reap();
  const MutexLock lock(mutex_);
  const auto group = groups_.find(number);
  if (group == groups_.end() || group->second.container == 0) return nullptr;
  return containers_[group->second.container].space.Dma(iova, length, access);
}

std::vector<FakeMapping> FakeIommuKernel::MappingsOfGroup(unsigned number) {
  Reap();
  const MutexLock lock(mutex_);
  const auto group = groups_.find(number);
  if (group == groups_.end() || group->second.container == 0) return {};
  return containers_[group->second.container].space.mappings();
}

// --- containers ---

FakeIommuKernel::Answer FakeIommuKernel::ContainerIoctl(Container& container, unsigned long request,
                                                        unsigned long argument, int& value,
                                                        std::string& line) {
  switch (request) {
    case VFIO_GET_API_VERSION:
      value = rules.api_version;
      return 0;
    case VFIO_CHECK_EXTENSION:
      value = rules.type1v2 && argument == VFIO_TYPE1v2_IOMMU ? 1 : 0;
      return 0;
    case VFIO_SET_IOMMU:
      if (container.groups.empty() || container.iommu) return EINVAL;
      if (argument != VFIO_TYPE1v2_IOMMU || !rules.type1v2) return EINVAL;
      container.iommu = true;
      for (const unsigned number : container.groups) {
        container.space.Attach(number, groups_[number].hardware);
      }
      return 0;
    case VFIO_IOMMU_GET_INFO:
      return container.iommu ? Type1Info(container, Pointer(argument)) : EINVAL;
    case VFIO_IOMMU_MAP_DMA:
      return Type1Map(container, Pointer(argument), line);
    case VFIO_IOMMU_UNMAP_DMA:
      return Type1Unmap(container, Pointer(argument), line);
    default:
      return -1;
  }
}

int FakeIommuKernel::Type1Info(const Container& container, void* argument) const {
  constexpr std::size_t kFixed = sizeof(vfio_iommu_type1_info);
  const auto argsz = Load<std::uint32_t>(argument);
  if (argsz < offsetof(vfio_iommu_type1_info, cap_offset)) return EINVAL;
  const std::vector<std::byte> caps = Capabilities(rules, container.space, kFixed);
  vfio_iommu_type1_info info{};
  info.argsz = argsz;
  info.flags = VFIO_IOMMU_INFO_PGSIZES;
  info.iova_pgsizes = container.space.PageSizes();
  if (!caps.empty()) {
    info.flags |= VFIO_IOMMU_INFO_CAPS;
    if (argsz < kFixed + caps.size()) {
      info.argsz = static_cast<std::uint32_t>(kFixed + caps.size());
    } else {
      info.cap_offset = kFixed;
      std::memcpy(static_cast<std::byte*>(argument) + kFixed, caps.data(), caps.size());
    }
  }
  std::memcpy(argument, &info, std::min<std::size_t>(argsz, kFixed));
  return 0;
}

int FakeIommuKernel::Type1Map(Container& container, const void* argument, std::string& line) {
  const auto map = Load<vfio_iommu_type1_dma_map>(argument);
  line += fmt::format(" {:#x}+{:#x} {}", map.iova, map.size, Letters(map.flags));
  constexpr std::uint32_t kBoth = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  if (!container.iommu || map.argsz < sizeof(map)) return EINVAL;
  if ((map.flags & kBoth) == 0 || (map.flags & ~kBoth) != 0) return EINVAL;
  const std::uint64_t sizes = container.space.PageSizes();
  if ((map.vaddr & ((sizes & -sizes) - 1)) != 0) return EINVAL;
  if (const int error = container.space.Check(map.iova, map.size); error != 0) return error;
  if (container.space.mappings().size() >= rules.entry_limit) return ENOSPC;
  if (!Present(map.vaddr, map.size)) return EFAULT;
  const std::uint64_t bytes = container.space.bytes();
  if (bytes > rules.memlock || map.size > rules.memlock - bytes) return ENOMEM;
  container.space.Add({.iova = map.iova,
                       .length = map.size,
                       .address = reinterpret_cast<std::byte*>(map.vaddr),
                       .file = {},
                       .access = static_cast<memory::Access>(map.flags & kBoth)});
  return 0;
}

int FakeIommuKernel::Type1Unmap(Container& container, void* argument, std::string& line) {
  auto unmap = Load<vfio_iommu_type1_dma_unmap>(argument);
  line += fmt::format(" {:#x}+{:#x}", unmap.iova, unmap.size);
  constexpr std::size_t kMinimum = offsetof(vfio_iommu_type1_dma_unmap, data);
  if (!container.iommu || unmap.argsz < kMinimum || unmap.flags != 0) return EINVAL;
  if (unmap.size == 0 || unmap.size - 1 > ~unmap.iova) return EINVAL;
  const std::int64_t bytes = container.space.Remove(unmap.iova, unmap.size);
  if (bytes < 0) return EINVAL;
  unmap.size = static_cast<std::uint64_t>(bytes);
  std::memcpy(argument, &unmap, kMinimum);
  return 0;
}

}  // namespace postern::iommu
