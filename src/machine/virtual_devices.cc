#include "src/machine/virtual_devices.h"

#include <algorithm>
#include <utility>

#include "src/machine/compose_vdev.h"

namespace postern {

VirtualDevices::~VirtualDevices() {
  for (const Entry& entry : entries_) (void)host_.root.Remove(*entry.vdev);
}

Outcome<pci::PciFunction*> VirtualDevices::Add(const VdevConfig& config, const std::string& id,
                                               std::uint32_t cpus) {
  Outcome<ComposedVdev> composed = ComposeVdev(config, id,
                                               {.interrupts = host_.interrupts,
                                                .memory = host_.memory,
                                                .loop = host_.loop,
                                                .cpus = cpus,
                                                .accelerators = &accelerators_});
  if (!composed) return tl::unexpected(composed.error());
  if (Result<pci::Bdf> where = host_.root.Add(*composed->vdev); !where)
    return HostFailure("has no slot", where.error());
  entries_.push_back(
      {.id = id, .detail = std::move(composed->detail), .vdev = std::move(composed->vdev)});
  return entries_.back().vdev.get();
}

std::string VirtualDevices::Detail(const std::string& id) const {
  const auto found = std::ranges::find(entries_, id, &Entry::id);
  return found == entries_.end() ? std::string() : found->detail;
}

void VirtualDevices::ReportMetrics(MetricsWriter& metrics) const {
  for (const Entry& entry : entries_) {
    metrics.Group(entry.id, [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { entry.vdev->ReportCounters(sink); });
    });
  }
}

}  // namespace postern
