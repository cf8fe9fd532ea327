#include "devices/pci/root.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace postern::pci {
namespace {

constexpr std::uint64_t kPageSize = 4096;
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

// First fit in one window around what is taken.
class Allocator {
 public:
  explicit Allocator(const Window& window) : window_(window) {}
  void Occupy(std::uint64_t base, std::uint64_t size) {
    used_.push_back({base, size});
    std::ranges::sort(used_, {}, &Window::base);
  }
  std::optional<std::uint64_t> Place(std::uint64_t size, std::uint64_t granule) {
    const std::uint64_t align = std::max(size, granule);
    // 0 in a base address register means "not placed".
    std::uint64_t at = AlignUp(std::max<std::uint64_t>(window_.base, 1), align);
    for (const Window& used : used_) {
      if (at + align > used.base && at < used.base + used.size)
        at = AlignUp(used.base + used.size, align);
    }
    if (!window_.Contains(at, align)) return std::nullopt;
    Occupy(at, align);
    return at;
  }

 private:
  static std::uint64_t AlignUp(std::uint64_t value, std::uint64_t align) {
    return (value + align - 1) & ~(align - 1);
  }
  Window window_;
  std::vector<Window> used_;
};

struct Request {
  PciFunction* function;
  std::size_t index;
  BarKind kind;
  std::uint64_t size;
  std::uint64_t address = 0;
};

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
  if (config.ecam.value % kEcamSize != 0 ||
      !WindowFits({config.ecam.value, kEcamSize}, kMaxAddress)) {
    return Err(Errc::kInvalidArgument, "ECAM address");
  }
  if (!WindowFits(windows.memory32, kFourGiB) || !WindowFits(windows.memory64, kMaxAddress) ||
      !WindowFits(windows.io, 0x10000)) {
    return Err(Errc::kInvalidArgument, "PCI window");
  }
  std::unique_ptr<PciRoot> root(new PciRoot(config, memory, ports, platform));
  root->ecam_ = TRY(memory.Add(config.ecam.value, kEcamSize, *root, root->lock_, "pci ecam"));
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
  for (PciFunction* function : slots_) {
    if (function == nullptr) continue;
    const MutexLock function_lock(function->lock());
    function->Detach();
  }
}

Result<Bdf> PciRoot::Add(PciFunction& function, std::optional<std::uint8_t> slot) {
  if (slot && (*slot == 0 || *slot >= kSlots)) return Err(Errc::kInvalidArgument, "PCI slot");
  const MutexLock lock(lock_);
  if (!slot) {
    const auto free = std::ranges::find(slots_, nullptr);
    if (free == slots_.end()) return Err(Errc::kExhausted, "PCI slots");
    slot = static_cast<std::uint8_t>(free - slots_.begin());
  }
  if (slots_[*slot] != nullptr) return Err(Errc::kOverlap, "PCI slot");
  const Bdf where{.device = *slot};
  {
    const MutexLock function_lock(function.lock());
    function.Attach(space_, where);
  }
  slots_[*slot] = &function;
  return where;
}

Result<void> PciRoot::Remove(PciFunction& function) {
  {
    const MutexLock lock(lock_);
    const auto slot = std::ranges::find(slots_, &function);
    if (slot == slots_.end() || &function == bridge_.get()) {
      return Err(Errc::kNotFound, "PCI function");
    }
    *slot = nullptr;
    const MutexLock function_lock(function.lock());
    function.Detach();
  }
  // A vCPU may have found one of its ranges and still wait for its lock.
  space_.memory().Drain();
  if (space_.ports() != nullptr) space_.ports()->Drain();
  return {};
}

