#pragma once

// TrappedPortal: one portal page whose stores exit: what is stored in pieces of 1, 2, 4 or 8 bytes
// is gathered, slot by slot, until it is a descriptor.
//
//   TrappedPortal page(counters);
//   if (const Descriptor* whole = page.Store(0x40, data)) backend.Submit(queue, *whole);
//
// The address says nothing about the queue (any of the 64 slots of the page will do), but stores to
// different slots are gathered apart, so that two CPUs which use two slots do not mix theirs. The
// rules, for one slot:
//   - it is a descriptor when each of its 64 bytes was stored since the slot was last submitted, in
//     whatever order and sizes;
//   - a byte stored twice before that has the newer value, and is counted (overwritten_bytes): the
//     sign of a driver that gave up half-way, or of two in one slot;
//   - a partial slot waits, without limit, until it is complete, written as a whole (MOVDIR64B: its
//     bytes are dropped and count as overwritten) or the page is cleared;
//   - a store across the end of its slot is ignored and counted (straddles).
// So nothing is lost for a driver of which one CPU at a time stores to a slot, and which stores all
// of a descriptor before it begins the next one there.
//
// Is not memory: what was stored cannot be read back. Ownership: borrows the counters of its queue.
// Threads: with the function's lock; counters from any thread.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "devices/siov/core/backend.h"
#include "src/base/counters.h"
#include "src/base/result.h"

namespace postern::siov {

// What a slot holds that is no descriptor yet. Bit i of `present`: byte i was stored; others are 0.
struct PartialSlot {
  std::uint32_t queue = 0;
  std::uint32_t page = 0;
  std::uint32_t slot = 0;
  std::uint64_t present = 0;
  Descriptor bytes{};
};

// Of all the pages of one queue.
struct PortalCounters {
  Counter exits;         // accesses to its portal pages that were trapped
  Counter stores;        // those of them that were gathered
  Counter whole_stores;  // of 64 bytes at once (SubmitAt)
  Counter submitted;     // descriptors the backend accepted
  Counter refused;       // and those it did not, from polled pages, too
  Counter overwritten_bytes;
  Counter straddles;
  std::atomic<std::uint32_t> partial_slots{0};  // now
};

class TrappedPortal {
 public:
  static constexpr std::uint32_t kSlots = 64;
  static constexpr std::uint32_t kPageSize = kSlots * kDescriptorSize;

  explicit TrappedPortal(PortalCounters& counters) : counters_(&counters) {}

  // `offset` in the page; `data` has at most 64 bytes and lies in the page (CHECK). Not null: the
  // descriptor that is complete now, valid until the next call.
  [[nodiscard]] const Descriptor* Store(std::uint32_t offset, std::span<const std::byte> data);
  // The slot at `offset` was written as a whole: what it held is void.
  void Overwrite(std::uint32_t offset);
  void Clear();

  // Appends those there are, with this queue and page.
  void Save(std::uint32_t queue, std::uint32_t page, std::vector<PartialSlot>& to) const;
  // kBadFormat for what Save could not have given, and for a slot that holds something.
  [[nodiscard]] Result<void> Restore(const PartialSlot& partial);

 private:
  struct Slot {
    std::uint64_t present = 0;
    Descriptor bytes{};
  };
  [[nodiscard]] Slot& At(std::uint32_t slot);
  void SetPresent(Slot& slot, std::uint64_t present);

  PortalCounters* counters_;
  std::vector<Slot> slots_;  // empty until the first store: most pages never see one
};

}  // namespace postern::siov
