// The two transports. Internal to virtio.cc, virtio_pci.cc and virtio_mmio.cc.
#pragma once

#include <cstdint>

#include "src/probe/cmdline.h"
#include "src/probe/virtio.h"

namespace postern::probe {

// VIRTIO 1.2 section 4.1, modern interface only.
class PciTransport final : public Transport {
 public:
  static bool IsVirtio(const PciFunction& function);
  // False if the function lacks a structure or keeps it outside its BARs.
  bool Open(const PciFunction& function);

  uint16_t DeviceId() override;
  uint8_t Status() override;
  void SetStatus(uint8_t status) override;
  uint64_t DeviceFeatures() override;
  void SetDriverFeatures(uint64_t features) override;
  uint16_t QueueMaxSize(uint16_t queue) override;
  bool QueueEnabled(uint16_t queue) override;
  bool EnableQueue(uint16_t queue, uint16_t size, uint64_t descriptors, uint64_t driver,
                   uint64_t device) override;
  bool ResetQueue(uint16_t queue) override;
  void Notify(uint16_t queue) override;
  uint8_t ReadConfig8(uint32_t offset) override;
  uint16_t ReadConfig16(uint32_t offset) override;
  uint32_t ReadConfig32(uint32_t offset) override;
  void WriteConfig8(uint32_t offset, uint8_t value) override;
  uint8_t ConfigGeneration() override;
  bool ConnectInterrupts(uint16_t queue_count) override;
  void DisconnectInterrupts() override;
  uint8_t QueueVector(uint16_t queue) override;
  void AddAddress(Line& line) override;
  Msix* msix() override { return &msix_; }
  unsigned QueueMsixEntry(uint16_t queue) override;
  Window WindowAt(size_t index) override;

 private:
  const PciFunction* function_ = nullptr;
  uint64_t common_ = 0;
  uint64_t notify_ = 0;
  uint64_t notify_size_ = 0;
  uint32_t notify_multiplier_ = 0;
  uint64_t isr_ = 0;
  uint64_t config_ = 0;  // 0: the device has no configuration space of its own
  uint64_t doorbells_[VirtioDevice::kMaxQueues * 4]{};
  Msix msix_;
  bool has_msix_ = false;
  uint16_t interrupt_count_ = 0;  // queues from 0 that have a vector; the others are polled
  uint8_t vectors_[VirtioDevice::kMaxQueues + 1]{};  // by table entry
};

// VIRTIO 1.2 section 4.2, version 2.
class MmioTransport final : public Transport {
 public:
  bool Open(const MmioDeviceArgument& argument);

  uint16_t DeviceId() override;
  uint8_t Status() override;
  void SetStatus(uint8_t status) override;
  uint64_t DeviceFeatures() override;
  void SetDriverFeatures(uint64_t features) override;
  uint16_t QueueMaxSize(uint16_t queue) override;
  bool QueueEnabled(uint16_t queue) override;
  bool EnableQueue(uint16_t queue, uint16_t size, uint64_t descriptors, uint64_t driver,
                   uint64_t device) override;
  bool ResetQueue(uint16_t queue) override;
  void Notify(uint16_t queue) override;
  uint8_t ReadConfig8(uint32_t offset) override;
  uint16_t ReadConfig16(uint32_t offset) override;
  uint32_t ReadConfig32(uint32_t offset) override;
  void WriteConfig8(uint32_t offset, uint8_t value) override;
  uint8_t ConfigGeneration() override;
  bool ConnectInterrupts(uint16_t queue_count) override;
  void DisconnectInterrupts() override;
  uint8_t QueueVector(uint16_t queue) override;
  void AddAddress(Line& line) override;
  Window WindowAt(size_t index) override;

 private:
  static void Acknowledge(void* self);

  uint64_t base_ = 0;
  uint64_t size_ = 0;
  uint32_t irq_ = 0;
  uint32_t gsi_ = 0;
  uint8_t vector_ = 0;
};

}  // namespace postern::probe
