#pragma once

// AddressSpace: what a device sees at which I/O virtual address: the map of one DMA domain. The
// back ends are a VFIO type1 container, an iommufd IOAS, and the table of a vfio-user peer.
//
//   const Limits limits = space.limits();
//   TRY(space.Map(Iova(0), {.address = ram, .fd = memfd, .offset = 0, .length = size},
//                 Access::kReadWrite));
//   TRY(space.Unmap(Iova(0), size));  // exactly what was mapped
//
// Is not: guest memory, nor its observer (RamMapper is); nor the attachment of devices, which
// belongs to vfio/. A mapping pins its pages: what was mapped is unmapped before the memory goes,
// or the device writes to pages that are another's.
//
// Ownership: by who attached the devices; outlives every mapping. Threads: any; Map and Unmap of
// one space exclude each other.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/result.h"
#include "src/base/strong.h"
#include "src/memory/gpa.h"

namespace postern::iommu {

using Iova = StrongAddress<struct IovaTag>;

// [first, last], both included, so that the last byte of the address space can be named.
struct IovaRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  friend bool operator==(const IovaRange&, const IovaRange&) = default;
  [[nodiscard]] constexpr bool Contains(std::uint64_t at, std::uint64_t length) const {
    return length > 0 && at >= first && at <= last && length - 1 <= last - at;
  }
};

// Memory of this process; `fd` and `offset` where it is (also) a shared file, so that a back end
// can pin or share it by file.
struct HostRange {
  std::byte* address = nullptr;
  int fd = -1;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // bytes
};

struct Limits {
  std::vector<IovaRange> ranges;    // where mappings may lie; ascending, disjoint
  std::uint64_t page_sizes = 0;     // one bit a size; addresses and lengths are multiples of
                                    // the smallest
  std::uint32_t mappings_left = 0;  // how many more mappings the host allows; 0: not told
  bool device_memory = true;        // whether BARs of devices may be asked for, not only guest RAM
  [[nodiscard]] bool Allows(Iova at, std::uint64_t length) const;
};

class AddressSpace {
 public:
  virtual ~AddressSpace() = default;

  // "type1", "iommufd", "vfio-user": for people.
  [[nodiscard]] virtual std::string_view name() const = 0;
  // As of the last attachment: each may take ranges away.
  [[nodiscard]] virtual Limits limits() const = 0;
  // Whole or not at all. kInvalidArgument: unaligned, empty or wrapping; kGuestRange: outside
  // limits().ranges; kOverlap: something is mapped there; kSystem: ENOMEM (RLIMIT_MEMLOCK),
  // ENOSPC (entry limit), EFAULT (memory that cannot be pinned).
  [[nodiscard]] virtual Result<void> Map(Iova at, const HostRange& from, memory::Access access) = 0;
  // Exactly one earlier Map. kNotFound otherwise. When it returns the device reaches none of it.
  [[nodiscard]] virtual Result<void> Unmap(Iova at, std::uint64_t length) = 0;

  // Writes of devices, for migration. kUnsupported where the host cannot tell; everything mapped
  // counts as written then.
  [[nodiscard]] virtual Result<void> TrackDirty(bool on) = 0;
  // ORs one bit a `page_size` into `bits` for what was written since the last call.
  [[nodiscard]] virtual Result<void> TakeDirty(Iova at, std::uint64_t length,
                                               std::uint64_t page_size,
                                               std::span<std::uint64_t> bits) = 0;
};

}  // namespace postern::iommu
