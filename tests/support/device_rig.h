#pragma once

// DeviceRig: one virtio device with a driver in front of it and no transport between: what PCI or
// MMIO do at DRIVER_OK and at reset.
//
//   auto loop = EventLoop::Create().value();
//   Rng rng(*loop);
//   DeviceRig rig(rng, {.event_idx = true});
//   rig.Activate();
//   rig.driver(0).Build().Writable(64).Publish();
//   rig.Kick(0);                                  // signals the doorbell and lets the loop run
//   CHECK(rig.driver(0).TakeUsed()->length == 64);
//
// Drivers for the device's queues are laid out one behind the other in one RAM region. With
// `threaded`, the device's loop runs on a thread of its own, as in the machine, and Kick only
// signals: wait with interrupt().WaitQueue. Ownership: borrows the device and its loop. Threads:
// the test's thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "devices/virtio/device.h"
#include "tests/support/driver_queue.h"
#include "tests/support/fake_interrupt.h"

namespace postern::testing {

class DeviceRig {
 public:
  struct Options {
    std::uint64_t features = ~std::uint64_t{0};  // what the driver accepts of those offered
    bool event_idx = false;
    bool indirect_desc = true;
    std::uint16_t queue_size = 0;          // 0: each queue's maximum
    std::uint64_t memory_size = 0;         // 0: as much as the queues need
    std::uint64_t arena_size = 256 << 10;  // for buffers, per queue
    bool track_dirty = false;
    bool threaded = false;
  };

  DeviceRig(virtio::Device& device, const Options& options);
  explicit DeviceRig(virtio::Device& device) : DeviceRig(device, Options{}) {}
  ~DeviceRig();

  // As at DRIVER_OK: fresh queues as the drivers set them up, all of them enabled unless `enabled`
  // names which.
  void Activate(const std::vector<bool>& enabled = {});
  // Activates with queues that continue where those states were (a restore).
  void ActivateFrom(const std::vector<virtio::QueueState>& states);
  // As at device reset: on the loop; the queues' final states.
  std::vector<virtio::QueueState> Reset();
  // RING_RESET of one queue, and its re-enabling with fresh rings.
  void ResetQueue(std::uint16_t index);
  void ResumeQueue(std::uint16_t index);

  // Signals the doorbell of a queue; without `threaded` also runs the loop for one round.
  void Kick(std::uint16_t index);
  // Runs the loop for one round that waits at most `timeout_ms`.
  void Run(int timeout_ms = 0);
  // Runs the loop (or waits for it) until queue `index` has a used entry; nothing after 10 s.
  std::optional<DriverQueue::Used> WaitUsed(std::uint16_t index);

  [[nodiscard]] DriverQueue& driver(std::uint16_t index) { return *drivers_[index]; }
  [[nodiscard]] FakeInterrupt& interrupt() { return interrupt_; }
  [[nodiscard]] const memory::GuestMemoryPtr& memory() const { return memory_; }
  [[nodiscard]] std::uint64_t counter(std::string_view name) const;
  // The whole configuration space, and one field of it.
  [[nodiscard]] std::vector<std::byte> Config();
  template <memory::GuestPod T>
  [[nodiscard]] T ConfigAt(std::uint64_t offset) {
    T value{};
    device_.ReadConfig(offset, std::as_writable_bytes(std::span<T, 1>(&value, 1)));
    return value;
  }

 private:
  void ActivateQueues(std::vector<std::unique_ptr<virtio::ActiveQueue>> queues);
  std::unique_ptr<virtio::ActiveQueue> Enable(std::uint16_t index, virtio::Queue queue);
  [[nodiscard]] std::uint64_t negotiated() const;

  virtio::Device& device_;
  Options options_;
  memory::GuestMemoryPtr memory_;
  std::vector<std::unique_ptr<DriverQueue>> drivers_;
  std::vector<EventFd> kicks_;
  std::vector<std::unique_ptr<virtio::ActiveQueue>> parked_;  // given back by ResetQueue
  FakeInterrupt interrupt_;
  std::thread thread_;
};

}  // namespace postern::testing
