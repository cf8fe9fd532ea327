#pragma once

// TransportRig: a device of three queues behind either transport, over fakes, and the registers as
// a driver reaches them: what one face can do and the other can too, under one name.
//
//   PciRig rig;                      // or MmioRig
//   rig.Negotiate(kFeatureVersion1);
//   rig.StartQueue(0, queue);        // a DriverQueue
//   rig.WriteStatus(0xf);
//
// Threads: registers from any; the device's loop has a thread of its own.

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "devices/pci/fake_function.h"
#include "devices/pci/pci_regs.h"
#include "devices/virtio/mmio/mmio_regs.h"
#include "devices/virtio/mmio/mmio_transport.h"
#include "devices/virtio/pci/pci_regs.h"
#include "devices/virtio/pci/pci_transport.h"
#include "devices/virtio/single_loop_device.h"
#include "src/base/check.h"
#include "src/base/event_loop.h"
#include "src/base/mutex.h"
#include "src/bus/bus.h"
#include "src/bus/fake_platform.h"
#include "src/memory/guest_memory.h"
#include "tests/support/counter.h"
#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

namespace postern::testing {

// Answers every chain with its queue's number in each writable byte. 24 bytes of configuration.
class EchoDevice final : public virtio::SingleLoopDevice {
 public:
  static constexpr std::uint64_t kFeatures = 0x0000'0002'8000'0021;
  static constexpr std::uint16_t kQueueSizes[3] = {256, 64, 8};

  explicit EchoDevice(EventLoop& loop) : SingleLoopDevice(loop, "echo") {
    for (std::size_t i = 0; i < config_.size(); ++i) config_[i] = static_cast<std::byte>(i + 1);
  }
  [[nodiscard]] virtio::DeviceId id() const override { return virtio::DeviceId::kBlock; }
  [[nodiscard]] std::uint64_t features() const override { return kFeatures; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return kQueueSizes; }
  [[nodiscard]] std::uint32_t config_size() const override {
    return static_cast<std::uint32_t>(config_.size());
  }
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override {
    for (std::size_t i = 0; i < data.size(); ++i) {
      data[i] = offset + i < config_.size() ? config_[offset + i] : std::byte{0};
    }
  }
  void WriteConfig(std::uint64_t offset, std::span<const std::byte> data) override {
    for (std::size_t i = 0; i < data.size() && offset + i < config_.size(); ++i) {
      config_[offset + i] = data[i];
    }
  }
  // On the loop thread, while active.
  void OnLoop(const std::function<void(virtio::Interrupt&)>& function) {
    loop().RunSync([&] {
      if (active()) function(interrupt());
    });
  }

  std::atomic<int> activations{0};
  std::atomic<int> deactivations{0};
  std::atomic<int> queue_resets{0};
  std::atomic<std::uint64_t> negotiated_features{0};
  // Interrupts, changes configuration and asks for a reset as soon as it is activated.
  std::atomic<bool> noisy{false};

 private:
  void OnActivate() override {
    ++activations;
    negotiated_features = negotiated();
    if (!noisy) return;
    interrupt().Queue(0);
    interrupt().Config();
    interrupt().NeedsReset();
  }
  void OnDeactivate() override { ++deactivations; }
  void OnQueueReset(std::uint16_t /*queue*/) override { ++queue_resets; }
  void OnChain(std::uint16_t queue, virtio::Chain chain) override {
    virtio::Writer writer = chain.writer();
    const std::uint64_t size = writer.remaining();
    CHECK(writer.Fill(static_cast<std::byte>(queue + 1), size).has_value());
    chain.Complete(static_cast<std::uint32_t>(size));
  }
  std::array<std::byte, 24> config_{};
};

// What both rigs have: the bridge (whose bus MMIO uses too), memory, a device on a running loop.
class TransportRig {
 public:
  static constexpr std::uint64_t kMemorySize = 8 << 20;
  // Rings of the driver's queues, and a hole to point rings at.
  static constexpr std::uint64_t kRings = 0x10000;
  static constexpr std::uint64_t kOutside = kMemorySize;

