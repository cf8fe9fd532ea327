#pragma once

// FakeBackend: a Backend without threads, for tests: queues that hold descriptors until the test
// completes them.
//
//   auto owned = std::make_unique<FakeBackend>();
//   FakeBackend& backend = *owned;
//   auto vdev = Vdev::Create({...}, std::make_unique<FakePersonality>(), std::move(owned), host);
//   backend.Poll(0);                     // as a poller thread would
//   backend.Complete(0, 1);              // the oldest descriptor of queue 0
//   backend.events().OnError({...});     // from any thread
//
// A descriptor: byte 0 is not 0; byte 1, bit 0: signal the handle in bytes 4 to 7 (little-endian)
// when complete.
//
// Threads: as Backend; Poll, Complete and what looks from any thread. A mutex of its own, which is
// not held over calls into BackendEvents.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/core/polled_page.h"
#include "src/base/mutex.h"

namespace postern::siov {

// One that asks for the interrupt `handle`, or for none. `tag` makes it differ from others.
[[nodiscard]] Descriptor FakeDescriptor(std::uint64_t tag,
                                        std::optional<std::uint32_t> handle = std::nullopt);
[[nodiscard]] std::uint64_t TagOf(const Descriptor& descriptor);

class FakeBackend final : public Backend {
 public:
  static constexpr std::uint32_t kPagesPerQueue = 4;
  [[nodiscard]] static BackendCaps DefaultCaps();

  explicit FakeBackend(const BackendCaps& caps = DefaultCaps());

  // --- Backend ---
  [[nodiscard]] std::string Describe() const override { return "fake"; }
  [[nodiscard]] const BackendCaps& caps() const override { return caps_; }
  void Attach(BackendEvents& events) override { events_ = &events; }
  [[nodiscard]] Result<bus::HostPages> OpenPortal(std::uint32_t queue, std::uint32_t page,
                                                  PortalMode mode) override;
  void StopPolling(std::uint32_t queue) override;
  [[nodiscard]] SubmitResult Submit(std::uint32_t queue, const Descriptor& descriptor) override;
  [[nodiscard]] Result<void> Start(const DeviceConfig& config) override;
  void Stop() override;
  [[nodiscard]] Result<void> Enable(std::uint32_t queue, const QueueConfig& config) override;
  void Drain(QueueSet queues, Done done) override { Halt(queues, Kind::kDrain, std::move(done)); }
  void Disable(QueueSet queues, Done done) override {
    Halt(queues, Kind::kDisable, std::move(done));
  }
  void Abort(QueueSet queues, Done done) override { Halt(queues, Kind::kAbort, std::move(done)); }
  void Reset() override;
  [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
  void CloseHandle(std::uint32_t handle) override;
  void SetVector(std::uint16_t vector, const EventFd* trigger) override;
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const override;
  void Quiesce() override;
  void Resume() override;
  [[nodiscard]] Result<BackendState> Save() override;
  [[nodiscard]] Result<void> Restore(const BackendState& state) override;
  void ReportCounters(CounterSink& sink) const override;

  // --- the test's side ---
  [[nodiscard]] BackendEvents& events() { return *events_; }
  // Looks at all slots of a polled queue's pages. Answers what it took.
  std::uint32_t Poll(std::uint32_t queue);
  // The oldest `count` of a queue, in this order; none while quiesced. Answers how many there were.
  std::uint32_t Complete(std::uint32_t queue, std::uint32_t count = 1);
  [[nodiscard]] std::vector<std::uint64_t> CompletedTags(std::uint32_t queue) const;
  [[nodiscard]] bool enabled(std::uint32_t queue) const;
  [[nodiscard]] bool started() const;
  [[nodiscard]] bool quiesced() const;
  [[nodiscard]] bool polling(std::uint32_t queue) const;
  [[nodiscard]] std::uint32_t resets() const;
  [[nodiscard]] std::map<std::uint16_t, const EventFd*> vectors() const;
  [[nodiscard]] std::size_t open_handles() const;
  // OpenHandle gives this one next.
  void NextHandle(std::uint32_t handle);

 private:
  enum class Kind : std::uint8_t { kDrain, kDisable, kAbort };
  struct Queue {
    bool enabled = false;
    QueueConfig config;
    std::deque<Descriptor> waiting;
    std::vector<std::uint64_t> completed;
    std::optional<PolledPage> page;
    bool polling = false;
    std::vector<std::byte> direct;
  };
  struct Pending {
    QueueSet queues;
    Kind kind;
    Done done;
  };

  [[nodiscard]] SubmitResult Accept(std::uint32_t queue, const Descriptor& descriptor)
      REQUIRES(mutex_);
  void Halt(QueueSet queues, Kind kind, Done done);
  void FinishHalts();
  [[nodiscard]] bool Empty(QueueSet queues) const REQUIRES(mutex_);

  const BackendCaps caps_;
  BackendEvents* events_ = nullptr;
  mutable Mutex mutex_;
  std::vector<Queue> queues_ GUARDED_BY(mutex_);
  std::vector<Pending> halts_ GUARDED_BY(mutex_);
  bool started_ GUARDED_BY(mutex_) = false;
  DeviceConfig device_ GUARDED_BY(mutex_);
  bool quiesced_ GUARDED_BY(mutex_) = false;
  std::uint32_t resets_ GUARDED_BY(mutex_) = 0;
  std::map<std::uint16_t, const EventFd*> vectors_ GUARDED_BY(mutex_);
  std::map<std::uint32_t, std::uint16_t> handles_ GUARDED_BY(mutex_);
  std::uint32_t next_handle_ GUARDED_BY(mutex_) = 0x100;
};

}  // namespace postern::siov
