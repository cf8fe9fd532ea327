// A hostile device and a hostile guest: config space bytes, region sizes, mappable areas and vector
// counts from the input, then accesses of config space and BARs, signals and failures. Whatever
// they are: what is mapped is mapped only while memory is decoded and lies in the windows, no
// vector is handed over beyond the device's count or twice by one eventfd, at most one kind of
// interrupt is enabled (the fake refuses a second), the guest's capability chains end.

#include "vfio/function.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "devices/pci/fake_function.h"
#include "src/base/check.h"
#include "src/base/event_loop.h"
#include "src/base/log.h"
#include "tests/support/fuzz_input.h"
#include "vfio/fake_host_device.h"

using namespace postern;  // NOLINT(google-build-using-namespace)
using postern::testing::FuzzInput;

namespace {

// A size near a power of two, any number, or nothing.
std::uint64_t TakeSize(FuzzInput& input) {
  const auto how = static_cast<std::uint8_t>(input.Take(1));
  if (how < 0x40) return 0;
  if (how < 0xf0) return (std::uint64_t{1} << (how % 20)) + (how >= 0xe0 ? input.Take(2) : 0);
  return input.Take(8) % (std::uint64_t{1} << 62);
}

// As HostDevice's contract has it: page aligned, inside the region, ascending.
void TakeAreas(FuzzInput& input, vfio::RegionInfo& region) {
  std::uint64_t next = 0;
  const std::uint64_t count = input.Take(1) % 5;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t offset = next + input.Take(1) % 8 * 4096;
    const std::uint64_t length = (1 + input.Take(1) % 8) * 4096;
    if (offset > region.size || length > region.size - offset) return;
    region.areas.push_back({offset, length});
    next = offset + length;
  }
}

std::unique_ptr<vfio::FakeHostDevice> TakeDevice(FuzzInput& input) {
  auto device = std::make_unique<vfio::FakeHostDevice>();
  const auto shape = static_cast<std::uint8_t>(input.Take(1));
  if ((shape & 1) != 0) device->AddMsix(static_cast<std::uint16_t>(1 + input.Take(1)));
  if ((shape & 2) != 0) device->AddMsi(4, (shape & 4) != 0, (shape & 8) != 0);
  if ((shape & 0x10) != 0) device->AddIntx();
  if ((shape & 0x20) != 0) device->AddRom(0x1000 + input.Take(1), 0x55, 0xaa);
  if ((shape & 0x40) != 0) {
    for (std::size_t i = 0; i < pci::kBarCount; ++i) {
      const std::uint64_t size = TakeSize(input);
      device->SetBar(i, static_cast<std::uint32_t>(input.Take(1)), size, false);
      device->device.regions[i].readable = (input.Take(1) & 7) != 0;
      TakeAreas(input, device->device.regions[i]);
    }
  }
  const std::uint64_t bytes = input.Take(1) % 64;
  for (std::uint64_t i = 0; i < bytes; ++i) {
    const std::uint64_t at = (shape & 0x80) != 0 ? input.Take(2) % 0x1000 : input.Take(1);
    device->config[at] = static_cast<std::uint8_t>(input.Take(1));
  }
  for (const std::uint32_t irq : {vfio::kIntxIrq, vfio::kMsiIrq, vfio::kMsixIrq}) {
    const auto change = static_cast<std::uint8_t>(input.Take(1));
    vfio::IrqInfo& info = device->device.irqs[irq];
    if ((change & 1) != 0) info.noresize = !info.noresize;
    if ((change & 0xe) == 0xe) info.count = change >> 4;
    if ((change & 0xf0) == 0xf0) info.eventfd = !info.eventfd;
  }
  return device;
}

struct Watch {
  // No kind hands out a vector beyond its count, and no eventfd serves two vectors.
  void Check() const {
    std::set<int> seen;
    for (const std::uint32_t irq : {vfio::kIntxIrq, vfio::kMsiIrq, vfio::kMsixIrq}) {
      const std::uint32_t count = device->device.irqs[irq].count;
      for (std::uint32_t vector = 0; vector < count; ++vector) {
        const int event = device->Event(irq, vector);
        if (event >= 0) CHECK(seen.insert(event).second);
      }
      CHECK(device->Event(irq, count) == -1);
    }
    const bool decoding = (function->config().Get<std::uint16_t>(pci::kCommand) & 2) != 0;
    for (const auto& mapping : bridge->platform.pages.Mappings()) {
      CHECK(decoding);
      CHECK(!function->lost());
      CHECK(pci::FakeBridge::kWindows.memory32.Contains(mapping.gpa.value, mapping.pages.length) ||
            pci::FakeBridge::kWindows.memory64.Contains(mapping.gpa.value, mapping.pages.length));
      CHECK(mapping.gpa.value % 4096 == 0);
    }
    if (!decoding) CHECK(device->space.mapped.empty());
    CHECK(device->space.mapped.size() <= bridge->platform.pages.Mappings().size());
  }
  // The guest's walk of both chains.
  void CheckChains() const {
    const auto load = [this](std::uint32_t at) { return bridge->Config<std::uint32_t>(where, at); };
    unsigned steps = 0;
    for (std::uint32_t at = load(0x34) & 0xff; at != 0; at = load(at) >> 8 & 0xff) {
      CHECK(at >= 0x40 && at % 4 == 0);
      CHECK(++steps <= 48);
    }
    steps = 0;
    for (std::uint32_t at = 0x100; at != 0 && load(at) != 0; at = load(at) >> 20) {
      CHECK(at >= 0x100 && at % 4 == 0);
      CHECK(++steps <= 960);
    }
  }
  pci::FakeBridge* bridge = nullptr;
  vfio::FakeHostDevice* device = nullptr;
  vfio::VfioFunction* function = nullptr;
  pci::Bdf where;
};

