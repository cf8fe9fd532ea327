#pragma once

// Interrupts: which of INTx, MSI and MSI-X is enabled at the device, and which eventfd signals each
// vector, so that it follows what the guest did to its own MSI and MSI-X.
//
//   Interrupts interrupts(device, platform.interrupts, gsi, on_error);
//   interrupts.Follow(function.msix(), function.msi());
//   interrupts.Resume();
//
// At most one kind is enabled at the device at any time; the old one is off before the new one
// comes. MSI-X goes before MSI before INTx where the guest enabled several. A vector's eventfd (the
// trigger of its route) is handed to the device when the guest first unmasks it and stays until the
// kind is disabled: while masked, it collects. A device that enables MSI-X with every vector masked
// gets no eventfd at all.
//
// INTx masks itself when it is raised. The kernel unmasks it at the guest's end of interrupt where
// the device takes an eventfd for that; for one that does not (the kernel's mtty), the owner
// watches unmask_by_hand() and calls UnmaskIntx().
//
// Errors: counted, logged, and told to `on_error`; the guest sees an interrupt that never comes.
// Ownership: borrows all it is given; the tables outlive it. Threads: the function's lock. Source:
// Linux Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h (VFIO_DEVICE_SET_IRQS).

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "devices/pci/msi.h"
#include "devices/pci/msix.h"
#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/result.h"
#include "src/bus/platform.h"
#include "vfio/host_device.h"

namespace postern::vfio {

class Interrupts {
 public:
  enum class Kind : std::uint8_t { kNone, kIntx, kMsi, kMsix };

  // `intx_gsi`: the wire INTx raises; none: no INTx. Starts suspended.
  Interrupts(HostDevice& device, bus::InterruptSource& source,
             std::optional<std::uint32_t> intx_gsi, std::function<void(const Error&)> on_error);
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Either may be null.
  void Follow(pci::MsixTable* msix, pci::MsiCapability* msi);
  // Everything off at the device, and it stays so.
  void Suspend();
  // From now on as the guest's registers say.
  void Resume();

  [[nodiscard]] Kind kind() const { return kind_; }
  // False after the wire was refused: the guest should not be told of a pin.
  [[nodiscard]] bool has_intx() const { return intx_gsi_.has_value(); }
  // Known from the first Resume on, and the same for good; null where the kernel unmasks.
  [[nodiscard]] const EventFd* unmask_by_hand() const {
    return unmasking_ == Unmasking::kByHand ? &*unmask_ : nullptr;
  }
  // After a signal of it, which this takes.
  void UnmaskIntx();
  void ReportCounters(CounterSink& sink) const;

 private:
  enum class Unmasking : std::uint8_t { kUnknown, kByKernel, kByHand };
  // The vectors of one kind.
  class Vectors final : public pci::MsixObserver {
   public:
    Vectors(Interrupts& owner, Kind kind, std::uint32_t irq)
        : owner_(owner), kind_(kind), irq_(irq) {}
    void Follow(pci::MsixTable* table);
    void OnVectorOpened(std::uint16_t vector, const EventFd& trigger) override;
    void OnEnabled() override { owner_.Reconcile(); }
    void OnDisabled() override;

    [[nodiscard]] std::uint32_t irq() const { return irq_; }
    // One for each vector; -1: not opened since it was enabled.
    std::vector<int> events;
    pci::MsixTable* table = nullptr;

   private:
    Interrupts& owner_;
    const Kind kind_;
    const std::uint32_t irq_;
  };

  void Reconcile();
  [[nodiscard]] Kind Wanted() const;
  [[nodiscard]] Result<void> Enter(Kind kind);
  void Leave();
  [[nodiscard]] Result<void> EnterMsix();
  [[nodiscard]] Result<void> EnterMsi();
  [[nodiscard]] Result<void> EnterIntx();
  [[nodiscard]] Result<void> AttachUnmask();
  void LeaveIntx();
  [[nodiscard]] Result<void> Hand(std::uint32_t irq, std::uint32_t start,
                                  std::span<const int> events);
  // Notes a failure; true if there was none.
  bool Good(const Result<void>& result, std::string_view what);

  HostDevice& device_;
  bus::InterruptSource& source_;
  std::optional<std::uint32_t> intx_gsi_;
  const std::function<void(const Error&)> on_error_;
  Vectors msix_{*this, Kind::kMsix, kMsixIrq};
  Vectors msi_{*this, Kind::kMsi, kMsiIrq};
  pci::MsiCapability* msi_capability_ = nullptr;
  Kind kind_ = Kind::kNone;
  bool suspended_ = true;
  Unmasking unmasking_ = Unmasking::kUnknown;
  // Stays once it is made. The line borrows it.
  std::optional<EventFd> unmask_;
  std::unique_ptr<bus::IrqLine> line_;
  Counter vectors_opened_, switches_, errors_, intx_unmasks_;
};

}  // namespace postern::vfio
