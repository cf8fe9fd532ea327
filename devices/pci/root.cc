#include "devices/pci/root.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "devices/pci/placement.h"

namespace postern::pci {
namespace {

constexpr std::uint64_t kFourGiB = std::uint64_t{1} << 32;
// No x86 or Arm processor addresses more; it also keeps every sum of an address and a BAR size from
// wrapping.
constexpr std::uint64_t kMaxAddress = std::uint64_t{1} << 52;

constexpr Identity kBridgeIdentity{
    .vendor = 0x1b36, .device = 0x0008, .revision = 0, .class_code = kClassHostBridge};

bool WindowFits(const Window& window, std::uint64_t limit) {
  return window.size <= limit && window.base <= limit - window.size;
}

const char* KindName(BarKind kind) {
  switch (kind) {
    case BarKind::kMem32:
      return "mem32";
    case BarKind::kMem32Prefetchable:
      return "mem32 prefetchable";
    case BarKind::kMem64:
      return "mem64";
    case BarKind::kMem64Prefetchable:
      return "mem64 prefetchable";
    case BarKind::kIo:
      return "io";
  }
  return "?";
}

FunctionInfo InfoOf(Bdf where, PciFunction& function) {
  const MutexLock lock(function.lock());
  const ConfigSpace& config = function.config();
  FunctionInfo info{.bdf = where,
                    .name = function.name(),
                    .vendor = config.Get<std::uint16_t>(kVendorId),
                    .device = config.Get<std::uint16_t>(kDeviceId),
                    .class_code = config.Get<std::uint32_t>(kRevisionId) >> 8,
                    .bars = {}};
  for (std::size_t i = 0; i < function.bars().size(); ++i) {
    const std::optional<Bar>& bar = function.bars()[i];
    if (!bar) continue;
    BarInfo line{i, bar->kind(), function.BarAddress(i), bar->size(), bar->mapped().has_value(),
                 {}};
    for (const Tile& tile : bar->tiles()) {
      line.tiles.push_back({TileOffset(tile), TileLength(tile),
                            std::holds_alternative<Trapped>(tile), std::string(TileName(tile))});
    }
    info.bars.push_back(std::move(line));
  }
  return info;
}

}  // namespace

std::string Describe(const FunctionInfo& function) {
  std::string text =
      fmt::format("{} {:04x}:{:04x} class {:06x} {}\n", ToString(function.bdf), function.vendor,
                  function.device, function.class_code, function.name);
  for (const BarInfo& bar : function.bars) {
    const std::string name = bar.index == kRomIndex ? "ROM" : fmt::format("BAR{}", bar.index);
    text += fmt::format("  {} {} {:#x} size {:#x}{}\n", name, KindName(bar.kind), bar.address,
                        bar.size, bar.mapped ? "" : " (not decoded)");
    for (const TileInfo& tile : bar.tiles) {
      text += fmt::format("    {:#x}-{:#x} {} {}\n", tile.offset, tile.offset + tile.length - 1,
                          tile.trapped ? "trapped" : "mapped ", tile.name);
    }
  }
  return text;
}

Result<std::unique_ptr<PciRoot>> PciRoot::Create(const RootConfig& config, bus::Bus& memory,
                                                 bus::Bus* ports, const bus::Platform& platform) {
  const Windows& windows = config.windows;
  if (config.buses < 1 || config.buses > 256) return Err(Errc::kInvalidArgument, "PCI bus count");
  const std::uint64_t ecam_size = config.buses * kEcamBusSize;
  if (config.ecam.value % kEcamBusSize != 0 ||
      !WindowFits({config.ecam.value, ecam_size}, kMaxAddress)) {
    return Err(Errc::kInvalidArgument, "ECAM address");
  }
  if (!WindowFits(windows.memory32, kFourGiB) || !WindowFits(windows.memory64, kMaxAddress) ||
      !WindowFits(windows.io, 0x10000)) {
    return Err(Errc::kInvalidArgument, "PCI window");
  }
  std::unique_ptr<PciRoot> root(new PciRoot(config, memory, ports, platform));
  root->ecam_ = TRY(memory.Add(config.ecam.value, ecam_size, *root, root->lock_, "pci ecam"));
  root->bridge_ = std::make_unique<PciFunction>("host-bridge", kBridgeIdentity);
  const MutexLock lock(root->lock_);
  root->slots_[0] = root->bridge_.get();
  const MutexLock function_lock(root->bridge_->lock());
  root->bridge_->Attach(root->space_, Bdf{});
  return root;
}

PciRoot::PciRoot(const RootConfig& config, bus::Bus& memory, bus::Bus* ports,
                 const bus::Platform& platform)
    : config_(config), space_(config.windows, memory, ports, platform.pages, platform.doorbells) {}

PciRoot::~PciRoot() {
  const MutexLock lock(lock_);
  ecam_.Reset();
  for (const auto* functions : {&behind_, &slots_}) {
    for (PciFunction* function : *functions) {
      if (function == nullptr) continue;
      const MutexLock function_lock(function->lock());
      function->Detach();
    }
  }
  for (RootPort* port : ports_) {
    if (port != nullptr) port->JoinRoot(nullptr);
  }
}

std::optional<IntxInputs> PciRoot::InputsOf(std::size_t slot) const {
  if (!config_.intx) return std::nullopt;
  IntxInputs inputs{};
  for (std::size_t pin = 0; pin < inputs.size(); ++pin)
    inputs[pin] = (*config_.intx)[(slot + pin) % inputs.size()];
  return inputs;
}

std::optional<std::size_t> PciRoot::SlotOf(const RootPort& port) const {
  const auto found = std::ranges::find(ports_, &port);
  if (found == ports_.end()) return std::nullopt;
  return static_cast<std::size_t>(found - ports_.begin());
}

Result<Bdf> PciRoot::Insert(PciFunction& function, std::optional<std::uint8_t> slot) {
  if (slot && (*slot == 0 || *slot >= kSlots)) return Err(Errc::kInvalidArgument, "PCI slot");
  if (!slot) {
    const auto free = std::ranges::find(slots_, nullptr);
    if (free == slots_.end()) return Err(Errc::kExhausted, "PCI slots");
    slot = static_cast<std::uint8_t>(free - slots_.begin());
  }
  if (slots_[*slot] != nullptr) return Err(Errc::kOverlap, "PCI slot");
  const Bdf where{.device = *slot};
  {
    const MutexLock function_lock(function.lock());
    function.Attach(space_, where, InputsOf(*slot));
  }
  slots_[*slot] = &function;
  return where;
}

Result<Bdf> PciRoot::Add(PciFunction& function, std::optional<std::uint8_t> slot) {
  const MutexLock lock(lock_);
  return Insert(function, slot);
}

Result<Bdf> PciRoot::Add(RootPort& port, std::optional<std::uint8_t> slot) {
  const MutexLock lock(lock_);
  if (next_bus_ >= config_.buses) return Err(Errc::kExhausted, "PCI bus numbers");
  const Bdf where = TRY(Insert(port, slot));
  ports_[where.device] = &port;
  port.JoinRoot(this);
  const MutexLock port_lock(port.lock());
  port.PlaceBus(static_cast<std::uint8_t>(next_bus_++));
  return where;
}

Result<Bdf> PciRoot::Add(PciFunction& function, RootPort& behind) {
  const MutexLock lock(lock_);
  const std::optional<std::size_t> slot = SlotOf(behind);
  if (!slot) return Err(Errc::kNotFound, "root port");
  if (behind_[*slot] != nullptr) return Err(Errc::kOverlap, "slot of the root port");
  Bdf where{};
  {
    const MutexLock port_lock(behind.lock());
    where.bus = behind.secondary_bus();
  }
  {
    const MutexLock function_lock(function.lock());
    function.Attach(space_, where, InputsOf(*slot));
  }
  behind_[*slot] = &function;
  // The guest may look at once: the function is there.
  const MutexLock port_lock(behind.lock());
  behind.SetOccupied(true);
  return where;
}

PciFunction* PciRoot::Behind(const RootPort& port) {
  const MutexLock lock(lock_);
  const std::optional<std::size_t> slot = SlotOf(port);
  return slot ? behind_[*slot] : nullptr;
}

Result<void> PciRoot::Remove(PciFunction& function) {
  {
    const MutexLock lock(lock_);
    const auto on_bus = std::ranges::find(slots_, &function);
    const auto behind = std::ranges::find(behind_, &function);
    if (on_bus != slots_.end() && on_bus != slots_.begin()) {
      const auto slot = static_cast<std::size_t>(on_bus - slots_.begin());
      if (behind_[slot] != nullptr) return Err(Errc::kBadState, "root port is occupied");
      if (RootPort* port = std::exchange(ports_[slot], nullptr)) port->JoinRoot(nullptr);
      *on_bus = nullptr;
    } else if (behind == behind_.end()) {
      return Err(Errc::kNotFound, "PCI function");
    }
    {
      const MutexLock function_lock(function.lock());
      function.Detach();
    }
    if (behind != behind_.end()) {
      *behind = nullptr;
      RootPort& port = *ports_[static_cast<std::size_t>(behind - behind_.begin())];
      const MutexLock port_lock(port.lock());
      port.SetOccupied(false);
    }
  }
  // A vCPU may have found one of its ranges and still wait for its lock.
  space_.memory().Drain();
  if (space_.ports() != nullptr) space_.ports()->Drain();
  return {};
}

Result<void> PciRoot::AssignAddresses() {
  const MutexLock lock(lock_);
  Placement placement(config_.windows);
  for (PciFunction* function : slots_) {
    if (function != nullptr) placement.AddBars(*function);
  }
  for (RootPort* port : ports_) {
    if (port != nullptr) placement.AddWindows(*port);
  }
  return placement.Place();
}

std::vector<FunctionInfo> PciRoot::Functions() {
  std::vector<FunctionInfo> functions;
  const MutexLock lock(lock_);
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    if (slots_[slot] == nullptr) continue;
    functions.push_back(InfoOf({.device = static_cast<std::uint8_t>(slot)}, *slots_[slot]));
    if (behind_[slot] == nullptr) continue;
    std::uint8_t bus = 0;
    {
      const MutexLock port_lock(ports_[slot]->lock());
      bus = ports_[slot]->secondary_bus();
    }
    functions.push_back(InfoOf({.bus = bus}, *behind_[slot]));
  }
  return functions;
}

