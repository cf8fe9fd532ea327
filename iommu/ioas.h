#pragma once

// Ioas: the address space of an iommufd: one I/O address space object (IOAS), to which any number
// of devices of any groups are attached; the kernel makes the page tables.
//
//   auto ioas = TRY(Ioas::Open(SystemCalls()));
//   ... VFIO_DEVICE_BIND_IOMMUFD to ioas->iommufd(), VFIO_DEVICE_ATTACH_IOMMUFD_PT to ioas->id()
//   ... TRY(ioas->Attached()); TRY(ioas->Map(Iova(0), ram, Access::kReadWrite));
//
// Is not: binding or attaching devices (vfio/ does). Mappings stay with or without a device; memory
// is pinned while one is attached, so that attaching can fail for lack of memory as Map can.
//
// Memory that is a shared file is mapped by file where the kernel can (IOMMU_IOAS_MAP_FILE, Linux
// 6.13): the mapping then does not hang on this process's addresses. Where it cannot, by address.
//
// Ownership: of the iommufd and the IOAS, which outlive every device attached; the memory behind a
// mapping stays until Unmap returned. Threads: any; calls of one object exclude each other, and a
// call that pins memory takes its time. Errors: as AddressSpace; an answer that breaks the format
// is kSystem with EPROTO. Source: Linux include/uapi/linux/iommufd.h,
// Documentation/userspace-api/iommufd.rst.

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

class Ioas final : public AddressSpace {
 public:
  // Opens /dev/iommu if no iommufd is given. kSystem: ENOENT (no iommufd in this kernel), EACCES,
  // ENOTTY (the descriptor is something else), ...
  [[nodiscard]] static Result<std::unique_ptr<Ioas>> Open(KernelCalls& calls, Fd iommufd = {});
  ~Ioas() override;
  Ioas(const Ioas&) = delete;
  Ioas& operator=(const Ioas&) = delete;

  [[nodiscard]] int iommufd() const { return iommufd_.get(); }
  [[nodiscard]] std::uint32_t id() const { return id_; }

  // After each device was attached or detached: reads the ranges again. kGuestRange: a mapping lies
  // where this device cannot reach; detach it and call again.
  [[nodiscard]] Result<void> Attached();

  // A hardware page table over this IOAS, made with IOMMU_HWPT_ALLOC_DIRTY_TRACKING: from now on
  // TrackDirty and TakeDirty ask it (and the others). Not while tracking is on (kBadState).
  [[nodiscard]] Result<void> AddHwpt(std::uint32_t id);
  void RemoveHwpt(std::uint32_t id);

  [[nodiscard]] std::string_view name() const override { return "iommufd"; }
  // The kernel tells an alignment, not the sizes of the IOMMU's pages: page_sizes has that bit
  // alone. It tells no limit of mappings.
  [[nodiscard]] Limits limits() const override;
  [[nodiscard]] Result<void> Map(Iova at, const HostRange& from, memory::Access access) override;
  // An error if the kernel unmapped less than asked for: the mapping then counts as present.
  [[nodiscard]] Result<void> Unmap(Iova at, std::uint64_t length) override;
  // kUnsupported without a hardware page table that can.
  [[nodiscard]] Result<void> TrackDirty(bool on) override;
  [[nodiscard]] Result<void> TakeDirty(Iova at, std::uint64_t length, std::uint64_t page_size,
                                       std::span<std::uint64_t> bits) override;

 private:
  Ioas(KernelCalls& calls, Fd iommufd, std::uint32_t id);
  [[nodiscard]] Result<Limits> ReadRanges() const REQUIRES(mutex_);
  [[nodiscard]] Result<void> MapInKernel(Iova at, const HostRange& from, memory::Access access)
      REQUIRES(mutex_);
  [[nodiscard]] Result<void> MapFile(Iova at, const HostRange& from, std::uint32_t flags)
      REQUIRES(mutex_);
  [[nodiscard]] Result<void> MapAddress(Iova at, const HostRange& from, std::uint32_t flags)
      REQUIRES(mutex_);
  [[nodiscard]] Result<void> SetTracking(std::uint32_t hwpt, bool on) REQUIRES(mutex_);

  KernelCalls& calls_;
  const Fd iommufd_;
  const std::uint32_t id_;
  // Not a leaf: held over ioctls, so that the table is what the kernel has.
  mutable Mutex mutex_;
  Limits limits_ GUARDED_BY(mutex_);
  MappingTable table_ GUARDED_BY(mutex_);
  bool map_by_file_ GUARDED_BY(mutex_) = true;  // until the kernel says that it cannot
  std::vector<std::uint32_t> hwpts_ GUARDED_BY(mutex_);
  bool tracking_ GUARDED_BY(mutex_) = false;
};

}  // namespace postern::iommu
