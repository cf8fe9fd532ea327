#include "devices/pci/root_port.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "devices/pci/fake_function.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

constexpr std::uint64_t kDoorbellAddress = 0xfee00000;

// A bridge with ports, and what a guest's hot-plug driver does with one of them.
struct Rig {
  explicit Rig(std::size_t count = 1, const RootPortOptions& options = {})
      : bridge(static_cast<std::uint32_t>(count + 1)), loop(EventLoop::Create().value()) {
    for (std::size_t i = 0; i < count; ++i) {
      RootPortOptions own = options;
      own.slot = static_cast<std::uint16_t>(i + 1);
      ports.push_back(RootPort::Create("port", bridge.platform.interrupts, *loop, own).value());
      where.push_back(bridge.root->Add(*ports.back()).value());
    }
    const Result<void> assigned = bridge.root->AssignAddresses();
    REQUIRE(assigned.has_value());
  }
  ~Rig() { bridge.root.reset(); }

  RootPort& port() { return *ports[0]; }
  // Offset of the PCI Express capability, found as a guest does.
  std::uint32_t Express(std::size_t index = 0) {
    std::uint32_t at = bridge.Config<std::uint8_t>(where[index], kCapabilitiesPointer);
    while (at != 0 && bridge.Config<std::uint8_t>(where[index], at) != kCapPciExpress)
      at = bridge.Config<std::uint8_t>(where[index], at + 1);
    REQUIRE(at != 0);
    return at;
  }
  std::uint16_t Status() {
    return bridge.Config<std::uint16_t>(where[0], Express() + kExpSlotStatus);
  }
  std::uint16_t Control() {
    return bridge.Config<std::uint16_t>(where[0], Express() + kExpSlotControl);
  }
  void SetControl(std::uint16_t value) {
    bridge.Config<std::uint16_t>(where[0], Express() + kExpSlotControl, value);
  }
  void SetPowerIndicator(std::uint16_t value) {
    SLOT_CONTROL control{{Control()}};
    control.Set<SLOT_CONTROL::PowerIndicator>(value);
    SetControl(control.raw);
  }
  bool LinkActive() {
    return LINK_STATUS{{bridge.Config<std::uint16_t>(where[0], Express() + kExpLinkStatus)}}
        .Get<LINK_STATUS::Active>();
  }
  // MSI-X and notifications, as pciehp has them where there is an attention button.
  void StartDriver() {
    bridge.Config<std::uint16_t>(where[0], kCommand, 0x6);
    const std::uint64_t bar = port().BarAddress(0);
    bridge.Write<std::uint32_t>(bar, kDoorbellAddress);
    bridge.Write<std::uint32_t>(bar + 4, 0);
    bridge.Write<std::uint32_t>(bar + 8, 0x41);
    bridge.Write<std::uint32_t>(bar + 12, 0);
    std::uint32_t at = bridge.Config<std::uint8_t>(where[0], kCapabilitiesPointer);
    while (bridge.Config<std::uint8_t>(where[0], at) != kCapMsix)
      at = bridge.Config<std::uint8_t>(where[0], at + 1);
    bridge.Config<std::uint16_t>(where[0], at + kMsixControl, 0x8000);
    ClearEvents();
    SLOT_CONTROL control{{Control()}};
    control.Set<SLOT_CONTROL::LinkChangedEnable>(true);
    control.Set<SLOT_CONTROL::ButtonEnable>(true);
    control.Set<SLOT_CONTROL::InterruptEnable>(true);
    SetControl(control.raw);
    (void)bridge.platform.interrupts.TakeDelivered();
  }
  void ClearEvents() {
    bridge.Config<std::uint16_t>(where[0], Express() + kExpSlotStatus, kSlotStatusEvents);
  }
  // Interrupts since the last call.
  std::size_t Interrupts() { return bridge.platform.interrupts.TakeDelivered().size(); }
  void Settle() { loop->RunOnce(0); }

  FakeBridge bridge;
  std::unique_ptr<EventLoop> loop;
  std::vector<std::unique_ptr<RootPort>> ports;
  std::vector<Bdf> where;
};

