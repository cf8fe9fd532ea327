#include "iommu/address_space.h"

namespace postern::iommu {

bool Limits::Allows(Iova at, std::uint64_t length) const {
  for (const IovaRange& range : ranges) {
    if (range.Contains(at.value, length)) return true;
  }
  return false;
}

}  // namespace postern::iommu
