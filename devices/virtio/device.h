#pragma once

// Device: a virtio device as a transport sees it: knows neither PCI nor MMIO, nor how the host
// serves it beyond its own back end.
//
// Life: created idle; Activate moves the run-time resources in (the driver set DRIVER_OK); Reset
// stops the device and gives them back (idempotent: an idle device returns empty Resources). A
// device is either idle or running.
//
// Ownership: the machine owns the device, the transport borrows it. Threads: Activate, Reset,
// ResetQueue and ResumeQueue are called on the device's loop thread (the transport gets there with
// EventLoop::RunSync), where the data path also runs, so a device needs no locks for them; with
// several queue loops the device hands queues out itself. ReadConfig and WriteConfig are called on
// vCPU threads under the transport's lock: configuration that the data path changes sits behind a
// leaf mutex.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "devices/virtio/queue/queue.h"
#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/event_loop.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// VIRTIO 1.2, 5: device IDs.
enum class DeviceId : std::uint32_t {
  kNet = 1,
  kBlock = 2,
  kConsole = 3,
  kEntropy = 4,
  kVsock = 19
};

// VIRTIO 1.2, 6: reserved feature bits.
constexpr std::uint64_t kFeatureIndirectDesc = std::uint64_t{1} << 28;
constexpr std::uint64_t kFeatureEventIdx = std::uint64_t{1} << 29;
constexpr std::uint64_t kFeatureVersion1 = std::uint64_t{1} << 32;
constexpr std::uint64_t kFeatureRingReset = std::uint64_t{1} << 40;

// How a device interrupts; given by the transport. Threads: any. None of these waits for a lock
// that is held while the transport waits for the device's loop (Reset runs there).
class Interrupt {
 public:
  virtual ~Interrupt() = default;
  // Used-buffer notification of one queue.
  virtual void Queue(std::uint16_t index) = 0;
  // Configuration change notification; also steps the config generation.
  virtual void Config() = 0;
  // The driver broke a rule it can only mend by a reset: sets DEVICE_NEEDS_RESET and notifies
  // (2.1.2).
  virtual void NeedsReset() = 0;
};

// One enabled queue, in the hands of the device.
struct ActiveQueue {
  std::uint16_t index;
  Queue queue;          // activated
  const EventFd* kick;  // signalled by the driver's notification; owned by the transport
};

struct Resources {
  memory::GuestMemoryPtr memory;
  std::uint64_t features = 0;  // negotiated
  std::vector<std::unique_ptr<ActiveQueue>>
      queues;  // one per queue of the device, by index; null where the driver did not enable it
  Interrupt* interrupt = nullptr;  // outlives the activation
};

class Device {
 public:
  virtual ~Device() = default;
  [[nodiscard]] virtual DeviceId id() const = 0;
  // Device-specific feature bits and those of the ring this device supports; the transport adds
  // what is its own: VERSION_1, RING_RESET, INDIRECT_DESC, EVENT_IDX. Constant.
  [[nodiscard]] virtual std::uint64_t features() const = 0;
  // Maximum size of each queue; its length is the number of queues. Constant.
  [[nodiscard]] virtual std::span<const std::uint16_t> queue_sizes() const = 0;
  // Device-specific configuration (any offset, 1..8 bytes): beyond its end reads 0.
  virtual void ReadConfig(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void WriteConfig(std::uint64_t offset, std::span<const std::byte> data) = 0;
  [[nodiscard]] virtual std::uint32_t config_size() const = 0;

  virtual void Activate(Resources resources) = 0;
  virtual Resources Reset() = 0;
  // RING_RESET (2.6.1): stop using one queue and give it back; later the driver may hand it in
  // again, enabled anew.
  virtual std::unique_ptr<ActiveQueue> ResetQueue(std::uint16_t index) = 0;
  virtual void ResumeQueue(std::unique_ptr<ActiveQueue> queue) = 0;

  // The loop its control calls run on.
  [[nodiscard]] virtual EventLoop& loop() = 0;
  virtual void ReportCounters(CounterSink& sink) const = 0;
};

}  // namespace postern::virtio
