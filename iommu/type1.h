#pragma once

// Type1Container: the address space of a VFIO container (type 1, version 2): one DMA domain shared
// by the groups attached to it.
//
//   auto container = TRY(Type1Container::Open(SystemCalls()));
//   TRY(container->Attach(group));                    // the first one makes the domain
//   TRY(container->Map(Iova(0), ram, Access::kReadWrite));
//   container->Detach(group);                         // the last one takes it away
//
// Is not: the group, its devices or KVM's knowledge of them (vfio/ does those). A domain lives as
// long as a group is attached. Mappings made before the first Attach, and those of a domain that
// went with its last group, are remembered and made at the next first Attach: what is in the table
// is what every domain of this container has.
//
// Ownership: keeps the numbers of attached groups, not the descriptors; the memory behind a
// mapping stays until Unmap returned. Closing the container does not end a domain whose groups are
// open: Detach them first. Threads: any; calls of one container exclude each other, and a call that
// pins memory takes its time. Errors: as AddressSpace; an answer of the kernel that breaks its own
// format is kSystem with EPROTO. Source: Linux include/uapi/linux/vfio.h,
// drivers/vfio/vfio_iommu_type1.c.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "iommu/address_space.h"
#include "iommu/mapping_table.h"
#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/mutex.h"
#include "src/base/result.h"

namespace postern::iommu {

// What VFIO_IOMMU_GET_INFO told.
struct Type1Info {
  Limits limits;
  std::uint64_t dirty_page_sizes = 0;        // 0: the host cannot log writes of devices
  std::uint64_t max_dirty_bitmap_bytes = 0;  // a call
  friend bool operator==(const Type1Info& a, const Type1Info& b) {
    return a.limits.ranges == b.limits.ranges && a.limits.page_sizes == b.limits.page_sizes &&
           a.limits.mappings_left == b.limits.mappings_left &&
           a.dirty_page_sizes == b.dirty_page_sizes &&
           a.max_dirty_bitmap_bytes == b.max_dirty_bitmap_bytes;
  }
};

// Of the bytes of a vfio_iommu_type1_info and its capabilities. kSystem with EPROTO: malformed.
// Without the capability that lists ranges (a kernel before 5.4; a container that has mediated
// devices alone) they are those of DefaultType1Info.
[[nodiscard]] Result<Type1Info> ParseType1Info(std::span<const std::byte> info);

// What holds while nothing was told: everything but the window of x86 interrupts, pages of 4096.
[[nodiscard]] Type1Info DefaultType1Info();

class Type1Container final : public AddressSpace {
 public:
  // Opens /dev/vfio/vfio. kSystem: ENOENT (no vfio module), EACCES, ...; kUnsupported: another API
  // version, or no type 1 version 2.
  [[nodiscard]] static Result<std::unique_ptr<Type1Container>> Open(KernelCalls& calls);

  // `group`: an open group. Makes the domain and the remembered mappings if it is the first, and
  // reads the limits again. On any error the group is not attached and nothing else has changed.
  // kUnsupported: the group cannot share the domain of those attached: open a second container.
  // kGuestRange: a mapping lies in a range this group's devices cannot reach. kBadState: it is
  // attached already. As Map for what cannot be mapped.
  [[nodiscard]] Result<void> Attach(int group);
  // After the group's devices were closed (the kernel refuses before). What it does not know is
  // ignored.
  void Detach(int group);

  [[nodiscard]] int fd() const { return container_.get(); }
  [[nodiscard]] std::size_t groups() const;
  [[nodiscard]] Type1Info info() const;

  [[nodiscard]] std::string_view name() const override { return "type1"; }
  [[nodiscard]] Limits limits() const override;
  [[nodiscard]] Result<void> Map(Iova at, const HostRange& from, memory::Access access) override;
  // An error if the kernel unmapped less than asked for: the mapping then counts as present.
  [[nodiscard]] Result<void> Unmap(Iova at, std::uint64_t length) override;
  // kUnsupported: type 1 reports every page it has pinned as written, which is what a caller
  // assumes anyhow.
  [[nodiscard]] Result<void> TrackDirty(bool on) override;
  [[nodiscard]] Result<void> TakeDirty(Iova at, std::uint64_t length, std::uint64_t page_size,
                                       std::span<std::uint64_t> bits) override;

 private:
  Type1Container(KernelCalls& calls, Fd container);
  [[nodiscard]] Result<void> AttachFirst() REQUIRES(mutex_);
  [[nodiscard]] Result<void> AttachNext() REQUIRES(mutex_);
  [[nodiscard]] Result<Type1Info> ReadInfo() REQUIRES(mutex_);
  [[nodiscard]] Result<void> Replay() REQUIRES(mutex_);
  [[nodiscard]] Result<void> MapInKernel(Iova at, const Mapping& mapping) REQUIRES(mutex_);
  [[nodiscard]] Result<void> UnmapInKernel(Iova at, std::uint64_t length) REQUIRES(mutex_);
  void UnmapAllInKernel() REQUIRES(mutex_);
  void Leave(int group) REQUIRES(mutex_);
  // Whether leaving failed because the group is in no container any more.
  [[nodiscard]] bool HasLeft(const Error& error, int group);

  KernelCalls& calls_;
  const Fd container_;
  // Not a leaf: held over the ioctls of the container, which exclude each other in the kernel too.
  mutable Mutex mutex_;
  std::vector<int> groups_ GUARDED_BY(mutex_);  // not empty: the domain exists
  Type1Info info_ GUARDED_BY(mutex_);
  MappingTable table_ GUARDED_BY(mutex_);
};

}  // namespace postern::iommu
