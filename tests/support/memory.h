#pragma once

// MakeMemory: small guest RAM maps for tests, with holes where wanted.
//
//   auto memory = MakeMemory(1 << 20);                                  // one region at 0
//   auto holey = MakeMemory({{0x0, 0x10000}, {0x20000, 0x10000}});      // nothing at
//   0x10000..0x1ffff
//
// Anonymous private memory, page granular; a request that cannot be met ends the test process.

#include <cstdint>
#include <span>
#include <vector>

#include "src/memory/guest_memory.h"

namespace postern::testing {

struct RegionSpec {
  std::uint64_t base;
  std::uint64_t size;
};

[[nodiscard]] memory::GuestMemoryPtr MakeMemory(const std::vector<RegionSpec>& regions,
                                                bool track_dirty = false);
[[nodiscard]] memory::GuestMemoryPtr MakeMemory(std::uint64_t size, bool track_dirty = false);

// Whole-buffer access; a range outside RAM ends the test process.
void Store(const memory::GuestMemoryPtr& memory, std::uint64_t gpa,
           std::span<const std::byte> from);
[[nodiscard]] std::vector<std::byte> Load(const memory::GuestMemoryPtr& memory, std::uint64_t gpa,
                                          std::size_t length);
[[nodiscard]] bool IsDirty(const memory::GuestMemoryPtr& memory, std::uint64_t gpa);

// Bytes that expose wrong offsets, endianness and short copies.
[[nodiscard]] std::vector<std::byte> Pattern(std::size_t length, std::uint32_t seed = 0);

}  // namespace postern::testing
