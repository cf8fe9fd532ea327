#pragma once

// PortalPage: where Postern itself submits a descriptor to a queue of a DSA: of hardware, the
// portal page, mapped; of a device process, a write to the region.
//
//   auto page = TRY(PortalPage::Open(device, 3, memory));
//   page->Store(descriptor);
//
// A page of hardware takes 64 bytes in one store and nothing else: MOVDIR64B, which the processor
// must have (kUnsupported otherwise; AVX-512 stores are not promised to arrive in one piece). A
// device process gets two messages, the first word in the second, for one slot after the other: if
// it reads the page as memory (polled_page.h), it never sees half a descriptor. Its memory is not
// touched here, mapped or not: it could be cut off meanwhile.
//
// Pages of hardware are taken from this process while memory decoding is off: their owner turns it
// off only when no portal is left.
//
// Ownership: of the mapping; the device outlives it. Threads: any; one store of a page at a time.
// Source: Intel SDM vol. 2, MOVDIR64B; Intel DSA Architecture Specification 3.0, 3.3.

#include <cstdint>
#include <memory>

#include "devices/siov/core/backend.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::dsa {

constexpr std::uint32_t kPortalPageSize = 4096;
constexpr std::uint32_t kPortalPagesPerQueue = 4;  // of which the first two are of MSI-X

// Whether page `page` of the queue can be mapped.
[[nodiscard]] bool CanMapPortal(const vfio::HostDevice& device, std::uint32_t queue,
                                std::uint32_t page);
[[nodiscard]] Result<std::unique_ptr<vfio::RegionMapping>> MapPortal(vfio::HostDevice& device,
                                                                     std::uint32_t queue,
                                                                     std::uint32_t page);

class PortalPage {
 public:
  // `memory`: portals of this device are a device process's, not hardware.
  [[nodiscard]] static Result<std::unique_ptr<PortalPage>> Open(vfio::HostDevice& device,
                                                                std::uint32_t queue, bool memory);

  // An error where the device does not take it: it is gone.
  [[nodiscard]] Result<void> Store(const siov::Descriptor& descriptor) EXCLUDES(mutex_);

 private:
  enum class Way : std::uint8_t { kDirectStore, kRegion };
  PortalPage(vfio::HostDevice& device, std::uint64_t offset, Way way)
      : device_(device), offset_(offset), way_(way) {}

  vfio::HostDevice& device_;
  const std::uint64_t offset_;  // in the region
  const Way way_;
  std::unique_ptr<vfio::RegionMapping> mapping_;
  Mutex mutex_;  // held over a call of the device for kRegion
  std::uint32_t next_slot_ GUARDED_BY(mutex_) = 0;
};

}  // namespace postern::dsa
