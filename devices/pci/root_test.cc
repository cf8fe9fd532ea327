#include "devices/pci/root.h"

#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "devices/pci/fake_function.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

TEST_CASE("bdf: is written as lspci does") {
  CHECK(ToString({0, 3, 0}) == "00:03.0");
  CHECK(ToString({0xff, 31, 7}) == "ff:1f.7");
  CHECK(Bdf{1, 2, 3}.value() == 0x0113);
}

TEST_CASE("root: the bridge is at slot 0 and absent functions read as all ones") {
  FakeBridge bridge;
  CHECK(bridge.Config<std::uint32_t>({}, 0) == 0x00081b36);
  CHECK(bridge.Config<std::uint32_t>({}, 8) == 0x06000000);
  CHECK(bridge.Config<std::uint32_t>({0, 0, 1}, 0) == 0xffffffff);
  for (std::uint8_t slot = 1; slot < 32; ++slot)
    CHECK(bridge.Config<std::uint16_t>({0, slot, 0}, 0) == 0xffff);
  bridge.Config<std::uint32_t>({0, 31, 7}, 4, 0xffffffff);
  // Beyond bus 0 ECAM is not claimed.
  CHECK(bridge.Config<std::uint32_t>({1, 0, 0}, 0) == 0xffffffff);
  // Across the end of one function's space, and of ECAM.
  CHECK(bridge.Read<std::uint64_t>(FakeBridge::kEcam + 0xffc) == ~std::uint64_t{0});
  CHECK(bridge.Read<std::uint32_t>(FakeBridge::kEcam + 2) == 0xffffffff);
  CHECK(bridge.Read<std::uint64_t>(FakeBridge::kEcam + 0xffff8) == ~std::uint64_t{0});
  CHECK(bridge.Read<std::uint64_t>(FakeBridge::kEcam + 0xffffc) == ~std::uint64_t{0});
}

TEST_CASE("root: layouts that cannot be are refused") {
  bus::FakePlatform platform;
  bus::Bus mmio;
  const auto code = [&](std::uint64_t ecam, Windows windows) {
    auto root = PciRoot::Create({.ecam = memory::Gpa(ecam), .windows = windows}, mmio, nullptr,
                                platform.Get());
    return root ? std::optional<Errc>() : root.error().code;
  };
  const Windows good = FakeBridge::kWindows;
  CHECK(!code(0xe0000000, good));
  CHECK(!code(0xe0000000, {}));
  CHECK(code(0xe0001000, good) == Errc::kInvalidArgument);
  CHECK(code(std::uint64_t{1} << 52, good) == Errc::kInvalidArgument);
  CHECK(code(0xe0000000, {.memory32 = {0xf0000000, 0x10000001}, .memory64 = {}, .io = {}}) ==
        Errc::kInvalidArgument);
  CHECK(code(0xe0000000, {.memory32 = {}, .memory64 = {~std::uint64_t{0}, 2}, .io = {}}) ==
        Errc::kInvalidArgument);
  CHECK(code(0xe0000000, {.memory32 = {}, .memory64 = {}, .io = {0xf000, 0x1001}}) ==
        Errc::kInvalidArgument);
  PlainFunction::Handler handler;
  Mutex lock;
  auto taken = mmio.Add(0xe00ff000, 4, handler, lock, "in the way").value();
  CHECK(code(0xe0000000, good) == Errc::kOverlap);
}

TEST_CASE("root: 31 slots, by number or the lowest free one") {
  FakeBridge bridge;
  std::vector<std::unique_ptr<FakeFunction>> functions;
  functions.reserve(33);
  for (int i = 0; i < 33; ++i)
    functions.push_back(std::make_unique<FakeFunction>(bridge.platform.interrupts));
  CHECK(bridge.root->Add(*functions[0], 0).error().code == Errc::kInvalidArgument);
  CHECK(bridge.root->Add(*functions[0], 32).error().code == Errc::kInvalidArgument);
  CHECK(bridge.root->Add(*functions[0], 2).value() == Bdf{0, 2, 0});
  CHECK(bridge.root->Add(*functions[1], 2).error().code == Errc::kOverlap);
  CHECK(bridge.root->Add(*functions[1]).value() == Bdf{0, 1, 0});
  CHECK(bridge.root->Add(*functions[2]).value() == Bdf{0, 3, 0});
  for (std::size_t i = 3; i < 31; ++i) CHECK(bridge.root->Add(*functions[i]).has_value());
  CHECK(bridge.root->Add(*functions[31]).error().code == Errc::kExhausted);
  CHECK(bridge.root->Functions().size() == 32);
  CHECK(bridge.root->Remove(*functions[31]).error().code == Errc::kNotFound);
  CHECK(bridge.root->Remove(*functions[2]).has_value());
  CHECK(bridge.Config<std::uint32_t>({0, 3, 0}, 0) == 0xffffffff);
  CHECK(bridge.root->Add(*functions[31]).value() == Bdf{0, 3, 0});
  bridge.root.reset();  // gives up the functions that are left
}

