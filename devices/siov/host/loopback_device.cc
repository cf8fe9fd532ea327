#include "devices/siov/host/loopback_device.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <variant>

#include "devices/pci/pci_regs.h"
#include "devices/pci/pcie_regs.h"
#include "src/base/check.h"

namespace postern::dsa {
namespace {

constexpr std::uint32_t kExpress = 0x40;
constexpr std::uint32_t kMsix = kExpress + pci::kExpressSizeV2;
constexpr std::uint16_t kMemory = 0x2;
constexpr std::size_t kMaxAccess = 8;
constexpr std::uint64_t kPage = 4096;

std::uint64_t Little(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  for (std::size_t i = std::min(data.size(), kMaxAccess); i-- > 0;)
    value = value << 8 | std::to_integer<std::uint64_t>(data[i]);
  return value;
}

}  // namespace

// The eventfd the Vdev signals; passed on to the one the driver gave, as the kernel's interrupt
// handler would.
class LoopbackDevice::Route final : public bus::MsiRoute, private EventHandler {
 public:
  Route(LoopbackDevice& owner, std::uint32_t vector) : owner_(owner), vector_(vector) {
    // Not waiting: the loop may be waiting for the Vdev's lock, which is held now.
    owner_.loop_->Post(
        [this] { CHECK(owner_.loop_->Watch(trigger_.fd(), EPOLLIN, *this).has_value()); });
  }
  ~Route() override {
    owner_.loop_->RunSync([this] { owner_.loop_->Unwatch(trigger_.fd()); });
  }
  Route(const Route&) = delete;
  Route& operator=(const Route&) = delete;
  Result<void> Set(const bus::MsiMessage& /*message*/) override { return {}; }
  Result<void> Mask(bool /*masked*/) override { return {}; }
  [[nodiscard]] const EventFd& trigger() const override { return trigger_; }

 private:
  void OnEvent(int /*fd*/, std::uint32_t /*events*/) override {
    trigger_.Consume();
    owner_.Signal(vfio::kMsixIrq, vector_);
  }
  LoopbackDevice& owner_;
  const std::uint32_t vector_;
  EventFd trigger_ = EventFd::Create().value();
};

Result<std::unique_ptr<bus::MsiRoute>> LoopbackDevice::Routes::NewMsi() {
  return std::unique_ptr<bus::MsiRoute>(std::make_unique<Route>(owner_, next_++));
}

Result<std::unique_ptr<bus::IrqLine>> LoopbackDevice::Routes::NewLine(std::uint32_t /*gsi*/,
                                                                      const EventFd* /*resample*/) {
  return Err(Errc::kUnsupported, "loopback line");
}

class LoopbackDevice::Page final : public vfio::RegionMapping {
 public:
  explicit Page(const bus::HostPages& pages) : pages_(pages) {}
  [[nodiscard]] const bus::HostPages& pages() const override { return pages_; }

 private:
  bus::HostPages pages_;
};

LoopbackDevice::LoopbackDevice(std::unique_ptr<siov::Personality> personality,
                               std::unique_ptr<siov::Backend> backend, siov::PortalMode portal) {
  personality_ = personality.get();
  vdev_ = siov::Vdev::Create({.name = "loopback", .portal = portal}, std::move(personality),
                             std::move(backend), {routes_, *loop_})
              .value();
  CHECK(bridge_.root->Add(*vdev_).has_value());
  info_.name = "loopback";
  info_.can_reset = true;
  info_.regions[vfio::kConfigRegion] = {
      .size = pci::kConfigEnd, .readable = true, .writable = true, .areas = {}};
  for (const std::uint32_t bar : {0U, 2U}) {
    vfio::RegionInfo& region = info_.regions[bar];
    region = {.size = vdev_->bars()[bar]->size(), .readable = true, .writable = true, .areas = {}};
    for (const pci::Tile& tile : vdev_->bars()[bar]->tiles()) {
      if (std::holds_alternative<pci::Pages>(tile))
        region.areas.push_back({pci::TileOffset(tile), pci::TileLength(tile)});
    }
  }
  info_.irqs[vfio::kMsixIrq] = {.count = vdev_->personality().layout().vectors, .eventfd = true};
  info_.irqs[vfio::kErrorIrq] = {.count = 1, .eventfd = true};
  info_.irqs[vfio::kRequestIrq] = {.count = 1, .eventfd = true};
  thread_ = Thread::Start("loopback", [this] { loop_->Run(); }).value();
}

LoopbackDevice::~LoopbackDevice() {
  loop_->Stop();
  thread_.Join();
  CHECK(bridge_.root->Remove(*vdev_).has_value());
  vdev_.reset();
}

void LoopbackDevice::RevokeHandles() {
  const MutexLock lock(vdev_->lock());
  personality_->OnHandlesRevoked();
}

Result<void> LoopbackDevice::Enter(const Access& access) {
  if (access.write) {
    const MutexLock lock(mutex_);
    writes_.push_back(access);
  }
  if (!fail) return {};
  const int error = fail(access);
  if (error != 0) return SysError("loopback", error);
  return {};
}

std::vector<LoopbackDevice::Access> LoopbackDevice::Writes(std::uint32_t region) {
  const MutexLock lock(mutex_);
  std::vector<Access> found;
  std::ranges::copy_if(writes_, std::back_inserter(found),
                       [region](const Access& access) { return access.region == region; });
  return found;
}

bool LoopbackDevice::Signal(std::uint32_t irq, std::uint32_t vector) {
  const MutexLock lock(mutex_);
  const auto found = events_.find({irq, vector});
  if (found == events_.end()) return false;
  const std::uint64_t one = 1;
  return write(found->second.get(), &one, sizeof(one)) == sizeof(one);
}

bool LoopbackDevice::Decodes() {
  const MutexLock lock(vdev_->lock());
  return (vdev_->config().Get<std::uint16_t>(pci::kCommand) & kMemory) != 0;
}

void LoopbackDevice::Touch(std::uint32_t bar, std::uint64_t offset, std::span<std::byte> to,
                           std::span<const std::byte> from) {
  const MutexLock lock(vdev_->lock());
  for (const pci::Tile& tile : vdev_->bars()[bar]->tiles()) {
    const std::uint64_t begin = pci::TileOffset(tile);
    if (offset < begin || offset >= begin + pci::TileLength(tile)) continue;
    if (const auto* trapped = std::get_if<pci::Trapped>(&tile)) {
      if (!to.empty()) trapped->handler->Read(offset - begin, to);
      if (!from.empty()) trapped->handler->Write(offset - begin, from);
      return;
    }
    // A portal page that is memory; of whole words, as its reader looks at them.
    const pci::Pages& pages = std::get<pci::Pages>(tile);
    if (from.size() == kMaxAccess && offset % kMaxAccess == 0) {
      auto* word = reinterpret_cast<std::uint64_t*>(pages.host.address + (offset - begin));
      __atomic_store_n(word, Little(from), __ATOMIC_RELEASE);
    }
    return;
  }
}

Result<void> LoopbackDevice::ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) {
  const Access access{region, offset, false, 0};
  TRY(Enter(access));
  const vfio::RegionInfo& info = info_.regions[region];
  if (!info.readable || offset > info.size || data.size() > info.size - offset)
    return Err(Errc::kInvalidArgument, "loopback read");
  if (region == vfio::kConfigRegion) {
    const MutexLock lock(vdev_->lock());
    vdev_->ReadConfig(static_cast<std::uint32_t>(offset), data);
  } else {
    if (!Decodes()) return SysError("loopback read", EIO);
    for (std::size_t at = 0; at < data.size(); at += kMaxAccess)
      Touch(region, offset + at, data.subspan(at, std::min(kMaxAccess, data.size() - at)), {});
  }
  if (read) read(access, data);
  return {};
}

