#include "devices/pci/root_port.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <utility>
#include <vector>

#include "devices/pci/root.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::pci {
namespace {

// The PCIe root port of QEMU's pci-ids document: guests go by class and capability, no driver binds
// to the ID.
constexpr Identity kIdentity{
    .vendor = 0x1b36, .device = 0x000c, .revision = 0, .class_code = kClassPciBridge};

constexpr std::uint64_t kBarSize = 4096;
constexpr std::uint32_t kPbaOffset = 0x800;

// How often a pending request is looked at, and after how many looks that find the indicator on and
// the press acknowledged the press counts as lost. A second press cancels the first, so this is
// longer than any guest takes to answer an interrupt by blinking.
constexpr std::uint64_t kTickMs = 1000;
constexpr unsigned kQuietTicks = 8;

constexpr std::uint32_t kSlotWatts = 75;

constexpr bool Touches(std::uint32_t offset, std::size_t width, std::uint32_t begin,
                       std::uint32_t end) {
  return offset < end && offset + width > begin;
}

constexpr bool WindowSizeFits(std::uint64_t size, std::uint64_t granule, std::uint64_t limit) {
  return size == 0 || (std::has_single_bit(size) && size >= granule && size <= limit);
}

}  // namespace

Result<std::unique_ptr<RootPort>> RootPort::Create(std::string name,
                                                   bus::InterruptSource& interrupts,
                                                   EventLoop& loop,
                                                   const RootPortOptions& options) {
  constexpr std::uint64_t kLargest32 = std::uint64_t{1} << 31;
  constexpr std::uint64_t kLargest64 = std::uint64_t{1} << 51;
  if (options.slot > kMaxSlotNumber) return Err(Errc::kInvalidArgument, "PCIe slot number");
  constexpr std::uint64_t kLargestIo = std::uint64_t{1} << 15;
  if (!WindowSizeFits(options.window32, kWindowGranule, kLargest32) ||
      !WindowSizeFits(options.window64, kWindowGranule, kLargest64) ||
      !WindowSizeFits(options.window_io, kIoWindowGranule, kLargestIo)) {
    return Err(Errc::kInvalidArgument, "root port window size");
  }
  std::unique_ptr<RootPort> port(new RootPort(std::move(name), loop, options));
  TRY(port->Init(interrupts));
  return port;
}

RootPort::RootPort(std::string name, EventLoop& loop, const RootPortOptions& options)
    : PciFunction(std::move(name), kIdentity),
      loop_(loop),
      options_(options),
      self_(std::make_shared<RootPort*>(this)) {}

RootPort::~RootPort() {
  if (done_ != nullptr) loop_.Cancel(timer_);
}

Result<void> RootPort::Init(bus::InterruptSource& interrupts) {
  ConfigSpace& space = config();
  space.Set<std::uint8_t>(kHeaderType, kHeaderTypeBridge);
  auto table = TRY(MsixTable::Create(interrupts, 1));
  Bar bar =
      TRY(Bar::Create(BarKind::kMem32, kBarSize,
                      {Trapped{0, kPbaOffset, &table->table(), "msix-table"},
                       Trapped{kPbaOffset, kBarSize - kPbaOffset, &table->pba(), "msix-pba"}}));
  TRY(AddBar(0, std::move(bar)));
  TRY(AddMsix(std::move(table), 0, 0, kPbaOffset));
  for (const std::uint32_t bus : {kPrimaryBus, kSecondaryBus, kSubordinateBus})
    space.Allow<std::uint8_t>(bus, 0xff);
  space.Allow<std::uint16_t>(kSecondaryStatus, 0, kStatusErrorBits);
  AddWindowRegisters();
  BRIDGE_CONTROL control;
  control.Set<BRIDGE_CONTROL::SecondaryBusReset>(true);
  control.Set<BRIDGE_CONTROL::SerrEnable>(true);
  control.Set<BRIDGE_CONTROL::ParityError>(true);
  space.Allow<std::uint16_t>(kBridgeControl, control.raw);
  {
    const MutexLock guard(lock());
    PlaceWindows({});
  }
  return AddExpressCapability();
  // The analyzer loses the table on its way through Result.
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)