TEST_CASE("root: a removed function is not decoded any more") {
  FakeBridge bridge;
  FakeFunction function(bridge.platform.interrupts);
  const Bdf where = bridge.root->Add(function).value();
  CHECK(bridge.root->AssignAddresses().has_value());
  bridge.Config<std::uint16_t>(where, kCommand, 0x3);
  const std::uint64_t bar0 = function.BarAddress(0);
  CHECK(bridge.Read<std::uint32_t>(bar0 + 0x100c) == 1);
  CHECK(bridge.root->Remove(function).has_value());
  CHECK(bridge.Read<std::uint32_t>(bar0 + 0x100c) == 0xffffffff);
  CHECK(bridge.platform.pages.Mappings().empty());
  CHECK(bridge.platform.doorbells.size() == 0);
  CHECK(bridge.mmio.Ranges().size() == 1);
  CHECK(function.decode_events == std::vector<bool>{true, false});
  // As its registers say when it is plugged in again.
  CHECK(bridge.root->Add(function).has_value());
  CHECK(bridge.Read<std::uint32_t>(bar0 + 0x100c) == 1);
  CHECK(bridge.root->Remove(function).has_value());
}

TEST_CASE("root: addresses are assigned without holes, aligned and disjoint, largest first") {
  FakeBridge bridge;
  PlainFunction small({{0, BarKind::kMem32, 0x100},
                       {1, BarKind::kIo, 8},
                       {2, BarKind::kMem32Prefetchable, 0x2000}});
  PlainFunction large({{0, BarKind::kMem64Prefetchable, 1 << 30},
                       {2, BarKind::kMem64, 0x1000},
                       {4, BarKind::kMem32, 1 << 20}});
  const Bdf first = bridge.root->Add(small).value();
  CHECK(bridge.root->Add(large).has_value());
  CHECK(bridge.root->AssignAddresses().has_value());
  CHECK(large.BarAddress(0) == 0x4000000000);
  CHECK(large.BarAddress(2) == 0x4040000000);
  CHECK(large.BarAddress(4) == 0xc0000000);
  CHECK(small.BarAddress(2) == 0xc0100000);
  CHECK(small.BarAddress(0) == 0xc0102000);
  CHECK(small.BarAddress(1) == 0x1000);
  CHECK(bridge.Config<std::uint16_t>(first, kCommand) == 0);
  CHECK(!small.bars()[0]->mapped());

  // Plugged in later: around what is there, page granular.
  PlainFunction later({{0, BarKind::kMem32, 0x10}, {1, BarKind::kMem32, 0x100000}});
  CHECK(bridge.root->Add(later).has_value());
  CHECK(bridge.root->AssignAddresses().has_value());
  CHECK(later.BarAddress(0) == 0xc0103000);
  CHECK(later.BarAddress(1) == 0xc0200000);
  CHECK(small.BarAddress(0) == 0xc0102000);

  const std::string text = Describe(bridge.root->Functions()[1]);
  CHECK(text ==
        "00:01.0 1234:0001 class 000000 plain\n"
        "  BAR0 mem32 0xc0102000 size 0x100 (not decoded)\n"
        "    0x0-0xff trapped all\n"
        "  BAR1 io 0x1000 size 0x8 (not decoded)\n"
        "    0x0-0x7 trapped all\n"
        "  BAR2 mem32 prefetchable 0xc0100000 size 0x2000 (not decoded)\n"
        "    0x0-0x1fff trapped all\n");
  bridge.root.reset();
}

TEST_CASE("root: a window that is too small fails whole; 64-bit BARs fall back below 4 GiB") {
  bus::FakePlatform platform;
  bus::Bus mmio;
  const Windows windows{.memory32 = {0xc0000000, 0x200000}, .memory64 = {}, .io = {}};
  auto root =
      PciRoot::Create({memory::Gpa(0xe0000000), windows}, mmio, nullptr, platform.Get()).value();
  PlainFunction fits({{0, BarKind::kMem64, 0x100000}});
  CHECK(root->Add(fits).has_value());
  CHECK(root->AssignAddresses().has_value());
  CHECK(fits.BarAddress(0) == 0xc0000000);
  PlainFunction too_much({{0, BarKind::kMem32, 0x1000}, {2, BarKind::kMem64, 0x200000}});
  CHECK(root->Add(too_much).has_value());
  CHECK(root->AssignAddresses().error().code == Errc::kExhausted);
  CHECK(too_much.BarAddress(0) == 0);
  CHECK(root->Remove(too_much).has_value());
  PlainFunction io({{0, BarKind::kIo, 8}});
  CHECK(root->Add(io).has_value());
  CHECK(root->AssignAddresses().has_value());
  CHECK(io.BarAddress(0) == 0);
  root.reset();
}

