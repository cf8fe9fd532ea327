#include "devices/siov/core/portals.h"

#include <algorithm>
#include <bit>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "src/base/check.h"

namespace postern::siov {
namespace {

constexpr std::uint32_t kMaxPagesPerQueue = 32;

pci::Tile Longer(const pci::Tile& tile, std::uint64_t more) {
  pci::Tile longer = tile;
  if (auto* trapped = std::get_if<pci::Trapped>(&longer)) {
    trapped->length += more;
  } else {
    std::get<pci::Pages>(longer).host.length += more;
  }
  return longer;
}

// Whether `next` goes on where `last` ends, in its file and in this process.
bool Continues(const bus::HostPages& last, const bus::HostPages& next) {
  const bool same_file =
      last.fd == next.fd && (last.fd < 0 || last.offset + last.length == next.offset);
  const bool same_memory = last.address == nullptr ? next.address == nullptr
                                                   : last.address + last.length == next.address;
  return same_file && same_memory && (last.fd >= 0 || last.address != nullptr);
}

}  // namespace

bool Portals::Accepts(const VdevLayout& layout) {
  if (layout.queues == 0 || layout.queues > kMaxQueues || layout.pages_per_queue == 0 ||
      layout.pages_per_queue > kMaxPagesPerQueue) {
    return false;
  }
  const std::uint64_t pages = (std::uint64_t{1} << layout.pages_per_queue) - 1;
  return layout.portal_pages != 0 && (layout.portal_pages & ~pages) == 0;
}

Portals::Portals(const VdevLayout& layout, Backend& backend, Refused refused)
    : backend_(backend),
      refused_(std::move(refused)),
      pages_per_queue_(layout.pages_per_queue),
      portal_pages_(layout.portal_pages),
      bytes_(std::bit_ceil(std::uint64_t{layout.queues} * layout.pages_per_queue * kPageSize)) {
  CHECK(Accepts(layout));
  for (std::uint32_t q = 0; q < layout.queues; ++q) {
    auto queue = std::make_unique<Queue>();
    queue->pages.assign(pages_per_queue_, TrappedPortal(queue->counters));
    queues_.push_back(std::move(queue));
  }
}

bool Portals::IsPortal(std::uint64_t page) const {
  return QueueOf(page) < queues_.size() && (portal_pages_ >> (page % pages_per_queue_) & 1U) != 0;
}

PortalMode Portals::mode(std::uint32_t queue) const {
  CHECK(queue < queues_.size());
  return queues_[queue]->mode.load(std::memory_order_relaxed);
}

bus::MmioHandler& Portals::HandlerAt(std::uint64_t offset) {
  handlers_.push_back(std::make_unique<TileHandler>(*this, offset));
  return *handlers_.back();
}

bool Portals::Joins(const pci::Tile& last, const pci::Tile& next, PortalMode mode) const {
  if (last.index() != next.index()) return false;
  const auto* pages = std::get_if<pci::Pages>(&next);
  if (pages == nullptr) return true;
  const std::uint64_t first = pci::TileOffset(last) / kPageSize;
  const bool one_queue = QueueOf(first) == QueueOf(pages->offset / kPageSize);
  return (one_queue || mode == PortalMode::kDirect) &&
         Continues(std::get<pci::Pages>(last).host, pages->host);
}

Result<std::vector<pci::Tile>> Portals::Open(PortalMode mode) {
  std::vector<pci::Tile> tiles;
  for (std::uint64_t page = 0; page < bytes_ / kPageSize; ++page) {
    const std::uint64_t offset = page * kPageSize;
    pci::Tile tile = pci::Trapped{offset, kPageSize, nullptr, "portal trapped"};
    if (mode != PortalMode::kTrapped && IsPortal(page)) {
      const bus::HostPages host =
          TRY(backend_.OpenPortal(static_cast<std::uint32_t>(QueueOf(page)),
                                  static_cast<std::uint32_t>(page % pages_per_queue_), mode));
      if (host.length != kPageSize) return Err(Errc::kInvalidArgument, "portal page of a backend");
      tile = pci::Pages{offset, host, memory::Access::kReadWrite,
                        mode == PortalMode::kDirect ? "portal direct" : "portal polled"};
    }
    if (!tiles.empty() && Joins(tiles.back(), tile, mode)) {
      tiles.back() = Longer(tiles.back(), kPageSize);
    } else {
      tiles.push_back(tile);
    }
  }
  for (pci::Tile& tile : tiles) {
    if (auto* trapped = std::get_if<pci::Trapped>(&tile))
      trapped->handler = &HandlerAt(trapped->offset);
  }
  for (const auto& queue : queues_) queue->mode.store(mode, std::memory_order_relaxed);
  return tiles;
}

Result<void> Portals::Trap(std::uint32_t queue, std::span<const pci::Tile> tiles,
                           const TrapTile& trap) {
  CHECK(queue < queues_.size());
  const std::uint64_t begin = std::uint64_t{queue} * pages_per_queue_ * kPageSize;
  const std::uint64_t end = begin + std::uint64_t{pages_per_queue_} * kPageSize;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const std::uint64_t offset = pci::TileOffset(tiles[i]);
    const std::uint64_t length = pci::TileLength(tiles[i]);
    if (!std::holds_alternative<pci::Pages>(tiles[i]) || offset >= end || offset + length <= begin)
      continue;
    if (offset < begin || offset + length > end)
      return Err(Errc::kUnsupported, "trap one queue's portal of several in one mapping");
    TRY(trap(i, {offset, length, &HandlerAt(offset), "portal trapped"}));
  }
  queues_[queue]->mode.store(PortalMode::kTrapped, std::memory_order_relaxed);
  return {};
}

