#include "src/machine/compose_vdev.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "devices/siov/dsa/dsa_personality.h"
#include "devices/siov/engine/descriptor_runner.h"
#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/polled_pages.h"

namespace postern {
namespace {

// All the executor knows: 0x00 to 0x09, 0x10 to 0x15, 0x20 (OPCAP).
constexpr siov::OperationSet kOperations = {0x1003f03ff};
constexpr std::uint32_t kPolledEntries = 63;

siov::PortalMode PortalOf(const VdevConfig& config, std::uint32_t cpus) {
  switch (config.portal) {
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

Outcome<std::unique_ptr<dsa::Engine>> MakeEngine(const VdevConfig& config, const std::string& id,
                                                 const memory::MemoryMap& memory) {
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
      options, {.runner = dsa::ExecutorRunners(memory, {.operations = kOperations}),
                .polled = dsa::PolledPages()});
  if (!engine) return HostFailure("cannot start its engine", engine.error());
  return std::move(*engine);
}

dsa::DsaOptions DsaOptionsOf(const VdevConfig& config) {
  dsa::DsaOptions options;
  options.profile = config.profile == VdevConfig::Profile::kConfigurable
                        ? dsa::DsaProfile::kConfigurable
                        : dsa::DsaProfile::kReadOnly;
  options.wqs = config.wqs;
  options.wq_size = config.wq_size;
  return options;
}

}  // namespace

Outcome<ComposedVdev> ComposeVdev(const VdevConfig& config, const std::string& id,
                                  const VdevHost& host) {
  Outcome<std::unique_ptr<dsa::Engine>> engine = MakeEngine(config, id, host.memory);
  if (!engine) return tl::unexpected(engine.error());
  Result<std::unique_ptr<dsa::DsaPersonality>> personality =
      dsa::DsaPersonality::Create(DsaOptionsOf(config), (*engine)->caps());
  if (!personality) {
    return ConfigFailure(fmt::format("cannot be composed: {}", personality.error().op),
                         "change that key of --vdev");
  }
  const dsa::DsaShape& shape = (*personality)->shape();
  const siov::PortalMode portal = PortalOf(config, host.cpus);
  std::string detail = fmt::format("{}, {} queue{} of {}, {} portals, {}", (*personality)->name(),
                                   shape.wqs, shape.wqs == 1 ? "" : "s", shape.wq_size,
                                   portal == siov::PortalMode::kPolled ? "polled" : "trapped",
                                   (*engine)->Describe());
  Result<std::unique_ptr<siov::Vdev>> vdev =
      siov::Vdev::Create({.name = id, .portal = portal, .pages_leave = host.pages_leave},
                         std::move(*personality), std::move(*engine), {host.interrupts, host.loop});
  if (!vdev) return HostFailure("cannot be composed", vdev.error());
  return ComposedVdev{.detail = std::move(detail), .vdev = std::move(*vdev)};
}

}  // namespace postern