  TransportRig()
      : loop(EventLoop::Create().value()),
        guest(MakeMemory(kMemorySize)),
        memory(guest),
        device(*loop),
        thread_([this] { loop->Run(); }) {}
  virtual ~TransportRig() = default;
  TransportRig(const TransportRig&) = delete;
  TransportRig& operator=(const TransportRig&) = delete;

  // --- registers ---
  virtual virtio::Transport& transport() = 0;
  virtual Mutex& lock() = 0;
  virtual void WriteStatus(std::uint32_t value) = 0;
  virtual std::uint32_t ReadStatus() = 0;
  virtual std::uint64_t ReadFeatures() = 0;
  virtual void WriteFeatures(std::uint64_t features) = 0;
  virtual void SelectQueue(std::uint32_t index) = 0;
  virtual std::uint32_t QueueMax() = 0;
  virtual void SetQueueSize(std::uint32_t size) = 0;
  // 0 descriptors, 1 driver, 2 device.
  virtual void SetRing(int ring, std::uint64_t address) = 0;
  virtual void WriteQueueEnable(std::uint32_t value) = 0;
  virtual std::uint32_t QueueEnabled() = 0;
  virtual void WriteQueueReset(std::uint32_t value) = 0;
  // As the guest does: by the doorbell, or by the register where `trap` says so.
  virtual void Notify(std::uint32_t index, bool trap) = 0;
  virtual std::uint64_t ReadConfig(std::uint32_t offset, std::size_t width) = 0;
  virtual void WriteConfig(std::uint32_t offset, std::size_t width, std::uint64_t value) = 0;
  virtual std::uint32_t ReadGeneration() = 0;
  // Interrupts of any kind that left since the last call.
  virtual std::uint64_t TakeInterrupts() = 0;
  virtual void ReportCounters(CounterSink& sink) const = 0;

