#pragma once

// Backend: what only the host side of a Scalable-IOV device can do: give a queue's portal, enable,
// drain, abort and reset one queue, say where a completion interrupt goes. A Vdev has one.
//
//   backend.Attach(events);
//   TRY(backend.Start({.groups = {{.queues = 1, .engines = 1}}}));
//   TRY(backend.Enable(0, {.size = 32, .max_transfer = 1 << 21, ...}));
//   backend.Submit(0, descriptor);                    // a trapped portal's way in
//   backend.Drain(QueueSet{1}, [](...) { ... });
//
// Is not a personality: registers, commands and status codes are the personality's; a backend knows
// the format of a descriptor if it must run it itself, and this interface does not.
//
// Nothing here reaches a physical function as a whole: Reset is of this Vdev's queues alone.
//
// Ownership: the Vdev owns it; it borrows BackendEvents from Attach on. Threads: Attach, Start,
// Stop, Enable, the halting calls, handles, portals, state: one at a time, with the function's lock
// held, and none blocks but Quiesce and Reset, whose waits are bounded by one piece of work (not
// one descriptor). Submit: any thread. `done` runs once, on a thread of the backend or inside the
// call. A backend's threads never wait for the function's lock. Source: SIOV as described by the
// Intel DSA Architecture Specification 3.0, sections 3.16 and 7.5.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::siov {

// How a store of the guest into a portal page becomes work.
enum class PortalMode : std::uint8_t {
  kDirect,   // the page is the hardware's: the store is the submission
  kPolled,   // the page is memory that a thread of the backend reads
  kTrapped,  // the store exits; the Vdev calls Submit
};

constexpr std::size_t kDescriptorSize = 64;
using Descriptor = std::array<std::byte, kDescriptorSize>;

// Bit q: queue q. A Vdev has at most 64 queues.
using QueueSet = std::uint64_t;
constexpr std::uint32_t kMaxQueues = 64;

// Bit n: operation code n.
using OperationSet = std::array<std::uint64_t, 4>;
[[nodiscard]] inline bool IsIn(const OperationSet& set, std::uint8_t operation) {
  return (set[operation / 64] >> (operation % 64) & 1) != 0;
}
[[nodiscard]] inline bool IsSubset(const OperationSet& of, const OperationSet& all) {
  for (std::size_t i = 0; i < of.size(); ++i) {
    if ((of[i] & ~all[i]) != 0) return false;
  }
  return true;
}

struct BackendCaps {
  std::uint32_t queues = 0;   // at most kMaxQueues
  std::uint32_t entries = 0;  // of all queues together
  std::uint32_t engines = 0;
  OperationSet operations{};
  std::uint64_t max_transfer = 0;  // bytes of one descriptor, a power of two
  std::uint32_t max_batch = 0;     // descriptors of a batch, a power of two; 0: no batches
  bool direct = false;             // OpenPortal gives hardware pages
  bool polled = false;             // OpenPortal gives pages it reads
  bool saves = false;              // Save and Restore work
  // Interrupt handles are not vector numbers: the guest must ask for them.
  bool named_handles = false;
};

struct GroupConfig {
  QueueSet queues = 0;
  std::uint32_t engines = 0;
};

struct DeviceConfig {
  std::vector<GroupConfig> groups;
};

struct QueueConfig {
  std::uint32_t size = 0;  // descriptors it holds before one is refused
  std::uint8_t priority = 0;
  bool privileged = false;
  std::uint64_t max_transfer = 0;
  std::uint32_t max_batch = 0;
  OperationSet operations{};
};

enum class SubmitResult : std::uint8_t {
  kAccepted,
  kFull,      // dropped: a dedicated queue has no way to say "later"
  kDisabled,  // dropped
};

// An error that has no completion record to go to, in the personality's own format.
struct ErrorRecord {
  std::uint32_t queue = 0;
  std::array<std::uint64_t, 4> words{};
};

