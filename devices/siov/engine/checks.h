#pragma once

// What a DSA looks at in a work descriptor before it does anything, and which error it reports.
//
//   const Completion verdict = CheckDescriptor(context, descriptor, in_batch, invalid_flags);
//
// The specification lets a device check in any order (DSA 5.4). Ours, the first that applies:
//
//   0x10  the operation: unknown, not advertised, not allowed to the queue, batch or drain in a
//   batch 0x11  flags: reserved, of another operation, without what they need, or required and
//   missing; the
//         mask has all of them (a required flag that is 0 too)
//   0x12  reserved bytes, the interrupt handle and the record's address without their flags among
//         them, and reserved bits of the DIF flags
//   0x19  the interrupt handle
//   0x13  transfer size; 0x14 number of descriptors in a batch
//   0x15  size of the delta record
//   0x18  alignment of the batch's list; 0x1c of the other addresses and sizes
//   0x17  destinations of a dualcast not alike within their pages
//   0x16  overlap
//
// The completion record's address comes before all of these (0x1b, 0x1a; executor.h): such a
// descriptor is discarded.
//
// Where the specification leaves it open: a DIF transfer that is not a whole number of blocks is
// 0x13; a delta record to apply that is not a whole number of deltas is 0x15, one to create may
// have room for part of one. Cache control 1 is allowed to a cache flush (as of version 1: the
// lines stay). Block on fault, 16-byte patterns, CRC-64, drain readback, batch continuation and
// batches of one are not advertised, so their flags are reserved.
//
// Is not about memory: what lies outside RAM is found while working. Threads: any; values.

#include <cstdint>

#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/executor.h"

namespace postern::dsa::internal {

struct CheckContext {
  const ExecutorCaps& caps;
  const QueueLimits& limits;
  const ExecutorEnvironment& environment;
};

// kSuccess: nothing is wrong. `invalid_flags` is set with kBadFlags.
[[nodiscard]] Completion CheckDescriptor(const CheckContext& context,
                                         const WorkDescriptor& descriptor, bool in_batch,
                                         std::uint32_t& invalid_flags);

}  // namespace postern::dsa::internal