Result<void> LoopbackDevice::WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) {
  TRY(Enter({region, offset, true, Little(data)}));
  const vfio::RegionInfo& info = info_.regions[region];
  if (!info.writable || offset > info.size || data.size() > info.size - offset)
    return Err(Errc::kInvalidArgument, "loopback write");
  if (region == vfio::kConfigRegion) {
    const MutexLock lock(vdev_->lock());
    vdev_->WriteConfig(static_cast<std::uint32_t>(offset), data);
    return {};
  }
  if (!Decodes()) return SysError("loopback write", EIO);
  for (std::size_t at = 0; at < data.size(); at += kMaxAccess)
    Touch(region, offset + at, {}, data.subspan(at, std::min(kMaxAccess, data.size() - at)));
  return {};
}

Result<std::unique_ptr<vfio::RegionMapping>> LoopbackDevice::MapRegion(std::uint32_t region,
                                                                       const vfio::MapArea& area) {
  for (const pci::Tile& tile : vdev_->bars()[region]->tiles()) {
    const auto* pages = std::get_if<pci::Pages>(&tile);
    if (pages == nullptr || area.offset < pages->offset || area.offset % kPage != 0) continue;
    const std::uint64_t from = area.offset - pages->offset;
    if (from >= pages->host.length || area.length > pages->host.length - from) continue;
    bus::HostPages part = pages->host;
    part.offset += from;
    part.address += from;
    part.length = area.length;
    return std::unique_ptr<vfio::RegionMapping>(std::make_unique<Page>(part));
  }
  return Err(Errc::kInvalidArgument, "loopback map");
}

// As a driver that enables all vectors.
void LoopbackDevice::OpenVectors() {
  const std::array<std::byte, 2> enable{std::byte{0}, std::byte{0x80}};
  {
    const MutexLock lock(vdev_->lock());
    vdev_->WriteConfig(kMsix + pci::kMsixControl, enable);
  }
  const siov::VdevLayout& layout = vdev_->personality().layout();
  const std::array<std::byte, 4> unmasked{};
  for (std::uint32_t vector = 0; vector < layout.vectors; ++vector)
    Touch(0, layout.msix_table_offset + vector * 16 + 12, {}, unmasked);
}

Result<void> LoopbackDevice::SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) {
  if (events.empty() || start + events.size() > info_.irqs[irq].count)
    return SysError("loopback irq", EINVAL);
  if (irq == vfio::kMsixIrq) OpenVectors();
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < events.size(); ++i) {
    const std::pair<std::uint32_t, std::uint32_t> key{irq, start + static_cast<std::uint32_t>(i)};
    events_.erase(key);
    if (events[i] >= 0) events_.emplace(key, Fd(fcntl(events[i], F_DUPFD_CLOEXEC, 0)));
  }
  return {};
}

Result<void> LoopbackDevice::DisableIrq(std::uint32_t irq) {
  const MutexLock lock(mutex_);
  std::erase_if(events_, [irq](const auto& entry) { return entry.first.first == irq; });
  return {};
}

Result<void> LoopbackDevice::MaskIntx(bool /*masked*/) {
  return Err(Errc::kUnsupported, "loopback INTx");
}

Result<void> LoopbackDevice::SetIntxUnmask(int /*unmask*/) {
  return Err(Errc::kUnsupported, "loopback INTx");
}

Result<void> LoopbackDevice::Reset() {
  ++resets;
  const MutexLock lock(vdev_->lock());
  vdev_->Reset();
  return {};
}

}  // namespace postern::dsa
