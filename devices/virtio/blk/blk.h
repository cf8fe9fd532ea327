#pragma once

// Blk: the virtio block device (VIRTIO 1.2, 5.2) over a raw file or a host block device.
//
//   auto blk = Blk::Create({.path = "disk.img", .readonly = true}, loops);   // Outcome: what a
//   user did wrong, in words
//
// Queue i runs on loops[i % n], each with a ring of its own to the host's io_uring; control calls
// (Activate, Reset, ...) are made on loops[0] and reach the others from there. Reset waits until
// the host has finished everything in flight: nothing touches guest memory afterwards. Host errors
// are the guest's I/O errors; a driver that breaks the ring gets DEVICE_NEEDS_RESET.
//
// Ownership: owns file and lock; borrows the loops, which outlive it. Destroy it after Reset, or
// while its loops do not run. Threads: as Device; Resize and ReportCounters from any thread but a
// queue's.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/virtio/blk/blk_config.h"
#include "devices/virtio/blk/disk.h"
#include "devices/virtio/blk/request.h"
#include "devices/virtio/device.h"
#include "src/base/failure.h"

namespace postern::virtio {

struct BlkOptions {
  enum class Cache : std::uint8_t {
    kWriteback,     // writes may stay in the host's page cache until the guest flushes
    kWritethrough,  // a write is on stable storage when it is done
    kUnsafe,        // flushes are ignored: for disks that are thrown away
  };
  enum class Engine : std::uint8_t { kAuto, kIoUring, kSync };

  std::string path = {};
  bool readonly = false;
  bool direct = false;  // O_DIRECT
  Cache cache = Cache::kWriteback;
  Engine engine = Engine::kAuto;   // kAuto: io_uring where the host has it, else plain system calls
  std::string serial = {};         // at most 20 bytes
  std::uint16_t num_queues = 1;    // 1..64
  std::uint16_t queue_size = 256;  // a power of two, 4..1024
  std::string id = "blk";          // how logs name it
};

// What is saved beside the transport's and the queues' state.
struct BlkState {
  std::uint32_t version = 1;
  std::uint64_t capacity = 0;  // sectors, as the guest knows it
  bool writeback = true;       // 5.2.4: the driver's choice
};

class BlkQueue;

class Blk final : public Device {
 public:
  [[nodiscard]] static Outcome<std::unique_ptr<Blk>> Create(const BlkOptions& options,
                                                            std::span<EventLoop* const> loops);
  ~Blk() override;

  [[nodiscard]] DeviceId id() const override { return DeviceId::kBlock; }
  [[nodiscard]] std::uint64_t features() const override { return features_; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return queue_sizes_; }
  void ReadConfig(std::uint64_t offset, std::span<std::byte> data) override;
  void WriteConfig(std::uint64_t offset, std::span<const std::byte> data) override;
  [[nodiscard]] std::uint32_t config_size() const override { return kBlkConfigSize; }

  void Activate(Resources resources) override;
  Resources Reset() override;
  std::unique_ptr<ActiveQueue> ResetQueue(std::uint16_t index) override;
  void ResumeQueue(std::unique_ptr<ActiveQueue> queue) override;
  [[nodiscard]] EventLoop& loop() override { return *loops_.front(); }
  // kicks, chains, protocol_errors, reads, read_bytes, writes, write_bytes, flushes, discards,
  // write_zeroes, errors, bounced, commits
  void ReportCounters(CounterSink& sink) const override;

  // Measures the file again and tells the driver if its capacity changed.
  [[nodiscard]] Result<void> Resize();
  [[nodiscard]] std::uint64_t capacity() const { return capacity_.load(std::memory_order_relaxed); }
  // The engine in use, once active: "io_uring" or "sync".
  [[nodiscard]] std::string_view engine() const;

  [[nodiscard]] BlkState Save() const;
  // While idle. kBadFormat for what this disk cannot be: another version, or a larger one than the
  // file now is.
  [[nodiscard]] Result<void> Restore(const BlkState& state);

 private:
  friend class BlkQueue;
  struct Counters {
    Counter kicks, chains, protocol_errors, reads, read_bytes, writes, write_bytes, flushes,
        discards, write_zeroes, errors, bounced, commits;
  };

  Blk(BlkOptions options, Disk disk, std::span<EventLoop* const> loops);
  [[nodiscard]] EventLoop& LoopOf(std::uint16_t index) const {
    return *loops_[index % loops_.size()];
  }
  // A queue found a broken rule, on its loop.
  void Broken(const Error& error);
  // What one request may ask, at this moment.
  [[nodiscard]] BlkLimits limits() const;
  [[nodiscard]] bool durable_writes() const;
  void Start(std::unique_ptr<ActiveQueue> queue);

  const BlkOptions options_;
  const Disk disk_;
  const std::vector<EventLoop*> loops_;
  const std::vector<std::uint16_t> queue_sizes_;
  std::uint64_t features_ = 0;

  std::atomic<std::uint64_t> capacity_{0};  // sectors
  std::atomic<bool> writeback_{true};       // the config field
  std::atomic<bool> broken_{false};
  std::atomic<std::uint64_t> negotiated_{0};  // written while no queue runs
  Resources resources_;                       // all but the queues; control calls only
  bool active_ = false;                       // control calls only
  std::vector<std::unique_ptr<BlkQueue>>
      queues_;  // by index, null where not enabled; control calls only
  Counters counters_;
};

}  // namespace postern::virtio
