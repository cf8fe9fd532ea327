#pragma once

// Vdev: a virtual PCI function composed of a Personality (what it is), a Backend (who does the
// work) and parts that know neither: config space, a RegisterFile behind BAR 0, portals in BAR 2,
// MSI-X.
//
//   auto vdev = TRY(Vdev::Create({.name = "dsa0", .portal = PortalMode::kPolled},
//                                std::move(personality), std::move(backend),
//                                {platform.interrupts, loop}));
//   Bdf where = TRY(root.Add(*vdev));
//
// A guest reset (FLR) resets this Vdev's queues and registers, and nothing of the host's device.
// Knows neither KVM nor the machine: the same object sits in a machine's slot, behind a vfio-user
// socket and in a unit test.
//
// A portal that is polled becomes a trapped one when the backend says that its driver breaks the
// rule of polled_page.h, and stays so over resets: what is in its pages is looked at once more when
// no guest can reach them, so that nothing is lost by the change itself. Where pages cannot be
// taken back (VdevOptions::pages_leave) that is not to be had: what such a driver stores later
// would be lost unseen. There the Vdev looks at the pages once more and is lost, as with a back end
// that is gone: it halts, over resets, too.
//
// Ownership: owns personality and backend; borrows the InterruptSource and the loop, on which the
// backend's events are handled (with the function's lock). Destroyed on the loop's thread, or while
// no thread runs it. Threads: as PciFunction.
// Source: Intel DSA Architecture Specification 3.0, 7.5 (composition of a virtual device).

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "devices/siov/core/backend.h"
#include "devices/siov/core/interrupt_handles.h"
#include "devices/siov/core/personality.h"
#include "devices/siov/core/portals.h"
#include "devices/siov/core/posted_events.h"
#include "devices/siov/core/trapped_portal.h"
#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/bus/register_map.h"

namespace postern::siov {

struct VdevOptions {
  std::string name;
  // What the portals are: kDirect and kPolled must be in the backend's caps (kUnsupported).
  PortalMode portal = PortalMode::kTrapped;
  // Polled pages may be mapped where they cannot be taken back (by a client in another process).
  bool pages_leave = false;
};

// Saved state, version 1. Taken between Quiesce and Resume.
struct VdevState {
  std::uint32_t version = 1;
  pci::FunctionState function;
  std::vector<std::uint64_t> registers;
  PersonalityState personality;
  BackendState backend;
  std::vector<std::uint32_t> handles;  // in use, where the backend names them
  // Descriptors of which the guest has stored a part; queues whose driver broke the rule of polled
  // portals.
  std::vector<PartialSlot> partial_slots;
  QueueSet rule_broken = 0;
};

class Vdev final : public pci::PciFunction,
                   private bus::RegisterOwner,
                   private BackendEvents,
                   private pci::MsixObserver {
 public:
  struct Host {
    bus::InterruptSource& interrupts;
    EventLoop& loop;
  };
  static constexpr std::size_t kRegisterBar = 0;
  static constexpr std::size_t kPortalBar = 2;

  // kInvalidArgument for a layout or table that is not well formed; kUnsupported for a portal mode
  // the backend lacks.
  [[nodiscard]] static Result<std::unique_ptr<Vdev>> Create(
      const VdevOptions& options, std::unique_ptr<Personality> personality,
      std::unique_ptr<Backend> backend, const Host& host);
  ~Vdev() override;

  [[nodiscard]] const Personality& personality() const { return *personality_; }
  [[nodiscard]] const Backend& backend() const { return *backend_; }
  // Of one queue; kTrapped once a polled portal's driver broke the rule.
  [[nodiscard]] PortalMode portal_mode(std::uint32_t queue) const;

  // Nothing is begun and nothing under way, and all the backend said so far is handled.
  void Quiesce() REQUIRES(lock());
  void Resume() REQUIRES(lock());
  // kBadState while not quiesced; kUnsupported where the backend has no state to give.
  [[nodiscard]] Result<VdevState> Save() REQUIRES(lock());
  // kBadFormat, and the Vdev as after Reset, for what Save of a like Vdev could not have given. The
  // guest is told that its interrupt handles are void where the backend names handles.
  [[nodiscard]] Result<void> Restore(const VdevState& state) REQUIRES(lock());

  // The 64 bytes of a MOVDIR64B (or ENQCMD's, refused) whose destination lies in BAR 2, from
  // whoever decoded it. With the lock held. Offset: of the destination in BAR 2.
  void SubmitAt(std::uint64_t offset, const Descriptor& descriptor) REQUIRES(lock());

  void ReportCounters(CounterSink& sink) const override;

 private:
  // What the personality sees.
  class Port final : public VdevPort {
   public:
    explicit Port(Vdev& vdev) : vdev_(vdev) {}
    [[nodiscard]] bus::RegisterFile& registers() override { return *vdev_.registers_; }
    [[nodiscard]] Backend& backend() override { return *vdev_.backend_; }
    [[nodiscard]] Result<std::uint32_t> OpenHandle(std::uint16_t vector) override;
    [[nodiscard]] bool CloseHandle(std::uint32_t handle) override;
    void Trigger(std::uint16_t vector) override { vdev_.msix()->Trigger(vector); }
    [[nodiscard]] bool bus_master() const override;
    [[nodiscard]] Done Later(std::function<void(HaltResult)> then) override;

   private:
    Vdev& vdev_;
  };
  class RegisterHandler final : public bus::MmioHandler {
   public:
    explicit RegisterHandler(Vdev& vdev) : vdev_(vdev) {}
    void Read(std::uint64_t offset, std::span<std::byte> data) override {
      vdev_.registers_->Read(offset, data);
    }
    void Write(std::uint64_t offset, std::span<const std::byte> data) override {
      vdev_.registers_->Write(offset, data);
    }

   private:
    Vdev& vdev_;
  };
  // The rest of BAR 0.
  class EmptyHandler final : public bus::MmioHandler {
   public:
    void Read(std::uint64_t offset, std::span<std::byte> data) override;
    void Write(std::uint64_t offset, std::span<const std::byte> data) override;
    Counter accesses;
  };

  Vdev(const VdevOptions& options, std::unique_ptr<Personality> personality,
       std::unique_ptr<Backend> backend, const Host& host);
  [[nodiscard]] Result<void> Init(const VdevOptions& options, bus::InterruptSource& interrupts);
  [[nodiscard]] Result<void> AddRegisterBar(bus::InterruptSource& interrupts);
  [[nodiscard]] Result<void> AddExpressCapability();

  // --- hooks ---
  void OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) override
      REQUIRES(lock());
  void OnReset() override;
  void OnWrite(const bus::RegisterRow& row, std::uint64_t old, std::uint64_t now,
               std::uint64_t written) override;
  std::uint64_t OnRead(const bus::RegisterRow& row, std::uint64_t stored) override;
  void OnVectorOpened(std::uint16_t vector, const EventFd& trigger) override;
  void OnEnabled() override {}
  void OnDisabled() override;

