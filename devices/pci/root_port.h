#pragma once

// RootPort: a PCI Express root port with one slot, in which a function can be plugged and from
// which it can be taken while the guest runs (native hot plug, PCI Express 3.0 6.7).
//
//   auto port = TRY(RootPort::Create("port1", platform.interrupts, control_loop, {.slot = 1}));
//   TRY(root->Add(*port));
//   TRY(root->AssignAddresses());              // before boot: bus numbers are there, windows now
//   ...
//   TRY(port->Plug(*disk));                    // the guest finds it within some 150 ms
//   TRY(port->RequestUnplug([&] { disk.reset(); }));  // the guest lets go of it first
//   TRY(port->Pull());                         // or it is gone at once
//
// What the slot has, and why: Linux's pciehp acts on "data link layer state changed" at once, with
// or without an attention button, but its only way to release a driver while the device still
// answers is the button; link or presence changes make it treat the device as gone, and writes not
// done yet are lost. So a plug is a link that comes up, and an unplug request is a pressed button,
// after which Linux waits 5 s (time for a person to press again, which cancels) and then removes
// the driver. It says that it is done by turning the power indicator off. There is no power
// controller (Linux would wait 1 s after switching it, and would keep an empty slot off, where no
// link comes up), and commands complete at once (No Command Completed Support). Hot-Plug Surprise
// is set because Pull exists: a device may vanish from the host.
//
// A button press that a busy guest lost is repeated; one that finds the indicator off, so a slot
// nobody uses, releases at once. A guest without a hot-plug driver never answers: Pull ends that.
//
// Where things are decoded: configuration space of the function behind is at the bus number the
// guest gave the port. Its BARs are decoded wherever the host bridge's windows allow; the port's
// own windows are registers the guest may use and this port does not enforce: what they could hide
// is the guest's own device. Link Disable is not implemented. A secondary bus reset resets the
// function behind.
//
// Ownership: borrows the loop, the InterruptSource and the function plugged in, which is taken out
// before it is destroyed. Threads: Plug, RequestUnplug, Pull, unplug_pending and destruction on
// the loop's thread (or while it does not run), where `done` runs too. Registers: the function's
// lock (see PciFunction), taken after the root's; never together with that of the function behind.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "devices/pci/bar_space.h"
#include "devices/pci/function.h"
#include "devices/pci/pcie_regs.h"
#include "src/base/event_loop.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::pci {

class PciRoot;

struct RootPortOptions {
  std::uint16_t slot = 1;  // as the guest names it; at most 8191
  // What firmware reserves for a function plugged in later: powers of two of at least 1 MiB, or 0
  // for none. window64 is prefetchable and above 4 GiB.
  std::uint64_t window32 = std::uint64_t{2} << 20;
  std::uint64_t window64 = std::uint64_t{1} << 30;
  // Ports: a power of two of 4 KiB to 32 KiB; 0: the port has no I/O window, as its registers say.
  std::uint64_t window_io = 0;
};

// An unplug that was requested is to be requested again after Restore.
struct RootPortState {
  FunctionState function;
  bool unplug_requested = false;
};

class RootPort final : public PciFunction {
 public:
  // kInvalidArgument for options out of range; what MsixTable and Bar refuse.
  [[nodiscard]] static Result<std::unique_ptr<RootPort>> Create(std::string name,
                                                                bus::InterruptSource& interrupts,
                                                                EventLoop& loop,
                                                                const RootPortOptions& options);
  ~RootPort() override;

  // The largest memory BAR of the function for which there is no room in the windows the port has
  // from the start; none: all fit. Plug does not ask: a guest might make the windows larger.
  [[nodiscard]] std::optional<std::size_t> Misfit(const PciFunction& function) const;
  // Attaches the function and tells the guest. kBadState before the port is on a root, kOverlap
  // when it is occupied.
  [[nodiscard]] Result<void> Plug(PciFunction& function);
  // Asks the guest to release the function. `done` runs once, when it is detached: by the guest's
  // answer or by Pull; never inside this call. kBadState: empty, or asked already.
  [[nodiscard]] Result<void> RequestUnplug(std::function<void()> done);
  // Detaches the function now and tells the guest that it is gone. kNotFound when empty.
  [[nodiscard]] Result<void> Pull();

  // What is plugged in, or null.
  [[nodiscard]] PciFunction* function() const;
  [[nodiscard]] bool unplug_pending() const { return done_ != nullptr; }
  [[nodiscard]] const RootPortOptions& options() const { return options_; }

  [[nodiscard]] RootPortState Save() REQUIRES(lock());
  // kBadFormat as RestoreFunction, which an occupied slot's state for an empty one is, too.
  [[nodiscard]] Result<void> Restore(const RootPortState& state) REQUIRES(lock());
  // plugs, unplugs, button_presses, interrupts, bus_resets, and those of every function.
  void ReportCounters(CounterSink& sink) const override;

  // --- by the root ---
  void JoinRoot(PciRoot* root) { root_ = root; }
  // Before boot, as firmware would: the registers now and after reset. A window of size 0 is off.
  void PlaceBus(std::uint8_t bus) REQUIRES(lock());
  struct Forwarded {
    Window memory32, memory64, io;
  };
  void PlaceWindows(const Forwarded& windows) REQUIRES(lock());
  [[nodiscard]] std::uint8_t secondary_bus() REQUIRES(lock()) {
    return config().Get<std::uint8_t>(kSecondaryBus);
  }
  // Presence and link, with their events.
  void SetOccupied(bool occupied) REQUIRES(lock());
  // Whether the guest began a secondary bus reset since the last call.
  [[nodiscard]] bool TakeBusReset() REQUIRES(lock());

 private:
  RootPort(std::string name, EventLoop& loop, const RootPortOptions& options);
  [[nodiscard]] Result<void> Init(bus::InterruptSource& interrupts);
  void AddWindowRegisters();
  [[nodiscard]] Result<void> AddExpressCapability();
  void AddLink();
  void AddSlot();
  void OnConfigWrite(std::uint32_t offset, std::span<const std::byte> data) override;
  void OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) override;
  void OnReset() override;

  // With the lock held.
  void Raise(std::uint16_t events);
  void UpdateInterrupt();
  void PressButton();
  // The guest may have let go: tells the loop so, once.
  void CheckReleased();
  [[nodiscard]] SLOT_CONTROL slot_control() const;
  [[nodiscard]] SLOT_STATUS slot_status() const;
  // On the loop.
  void Tick();
  void FinishUnplug();
  [[nodiscard]] Result<void> TakeOut();

  EventLoop& loop_;
  const RootPortOptions options_;
  PciRoot* root_ = nullptr;  // while no guest runs
  std::uint32_t express_ = 0;

  // The function's lock.
  bool asserted_ = false;  // the interrupt condition held when it was looked at last
  bool unplug_requested_ = false;
  bool release_posted_ = false;
  bool in_bus_reset_ = false;
  bool bus_reset_begun_ = false;
  unsigned quiet_ticks_ = 0;  // of a request whose button press nobody seems to have seen

  // The loop's thread.
  std::function<void()> done_;
  EventLoop::TimerId timer_ = 0;     // while done_
  std::shared_ptr<RootPort*> self_;  // what posted functions look at: empty once the port is gone

  Counter plugs_, unplugs_, presses_, interrupts_, bus_resets_;
};

}  // namespace postern::pci