void Access(bus::Bus& bus, std::uint64_t address, std::size_t width, bool write,
            std::uint64_t value) {
  std::array<std::byte, 8> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  if (write) {
    bus.Write(address, std::span<const std::byte>(bytes).first(width));
  } else {
    bus.Read(address, std::span(bytes).first(width));
  }
}

void State(vfio::VfioFunction& function, bool reset) {
  const MutexLock lock(function.lock());
  if (reset) {
    function.Reset();
    return;
  }
  if (function.lost()) return;
  const vfio::VfioFunctionState state = function.Save();
  Result<void> restored = function.Restore(state);
  CHECK(restored.has_value() || restored.error().code != Errc::kBadFormat);
}

void Step(FuzzInput& input, Watch& watch, EventLoop& loop, int& error) {
  const auto control = static_cast<std::uint8_t>(input.Take(1));
  const std::size_t width = std::size_t{1} << (control & 3);
  const bool write = (control & 4) != 0;
  pci::FakeBridge& bridge = *watch.bridge;
  switch (control >> 3 & 7) {
    case 0:
    case 1:
    case 2:
    case 3: {
      // Mostly the header and the capabilities, where the side effects are.
      const bool anywhere = (control >> 3 & 3) == 3;
      const auto offset = static_cast<std::uint32_t>(input.Take(anywhere ? 2 : 1) % 0x1000);
      Access(bridge.mmio, pci::FakeBridge::ConfigAddress(watch.where, offset), width, write,
             input.Take(width));
      return;
    }
    case 4:
    case 5: {
      const std::size_t bar = input.Take(1) % pci::kBarCount;
      const auto& decoded = watch.function->bars()[bar];
      const bool io = decoded && decoded->kind() == pci::BarKind::kIo;
      Access(io ? bridge.ports : bridge.mmio, watch.function->BarAddress(bar) + input.Take(2),
             width, write, input.Take(width));
      return;
    }
    case 6: {
      // At most the vectors there are: events of an earlier life are closed.
      const auto irq = static_cast<std::uint32_t>(input.Take(1) % vfio::kIrqCount);
      (void)watch.device->Fire(irq, static_cast<std::uint32_t>(input.Take(1)));
      return;
    }
    default:
      if ((control & 0xc0) == 0xc0) {
        // From now on some calls fail; ENODEV is for good.
        static constexpr std::array<int, 4> kErrors{0, EIO, EAGAIN, ENODEV};
        error = kErrors[control & 3];
      } else if (write) {
        State(*watch.function, (control & 1) != 0);
      } else {
        loop.RunOnce(0);
        loop.RunOnce(0);
      }
      return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  log::SetLevel(LogLevel::kOff);
  FuzzInput input(data, size);
  pci::FakeBridge bridge;
  auto loop = EventLoop::Create().value();
  auto fake = TakeDevice(input);
  vfio::FakeHostDevice* device = fake.get();
  int error = 0;
  device->fail = [&](const vfio::FakeHostDevice::Call& call) {
    // Some calls, by what they are, so that a failure is not the end of everything else.
    return error == ENODEV || (call.offset + call.index) % 3 == 0 ? error : 0;
  };
  const auto how = static_cast<std::uint8_t>(input.Take(1));
  vfio::VfioFunction::Options options{.id = "fuzz", .rom_bar = (how & 1) != 0};
  if ((how & 2) != 0) options.intx_gsi = 5;
  iommu::PeerMemory peers;
  if ((how & 4) != 0) options.peers = &peers;
  if ((how & 8) != 0) options.trap_bars = {static_cast<unsigned>(how >> 5)};
  auto made = vfio::VfioFunction::Create(std::move(fake), bridge.platform.Get(), *loop,
                                         std::move(options), [] {});
  if (!made) return 0;
  std::unique_ptr<vfio::VfioFunction> function = std::move(*made);
  Watch watch{&bridge, device, function.get(), bridge.root->Add(*function).value()};
  (void)bridge.root->AssignAddresses();
  watch.CheckChains();
  for (int step = 0; step < 256 && input.left(); ++step) {
    Step(input, watch, *loop, error);
    // Between the loss and the loop's turn the mappings are still there.
    if (function->lost()) {
      loop->RunOnce(0);
      loop->RunOnce(0);
    }
    if (step % 8 == 0) watch.Check();
  }
  watch.Check();
  error = 0;
  if (!function->lost()) watch.CheckChains();
  CHECK(bridge.root->Remove(*function).has_value());
  function.reset();
  CHECK(bridge.mmio.Ranges().size() == 1);  // ECAM
  CHECK(bridge.platform.pages.Mappings().empty());
  CHECK(bridge.platform.interrupts.routes() == 0);
  return 0;
}