constexpr std::uint16_t kPresent = 0x0040;
constexpr std::uint16_t kPlugEvents = 0x0108;
constexpr std::uint16_t kButton = 0x0001;

TEST_CASE("root port: the header is a bridge's, with the numbers and windows firmware gives") {
  Rig rig(3, {.slot = 0, .window32 = 4 << 20, .window64 = std::uint64_t{1} << 33});
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    const Bdf port = rig.where[i];
    CHECK(port == Bdf{0, static_cast<std::uint8_t>(i + 1), 0});
    CHECK(rig.bridge.Config<std::uint32_t>(port, 8) == 0x06040000);
    CHECK(rig.bridge.Config<std::uint8_t>(port, kHeaderType) == 1);
    const auto bus = static_cast<std::uint32_t>(i + 1);
    CHECK(rig.bridge.Config<std::uint32_t>(port, kPrimaryBus) == (bus << 8 | bus << 16));
    const auto base = rig.bridge.Config<std::uint16_t>(port, kMemoryBase);
    const auto limit = rig.bridge.Config<std::uint16_t>(port, kMemoryLimit);
    CHECK(limit - base == 0x30);
    CHECK(FakeBridge::kWindows.memory32.Contains(std::uint64_t{base} << 16, 4 << 20));
    const std::uint64_t high =
        std::uint64_t{rig.bridge.Config<std::uint32_t>(port, kPrefetchableBaseUpper)} << 32 |
        (rig.bridge.Config<std::uint16_t>(port, kPrefetchableBase) & 0xfff0U) << 16;
    CHECK(high == 0x4000000000 + i * (std::uint64_t{1} << 33));
    CHECK(rig.bridge.Config<std::uint32_t>(port, kPrefetchableLimitUpper) ==
          static_cast<std::uint32_t>((high + (std::uint64_t{1} << 33) - 1) >> 32));
    CHECK(rig.bridge.Config<std::uint16_t>(port, kPrefetchableLimit) == 0xfff1);
    // No I/O window: Linux writes it and reads it back.
    rig.bridge.Config<std::uint16_t>(port, 0x1c, 0xe0f0);
    CHECK(rig.bridge.Config<std::uint16_t>(port, 0x1c) == 0);
    const std::uint32_t at = rig.Express(i);
    CHECK(rig.bridge.Config<std::uint16_t>(port, at + kExpCapabilities) == 0x0142);
    // Slot number, no command completed, 75 W, hot-plug, surprise, both indicators, the button.
    CHECK(rig.bridge.Config<std::uint32_t>(port, at + kExpSlotCap) ==
          (bus << 19 | 1U << 18 | 75U << 7 | 0x79));
    CHECK((rig.bridge.Config<std::uint32_t>(port, at + kExpLinkCap) >> 20 & 1) == 1);
  }
}

