#include "devices/virtio/mmio/mmio_transport.h"

#include <algorithm>
#include <utility>

#include "devices/virtio/mmio/mmio_regs.h"

namespace postern::virtio {

namespace regs = mmio_regs;

namespace {

std::uint64_t WithLow(std::uint64_t address, std::uint64_t low) {
  return (address & ~regs::kAll) | low;
}
std::uint64_t WithHigh(std::uint64_t address, std::uint64_t high) {
  return (address & regs::kAll) | high << 32;
}

}  // namespace

Result<std::unique_ptr<MmioTransport>> MmioTransport::Create(Device& device,
                                                             const memory::MemoryMap& memory,
                                                             const bus::Platform& platform,
                                                             bus::Bus& bus, memory::Gpa base,
                                                             std::uint32_t gsi, std::string name) {
  std::unique_ptr<MmioTransport> mmio(new MmioTransport(base, gsi, std::move(name)));
  TRY(mmio->Init(device, memory, platform, bus));
  return mmio;
}

MmioTransport::MmioTransport(memory::Gpa base, std::uint32_t gsi, std::string name)
    : base_(base), gsi_(gsi), name_(std::move(name)) {}

Result<void> MmioTransport::Init(Device& device, const memory::MemoryMap& memory,
                                 const bus::Platform& platform, bus::Bus& bus) {
  if (device.config_size() > kSize - regs::kConfig)
    return Err(Errc::kInvalidArgument, "virtio configuration size");
  Result<std::unique_ptr<Transport>> transport =
      Transport::Create(device, memory, *this, kMaxQueues);
  if (!transport) return Unexpected(transport.error());
  transport_ = std::move(*transport);
  bus::RegisterOwner& owner = *this;
  bus_ = &bus;
  registers_.emplace(regs::kRegisters, owner, "virtio-mmio");
  line_ = TRY(platform.interrupts.NewLine(gsi_));
  registration_ = TRY(bus.Add(base_.value, kSize, *this, lock_, name_ + " virtio-mmio"));
  for (std::uint16_t i = 0; i < transport_->queue_count(); ++i) {
    // 4.2.2: without NOTIFICATION_DATA the driver writes the queue's index.
    auto bell = platform.doorbells.Register(memory::Gpa(base_.value + regs::kQueueNotify), 4, i,
                                            transport_->kick(i));
    if (bell) {
      doorbells_.push_back(std::move(*bell));
    } else {
      ++missing_doorbells_;  // the write traps, and OnWrite kicks
    }
  }
  return {};
}

MmioTransport::~MmioTransport() {
  doorbells_.clear();
  if (registration_.active()) {
    {
      const MutexLock lock(lock_);
      registration_.Reset();
    }
    bus_->Drain();  // a vCPU may have found the range and still wait for lock_
  }
  // Before the line that its interrupts go to.
  transport_.reset();
}

void MmioTransport::Read(std::uint64_t offset, std::span<std::byte> data) {
  if (offset >= regs::kConfig) {
    transport_->ReadConfig(offset - regs::kConfig, data);
    return;
  }
  // 4.2.2.2: control registers by 32-bit aligned accesses alone.
  if (data.size() != 4) {
    transport_->CountRefused();
    std::ranges::fill(data, std::byte{0});
    return;
  }
  registers_->Read(offset, data);
}

void MmioTransport::Write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= regs::kConfig) {
    transport_->WriteConfig(offset - regs::kConfig, data);
    return;
  }
  if (data.size() != 4) {
    transport_->CountRefused();
    return;
  }
  registers_->Write(offset, data);
}

std::uint64_t MmioTransport::OnRead(const bus::RegisterRow& row, std::uint64_t /*stored*/) {
  const QueueState* queue = transport_->Selected();
  switch (row.offset) {
    case regs::kDeviceIdRegister:
      return static_cast<std::uint32_t>(transport_->device().id());
    case regs::kDeviceFeatures:
      return transport_->DeviceFeatures();
    case regs::kQueueNumMax:
      return queue == nullptr ? 0 : queue->max_size;
    case regs::kQueueReady:
      return queue != nullptr && queue->ready ? 1 : 0;
    case regs::kInterruptStatus:
      return transport_->interrupt_status();
    case regs::kStatus:
      return transport_->status();
    case regs::kConfigGeneration:
      return transport_->config_generation();
    default:
      // Write-only registers; and QueueReset, whose reset is complete when the write returns
      // (4.2.2.1).
      return 0;
  }
}

