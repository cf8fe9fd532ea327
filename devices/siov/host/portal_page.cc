#include "devices/siov/host/portal_page.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "devices/siov/host/device_registers.h"
#include "src/base/direct_store.h"

namespace postern::dsa {
namespace {

constexpr std::uint32_t kRegion = DeviceRegisters::kPortalRegion;
constexpr std::uint32_t kSlots = kPortalPageSize / siov::kDescriptorSize;
constexpr std::size_t kFirstWord = 8;

vfio::MapArea AreaOf(std::uint32_t queue, std::uint32_t page) {
  return {.offset = (std::uint64_t{queue} * kPortalPagesPerQueue + page) * kPortalPageSize,
          .length = kPortalPageSize};
}

}  // namespace

bool CanMapPortal(const vfio::HostDevice& device, std::uint32_t queue, std::uint32_t page) {
  const vfio::MapArea wanted = AreaOf(queue, page);
  const std::vector<vfio::MapArea>& areas = device.info().regions[kRegion].areas;
  return std::ranges::any_of(areas, [&](const vfio::MapArea& area) {
    return wanted.offset >= area.offset && wanted.offset - area.offset <= area.length &&
           wanted.length <= area.length - (wanted.offset - area.offset);
  });
}

Result<std::unique_ptr<vfio::RegionMapping>> MapPortal(vfio::HostDevice& device,
                                                       std::uint32_t queue, std::uint32_t page) {
  return device.MapRegion(kRegion, AreaOf(queue, page));
}

Result<std::unique_ptr<PortalPage>> PortalPage::Open(vfio::HostDevice& device, std::uint32_t queue,
                                                     bool memory) {
  const bool mappable = CanMapPortal(device, queue, 0);
  // The kernel would split the write into stores that the hardware ignores.
  if (!mappable && !memory) return Err(Errc::kUnsupported, "portal that cannot be mapped");
  if (!memory && !HasMovdir64b())
    return Err(Errc::kUnsupported, "submitting without MOVDIR64B in this processor");
  const Way way = memory ? Way::kRegion : Way::kDirectStore;
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  std::unique_ptr<PortalPage> page(new PortalPage(device, AreaOf(queue, 0).offset, way));
  if (way == Way::kDirectStore) {
    page->mapping_ = TRY(MapPortal(device, queue, 0));
    const bus::HostPages& pages = page->mapping_->pages();
    if (pages.address == nullptr || pages.length < kPortalPageSize)
      return Err(Errc::kBadFormat, "mapping of a portal page");
  }
  return page;
}

Result<void> PortalPage::Store(const siov::Descriptor& descriptor) {
  const MutexLock lock(mutex_);
  const std::uint64_t slot = std::uint64_t{next_slot_} * siov::kDescriptorSize;
  next_slot_ = (next_slot_ + 1) % kSlots;
  if (way_ == Way::kDirectStore) {
    StoreBlock(mapping_->pages().address + slot, descriptor);
    return {};
  }
  const std::span<const std::byte> bytes = descriptor;
  TRY(device_.WriteRegion(kRegion, offset_ + slot + kFirstWord, bytes.subspan(kFirstWord)));
  return device_.WriteRegion(kRegion, offset_ + slot, bytes.first(kFirstWord));
}

}  // namespace postern::dsa