TEST_CASE("root port: register table: what a guest may write and what it may not") {
  Rig rig;
  struct Row {
    const char* name;
    std::uint32_t offset;
    unsigned width;
    std::uint32_t writable;
  };
  const std::uint32_t at = rig.Express();
  const std::vector<Row> rows = {
      {"bus numbers", kPrimaryBus, 4, 0x00ffffff},
      {"memory window", kMemoryBase, 4, 0xfff0fff0},
      {"prefetchable window", kPrefetchableBase, 4, 0xfff0fff0},
      {"prefetchable base upper", kPrefetchableBaseUpper, 4, 0xffffffff},
      {"prefetchable limit upper", kPrefetchableLimitUpper, 4, 0xffffffff},
      {"I/O upper", 0x30, 4, 0},
      {"expansion ROM", 0x38, 4, 0},
      {"bridge control", kBridgeControl, 2, 0x0043},
      {"BAR 1", 0x14, 4, 0},
      {"capability", at, 4, 0},
      {"device capabilities", at + kExpDeviceCap, 4, 0},
      {"device control", at + kExpDeviceControl, 2, 0x781f},
      {"link capabilities", at + kExpLinkCap, 4, 0},
      {"link control", at + kExpLinkControl, 2, 0x00c3},
      {"link status", at + kExpLinkStatus, 2, 0},
      {"slot capabilities", at + kExpSlotCap, 4, 0},
      {"slot control", at + kExpSlotControl, 2, 0x13ff},
      {"slot status", at + kExpSlotStatus, 2, 0},
      {"root control", at + kExpRootControl, 2, 0x000f},
      {"root status", at + kExpRootStatus, 4, 0},
      {"link control 2", at + kExpLinkControl2, 2, 0x000f},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    for (unsigned i = 0; i < row.width; ++i) {
      const auto bits = static_cast<std::uint8_t>(row.writable >> (8 * i));
      const auto before = rig.bridge.Config<std::uint8_t>(rig.where[0], row.offset + i);
      rig.bridge.Config<std::uint8_t>(rig.where[0], row.offset + i, 0xff);
      CHECK((rig.bridge.Config<std::uint8_t>(rig.where[0], row.offset + i) & bits) == bits);
      rig.bridge.Config<std::uint8_t>(rig.where[0], row.offset + i, 0);
      CHECK((rig.bridge.Config<std::uint8_t>(rig.where[0], row.offset + i)) ==
            (before & ~bits & 0xff));
    }
  }
}

TEST_CASE("root port: options out of range are refused") {
  bus::FakePlatform platform;
  const auto loop = EventLoop::Create().value();
  const auto refused = [&](const RootPortOptions& options) {
    const auto port = RootPort::Create("port", platform.interrupts, *loop, options);
    return !port && port.error().code == Errc::kInvalidArgument;
  };
  CHECK_FALSE(refused({.slot = 0x1fff}));
  CHECK(refused({.slot = 0x2000}));
  CHECK_FALSE(refused({.window32 = 0, .window64 = 0}));
  CHECK(refused({.window32 = 3 << 20}));
  CHECK(refused({.window32 = 1 << 19}));
  CHECK(refused({.window32 = std::uint64_t{1} << 32}));
  CHECK(refused({.window64 = (std::uint64_t{1} << 33) + 1}));
  CHECK(refused({.window64 = std::uint64_t{1} << 52}));
  CHECK_FALSE(refused({.window_io = 0x8000}));
  for (const std::uint64_t ports : {0x100U, 0x800U, 0x3000U, 0x10000U})
    CHECK(refused({.window_io = ports}));
}

TEST_CASE("root port: an I/O window is placed, written by halves, and back after a reset") {
  Rig rig(1, {.window_io = 0x1000});
  const Bdf port = rig.where[0];
  CHECK(rig.bridge.Config<std::uint16_t>(port, kIoBase) == 0x1010);  // 0x1000..0x1fff
  for (const std::uint32_t at : {kIoBase, kIoLimit}) {
    rig.bridge.Config<std::uint8_t>(port, at, 0xff);
    CHECK(rig.bridge.Config<std::uint8_t>(port, at) == 0xf0);  // 16-bit addresses
  }
  rig.bridge.Config<std::uint16_t>(port, kIoBase, 0xe0f0);  // as Linux asks whether there is one
  CHECK(rig.bridge.Config<std::uint16_t>(port, kIoBase) == 0xe0f0);
  rig.bridge.Config<std::uint16_t>(port, kCommand, 0x1);
  CHECK(rig.bridge.Config<std::uint16_t>(port, kCommand) == 0x1);
  {
    const MutexLock lock(rig.port().lock());
    rig.port().Reset();
  }
  CHECK(rig.bridge.Config<std::uint16_t>(port, kIoBase) == 0x1010);
  CHECK(rig.bridge.Config<std::uint16_t>(port, kCommand) == 0);
  CHECK(testing::ReportedCounter(rig.port(), "pci_without_ports") == 0);
}

