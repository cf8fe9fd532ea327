#pragma once

// FakeInterrupt: a virtio::Interrupt that counts, and lets a test thread wait.
// Threads: any.

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>

#include "devices/virtio/device.h"
#include "src/base/mutex.h"

namespace postern::testing {

class FakeInterrupt final : public virtio::Interrupt {
 public:
  static constexpr std::size_t kQueues = 64;

  void Queue(std::uint16_t index) override;
  void Config() override;
  void NeedsReset() override;

  [[nodiscard]] std::uint64_t queue_count(std::uint16_t index) const;
  [[nodiscard]] std::uint64_t config_count() const;
  [[nodiscard]] std::uint64_t needs_reset_count() const;
  // Until queue `index` was interrupted more than `seen` times; false after 10 s.
  [[nodiscard]] bool WaitQueue(std::uint16_t index, std::uint64_t seen);

 private:
  mutable Mutex mutex_;
  std::condition_variable_any changed_;
  std::array<std::uint64_t, kQueues> queues_ GUARDED_BY(mutex_){};
  std::uint64_t config_ GUARDED_BY(mutex_) = 0;
  std::uint64_t needs_reset_ GUARDED_BY(mutex_) = 0;
};

}  // namespace postern::testing
