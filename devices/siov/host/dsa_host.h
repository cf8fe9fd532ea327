#pragma once

// DsaHost: the driver of one whole physical DSA, in user space: resets and configures it, gives its
// queues to those who asked for some, and says to each what concerns it.
//
//   auto host = TRY_OUTCOME(DsaHost::Create(std::move(device), {.name = "0000:6a:01.0"}));
//   const HostLease lease = TRY(host->Reserve({.queues = 2, .size = 16}, owner));
//   TRY(host->Start());                                   // the first one enables the device
//   TRY(host->EnableQueue(lease.queues[0], config));
//   host->Halt(QueueHalt::kDrain, QueueSet{1} << lease.queues[0], [](HaltResult) { ... });
//
// The device as a whole is reset by Create and the destructor and by nobody else: what an owner
// resets are its queues. Sizes of queues can only change while the device is disabled, so they are
// planned: until Start, Reserve gives any size there is room for; with Start what is left over is
// shared out among the queues left over, 32 at most for each, and Reserve then gives those that are
// large enough.
//
// Groups: as many as queues, groups and engines allow, with queues and engines dealt out in turn,
// so that a busy queue delays as few others as can be. All queues are dedicated, unprivileged and
// do not block on faults. The device's event log stays off: errors come by SWERROR.
//
// Addresses: the device uses one table for all queues without a PASID: its own, which whoever
// opened it filled with one guest's memory. Queues of several guests need a PASID each
// (HostRequest), of a GuestSpace (guest_spaces.h).
//
// Loss: a command that is not completed within DsaHostOptions::command_limit, registers that read
// as all ones, a halt, an error or request interrupt: every owner is told, nothing is asked of the
// device again, and where it still answers its bus mastering is taken away, so that what it might
// yet do reaches nobody's memory.
//
// Ownership: owns the device; outlives its leases (CHECK). Threads: a thread of its own does all
// that has to do with registers; calls come from any other and, but for Halt, wait for it: for one
// command and those before it, which are bounded by command_limit altogether once the device has
// failed, and otherwise by what its queues hold. Occupancy asks the device at once. Source: Intel
// DSA Architecture Specification 3.0, chapters 3, 5 and 9; Linux drivers/dma/idxd. Not run on
// hardware so far: see README.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/host/command_queue.h"
#include "devices/siov/host/device_registers.h"
#include "devices/siov/host/host_caps.h"
#include "devices/siov/host/signal.h"
#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/result.h"
#include "src/base/thread.h"
#include "vfio/host_device.h"

