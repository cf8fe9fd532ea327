#pragma once

// FakeIdxdQueue: a queue of the host's idxd driver, in memory: keeps the rules of the driver's
// write(2), and carries out what it takes on this process's memory with the engine's executor.
//
//   const memory::GuestMemoryPtr ram = SharedMemory({{0, 1 << 20}});
//   auto own = std::make_unique<FakeIdxdQueue>(ram);
//   FakeIdxdQueue& queue = *own;
//   auto backend = CdevBackend::Create({}, map, std::move(own));
//   queue.Hold(true);                    // what is written stays under way ...
//   queue.Run(1);                        // ... until the test lets it go
//
// Addresses are the process's: that of guest memory (which SharedMemory made) is reachable, all
// else is a page fault, as an executor sees it. Rules: no batches, the record aligned to 32, a full
// shared queue is EAGAIN, and a full dedicated one drops. Stricter than the driver, which
// overwrites them: PASID and privilege have to be 0.
//
// Threads: any.

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "devices/siov/cdev/idxd_queue.h"
#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/executor.h"
#include "src/base/mutex.h"
#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

namespace postern::dsa {

// Guest memory that a FakeIdxdQueue can reach.
[[nodiscard]] memory::GuestMemoryPtr SharedMemory(const std::vector<testing::RegionSpec>& regions,
                                                  bool track_dirty = false);

class FakeIdxdQueue final : public IdxdQueue, private ExecutorEnvironment {
 public:
  [[nodiscard]] static IdxdQueueInfo DefaultInfo();

  explicit FakeIdxdQueue(const memory::GuestMemoryPtr& memory, IdxdQueueInfo info = DefaultInfo());

  // --- IdxdQueue ---
  [[nodiscard]] const IdxdQueueInfo& info() const override { return info_; }
  [[nodiscard]] int Write(const siov::Descriptor& descriptor) override;
  [[nodiscard]] bool Alive() override;
  void Close() override;

  // --- the test's side ---
  void Hold(bool held);
  // The oldest `count` of those that are held. Answers how many there were.
  std::uint32_t Run(std::uint32_t count = 1);
  // The next one does nothing and completes like this.
  void Script(const CompletionRecord& record);
  // The next `times` writes.
  void Fail(int error, std::uint32_t times);
  // The device is gone: nothing completes any more, and nothing is taken.
  void Vanish();
  [[nodiscard]] std::vector<siov::Descriptor> written() const;
  [[nodiscard]] std::size_t held() const;
  [[nodiscard]] std::uint32_t dropped() const;
  [[nodiscard]] std::uint32_t most_held() const;
  [[nodiscard]] std::uint32_t refused() const;
  [[nodiscard]] bool closed() const;

 private:
  // --- ExecutorEnvironment ---
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const override;
  void SignalHandle(std::uint32_t handle) override;
  void OnError(const siov::ErrorRecord& record) override;
  void WaitForEarlier() override {}
  [[nodiscard]] bool aborted() const override { return false; }

  void Execute(const siov::Descriptor& descriptor) REQUIRES(mutex_);

  const IdxdQueueInfo info_;
  const memory::MemoryMap process_;  // by this process's addresses
  mutable Mutex mutex_;
  Executor executor_ GUARDED_BY(mutex_);
  std::deque<siov::Descriptor> held_ GUARDED_BY(mutex_);
  std::deque<CompletionRecord> script_ GUARDED_BY(mutex_);
  std::vector<siov::Descriptor> written_ GUARDED_BY(mutex_);
  bool holds_ GUARDED_BY(mutex_) = false;
  bool gone_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
  int error_ GUARDED_BY(mutex_) = 0;
  std::uint32_t failures_ GUARDED_BY(mutex_) = 0;
  std::uint32_t dropped_ GUARDED_BY(mutex_) = 0;
  std::uint32_t refused_ GUARDED_BY(mutex_) = 0;
  std::uint32_t most_held_ GUARDED_BY(mutex_) = 0;
};

}  // namespace postern::dsa
