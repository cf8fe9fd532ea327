#pragma once

// RamMapper: guest RAM in one address space: every region of the memory map at the I/O virtual
// address that is its guest-physical one, for as long as it is in the map.
//
//   RamMapper mapper(container, 8);
//   const Result<void> mapped = memory.Observe(mapper);      // all regions, or none
//   if (!mapped) {
//     const RamMapper::MapError& at = *mapper.last_error();
//     return tl::unexpected(ExplainMapFailure(container, at.gpa, at.length, at.error));
//   }
//
// The order of those who watch the memory map. KVM's slots are registered first, then the address
// spaces in the order in which their first device was attached, and MemoryMap tells them of
// additions in that order and of removals in the reverse. So
//   added:    KVM, address space 1, address space 2, then the map the devices' models see:
//             a guest that finds the memory can give it to a device at once;
//   removed:  the map, address space 2, address space 1, KVM, then the pages of this process:
//             no device reaches memory that the guest no longer has, nor pages of somebody else.
// Whoever fails makes those told before it give the region up again; nothing has changed then.
//
// Is not: BARs of other devices, ROMs, nor memory behind a virtual IOMMU. A region is one mapping
// (the host's limit counts them, and an unmap must match).
//
// Ownership: of nothing; the address space outlives it, and the memory map forgets it (Unobserve)
// before it goes. What it mapped stays mapped then, until the domain goes. Threads: the control
// thread, as every MemoryObserver.

#include <cstdint>
#include <optional>

#include "iommu/address_space.h"
#include "src/base/failure.h"
#include "src/base/result.h"
#include "src/memory/gpa.h"
#include "src/memory/guest_memory.h"

namespace postern::iommu {

class RamMapper final : public memory::MemoryObserver {
 public:
  struct MapError {
    memory::Gpa gpa;
    std::uint64_t length = 0;
    Error error;
  };

  // prefault_threads: how many make memory present before it is pinned; 0: it is not.
  RamMapper(AddressSpace& space, unsigned prefault_threads)
      : space_(space), prefault_threads_(prefault_threads) {}

  [[nodiscard]] Result<void> Added(const memory::Region& region) override;
  // An address space that does not give a region up is logged as an error; its pages stay pinned,
  // and so nobody else's.
  void Removing(const memory::Region& region) override;

  [[nodiscard]] std::uint64_t mapped_bytes() const { return mapped_bytes_; }
  // Why Added last failed.
  [[nodiscard]] const std::optional<MapError>& last_error() const { return last_error_; }

 private:
  [[nodiscard]] Result<void> MapRegion(const memory::Region& region);

  AddressSpace& space_;
  const unsigned prefault_threads_;
  std::uint64_t mapped_bytes_ = 0;
  std::optional<MapError> last_error_;
};

// Why [at, at + length) could not be mapped, and what to do about it: the limit of locked memory
// (needed and present), the limit of mappings, the reserved window it overlaps, the page size.
[[nodiscard]] Failure ExplainMapFailure(const AddressSpace& space, memory::Gpa at,
                                        std::uint64_t length, const Error& error);
// The same with a given RLIMIT_MEMLOCK in bytes (all ones: none).
[[nodiscard]] Failure ExplainMapFailure(const AddressSpace& space, memory::Gpa at,
                                        std::uint64_t length, const Error& error,
                                        std::uint64_t memlock_limit);

}  // namespace postern::iommu
