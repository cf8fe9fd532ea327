#pragma once

// CdevBackend: the back end whose one queue is a queue of the host's own idxd driver,
// /dev/dsa/wqX.Y: no device is taken from the host, and several guests can share one queue.
//
//   auto queue = TRY_OUTCOME(OpenIdxdQueue("/dev/dsa/wq0.0"));
//   auto backend = TRY(CdevBackend::Create({.name = "dsa0"}, memory, std::move(queue)));
//   auto vdev = TRY(siov::Vdev::Create({.name = "dsa0", .portal = PortalMode::kTrapped},
//                                      std::move(personality), std::move(backend), host));
//
// The device reaches all of this process, so no descriptor of a guest reaches the device: Submit
// keeps a copy, and a thread of this object checks it, rewrites it (rewriter.h), makes its pages
// present and writes it to the file; it then watches the record the device completes (ours, not the
// guest's), and makes of it the guest's record and interrupt. Portals are trapped alone; there are
// no batches and no DIF operations.
//
// Of the host's queue at most its size is under way at a time; what the guest's queue holds beyond
// that, and while a shared queue is full, waits here.
//
// Halting: what was written to the queue cannot be taken back, so Abort discards what waits here
// and waits for the rest. Reset and Quiesce wait for what is under way; where nothing of it
// completes for `patience`, the file is closed (the driver then ends it) and the queue is lost.
//
// Lost: the driver refuses a write for good (ENODEV, EIO, ...), or has disabled the queue while
// something is under way, which is looked at when nothing completes for `look_after`.
//
// Memory that is unplugged stays mapped until what names it is complete. State: what waits here.
//
// Ownership: owns queue and thread, borrows the map. Threads: as Backend.

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "devices/siov/cdev/idxd_queue.h"
#include "devices/siov/cdev/rewriter.h"
#include "devices/siov/core/backend.h"
#include "devices/siov/engine/doorstep.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/base/thread.h"
#include "src/memory/guest_memory.h"

namespace postern::dsa {

struct CdevOptions {
  std::string name = "dsa";  // the thread is "NAME-cdev"
  std::chrono::milliseconds look_after{1000};
  std::chrono::milliseconds patience{10000};
};

class CdevBackend final : public siov::Backend {
 public:
  // kUnsupported for a queue that does none of what can be rewritten; kSystem without a thread.
  [[nodiscard]] static Result<std::unique_ptr<CdevBackend>> Create(
      const CdevOptions& options, const memory::MemoryMap& memory,
      std::unique_ptr<IdxdQueue> queue);
  ~CdevBackend() override;

