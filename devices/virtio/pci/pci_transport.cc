#include "devices/virtio/pci/pci_transport.h"

#include <algorithm>
#include <array>
#include <utility>

#include "devices/pci/pci_regs.h"
#include "devices/virtio/pci/pci_regs.h"

namespace postern::virtio {
namespace {

constexpr std::uint8_t kVirtioBar = 0;

// PCI 3.0 appendix D: what a driver-less system would show for the device.
std::uint32_t ClassOf(DeviceId id) {
  switch (id) {
    case DeviceId::kNet:
      return 0x020000;  // Ethernet controller
    case DeviceId::kBlock:
      return 0x018000;  // other mass storage
    case DeviceId::kConsole:
    case DeviceId::kVsock:
      return 0x078000;  // other communication device
    case DeviceId::kEntropy:
      break;
  }
  return 0xff0000;
}

pci::Identity IdentityOf(DeviceId id) {
  const auto number = static_cast<std::uint16_t>(id);
  return {.vendor = kPciVendor,
          .device = static_cast<std::uint16_t>(kPciDeviceBase + number),
          .revision = 1,  // 4.1.2.1: a non-transitional device
          .class_code = ClassOf(id),
          .subsystem_vendor = kPciVendor,
          .subsystem = static_cast<std::uint16_t>(kPciSubsystemBase + number)};
}

constexpr bool Touches(std::uint32_t offset, std::size_t width, std::uint32_t begin,
                       std::uint32_t size) {
  return offset < begin + size && offset + width > begin;
}

}  // namespace

Result<std::unique_ptr<PciTransport>> PciTransport::Create(Device& device,
                                                           const memory::MemoryMap& memory,
                                                           bus::InterruptSource& interrupts,
                                                           std::string name) {
  std::unique_ptr<PciTransport> transport(
      new PciTransport(std::move(name), IdentityOf(device.id())));
  TRY(transport->Init(device, memory, interrupts));
  return transport;
}

PciTransport::PciTransport(std::string name, const pci::Identity& identity)
    : PciFunction(std::move(name), identity) {}

PciTransport::~PciTransport() {
  // The device may interrupt until it is reset; vectors and the MSI-X table go after it.
  transport_.reset();
}

Result<void> PciTransport::Init(Device& device, const memory::MemoryMap& memory,
                                bus::InterruptSource& interrupts) {
  if (device.config_size() > kPartSize)
    return Err(Errc::kInvalidArgument, "virtio configuration size");
  Result<std::unique_ptr<Transport>> transport =
      Transport::Create(device, memory, *this, kMaxQueues);
  if (!transport) return Unexpected(transport.error());
  transport_ = std::move(*transport);
  const std::uint16_t queues = transport_->queue_count();
  queue_vectors_ = std::make_unique<std::atomic<std::uint16_t>[]>(queues);
  bus::RegisterOwner& owner = *this;
  common_.emplace(kCommonCfg, owner, "virtio-pci-common");
  const auto vectors = static_cast<std::uint16_t>(queues + 1);
  auto msix = TRY(pci::MsixTable::Create(interrupts, vectors));

  std::vector<pci::BarDoorbell> doorbells;
  for (std::uint16_t i = 0; i < queues; ++i) {
    doorbells.push_back({.offset = kNotifyOffset + std::uint64_t{i} * kNotifyMultiplier,
                         .width = 0,
                         .match = std::nullopt,
                         .event = &transport_->kick(i)});
  }
  std::vector<pci::Tile> tiles{
      pci::Trapped{kCommonOffset, kPartSize, &common_part_, "common"},
      pci::Trapped{kIsrOffset, kPartSize, &isr_part_, "isr"},
      pci::Trapped{kDeviceOffset, kPartSize, &device_part_, "device"},
      pci::Trapped{kTableOffset, kPartSize, &msix->table(), "msix-table"},
      pci::Trapped{kPbaOffset, kPartSize, &msix->pba(), "msix-pba"},
      pci::Trapped{kNotifyOffset, kBarSize - kNotifyOffset, &notify_part_, "notify"}};
  pci::Bar bar =
      TRY(pci::Bar::Create(pci::BarKind::kMem64, kBarSize, std::move(tiles), std::move(doorbells)));
  TRY(AddBar(kVirtioBar, std::move(bar)));
  TRY(AddMsix(std::move(msix), kVirtioBar, kTableOffset, kPbaOffset));
  TRY(AddCapabilities());
  ResetVectors();
  return {};
}

Result<void> PciTransport::AddCapabilities() {
  struct Row {
    std::uint8_t type;
    std::uint32_t offset;
    std::uint32_t length;
    std::uint32_t size;
  };
  const std::array rows{
      Row{kCapCommon, kCommonOffset, kCommonSize, kCapSize},
      // 4.1.4.4.1: at least queue_notify_off * multiplier + 4 for every queue.
      Row{kCapNotify, kNotifyOffset, transport_->queue_count() * kNotifyMultiplier, kCapLongSize},
      Row{kCapIsr, kIsrOffset, 1, kCapSize},
      Row{kCapDevice, kDeviceOffset, transport_->device().config_size(), kCapSize},
      Row{kCapPciCfg, 0, 0, kCapLongSize},
  };
  for (const Row& row : rows) {
    // 4.1.4.6.1: only devices that have a configuration structure have the capability.
    if (row.type == kCapDevice && row.length == 0) continue;
    const std::vector<std::uint8_t> body(row.size - 2);
    const std::uint32_t at = TRY(config().AddCapability(pci::kCapVendor, body));
    config().Set<std::uint8_t>(at + kCapLength, static_cast<std::uint8_t>(row.size));
    config().Set<std::uint8_t>(at + kCapType, row.type);
    config().Set<std::uint8_t>(at + kCapBar, kVirtioBar);
    config().Set<std::uint32_t>(at + kCapOffset, row.offset);
    config().Set<std::uint32_t>(at + kCapRangeLength, row.length);
    if (row.type == kCapNotify)
      config().Set<std::uint32_t>(at + kCapNotifyMultiplier, kNotifyMultiplier);
    if (row.type != kCapPciCfg) continue;
    // 4.1.4.9: bar, offset, length and the data window are the driver's to write.
    config().Allow<std::uint8_t>(at + kCapBar, 0xff);
    config().Allow<std::uint32_t>(at + kCapOffset, 0xffffffff);
    config().Allow<std::uint32_t>(at + kCapRangeLength, 0xffffffff);
    config().Allow<std::uint32_t>(at + kCapPciCfgData, 0xffffffff);
    pci_cfg_ = at;
  }
  return {};
}

// --- common configuration ---

void PciTransport::ReadCommon(std::uint64_t offset, std::span<std::byte> data) {
  common_->Read(offset, data);
}

void PciTransport::WriteCommon(std::uint64_t offset, std::span<const std::byte> data) {
  common_->Write(offset, data);
}

std::atomic<std::uint16_t>* PciTransport::SelectedVector() {
  return transport_->Selected() == nullptr ? nullptr : &queue_vectors_[transport_->queue_select()];
}

// 4.1.5.1.2.1: a vector that cannot be used reads back as NO_VECTOR.
std::uint16_t PciTransport::CheckedVector(std::uint64_t written) const {
  return written < vector_count() ? static_cast<std::uint16_t>(written) : kNoVector;
}

std::uint16_t PciTransport::vector_count() const {
  return static_cast<std::uint16_t>(transport_->queue_count() + 1);
}

void PciTransport::LoadBanks() {
  const QueueState* queue = transport_->Selected();
  const std::atomic<std::uint16_t>* vector = SelectedVector();
  bus::RegisterFile& common = *common_;
  common.Set(kDeviceFeatureSelect, transport_->device_features_select());
  common.Set(kDeviceFeature, transport_->DeviceFeatures());
  common.Set(kDriverFeatureSelect, transport_->driver_features_select());
  common.Set(kDriverFeature, transport_->DriverFeatures());
  common.Set(kConfigMsixVector, config_vector_.load(std::memory_order_relaxed));
  common.Set(kNumQueues, transport_->queue_count());
  common.Set(kQueueSelect, transport_->queue_select());
  common.Set(kQueueSize, queue == nullptr ? 0 : queue->size);
  common.Set(kQueueMsixVector,
             vector == nullptr ? kNoVector : vector->load(std::memory_order_relaxed));
  common.Set(kQueueEnable, queue != nullptr && queue->ready ? 1 : 0);
  common.Set(kQueueNotifyOff, queue == nullptr ? 0 : transport_->queue_select());
  common.Set(kQueueDesc, queue == nullptr ? 0 : queue->desc_table);
  common.Set(kQueueDriver, queue == nullptr ? 0 : queue->avail_ring);
  common.Set(kQueueDevice, queue == nullptr ? 0 : queue->used_ring);
  common.Set(kQueueNotifyData, queue == nullptr ? 0 : transport_->queue_select());
  common.Set(kQueueReset,
             0);  // 4.1.4.3.1: 0 once the reset is complete, which it is when the write returns
}

std::uint64_t PciTransport::OnRead(const bus::RegisterRow& row, std::uint64_t stored) {
  switch (row.offset) {
    case kDeviceStatus:
      return transport_->status();
    case kConfigGeneration:
      return transport_->config_generation() & 0xff;
    default:
      return stored;
  }
}

void PciTransport::OnWrite(const bus::RegisterRow& row, std::uint64_t /*old*/, std::uint64_t now,
                           std::uint64_t written) {
  Transport& transport = *transport_;
  const auto value = static_cast<std::uint32_t>(now);
  switch (row.offset) {
    case kDeviceFeatureSelect:
      transport.SelectDeviceFeatures(value);
      break;
    case kDriverFeatureSelect:
      transport.SelectDriverFeatures(value);
      break;
    case kDriverFeature:
      transport.WriteDriverFeatures(value);
      break;
    case kConfigMsixVector:
      config_vector_.store(CheckedVector(value), std::memory_order_release);
      break;
    case kDeviceStatus:
      transport.WriteStatus(static_cast<std::uint8_t>(written));
      if (transport.status() == 0) ResetVectors();
      break;
    case kQueueSelect:
      transport.SelectQueue(value);
      break;
    case kQueueSize:
      transport.SetQueueSize(value);
      break;
    case kQueueMsixVector:
      if (std::atomic<std::uint16_t>* vector = SelectedVector()) {
        vector->store(CheckedVector(value), std::memory_order_release);
      } else {
        transport.CountRefused();
      }
      break;
    case kQueueEnable:
      // 4.1.4.3.2: the driver must not write 0.
      if (value == 1) {
        transport.EnableQueue();
      } else {
        transport.CountRefused();
      }
      break;
    case kQueueDesc:
      transport.SetRing(Transport::Ring::kDescriptors, now);
      break;
    case kQueueDriver:
      transport.SetRing(Transport::Ring::kDriver, now);
      break;
    case kQueueDevice:
      transport.SetRing(Transport::Ring::kDevice, now);
      break;
    case kQueueReset:
      if (value != 1) {
        transport.CountRefused();
      } else if (transport.ResetQueue()) {
        SelectedVector()->store(kNoVector, std::memory_order_release);
      }
      break;
    default:
      break;
  }
  LoadBanks();
}

// --- ISR, device configuration, notifications ---

void PciTransport::ReadIsr(std::uint64_t offset, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
  if (offset != 0 || data.size() != 1) return transport_->CountRefused();
  data[0] = std::byte{transport_->TakeInterruptStatus()};  // 4.1.4.5.1: reading resets it
}

void PciTransport::WriteIsr(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) {
  transport_->CountRefused();
}

void PciTransport::ReadDevice(std::uint64_t offset, std::span<std::byte> data) {
  transport_->ReadConfig(offset, data);
}

void PciTransport::WriteDevice(std::uint64_t offset, std::span<const std::byte> data) {
  transport_->WriteConfig(offset, data);
}

void PciTransport::ReadNotify(std::uint64_t /*offset*/, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0});
}