void RootPort::AddWindowRegisters() {
  ConfigSpace& space = config();
  for (const std::uint32_t at : {kMemoryBase, kMemoryLimit, kPrefetchableBase, kPrefetchableLimit})
    space.Allow<std::uint16_t>(at, kWindowAddressBits);
  space.Allow<std::uint32_t>(kPrefetchableBaseUpper, 0xffffffff);
  space.Allow<std::uint32_t>(kPrefetchableLimitUpper, 0xffffffff);
  // Bridge 1.2, 3.2.5.6: a bridge without an I/O window has read-only zeros here.
  if (options_.window_io == 0) return;
  space.Allow<std::uint8_t>(kIoBase, kIoWindowAddressBits);
  space.Allow<std::uint8_t>(kIoLimit, kIoWindowAddressBits);
  COMMAND decode;
  decode.Set<COMMAND::IoSpace>(true);
  space.AllowAlso<std::uint16_t>(kCommand, decode.raw);
}

Result<void> RootPort::AddExpressCapability() {
  ConfigSpace& space = config();
  const std::array<std::uint8_t, kExpSize - 2> body{};
  express_ = TRY(space.AddCapability(kCapPciExpress, body));
  EXP_CAPABILITIES capabilities;
  capabilities.Set<EXP_CAPABILITIES::SlotImplemented>(true);
  capabilities.Set<EXP_CAPABILITIES::PortType>(kExpRootPort);
  capabilities.Set<EXP_CAPABILITIES::Version>(2);
  space.Set<std::uint16_t>(express_ + kExpCapabilities, capabilities.raw);
  space.Set<std::uint32_t>(express_ + kExpDeviceCap, kRoleBasedErrors);
  space.Set<std::uint16_t>(express_ + kExpDeviceControl, kDeviceControlReset);
  space.Allow<std::uint16_t>(express_ + kExpDeviceControl, kDeviceControlWritable);
  space.Allow<std::uint16_t>(express_ + kExpDeviceStatus, 0, kDeviceStatusErrors);

  space.Allow<std::uint16_t>(express_ + kExpRootControl, kRootControlWritable);
  space.Allow<std::uint32_t>(express_ + kExpRootStatus, 0, kRootStatusPme);
  AddLink();
  AddSlot();
  return {};
}

void RootPort::AddLink() {
  ConfigSpace& space = config();
  LINK_CAP link;
  link.Set<LINK_CAP::PortNumber>(options_.slot & 0xff);
  link.Set<LINK_CAP::ActiveReporting>(true);
  link.Set<LINK_CAP::MaxWidth>(kLinkWidth);
  link.Set<LINK_CAP::MaxSpeed>(kLinkSpeed16GT);
  space.Set<std::uint32_t>(express_ + kExpLinkCap, link.raw);
  space.Allow<std::uint16_t>(express_ + kExpLinkControl, kLinkControlWritable);
  LINK_STATUS link_status;
  link_status.Set<LINK_STATUS::Width>(kLinkWidth);
  link_status.Set<LINK_STATUS::Speed>(kLinkSpeed16GT);
  space.Set<std::uint16_t>(express_ + kExpLinkStatus, link_status.raw);
  space.Set<std::uint32_t>(express_ + kExpLinkCap2, kLinkSpeedsTo16GT);
  space.Set<std::uint16_t>(express_ + kExpLinkControl2, kLinkSpeed16GT);
  space.Allow<std::uint16_t>(express_ + kExpLinkControl2, kLinkControl2Writable);
}