  [[nodiscard]] std::string Describe() const override;
  [[nodiscard]] const siov::BackendCaps& caps() const override { return caps_; }
  void Attach(siov::BackendEvents& events) override;
  [[nodiscard]] Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                  siov::PortalMode mode) override;
  void StopPolling(std::uint32_t queue) override { (void)queue; }
  [[nodiscard]] siov::SubmitResult Submit(std::uint32_t queue,
                                          const siov::Descriptor& descriptor) override;
  [[nodiscard]] Result<void> Start(const siov::DeviceConfig& config) override;
  void Stop() override;
  [[nodiscard]] Result<void> Enable(std::uint32_t queue, const siov::QueueConfig& config) override;
  void Drain(siov::QueueSet queues, siov::Done done) override;
  void Disable(siov::QueueSet queues, siov::Done done) override;
  void Abort(siov::QueueSet queues, siov::Done done) override;
  void Reset() override;
  [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
  void CloseHandle(std::uint32_t handle) override { (void)handle; }
  void SetVector(std::uint16_t vector, const EventFd* trigger) override;
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const override;
  void Quiesce() override;
  void Resume() override;
  [[nodiscard]] Result<siov::BackendState> Save() override;
  [[nodiscard]] Result<void> Restore(const siov::BackendState& state) override;
  void ReportCounters(CounterSink& sink) const override;

 private:
  using Clock = std::chrono::steady_clock;
  enum class Kind : std::uint8_t { kDrain, kDisable, kAbort };
  enum class Begun : std::uint8_t { kUnderWay, kRefused, kLater, kLost };

  struct Work {
    std::uint64_t sequence = 0;
    siov::Descriptor descriptor{};
  };
  // One descriptor at the device; of the thread.
  struct Slot {
    bool used = false;
    std::uint64_t sequence = 0;
    Rewritten rewritten;
    siov::Descriptor descriptor{};
    memory::GuestMemoryPtr memory;
  };
  struct alignas(64) Shadow {
    CompletionRecord record;
  };
  struct Waiter {
    std::uint64_t target = 0;  // done when all before it are complete
    siov::Done done;
  };
  struct Ready {
    siov::Done done;
    siov::HaltResult result;
  };

  CdevBackend(CdevOptions options, const memory::MemoryMap& memory,
              std::unique_ptr<IdxdQueue> queue);

  [[nodiscard]] Result<void> CheckDevice(const siov::DeviceConfig& config) const;
  [[nodiscard]] Result<void> CheckQueue(std::uint32_t queue, const siov::QueueConfig& config) const;
  [[nodiscard]] Result<void> CheckState(const siov::BackendState& state) const;
  void Halt(Kind kind, siov::QueueSet queues, siov::Done done);
  // Until the thread has nothing under way.
  void WaitUntilIdle();
  [[nodiscard]] std::uint64_t OldestIncomplete() const REQUIRES(mutex_);
  [[nodiscard]] std::size_t Held() const REQUIRES(mutex_);
  [[nodiscard]] bool MayBegin() const REQUIRES(mutex_);

  // --- the thread's ---
  void Main();
  // Work to begin, if it may be now; busy from here to Settle.
  [[nodiscard]] bool Prepare(std::optional<Work>& next);
  [[nodiscard]] Begun Begin(const Work& work);
  [[nodiscard]] std::optional<Refusal> CheckLimits(const Work& work, const Rewritten& rewritten);
  void Refuse(const memory::GuestMemory& memory, const Work& work, const Refusal& refusal);
  void Report(const siov::Descriptor& descriptor, std::uint8_t status, std::uint64_t address);
  void Signal(std::uint16_t handle);
  [[nodiscard]] std::uint32_t Collect();
  void Complete(Slot& slot, const CompletionRecord& shadow);
  void Settle(const std::optional<Work>& next, Begun begun);
  [[nodiscard]] bool HasGone();
  void Lose();
  // `full`: the host's queue was.
  void Rest(bool progress, bool full);

  const CdevOptions options_;
  const memory::MemoryMap& memory_;
  const std::unique_ptr<IdxdQueue> queue_;
  const IdxdQueueInfo info_;
  siov::BackendCaps caps_;
  std::atomic<siov::BackendEvents*> events_{nullptr};
  Doorstep door_;

  // Of the thread.
  std::vector<Slot> slots_;
  std::vector<Shadow> shadows_;
  std::vector<std::uint64_t> completed_;  // until Settle
  std::vector<Ready> ready_;
  siov::QueueConfig limits_;  // of what is begun
  Clock::time_point last_progress_, last_look_;
  std::uint32_t idle_looks_ = 0;

  mutable Mutex mutex_;
  std::condition_variable_any idle_;
  std::deque<Work> waiting_ GUARDED_BY(mutex_);
  std::set<std::uint64_t> under_way_ GUARDED_BY(mutex_);  // sequences, the one being begun too
  std::vector<Waiter> waiters_ GUARDED_BY(mutex_);
  std::uint64_t next_sequence_ GUARDED_BY(mutex_) = 0;
  siov::QueueConfig config_ GUARDED_BY(mutex_);
  bool enabled_ GUARDED_BY(mutex_) = false;
  bool quiesced_ GUARDED_BY(mutex_) = false;
  bool busy_ GUARDED_BY(mutex_) = false;  // the thread is outside of the lock
  bool lost_ GUARDED_BY(mutex_) = false;
  bool ending_ GUARDED_BY(mutex_) = false;
  std::uint32_t waits_for_idle_ GUARDED_BY(mutex_) = 0;

  // Of the function's lock.
  bool started_ = false;
  siov::DeviceConfig device_;

  struct {
    Counter submitted, completed, bytes, refused_full, refused_disabled, refused_descriptors;
    Counter aborted, host_full, host_refused, sleeps, enables, halts, resets, losses;
    std::array<Counter, 32> status;
  } counters_;
  Thread thread_;
};

}  // namespace postern::dsa