// The address names the queue; the value repeats its index (4.1.5.2).
void PciTransport::WriteNotify(std::uint64_t offset, std::span<const std::byte> /*data*/) {
  if (offset % kNotifyMultiplier != 0) return transport_->CountRefused();
  transport_->Kick(static_cast<std::uint32_t>(offset / kNotifyMultiplier));
}

// --- interrupts: no lock ---

void PciTransport::SendQueue(std::uint16_t index) {
  msix()->Trigger(queue_vectors_[index].load(std::memory_order_acquire));
}

void PciTransport::SendConfig() {
  msix()->Trigger(config_vector_.load(std::memory_order_acquire));
}

// --- config space ---

void PciTransport::OnConfigRead(std::uint32_t offset, std::span<std::byte> data) {
  // 4.1.4.5.1: without MSI-X, Interrupt Status is the OR of the ISR bits.
  if (Touches(offset, data.size(), pci::kStatus, 1) && !msix()->enabled() &&
      transport_->interrupt_status() != 0) {
    data[pci::kStatus - offset] |= static_cast<std::byte>(pci::STATUS::InterruptStatus::kMask);
  }
  const std::uint32_t window = pci_cfg_ + kCapPciCfgData;
  if (!Touches(offset, data.size(), window, 4)) return;
  // 4.1.4.9.1: a read of pci_cfg_data is a read of the range it points at.
  const std::optional<CfgWindow> range = PciCfgWindow();
  if (!range) return;
  std::array<std::byte, 4> bytes{};
  if (!bars()[kVirtioBar]->Read(range->offset, std::span(bytes).first(range->length))) {
    return transport_->CountRefused();
  }
  for (std::uint32_t i = 0; i < bytes.size(); ++i) {
    config().Update<std::uint8_t>(window + i, std::to_integer<std::uint8_t>(bytes[i]));
    if (window + i >= offset && window + i < offset + data.size())
      data[window + i - offset] = bytes[i];
  }
}