void RootPort::AddSlot() {
  ConfigSpace& space = config();
  SLOT_CAP slot;
  slot.Set<SLOT_CAP::SlotNumber>(options_.slot);
  slot.Set<SLOT_CAP::NoCommandCompleted>(true);
  slot.Set<SLOT_CAP::PowerLimit>(kSlotWatts);
  slot.Set<SLOT_CAP::HotPlugCapable>(true);
  slot.Set<SLOT_CAP::HotPlugSurprise>(true);
  slot.Set<SLOT_CAP::PowerIndicator>(true);
  slot.Set<SLOT_CAP::AttentionIndicator>(true);
  slot.Set<SLOT_CAP::AttentionButton>(true);
  space.Set<std::uint32_t>(express_ + kExpSlotCap, slot.raw);
  space.Set<std::uint16_t>(express_ + kExpSlotControl, kSlotControlReset);
  space.Allow<std::uint16_t>(express_ + kExpSlotControl, kSlotControlWritable);
  space.Allow<std::uint16_t>(express_ + kExpSlotStatus, 0, kSlotStatusEvents);
}

void RootPort::PlaceBus(std::uint8_t bus) {
  config().Set<std::uint8_t>(kSecondaryBus, bus);
  config().Set<std::uint8_t>(kSubordinateBus, bus);
}

void RootPort::PlaceWindows(const Forwarded& windows) {
  ConfigSpace& space = config();
  const Window& low = windows.memory32;
  const Window& high = windows.memory64;
  const Window& io = windows.io;
  // A base above its limit is a window that is off (Bridge 1.2, 3.2.5.8).
  const auto base = [](const Window& w) {
    return static_cast<std::uint16_t>(w.size == 0 ? kWindowAddressBits
                                                  : (w.base >> 16) & kWindowAddressBits);
  };
  const auto limit = [](const Window& w) {
    return static_cast<std::uint16_t>(
        w.size == 0 ? 0 : ((w.base + (w.size - 1)) >> 16) & kWindowAddressBits);
  };
  space.Set<std::uint16_t>(kMemoryBase, base(low));
  space.Set<std::uint16_t>(kMemoryLimit, limit(low));
  space.Set<std::uint16_t>(kPrefetchableBase, base(high) | kWindow64);
  space.Set<std::uint16_t>(kPrefetchableLimit, limit(high) | kWindow64);
  const std::uint64_t last = high.size == 0 ? 0 : high.base + (high.size - 1);
  space.Set<std::uint32_t>(kPrefetchableBaseUpper, static_cast<std::uint32_t>(high.base >> 32));
  space.Set<std::uint32_t>(kPrefetchableLimitUpper, static_cast<std::uint32_t>(last >> 32));
  if (options_.window_io == 0) return;
  const auto io_bits = [](std::uint64_t port) {
    return static_cast<std::uint8_t>((port >> 8) & kIoWindowAddressBits);
  };
  space.Set<std::uint8_t>(kIoBase, io.size == 0 ? kIoWindowAddressBits : io_bits(io.base));
  space.Set<std::uint8_t>(kIoLimit,
                          io.size == 0 ? std::uint8_t{0} : io_bits(io.base + (io.size - 1)));
}

SLOT_CONTROL RootPort::slot_control() const {
  return {{config().Get<std::uint16_t>(express_ + kExpSlotControl)}};
}

SLOT_STATUS RootPort::slot_status() const {
  return {{config().Get<std::uint16_t>(express_ + kExpSlotStatus)}};
}

// --- registers; the lock held ---

void RootPort::OnConfigWrite(std::uint32_t /*offset*/, std::span<const std::byte> /*data*/) {
  const BRIDGE_CONTROL control{{config().Get<std::uint16_t>(kBridgeControl)}};
  in_bus_reset_ = control.Get<BRIDGE_CONTROL::SecondaryBusReset>();
}

void RootPort::OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) {
  const BRIDGE_CONTROL control{{config().Get<std::uint16_t>(kBridgeControl)}};
  if (!in_bus_reset_ && control.Get<BRIDGE_CONTROL::SecondaryBusReset>()) {
    bus_resets_.Add();
    bus_reset_begun_ = true;
  }
  if (Touches(offset, data.size(), express_ + kExpSlotControl, express_ + kExpSlotControl + 2)) {
    CheckReleased();
  }
  // After any write: events may have been cleared, enabled, or MSI-X turned on with one waiting.
  UpdateInterrupt();
}

