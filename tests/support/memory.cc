#include "tests/support/memory.h"

#include "src/base/check.h"

namespace postern::testing {

using memory::Gpa;

memory::GuestMemoryPtr MakeMemory(const std::vector<RegionSpec>& regions, bool track_dirty) {
  std::vector<memory::RegionPtr> made;
  for (const RegionSpec& spec : regions) {
    Result<memory::RegionPtr> region =
        memory::Region::Create(Gpa(spec.base), spec.size, {.track_dirty = track_dirty});
    CHECK(region.has_value());
    made.push_back(*std::move(region));
  }
  Result<memory::GuestMemoryPtr> memory = memory::GuestMemory::Create(std::move(made));
  CHECK(memory.has_value());
  return *memory;
}

memory::GuestMemoryPtr MakeMemory(std::uint64_t size, bool track_dirty) {
  return MakeMemory(std::vector<RegionSpec>{{0, size}}, track_dirty);
}

void Store(const memory::GuestMemoryPtr& memory, std::uint64_t gpa,
           std::span<const std::byte> from) {
  CHECK(memory->CopyIn(Gpa(gpa), from).has_value());
}

std::vector<std::byte> Load(const memory::GuestMemoryPtr& memory, std::uint64_t gpa,
                            std::size_t length) {
  std::vector<std::byte> bytes(length);
  CHECK(memory->CopyOut(Gpa(gpa), bytes).has_value());
  return bytes;
}

bool IsDirty(const memory::GuestMemoryPtr& memory, std::uint64_t gpa) {
  for (const memory::RegionPtr& region : memory->regions()) {
    if (region->Contains(Gpa(gpa))) {
      CHECK(region->dirty() != nullptr);
      return region->dirty()->IsDirty(gpa - region->base().value);
    }
  }
  const bool address_is_in_ram = false;
  CHECK(address_is_in_ram);
  return false;
}

std::vector<std::byte> Pattern(std::size_t length, std::uint32_t seed) {
  std::vector<std::byte> bytes(length);
  std::uint32_t state = seed * 2654435761U + 12345U;
  for (std::byte& byte : bytes) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

}  // namespace postern::testing
