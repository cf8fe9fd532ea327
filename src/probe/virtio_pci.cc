#include "src/probe/paging.h"
#include "src/probe/virtio_transports.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint16_t kVirtioVendor = 0x1af4;
constexpr uint16_t kModernBase = 0x1040;
// Transitional devices carry their type in the subsystem ID (VIRTIO 1.2 4.1.2.1).
constexpr uint16_t kTransitionalFirst = 0x1000;
constexpr uint16_t kTransitionalLast = 0x103f;
constexpr uint16_t kLast = 0x107f;

// struct virtio_pci_cap, 4.1.4.
constexpr uint64_t kCapType = 3;
constexpr uint64_t kCapBar = 4;
constexpr uint64_t kCapOffset = 8;
constexpr uint64_t kCapLength = 12;
constexpr uint64_t kCapMultiplier = 16;
constexpr uint8_t kCommonConfig = 1;
constexpr uint8_t kNotifyConfig = 2;
constexpr uint8_t kIsrConfig = 3;
constexpr uint8_t kDeviceConfig = 4;

// struct virtio_pci_common_cfg, 4.1.4.3.
constexpr uint64_t kDeviceFeatureSelect = 0x00;
constexpr uint64_t kDeviceFeature = 0x04;
constexpr uint64_t kDriverFeatureSelect = 0x08;
constexpr uint64_t kDriverFeature = 0x0c;
constexpr uint64_t kConfigVector = 0x10;
constexpr uint64_t kDeviceStatus = 0x14;
constexpr uint64_t kGeneration = 0x15;
constexpr uint64_t kQueueSelect = 0x16;
constexpr uint64_t kQueueSize = 0x18;
constexpr uint64_t kQueueVectorField = 0x1a;
constexpr uint64_t kQueueEnable = 0x1c;
constexpr uint64_t kQueueNotifyOff = 0x1e;
constexpr uint64_t kQueueDescriptors = 0x20;
constexpr uint64_t kQueueDriver = 0x28;
constexpr uint64_t kQueueDevice = 0x30;
constexpr uint64_t kQueueReset = 0x3a;
constexpr uint64_t kCommonSize = 0x38;

// 4.1.5.1.2.1: what a vector field reads as if the device could not take the vector.
constexpr uint16_t kNoVector = 0xffff;

void Write64InHalves(uint64_t address, uint64_t value) {
  // 4.1.3.1: a driver must access 64-bit fields as two 32-bit ones.
  Write32(address, static_cast<uint32_t>(value));
  Write32(address + 4, static_cast<uint32_t>(value >> 32));
}

}  // namespace

bool PciTransport::IsVirtio(const PciFunction& function) {
  return function.vendor == kVirtioVendor && function.device >= kTransitionalFirst &&
         function.device <= kLast;
}

bool PciTransport::Open(const PciFunction& function) {
  function_ = &function;
  for (uint8_t at = FindCapability(function, kCapabilityVendor); at != 0;
       at = FindCapability(function, kCapabilityVendor, at)) {
    const uint64_t cap = function.config + at;
    const uint8_t type = Read8(cap + kCapType);
    const uint8_t bar = Read8(cap + kCapBar);
    const uint64_t offset = Read32(cap + kCapOffset);
    const uint64_t length = Read32(cap + kCapLength);
    if (type < kCommonConfig || type > kDeviceConfig || bar >= 6) continue;
    const PciBar& b = function.bars[bar];
    // 4.1.4: the structure lies inside its BAR; one that does not is not usable.
    if (b.is_port || b.address == 0 || offset > b.size || length > b.size - offset) continue;
    const uint64_t address = b.address + offset;
    MapPhysical(address, length, Caching::kDevice);
    switch (type) {
      case kCommonConfig:
        if (common_ == 0 && length >= kCommonSize) common_ = address;
        break;
      case kNotifyConfig:
        if (notify_ != 0) break;
        notify_ = address;
        notify_size_ = length;
        notify_multiplier_ = Read32(cap + kCapMultiplier);
        break;
      case kIsrConfig:
        if (isr_ == 0) isr_ = address;
        break;
      default:
        if (config_ == 0) config_ = address;
        break;
    }
  }
  if (common_ == 0 || notify_ == 0 || isr_ == 0) return false;
  EnablePci(function);
  return true;
}

uint16_t PciTransport::DeviceId() {
  if (function_->device > kTransitionalLast)
    return static_cast<uint16_t>(function_->device - kModernBase);
  return Read16(function_->config + 0x2e);
}

uint8_t PciTransport::Status() {
  return Read8(common_ + kDeviceStatus);
}
void PciTransport::SetStatus(uint8_t status) {
  Write8(common_ + kDeviceStatus, status);
}

uint64_t PciTransport::DeviceFeatures() {
  Write32(common_ + kDeviceFeatureSelect, 0);
  const uint64_t low = Read32(common_ + kDeviceFeature);
  Write32(common_ + kDeviceFeatureSelect, 1);
  return low | uint64_t{Read32(common_ + kDeviceFeature)} << 32;
}

