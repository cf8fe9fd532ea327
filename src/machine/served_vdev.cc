#include "src/machine/served_vdev.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "devices/siov/core/vdev.h"
#include "src/base/mutex.h"
#include "src/machine/compose_vdev.h"
#include "vfio/user/served_function.h"

namespace postern {
namespace {

// All are called with the function's lock.
vfio::ServedHooks HooksOf(siov::Vdev& vdev) {
  vfio::ServedHooks hooks;
  hooks.stop_dma = [&vdev]() NO_THREAD_SAFETY_ANALYSIS { vdev.Quiesce(); };
  hooks.resume_dma = [&vdev]() NO_THREAD_SAFETY_ANALYSIS { vdev.Resume(); };
  hooks.store_64 = [&vdev](std::size_t bar, std::uint64_t offset,
                           std::span<const std::byte, 64> data) NO_THREAD_SAFETY_ANALYSIS {
    if (bar != siov::Vdev::kPortalBar) return false;
    siov::Descriptor descriptor;
    std::ranges::copy(data, descriptor.begin());
    vdev.SubmitAt(offset, descriptor);
    return true;
  };
  return hooks;
}

}  // namespace

Outcome<std::unique_ptr<vfio::UserServed>> MakeServedVdev(const VdevConfig& config,
                                                          const std::string& id, EventLoop& loop,
                                                          std::string* detail) {
  VdevConfig served = config;
  if (served.portal == VdevConfig::Portal::kAuto) served.portal = VdevConfig::Portal::kTrapped;
  const auto make = [&](bus::InterruptSource& interrupts,
                        const memory::MemoryMap& memory) -> Outcome<vfio::ServedParts> {
    Outcome<ComposedVdev> composed = ComposeVdev(
        served, id,
        {.interrupts = interrupts, .memory = memory, .loop = loop, .pages_leave = true});
    if (!composed) return tl::unexpected(composed.error());
    if (detail != nullptr) *detail = std::move(composed->detail);
    vfio::ServedHooks hooks = HooksOf(*composed->vdev);
    return vfio::ServedParts{std::move(composed->vdev), std::move(hooks)};
  };
  Outcome<std::unique_ptr<vfio::ServedFunction>> device = vfio::ServedFunction::Create(make);
  if (!device) return tl::unexpected(device.error());
  return std::unique_ptr<vfio::UserServed>(std::move(*device));
}

}  // namespace postern