void PciTransport::OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) {
  transport_->SetRecordQueueInterrupts(!msix()->enabled());
  const std::uint32_t window = pci_cfg_ + kCapPciCfgData;
  if (!Touches(offset, data.size(), window, 4)) return;
  const std::optional<CfgWindow> range = PciCfgWindow();
  if (!range) return;
  std::array<std::byte, 4> bytes{};
  for (std::uint32_t i = 0; i < bytes.size(); ++i)
    bytes[i] = std::byte{config().Get<std::uint8_t>(window + i)};
  // A range outside the BAR's parts writes nothing.
  if (!bars()[kVirtioBar]->Write(range->offset,
                                 std::span<const std::byte>(bytes).first(range->length))) {
    transport_->CountRefused();
  }
}

std::optional<PciTransport::CfgWindow> PciTransport::PciCfgWindow() {
  const auto bar = config().Get<std::uint8_t>(pci_cfg_ + kCapBar);
  const auto offset = config().Get<std::uint32_t>(pci_cfg_ + kCapOffset);
  const auto length = config().Get<std::uint32_t>(pci_cfg_ + kCapRangeLength);
  // 4.1.4.9.2: length is 1, 2 or 4, the offset a multiple of it. Bar::Read and Write check that the
  // range is inside one part.
  const bool fits =
      bar == kVirtioBar && (length == 1 || length == 2 || length == 4) && offset % length == 0;
  if (!fits) {
    transport_->CountRefused();
    return std::nullopt;
  }
  return CfgWindow{offset, length};
}

