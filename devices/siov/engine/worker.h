#pragma once

// Worker: one engine: a thread that takes descriptors from the queues of its group and runs them,
// the queues of higher priority more often; it spins while there is work and for a moment after,
// and sleeps longer and longer then.
//
//   Worker worker(shared, factory);
//   TRY(worker.Start("engine0", group));
//   shared.gate.Shut(...); worker.SetGroup(other); shared.gate.Open();
//
// Asleep, it is woken by a submission; pages are memory and wake nobody, so with polled queues it
// looks again after at most PollPolicy::max_sleep.
//
// Ownership: borrows the shared part, groups and queues. Threads: see SetGroup.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "devices/siov/engine/back_off.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "devices/siov/engine/doorstep.h"
#include "devices/siov/engine/gate.h"
#include "devices/siov/engine/work_queue.h"
#include "src/base/result.h"
#include "src/base/thread.h"

namespace postern::dsa {

// A look at every slot of the pages, where a driver stores that breaks their rules: in each sleep
// of this number.
constexpr std::uint32_t kSleepsPerScan = 8;

// The queues that share some workers. Changes while the gate is shut.
struct WorkerGroup {
  std::vector<WorkQueue*> queues;
  Doorstep door;
  std::atomic<std::uint32_t> changes{0};  // of priorities
};

// What all workers of an Engine share.
struct WorkerShared {
  PollPolicy poll;
  Gate gate;
  std::atomic<bool> ending{false};
  std::atomic<siov::BackendEvents*> events{nullptr};
};

// One queue less to wait for; runs the call's `done` after the last.
void FinishOne(const HaltCallPtr& call);

// Weighted turns: a queue has as many as its priority (0 counts as 1) before all have theirs anew,
// and the highest priority with turns left comes first.
class Turns {
 public:
  void Follow(const WorkerGroup& group);
  // The first queue, in that order, for which `take` is true; null if there is none.
  template <typename Take>
  WorkQueue* Next(Take&& take) {
    for (Turn& turn : turns_) {
      if (turn.left == 0 || !take(*turn.queue)) continue;
      --turn.left;
      return turn.queue;
    }
    WorkQueue* found = nullptr;
    for (Turn& turn : turns_) {
      const bool spent = turn.left == 0;
      turn.left = turn.weight;
      if (found != nullptr || !spent || !take(*turn.queue)) continue;
      --turn.left;
      found = turn.queue;
    }
    return found;
  }

 private:
  struct Turn {
    WorkQueue* queue = nullptr;
    std::uint32_t weight = 1;
    std::uint32_t left = 1;
  };
  std::vector<Turn> turns_;  // highest priority first
};

class Worker final : private ExecutorEnvironment {
 public:
  Worker(WorkerShared& shared, const RunnerFactory& factory);
  // Of WorkerShared::ending, with all doors rung and the gate open, the thread ends.
  [[nodiscard]] Result<void> Start(std::string_view name, WorkerGroup& group);
  void Join() { thread_.Join(); }
  // While the gate is shut.
  void SetGroup(WorkerGroup& group) { group_ = &group; }

 private:
  // ExecutorEnvironment
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const override;
  void SignalHandle(std::uint32_t handle) override;
  void OnError(const siov::ErrorRecord& record) override;
  void WaitForEarlier() override;
  [[nodiscard]] bool aborted() const override;

  void Main();
  void FollowGroup();
  // Inside the gate, until there is nothing to do any more or the gate is shut.
  void Serve();
  void Sleep(Doorstep::Ticket ticket, Doorstep& door,
             std::optional<std::chrono::nanoseconds> timeout);
  [[nodiscard]] bool RunOne(Look look);
  [[nodiscard]] bool TakeFrom(WorkQueue& queue, Look look);
  [[nodiscard]] bool AnyWaiting() const;
  // How long to sleep; nullopt: until it is rung.
  [[nodiscard]] std::optional<std::chrono::nanoseconds> NextSleep();

  WorkerShared& shared_;
  std::unique_ptr<DescriptorRunner> runner_;
  WorkerGroup* group_ = nullptr;
  // The thread's own.
  Turns turns_;
  const WorkerGroup* turns_of_ = nullptr;
  std::uint32_t turns_at_ = 0;
  UnderWay slot_;
  WorkQueue* queue_ = nullptr;  // of slot_
  HaltCalls through_;
  bool expects_work_ = false;  // was rung: spin before the next sleep
  BackOff back_off_;
  Thread thread_;
};

}  // namespace postern::dsa