// What a backend tells its Vdev. Any thread, without the function's lock; no call blocks.
class BackendEvents {
 public:
  virtual ~BackendEvents() = default;
  [[nodiscard]] virtual bool IsHandle(std::uint32_t handle) const = 0;
  // A completion interrupt, after all the completion wrote is in memory. Unknown handles: nothing.
  virtual void SignalHandle(std::uint32_t handle) = 0;
  virtual void OnError(const ErrorRecord& record) = 0;
  // A descriptor from a polled portal was not accepted.
  virtual void OnRefused(std::uint32_t queue, SubmitResult why) = 0;
  // A polled portal met a driver that breaks the rule of polled_page.h: what it reads from now on
  // may have gaps. The Vdev makes the portal a trapped one.
  virtual void OnRuleBroken(std::uint32_t queue) = 0;
  // What OpenHandle gave is void, all of it; it can be asked for again.
  virtual void OnHandlesRevoked() = 0;
  // The host's side has gone (its device vanished, its descriptor was closed): nothing will
  // complete any more.
  virtual void OnLost() = 0;
};

enum class HaltResult : std::uint8_t { kDone, kLost };
using Done = std::function<void(HaltResult)>;

// What a queue holds that was accepted and not begun, oldest first.
struct QueueState {
  bool enabled = false;
  QueueConfig config;
  std::vector<Descriptor> waiting;
};

struct BackendState {
  std::uint32_t version = 1;
  bool started = false;
  DeviceConfig device;
  std::vector<QueueState> queues;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "engine", "vfio", "cdev"; and what it stands on, for people.
  [[nodiscard]] virtual std::string Describe() const = 0;
  [[nodiscard]] virtual const BackendCaps& caps() const = 0;
  virtual void Attach(BackendEvents& events) = 0;

  // A page of queue `queue` in a mode other than kTrapped. `page` counts the queue's pages from 0.
  // The pages belong to the backend and outlive every mapping. kUnsupported: not in this mode.
  [[nodiscard]] virtual Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                          PortalMode mode) = 0;
  // The polled pages of the queue are looked at once more and then no longer.
  virtual void StopPolling(std::uint32_t queue) = 0;
  [[nodiscard]] virtual SubmitResult Submit(std::uint32_t queue, const Descriptor& descriptor) = 0;

  // Errors: kUnsupported for what caps() does not have; kSystem from the host.
  [[nodiscard]] virtual Result<void> Start(const DeviceConfig& config) = 0;
  // All queues are disabled before.
  virtual void Stop() = 0;
  // What a polled page holds from before is forgotten.
  [[nodiscard]] virtual Result<void> Enable(std::uint32_t queue, const QueueConfig& config) = 0;

  // All that was submitted to these queues before the call is complete, records and interrupts
  // included. Queues that are not enabled count as drained.
  virtual void Drain(QueueSet queues, Done done) = 0;
  // Drains, and then takes nothing any more.
  virtual void Disable(QueueSet queues, Done done) = 0;
  // Discards what has not begun (no record is written), waits for the rest. Still enabled.
  virtual void Abort(QueueSet queues, Done done) = 0;
  // All queues aborted and disabled, the device stopped, handles gone, `done`s of halting calls
  // that were under way will not run: when it returns nothing of this Vdev touches guest memory or
  // signals.
  virtual void Reset() = 0;

  // The handle by which descriptors name MSI-X vector `vector`. kInvalidArgument, kExhausted.
  [[nodiscard]] virtual Result<std::uint32_t> OpenHandle(std::uint16_t vector) = 0;
  virtual void CloseHandle(std::uint32_t handle) = 0;
  // Hardware that signals by itself is given the vector's eventfd here (null: no more); others
  // ignore it.
  virtual void SetVector(std::uint16_t vector, const EventFd* trigger) = 0;

  // Descriptors accepted and not complete.
  [[nodiscard]] virtual std::uint32_t Occupancy(std::uint32_t queue) const = 0;

  // Nothing new is begun and nothing is under way when it returns; submissions are still accepted.
  // Resume goes on.
  virtual void Quiesce() = 0;
  virtual void Resume() = 0;
  // Between Quiesce and Resume. kUnsupported without caps().saves; Restore checks like hostile
  // input (kBadFormat) and changes nothing then.
  [[nodiscard]] virtual Result<BackendState> Save() = 0;
  [[nodiscard]] virtual Result<void> Restore(const BackendState& state) = 0;

  // Per queue, named "queue0_submitted", "queue0_status_01", ...
  virtual void ReportCounters(CounterSink& sink) const = 0;
};

}  // namespace postern::siov
