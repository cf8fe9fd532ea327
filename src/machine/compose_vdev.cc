#include "src/machine/compose_vdev.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "devices/siov/cdev/cdev_backend.h"
#include "devices/siov/cdev/idxd_queue.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/polled_pages.h"
#include "devices/siov/host/vfio_backend.h"

namespace postern {
namespace {

// All the executor knows: 0x00 to 0x09, 0x10 to 0x15, 0x20 (OPCAP).
constexpr siov::OperationSet kOperations = {0x1003f03ff};
constexpr std::uint32_t kPolledEntries = 63;

// What the guest's queues are, and how it reaches them.
struct Work {
  std::unique_ptr<siov::Backend> backend;
  siov::PortalMode portal = siov::PortalMode::kTrapped;
};

siov::PortalMode PortalOf(const VdevConfig& config, std::uint32_t cpus) {
  switch (config.portal) {
    case VdevConfig::Portal::kDirect:
      return siov::PortalMode::kDirect;
    case VdevConfig::Portal::kPolled:
      return siov::PortalMode::kPolled;
    case VdevConfig::Portal::kTrapped:
      return siov::PortalMode::kTrapped;
    case VdevConfig::Portal::kAuto:
      break;
  }
  // What polled_page.h asks for: one CPU that stores, at most 63 descriptors under way.
  const bool loses_nothing = cpus == 1 && config.wq_size <= kPolledEntries;
  return loses_nothing ? siov::PortalMode::kPolled : siov::PortalMode::kTrapped;
}

const char* NameOf(siov::PortalMode portal) {
  switch (portal) {
    case siov::PortalMode::kDirect:
      return "direct";
    case siov::PortalMode::kPolled:
      return "polled";
    case siov::PortalMode::kTrapped:
      break;
  }
  return "trapped";
}

Outcome<Work> MakeEngine(const VdevConfig& config, const std::string& id, const VdevHost& host) {
  constexpr std::uint32_t kMostQueues = 8;
  constexpr std::uint32_t kEntries = 128;
  dsa::EngineOptions options;
  options.name = id;
  options.workers = config.engines;
  options.queues = config.wqs != 0 ? config.wqs : kMostQueues;
  options.entries = std::max(kEntries, options.queues * config.wq_size);
  options.operations = kOperations;
  options.poll.max_sleep = std::chrono::microseconds(config.poll_sleep_us);
  Result<std::unique_ptr<dsa::Engine>> engine = dsa::Engine::Create(
      options, {.runner = dsa::ExecutorRunners(host.memory, {.operations = kOperations}),
                .polled = dsa::PolledPages()});
  if (!engine) return HostFailure("cannot start its engine", engine.error());
  return Work{.backend = std::move(*engine), .portal = PortalOf(config, host.cpus)};
}

// `memory`: the pages are memory which the device's process reads, so that what polled_page.h asks
// for holds of them: one CPU that stores. Trapped, Postern is that one.
Outcome<siov::PortalMode> HostPortalOf(const VdevConfig& config, dsa::VfioBackend& backend,
                                       bool memory, std::uint32_t cpus) {
  const bool mappable = backend.caps().direct;
  const bool direct = mappable && (!memory || cpus == 1);
  if (config.portal == VdevConfig::Portal::kDirect && !direct) {
    return mappable
               ? ConfigFailure(fmt::format("portal=direct: the pages of a vfio-user device lose "
                                           "descriptors that two CPUs store to one slot, and this "
                                           "guest has {} CPUs",
                                           cpus),
                               "use portal=auto, or --cpus 1")
               : ConfigFailure("portal=direct: its device lets no portal page be mapped",
                               "use portal=auto");
  }
  if (direct && config.portal != VdevConfig::Portal::kTrapped) return siov::PortalMode::kDirect;
  if (const Result<void> submits = backend.CanSubmit(); !submits)
    return HostFailure("trapped portals", submits.error(), "use portal=direct");
  return siov::PortalMode::kTrapped;
}

Outcome<Work> MakeHosted(const VdevConfig& config, const VdevHost& host) {
  if (host.accelerators == nullptr) {
    return ConfigFailure("backend=vfio is only there for a machine's own guest",
                         "use backend=engine");
  }
  Outcome<dsa::DsaHost*> accelerator = host.accelerators->Get(config);
  if (!accelerator) return tl::unexpected(accelerator.error());
  const bool configurable = config.profile == VdevConfig::Profile::kConfigurable;
  const std::uint32_t all = std::min<std::uint32_t>((*accelerator)->caps().queues, 8);
  const std::uint32_t queues = config.wqs != 0 ? config.wqs : configurable ? all : 1;
  Result<std::unique_ptr<dsa::VfioBackend>> backend =
      dsa::VfioBackend::Create(**accelerator, {.queues = queues, .size = config.wq_size});
  if (!backend) {
    return HostFailure(fmt::format("cannot have {} queue{} of {}", queues, queues == 1 ? "" : "s",
                                   (*accelerator)->device().info().name),
                       backend.error(), "ask for fewer queues (wqs) or entries (wq-size)");
  }
  Outcome<siov::PortalMode> portal =
      HostPortalOf(config, **backend, (*accelerator)->options().portals_are_memory, host.cpus);
  if (!portal) return tl::unexpected(portal.error());
  return Work{.backend = std::move(*backend), .portal = *portal};
}

Outcome<Work> MakeOnDriver(const VdevConfig& config, const std::string& id, const VdevHost& host) {
  if (host.accelerators == nullptr) {
    return ConfigFailure("backend=cdev is only there for a machine's own guest",
                         "use backend=engine");
  }
  Outcome<std::unique_ptr<dsa::IdxdQueue>> queue = dsa::OpenIdxdQueue(config.path);
  if (!queue) return tl::unexpected(queue.error());
  Result<std::unique_ptr<dsa::CdevBackend>> backend =
      dsa::CdevBackend::Create({.name = id}, host.memory, std::move(*queue));
  if (!backend) return HostFailure("cannot use its queue", backend.error());
  return Work{.backend = std::move(*backend), .portal = siov::PortalMode::kTrapped};
}

Outcome<Work> MakeWork(const VdevConfig& config, const std::string& id, const VdevHost& host) {
  switch (config.backend) {
    case VdevConfig::Backend::kVfio:
      return MakeHosted(config, host);
    case VdevConfig::Backend::kCdev:
      return MakeOnDriver(config, id, host);
    case VdevConfig::Backend::kEngine:
      break;
  }
  return MakeEngine(config, id, host);
}

dsa::DsaOptions DsaOptionsOf(const VdevConfig& config, const siov::BackendCaps& caps) {
  dsa::DsaOptions options;
  options.profile = config.profile == VdevConfig::Profile::kConfigurable
                        ? dsa::DsaProfile::kConfigurable
                        : dsa::DsaProfile::kReadOnly;
  options.wqs = config.wqs;
  options.wq_size = config.wq_size;
  // The device's queues have their sizes already.
  if (config.backend == VdevConfig::Backend::kVfio) {
    options.wqs = caps.queues;
    options.wq_size = caps.entries / caps.queues;
    if (options.profile == dsa::DsaProfile::kConfigurable) options.entries = caps.entries;
  }
  return options;
}

}  // namespace

Outcome<ComposedVdev> ComposeVdev(const VdevConfig& config, const std::string& id,
                                  const VdevHost& host) {
  Outcome<Work> work = MakeWork(config, id, host);
  if (!work) return tl::unexpected(work.error());
  const siov::BackendCaps& caps = work->backend->caps();
  Result<std::unique_ptr<dsa::DsaPersonality>> personality =
      dsa::DsaPersonality::Create(DsaOptionsOf(config, caps), caps);
  if (!personality) {
    return ConfigFailure(fmt::format("cannot be composed: {}", personality.error().op),
                         "change that key of --vdev");
  }
  const dsa::DsaShape& shape = (*personality)->shape();
  std::string detail = fmt::format("{}, {} queue{} of {}, {} portals, {}", (*personality)->name(),
                                   shape.wqs, shape.wqs == 1 ? "" : "s", shape.wq_size,
                                   NameOf(work->portal), work->backend->Describe());
  Result<std::unique_ptr<siov::Vdev>> vdev = siov::Vdev::Create(
      {.name = id, .portal = work->portal, .pages_leave = host.pages_leave},
      std::move(*personality), std::move(work->backend), {host.interrupts, host.loop});
  if (!vdev) return HostFailure("cannot be composed", vdev.error());
  return ComposedVdev{.detail = std::move(detail), .vdev = std::move(*vdev)};
}

}  // namespace postern