TEST_CASE("root port: no room for an I/O window: it is off, counted, and the others are there") {
  Rig rig(2, {.window_io = 0x1000});
  CHECK(rig.bridge.Config<std::uint16_t>(rig.where[0], kIoBase) == 0x1010);
  CHECK(rig.bridge.Config<std::uint16_t>(rig.where[1], kIoBase) == 0x00f0);  // base above limit
  CHECK(rig.bridge.Config<std::uint16_t>(rig.where[1], kMemoryBase) != kWindowAddressBits);
  CHECK(testing::ReportedCounter(*rig.ports[0], "pci_without_ports") == 0);
  CHECK(testing::ReportedCounter(*rig.ports[1], "pci_without_ports") == 1);
}

TEST_CASE("root port: a function behind one has its ports where the guest puts them") {
  Rig rig(1, {.window_io = 0x1000});
  PlainFunction function({{0, BarKind::kIo, 8}});
  REQUIRE(rig.port().Plug(function).has_value());
  const Bdf behind{.bus = 1};
  rig.bridge.Config<std::uint32_t>(behind, kBar0, 0x1ff8);
  CHECK(rig.bridge.Load<std::uint8_t>(rig.bridge.ports, 0x1ff8) == 0xff);
  rig.bridge.Config<std::uint16_t>(behind, kCommand, 1);
  CHECK(rig.bridge.Load<std::uint32_t>(rig.bridge.ports, 0x1ffc) == 0x5a5a5a5a);
  REQUIRE(rig.port().Pull().has_value());
  CHECK(rig.bridge.Load<std::uint32_t>(rig.bridge.ports, 0x1ffc) == 0xffffffff);
}

TEST_CASE("root port: buses are handed out until ECAM ends, windows until they are full") {
  FakeBridge bridge(2);
  const auto loop = EventLoop::Create().value();
  const auto one = RootPort::Create("one", bridge.platform.interrupts, *loop,
                                    {.window64 = std::uint64_t{1} << 50})
                       .value();
  const auto two = RootPort::Create("two", bridge.platform.interrupts, *loop, {}).value();
  FakeFunction function(bridge.platform.interrupts);
  CHECK(one->Plug(function).error().code == Errc::kBadState);
  CHECK(bridge.root->Add(*one).has_value());
  CHECK(bridge.root->Add(*two).error().code == Errc::kExhausted);
  CHECK(bridge.root->Add(function, *two).error().code == Errc::kNotFound);
  CHECK(bridge.root->AssignAddresses().error().code == Errc::kExhausted);
  CHECK(one->Plug(function).has_value());
  CHECK(bridge.root->Remove(*one).error().code == Errc::kBadState);
  CHECK(bridge.root->Remove(function).has_value());
  CHECK(one->function() == nullptr);
  CHECK(bridge.root->Remove(*one).has_value());
}

constexpr std::uint64_t kLow = 2 << 20;
constexpr std::uint64_t kHigh = std::uint64_t{1} << 30;

