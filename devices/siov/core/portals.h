#pragma once

// Portals: BAR 2 of a Vdev: which of its pages are mapped, which trap and gather, and which are
// sinks (ignore stores, read as all-ones).
//
//   Portals portals(layout, backend, [&](std::uint32_t queue, SubmitResult why) { ... });
//   Bar bar = TRY(Bar::Create(kMem64Prefetchable, portals.bytes(), TRY(portals.Open(mode))));
//
// Tiles: pages of one kind next to each other are one tile, so one memory slot or one bus range.
// Polled pages of different queues are never of one tile: one queue's can then become trapped while
// the others stay mapped throughout.
//
// Ownership: borrows the backend. Threads: with the function's lock; counters from any thread.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "devices/pci/bar.h"
#include "devices/siov/core/backend.h"
#include "devices/siov/core/personality.h"
#include "devices/siov/core/trapped_portal.h"
#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"

namespace postern::siov {

class Portals {
 public:
  static constexpr std::uint32_t kPageSize = TrappedPortal::kPageSize;
  // A descriptor that was stored by exits was not accepted.
  using Refused = std::function<void(std::uint32_t queue, SubmitResult why)>;
  // Makes tile `index` of the BAR, which is pages, a trapped one.
  using TrapTile = std::function<Result<void>(std::size_t index, const pci::Trapped& tile)>;

  Portals(const VdevLayout& layout, Backend& backend, Refused refused);

  // 1..64 queues, 1..32 pages a queue, at least one of them a portal.
  [[nodiscard]] static bool Accepts(const VdevLayout& layout);

  // Of the BAR: a power of two.
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  // Once. kInvalidArgument where the backend gives something else than a page.
  [[nodiscard]] Result<std::vector<pci::Tile>> Open(PortalMode mode);
  // `queue` is one of the layout's (CHECK).
  [[nodiscard]] PortalMode mode(std::uint32_t queue) const;

  // All mapped pages of a queue trap from now on. `tiles` are the BAR's. Not for pages that share a
  // tile with another queue's (kUnsupported).
  [[nodiscard]] Result<void> Trap(std::uint32_t queue, std::span<const pci::Tile> tiles,
                                  const TrapTile& trap);

  // 64 bytes at once, at `offset` in the BAR.
  void SubmitAt(std::uint64_t offset, const Descriptor& descriptor);
  void CountRefused(std::uint32_t queue);

  // What was gathered so far goes.
  void Clear();
  [[nodiscard]] std::vector<PartialSlot> Save() const;
  // After Clear. kBadFormat.
  [[nodiscard]] Result<void> Restore(std::span<const PartialSlot> partial);

  void ReportCounters(CounterSink& sink) const;

 private:
  class TileHandler final : public bus::MmioHandler {
   public:
    TileHandler(Portals& owner, std::uint64_t base) : owner_(owner), base_(base) {}
    void Read(std::uint64_t offset, std::span<std::byte> data) override;
    void Write(std::uint64_t offset, std::span<const std::byte> data) override;
    void WriteBlock(std::uint64_t offset, bus::Block data) override;

   private:
    Portals& owner_;
    const std::uint64_t base_;
  };
  struct Queue {
    PortalCounters counters;
    std::atomic<PortalMode> mode{PortalMode::kTrapped};
    std::vector<TrappedPortal> pages;  // sinks included
  };

  [[nodiscard]] bool IsPortal(std::uint64_t page) const;
  [[nodiscard]] std::uint64_t QueueOf(std::uint64_t page) const { return page / pages_per_queue_; }
  [[nodiscard]] bus::MmioHandler& HandlerAt(std::uint64_t offset);
  [[nodiscard]] bool Joins(const pci::Tile& last, const pci::Tile& next, PortalMode mode) const;
  void CountExit(std::uint64_t offset);
  void Store(std::uint64_t offset, std::span<const std::byte> data);
  void Submit(std::uint32_t queue, const Descriptor& descriptor);

  Backend& backend_;
  const Refused refused_;
  const std::uint32_t pages_per_queue_;
  const std::uint32_t portal_pages_;
  const std::uint64_t bytes_;
  std::vector<std::unique_ptr<Queue>> queues_;
  std::vector<std::unique_ptr<TileHandler>> handlers_;
  Counter sink_accesses_, misaligned_;
};

}  // namespace postern::siov
