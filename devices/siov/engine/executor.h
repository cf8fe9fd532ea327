#pragma once

// Executor: carries out one Intel DSA work descriptor on guest memory, in software: checks it as
// the device would, moves the data, writes the completion record (status byte last, release), asks
// for the interrupt.
//
//   Executor executor(memory, caps, environment);
//   Executed done = executor.Execute({.queue = 0, .max_transfer = 1 << 21, ...}, descriptor);
//
// Addresses are guest-physical. What lies outside RAM is a page fault with that address (status
// 0x03 or, for the record itself, 0x1a by an error record). Guest memory may change under it at any
// time: every field is fetched once.
//
// Is not a queue and has no thread: WorkQueue and Worker (engine.h) have. Ownership: borrows all it
// is given. Threads: one caller at a time; use one Executor per worker.
// DSA 5.4: where a descriptor's record cannot be written (address misaligned, 0x1b, or outside RAM,
// 0x1a) it is discarded before anything is done, and an error record says so. The other checks and
// their order: checks.h.
//
// Source: Intel DSA Architecture Specification 3.0, chapters 5 and 8; Linux
// include/uapi/linux/idxd.h.

#include <cstdint>

#include "devices/siov/core/backend.h"
#include "src/memory/guest_memory.h"

namespace postern::dsa {

// What the device advertises.
struct ExecutorCaps {
  siov::OperationSet operations{};
  bool overlapping_copy = true;
  bool cache_control = true;
};

// Of the queue the descriptor came from.
struct QueueLimits {
  std::uint32_t queue = 0;
  std::uint64_t max_transfer = 0;
  std::uint32_t max_batch = 0;
  siov::OperationSet operations{};
  bool privileged = false;
};

// Where an Executor turns to with what is not in the descriptor.
class ExecutorEnvironment {
 public:
  virtual ~ExecutorEnvironment() = default;
  [[nodiscard]] virtual bool IsHandle(std::uint32_t handle) const = 0;
  virtual void SignalHandle(std::uint32_t handle) = 0;
  // The words are SWERROR's.
  virtual void OnError(const siov::ErrorRecord& record) = 0;
  // For a drain descriptor: returns when all that was submitted to the queue before is complete, or
  // when the queue is aborted.
  virtual void WaitForEarlier() = 0;
  // Asked between pieces (at most 1 MiB) of a long transfer, between the descriptors of a batch and
  // after WaitForEarlier: true ends the descriptor without a record.
  [[nodiscard]] virtual bool aborted() const = 0;
};

struct Executed {
  std::uint8_t operation = 0;
  std::uint8_t status = 0;        // 0: aborted
  std::uint64_t bytes = 0;        // moved, filled, read
  std::uint32_t descriptors = 1;  // of a batch: itself and those in it
};

struct Checksums;

class Executor {
 public:
  Executor(const memory::MemoryMap& memory, const ExecutorCaps& caps,
           ExecutorEnvironment& environment);
  // The memory map's snapshot is taken anew when it changed (once a call).
  Executed Execute(const QueueLimits& limits, const siov::Descriptor& descriptor);
  // Gives up the snapshot, which keeps memory that was unplugged mapped: for a worker that is about
  // to sleep.
  void Rest();

 private:
  void Refresh();

  const memory::MemoryMap& map_;
  ExecutorCaps caps_;
  ExecutorEnvironment& environment_;
  const Checksums& checksums_;
  memory::GuestMemoryPtr memory_;  // of generation_; null after Rest
  std::uint64_t generation_ = 0;
};

}  // namespace postern::dsa