TEST_CASE("root port: BARs that its windows cannot hold are known before anything is plugged") {
  FakeBridge bridge(2);
  const auto loop = EventLoop::Create().value();
  using Specs = std::vector<PlainFunction::Spec>;
  const auto misfit = [&](const Specs& bars, std::uint64_t low = kLow, std::uint64_t high = kHigh) {
    const auto port = RootPort::Create("port", bridge.platform.interrupts, *loop,
                                       {.window32 = low, .window64 = high})
                          .value();
    return port->Misfit(PlainFunction(bars));
  };
  const std::optional<std::size_t> fits;
  CHECK(misfit({}) == fits);
  CHECK(misfit({{0, BarKind::kMem32, kLow}}) == fits);
  CHECK(misfit({{0, BarKind::kMem32, 2 * kLow}}) == 0);
  CHECK(misfit({{1, BarKind::kMem32Prefetchable, 2 * kLow}}) == 1);
  // Not prefetchable: never above 4 GiB.
  CHECK(misfit({{2, BarKind::kMem64, 2 * kLow}}) == 2);
  CHECK(misfit({{2, BarKind::kMem64Prefetchable, kHigh}}) == fits);
  CHECK(misfit({{2, BarKind::kMem64Prefetchable, 2 * kHigh}}) == 2);
  CHECK(misfit({{2, BarKind::kMem64Prefetchable, std::uint64_t{1} << 62}}) == 2);
  // Together: the one for which nothing is left.
  CHECK(misfit({{0, BarKind::kMem32, kLow / 2}, {1, BarKind::kMem32, kLow / 2}}) == fits);
  CHECK(misfit({{0, BarKind::kMem32, 4096}, {1, BarKind::kMem32, kLow}}) == 0);
  CHECK(misfit({{0, BarKind::kMem64Prefetchable, kLow}, {2, BarKind::kMem64Prefetchable, kHigh}}) ==
        fits);  // the smaller one below 4 GiB
  CHECK(misfit({{0, BarKind::kMem64Prefetchable, kLow},
                {2, BarKind::kMem64Prefetchable, kHigh},
                {4, BarKind::kMem32, 4096}}) == 4);
  // A port without windows; ports of I/O are another matter.
  CHECK(misfit({{0, BarKind::kMem32, 4096}}, 0, 0) == 0);
  CHECK(misfit({{0, BarKind::kIo, 16}}, 0, 0) == fits);
}

TEST_CASE(
    "root port: a plugged function is found on the bus the guest numbered, and pulled again") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  CHECK(rig.Status() == 0);
  CHECK_FALSE(rig.LinkActive());
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 0}, 0) == 0xffffffff);
  CHECK(rig.port().Pull().error().code == Errc::kNotFound);

  CHECK(rig.port().Plug(function).has_value());
  CHECK(rig.port().Plug(function).error().code == Errc::kOverlap);
  CHECK(rig.Interrupts() == 1);
  CHECK(rig.Status() == (kPresent | kPlugEvents));
  CHECK(rig.LinkActive());
  CHECK(function.attached == Bdf{1, 0, 0});
  CHECK(function.intx == IntxInputs{17, 18, 19, 16});  // the port is in slot 1
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 0}, 0) == 0x56781234);
  CHECK(rig.bridge.Config<std::uint32_t>({1, 1, 0}, 0) == 0xffffffff);
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 1}, 0) == 0xffffffff);

  // Another number, none, and one beyond ECAM.
  rig.bridge.Config<std::uint8_t>(rig.where[0], kSecondaryBus, 0);
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 0}, 0) == 0xffffffff);
  CHECK(rig.bridge.Config<std::uint32_t>({0, 0, 0}, 0) == 0x00081b36);
  rig.bridge.Config<std::uint8_t>(rig.where[0], kSecondaryBus, 0x80);
  CHECK(rig.bridge.Config<std::uint32_t>({0x80, 0, 0}, 0) == 0xffffffff);
  rig.bridge.Config<std::uint8_t>(rig.where[0], kSecondaryBus, 1);

  // The guest places a BAR anywhere in the host bridge's windows.
  rig.bridge.Config<std::uint32_t>({1, 0, 0}, kBar0, 0xc8000000);
  rig.bridge.Config<std::uint16_t>({1, 0, 0}, kCommand, 2);
  CHECK(rig.bridge.Read<std::uint32_t>(0xc800100c) == 1);

  rig.ClearEvents();
  CHECK(rig.port().Pull().has_value());
  CHECK(rig.Interrupts() == 1);
  CHECK(rig.Status() == kPlugEvents);
  CHECK_FALSE(rig.LinkActive());
  CHECK_FALSE(function.attached.has_value());
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 0}, 0) == 0xffffffff);
  CHECK(rig.bridge.Read<std::uint32_t>(0xc800100c) == 0xffffffff);
  CHECK(testing::ReportedCounter(rig.port(), "port_plugs") == 1);
  CHECK(testing::ReportedCounter(rig.port(), "port_unplugs") == 1);
}