  // --- BackendEvents: any thread ---
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const override;
  void SignalHandle(std::uint32_t handle) override;
  void OnError(const ErrorRecord& record) override;
  void OnRefused(std::uint32_t queue, SubmitResult why) override;
  void OnRuleBroken(std::uint32_t queue) override;
  void OnHandlesRevoked() override;
  void OnLost() override;

  // --- with the lock held ---
  [[nodiscard]] bool BusMaster() const;
  void ReactToBrokenRule(std::uint32_t queue);
  void MakeTrapped(std::uint32_t queue);
  void HaltForGood(std::uint32_t queue);
  [[nodiscard]] Result<void> TrapPortal(std::uint32_t queue);
  void Lose();
  [[nodiscard]] Result<void> RestoreParts(const VdevState& state) REQUIRES(lock());
  [[nodiscard]] Result<void> RestorePortals(const VdevState& state);

  std::unique_ptr<Personality> personality_;
  std::unique_ptr<Backend> backend_;
  Port port_{*this};
  RegisterHandler register_handler_{*this};
  EmptyHandler empty_handler_;
  std::optional<bus::RegisterFile> registers_;
  InterruptHandles handles_;
  std::unique_ptr<Portals> portals_;
  PostedEvents events_;
  std::uint32_t express_ = 0;  // where the capability is
  bool bus_master_ = false;    // as the personality was told
  bool quiesced_ = false;
  bool lost_ = false;
  bool pages_leave_ = false;
  QueueSet rule_broken_ = 0;
  std::atomic<QueueSet> broken_posted_{0};  // queues of which OnRuleBroken waits to be handled
  std::atomic<bool> revoked_posted_{false};
  std::atomic<bool> lost_posted_{false};
  Counter resets_, rules_broken_, trap_failures_, unknown_handles_, handles_revoked_, losses_;
};

}  // namespace postern::siov