// A guest that writes anything anywhere in config space and the windows: what is decoded stays
// inside the windows, disjoint, and consistent with the registers.
TEST_CASE("root: random accesses keep the address map sound") {
  FakeBridge bridge;
  std::vector<std::unique_ptr<FakeFunction>> functions;
  for (int i = 0; i < 3; ++i) {
    functions.push_back(std::make_unique<FakeFunction>(bridge.platform.interrupts));
    CHECK(bridge.root->Add(*functions.back()).has_value());
  }
  CHECK(bridge.root->AssignAddresses().has_value());
  std::mt19937_64 random(20260101);  // NOLINT: the same sequence each run
  const std::vector<std::uint64_t> bases{
      0, 0xc0000000, 0xc0002000, 0xc0004000, 0x4000000000, 0x4000010000, 0x1000, ~0ULL};
  for (int step = 0; step < 20000; ++step) {
    const Bdf where{0, static_cast<std::uint8_t>(random() % 5), 0};
    const std::uint64_t value = random() % 3 == 0 ? bases[random() % bases.size()] : random();
    switch (random() % 8) {
      case 0:
        bridge.Config<std::uint16_t>(where, kCommand, static_cast<std::uint16_t>(value));
        break;
      case 1:
        bridge.Config<std::uint32_t>(where, kBar0 + 4 * static_cast<std::uint32_t>(random() % 6),
                                     static_cast<std::uint32_t>(value));
        break;
      case 2:
        bridge.Config<std::uint64_t>(where, static_cast<std::uint32_t>(random() % 0x100), value);
        break;
      case 3:
        bridge.Config<std::uint8_t>(where, static_cast<std::uint32_t>(random() % 0x1000),
                                    static_cast<std::uint8_t>(value));
        break;
      case 4:
        bridge.Write<std::uint32_t>(0xc0000000 + random() % 0x10000,
                                    static_cast<std::uint32_t>(value));
        break;
      case 5:
        (void)bridge.Read<std::uint64_t>(0xc0000000 + random() % 0x10000);
        break;
      case 6:
        (void)bridge.Config<std::uint32_t>(where, static_cast<std::uint32_t>(random() % 0x1000));
        break;
      default:
        functions[random() % 3]->msix()->Trigger(static_cast<std::uint16_t>(random() % 6));
        break;
    }
    if (step % 64 != 0) continue;
    std::vector<Window> taken;
    for (const FunctionInfo& function : bridge.root->Functions()) {
      CHECK(function.vendor == (function.bdf.device == 0 ? 0x1b36 : 0x1234));
      for (const BarInfo& bar : function.bars) {
        if (!bar.mapped || bar.kind == BarKind::kIo) continue;
        const bool inside = FakeBridge::kWindows.memory32.Contains(bar.address, bar.size) ||
                            FakeBridge::kWindows.memory64.Contains(bar.address, bar.size);
        CHECK(inside);
        taken.push_back({bar.address, bar.size});
      }
    }
    std::ranges::sort(taken, {}, &Window::base);
    for (std::size_t i = 1; i < taken.size(); ++i)
      CHECK(taken[i - 1].base + taken[i - 1].size <= taken[i].base);
  }
  bridge.root.reset();
  CHECK(bridge.mmio.Ranges().empty());
  CHECK(bridge.platform.pages.Mappings().empty());
}

TEST_CASE(
    "root: I/O BARs that find no room stay at 0, and the memory BARs are placed all the same") {
  FakeBridge bridge;
  bus::Bus mmio;
  Windows windows = FakeBridge::kWindows;
  windows.io = {};
  auto root = PciRoot::Create({memory::Gpa(FakeBridge::kEcam), windows}, mmio, nullptr,
                              bridge.platform.Get())
                  .value();
  PlainFunction function({{0, BarKind::kIo, 32}, {1, BarKind::kMem32, 0x1000}});
  const Bdf at = root->Add(function).value();
  REQUIRE(root->AssignAddresses().has_value());
  CHECK(function.BarAddress(0) == 0);
  CHECK(function.BarAddress(1) != 0);
  CHECK(testing::ReportedCounter(function, "pci_without_ports") == 1);
  const std::array<std::byte, 2> command{std::byte{3}, std::byte{0}};
  mmio.Write(FakeBridge::ConfigAddress(at, kCommand), command);
  CHECK(!function.bars()[0]->mapped());
  CHECK(function.bars()[1]->mapped());
  CHECK(root->Remove(function).has_value());
}

}  // namespace
}  // namespace postern::pci
