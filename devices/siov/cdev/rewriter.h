#pragma once

// Rewriter: a guest's descriptor made one for a queue of the host's idxd driver (/dev/dsa/wqX.Y):
// copied, checked, and every address in it that of this process; and the way back, the completion
// record made the guest's.
//
//   const auto r = Rewriter::Rewrite(*memory.Snapshot(), descriptor, shadow_address);
//   if (!r) ... r.error().status is what the guest's completion record gets
//   ... write(2) r->descriptor; wait until the shadow record has a status ...
//   const bool interrupt = r->Finish(*memory.Snapshot(), shadow);
//
// Why: such a queue translates addresses in this process's own address space (SVA), so a descriptor
// that a guest could submit by itself would reach all of Postern's memory. Here only addresses that
// were checked leave. The design of the back end around it:
//   - portals are trapped only: a store of the guest is a message to Postern;
//   - the device writes its completion to a shadow record of ours, never to the guest: a page
//   fault's
//     address would be one of this process. A thread polls the shadow records of what is under way
//     and turns each into the guest's record, error and interrupt (the driver offers none);
//   - no batches (their list would have to be rewritten where the guest can still change it; the
//     driver refuses them too on devices before a fix in hardware), no drains (they are the back
//     end's own), no DIF operations so far: OPCAP says so (kRewritable);
//   - regions of guest memory stay where they are while anything is under way (Quiesce).
// cdev_backend.h is that back end.
//
// A range must lie in one region of guest memory: two neighbours are not neighbours in this
// process. What of the descriptor names no address (patterns, seeds, expected results, flags the
// device may refuse) is the device's to judge; so is what the memory holds, as no operation here
// follows addresses in it.
//
// Ownership: values. Threads: any. Source: Intel DSA Architecture Specification 3.0, chapter 8;
// Linux 6.12 drivers/dma/idxd/cdev.c (what write(2) takes) and include/uapi/linux/idxd.h.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include <tl/expected.hpp>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/descriptor.h"
#include "src/memory/guest_memory.h"

namespace postern::dsa {

// No-op, move, fill, both compares, both deltas, dualcast, both CRCs, cache flush.
constexpr siov::OperationSet kRewritable{0x1000303f9, 0, 0, 0};

// Why a descriptor does not go to the device: what its completion record says, or, with no place
// for one, the software error.
struct Refusal {
  Completion status = Completion::kSuccess;
  std::uint64_t fault_address = 0;  // guest-physical, with a page fault
  bool fault_on_write = false;
};

class Rewritten {
 public:
  // What a descriptor names, for the guest and in this process; not its record.
  struct Span {
    std::uint64_t guest = 0;
    std::uint64_t host = 0;
    std::uint64_t length = 0;
    bool write = false;
  };
  siov::Descriptor descriptor{};  // for write(2)
  [[nodiscard]] std::span<const Span> spans() const { return std::span(spans_).first(count_); }
  bool interrupt = false;    // the guest wants one
  std::uint16_t handle = 0;  // by this handle of its own

  // False: errors are to be reported as the device's.
  [[nodiscard]] bool has_record() const { return record_ != 0; }
  // The shadow record's contents, as the guest is to have them; true: the interrupt is due. The
  // status byte is written last.
  [[nodiscard]] bool Finish(const memory::GuestMemory& memory,
                            const CompletionRecord& shadow) const;
  // With a page fault in that record: the guest's address; 0 for what the guest never named.
  [[nodiscard]] std::uint64_t FaultAddress(const CompletionRecord& shadow) const;

 private:
  friend class Rewriter;
  void Add(const Span& span);
  [[nodiscard]] std::uint64_t GuestAddress(std::uint64_t host) const;

  std::uint64_t record_ = 0;   // guest-physical; 0: none
  bool always_ = false;        // a record is written on success, too
  std::array<Span, 4> spans_;  // what the descriptor names, for faults
  std::size_t count_ = 0;
};

// To the guest, status last. Nothing where there is no memory.
void WriteGuestRecord(const memory::GuestMemory& memory, std::uint64_t address,
                      const CompletionRecord& record);

class Rewriter {
 public:
  // `shadow`: the address in this process at which the device is to write, aligned to 32 (CHECK).
  [[nodiscard]] static tl::expected<Rewritten, Refusal> Rewrite(const memory::GuestMemory& memory,
                                                                const siov::Descriptor& descriptor,
                                                                std::uint64_t shadow);
};

}  // namespace postern::dsa
