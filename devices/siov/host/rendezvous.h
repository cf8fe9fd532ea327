#pragma once

// Rendezvous: one answer from one thread to another that waits for it.
//
//   Rendezvous<int> answer;
//   loop.Post([&answer] { answer.Give(7); });
//   const int seven = answer.Wait();
//
// Give is called once, always; the object may go as soon as Wait returned. Threads: as said.

#include <condition_variable>
#include <optional>
#include <utility>

#include "src/base/mutex.h"

namespace postern::dsa {

template <typename T>
class Rendezvous {
 public:
  void Give(T value) {
    // Signalled with the lock, as Wait's caller destroys this at once.
    const MutexLock lock(mutex_);
    value_ = std::move(value);
    given_.notify_one();
  }
  [[nodiscard]] T Wait() NO_THREAD_SAFETY_ANALYSIS {
    mutex_.Lock();
    while (!value_.has_value()) given_.wait(mutex_);
    T value = std::move(*value_);
    mutex_.Unlock();
    return value;
  }

 private:
  Mutex mutex_;
  std::condition_variable_any given_;
  std::optional<T> value_ GUARDED_BY(mutex_);
};

}  // namespace postern::dsa