void MmioTransport::OnWrite(const bus::RegisterRow& row, std::uint64_t /*old*/,
                            std::uint64_t /*now*/, std::uint64_t written) {
  Transport& transport = *transport_;
  const auto value = static_cast<std::uint32_t>(written);
  const QueueState* selected = transport.Selected();
  const QueueState queue = selected == nullptr ? QueueState{} : *selected;
  switch (row.offset) {
    case regs::kDeviceFeaturesSel:
      return transport.SelectDeviceFeatures(value);
    case regs::kDriverFeatures:
      return transport.WriteDriverFeatures(value);
    case regs::kDriverFeaturesSel:
      return transport.SelectDriverFeatures(value);
    case regs::kQueueSel:
      return transport.SelectQueue(value);
    case regs::kQueueNum:
      transport.SetQueueSize(value);
      return;
    case regs::kQueueReady:
      if (value == 1) {
        transport.EnableQueue();
      } else if (value == 0) {
        transport.DisableQueue();
      } else {
        transport.CountRefused();
      }
      return;
    case regs::kQueueNotify:
      transport.Kick(value);
      return;
    case regs::kInterruptAck:
      return transport.AckInterrupt(
          static_cast<std::uint8_t>(value & (kInterruptQueue | kInterruptConfig)));
    case regs::kStatus:
      // No status above bit 7 exists: such a value is no truncated one.
      if (value > 0xff) return transport.CountRefused();
      return transport.WriteStatus(static_cast<std::uint8_t>(value));
    case regs::kQueueDescLow:
      transport.SetRing(Transport::Ring::kDescriptors, WithLow(queue.desc_table, value));
      return;
    case regs::kQueueDescHigh:
      transport.SetRing(Transport::Ring::kDescriptors, WithHigh(queue.desc_table, value));
      return;
    case regs::kQueueDriverLow:
      transport.SetRing(Transport::Ring::kDriver, WithLow(queue.avail_ring, value));
      return;
    case regs::kQueueDriverHigh:
      transport.SetRing(Transport::Ring::kDriver, WithHigh(queue.avail_ring, value));
      return;
    case regs::kQueueDeviceLow:
      transport.SetRing(Transport::Ring::kDevice, WithLow(queue.used_ring, value));
      return;
    case regs::kQueueDeviceHigh:
      transport.SetRing(Transport::Ring::kDevice, WithHigh(queue.used_ring, value));
      return;
    case regs::kQueueReset:
      if (value == 1) {
        transport.ResetQueue();
      } else {
        transport.CountRefused();
      }
      return;
    default:
      return;  // SHMSel: every region reads as absent
  }
}

// The status bits are set already: a driver that reads InterruptStatus after the pulse finds them.
void MmioTransport::SendQueue(std::uint16_t /*index*/) {
  line_->trigger().Signal();
}

void MmioTransport::SendConfig() {
  line_->trigger().Signal();
}

void MmioTransport::Reset() {
  transport_->Reset();
}

MmioTransportState MmioTransport::Save() {
  MmioTransportState state;
  state.transport = transport_->Save();
  return state;
}

Result<void> MmioTransport::Restore(const MmioTransportState& state) {
  if (state.version != 1) return Err(Errc::kBadFormat, "virtio-mmio state version");
  return transport_->Restore(state.transport);
}

void MmioTransport::ReportCounters(CounterSink& sink) const {
  transport_->ReportCounters(sink);
  sink.Add("mmio_refused_accesses", registers_->refused());
  sink.Add("mmio_missing_doorbells", missing_doorbells_);
}

}  // namespace postern::virtio