void RootPort::OnReset() {
  asserted_ = false;
  bus_reset_begun_ = false;
}

bool RootPort::TakeBusReset() {
  return std::exchange(bus_reset_begun_, false);
}

void RootPort::Raise(std::uint16_t events) {
  config().Update<std::uint16_t>(express_ + kExpSlotStatus,
                                 static_cast<std::uint16_t>(slot_status().raw | events));
  UpdateInterrupt();
}

// 6.7.3.4: a message is sent when the condition "hot-plug interrupts enabled, and an event that is
// enabled is set" becomes true. One that became true while MSI-X was off is sent when it goes on.
void RootPort::UpdateInterrupt() {
  const SLOT_CONTROL control = slot_control();
  const SLOT_STATUS status = slot_status();
  const bool event =
      (control.Get<SLOT_CONTROL::ButtonEnable>() && status.Get<SLOT_STATUS::ButtonPressed>()) ||
      (control.Get<SLOT_CONTROL::PresenceChangedEnable>() &&
       status.Get<SLOT_STATUS::PresenceChanged>()) ||
      (control.Get<SLOT_CONTROL::LinkChangedEnable>() && status.Get<SLOT_STATUS::LinkChanged>());
  const bool asserted = event && control.Get<SLOT_CONTROL::InterruptEnable>() && msix()->enabled();
  if (asserted && !asserted_) {
    interrupts_.Add();
    msix()->Trigger(0);
  }
  asserted_ = asserted;
}

void RootPort::SetOccupied(bool occupied) {
  SLOT_STATUS state;
  state.Set<SLOT_STATUS::PresenceState>(occupied);
  const auto events = static_cast<std::uint16_t>(slot_status().raw & kSlotStatusEvents);
  LINK_STATUS link{{config().Get<std::uint16_t>(express_ + kExpLinkStatus)}};
  link.Set<LINK_STATUS::Active>(occupied);
  config().Set<std::uint16_t>(express_ + kExpLinkStatus, link.raw);
  config().Set<std::uint16_t>(express_ + kExpSlotStatus, state.raw);
  (occupied ? plugs_ : unplugs_).Add();
  unplug_requested_ = false;
  release_posted_ = false;
  quiet_ticks_ = 0;
  SLOT_CONTROL control = slot_control();
  if (!control.Get<SLOT_CONTROL::InterruptEnable>()) {
    // No hot-plug driver runs (yet). What it finds when it starts is a slot in use, as firmware
    // leaves one: Linux takes a function found at boot for powered and sets no indicator.
    control.Set<SLOT_CONTROL::PowerIndicator>(occupied ? kIndicatorOn : kIndicatorOff);
    config().Update<std::uint16_t>(express_ + kExpSlotControl, control.raw);
  }
  SLOT_STATUS changed{{static_cast<std::uint16_t>(state.raw | events)}};
  changed.Set<SLOT_STATUS::PresenceChanged>(true);
  changed.Set<SLOT_STATUS::LinkChanged>(true);
  // A press nobody answered concerned what is gone now.
  changed.Set<SLOT_STATUS::ButtonPressed>(false);
  Raise(changed.raw);
}

void RootPort::PressButton() {
  presses_.Add();
  quiet_ticks_ = 0;
  SLOT_STATUS pressed;
  pressed.Set<SLOT_STATUS::ButtonPressed>(true);
  Raise(pressed.raw);
}

void RootPort::CheckReleased() {
  if (!unplug_requested_ || release_posted_ ||
      slot_control().Get<SLOT_CONTROL::PowerIndicator>() != kIndicatorOff) {
    return;
  }
  // Detaching waits for handlers, and this may be one.
  release_posted_ = true;
  loop_.Post([weak = std::weak_ptr<RootPort*>(self_)] {
    if (const auto port = weak.lock()) (*port)->FinishUnplug();
  });
}