void PciTransport::SetDriverFeatures(uint64_t features) {
  Write32(common_ + kDriverFeatureSelect, 0);
  Write32(common_ + kDriverFeature, static_cast<uint32_t>(features));
  Write32(common_ + kDriverFeatureSelect, 1);
  Write32(common_ + kDriverFeature, static_cast<uint32_t>(features >> 32));
}

uint16_t PciTransport::QueueMaxSize(uint16_t queue) {
  Write16(common_ + kQueueSelect, queue);
  return Read16(common_ + kQueueSize);
}

bool PciTransport::QueueEnabled(uint16_t queue) {
  Write16(common_ + kQueueSelect, queue);
  return Read16(common_ + kQueueEnable) == 1;
}

bool PciTransport::EnableQueue(uint16_t queue, uint16_t size, uint64_t descriptors, uint64_t driver,
                               uint64_t device) {
  if (queue >= sizeof(doorbells_) / sizeof(doorbells_[0])) return false;
  Write16(common_ + kQueueSelect, queue);
  Write16(common_ + kQueueSize, size);
  Write64InHalves(common_ + kQueueDescriptors, descriptors);
  Write64InHalves(common_ + kQueueDriver, driver);
  Write64InHalves(common_ + kQueueDevice, device);
  const uint64_t doorbell = uint64_t{Read16(common_ + kQueueNotifyOff)} * notify_multiplier_;
  if (notify_size_ < 2 || doorbell > notify_size_ - 2) return false;
  doorbells_[queue] = notify_ + doorbell;
  if (has_msix_) {
    const auto entry =
        queue < interrupt_count_ ? static_cast<uint16_t>(QueueMsixEntry(queue)) : kNoVector;
    Write16(common_ + kQueueVectorField, entry);
    if (Read16(common_ + kQueueVectorField) != entry) return false;
  }
  Write16(common_ + kQueueEnable, 1);
  return Read16(common_ + kQueueEnable) == 1;
}

bool PciTransport::ResetQueue(uint16_t queue) {
  Write16(common_ + kQueueSelect, queue);
  Write16(common_ + kQueueReset, 1);
  // 4.1.4.3.2: the device shows 1 while the reset is under way, then 0, and queue_enable is 0 as
  // well.
  return WaitFor(kRequestMicros, [this] { return Read16(common_ + kQueueReset) == 0; }) &&
         Read16(common_ + kQueueEnable) == 0;
}

void PciTransport::Notify(uint16_t queue) {
  Write16(doorbells_[queue], queue);
}

uint8_t PciTransport::ReadConfig8(uint32_t offset) {
  return config_ == 0 ? 0 : Read8(config_ + offset);
}
uint16_t PciTransport::ReadConfig16(uint32_t offset) {
  return config_ == 0 ? 0 : Read16(config_ + offset);
}
uint32_t PciTransport::ReadConfig32(uint32_t offset) {
  return config_ == 0 ? 0 : Read32(config_ + offset);
}
void PciTransport::WriteConfig8(uint32_t offset, uint8_t value) {
  if (config_ != 0) Write8(config_ + offset, value);
}
uint8_t PciTransport::ConfigGeneration() {
  return Read8(common_ + kGeneration);
}

bool PciTransport::ConnectInterrupts(uint16_t queue_count) {
  has_msix_ = msix_.Open(*function_);
  interrupt_count_ = queue_count;
  if (!has_msix_) return false;
  const unsigned entries = msix_.size() < queue_count + 1U ? msix_.size() : queue_count + 1U;
  for (unsigned i = 0; i < entries && i <= VirtioDevice::kMaxQueues; ++i) {
    vectors_[i] = AllocateVector();
    msix_.Set(i, vectors_[i]);
  }
  Write16(common_ + kConfigVector, 0);
  return Read16(common_ + kConfigVector) != kNoVector;
}

void PciTransport::DisconnectInterrupts() {
  if (has_msix_) msix_.Close();
  has_msix_ = false;
}

// Entry 0 is for configuration changes; the queues share the others.
unsigned PciTransport::QueueMsixEntry(uint16_t queue) {
  unsigned others = msix_.size() - 1;
  if (others > VirtioDevice::kMaxQueues) others = VirtioDevice::kMaxQueues;
  return others == 0 ? 0 : 1 + queue % others;
}

uint8_t PciTransport::QueueVector(uint16_t queue) {
  return vectors_[QueueMsixEntry(queue)];
}

void PciTransport::AddAddress(Line& line) {
  AddBdf(line, function_->bdf);
}

Transport::Window PciTransport::WindowAt(size_t index) {
  if (index == 0) return {function_->config, 4096};
  for (const PciBar& bar : function_->bars) {
    if (bar.is_port || bar.size == 0 || bar.address == 0) continue;
    if (--index == 0) return {bar.address, bar.size};
  }
  return {0, 0};
}

}  // namespace postern::probe
