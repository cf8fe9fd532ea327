#pragma once

// ClientMemory: the memory that the client of a vfio-user server has mapped for DMA, as a
// memory::MemoryMap: the client's I/O virtual address is the guest-physical address.
//
//   ClientMemory memory;
//   TRY(memory.Map({.readable = true, .writable = true, .address = 0, .size = 1 << 28}, file));
//   Engine engine(..., memory.map());
//
// A mapping must come with a file of memory (memory::Region::Adopt): what is not mapped here cannot
// be reached, as this server does not ask for memory by message. A client that shortens its file
// under us gets zeros for memory, and is counted. A
// mapping for reading alone is accepted, and not reached either: a device that writes where it may
// only read must fault, and what is read only to a device (a ROM) is nothing it is given work in.
//
// Map never replaces; Unmap takes whole mappings. What is unmapped stays mapped in this process
// until the last snapshot of the map goes: whoever works by one is brought to rest first.
// Threads: Map and Unmap one at a time; map() as MemoryMap.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"
#include "vfio/user/protocol.h"

namespace postern::vfio {

class ClientMemory {
 public:
  [[nodiscard]] static Result<std::unique_ptr<ClientMemory>> Create(std::size_t max_mappings);

  [[nodiscard]] const memory::MemoryMap& map() const { return map_; }
  // kOverlap; kExhausted; kUnsupported without a file; kInvalidArgument for what is not whole
  // pages, or neither read nor written; Region::Adopt's.
  [[nodiscard]] Result<void> Map(const UserDmaMap& map, const Fd& file);
  // All mappings inside the range. kNotFound where there is none; kInvalidArgument, and nothing
  // changed, where one lies across its border.
  [[nodiscard]] Result<void> Unmap(const UserDmaUnmap& unmap);

  [[nodiscard]] std::size_t mappings() const { return mappings_.size(); }
  // That can be reached.
  [[nodiscard]] std::uint64_t bytes() const;
  // The most there ever were at once, of each.
  [[nodiscard]] std::size_t most_mappings() const { return most_mappings_; }
  [[nodiscard]] std::uint64_t most_bytes() const { return most_bytes_; }
  // Mappings whose file was shortened.
  [[nodiscard]] std::uint64_t lost() const;
  void ReportCounters(CounterSink& sink) const;

 private:
  struct Mapping {
    std::uint64_t size;
    memory::RegionPtr region;  // null: not reached
  };
  using Mappings = std::map<std::uint64_t, Mapping>;  // by address

  ClientMemory(memory::GuestMemoryPtr nothing, std::size_t max_mappings)
      : max_mappings_(max_mappings), map_(std::move(nothing)) {}
  [[nodiscard]] bool Overlaps(std::uint64_t address, std::uint64_t size) const;
  void Remove(Mappings::iterator mapping);

  const std::size_t max_mappings_;
  memory::MemoryMap map_;
  Mappings mappings_;
  std::size_t most_mappings_ = 0;
  std::uint64_t most_bytes_ = 0;
  std::uint64_t lost_ = 0;  // of mappings that are gone
  Counter maps_, unmaps_, maps_refused_, maps_without_file_;
};

}  // namespace postern::vfio