namespace postern::dsa {

struct DsaHostOptions {
  // For people and, its first 15 bytes, the thread.
  std::string name;
  std::chrono::milliseconds command_limit{10'000};
  // Of the reset in Create.
  std::chrono::milliseconds reset_limit{2'000};
  // Portal pages are memory of a device process, which reads them: plain stores will do.
  bool portals_are_memory = false;
  // Queues may have a PASID.
  bool pasids = false;
};

struct HostRequest {
  std::uint32_t queues = 1;
  std::uint32_t size = 0;  // entries of each; 0: 32, or an equal share of what there is if less
  std::optional<std::uint32_t> pasid;
};

// Queues by the device's numbers.
struct HostLease {
  std::vector<std::uint32_t> queues;
  std::uint32_t size = 0;  // of each
};

// A guest's way to its memory that is not the device's own table. Goes after its queues were reset.
class GuestSpace {
 public:
  virtual ~GuestSpace() = default;
  [[nodiscard]] virtual std::uint32_t pasid() const = 0;
};

// Told on the host's thread; no call blocks or calls back.
class QueueOwner {
 public:
  virtual ~QueueOwner() = default;
  // SWERROR as it was, but for the PASID. `queue`: by its place in the lease. Overflow says that
  // there were more, of whichever queue.
  virtual void OnQueueError(std::uint32_t queue, const std::array<std::uint64_t, 4>& words) = 0;
  // All of Handle's answers are void.
  virtual void OnHandlesRevoked() = 0;
  virtual void OnHostLost() = 0;
};

enum class QueueHalt : std::uint8_t { kDrain, kDisable, kAbort };

class DsaHost {
 public:
  // kConfig: not a DSA; kHost: cannot be driven. The device's address space has the memory its
  // descriptors will name.
  [[nodiscard]] static Outcome<std::unique_ptr<DsaHost>> Create(
      std::unique_ptr<vfio::HostDevice> device, const DsaHostOptions& options);
  ~DsaHost();
  DsaHost(const DsaHost&) = delete;
  DsaHost& operator=(const DsaHost&) = delete;

  [[nodiscard]] const HostCaps& caps() const { return caps_; }
  [[nodiscard]] const DsaHostOptions& options() const { return options_; }
  [[nodiscard]] vfio::HostDevice& device() { return *device_; }
  [[nodiscard]] bool lost() const { return lost_.load(std::memory_order_acquire); }

  // kExhausted: not so many queues, or entries, free; kInvalidArgument; kUnsupported: a PASID.
  [[nodiscard]] Result<HostLease> Reserve(const HostRequest& request, QueueOwner& owner);
  // Its queues are reset; the owner is not told anything any more.
  void Release(const HostLease& lease);

  // Enables the device unless it is.
  [[nodiscard]] Result<void> Start();
  // kBadState: it is enabled already; kInvalidArgument; kSystem: EIO where the device refuses.
  [[nodiscard]] Result<void> EnableQueue(std::uint32_t queue, const siov::QueueConfig& config);
  // `done` on the host's thread.
  void Halt(QueueHalt kind, siov::QueueSet queues, siov::Done done);
  // What these queues hold is discarded and they are disabled; waits. `done`s of Halts of these
  // queues do not run any more.
  void Reset(siov::QueueSet queues);
  // As Halt with kDrain, waiting.
  [[nodiscard]] siov::HaltResult DrainNow(siov::QueueSet queues);

  // The handle of MSI-X vector `vector` of the device; it stays until Release, or until the device
  // takes it back, of which all owners are told.
  [[nodiscard]] Result<std::uint32_t> Handle(std::uint16_t vector);
  // Vector `vector` signals this eventfd; -1: nobody.
  [[nodiscard]] Result<void> SetVector(std::uint16_t vector, int event);
  // 0 where the device does not answer.
  [[nodiscard]] std::uint32_t Occupancy(std::uint32_t queue) const;

  void ReportCounters(CounterSink& sink) const;

 private:
  struct Queue {
    std::uint32_t size = 0;  // 0 before Start: not planned
    bool enabled = false;
    QueueOwner* owner = nullptr;
    std::uint32_t owners_number = 0;
    std::optional<std::uint32_t> pasid;
  };
  enum class Phase : std::uint8_t { kPlanning, kStarting, kStarted };
  using Started = std::function<void(const Result<void>&)>;

  DsaHost(std::unique_ptr<vfio::HostDevice> device, DsaHostOptions options);

  // --- set-up (dsa_host_setup.cc) ---
  [[nodiscard]] Result<void> Init();
  [[nodiscard]] Result<void> ResetDevice();
  [[nodiscard]] Result<void> ReadQueues();
  [[nodiscard]] Result<void> TakeInterrupts();
  [[nodiscard]] Result<void> Watch(std::unique_ptr<Signal>& slot, std::uint32_t irq,
                                   const char* what);
  void PlanTheRest();
  [[nodiscard]] Result<void> Configure();
  [[nodiscard]] Result<void> ConfigureGroups();
  [[nodiscard]] Result<void> ConfigureQueue(std::uint32_t queue, const siov::QueueConfig& config);
  [[nodiscard]] Result<void> ConfigurePermissions(std::uint32_t queue);

  // --- on the host's thread ---
  [[nodiscard]] Result<HostLease> Plan(const HostRequest& request, QueueOwner& owner);
  void DoStart(Started started);
  void OnStarted(const CommandAnswer& answer);
  void DoEnable(std::uint32_t queue, const siov::QueueConfig& config, Started enabled);
  void DoHalt(QueueHalt kind, siov::QueueSet queues, siov::Done done);
  void DoReset(siov::QueueSet queues, std::function<void()> done);
  void DoHandle(std::uint16_t vector, int tries,
                std::function<void(const Result<std::uint32_t>&)> done);
  [[nodiscard]] siov::QueueSet enabled_queues() const;
  [[nodiscard]] HostCommand QueueCommand(dsa_regs::Command code, siov::QueueSet queues) const;
  void OnInterrupt();
  void OnError();
  void ForEachOwner(void (QueueOwner::*tell)());
  void Lose(const char* why);

  const std::unique_ptr<vfio::HostDevice> device_;
  const DsaHostOptions options_;
  const DeviceRegisters registers_{*device_};
  HostCaps caps_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<CommandQueue> commands_;
  std::unique_ptr<Signal> misc_, error_, request_;

  // Of the host's thread.
  Phase phase_ = Phase::kPlanning;
  std::vector<Queue> queues_;
  std::vector<std::optional<std::uint16_t>> handles_;  // by vector
  std::uint32_t handles_age_ = 0;                      // another one after each revocation
  std::vector<Started> waiting_for_start_;
  std::atomic<bool> lost_{false};

  Counter interrupts_, spurious_, errors_routed_, errors_of_nobody_, error_overflows_,
      handles_revoked_, resets_, losses_;
  Thread thread_;  // last: ends first
};

}  // namespace postern::dsa
