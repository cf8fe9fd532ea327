#pragma once

// Vdev: a virtual PCI function composed of a Personality (what it is), a Backend (who does the
// work) and parts that know neither: config space, a RegisterFile behind BAR 0, portals in BAR 2,
// MSI-X.
//
//   auto vdev = TRY(Vdev::Create({.name = "dsa0", .portal = PortalMode::kPolled},
//   std::move(personality),
//                                std::move(backend), {platform.interrupts, loop}));
//   Bdf where = TRY(root.Add(*vdev));
//
// A guest reset (FLR) resets this Vdev's queues and registers, and nothing of the host's device.
// Knows neither KVM nor the machine: the same object sits in a machine's slot, behind a vfio-user
// socket and in a unit test.
//
// Ownership: owns personality and backend; borrows the InterruptSource and the loop, on which the
// backend's events are handled (with the function's lock). Threads: as PciFunction.
// Source: Intel DSA Architecture Specification 3.0, 7.5 (composition of a virtual device).

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "devices/siov/core/backend.h"
#include "devices/siov/core/personality.h"
#include "src/base/event_loop.h"
#include "src/base/result.h"
#include "src/bus/platform.h"
#include "src/bus/register_map.h"

namespace postern::siov {

struct VdevOptions {
  std::string name;
  // What the portals are: kDirect and kPolled must be in the backend's caps (kUnsupported).
  PortalMode portal = PortalMode::kTrapped;
};

// Saved state, version 1. Taken between Quiesce and Resume.
struct VdevState {
  std::uint32_t version = 1;
  pci::FunctionState function;
  std::vector<std::uint64_t> registers;
  PersonalityState personality;
  BackendState backend;
  std::vector<std::uint32_t> handles;  // in use
};

class Vdev final : public pci::PciFunction,
                   private bus::RegisterOwner,
                   private BackendEvents,
                   private VdevPort {
 public:
  struct Host {
    bus::InterruptSource& interrupts;
    EventLoop& loop;
  };
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

  void Quiesce() REQUIRES(lock());
  void Resume() REQUIRES(lock());
  [[nodiscard]] Result<VdevState> Save() REQUIRES(lock());
  // kBadFormat, and the Vdev as after Reset, for what Save of a like Vdev could not have given. The
  // guest is told that its interrupt handles are void where the backend names handles.
  [[nodiscard]] Result<void> Restore(const VdevState& state) REQUIRES(lock());

  // The 64 bytes of a MOVDIR64B (or ENQCMD's, refused) whose destination lies in BAR 2, from
  // whoever decoded it. With the lock held. Offset: of the destination in BAR 2.
  void SubmitAt(std::uint64_t offset, const Descriptor& descriptor) REQUIRES(lock());

  void ReportCounters(CounterSink& sink) const override;
};

}  // namespace postern::siov
