#pragma once

// PciTransport: a virtio device as a PCI function: VIRTIO 1.2, 4.1, without the legacy interface.
//
//   auto disk = TRY(PciTransport::Create(blk, memory_map, platform.interrupts, "disk0"));
//   TRY(root.Add(*disk));
//
// BAR 0 (64-bit, 32 KiB) holds, a page each: common configuration, ISR, device configuration,
// MSI-X table, PBA, and the notification area (4 bytes per queue, a doorbell each). One MSI-X
// vector per queue and one for configuration changes. Without MSI-X the ISR bits are set and
// nothing is raised: there is no INTx pin.
//
// Ownership: borrows the device, the memory map and the InterruptSource. Threads: the function's
// lock, see PciFunction.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "devices/virtio/device.h"
#include "devices/virtio/transport.h"
#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/bus/register_map.h"
#include "src/memory/guest_memory.h"

namespace postern::virtio {

// Saved state, version 1.
struct PciTransportState {
  std::uint32_t version = 1;
  pci::FunctionState function;
  TransportState transport;
  std::uint16_t config_vector = 0xffff;
  std::vector<std::uint16_t> queue_vectors;
};

class PciTransport final : public pci::PciFunction,
                           private InterruptFace,
                           private bus::RegisterOwner {
 public:
  // One vector is left for configuration changes, and the table is a page.
  static constexpr std::uint16_t kMaxQueues = 255;

  [[nodiscard]] static Result<std::unique_ptr<PciTransport>> Create(
      Device& device, const memory::MemoryMap& memory, bus::InterruptSource& interrupts,
      std::string name);
  ~PciTransport() override;

  [[nodiscard]] Transport& transport() { return *transport_; }
  [[nodiscard]] PciTransportState Save() REQUIRES(lock());
  // kBadFormat as Transport::Restore and PciFunction::RestoreFunction; the function is then as
  // after Reset.
  [[nodiscard]] Result<void> Restore(const PciTransportState& state) REQUIRES(lock());
  void ReportCounters(CounterSink& sink) const override;

 private:
  // The parts of BAR 0.
  template <void (PciTransport::*kRead)(std::uint64_t, std::span<std::byte>),
            void (PciTransport::*kWrite)(std::uint64_t, std::span<const std::byte>)>
  class Part final : public bus::MmioHandler {
   public:
    explicit Part(PciTransport& owner) : owner_(owner) {}
    void Read(std::uint64_t offset, std::span<std::byte> data) override {
      (owner_.*kRead)(offset, data);
    }
    void Write(std::uint64_t offset, std::span<const std::byte> data) override {
      (owner_.*kWrite)(offset, data);
    }

   private:
    PciTransport& owner_;
  };

  PciTransport(std::string name, const pci::Identity& identity);
  [[nodiscard]] Result<void> Init(Device& device, const memory::MemoryMap& memory,
                                  bus::InterruptSource& interrupts);
  [[nodiscard]] Result<void> AddCapabilities();

  void ReadCommon(std::uint64_t offset, std::span<std::byte> data);
  void WriteCommon(std::uint64_t offset, std::span<const std::byte> data);
  void ReadIsr(std::uint64_t offset, std::span<std::byte> data);
  void WriteIsr(std::uint64_t offset, std::span<const std::byte> data);
  void ReadDevice(std::uint64_t offset, std::span<std::byte> data);
  void WriteDevice(std::uint64_t offset, std::span<const std::byte> data);
  void ReadNotify(std::uint64_t offset, std::span<std::byte> data);
  void WriteNotify(std::uint64_t offset, std::span<const std::byte> data);

  // bus::RegisterOwner, of the common configuration.
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override;
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override;
  // Puts what the selectors select into the register file.
  void LoadBanks();
  [[nodiscard]] std::uint16_t CheckedVector(std::uint64_t written) const;
  [[nodiscard]] std::uint16_t vector_count() const;
  [[nodiscard]] std::atomic<std::uint16_t>* SelectedVector();

  // InterruptFace.
  void SendQueue(std::uint16_t index) override;
  void SendConfig() override;

  // pci::PciFunction.
  void OnConfigRead(std::uint32_t offset, std::span<std::byte> data) override;
  void OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) override;
  void OnReset() override;
  void ResetVectors();
  [[nodiscard]] Result<void> RestoreParts(const PciTransportState& state) REQUIRES(lock());
  // The range VIRTIO_PCI_CAP_PCI_CFG points at, if it may be accessed.
  struct CfgWindow {
    std::uint64_t offset;
    std::size_t length;
  };
  [[nodiscard]] std::optional<CfgWindow> PciCfgWindow();

  std::unique_ptr<Transport> transport_;
  std::uint32_t pci_cfg_ = 0;  // offset of that capability
  std::optional<bus::RegisterFile> common_;
  Part<&PciTransport::ReadCommon, &PciTransport::WriteCommon> common_part_{*this};
  Part<&PciTransport::ReadIsr, &PciTransport::WriteIsr> isr_part_{*this};
  Part<&PciTransport::ReadDevice, &PciTransport::WriteDevice> device_part_{*this};
  Part<&PciTransport::ReadNotify, &PciTransport::WriteNotify> notify_part_{*this};
  // Written with the lock held, read by whoever interrupts.
  std::atomic<std::uint16_t> config_vector_{0xffff};
  std::unique_ptr<std::atomic<std::uint16_t>[]> queue_vectors_;
};

}  // namespace postern::virtio