TEST_CASE("root port: one interrupt while events wait, the next after all were cleared") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  CHECK(rig.port().Plug(function).has_value());
  CHECK(rig.port().Pull().has_value());
  CHECK(rig.Interrupts() == 1);
  // Clearing what is not enabled leaves the condition.
  rig.bridge.Config<std::uint16_t>(rig.where[0], rig.Express() + kExpSlotStatus, 0x0008);
  CHECK(rig.port().Plug(function).has_value());
  CHECK(rig.Interrupts() == 0);
  rig.ClearEvents();
  CHECK(rig.port().Pull().has_value());
  CHECK(rig.Interrupts() == 1);
  // An event that waited while interrupts were off is told when they go on.
  rig.ClearEvents();
  const std::uint16_t on = rig.Control();
  rig.SetControl(on & ~std::uint16_t{0x20});
  CHECK(rig.port().Plug(function).has_value());
  CHECK(rig.Interrupts() == 0);
  rig.SetControl(on);
  CHECK(rig.Interrupts() == 1);
  CHECK(rig.port().Pull().has_value());
}

TEST_CASE("root port: an unplug is a pressed button, a blinking and then a dark indicator") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  int done = 0;
  CHECK(rig.port().RequestUnplug([&] { ++done; }).error().code == Errc::kBadState);
  CHECK(rig.port().Plug(function).has_value());
  rig.ClearEvents();
  rig.SetPowerIndicator(kIndicatorOn);  // the guest has taken the function into use
  (void)rig.Interrupts();

  CHECK(rig.port().RequestUnplug([&] { ++done; }).has_value());
  CHECK(rig.port().unplug_pending());
  CHECK(rig.port().RequestUnplug([&] { ++done; }).error().code == Errc::kBadState);
  CHECK(rig.Interrupts() == 1);
  CHECK(rig.Status() == (kPresent | kButton));
  rig.ClearEvents();
  rig.SetPowerIndicator(kIndicatorBlink);
  rig.Settle();
  CHECK(function.attached.has_value());
  // A storm of writes posts once; the function stays until the loop runs.
  for (int i = 0; i < 100; ++i) rig.SetPowerIndicator(kIndicatorOff);
  CHECK(function.attached.has_value());
  CHECK(done == 0);
  rig.Settle();
  CHECK(done == 1);
  CHECK_FALSE(function.attached.has_value());
  CHECK_FALSE(rig.port().unplug_pending());
  CHECK(rig.Status() == kPlugEvents);
  CHECK(rig.Interrupts() == 1);
  rig.Settle();
  CHECK(done == 1);
  CHECK(testing::ReportedCounter(rig.port(), "port_button_presses") == 1);
}

TEST_CASE("root port: a guest that turns the slot on again before it was taken out keeps it") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  CHECK(rig.port().Plug(function).has_value());
  rig.SetPowerIndicator(kIndicatorOn);
  int done = 0;
  CHECK(rig.port().RequestUnplug([&] { ++done; }).has_value());
  rig.SetPowerIndicator(kIndicatorOff);
  rig.SetPowerIndicator(kIndicatorOn);
  rig.Settle();
  CHECK(done == 0);
  CHECK(function.attached.has_value());
  rig.SetPowerIndicator(kIndicatorOff);
  rig.Settle();
  CHECK(done == 1);
}

TEST_CASE("root port: a slot nobody uses releases at once, but not inside the request") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  CHECK(rig.port().Plug(function).has_value());  // and the guest has not looked yet
  int done = 0;
  CHECK(rig.port().RequestUnplug([&] { ++done; }).has_value());
  CHECK(done == 0);
  rig.Settle();
  CHECK(done == 1);
  CHECK(testing::ReportedCounter(rig.port(), "port_button_presses") == 0);
}

TEST_CASE("root port: before a hot-plug driver runs, an occupied slot is shown in use") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  CHECK(rig.port().Plug(function).has_value());
  CHECK(SLOT_CONTROL{{rig.Control()}}.Get<SLOT_CONTROL::PowerIndicator>() == kIndicatorOn);
  int done = 0;
  CHECK(rig.port().RequestUnplug([&] { ++done; }).has_value());
  rig.Settle();
  CHECK(done == 0);
  CHECK((rig.Status() & kButton) != 0);
  // Nobody answers: pulling ends it, and is told to whoever asked.
  CHECK(rig.port().Pull().has_value());
  CHECK(done == 1);
  CHECK(SLOT_CONTROL{{rig.Control()}}.Get<SLOT_CONTROL::PowerIndicator>() == kIndicatorOff);
  CHECK((rig.Status() & kButton) == 0);
}

