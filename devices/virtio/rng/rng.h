#pragma once

// Rng: the virtio entropy device (VIRTIO 1.2, 5.4): fills the driver's buffers from the host
// kernel's generator.
//
// Threads: loop thread (SingleLoopDevice).

#include <array>
#include <cstdint>

#include "devices/virtio/single_loop_device.h"

namespace postern::virtio {

// All there is to save: entropy has no past.
struct RngState {
  std::uint32_t version = 1;
};

class Rng final : public SingleLoopDevice {
 public:
  // The driver picks a buffer's size, we pick how much of it one request gets. 5.4.6.1 lets a
  // device fill less.
  static constexpr std::uint64_t kMaxBytesPerRequest = 64 << 10;

  explicit Rng(EventLoop& loop) : SingleLoopDevice(loop, "rng") {}

  [[nodiscard]] DeviceId id() const override { return DeviceId::kEntropy; }
  [[nodiscard]] std::uint64_t features() const override { return 0; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return kQueueSizes; }
  [[nodiscard]] std::uint32_t config_size() const override { return 0; }
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override;
  void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  // Adds: bytes, errors (requests the host gave nothing for).
  void ReportCounters(CounterSink& sink) const override;

  [[nodiscard]] RngState Save() const { return {}; }
  // kBadFormat for a version this one does not know.
  [[nodiscard]] Result<void> Restore(const RngState& state);

 private:
  static constexpr std::array<std::uint16_t, 1> kQueueSizes{256};

  void OnChain(std::uint16_t queue, Chain chain) override;

  Counter bytes_, errors_;
};

}  // namespace postern::virtio
