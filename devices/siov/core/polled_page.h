#pragma once

// PolledPage: the portal pages of one queue as memory: 64 slots of 64 bytes a page, each holding
// the last descriptor stored there, and the reader that takes them out in order.
//
//   auto page = TRY(PolledPage::Create(2));
//   page.Poll([&](const Descriptor& d) { queue.Push(d); });
//   if (!page.trusted()) events.OnRuleBroken(queue);
//
// Is not a queue. It loses nothing while, and only while, for each page:
//   1. one CPU stores (each store of 64 bytes, or of words with the first word last);
//   2. consecutive descriptors go to consecutive slots, 63 is followed by 0 (Linux idxd does this);
//   3. at most 63 descriptors are submitted and not complete (a queue of at most 63 entries);
//   4. a descriptor's first 8 bytes are not all zero (they are only in a no-op that asks for
//      nothing; it stays unseen, and what follows it then looks like a break of rule 2).
// A store elsewhere than rule 2 says is seen: it is still taken, counted in broken_rules(), and the
// page is no longer trusted: its owner changes to a trapped portal. A second store to a slot before
// the first was taken leaves no trace in the page by itself; drivers that do it (slot 0 always; two
// CPUs in one slot) break rule 2 with the first store that is not overwritten, and are seen then.
// One that comes while the first is being taken is seen: that one is dropped, counted in
// overwritten(), and the page is no longer trusted.
//
// A descriptor that is taken was in the slot as a whole at one moment. So it is one descriptor of
// the driver for stores of 64 bytes always, for stores of words while the rules hold.
//
// After Create and Forget the first slot may be any (a driver keeps its place over a reset; a guest
// over a migration): the start of the run of full slots.
//
// Looks at one word a page while nothing comes; all slots are looked at every kScanEvery polls, and
// by Scan, so that a driver that breaks rule 2 is seen.
//
// Ownership: owns the pages. Threads: Poll, Scan and Forget one at a time; the guest stores at any
// time; counters from any thread.
// Sources: Linux drivers/dma/idxd (portal_offset); Intel SDM vol. 2 (MOVDIR64B: 64 bytes without
// tearing, weakly ordered with other stores).

#include <cstdint>
#include <memory>
#include <vector>

#include "devices/siov/core/backend.h"
#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::siov {

class PolledPage {
 public:
  static constexpr std::uint32_t kSlots = 64;
  static constexpr std::uint32_t kPageSize = kSlots * kDescriptorSize;
  static constexpr std::uint32_t kScanEvery = 256;

  // Of pages that are handed to another process in one descriptor: a memfd that can be neither
  // shortened nor extended. `bytes`: a multiple of the page's size.
  [[nodiscard]] static Result<Fd> CreateFile(std::uint64_t bytes);
  // `pages` (1..64) pages in one file, next to each other.
  [[nodiscard]] static Result<PolledPage> Create(std::uint32_t pages);
  // The same at `offset` of a file of CreateFile; the descriptor is duplicated.
  [[nodiscard]] static Result<PolledPage> CreateIn(const Fd& file, std::uint64_t offset,
                                                   std::uint32_t pages);

  [[nodiscard]] std::uint32_t pages() const { return static_cast<std::uint32_t>(cursors_.size()); }
  // To be mapped into the guest. `page` is below pages() (CHECK).
  [[nodiscard]] bus::HostPages host(std::uint32_t page) const;

  // Takes what is there, at most 64 descriptors a page, in the order of the slots, and answers how
  // many. `take` is called with a const Descriptor&, when its slot is free again.
  template <typename Take>
  std::uint32_t Poll(Take&& take) {
    std::uint32_t taken = 0;
    for (Cursor& cursor : cursors_) {
      const bool empty = Word(cursor, cursor.next, 0) == 0;
      const bool due = empty && Due(cursor);
      if (empty && !due) [[likely]]
        continue;
      taken += TakeAll(cursor, due, take);
    }
    return taken;
  }
  // The same with a look at every slot: before its thread sleeps, after it woke up, and as the last
  // look when the pages are in no guest any more.
  template <typename Take>
  std::uint32_t Scan(Take&& take) {
    std::uint32_t taken = 0;
    for (Cursor& cursor : cursors_) taken += TakeAll(cursor, true, take);
    return taken;
  }
  // What is in the pages goes, and they are trusted anew.
  void Forget();

  // Since Create or Forget all was as the rules say.
  [[nodiscard]] bool trusted() const { return trusted_; }
  // Since Create.
  [[nodiscard]] std::uint64_t broken_rules() const { return counters_->broken_rules.Get(); }
  [[nodiscard]] std::uint64_t overwritten() const { return counters_->overwritten.Get(); }

 private:
  // Of one page.
  struct Cursor {
    std::uint64_t* words = nullptr;  // the guest's, too
    std::uint32_t next = 0;          // the slot expected next
    std::uint32_t idle = 0;          // looks that found it empty since all slots were looked at
    bool in_step = false;            // the first descriptor was seen
  };
  struct Counters {
    Counter broken_rules, overwritten;
  };

  PolledPage(Fd file, std::uint64_t offset, Mmap memory, std::uint32_t pages);

  static std::uint64_t Word(const Cursor& cursor, std::uint32_t slot, std::uint32_t word) {
    return __atomic_load_n(cursor.words + std::size_t{slot} * 8 + word, __ATOMIC_ACQUIRE);
  }
  [[nodiscard]] bool Due(Cursor& cursor) const {
    if (++cursor.idle < kScanEvery && trusted_) return false;
    cursor.idle = 0;
    return true;
  }
  template <typename Take>
  std::uint32_t TakeAll(Cursor& cursor, bool everywhere, Take& take) {
    Descriptor descriptor;
    std::uint32_t taken = 0;
    while (taken < kSlots && TakeNext(cursor, everywhere, descriptor)) {
      take(static_cast<const Descriptor&>(descriptor));
      ++taken;
    }
    return taken;
  }
  [[nodiscard]] bool TakeNext(Cursor& cursor, bool everywhere, Descriptor& descriptor);
  [[nodiscard]] bool TakeSlot(Cursor& cursor, std::uint32_t slot, Descriptor& descriptor);
  // The full slot that comes next, wherever it is; kSlots if there is none.
  [[nodiscard]] static std::uint32_t Find(const Cursor& cursor);
  [[nodiscard]] bool Search(Cursor& cursor);
  void Distrust(Counter& why);

  Fd file_;
  std::uint64_t offset_;
  Mmap memory_;
  std::vector<Cursor> cursors_;
  bool trusted_ = true;
  std::unique_ptr<Counters> counters_;
};

}  // namespace postern::siov