TEST_CASE("root port: a request outlives neither port nor loop") {
  FakeBridge bridge(2);
  const auto loop = EventLoop::Create().value();
  FakeFunction function(bridge.platform.interrupts);
  int done = 0;
  {
    const auto port = RootPort::Create("port", bridge.platform.interrupts, *loop, {}).value();
    const Bdf where = bridge.root->Add(*port).value();
    CHECK(port->Plug(function).has_value());
    CHECK(port->RequestUnplug([&] { ++done; }).has_value());
    std::uint32_t at = bridge.Config<std::uint8_t>(where, kCapabilitiesPointer);
    while (bridge.Config<std::uint8_t>(where, at) != kCapPciExpress)
      at = bridge.Config<std::uint8_t>(where, at + 1);
    bridge.Config<std::uint16_t>(where, at + kExpSlotControl, 0x03c0);
    CHECK(bridge.root->Remove(function).has_value());
    CHECK(bridge.root->Remove(*port).has_value());
  }
  loop->RunOnce(0);
  CHECK(done == 0);
}

TEST_CASE("root port: a secondary bus reset resets what is behind, on the rising edge") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  CHECK(rig.port().Plug(function).has_value());
  rig.bridge.Config<std::uint32_t>({1, 0, 0}, kBar0, 0xc8000000);
  rig.bridge.Config<std::uint16_t>({1, 0, 0}, kCommand, 2);
  rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0x40);
  CHECK(function.resets == 1);
  CHECK(rig.bridge.Config<std::uint16_t>({1, 0, 0}, kCommand) == 0);
  CHECK(rig.bridge.Config<std::uint32_t>({1, 0, 0}, kBar0) == 0);
  rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0x40);
  rig.bridge.Config<std::uint8_t>(rig.where[0], kBridgeControl, 0x41);
  CHECK(function.resets == 1);
  rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0);
  rig.bridge.Config<std::uint8_t>(rig.where[0], kBridgeControl, 0x40);
  CHECK(function.resets == 2);
  CHECK(rig.port().Pull().has_value());
  rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0);
  rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0x40);
  CHECK(testing::ReportedCounter(rig.port(), "port_bus_resets") == 3);
}

TEST_CASE("root port: bus numbers that overlap go to the first port, loops reach nothing") {
  Rig rig(3);
  FakeFunction second(rig.bridge.platform.interrupts, "second");
  PlainFunction third({});
  CHECK(rig.ports[1]->Plug(second).has_value());
  CHECK(rig.ports[2]->Plug(third).has_value());
  CHECK(rig.bridge.Config<std::uint32_t>({2, 0, 0}, 0) == 0x56781234);
  CHECK(rig.bridge.Config<std::uint32_t>({3, 0, 0}, 0) == 0x00011234);
  for (const Bdf& port : rig.where) rig.bridge.Config<std::uint32_t>(port, kPrimaryBus, 0x00030303);
  // The first port has the number and nothing behind it.
  CHECK(rig.bridge.Config<std::uint32_t>({3, 0, 0}, 0) == 0xffffffff);
  rig.bridge.Config<std::uint32_t>(rig.where[0], kPrimaryBus, 0x00ff0000);
  CHECK(rig.bridge.Config<std::uint32_t>({3, 0, 0}, 0) == 0x56781234);
  rig.bridge.Config<std::uint32_t>(rig.where[1], kPrimaryBus, 0);
  CHECK(rig.bridge.Config<std::uint32_t>({3, 0, 0}, 0) == 0x00011234);
  CHECK(rig.bridge.root->Functions().size() == 6);
  rig.bridge.root.reset();  // gives up what is plugged in
}