// The bus holds lock_ during Read and Write. ECAM: bus 27:20, device 19:15, function 14:12,
// register 11:0 (PCI Express 3.0 7.2.2).
void PciRoot::Read(std::uint64_t offset, std::span<std::byte> data) {
  PciFunction* function = At(offset);
  if (function == nullptr) {
    absent_.Add();
    std::ranges::fill(data, std::byte{0xff});
    return;
  }
  const MutexLock function_lock(function->lock());
  function->ReadConfig(static_cast<std::uint32_t>(offset % kConfigEnd), data);
}

void PciRoot::Write(std::uint64_t offset, std::span<const std::byte> data) {
  PciFunction* function = At(offset);
  if (function == nullptr) {
    absent_.Add();
    return;
  }
  {
    const MutexLock function_lock(function->lock());
    function->WriteConfig(static_cast<std::uint32_t>(offset % kConfigEnd), data);
  }
  if (offset < kEcamBusSize) ResetBehind(offset >> 15);
}

// A guest's secondary bus reset. Here and not in the port, so that no two functions' locks are
// held together.
void PciRoot::ResetBehind(std::size_t slot) {
  RootPort* const port = ports_[slot];
  if (port == nullptr) return;
  {
    const MutexLock port_lock(port->lock());
    if (!port->TakeBusReset()) return;
  }
  if (PciFunction* function = behind_[slot]) {
    const MutexLock function_lock(function->lock());
    function->Reset();
  }
}

PciFunction* PciRoot::At(std::uint64_t offset) const {
  const std::uint64_t bus = offset >> 20;
  const std::size_t device = offset >> 15 & 0x1f;
  if ((offset >> 12 & 0x7) != 0) return nullptr;
  if (bus == 0) return slots_[device];
  // A link has one device on it.
  if (device != 0) return nullptr;
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    RootPort* const port = ports_[slot];
    if (port == nullptr) continue;
    const MutexLock port_lock(port->lock());
    if (port->secondary_bus() == bus) return behind_[slot];
  }
  return nullptr;
}

void PciRoot::ReportCounters(CounterSink& sink) const {
  sink.Add("pci_absent_accesses", absent_.Get());
}

}  // namespace postern::pci
