#pragma once

// Platform: what a device may ask of whoever hosts it (the machine's KVM, a vfio-user server, a
// test). With these interfaces a device reaches interrupts, mapped pages and doorbells without
// knowing KVM.
//
// Ownership: the handles returned are RAII: destroying one detaches what it stands for. They must
// not outlive the Platform. Threads: all calls from any thread, serialised by the implementation;
// none blocks on the guest.

#include <cstdint>
#include <memory>
#include <optional>

#include "src/base/event_fd.h"
#include "src/base/result.h"
#include "src/memory/gpa.h"

namespace postern::bus {

// PCI 3.0 6.8: the address and data a function writes to signal an interrupt.
struct MsiMessage {
  std::uint64_t address = 0;
  std::uint32_t data = 0;
  friend bool operator==(const MsiMessage&, const MsiMessage&) = default;
};

// One message-signalled interrupt: an eventfd whose signal injects the message (irqfd).
class MsiRoute {
 public:
  virtual ~MsiRoute() = default;
  // Where signals go from now on. Cheap when the message did not change.
  [[nodiscard]] virtual Result<void> Set(const MsiMessage& message) = 0;
  // While masked (the state of a new route) signals collect in the eventfd: trigger().Pending() is
  // the PBA bit. Unmasking delivers a collected signal once.
  [[nodiscard]] virtual Result<void> Mask(bool masked) = 0;
  // Signalled by the device, or handed to the kernel (VFIO) to signal.
  [[nodiscard]] virtual const EventFd& trigger() const = 0;
};

// One wired interrupt (an IOAPIC input), for virtio-mmio, the 16550 and INTx.
class IrqLine {
 public:
  virtual ~IrqLine() = default;
  // Signal for an edge-triggered line: one pulse.
  [[nodiscard]] virtual const EventFd& trigger() const = 0;
  // Drives a level-triggered line.
  virtual void SetLevel(bool high) = 0;
};

class InterruptSource {
 public:
  virtual ~InterruptSource() = default;
  // Masked, without a message yet. kExhausted when no route is left.
  [[nodiscard]] virtual Result<std::unique_ptr<MsiRoute>> NewMsi() = 0;
  // `resample`: for level lines, an eventfd KVM signals at end of interrupt; its owner lowers or
  // re-raises.
  [[nodiscard]] virtual Result<std::unique_ptr<IrqLine>> NewLine(
      std::uint32_t gsi, const EventFd* resample = nullptr) = 0;
};

// Memory of this process, or of a file, that may be mapped into the guest.
struct HostPages {
  int fd = -1;                   // for platforms in another process; -1 if there is none
  std::uint64_t offset = 0;      // in fd
  std::byte* address = nullptr;  // in this process
  std::uint64_t length = 0;      // bytes, a multiple of 4096
};

class Mapping {
 public:
  virtual ~Mapping() = default;
};

class PageMapper {
 public:
  virtual ~PageMapper() = default;
  // Maps pages at a guest-physical address: accesses do not exit from now on. kOverlap if RAM or
  // another mapping is there.
  [[nodiscard]] virtual Result<std::unique_ptr<Mapping>> Map(memory::Gpa gpa,
                                                             const HostPages& pages,
                                                             memory::Access access) = 0;
};

class Doorbell {
 public:
  virtual ~Doorbell() = default;
};

class Doorbells {
 public:
  virtual ~Doorbells() = default;
  // A guest write of `width` bytes (0: any width) at `gpa`, of value `match` if given, signals
  // `event` in the kernel instead of exiting.
  [[nodiscard]] virtual Result<std::unique_ptr<Doorbell>> Register(
      memory::Gpa gpa, std::uint32_t width, std::optional<std::uint64_t> match,
      const EventFd& event) = 0;
};

struct Platform {
  InterruptSource& interrupts;
  PageMapper& pages;
  Doorbells& doorbells;
};

}  // namespace postern::bus
