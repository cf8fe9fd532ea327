#include "tests/support/fake_interrupt.h"

#include "src/base/check.h"

namespace postern::testing {

void FakeInterrupt::Queue(std::uint16_t index) {
  const MutexLock lock(mutex_);
  CHECK(index < kQueues);
  ++queues_[index];
  changed_.notify_all();
}

void FakeInterrupt::Config() {
  const MutexLock lock(mutex_);
  ++config_;
  changed_.notify_all();
}

void FakeInterrupt::NeedsReset() {
  const MutexLock lock(mutex_);
  ++needs_reset_;
  changed_.notify_all();
}

std::uint64_t FakeInterrupt::queue_count(std::uint16_t index) const {
  const MutexLock lock(mutex_);
  CHECK(index < kQueues);
  return queues_[index];
}

std::uint64_t FakeInterrupt::config_count() const {
  const MutexLock lock(mutex_);
  return config_;
}

std::uint64_t FakeInterrupt::needs_reset_count() const {
  const MutexLock lock(mutex_);
  return needs_reset_;
}

bool FakeInterrupt::WaitQueue(std::uint16_t index, std::uint64_t seen) {
  const MutexLock lock(mutex_);
  CHECK(index < kQueues);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (queues_[index] <= seen) {
    if (changed_.wait_until(mutex_, deadline) == std::cv_status::timeout)
      return queues_[index] > seen;
  }
  return true;
}

}  // namespace postern::testing