  // --- a driver ---
  void EnableQueue() { WriteQueueEnable(1); }
  void ResetQueue() { WriteQueueReset(1); }
  void Kick(std::uint32_t index, bool trap = false) { Notify(index, trap); }
  void Negotiate(std::uint64_t features) {
    WriteStatus(0);
    WriteStatus(virtio::kStatusAcknowledge);
    WriteStatus(virtio::kStatusAcknowledge | virtio::kStatusDriver);
    WriteFeatures(features);
    WriteStatus(virtio::kStatusAcknowledge | virtio::kStatusDriver | virtio::kStatusFeaturesOk);
  }
  void StartQueue(std::uint16_t index, const DriverQueue& queue) {
    SelectQueue(index);
    SetQueueSize(queue.size());
    SetRing(0, queue.desc_table());
    SetRing(1, queue.avail_ring());
    SetRing(2, queue.used_ring());
    EnableQueue();
  }
  DriverQueue MakeQueue(std::uint16_t index, std::uint16_t size = 8) {
    return DriverQueue(guest, {.base = kRings + index * std::uint64_t{0x80000}, .size = size});
  }
  // Up to DRIVER_OK with these queues.
  void Start(std::uint64_t features,
             const std::vector<std::pair<std::uint16_t, DriverQueue*>>& queues) {
    Negotiate(features);
    for (const auto& [index, queue] : queues) StartQueue(index, *queue);
    WriteStatus(0xf);
  }
  // One request, answered: its bytes; empty after 10 s.
  std::vector<std::byte> Request(std::uint16_t index, DriverQueue& queue, bool trap = false) {
    queue.Build().Readable("ping").Writable(4).Publish();
    Kick(index, trap);
    const std::optional<DriverQueue::Used> used = WaitUsed(queue);
    return used ? queue.Written(used->head) : std::vector<std::byte>();
  }
  static std::optional<DriverQueue::Used> WaitUsed(DriverQueue& queue) {
    for (int i = 0; i < 10000; ++i) {
      if (std::optional<DriverQueue::Used> used = queue.TakeUsed()) return used;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return std::nullopt;
  }
  // Until the device's loop has done what it was woken for.
  void Settle() {
    loop->RunSync([] {});
  }
  // Interrupts until there are `count`, or 10 s passed.
  std::uint64_t WaitInterrupts(std::uint64_t count) {
    std::uint64_t seen = 0;
    for (int i = 0; i < 10000 && seen < count; ++i) {
      seen += TakeInterrupts();
      if (seen < count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return seen;
  }
  std::uint64_t Counter(std::string_view name) { return ReportedCounter(*this, name); }
  std::uint64_t Refused() { return Counter("virtio_refused"); }

  std::unique_ptr<EventLoop> loop;
  memory::GuestMemoryPtr guest;
  memory::MemoryMap memory;
  pci::FakeBridge bridge;
  EchoDevice device;

 protected:
  // By the derived destructor, after the transport is gone.
  void StopLoop() {
    loop->Stop();
    thread_.join();
  }

 private:
  std::thread thread_;
};

class PciRig final : public TransportRig {
 public:
  static constexpr std::uint64_t kBase = 0x4000000000;

  PciRig()
      : function(virtio::PciTransport::Create(device, memory, bridge.platform.interrupts, "echo")
                     .value()) {
    at = bridge.root->Add(*function).value();
    CHECK(bridge.root->AssignAddresses().has_value());
    CHECK(function->BarAddress(0) == kBase);
    msix = FindCapability(pci::kCapMsix, 0);
    Enable();
  }
  ~PciRig() override {
    CHECK(bridge.root->Remove(*function).has_value());
    function.reset();
    StopLoop();
  }
  // Memory decoding and MSI-X on; vector v goes to data v. The driver sets the vectors.
  void Enable() {
    bridge.Config<std::uint16_t>(at, pci::kCommand, 0x6);
    bridge.Config<std::uint16_t>(at, msix + 2, 0x8000);
    for (std::uint64_t v = 0; v < 4; ++v) {
      bridge.Write<std::uint64_t>(kBase + virtio::kTableOffset + 16 * v, 0xfee00000);
      bridge.Write<std::uint64_t>(kBase + virtio::kTableOffset + 16 * v + 8, v);
    }
  }
  // Config vector 0, queue q vector q + 1, as Linux does.
  void SetVectors() {
    Common<std::uint16_t>(virtio::kConfigMsixVector, 0);
    for (std::uint16_t q = 0; q < 3; ++q) {
      SelectQueue(q);
      Common<std::uint16_t>(virtio::kQueueMsixVector, static_cast<std::uint16_t>(q + 1));
    }
  }
  // Offset of the n-th vendor capability with this cfg_type, or of another kind's first.
  std::uint32_t FindCapability(std::uint8_t id, std::uint8_t type) {
    std::uint32_t at_cap = bridge.Config<std::uint8_t>(at, pci::kCapabilitiesPointer);
    for (int i = 0; i < 48 && at_cap != 0; ++i) {
      const bool match = bridge.Config<std::uint8_t>(at, at_cap) == id;
      if (match && (id != pci::kCapVendor ||
                    bridge.Config<std::uint8_t>(at, at_cap + virtio::kCapType) == type)) {
        return at_cap;
      }
      at_cap = bridge.Config<std::uint8_t>(at, at_cap + 1);
    }
    return 0;
  }

  template <typename U>
  U Common(std::uint32_t offset) {
    return bridge.Read<U>(kBase + virtio::kCommonOffset + offset);
  }
  template <typename U>
  void Common(std::uint32_t offset, U value) {
    bridge.Write<U>(kBase + virtio::kCommonOffset + offset, value);
  }

  virtio::Transport& transport() override { return function->transport(); }
  Mutex& lock() override { return function->lock(); }
  void WriteStatus(std::uint32_t value) override {
    Common<std::uint8_t>(virtio::kDeviceStatus, static_cast<std::uint8_t>(value));
    if (value == (virtio::kStatusAcknowledge | virtio::kStatusDriver)) SetVectors();
  }
  std::uint32_t ReadStatus() override { return Common<std::uint8_t>(virtio::kDeviceStatus); }
  std::uint64_t ReadFeatures() override {
    Common<std::uint32_t>(virtio::kDeviceFeatureSelect, 1);
    const std::uint64_t high = Common<std::uint32_t>(virtio::kDeviceFeature);
    Common<std::uint32_t>(virtio::kDeviceFeatureSelect, 0);
    return high << 32 | Common<std::uint32_t>(virtio::kDeviceFeature);
  }
  void WriteFeatures(std::uint64_t features) override {
    Common<std::uint32_t>(virtio::kDriverFeatureSelect, 0);
    Common<std::uint32_t>(virtio::kDriverFeature, static_cast<std::uint32_t>(features));
    Common<std::uint32_t>(virtio::kDriverFeatureSelect, 1);
    Common<std::uint32_t>(virtio::kDriverFeature, static_cast<std::uint32_t>(features >> 32));
  }
  void SelectQueue(std::uint32_t index) override {
    Common<std::uint16_t>(virtio::kQueueSelect, static_cast<std::uint16_t>(index));
  }
  std::uint32_t QueueMax() override { return Common<std::uint16_t>(virtio::kQueueSize); }
  void SetQueueSize(std::uint32_t size) override {
    Common<std::uint16_t>(virtio::kQueueSize, static_cast<std::uint16_t>(size));
  }
  void SetRing(int ring, std::uint64_t address) override {
    const auto offset = virtio::kQueueDesc + 8 * static_cast<std::uint32_t>(ring);
    Common<std::uint32_t>(offset, static_cast<std::uint32_t>(address));
    Common<std::uint32_t>(offset + 4, static_cast<std::uint32_t>(address >> 32));
  }
  void WriteQueueEnable(std::uint32_t value) override {
    Common<std::uint16_t>(virtio::kQueueEnable, static_cast<std::uint16_t>(value));
  }
  std::uint32_t QueueEnabled() override { return Common<std::uint16_t>(virtio::kQueueEnable); }
  void WriteQueueReset(std::uint32_t value) override {
    Common<std::uint16_t>(virtio::kQueueReset, static_cast<std::uint16_t>(value));
  }
  void Notify(std::uint32_t index, bool trap) override {
    const std::uint64_t address = kBase + virtio::kNotifyOffset + std::uint64_t{index} * 4;
    if (!trap && bridge.platform.doorbells.Write(memory::Gpa(address), 2, index)) return;
    bridge.Write<std::uint16_t>(address, static_cast<std::uint16_t>(index));
  }
  std::uint64_t ReadConfig(std::uint32_t offset, std::size_t width) override {
    std::array<std::byte, 8> bytes{};
    bridge.mmio.Read(kBase + virtio::kDeviceOffset + offset, std::span(bytes).first(width));
    std::uint64_t value;
    std::memcpy(&value, bytes.data(), 8);
    return value;
  }
  void WriteConfig(std::uint32_t offset, std::size_t width, std::uint64_t value) override {
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, 8);
    bridge.mmio.Write(kBase + virtio::kDeviceOffset + offset,
                      std::span<const std::byte>(bytes).first(width));
  }
  std::uint32_t ReadGeneration() override {
    return Common<std::uint8_t>(virtio::kConfigGeneration);
  }
  std::uint64_t TakeInterrupts() override {
    return bridge.platform.interrupts.TakeDelivered().size();
  }
  void ReportCounters(CounterSink& sink) const override { function->ReportCounters(sink); }

  std::unique_ptr<virtio::PciTransport> function;
  pci::Bdf at;
  std::uint32_t msix = 0;
};

class MmioRig final : public TransportRig {
 public:
  static constexpr std::uint64_t kBase = 0xd0000000;
  static constexpr std::uint32_t kGsi = 5;

  MmioRig()
      : mmio(virtio::MmioTransport::Create(device, memory, bridge.platform.Get(), bridge.mmio,
                                           memory::Gpa(kBase), kGsi, "echo")
                 .value()) {}
  ~MmioRig() override {
    mmio.reset();
    StopLoop();
  }

  std::uint32_t Get(std::uint32_t offset) { return bridge.Read<std::uint32_t>(kBase + offset); }
  void Set(std::uint32_t offset, std::uint32_t value) {
    bridge.Write<std::uint32_t>(kBase + offset, value);
  }

  virtio::Transport& transport() override { return mmio->transport(); }
  Mutex& lock() override { return mmio->lock(); }
  void WriteStatus(std::uint32_t value) override { Set(virtio::mmio_regs::kStatus, value); }
  std::uint32_t ReadStatus() override { return Get(virtio::mmio_regs::kStatus); }
  std::uint64_t ReadFeatures() override {
    Set(virtio::mmio_regs::kDeviceFeaturesSel, 1);
    const std::uint64_t high = Get(virtio::mmio_regs::kDeviceFeatures);
    Set(virtio::mmio_regs::kDeviceFeaturesSel, 0);
    return high << 32 | Get(virtio::mmio_regs::kDeviceFeatures);
  }
  void WriteFeatures(std::uint64_t features) override {
    Set(virtio::mmio_regs::kDriverFeaturesSel, 1);
    Set(virtio::mmio_regs::kDriverFeatures, static_cast<std::uint32_t>(features >> 32));
    Set(virtio::mmio_regs::kDriverFeaturesSel, 0);
    Set(virtio::mmio_regs::kDriverFeatures, static_cast<std::uint32_t>(features));
  }
  void SelectQueue(std::uint32_t index) override { Set(virtio::mmio_regs::kQueueSel, index); }
  std::uint32_t QueueMax() override { return Get(virtio::mmio_regs::kQueueNumMax); }
  void SetQueueSize(std::uint32_t size) override { Set(virtio::mmio_regs::kQueueNum, size); }
  void SetRing(int ring, std::uint64_t address) override {
    const auto offset = virtio::mmio_regs::kQueueDescLow + 0x10 * static_cast<std::uint32_t>(ring);
    Set(offset, static_cast<std::uint32_t>(address));
    Set(offset + 4, static_cast<std::uint32_t>(address >> 32));
  }
  void WriteQueueEnable(std::uint32_t value) override {
    Set(virtio::mmio_regs::kQueueReady, value);
  }
  std::uint32_t QueueEnabled() override { return Get(virtio::mmio_regs::kQueueReady); }
  void WriteQueueReset(std::uint32_t value) override { Set(virtio::mmio_regs::kQueueReset, value); }
  void Notify(std::uint32_t index, bool trap) override {
    const memory::Gpa address(kBase + virtio::mmio_regs::kQueueNotify);
    if (!trap && bridge.platform.doorbells.Write(address, 4, index)) return;
    Set(virtio::mmio_regs::kQueueNotify, index);
  }
  std::uint64_t ReadConfig(std::uint32_t offset, std::size_t width) override {
    std::array<std::byte, 8> bytes{};
    bridge.mmio.Read(kBase + virtio::mmio_regs::kConfig + offset, std::span(bytes).first(width));
    std::uint64_t value;
    std::memcpy(&value, bytes.data(), 8);
    return value;
  }
  void WriteConfig(std::uint32_t offset, std::size_t width, std::uint64_t value) override {
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, 8);
    bridge.mmio.Write(kBase + virtio::mmio_regs::kConfig + offset,
                      std::span<const std::byte>(bytes).first(width));
  }
  std::uint32_t ReadGeneration() override { return Get(virtio::mmio_regs::kConfigGeneration); }
  std::uint64_t TakeInterrupts() override {
    const std::uint64_t pulses = bridge.platform.interrupts.Line(kGsi).pulses;
    return pulses - std::exchange(pulses_, pulses);
  }
  void ReportCounters(CounterSink& sink) const override { mmio->ReportCounters(sink); }

  std::unique_ptr<virtio::MmioTransport> mmio;

 private:
  std::uint64_t pulses_ = 0;
};

}  // namespace postern::testing
