#pragma once

// Net: virtio-net (VIRTIO 1.2, 5.1) over a TAP interface: several queue pairs, checksum and
// segmentation offloads both ways, merged receive buffers, MTU, and the control queue (MAC address
// and table, receive modes, number of pairs, guest offloads).
//
//   auto net = Net::Create({.tap = "tap0", .queue_pairs = 2}, loops);    // Outcome
//
// The TAP delivers whatever its host side sends to this guest; the address tables and receive modes
// a driver sets are kept and reported, not used to filter (5.1.6.5: filtering is best effort).
//
// Ownership: owns the TAP queues; the loops outlive it. Threads: control calls on loop 0; queue
// pair i runs on loop i modulo their number; configuration from any thread.

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/device.h"
#include "devices/virtio/net/net_regs.h"
#include "devices/virtio/net/queue_pair.h"
#include "devices/virtio/net/request.h"
#include "src/base/failure.h"
#include "src/base/mutex.h"

namespace postern::virtio {

struct NetOptions {
  std::string tap;                     // name; created for the life of the device if there is none
  std::vector<int> fds;                // or open TAP descriptors, one per queue pair; taken over
  std::optional<net::MacAddress> mac;  // default: random, locally administered
  std::uint16_t mtu = 0;               // 0: the interface's, if that is known
  std::uint16_t queue_pairs = 1;       // 1..16
  std::uint16_t queue_size = 256;      // a power of two, 2..1024
  bool offload = true;                 // offer checksum and segmentation offloads
};

// What of a network device is not in its queues. Settings of the driver; the rest is the
// configuration's.
struct NetState {
  static constexpr std::uint32_t kVersion = 1;
  std::uint32_t version = kVersion;
  net::MacAddress mac{};
  std::uint16_t active_pairs = 1;
  std::uint64_t guest_offloads = 0;
  std::uint8_t rx_modes = 0;  // bit n: mode n of VIRTIO_NET_CTRL_RX
  std::vector<net::MacAddress> unicast;
  std::vector<net::MacAddress> multicast;
  friend bool operator==(const NetState&, const NetState&) = default;
};

class Net final : public Device, private net::PairOwner, private EventHandler {
 public:
  static constexpr std::uint16_t kMaxPairs = 16;

  [[nodiscard]] static Outcome<std::unique_ptr<Net>> Create(NetOptions options,
                                                            std::span<EventLoop* const> loops);
  ~Net() override;

  [[nodiscard]] DeviceId id() const override { return DeviceId::kNet; }
  [[nodiscard]] std::uint64_t features() const override { return features_; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return queue_sizes_; }
  [[nodiscard]] std::uint32_t config_size() const override { return net::kConfigSize; }
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override;
  // Nothing is writable: with VERSION_1 the MAC address is set by the control queue (5.1.4.2).
  void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
  void Activate(Resources resources) override;
  Resources Reset() override;
  std::unique_ptr<ActiveQueue> ResetQueue(std::uint16_t index) override;
  void ResumeQueue(std::unique_ptr<ActiveQueue> queue) override;
  [[nodiscard]] EventLoop& loop() override { return *loops_.front(); }
  void ReportCounters(CounterSink& sink) const override;

  // Between the two the data path stands still and no buffer is in flight: for a Save. On loop 0.
  void Pause();
  void Resume();
  [[nodiscard]] NetState Save() const;
  // Only while idle (kBadState); takes effect at the next Activate.
  [[nodiscard]] Result<void> Restore(const NetState& state);

  [[nodiscard]] std::string tap_name() const { return pairs_.front()->tap().name(); }
  [[nodiscard]] net::MacAddress mac() const;

 private:
  Net(const NetOptions& options, net::MacAddress mac, std::vector<net::Tap> taps,
      std::span<EventLoop* const> loops);
  [[nodiscard]] std::uint16_t pairs() const { return static_cast<std::uint16_t>(pairs_.size()); }
  [[nodiscard]] std::uint16_t control_index() const {
    return static_cast<std::uint16_t>(2 * pairs_.size());
  }
  [[nodiscard]] ActiveQueue* queue(std::uint16_t index) const;
  void StartPairs();
  void StopPairs();
  void StartControl();

  void OnBroken(const Error& error) override;
  void OnTapGone() override;
  [[nodiscard]] bool broken() const override { return broken_.load(std::memory_order_relaxed); }

  void OnEvent(int fd, std::uint32_t events) override;
  void RunControl();
  [[nodiscard]] Result<void> Execute(const net::Command& command);
  [[nodiscard]] Result<void> Set(const net::SetRxMode& command);
  [[nodiscard]] Result<void> Set(const net::SetMacTable& command);
  [[nodiscard]] Result<void> Set(const net::SetMacAddress& command);
  [[nodiscard]] Result<void> Set(const net::SetQueuePairs& command);
  [[nodiscard]] Result<void> Set(const net::SetGuestOffloads& command);

  std::vector<EventLoop*> loops_;
  std::vector<std::unique_ptr<net::QueuePair>> pairs_;
  std::vector<std::uint16_t> queue_sizes_;
  std::uint64_t features_ = 0;
  net::MacAddress own_mac_;
  std::uint16_t mtu_ = 0;
  Resources resources_;
  bool active_ = false;
  bool restored_ = false;
  std::atomic<bool> broken_{false};
  std::atomic<bool> link_up_{true};
  mutable Mutex mutex_;
  NetState state_ GUARDED_BY(mutex_);
  Counter control_commands_, control_refused_, protocol_errors_;
};

}  // namespace postern::virtio
