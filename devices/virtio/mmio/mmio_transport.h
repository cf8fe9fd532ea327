#pragma once

// MmioTransport: a virtio device behind 4 KiB of registers: VIRTIO 1.2, 4.2, version 2.
//
//   auto disk = TRY(MmioTransport::Create(blk, memory_map, platform, mmio, Gpa(0xd0000000), 5,
//                                         "disk0"));
//
// Interrupts are pulses of one edge-triggered line; notifications are doorbells of QueueNotify,
// one value per queue.
//
// Ownership: borrows all it is given; claims its range of the bus for its life, whose end waits for
// vCPUs inside a handler. Threads: one lock, held while a vCPU accesses it.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/device.h"
#include "devices/virtio/transport.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/bus.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/bus/register_map.h"
#include "src/memory/gpa.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// Saved state, version 1. SHMSel is not kept: no device has shared memory regions.
struct MmioTransportState {
  std::uint32_t version = 1;
  TransportState transport;
};

class MmioTransport final : private bus::MmioHandler,
                            private bus::RegisterOwner,
                            private InterruptFace {
 public:
  static constexpr std::uint64_t kSize = 0x1000;
  static constexpr std::uint16_t kMaxQueues = 1024;

  // `gsi`: the interrupt line, its own. Errors of the bus (kOverlap), the platform, and
  // Transport::Create.
  [[nodiscard]] static Result<std::unique_ptr<MmioTransport>> Create(
      Device& device, const memory::MemoryMap& memory, const bus::Platform& platform, bus::Bus& bus,
      memory::Gpa base, std::uint32_t gsi, std::string name);
  ~MmioTransport() override;

  [[nodiscard]] Mutex& lock() RETURN_CAPABILITY(lock_) { return lock_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] memory::Gpa base() const { return base_; }
  [[nodiscard]] std::uint32_t gsi() const { return gsi_; }
  [[nodiscard]] Transport& transport() { return *transport_; }
  void Reset() REQUIRES(lock_);
  [[nodiscard]] MmioTransportState Save() REQUIRES(lock_);
  [[nodiscard]] Result<void> Restore(const MmioTransportState& state) REQUIRES(lock_);
  void ReportCounters(CounterSink& sink) const;

 private:
  MmioTransport(memory::Gpa base, std::uint32_t gsi, std::string name);
  [[nodiscard]] Result<void> Init(Device& device, const memory::MemoryMap& memory,
                                  const bus::Platform& platform, bus::Bus& bus);
  void Read(std::uint64_t offset, std::span<std::byte> data) override;
  void Write(std::uint64_t offset, std::span<const std::byte> data) override;
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override;
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override;
  void SendQueue(std::uint16_t index) override;
  void SendConfig() override;

  Mutex lock_;
  const memory::Gpa base_;
  const std::uint32_t gsi_;
  const std::string name_;
  std::unique_ptr<bus::IrqLine> line_;
  std::unique_ptr<Transport> transport_;
  std::optional<bus::RegisterFile> registers_;
  bus::Bus* bus_ = nullptr;
  bus::Registration registration_;
  std::vector<std::unique_ptr<bus::Doorbell>> doorbells_;
  std::uint64_t missing_doorbells_ = 0;
};

}  // namespace postern::virtio
