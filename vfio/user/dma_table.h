#pragma once

// DmaTable: what a vfio-user server may reach: the mappings it was told of, and access to the guest
// memory behind them for a server that asks by message.
//
//   TRY(table.Add(Iova(0), {.address = ram, .length = size}, memory::Access::kRead));
//   std::vector<std::byte> bytes(16);
//   TRY(table.Read(Iova(0x1000), bytes));
//
// Memory is found by its address in the present map of guest memory, whose snapshot stays alive
// during the copy: a mapping of what is no guest RAM (a BAR of another device) or no longer is, is
// not reached. Threads: one at a time for Add, Remove, Read and Write (the connection's turn);
// size() any.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "iommu/address_space.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::vfio {

class DmaTable {
 public:
  explicit DmaTable(const memory::MemoryMap& memory) : memory_(memory) {}

  // kInvalidArgument: empty or wrapping; kOverlap.
  [[nodiscard]] Result<void> Add(iommu::Iova at, const iommu::HostRange& from,
                                 memory::Access access);
  // Exactly one that was added; kNotFound otherwise.
  [[nodiscard]] Result<void> Remove(iommu::Iova at, std::uint64_t length);
  [[nodiscard]] std::size_t size() const { return size_.load(std::memory_order_relaxed); }

  // Whole or not at all: kSystem with EFAULT where a byte is not mapped for the access. A range may
  // span mappings that touch. The device reads (Read) or writes (Write) guest memory.
  [[nodiscard]] Result<void> Read(iommu::Iova at, std::span<std::byte> to) const;
  [[nodiscard]] Result<void> Write(iommu::Iova at, std::span<const std::byte> from) const;

 private:
  struct Mapping {
    std::uint64_t length;
    const std::byte* address;
    memory::Access access;
  };
  // Views that borrow from `memory`, in order.
  [[nodiscard]] Result<std::vector<memory::GuestView>> Resolve(const memory::GuestMemory& memory,
                                                               iommu::Iova at, std::uint64_t length,
                                                               memory::Access access) const;
  [[nodiscard]] Result<memory::GuestView> ResolveRun(const memory::GuestMemory& memory,
                                                     std::uint64_t at, std::uint64_t length,
                                                     memory::Access access) const;

  const memory::MemoryMap& memory_;
  std::map<std::uint64_t, Mapping> mappings_;  // by I/O virtual address
  std::atomic<std::size_t> size_{0};
};

}  // namespace postern::vfio