// --- the loop's thread ---

PciFunction* RootPort::function() const {
  return root_ == nullptr ? nullptr : root_->Behind(*this);
}

// BARs and windows are naturally aligned powers of two: largest first, they leave no holes.
std::optional<std::size_t> RootPort::Misfit(const PciFunction& function) const {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < function.bars().size(); ++i) {
    if (function.bars()[i] && function.bars()[i]->kind() != BarKind::kIo) order.push_back(i);
  }
  const auto size = [&](std::size_t i) { return function.bars()[i]->size(); };
  std::ranges::stable_sort(order, std::greater<>(), size);
  std::uint64_t low = options_.window32;
  std::uint64_t high = options_.window64;
  for (const std::size_t i : order) {
    const bool above = function.bars()[i]->kind() == BarKind::kMem64Prefetchable && size(i) <= high;
    std::uint64_t& window = above ? high : low;
    if (size(i) > window) return i;
    window -= size(i);
  }
  return std::nullopt;
}

Result<void> RootPort::Plug(PciFunction& function) {
  if (root_ == nullptr) return Err(Errc::kBadState, "root port on no root");
  TRY(root_->Add(function, *this));
  return {};
}

Result<void> RootPort::RequestUnplug(std::function<void()> done) {
  if (function() == nullptr || done_ != nullptr) return Err(Errc::kBadState, "unplug request");
  CHECK(done != nullptr);
  done_ = std::move(done);
  timer_ = loop_.After(kTickMs, [this] { Tick(); });
  const MutexLock guard(lock());
  unplug_requested_ = true;
  if (slot_control().Get<SLOT_CONTROL::PowerIndicator>() == kIndicatorOn) PressButton();
  CheckReleased();
  return {};
}

void RootPort::Tick() {
  timer_ = loop_.After(kTickMs, [this] { Tick(); });
  const MutexLock guard(lock());
  const bool heard = slot_control().Get<SLOT_CONTROL::PowerIndicator>() != kIndicatorOn ||
                     slot_status().Get<SLOT_STATUS::ButtonPressed>();
  if (heard) {
    quiet_ticks_ = 0;
  } else if (++quiet_ticks_ >= kQuietTicks) {
    PressButton();
  }
}

void RootPort::FinishUnplug() {
  {
    const MutexLock guard(lock());
    release_posted_ = false;
    // It was pulled meanwhile, or the guest turned the slot on again before anybody came by.
    if (!unplug_requested_ || slot_control().Get<SLOT_CONTROL::PowerIndicator>() != kIndicatorOff) {
      return;
    }
  }
  if (Result<void> taken = TakeOut(); !taken) LOG_ERROR("pci", "{}: {}", name(), taken.error().op);
}

Result<void> RootPort::Pull() {
  return TakeOut();
}

Result<void> RootPort::TakeOut() {
  PciFunction* const out = function();
  if (out == nullptr) return Err(Errc::kNotFound, "function in the slot");
  TRY(root_->Remove(*out));
  if (std::function<void()> done = std::exchange(done_, nullptr)) {
    loop_.Cancel(timer_);
    done();
  }
  return {};
}

RootPortState RootPort::Save() {
  return {SaveFunction(), unplug_requested_};
}

Result<void> RootPort::Restore(const RootPortState& state) {
  TRY(RestoreFunction(state.function));
  bus_reset_begun_ = false;
  asserted_ = false;
  UpdateInterrupt();
  return {};
}

void RootPort::ReportCounters(CounterSink& sink) const {
  sink.Add("port_plugs", plugs_.Get());
  sink.Add("port_unplugs", unplugs_.Get());
  sink.Add("port_button_presses", presses_.Get());
  sink.Add("port_interrupts", interrupts_.Get());
  sink.Add("port_bus_resets", bus_resets_.Get());
  PciFunction::ReportCounters(sink);
}

}  // namespace postern::pci
