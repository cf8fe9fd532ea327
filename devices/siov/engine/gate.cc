#include "devices/siov/engine/gate.h"

namespace postern::dsa {

void Gate::Enter() {
  const MutexLock lock(mutex_);
  while (shut_.load(std::memory_order_relaxed)) changed_.wait(mutex_);
  ++inside_;
}

void Gate::Leave() {
  const MutexLock lock(mutex_);
  --inside_;
  if (shut_.load(std::memory_order_relaxed)) changed_.notify_all();
}

bool Gate::overdue() const {
  return shut() &&
         Clock::now().time_since_epoch().count() >= deadline_.load(std::memory_order_relaxed);
}

void Gate::Hold(const std::atomic<bool>& discard, const std::function<bool()>& ready) {
  const MutexLock lock(mutex_);
  --inside_;
  // Before `ready` is asked for the first time: who makes it true later sees this and notifies.
  on_hold_.fetch_add(1, std::memory_order_seq_cst);
  changed_.notify_all();
  while (!discard.load(std::memory_order_acquire) &&
         (shut_.load(std::memory_order_relaxed) || !ready())) {
    changed_.wait(mutex_);
  }
  on_hold_.fetch_sub(1, std::memory_order_seq_cst);
  ++inside_;
}

void Gate::Close(std::chrono::nanoseconds grace) {
  const Clock::time_point deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(grace);
  deadline_.store(deadline.time_since_epoch().count(), std::memory_order_relaxed);
  shut_.store(true, std::memory_order_release);
}

void Gate::Shut(std::chrono::nanoseconds grace) {
  const MutexLock lock(mutex_);
  Close(grace);
  while (inside_ != 0) changed_.wait(mutex_);
}

void Gate::ShutOut() {
  const MutexLock lock(mutex_);
  Close(std::chrono::nanoseconds(0));
  changed_.notify_all();
  while (inside_ != 0 || on_hold_.load(std::memory_order_relaxed) != 0) changed_.wait(mutex_);
}

void Gate::Open() {
  const MutexLock lock(mutex_);
  shut_.store(false, std::memory_order_release);
  changed_.notify_all();
}

void Gate::Notify() {
  const MutexLock lock(mutex_);
  changed_.notify_all();
}

}  // namespace postern::dsa
