#pragma once

// Transport: the half of a virtio transport that PCI and MMIO share: the status state machine,
// feature negotiation, queue configuration, activation and reset of the device, queue resets,
// interrupt status, saved state. A face (pci/, mmio/) maps registers onto it and says how an
// interrupt leaves.
//
// Every illegal step of a driver (a status out of order, a queue register written while frozen, a
// selector out of range) changes nothing and is counted.
//
// Ownership: borrows the device, the memory map and the face, which outlive it. Threads: the
// face's lock for all methods but those of Interrupt, which take no lock: the device's loop
// thread may interrupt while a vCPU, holding the face's lock, waits for that very thread in
// RunSync. Source: VIRTIO 1.2, 2.1 to 2.7, 3.1, 4.1.4.3 and 4.2.2.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/virtio/device.h"
#include "devices/virtio/queue/queue.h"
#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// Device status bits, VIRTIO 1.2, 2.1.
constexpr std::uint8_t kStatusAcknowledge = 1;
constexpr std::uint8_t kStatusDriver = 2;
constexpr std::uint8_t kStatusDriverOk = 4;
constexpr std::uint8_t kStatusFeaturesOk = 8;
constexpr std::uint8_t kStatusNeedsReset = 64;
constexpr std::uint8_t kStatusFailed = 128;

// Bits of ISR status (4.1.4.5) and InterruptStatus (4.2.2).
constexpr std::uint8_t kInterruptQueue = 1;
constexpr std::uint8_t kInterruptConfig = 2;

// What a driver's write to device status asks for, given the status now.
enum class StatusStep : std::uint8_t {
  kNothing,  // sets no bit that is not set
  kReset,    // writes 0
  kAdvance,  // the next step of 3.1.1; ACKNOWLEDGE and DRIVER may come in one write
  kFail,     // sets FAILED
  kIllegal,  // anything else: steps skipped, bits taken back, unknown bits, any step after FAILED
};
[[nodiscard]] StatusStep Classify(std::uint8_t status, std::uint8_t written);

// How interrupts leave the transport. Threads: any, without the face's lock.
class InterruptFace {
 public:
  virtual ~InterruptFace() = default;
  virtual void SendQueue(std::uint16_t index) = 0;
  virtual void SendConfig() = 0;
};

struct TransportState {
  std::uint32_t device_id = 0;
  std::uint64_t driver_features = 0;
  std::uint32_t device_features_select = 0;
  std::uint32_t driver_features_select = 0;
  std::uint32_t queue_select = 0;
  std::uint8_t device_status = 0;
  std::uint8_t interrupt_status = 0;
  std::uint32_t config_generation = 0;
  bool activated = false;  // the device is running; false after an activation that failed
  std::vector<QueueState> queues;
};

class Transport final : public Interrupt {
 public:
  // kInvalidArgument: no queues or more than `max_queues`, a queue size that is no power of two
  // in 1..32768.
  [[nodiscard]] static Result<std::unique_ptr<Transport>> Create(Device& device,
                                                                 const memory::MemoryMap& memory,
                                                                 InterruptFace& face,
                                                                 std::uint16_t max_queues);
  ~Transport() override;  // resets the device

  // --- features ---
  [[nodiscard]] std::uint64_t offered() const { return offered_; }
  [[nodiscard]] std::uint64_t driver_features() const { return state_.driver_features; }
  void SelectDeviceFeatures(std::uint32_t select) { state_.device_features_select = select; }
  void SelectDriverFeatures(std::uint32_t select) { state_.driver_features_select = select; }
  [[nodiscard]] std::uint32_t device_features_select() const {
    return state_.device_features_select;
  }
  [[nodiscard]] std::uint32_t driver_features_select() const {
    return state_.driver_features_select;
  }
  // The selected 32 bits; 0 for a selector above 1.
  [[nodiscard]] std::uint32_t DeviceFeatures() const;
  [[nodiscard]] std::uint32_t DriverFeatures() const;
  // Only between DRIVER and FEATURES_OK (3.1.1 steps 4 and 5).
  void WriteDriverFeatures(std::uint32_t value);

  // --- status ---
  [[nodiscard]] std::uint8_t status() const { return status_.load(std::memory_order_acquire); }
  void WriteStatus(std::uint8_t value);
  [[nodiscard]] std::uint32_t config_generation() const {
    return generation_.load(std::memory_order_acquire);
  }

