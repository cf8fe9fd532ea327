// Config space, BAR and MSI-X accesses of a guest, decoded from the input: a function on bus 0, one
// plugged into each of two root ports, taken out and plugged again at the input's whim. Whatever it
// writes, decoded BARs stay inside the windows and disjoint, identities stay, and every unplug that
// was granted is told once.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "devices/pci/fake_function.h"
#include "src/base/check.h"
#include "src/base/log.h"
#include "tests/support/fuzz_input.h"

using postern::pci::Bdf;
using postern::pci::FakeBridge;
using postern::pci::FakeFunction;
using postern::pci::RootPort;
using postern::pci::Window;
using postern::testing::FuzzInput;

namespace {

void Access(postern::bus::Bus& bus, std::uint64_t address, std::size_t width, bool write,
            std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  if (write) {
    bus.Write(address, std::span<const std::byte>(bytes).first(width));
  } else {
    bus.Read(address, std::span(bytes).first(width));
  }
}

void CheckMap(FakeBridge& bridge) {
  std::vector<Window> taken;
  for (const auto& function : bridge.root->Functions()) {
    CHECK(function.vendor == (function.name == "fake" ? 0x1234 : 0x1b36));
    for (const auto& bar : function.bars) {
      if (!bar.mapped || bar.kind == postern::pci::BarKind::kIo) continue;
      CHECK(FakeBridge::kWindows.memory32.Contains(bar.address, bar.size) ||
            FakeBridge::kWindows.memory64.Contains(bar.address, bar.size));
      taken.push_back({bar.address, bar.size});
    }
  }
  std::ranges::sort(taken, {}, &Window::base);
  for (std::size_t i = 1; i < taken.size(); ++i) {
    CHECK(taken[i - 1].base + taken[i - 1].size <= taken[i].base);
  }
}

}  // namespace

namespace {

// One operation of the machine's control thread on a port.
void Control(RootPort& port, FakeFunction& function, unsigned what, int& pending) {
  switch (what % 4) {
    case 0: {
      const bool empty = !function.attached.has_value();
      CHECK(port.Plug(function).has_value() == empty);
      break;
    }
    case 1: {
      const bool occupied = function.attached.has_value();
      CHECK(port.Pull().has_value() == occupied);
      break;
    }
    case 2:
      if (port.RequestUnplug([&] { --pending; }).has_value()) ++pending;
      break;
    default: {
      const postern::MutexLock lock(port.lock());
      const postern::pci::RootPortState state = port.Save();
      CHECK(port.Restore(state).has_value());
      break;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::log::SetLevel(postern::LogLevel::kOff);
  FuzzInput input(data, size);
  static const std::unique_ptr<postern::EventLoop> loop = postern::EventLoop::Create().value();
  FakeBridge bridge(3);
  std::vector<std::unique_ptr<FakeFunction>> functions;
  functions.reserve(3);
  for (int i = 0; i < 3; ++i)
    functions.push_back(std::make_unique<FakeFunction>(bridge.platform.interrupts));
  CHECK(bridge.root->Add(*functions[0]).has_value());
  std::vector<std::unique_ptr<RootPort>> ports;
  ports.reserve(2);
  for (std::size_t i = 1; i < 3; ++i) {
    ports.push_back(
        RootPort::Create("port", bridge.platform.interrupts, *loop,
                         {.window64 = 0, .window_io = i == 1 ? std::uint64_t{0x1000} : 0})
            .value());
    CHECK(bridge.root->Add(*ports.back()).has_value());
    CHECK(ports.back()->Plug(*functions[i]).has_value());
  }
  int pending = 0;
  if (input.Take(1) % 2 == 0) CHECK(bridge.root->AssignAddresses().has_value());
  for (int step = 0; step < 512 && input.left(); ++step) {
    const auto control = static_cast<std::uint8_t>(input.Take(1));
    const std::size_t width = std::size_t{1} << (control & 3);
    const bool write = (control & 4) != 0;
    // Bus 0: the bridge, the function, the two ports; else what is behind a port.
    const auto target = static_cast<std::uint8_t>(control >> 6);
    const Bdf where = (control & 0x38) == 0x08 ? Bdf{.bus = target, .device = 0, .function = 0}
                                               : Bdf{.bus = 0, .device = target, .function = 0};
    switch (control >> 3 & 7) {
      case 0:
      case 1:
      case 2: {
        // Header and capabilities, where the side effects are.
        const auto offset = static_cast<std::uint32_t>(input.Take(1));
        Access(bridge.mmio, FakeBridge::ConfigAddress(where, offset), width, write,
               input.Take(width));
        break;
      }
      case 3: {
        const auto offset = static_cast<std::uint32_t>(input.Take(2) % 0x1000);
        Access(bridge.mmio, FakeBridge::ConfigAddress(where, offset), width, write,
               input.Take(width));
        break;
      }
      case 4: {
        // Some place in some BAR.
        FakeFunction& function = *functions[target % functions.size()];
        const std::size_t bar = input.Take(1) % 3;
        Access(bar == 1 ? bridge.ports : bridge.mmio, function.BarAddress(bar) + input.Take(2),
               width, write, input.Take(width));
        break;
      }
      case 5:
        Access(bridge.mmio, input.Take(5), width, write, input.Take(width));
        break;
      case 6:
        if (target < 2) {
          loop->RunOnce(0);
          Control(*ports[target], *functions[target + 1U], static_cast<unsigned>(input.Take(1)),
                  pending);
        } else {
          functions[0]->msix()->Trigger(static_cast<std::uint16_t>(input.Take(2)));
        }
        break;
      default: {
        FakeFunction& function = *functions[target % functions.size()];
        const postern::MutexLock lock(function.lock());
        if (write) {
          function.Reset();
          break;
        }
        const postern::pci::FunctionState state = function.SaveFunction();
        CHECK(function.RestoreFunction(state).has_value());
        break;
      }
    }
    if (step % 16 == 0) CheckMap(bridge);
  }
  CheckMap(bridge);
  for (const auto& port : ports) (void)port->Pull();
  loop->RunOnce(0);
  CHECK(pending == 0);
  bridge.root.reset();
  CHECK(bridge.mmio.Ranges().empty());
  CHECK(bridge.platform.pages.Mappings().empty());
  CHECK(bridge.platform.doorbells.size() == 0);
  return 0;
}