// --- reset and saved state ---

void PciTransport::ResetVectors() {
  config_vector_.store(kNoVector, std::memory_order_release);
  for (std::size_t i = 0; i < transport_->queue_count(); ++i) {
    queue_vectors_[i].store(kNoVector, std::memory_order_release);
  }
  LoadBanks();
}

void PciTransport::OnReset() {
  transport_->Reset();
  transport_->SetRecordQueueInterrupts(true);
  ResetVectors();
}

PciTransportState PciTransport::Save() {
  PciTransportState state;
  state.function = SaveFunction();
  state.transport = transport_->Save();
  state.config_vector = config_vector_.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < transport_->queue_count(); ++i) {
    state.queue_vectors.push_back(queue_vectors_[i].load(std::memory_order_acquire));
  }
  return state;
}

Result<void> PciTransport::Restore(const PciTransportState& state) {
  Reset();
  Result<void> restored = RestoreParts(state);
  if (!restored) Reset();
  return restored;
}

Result<void> PciTransport::RestoreParts(const PciTransportState& state) {
  if (state.version != 1) return Err(Errc::kBadFormat, "virtio-pci state version");
  const auto fits = [&](std::uint16_t vector) {
    return vector == kNoVector || vector < vector_count();
  };
  if (state.queue_vectors.size() != transport_->queue_count() || !fits(state.config_vector) ||
      !std::ranges::all_of(state.queue_vectors, fits)) {
    return Err(Errc::kBadFormat, "virtio-pci state: vectors");
  }
  // Interrupts first: the device may signal as soon as it runs.
  TRY(RestoreFunction(state.function));
  transport_->SetRecordQueueInterrupts(!msix()->enabled());
  config_vector_.store(state.config_vector, std::memory_order_release);
  for (std::size_t i = 0; i < state.queue_vectors.size(); ++i) {
    queue_vectors_[i].store(state.queue_vectors[i], std::memory_order_release);
  }
  TRY(transport_->Restore(state.transport));
  LoadBanks();
  return {};
}

void PciTransport::ReportCounters(CounterSink& sink) const {
  PciFunction::ReportCounters(sink);
  transport_->ReportCounters(sink);
  sink.Add("virtio_common_refused_accesses", common_->refused());
}

}  // namespace postern::virtio
