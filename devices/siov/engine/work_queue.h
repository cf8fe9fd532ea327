#pragma once

// WorkQueue: one queue of the engine: the descriptors that wait, those under way, the polled portal
// pages they come from, and the halting calls that wait for them.
//
//   queue.Submit(descriptor);                       // any thread
//   if (queue.Take(slot, look, noticed)) {          // a worker
//     Executed done = runner.Run(slot.limits, slot.descriptor);
//     queue.Complete(slot, done, through);
//   }
//
// How full it is: Occupancy is of the descriptors accepted and not complete. A submission is
// refused when `size` of them wait: one that is under way has left its entry (its completion record
// may be in memory already, and a driver that sees it submits the next one at once). Polled pages
// are not looked at while the queue holds `size` or more: what the driver stores stays in the page.
// From pages it takes all at once, so for a moment it may hold more than `size`.
//
// Every descriptor has a sequence number; a halting call waits until all below the number at its
// time are complete, which also holds with several workers.
//
// Is not a thread, and does not know what is in a descriptor. Ownership: owns pages and waiting
// descriptors. Threads: any, by one leaf mutex; control calls one at a time.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/doorstep.h"
#include "devices/siov/engine/executor.h"
#include "devices/siov/engine/polled_source.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"

namespace postern::dsa {

constexpr std::uint32_t kMaxWorkers = 64;

// A descriptor on its way through a worker.
struct UnderWay {
  siov::Descriptor descriptor{};
  QueueLimits limits;
  std::uint64_t sequence = 0;  // of the queue's lock, as the next
  bool untouched = false;      // waits for earlier ones: nothing of it has been done
  std::atomic<bool> discard{false};
};

// A halting call; it may wait for several queues.
struct HaltCall {
  siov::Done done;
  std::atomic<std::uint32_t> open{1};  // queues it waits for, and the call itself
};
using HaltCallPtr = std::shared_ptr<HaltCall>;
using HaltCalls = std::vector<HaltCallPtr>;

enum class HaltKind : std::uint8_t { kDrain, kDisable, kAbort };

// What the Vdev has to hear, after the lock is given back.
struct Noticed {
  bool rule_broken = false;
  bool overflow = false;
};

enum class Look : std::uint8_t { kNext, kEverySlot };

struct QueueCounters {
  Counter submitted, refused_full, refused_disabled, wakeups;
  // In lines of the cache that submitters do not write to.
  alignas(64) Counter completed, descriptors, bytes, polls, empty_polls, sleeps, aborted,
      rules_broken;
  std::array<Counter, 64> status;
};

class WorkQueue {
 public:
  // What a queue of `size` holds at most: the pages give all they have at once, and a restored one
  // has in it what waited on a worker.
  [[nodiscard]] static constexpr std::uint32_t MaxWaiting(std::uint32_t size) {
    return size + kPolledPages * kPageSlots + kMaxWorkers;
  }

  explicit WorkQueue(std::uint32_t index) : index_(index) {}
  [[nodiscard]] std::uint32_t index() const { return index_; }

  [[nodiscard]] siov::SubmitResult Submit(const siov::Descriptor& descriptor);
  [[nodiscard]] std::uint32_t Occupancy() const {
    return occupancy_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] QueueCounters& counters() { return counters_; }
  void ReportCounters(CounterSink& sink) const;

  // For workers. Seen by one that looks after Doorstep::Prepare, or it is rung.
  [[nodiscard]] bool has_waiting() const { return waiting_.load(std::memory_order_seq_cst) != 0; }
  // Enabled, and fed by pages.
  [[nodiscard]] bool polling() const { return polling_now_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint8_t priority() const { return priority_.load(std::memory_order_relaxed); }
  // False: nothing to do.
  [[nodiscard]] bool Take(UnderWay& slot, Look look, Noticed& noticed);
  void Complete(UnderWay& slot, const Executed& done, HaltCalls& through);
  void SetUntouched(UnderWay& slot, bool untouched);
  [[nodiscard]] bool EarlierComplete(const UnderWay& slot) const;

  // Control.
  void SetDoor(Doorstep* door);
  [[nodiscard]] bool enabled() const;
  [[nodiscard]] bool idle() const;           // neither enabled nor being disabled
  [[nodiscard]] std::uint32_t size() const;  // 0 while idle
  // Of a queue that is idle.
  void Enable(const siov::QueueConfig& config, const std::vector<siov::Descriptor>& waiting);
  // Calls that wait for nothing any more are added to `through`.
  void Halt(HaltKind kind, const HaltCallPtr& call, HaltCalls& through);
  // Disabled at once; what is under way is told to end, and halting calls are forgotten.
  void Void();
  // It has pages that are to be looked at.
  [[nodiscard]] bool fed_by_pages() const;
  [[nodiscard]] bool has_pages() const;
  void SetPages(std::unique_ptr<PolledSource> pages);
  void StartPolling();
  void StopPolling();
  [[nodiscard]] bus::HostPages host(std::uint32_t page) const;
  // Nobody is at work. nullopt: a descriptor is half done.
  [[nodiscard]] std::optional<siov::QueueState> Save();

 private:
  enum class State : std::uint8_t { kDisabled, kEnabled, kDisabling };
  struct Waiter {
    std::uint64_t target = 0;  // complete when all below are
    HaltCallPtr call;
  };

  void Push(const siov::Descriptor& descriptor) REQUIRES(mutex_);
  [[nodiscard]] bool TakeLocked(UnderWay& slot, Look look, Noticed& noticed) REQUIRES(mutex_);
  void LookAt(Look look) REQUIRES(mutex_);
  // Takes what is in the pages, even if it is more than `size`.
  void EmptyPages() REQUIRES(mutex_);
  void Discard() REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t OldestIncomplete() const REQUIRES(mutex_);
  void CollectThrough(HaltCalls& through) REQUIRES(mutex_);
  void Publish() REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t held() const REQUIRES(mutex_) {
    return count_ + static_cast<std::uint32_t>(under_way_.size());
  }

  const std::uint32_t index_;
  QueueCounters counters_;
  // Copies of what the lock guards, for those who look without it.
  std::atomic<std::uint32_t> waiting_{0};
  std::atomic<std::uint32_t> occupancy_{0};
  std::atomic<bool> polling_now_{false};
  std::atomic<std::uint8_t> priority_{0};

  mutable Mutex mutex_;
  State state_ GUARDED_BY(mutex_) = State::kDisabled;
  siov::QueueConfig config_ GUARDED_BY(mutex_);
  Doorstep* door_ GUARDED_BY(mutex_) = nullptr;
  std::vector<siov::Descriptor> ring_ GUARDED_BY(mutex_);
  std::uint32_t head_ GUARDED_BY(mutex_) = 0;
  std::uint32_t count_ GUARDED_BY(mutex_) = 0;
  std::uint64_t next_sequence_ GUARDED_BY(mutex_) = 0;
  std::vector<UnderWay*> under_way_ GUARDED_BY(mutex_);
  std::vector<Waiter> waiters_ GUARDED_BY(mutex_);  // by target
  std::unique_ptr<PolledSource> pages_ GUARDED_BY(mutex_);
  bool polling_ GUARDED_BY(mutex_) = false;
  bool rule_broken_ GUARDED_BY(mutex_) = false;  // said already
  std::uint64_t overwritten_ GUARDED_BY(mutex_) = 0;
  Noticed noticed_ GUARDED_BY(mutex_);
};

}  // namespace postern::dsa
