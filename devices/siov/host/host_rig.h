#pragma once

// HostRig and GuestDsa: the whole way in memory: a guest's driver -> its Vdev (DsaPersonality,
// VfioBackend) -> DsaHost -> LoopbackDevice -> a configurable Vdev with the software engine, which
// moves the guest's memory.
//
//   HostRig rig({.portal = PortalMode::kPolled});
//   GuestDsa guest(rig, {.queues = 1, .size = 16}, {.wqs = 1, .wq_size = 16}, PortalMode::kDirect);
//   guest.Enable(0);
//   guest.StoreDirect(0, Move(...));
//
// Threads: the test's, which is each guest's vCPU and loop.

#include <cstdint>
#include <memory>
#include <utility>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/dsa/guest_driver.h"
#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"
#include "devices/siov/host/dsa_host.h"
#include "devices/siov/host/loopback_device.h"
#include "devices/siov/host/vfio_backend.h"
#include "src/base/check.h"
#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

namespace postern::dsa {

struct HostRigOptions {
  siov::PortalMode portal = siov::PortalMode::kTrapped;  // of the device
  bool named_handles = false;
  DsaOptions device{.profile = DsaProfile::kConfigurable, .wqs = 4};
  DsaHostOptions host{.name = "loopback", .portals_are_memory = true};
  // Descriptors of the fake (fake_parts.h) rather than real ones.
  Ledger* ledger = nullptr;
};

struct HostRig {
  static constexpr std::uint64_t kMemory = 0x400000;

  explicit HostRig(const HostRigOptions& options = {}) {
    auto engine =
        Engine::Create({.name = "loopback",
                        .workers = 4,
                        .queues = 8,
                        .operations = kAllOperations,
                        .named_handles = options.named_handles},
                       {.runner = options.ledger != nullptr
                                      ? options.ledger->Runners()
                                      : ExecutorRunners(memory, {.operations = kAllOperations}),
                        .polled = PolledPages()});
    auto personality = DsaPersonality::Create(options.device, engine.value()->caps());
    auto own = std::make_unique<LoopbackDevice>(std::move(personality).value(),
                                                std::move(engine).value(), options.portal);
    device = own.get();
    pending = std::move(own);
    host_options = options.host;
  }
  // After faults were prepared. The failure's cause, or "".
  std::string Open() {
    auto opened = DsaHost::Create(std::move(pending), host_options);
    if (!opened) return opened.error().cause;
    host = std::move(*opened);
    return "";
  }

  memory::MemoryMap memory{testing::MakeMemory(kMemory)};
  LoopbackDevice* device = nullptr;
  std::unique_ptr<vfio::HostDevice> pending;
  DsaHostOptions host_options;
  std::unique_ptr<DsaHost> host;
};

struct GuestDsa : GuestDriver {
  GuestDsa(HostRig& rig, const HostRequest& request, const DsaOptions& options,
           siov::PortalMode portal)
      : GuestDsa(VfioBackend::Create(*rig.host, request).value(), options, portal) {}
  GuestDsa(std::unique_ptr<VfioBackend> own, const DsaOptions& options, siov::PortalMode portal)
      : GuestDsa(*own, own, options, portal) {}

  VfioBackend& backend;

 private:
  GuestDsa(VfioBackend& of, std::unique_ptr<VfioBackend>& own, const DsaOptions& options,
           siov::PortalMode portal)
      : GuestDriver(Ready(std::move(own), portal), options, portal), backend(of) {}
  static std::unique_ptr<siov::Backend> Ready(std::unique_ptr<VfioBackend> own,
                                              siov::PortalMode portal) {
    if (portal == siov::PortalMode::kTrapped) CHECK(own->CanSubmit().has_value());
    return own;
  }
};

}  // namespace postern::dsa