  // --- queues ---
  [[nodiscard]] std::uint16_t queue_count() const {
    return static_cast<std::uint16_t>(queues_.size());
  }
  void SelectQueue(std::uint32_t select) { state_.queue_select = select; }
  [[nodiscard]] std::uint32_t queue_select() const { return state_.queue_select; }
  // The selected queue as the driver configured it, or null: the one place where the selector
  // becomes an index.
  [[nodiscard]] const QueueState* Selected() const;
  // Writes to the selected queue. Accepted between FEATURES_OK and DRIVER_OK, while the queue is
  // not enabled; and, with RING_RESET negotiated, after the queue was reset. False, and nothing
  // changed, otherwise and for a size or alignment 2.7 forbids.
  bool SetQueueSize(std::uint32_t size);
  enum class Ring : std::uint8_t { kDescriptors, kDriver, kDevice };
  bool SetRing(Ring ring, std::uint64_t address);
  // Enables the selected queue; once the device runs, hands it over (2.6.1.2).
  bool EnableQueue();
  // MMIO's QueueReady = 0, before DRIVER_OK alone.
  bool DisableQueue();
  // RING_RESET, 2.6.1: takes the selected queue from the device; its registers are as after reset
  // on return.
  bool ResetQueue();

  // --- notifications ---
  // A kick that trapped. False for a queue there is not.
  bool Kick(std::uint32_t index);
  // Signalled by the driver's notifications of queue `index`, for a doorbell; valid as long as the
  // transport.
  [[nodiscard]] const EventFd& kick(std::uint16_t index) const { return queues_[index].kick; }

  // --- interrupt status ---
  [[nodiscard]] std::uint8_t interrupt_status() const {
    return interrupt_status_.load(std::memory_order_acquire);
  }
  std::uint8_t TakeInterruptStatus() {
    return interrupt_status_.exchange(0, std::memory_order_acq_rel);
  }
  void AckInterrupt(std::uint8_t bits);
  // Used-buffer bits are not set while interrupts go by MSI-X (4.1.4.5.1).
  void SetRecordQueueInterrupts(bool record) {
    record_queue_interrupts_.store(record, std::memory_order_release);
  }

  // --- device configuration ---
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data);
  // Only from DRIVER on and before FAILED.
  void WriteConfig(std::uint64_t offset, std::span<const std::byte> data);

  // Interrupt, for the device.
  void Queue(std::uint16_t index) override;
  void Config() override;
  void NeedsReset() override;

  // As if the driver had written status 0, and every selector 0.
  void Reset();
  // The queues' positions are read on the device's loop thread. Chains a device holds are its own
  // to save.
  [[nodiscard]] TransportState Save() const;
  // kBadFormat, and the transport as after Reset, for a state that no driver could have reached on
  // this device. An activated state activates the device, unless it waits for its reset.
  [[nodiscard]] Result<void> Restore(const TransportState& state);

  [[nodiscard]] Device& device() const { return device_; }
  void CountRefused() { refused_.Add(); }
  void ReportCounters(CounterSink& sink) const;

 private:
  struct QueueSlot {
    QueueState config;
    EventFd kick;
    // While the device runs: where it keeps the queue. Dereferenced on the loop thread alone.
    ActiveQueue* active = nullptr;
  };
  Transport(Device& device, const memory::MemoryMap& memory, InterruptFace& face);
  [[nodiscard]] QueueSlot* SelectedSlot();
  [[nodiscard]] bool Configurable(const QueueSlot& slot) const;
  bool Refuse();
  void Advance(std::uint8_t bits);
  [[nodiscard]] Result<std::unique_ptr<ActiveQueue>> MakeQueue(
      std::uint16_t index, const memory::GuestMemoryPtr& memory);
  [[nodiscard]] Result<void> Activate();
  void Deactivate();
  void ActivateOrBreak();
  [[nodiscard]] Result<void> Check(const TransportState& state) const;

  Device& device_;
  const memory::MemoryMap& memory_;
  InterruptFace& face_;
  std::uint64_t offered_ = 0;
  std::vector<QueueSlot> queues_;
  TransportState state_;  // selectors, features, activated; status, generation and interrupt status
                          // live in the atomics
  std::atomic<std::uint8_t> status_{0};
  std::atomic<std::uint8_t> interrupt_status_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> record_queue_interrupts_{true};
  Counter refused_, resets_, activations_, activation_failures_, kicks_trapped_, interrupts_,
      config_changes_, needs_reset_;
};

}  // namespace postern::virtio
