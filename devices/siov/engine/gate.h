#pragma once

// Gate: what lets control calls hold all workers outside: a worker is inside while it may touch
// guest memory or signal, and outside while it sleeps, waits at the shut gate, or is on hold in the
// middle of a descriptor.
//
//   worker                                control thread
//   gate.Enter();                         gate.Shut(grace);   // nobody is inside when it returns
//   while (!gate.shut()) Work();          ...
//   gate.Leave();                         gate.Open();
//
// Is not a lock of any data: queues have theirs. Threads: Enter, Leave, Hold and overdue by
// workers; Shut, ShutOut and Open by one control thread at a time; Notify, shut and anyone_on_hold
// by any. A queue's lock may be taken by `ready` while the gate's is held; never the other way
// round.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>

#include "src/base/mutex.h"

namespace postern::dsa {

class Gate {
 public:
  using Clock = std::chrono::steady_clock;

  // Waits while it is shut.
  void Enter();
  void Leave();
  [[nodiscard]] bool shut() const { return shut_.load(std::memory_order_acquire); }
  // Shut, and the grace for what was under way is over.
  [[nodiscard]] bool overdue() const;
  // Between Enter and Leave: outside until `discard`, or until the gate is open and `ready`.
  // Whoever changes what these look at calls Notify.
  void Hold(const std::atomic<bool>& discard, const std::function<bool()>& ready);

  // Returns when nobody is inside. Those who ask overdue() are told so after `grace`.
  void Shut(std::chrono::nanoseconds grace);
  // Shuts, and returns when nobody is on hold either: all of them have been told to discard.
  void ShutOut();
  void Open();
  void Notify();
  [[nodiscard]] bool anyone_on_hold() const {
    return on_hold_.load(std::memory_order_seq_cst) != 0;
  }

 private:
  void Close(std::chrono::nanoseconds grace) REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  std::uint32_t inside_ GUARDED_BY(mutex_) = 0;
  std::atomic<std::uint32_t> on_hold_{0};  // changes with the mutex held
  std::atomic<bool> shut_{false};          // as that
  std::atomic<Clock::rep> deadline_{0};    // as that
};

}  // namespace postern::dsa
