#pragma once

// MappingTable: what is mapped in one address space, as its owner asked for it; and the rules every
// mapping has to keep. The back ends of AddressSpace keep one each.
//
//   TRY(table.Check(at, from, limits));   // before any system call
//   ... map ...
//   table.Add(at, from, access);
//   const Mapping* mapping = table.Find(at, length);   // exactly one Add, or null
//
// Is not: the kernel's table; nor does it own memory or descriptors. Threads: its owner's lock.

#include <cstdint>
#include <map>
#include <optional>

#include "iommu/address_space.h"
#include "src/base/result.h"
#include "src/memory/gpa.h"

namespace postern::iommu {

struct Mapping {
  HostRange from;
  memory::Access access = memory::Access::kReadWrite;
};

class MappingTable {
 public:
  // kInvalidArgument: empty, wrapping, no address, or not a multiple of the smallest page (nor of
  // the host's); kOverlap; kGuestRange: outside limits.ranges. In this order.
  [[nodiscard]] Result<void> Check(Iova at, const HostRange& from, const Limits& limits) const;
  // What Check agreed to.
  void Add(Iova at, const HostRange& from, memory::Access access);
  void Remove(Iova at);
  [[nodiscard]] const Mapping* Find(Iova at, std::uint64_t length) const;
  // The lowest mapping that `limits` does not allow.
  [[nodiscard]] std::optional<Iova> FirstOutside(const Limits& limits) const;
  [[nodiscard]] const std::map<Iova, Mapping>& all() const { return mappings_; }

 private:
  [[nodiscard]] bool Overlaps(Iova at, std::uint64_t length) const;
  std::map<Iova, Mapping> mappings_;
};

}  // namespace postern::iommu
