#pragma once

// Queue: the device side of one split virtqueue (VIRTIO 1.2, 2.7), with INDIRECT_DESC and
// EVENT_IDX.
//
//   void Rng::OnQueue(Queue& queue) {
//     do {
//       while (true) {
//         Result<std::optional<Chain>> next = queue.Pop();
//         if (!next) return NeedsReset(next.error());   // the driver broke a rule: the device
//         stops until it is reset if (!*next) break;                            // nothing to do
//         Chain& chain = **next;
//         chain.Complete(Fill(chain.writer()));
//       }
//       queue.NotifyIfNeeded();
//     } while (queue.EnableKicks());                    // more arrived in between
//   }
//
// Pop checks a chain as a whole before a device sees it: head and next below the queue size, at
// most queue-size descriptors, readable before writable, every region in RAM, total length below
// 2^32, no unknown flags, one level of indirection (2.7.5.3). A chain that breaks a rule is
// consumed (never put back) and is an Error, of code kGuestProtocol or kGuestRange. An available
// index that jumped is an Error at every Pop until the reset.
//
// Ownership: a device owns its queues while it is active (Resources in device.h). A Queue may move
// while chains are out. Threads: one owner at a time: the transport configures it, then the
// device's loop thread uses it. Source of semantics: rust-vmm virtio-queue; state fields carry its
// names. Differences: an error is not the end of a chain; VIRTQ_AVAIL_F_NO_INTERRUPT is honoured.

#include <cstdint>
#include <functional>
#include <optional>

#include "devices/virtio/queue/chain.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// What the driver configured, and where the device is: saved state. Names and order are
// virtio-queue's QueueState.
struct QueueState {
  std::uint16_t max_size = 0;
  std::uint16_t next_avail = 0;
  std::uint16_t next_used = 0;
  bool event_idx_enabled = false;
  std::uint16_t size = 0;
  bool ready = false;
  std::uint64_t desc_table = 0;
  std::uint64_t avail_ring = 0;
  std::uint64_t used_ring = 0;
};

class Queue {
 public:
  // A power of two in 1..32768, else kInvalidArgument.
  [[nodiscard]] static Result<Queue> Create(std::uint16_t max_size);
  // Validates as if the driver had set each value. A restored active queue is activated again with
  // Activate.
  [[nodiscard]] static Result<Queue> FromState(const QueueState& state);
  Queue(Queue&&) noexcept;
  Queue& operator=(Queue&&) noexcept;
  ~Queue();

  // --- configuration, by the transport, before Activate ---
  [[nodiscard]] const QueueState& state() const;
  // False (and nothing changes) for a size that is 0, above max_size or no power of two.
  bool SetSize(std::uint16_t size);
  // False (and nothing changes) when misaligned: descriptor table 16, available ring 2, used ring 4
  // bytes (2.7).
  bool SetDescTable(std::uint64_t address);
  bool SetAvailRing(std::uint64_t address);
  bool SetUsedRing(std::uint64_t address);
  void SetReady(bool ready);
  void SetEventIdx(bool enabled);
  // Back to the state after Create. Chains still out become orphans: completing them does nothing.
  void Reset();

  // Checks that the queue is ready and that the three rings lie in RAM, apart from each other
  // (kGuestProtocol, kGuestRange), and keeps views on them. `interrupt` is called by
  // NotifyIfNeeded. Continues from state().next_avail and next_used.
  [[nodiscard]] Result<void> Activate(memory::GuestMemoryPtr memory, bool indirect_desc,
                                      std::function<void()> interrupt);
  [[nodiscard]] bool active() const;

  // --- data path, on the owner thread ---
  // Nothing, a chain, or an error: three different answers.
  [[nodiscard]] Result<std::optional<Chain>> Pop();
  // True when the driver has put something on the available ring that was not popped yet.
  [[nodiscard]] bool HasWork() const;
  // Asks the driver not to kick (a hint). EnableKicks asks for kicks again and returns true if work
  // arrived meanwhile: pop again.
  void DisableKicks();
  [[nodiscard]] bool EnableKicks();
  // Interrupts if chains were completed since the last call and the driver wants to know
  // (2.7.7, 2.7.10).
  void NotifyIfNeeded();
  // Buffers the driver must see used all at once (a packet spread over several, 5.1.6.4.1): what is
  // completed after HoldUsed is put on the ring, but the driver is shown it by ShowUsed.
  void HoldUsed();
  void ShowUsed();
  // After a restore: the driver may wait for an interrupt whose state was not saved.
  void NotifyAlways();

  [[nodiscard]] std::uint16_t size() const { return state().size; }
  // Chains popped and not given back. A state saved while this is not 0 has lost them.
  [[nodiscard]] std::uint32_t in_flight() const;
  // Chains that were dropped without an answer: bugs of the device.
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  explicit Queue(internal::RingRef ring) : ring_(std::move(ring)) {}
  internal::RingRef ring_;  // shared with the chains in flight; null only when moved from
};

}  // namespace postern::virtio
