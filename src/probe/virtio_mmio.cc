#include "src/probe/acpi.h"
#include "src/probe/paging.h"
#include "src/probe/virtio_transports.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

// VIRTIO 1.2 4.2.2.
constexpr uint64_t kMagic = 0x000;
constexpr uint64_t kVersion = 0x004;
constexpr uint64_t kDevice = 0x008;
constexpr uint64_t kDeviceFeature = 0x010;
constexpr uint64_t kDeviceFeatureSelect = 0x014;
constexpr uint64_t kDriverFeature = 0x020;
constexpr uint64_t kDriverFeatureSelect = 0x024;
constexpr uint64_t kQueueSelect = 0x030;
constexpr uint64_t kQueueSizeMax = 0x034;
constexpr uint64_t kQueueSizeField = 0x038;
constexpr uint64_t kQueueReady = 0x044;
constexpr uint64_t kQueueNotify = 0x050;
constexpr uint64_t kInterruptStatus = 0x060;
constexpr uint64_t kInterruptAck = 0x064;
constexpr uint64_t kStatus = 0x070;
constexpr uint64_t kQueueDescriptors = 0x080;
constexpr uint64_t kQueueDriver = 0x090;
constexpr uint64_t kQueueDevice = 0x0a0;
constexpr uint64_t kQueueReset = 0x0c0;
constexpr uint64_t kGeneration = 0x0fc;
constexpr uint64_t kConfig = 0x100;

constexpr uint32_t kMagicValue = 0x74726976;  // "virt"

void WriteAddress(uint64_t reg, uint64_t value) {
  Write32(reg, static_cast<uint32_t>(value));
  Write32(reg + 4, static_cast<uint32_t>(value >> 32));
}

}  // namespace

bool MmioTransport::Open(const MmioDeviceArgument& argument) {
  base_ = argument.address;
  size_ = argument.size;
  irq_ = argument.irq;
  MapPhysical(base_, size_, Caching::kDevice);
  // A device ID of 0 is a place with nothing in it (4.2.2.1): QEMU's microvm names all its places.
  return Read32(base_ + kMagic) == kMagicValue && Read32(base_ + kVersion) == 2 &&
         Read32(base_ + kDevice) != 0;
}

uint16_t MmioTransport::DeviceId() {
  return static_cast<uint16_t>(Read32(base_ + kDevice));
}
uint8_t MmioTransport::Status() {
  return static_cast<uint8_t>(Read32(base_ + kStatus));
}
void MmioTransport::SetStatus(uint8_t status) {
  Write32(base_ + kStatus, status);
}

uint64_t MmioTransport::DeviceFeatures() {
  Write32(base_ + kDeviceFeatureSelect, 0);
  const uint64_t low = Read32(base_ + kDeviceFeature);
  Write32(base_ + kDeviceFeatureSelect, 1);
  return low | uint64_t{Read32(base_ + kDeviceFeature)} << 32;
}

void MmioTransport::SetDriverFeatures(uint64_t features) {
  Write32(base_ + kDriverFeatureSelect, 0);
  Write32(base_ + kDriverFeature, static_cast<uint32_t>(features));
  Write32(base_ + kDriverFeatureSelect, 1);
  Write32(base_ + kDriverFeature, static_cast<uint32_t>(features >> 32));
}

uint16_t MmioTransport::QueueMaxSize(uint16_t queue) {
  Write32(base_ + kQueueSelect, queue);
  const uint32_t size = Read32(base_ + kQueueSizeMax);
  return size > 0xffff ? 0xffff : static_cast<uint16_t>(size);
}

bool MmioTransport::QueueEnabled(uint16_t queue) {
  Write32(base_ + kQueueSelect, queue);
  return Read32(base_ + kQueueReady) == 1;
}

bool MmioTransport::EnableQueue(uint16_t queue, uint16_t size, uint64_t descriptors,
                                uint64_t driver, uint64_t device) {
  Write32(base_ + kQueueSelect, queue);
  if (Read32(base_ + kQueueReady) != 0) return false;
  Write32(base_ + kQueueSizeField, size);
  WriteAddress(base_ + kQueueDescriptors, descriptors);
  WriteAddress(base_ + kQueueDriver, driver);
  WriteAddress(base_ + kQueueDevice, device);
  Write32(base_ + kQueueReady, 1);
  return Read32(base_ + kQueueReady) == 1;
}

bool MmioTransport::ResetQueue(uint16_t queue) {
  Write32(base_ + kQueueSelect, queue);
  Write32(base_ + kQueueReset, 1);
  return WaitFor(kRequestMicros, [this] { return Read32(base_ + kQueueReset) == 0; }) &&
         Read32(base_ + kQueueReady) == 0;
}

void MmioTransport::Notify(uint16_t queue) {
  Write32(base_ + kQueueNotify, queue);
}

uint8_t MmioTransport::ReadConfig8(uint32_t offset) {
  return Read8(base_ + kConfig + offset);
}
uint16_t MmioTransport::ReadConfig16(uint32_t offset) {
  return Read16(base_ + kConfig + offset);
}
uint32_t MmioTransport::ReadConfig32(uint32_t offset) {
  return Read32(base_ + kConfig + offset);
}
void MmioTransport::WriteConfig8(uint32_t offset, uint8_t value) {
  Write8(base_ + kConfig + offset, value);
}
uint8_t MmioTransport::ConfigGeneration() {
  return static_cast<uint8_t>(Read32(base_ + kGeneration));
}

void MmioTransport::Acknowledge(void* self) {
  const uint64_t base = static_cast<MmioTransport*>(self)->base_;
  // 4.2.3.4: acknowledged before the rings are looked at, so that what comes after raises it again.
  Write32(base + kInterruptAck, Read32(base + kInterruptStatus));
}

bool MmioTransport::ConnectInterrupts(uint16_t) {
  // ISA interrupt numbers may be wired to another pin and signal otherwise than by edges.
  gsi_ = irq_;
  bool level = false;
  bool active_low = false;
  const Acpi& acpi = AcpiInfo();
  for (size_t i = 0; i < acpi.override_count; ++i) {
    if (acpi.overrides[i].isa_irq != irq_) continue;
    gsi_ = acpi.overrides[i].gsi;
    level = acpi.overrides[i].level;
    active_low = acpi.overrides[i].active_low;
  }
  vector_ = AllocateVector();
  SetInterruptHook(vector_, &MmioTransport::Acknowledge, this);
  return RouteGsi(gsi_, vector_, level, active_low);
}

void MmioTransport::DisconnectInterrupts() {
  if (vector_ == 0) return;
  MaskGsi(gsi_);
  SetInterruptHook(vector_, nullptr, nullptr);
  vector_ = 0;
}

uint8_t MmioTransport::QueueVector(uint16_t) {
  return vector_;
}
void MmioTransport::AddAddress(Line& line) {
  line.Add("mmio ").Hex(base_, 8);
}

Transport::Window MmioTransport::WindowAt(size_t index) {
  return index == 0 ? Window{base_, size_} : Window{0, 0};
}

}  // namespace postern::probe