TEST_CASE("root port: state is saved and restored, an occupied slot's not into an empty one") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  rig.StartDriver();
  const auto save = [&] {
    const MutexLock lock(rig.port().lock());
    return rig.port().Save();
  };
  const auto restore = [&](const RootPortState& state) {
    const MutexLock lock(rig.port().lock());
    return rig.port().Restore(state);
  };
  const RootPortState empty = save();
  CHECK_FALSE(empty.unplug_requested);
  CHECK(rig.port().Plug(function).has_value());
  rig.ClearEvents();
  rig.SetPowerIndicator(kIndicatorOn);
  CHECK(rig.port().RequestUnplug([] {}).has_value());
  const RootPortState occupied = save();
  CHECK(occupied.unplug_requested);
  CHECK(restore(empty).error().code == Errc::kBadFormat);
  rig.bridge.Config<std::uint32_t>(rig.where[0], kMemoryBase, 0x12341230);
  rig.ClearEvents();
  (void)rig.Interrupts();
  CHECK(restore(occupied).has_value());
  CHECK(rig.bridge.Config<std::uint32_t>(rig.where[0], kMemoryBase) != 0x12341230);
  CHECK(rig.Status() == (kPresent | kButton));
  CHECK(rig.Interrupts() == 1);  // the event that waited
  CHECK(rig.port().Pull().has_value());
  CHECK(restore(occupied).error().code == Errc::kBadFormat);
}

TEST_CASE("root port: a port's own reset keeps what is in the slot") {
  Rig rig;
  FakeFunction function(rig.bridge.platform.interrupts);
  CHECK(rig.port().Plug(function).has_value());
  rig.bridge.Config<std::uint8_t>(rig.where[0], kSecondaryBus, 9);
  {
    const MutexLock lock(rig.port().lock());
    rig.port().Reset();
  }
  CHECK(rig.Status() == kPresent);
  CHECK(rig.LinkActive());
  CHECK(rig.bridge.Config<std::uint8_t>(rig.where[0], kSecondaryBus) == 1);
  CHECK(rig.port().Pull().has_value());
}

TEST_CASE("root port: plugged and pulled while vCPUs use what is behind it") {
  Rig rig;
  rig.StartDriver();
  std::atomic<bool> stop{false};
  std::vector<std::thread> guests;
  guests.reserve(2);
  for (int i = 0; i < 2; ++i) {
    guests.emplace_back([&] {
      while (!stop.load()) {
        rig.bridge.Config<std::uint32_t>({1, 0, 0}, kBar0, 0xc8000000);
        rig.bridge.Config<std::uint16_t>({1, 0, 0}, kCommand, 3);
        (void)rig.bridge.Read<std::uint32_t>(0xc8000010);
        rig.bridge.Write<std::uint32_t>(0xc800100c, 0);
        rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0x40);
        rig.bridge.Config<std::uint16_t>(rig.where[0], kBridgeControl, 0);
        rig.ClearEvents();
        rig.SetPowerIndicator(kIndicatorOn);
        rig.SetPowerIndicator(kIndicatorOff);
      }
    });
  }
  int done = 0;
  for (int i = 0; i < 200; ++i) {
    // Freed at once: an access still under way would touch freed memory.
    auto function = std::make_unique<FakeFunction>(rig.bridge.platform.interrupts);
    CHECK(rig.port().Plug(*function).has_value());
    if (i % 2 == 0) {
      CHECK(rig.port()
                .RequestUnplug([&] {
                  ++done;
                  function.reset();
                })
                .has_value());
      for (int round = 0; round < 1000 && function != nullptr; ++round) rig.loop->RunOnce(1);
    }
    if (function != nullptr) CHECK(rig.port().Pull().has_value());
  }
  stop.store(true);
  for (std::thread& guest : guests) guest.join();
  CHECK(done == 100);
  CHECK(testing::ReportedCounter(rig.port(), "port_unplugs") == 200);
}

}  // namespace
}  // namespace postern::pci
