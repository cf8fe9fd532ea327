#include "src/probe/paging.h"

#include <cstddef>

#include "src/probe/x86.h"

extern "C" uint64_t g_page_table_root[512];

namespace postern::probe {
namespace {

constexpr uint64_t kPresentWritable = 0x3;
constexpr uint64_t kUncached = 0x18;  // PWT | PCD
constexpr uint64_t kLargePage = 0x80;
constexpr uint64_t kAddressMask = 0x000ffffffffff000;
constexpr uint64_t kLargePageSize = uint64_t{1} << 21;
constexpr uint64_t kAddressLimit = uint64_t{1} << 47;

constexpr size_t kPoolTables = 48;
alignas(4096) uint64_t g_pool[kPoolTables][512];
size_t g_pool_used = 0;

uint64_t* Descend(uint64_t* table, size_t index) {
  if ((table[index] & 1) == 0) {
    if (g_pool_used == kPoolTables) return nullptr;
    table[index] = reinterpret_cast<uint64_t>(g_pool[g_pool_used++]) | kPresentWritable;
  }
  return reinterpret_cast<uint64_t*>(table[index] & kAddressMask);
}

}  // namespace

void MapPhysical(uint64_t address, uint64_t size, Caching caching) {
  if (size == 0 || address >= kAddressLimit || size > kAddressLimit - address) return;
  const uint64_t last = address + size - 1;
  for (uint64_t page = address & ~(kLargePageSize - 1); page <= last; page += kLargePageSize) {
    uint64_t* const pdpt = Descend(g_page_table_root, page >> 39);
    if (pdpt == nullptr) return;
    uint64_t* const pd = Descend(pdpt, (page >> 30) & 511);
    if (pd == nullptr) return;
    uint64_t& entry = pd[(page >> 21) & 511];
    if ((entry & 1) != 0) continue;
    // A not-present entry is never cached by the processor, so nothing has to be invalidated.
    entry = page | kPresentWritable | kLargePage | (caching == Caching::kDevice ? kUncached : 0);
  }
}

}  // namespace postern::probe
