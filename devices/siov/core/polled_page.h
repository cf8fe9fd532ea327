#pragma once

// PolledPage: a portal page that is memory: 64 slots of 64 bytes, each holding the last descriptor
// stored there, and the reader that takes them out in order.
//
//   auto page = TRY(PolledPage::Create(1));
//   page.Poll([&](const Descriptor& d) { queue.Push(d); });
//
// Is not a queue. It loses nothing while, and only while:
//   1. one CPU stores (each store of 64 bytes, or of words with the first word last);
//   2. consecutive descriptors go to consecutive slots, 63 is followed by 0 (Linux idxd does this);
//   3. at most 63 descriptors are submitted and not complete (a queue of at most 63 entries);
//   4. a descriptor's first 8 bytes are not all zero (they are only in a no-op that asks for nothing).
// A store elsewhere than rule 2 says is seen: it is still taken, counted in broken_rules(), and the
// page is no longer trusted: its owner changes to a trapped portal. A second store to a slot before
// the first was taken leaves no trace in the page by itself; drivers that do it (slot 0 always; two
// CPUs in one slot) break rule 2 with the first store that is not overwritten, and are seen then.
//
// Ownership: owns the pages. Threads: Poll on one thread at a time; the guest stores at any time.
