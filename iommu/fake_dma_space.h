#pragma once

// FakeDmaSpace: one I/O address space of a fake kernel: its mappings, the hardware attached to it,
// and what both allow. Part of FakeIommuKernel. Threads: its owner's lock.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "iommu/address_space.h"
#include "src/base/mmap.h"
#include "src/memory/gpa.h"

namespace postern::iommu {

// What the IOMMU in front of a group or a device can do.
struct FakeHardware {
  std::vector<IovaRange> reserved = {{0xfee00000, 0xfeefffff}};  // ascending, disjoint
  std::uint64_t last = (std::uint64_t{1} << 48) - 1;             // highest I/O virtual address
  std::uint64_t page_sizes = std::uint64_t{4096} | std::uint64_t{2} << 20 | std::uint64_t{1} << 30;
  unsigned kind = 0;  // groups of two kinds cannot share the domain of a container
};

struct FakeMapping {
  std::uint64_t iova = 0;
  std::uint64_t length = 0;
  std::byte* address = nullptr;      // where DMA arrives
  std::shared_ptr<const Mmap> file;  // mapped by file: the kernel's own view of it
  memory::Access access = memory::Access::kReadWrite;
};

class FakeDmaSpace {
 public:
  // Numbers are errno values, 0: done.
  [[nodiscard]] int Check(std::uint64_t iova, std::uint64_t length) const;
  void Add(const FakeMapping& mapping);
  // Every mapping inside the range. -1: the range cuts one in two, and nothing was done.
  [[nodiscard]] std::int64_t Remove(std::uint64_t iova, std::uint64_t length);
  void Clear() { mappings_.clear(); }

  [[nodiscard]] bool CanAttach(const FakeHardware& hardware) const;
  void Attach(std::uint64_t who, const FakeHardware& hardware) { attached_[who] = hardware; }
  void Detach(std::uint64_t who) { attached_.erase(who); }
  [[nodiscard]] std::size_t attached() const { return attached_.size(); }

  [[nodiscard]] std::vector<IovaRange> Ranges() const;
  [[nodiscard]] std::uint64_t PageSizes() const;
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] std::vector<FakeMapping> mappings() const;
  // Where DMA to [iova, iova + length) arrives; null where it faults.
  [[nodiscard]] std::byte* Dma(std::uint64_t iova, std::uint64_t length,
                               memory::Access access) const;

 private:
  std::map<std::uint64_t, FakeMapping> mappings_;
  std::map<std::uint64_t, FakeHardware> attached_;
};

}  // namespace postern::iommu
