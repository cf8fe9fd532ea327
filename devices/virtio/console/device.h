#pragma once

// Console: virtio-console (VIRTIO 1.2, 5.3): one port, hvc0 in Linux, over a console back end.
//
//   auto console = Console::Create({.backend = {.kind = BackendOptions::Kind::kStdio, .quit =
//   ...}}, loop);
//
// Offers SIZE and nothing else (no MULTIPORT, no EMERG_WRITE). Output of the guest waits in its own
// buffers while the host side is slow; input waits in the back end while the guest gives no
// buffers. Ownership: owns the back end. Threads: the loop's; Save and Restore too; the
// configuration space from any.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/console_backend/backend.h"
#include "devices/virtio/single_loop_device.h"
#include "src/base/failure.h"
#include "src/base/mutex.h"

namespace postern::virtio {

struct ConsoleOptions {
  console::BackendOptions backend;
};

// What of a console is not in its queues.
struct ConsoleState {
  static constexpr std::uint32_t kVersion = 1;
  std::uint32_t version = kVersion;
  std::uint16_t cols = 0;
  std::uint16_t rows = 0;
  std::vector<std::byte> output;  // taken from the guest, not yet given to the back end
  friend bool operator==(const ConsoleState&, const ConsoleState&) = default;
};

class Console final : public SingleLoopDevice, private console::ConsoleClient {
 public:
  // VIRTIO 1.2 5.3.2: virtqueues; 5.3.3: feature bits.
  static constexpr std::uint16_t kReceiveQueue = 0;
  static constexpr std::uint16_t kTransmitQueue = 1;
  static constexpr std::uint64_t kFeatureSize = std::uint64_t{1} << 0;
  // Of output that Save may have to carry, at most.
  static constexpr std::size_t kMaxSavedOutput = 65536;

  [[nodiscard]] static Outcome<std::unique_ptr<Console>> Create(const ConsoleOptions& options,
                                                                EventLoop& loop);
  // With a back end made elsewhere.
  Console(std::unique_ptr<console::ConsoleBackend> backend, EventLoop& loop);
  ~Console() override;

  [[nodiscard]] DeviceId id() const override { return DeviceId::kConsole; }
  [[nodiscard]] std::uint64_t features() const override { return kFeatureSize; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return kQueueSizes; }
  [[nodiscard]] std::uint32_t config_size() const override;
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override;
  // No field is writable without EMERG_WRITE.
  void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  void ReportCounters(CounterSink& sink) const override;

  // Before a Save: completes the chain that waits for the back end, its rest becoming part of the
  // state.
  void Quiesce();
  [[nodiscard]] ConsoleState Save() const;
  // Only while idle (kBadState). The window size is then the back end's again if it knows one.
  [[nodiscard]] Result<void> Restore(const ConsoleState& state);
  [[nodiscard]] console::ConsoleBackend& backend() { return *backend_; }

 private:
  static constexpr std::array<std::uint16_t, 2> kQueueSizes{128, 128};
  void OnChain(std::uint16_t queue, Chain chain) override;
  bool WantsChain(std::uint16_t queue) override;
  void OnActivate() override;
  void OnDeactivate() override;
  void OnQueueReset(std::uint16_t queue) override;
  void OnInput() override;
  void OnWritable() override;
  void OnResize(console::WindowSize size) override;
  void Receive(Chain chain);
  // Gives the back end what it takes of carry_ and of the pending chain, which is completed when
  // all is given.
  void Transmit();
  [[nodiscard]] bool TransmitCarried();
  void Continue();

  std::unique_ptr<console::ConsoleBackend> backend_;
  std::optional<Chain> pending_;    // a transmit chain
  std::uint64_t pending_sent_ = 0;  // bytes of it
  std::vector<std::byte> carry_;    // output older than pending_, from a restored state
  EventLoop::TimerId continue_ = 0;
  mutable Mutex mutex_;
  console::WindowSize size_ GUARDED_BY(mutex_);
  Counter received_bytes_, transmitted_bytes_, stalls_, output_dropped_;
};

}  // namespace postern::virtio
