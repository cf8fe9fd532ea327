// How a VfioFunction is made from a device.

#include <sys/epoll.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include <fmt/core.h>

#include "src/base/log.h"
#include "vfio/function.h"

namespace postern::vfio {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMaxRom = 16 << 20;  // PCI 3.0 6.2.5.2
constexpr std::size_t kChunk = 256;

Result<std::vector<std::uint8_t>> ReadConfigSpace(HostDevice& device) {
  const std::uint64_t size = device.info().regions[kConfigRegion].size;
  if (size < pci::kHeaderEnd) return Err(Errc::kUnsupported, "config space below 64 bytes");
  std::vector<std::uint8_t> config(size < pci::kConfigEnd ? pci::kConventionalEnd
                                                          : pci::kConfigEnd);
  // The kernel's sample devices have 255 bytes: the rest is 0.
  const std::size_t there = std::min<std::uint64_t>(size, config.size());
  for (std::size_t at = 0; at < there; at += kChunk) {
    const std::span part = std::span(config).subspan(at, std::min(kChunk, there - at));
    TRY(device.ReadRegion(kConfigRegion, at, std::as_writable_bytes(part)));
  }
  return config;
}

bool HasEvent(const HostDevice& device, std::uint32_t irq) {
  const IrqInfo& info = device.info().irqs[irq];
  return info.count >= 1 && info.eventfd;
}

}  // namespace

Outcome<std::unique_ptr<VfioFunction>> VfioFunction::Create(std::unique_ptr<HostDevice> device,
                                                            const bus::Platform& platform,
                                                            EventLoop& loop, Options options,
                                                            std::function<void()> on_request) {
  if (options.id.empty()) options.id = device->info().name;
  const std::string id = options.id;
  auto parts = Examine(std::move(device), options);
  if (!parts) return tl::unexpected<Failure>(parts.error());
  std::unique_ptr<VfioFunction> function(new VfioFunction(
      std::move(*parts), platform, loop, std::move(options), std::move(on_request)));
  if (Result<void> done = function->Init(platform.interrupts); !done)
    return HostFailure(fmt::format("device '{}'", id), done.error());
  return function;
}

Outcome<VfioFunction::Parts> VfioFunction::Examine(std::unique_ptr<HostDevice> device,
                                                   const Options& options) {
  for (const unsigned bar : options.trap_bars) {
    if (bar >= pci::kBarCount) {
      return ConfigFailure(fmt::format("device '{}': there is no BAR {} to trap", options.id, bar),
                           "BARs are 0 to 5");
    }
  }
  auto config = ReadConfigSpace(*device);
  if (!config) {
    return HostFailure(fmt::format("device '{}': cannot read its config space", options.id),
                       config.error());
  }
  Parts parts;
  parts.shapes = ShapeBars(*config, device->info());
  Result<ConfigPlan> plan = PlanConfig(*config, device->info(), parts.shapes);
  if (!plan) {
    if (plan.error().code == Errc::kUnsupported) {
      return ConfigFailure(fmt::format("device '{}': {}", options.id, plan.error().op),
                           "assign the devices behind it");
    }
    return HostFailure(fmt::format("device '{}'", options.id), plan.error());
  }
  parts.plan = std::move(*plan);
  parts.device = std::move(device);
  return parts;
}

VfioFunction::VfioFunction(Parts parts, const bus::Platform& platform, EventLoop& loop,
                           Options options, std::function<void()> on_request)
    : PciFunction(options.id, {}),
      device_(std::move(parts.device)),
      loop_(loop),
      options_(std::move(options)),
      shapes_(std::move(parts.shapes)),
      plan_(std::move(parts.plan)),
      on_request_(std::move(on_request)) {
  if (options_.peers != nullptr)
    peer_ = options_.peers->Join(device_->address_space(), options_.id);
  const bool intx = options_.intx && plan_.interrupt_pin && HasEvent(*device_, kIntxIrq);
  interrupts_ = std::make_unique<Interrupts>(*device_, platform.interrupts,
                                             intx ? options_.intx_gsi : std::nullopt,
                                             [this](const Error& error) {
                                               if (error.sys_errno == ENODEV) Lose(Loss::kVanished);
                                             });
}

Result<void> VfioFunction::Init(bus::InterruptSource& interrupts) {
  {
    const MutexLock hold(lock());
    TRY(AddParts(interrupts));
  }
  TRY(WatchSignals());
  // Lost already: whoever noticed had no signal to give yet.
  if (lost()) loss_signal_->event().Signal();
  return {};
}