void Portals::TileHandler::Read(std::uint64_t offset, std::span<std::byte> data) {
  owner_.CountExit(base_ + offset);
  std::ranges::fill(data, std::byte{0xff});
}

void Portals::TileHandler::Write(std::uint64_t offset, std::span<const std::byte> data) {
  owner_.CountExit(base_ + offset);
  owner_.Store(base_ + offset, data);
}

void Portals::TileHandler::WriteBlock(std::uint64_t offset, bus::Block data) {
  Descriptor descriptor{};
  std::ranges::copy(data, descriptor.begin());
  owner_.SubmitAt(base_ + offset, descriptor);
}

void Portals::CountExit(std::uint64_t offset) {
  const std::uint64_t page = offset / kPageSize;
  if (IsPortal(page)) {
    queues_[QueueOf(page)]->counters.exits.Add();
  } else {
    sink_accesses_.Add();
  }
}

void Portals::Store(std::uint64_t offset, std::span<const std::byte> data) {
  const std::uint64_t page = offset / kPageSize;
  if (!IsPortal(page)) return;
  const auto queue = static_cast<std::uint32_t>(QueueOf(page));
  TrappedPortal& portal = queues_[queue]->pages[page % pages_per_queue_];
  const Descriptor* whole = portal.Store(static_cast<std::uint32_t>(offset % kPageSize), data);
  if (whole != nullptr) Submit(queue, *whole);
}

void Portals::SubmitAt(std::uint64_t offset, const Descriptor& descriptor) {
  const std::uint64_t page = offset / kPageSize;
  if (!IsPortal(page)) {
    sink_accesses_.Add();
    return;
  }
  if (offset % kDescriptorSize != 0) {
    misaligned_.Add();
    return;
  }
  const auto queue = static_cast<std::uint32_t>(QueueOf(page));
  queues_[queue]->counters.exits.Add();
  queues_[queue]->counters.whole_stores.Add();
  queues_[queue]->pages[page % pages_per_queue_].Overwrite(
      static_cast<std::uint32_t>(offset % kPageSize));
  Submit(queue, descriptor);
}

void Portals::Submit(std::uint32_t queue, const Descriptor& descriptor) {
  const SubmitResult result = backend_.Submit(queue, descriptor);
  if (result == SubmitResult::kAccepted) {
    queues_[queue]->counters.submitted.Add();
    return;
  }
  CountRefused(queue);
  refused_(queue, result);
}

void Portals::CountRefused(std::uint32_t queue) {
  if (queue < queues_.size()) queues_[queue]->counters.refused.Add();
}

void Portals::Clear() {
  for (const auto& queue : queues_) {
    for (TrappedPortal& page : queue->pages) page.Clear();
  }
}

std::vector<PartialSlot> Portals::Save() const {
  std::vector<PartialSlot> partial;
  for (std::uint32_t q = 0; q < queues_.size(); ++q) {
    for (std::uint32_t p = 0; p < pages_per_queue_; ++p) queues_[q]->pages[p].Save(q, p, partial);
  }
  return partial;
}

Result<void> Portals::Restore(std::span<const PartialSlot> partial) {
  for (const PartialSlot& slot : partial) {
    if (slot.queue >= queues_.size() || slot.page >= pages_per_queue_ ||
        !IsPortal(std::uint64_t{slot.queue} * pages_per_queue_ + slot.page)) {
      return Err(Errc::kBadFormat, "partial slot of no portal");
    }
    TRY(queues_[slot.queue]->pages[slot.page].Restore(slot));
  }
  return {};
}

void Portals::ReportCounters(CounterSink& sink) const {
  for (std::size_t q = 0; q < queues_.size(); ++q) {
    const std::string prefix = "queue" + std::to_string(q) + "_portal_";
    const PortalCounters& c = queues_[q]->counters;
    const std::pair<std::string_view, std::uint64_t> rows[] = {
        {"exits", c.exits.Get()},
        {"stores", c.stores.Get()},
        {"whole_stores", c.whole_stores.Get()},
        {"submitted", c.submitted.Get()},
        {"refused", c.refused.Get()},
        {"overwritten_bytes", c.overwritten_bytes.Get()},
        {"straddles", c.straddles.Get()},
        {"partial_slots", c.partial_slots.load(std::memory_order_relaxed)},
    };
    for (const auto& [name, value] : rows) sink.Add(prefix + std::string(name), value);
  }
  sink.Add("portal_sink_accesses", sink_accesses_.Get());
  sink.Add("portal_misaligned", misaligned_.Get());
}

}  // namespace postern::siov