Result<void> PciRoot::AssignAddresses() {
  const MutexLock lock(lock_);
  Allocator low(config_.windows.memory32);
  Allocator high(config_.windows.memory64);
  Allocator io(config_.windows.io);
  std::vector<Request> requests;
  for (PciFunction* function : slots_) {
    if (function == nullptr) continue;
    const MutexLock function_lock(function->lock());
    for (std::size_t i = 0; i < function->bars().size(); ++i) {
      const std::optional<Bar>& bar = function->bars()[i];
      if (!bar) continue;
      if (const std::uint64_t at = function->BarAddress(i); at != 0) {
        // The registers are the guest's: what lies outside the windows blocks nothing.
        const Windows& windows = config_.windows;
        if (bar->kind() == BarKind::kIo) {
          if (windows.io.Contains(at, bar->size())) io.Occupy(at, bar->size());
        } else if (windows.memory32.Contains(at, bar->size())) {
          low.Occupy(at, bar->size());
        } else if (windows.memory64.Contains(at, bar->size())) {
          high.Occupy(at, bar->size());
        }
      } else {
        requests.push_back({function, i, bar->kind(), bar->size()});
      }
    }
  }
  // Largest first: naturally aligned powers of two then leave no holes.
  std::ranges::stable_sort(requests, std::ranges::greater{}, &Request::size);
  for (Request& request : requests) {
    std::optional<std::uint64_t> at;
    if (request.kind == BarKind::kIo) {
      at = io.Place(request.size, 4);
    } else {
      if (Is64Bit(request.kind)) at = high.Place(request.size, kPageSize);
      if (!at) at = low.Place(request.size, kPageSize);
    }
    // PCI Express 3.0 2.1.1.2: a function works without its I/O ranges.
    if (!at && request.kind != BarKind::kIo) return Err(Errc::kExhausted, "PCI window");
    request.address = at.value_or(0);
  }
  for (const Request& request : requests) {
    if (request.address == 0) continue;
    const MutexLock function_lock(request.function->lock());
    request.function->PlaceBar(request.index, request.address);
  }
  return {};
}

std::vector<FunctionInfo> PciRoot::Functions() {
  std::vector<FunctionInfo> functions;
  const MutexLock lock(lock_);
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    PciFunction* function = slots_[slot];
    if (function == nullptr) continue;
    const MutexLock function_lock(function->lock());
    const ConfigSpace& config = function->config();
    FunctionInfo info{.bdf = {.device = static_cast<std::uint8_t>(slot)},
                      .name = function->name(),
                      .vendor = config.Get<std::uint16_t>(kVendorId),
                      .device = config.Get<std::uint16_t>(kDeviceId),
                      .class_code = config.Get<std::uint32_t>(kRevisionId) >> 8,
                      .bars = {}};
    for (std::size_t i = 0; i < function->bars().size(); ++i) {
      const std::optional<Bar>& bar = function->bars()[i];
      if (!bar) continue;
      BarInfo line{i, bar->kind(), function->BarAddress(i), bar->size(), bar->mapped().has_value(),
                   {}};
      for (const Tile& tile : bar->tiles()) {
        line.tiles.push_back({TileOffset(tile), TileLength(tile),
                              std::holds_alternative<Trapped>(tile), std::string(TileName(tile))});
      }
      info.bars.push_back(std::move(line));
    }
    functions.push_back(std::move(info));
  }
  return functions;
}

// The bus holds lock_ during Read and Write. ECAM: bus 27:20 (always 0 here), device 19:15,
// function 14:12, register 11:0 (PCI Express 3.0 7.2.2).
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
  const MutexLock function_lock(function->lock());
  function->WriteConfig(static_cast<std::uint32_t>(offset % kConfigEnd), data);
}

PciFunction* PciRoot::At(std::uint64_t offset) const {
  const bool function_zero = (offset >> 12 & 0x7) == 0;
  return function_zero && offset < kEcamSize ? slots_[offset >> 15] : nullptr;
}

void PciRoot::ReportCounters(CounterSink& sink) const {
  sink.Add("pci_absent_accesses", absent_.Get());
}

}  // namespace postern::pci
