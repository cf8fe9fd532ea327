#include "src/machine/compose_vdev.h"

#include <memory>
#include <string>
#include <utility>

#include "devices/siov/host/host_rig.h"
#include "src/base/event_loop.h"
#include "src/bus/fake_platform.h"
#include "src/machine/host_accelerators.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

// A machine's side of it, with a DSA of this process in place of the host's.
struct Composer {
  explicit Composer(siov::PortalMode portal) : rig({.portal = portal}) {}
  Outcome<ComposedVdev> Compose(const VdevConfig& config, std::uint32_t cpus = 1) {
    return ComposeVdev(config, "vdev0",
                       {.interrupts = platform.interrupts,
                        .memory = rig.memory,
                        .loop = *loop,
                        .cpus = cpus,
                        .accelerators = &accelerators});
  }
  std::string Detail(const VdevConfig& config, std::uint32_t cpus = 1) {
    const Outcome<ComposedVdev> composed = Compose(config, cpus);
    return composed ? composed->detail : composed.error().cause;
  }

  dsa::HostRig rig;
  int opened = 0;
  bus::FakePlatform platform;
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  HostAccelerators accelerators{[this](const VdevConfig&) -> Outcome<LentDevice> {
    ++opened;
    if (rig.pending == nullptr) return HostFailure("nothing there");
    return LentDevice{.memory = nullptr, .device = std::move(rig.pending)};
  }};
};

VdevConfig Hosted() {
  VdevConfig config;
  config.backend = VdevConfig::Backend::kVfio;
  config.socket = "/run/dsa.sock";
  return config;
}

}  // namespace

TEST_CASE("compose: a back end on a host's DSA takes its pages where it has some") {
  Composer composer(siov::PortalMode::kPolled);
  VdevConfig config = Hosted();
  CHECK(composer.Detail(config) ==
        "dsa-ro, 1 queue of 32, direct portals, vfio: loopback, its queue 0");
  // The same device again, and its queue was given back.
  config.wqs = 2;
  config.wq_size = 8;
  CHECK(composer.Detail(config) ==
        "dsa-ro, 2 queues of 8, direct portals, vfio: loopback, its queues 0, 1");
  CHECK(composer.opened == 1);
  // Memory that a process reads is for one CPU.
  CHECK(composer.Detail(config, 2) ==
        "dsa-ro, 2 queues of 8, trapped portals, vfio: loopback, its queues 0, 1");
  config.portal = VdevConfig::Portal::kDirect;
  CHECK(composer.Detail(config, 2).find("portal=direct: the pages of a vfio-user device lose") ==
        0);
  config.portal = VdevConfig::Portal::kTrapped;
  config.profile = VdevConfig::Profile::kConfigurable;
  CHECK(composer.Detail(config) ==
        "dsa-cfg, 2 queues of 8, trapped portals, vfio: loopback, its queues 0, 1");
  config.wqs = 5;
  CHECK(composer.Detail(config).find(
            "cannot have 5 queues of loopback: queues of the host's DSA") == 0);
}

TEST_CASE("compose: what cannot be is said") {
  Composer composer(siov::PortalMode::kTrapped);
  VdevConfig config = Hosted();
  config.portal = VdevConfig::Portal::kDirect;
  CHECK(composer.Detail(config) == "portal=direct: its device lets no portal page be mapped");
  config.portal = VdevConfig::Portal::kAuto;
  CHECK(composer.Detail(config) ==
        "dsa-ro, 1 queue of 32, trapped portals, vfio: loopback, its queue 0");
  config.socket = "/run/other.sock";
  CHECK(composer.Detail(config) == "nothing there");
  const Outcome<ComposedVdev> served = ComposeVdev(config, "vdev0",
                                                   {.interrupts = composer.platform.interrupts,
                                                    .memory = composer.rig.memory,
                                                    .loop = *composer.loop});
  REQUIRE_FALSE(served.has_value());
  CHECK(served.error().cause == "backend=vfio is only there for a machine's own guest");
}

TEST_CASE("compose: a queue of the host's driver must be one") {
  Composer composer(siov::PortalMode::kTrapped);
  VdevConfig config;
  config.backend = VdevConfig::Backend::kCdev;
  config.path = "/dev/null";
  CHECK(composer.Detail(config) == "'/dev/null' is no work queue");
  // No host has so many devices.
  config.path = "/dev/dsa/wq999999999.0";
  CHECK(composer.Detail(config) == "this host has no work queue wq999999999.0");
  const Outcome<ComposedVdev> served = ComposeVdev(config, "vdev0",
                                                   {.interrupts = composer.platform.interrupts,
                                                    .memory = composer.rig.memory,
                                                    .loop = *composer.loop});
  REQUIRE_FALSE(served.has_value());
  CHECK(served.error().cause == "backend=cdev is only there for a machine's own guest");
}

TEST_CASE("compose: the engine is as it was") {
  Composer composer(siov::PortalMode::kTrapped);
  VdevConfig config;
  config.wqs = 1;
  config.wq_size = 32;
  CHECK(composer.Detail(config) ==
        "dsa-ro, 1 queue of 32, polled portals, engine: software, 1 worker thread");
  CHECK(composer.Detail(config, 2) ==
        "dsa-ro, 1 queue of 32, trapped portals, engine: software, 1 worker thread");
  CHECK(composer.opened == 0);
}

}  // namespace postern