Result<void> VfioFunction::AddParts(bus::InterruptSource& interrupts) {
  if (plan_.dropped + plan_.refused + shapes_.refused != 0) {
    LOG_INFO("vfio", "{}: {} capabilities not shown, {} refused, {} BARs refused", name(),
             plan_.dropped, plan_.refused, shapes_.refused);
  }
  config().Load(plan_.image);
  if (device_->info().can_reset) {
    // A clean state. Who used it before may have left it in any, but a device that cannot be reset
    // just now may still work.
    if (Result<void> reset = ResetDevice(); !reset) {
      reset_failures_.Add();
      LOG_WARN("vfio", "{}: reset before use failed: {}", name(), Describe(reset.error()));
    }
  }
  TRY(PushCommand());
  TRY(AddBars(interrupts));
  if (options_.rom_bar) AddRomIfAny();
  interrupts_->Follow(msix(), msi());
  interrupts_->Resume();
  if (interrupts_->has_intx()) {
    const std::uint32_t gsi = *options_.intx_gsi;
    config().Set<std::uint8_t>(pci::kInterruptPin, 1);
    config().Set<std::uint8_t>(pci::kInterruptLine,
                               static_cast<std::uint8_t>(std::min<std::uint32_t>(gsi, 0xff)));
  }
  return {};
}

Result<void> VfioFunction::AddBars(bus::InterruptSource& interrupts) {
  std::unique_ptr<pci::MsixTable> table;
  if (plan_.msix) table = TRY(pci::MsixTable::Create(interrupts, plan_.msix->vectors));
  for (const std::optional<BarShape>& shape : shapes_.bars) {
    if (shape) TRY(AddTiledBar(*shape, table.get()));
  }
  if (table != nullptr) TRY(AddMsix(std::move(table), plan_.msix->place, plan_.msix->at));
  if (plan_.msi) {
    auto capability = TRY(pci::MsiCapability::Create(interrupts, plan_.msi->options));
    TRY(AddMsi(std::move(capability), plan_.msi->at));
  }
  return {};
}

Result<void> VfioFunction::AddTiledBar(const BarShape& shape, pci::MsixTable* table) {
  std::vector<Hole> holes;
  if (table != nullptr) {
    const MsixPlan& msix = *plan_.msix;
    // The whole of the device's table, also where the guest is shown fewer vectors: it never
    // reaches the device.
    if (msix.place.table_bar == shape.index) {
      holes.push_back(
          {msix.place.table_offset, pci::MsixTable::TableBytes(msix.device_vectors), true});
    }
    if (msix.place.pba_bar == shape.index) {
      holes.push_back(
          {msix.place.pba_offset, pci::MsixTable::PbaBytes(msix.device_vectors), false});
    }
  }
  const RegionInfo& region = device_->info().regions[shape.index];
  const bool trap = std::ranges::count(options_.trap_bars, shape.index) != 0;
  if (region.areas.size() > kMaxAreas) {
    LOG_WARN("vfio", "{}: BAR {} has {} mappable areas: trapped", name(), shape.index,
             region.areas.size());
  }
  std::vector<pci::Tile> tiles;
  for (const Piece& piece : PlanPieces(shape, region, holes, trap))
    tiles.push_back(TileOf(shape, piece, table));
  return AddBar(shape.index, TRY(pci::Bar::Create(shape.kind, shape.size, std::move(tiles))));
}

pci::Tile VfioFunction::TileOf(const BarShape& shape, const Piece& piece, pci::MsixTable* table) {
  switch (piece.use) {
    case Piece::Use::kTable:
      return pci::Trapped{piece.offset, piece.length, &table->table(), "msix-table"};
    case Piece::Use::kPba:
      return pci::Trapped{piece.offset, piece.length, &table->pba(), "msix-pba"};
    case Piece::Use::kMapped:
      if (auto pages = MapPiece(shape, piece)) return *pages;
      break;
    case Piece::Use::kDevice:
    case Piece::Use::kBeyond:
      break;
  }
  RegionOwner& owner = *this;
  tiles_.push_back(
      std::make_unique<RegionTile>(owner, shape.index, piece.offset, bar_counters_[shape.index]));
  const bool beyond = piece.use == Piece::Use::kBeyond;
  return pci::Trapped{piece.offset, piece.length, tiles_.back().get(),
                      beyond ? "beyond" : "device"};
}

std::optional<pci::Tile> VfioFunction::MapPiece(const BarShape& shape, const Piece& piece) {
  auto mapping = device_->MapRegion(shape.index, {piece.offset, piece.length});
  if (!mapping || (*mapping)->pages().length != piece.length) {
    unmappable_pieces_.Add();
    LOG_WARN("vfio", "{}: BAR {} at {:#x} cannot be mapped and is trapped: {}", name(), shape.index,
             piece.offset, mapping ? "wrong length" : Describe(mapping.error()));
    return std::nullopt;
  }
  mappings_.push_back(std::move(*mapping));
  const bool writable = device_->info().regions[shape.index].writable;
  return pci::Pages{piece.offset, mappings_.back()->pages(),
                    writable ? memory::Access::kReadWrite : memory::Access::kRead, "mapped"};
}

// The contents are read once: a ROM does not change, and reading it may disturb the device (some
// share the decoder with a BAR).
void VfioFunction::AddRomIfAny() {
  const RegionInfo& region = device_->info().regions[kRomRegion];
  if (region.size == 0 || !region.readable) return;
  const char* refused = nullptr;
  if (region.size > kMaxRom) {
    refused = "too large";
  } else {
    const std::uint64_t size = std::bit_ceil(std::max(region.size, kPage));
    auto pages = Mmap::Create(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (!pages) {
      refused = "no memory";
    } else if (!ReadRom(std::span(pages->data(), region.size))) {
      refused = "cannot be read";
    } else if (region.size < 2 || pages->data()[0] != std::byte{0x55} ||
               pages->data()[1] != std::byte{0xaa}) {
      refused = "without signature";
    } else {
      const bus::HostPages host{
          .fd = -1, .offset = 0, .address = pages->data(), .length = pages->size()};
      auto rom = pci::Bar::Create(pci::BarKind::kMem32, size,
                                  {pci::Pages{0, host, memory::Access::kRead, "rom"}});
      if (!rom || !AddRom(std::move(*rom))) refused = "does not fit";
      rom_ = std::move(*pages);
    }
  }
  if (refused == nullptr) return;
  rom_refused_.Add();
  LOG_WARN("vfio", "{}: option ROM not offered: {}", name(), refused);
}

// The kernel lets a ROM be read only while memory is decoded.
Result<void> VfioFunction::ReadRom(std::span<std::byte> to) {
  const std::array<std::byte, 2> on{std::byte{pci::COMMAND::MemorySpace::kMask}, std::byte{0}};
  const std::array<std::byte, 2> off{};
  TRY(WriteDevice(pci::kCommand, on));
  Result<void> done;
  for (std::size_t at = 0; at < to.size() && done; at += kPage) {
    done = device_->ReadRegion(kRomRegion, at,
                               to.subspan(at, std::min<std::size_t>(kPage, to.size() - at)));
  }
  TRY(WriteDevice(pci::kCommand, off));
  return done;
}

Result<void> VfioFunction::WatchSignals() {
  TRY(Watch(loss_signal_, kIrqCount, [this] { OnLost(); }));
  if (const EventFd* unmask = interrupts_->unmask_by_hand()) {
    Result<void> watched;
    loop_.RunSync([&] { watched = loop_.Watch(unmask->fd(), EPOLLIN, end_of_intx_); });
    TRY(watched);
  }
  if (HasEvent(*device_, kErrorIrq)) {
    TRY(Watch(error_signal_, kErrorIrq, [this] {
      const MutexLock hold(lock());
      aer_events_.Add();
      Lose(Loss::kError);
    }));
  }
  if (HasEvent(*device_, kRequestIrq)) {
    TRY(Watch(request_signal_, kRequestIrq, [this] {
      requests_.Add();
      // The kernel repeats itself until the device is given back.
      if (auto once = std::exchange(on_request_, nullptr)) once();
    }));
  }
  return {};
}

// `irq`: whose event it is; kIrqCount: our own.
Result<void> VfioFunction::Watch(std::unique_ptr<Signal>& slot, std::uint32_t irq,
                                 std::function<void()> function) {
  auto signal = std::make_unique<Signal>(TRY(EventFd::Create()), std::move(function));
  const int fd = signal->event().fd();
  if (irq < kIrqCount) {
    const std::array<int, 1> event{fd};
    if (Result<void> set = device_->SetVectors(irq, 0, event); !set) {
      LOG_WARN("vfio", "{}: event {} not available: {}", name(), irq, Describe(set.error()));
      return {};
    }
  }
  Result<void> watched;
  loop_.RunSync([&] { watched = loop_.Watch(fd, EPOLLIN, *signal); });
  TRY(watched);
  slot = std::move(signal);
  return {};
}

void VfioFunction::ReportCounters(CounterSink& sink) const {
  PciFunction::ReportCounters(sink);
  interrupts_->ReportCounters(sink);
  sink.Add("vfio_config_reads", config_reads_.Get());
  sink.Add("vfio_config_writes", config_writes_.Get());
  for (std::size_t i = 0; i < bar_counters_.size(); ++i) {
    const RegionCounters& bar = bar_counters_[i];
    sink.Add(fmt::format("vfio_bar{}_reads", i), bar.reads.Get());
    sink.Add(fmt::format("vfio_bar{}_writes", i), bar.writes.Get());
    sink.Add(fmt::format("vfio_bar{}_refused", i), bar.refused.Get());
  }
  sink.Add("vfio_device_errors", device_errors_.Get());
  sink.Add("vfio_resets", resets_.Get());
  sink.Add("vfio_reset_failures", reset_failures_.Get());
  sink.Add("vfio_error_events", aer_events_.Get());
  sink.Add("vfio_requests", requests_.Get());
  sink.Add("vfio_losses", losses_.Get());
  sink.Add("vfio_unmappable_pieces", unmappable_pieces_.Get());
  sink.Add("vfio_p2p_maps", peer_ != nullptr ? peer_->maps() : 0);
  sink.Add("vfio_p2p_refused", peer_ != nullptr ? peer_->refused() : 0);
  sink.Add("vfio_rom_refused", rom_refused_.Get());
  sink.Add("vfio_capabilities_dropped", plan_.dropped);
  sink.Add("vfio_capabilities_refused", plan_.refused);
  sink.Add("vfio_bars_refused", shapes_.refused);
}

}  // namespace postern::vfio
