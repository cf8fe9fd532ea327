#pragma once

// FakeVdev: a whole Vdev from memory alone, for tests, benches and fuzz targets: fakes for backend
// and personality, on the bus of a FakeBridge, and the guest's side of it.
//
//   FakeVdev f({.portal = PortalMode::kTrapped});
//   f.Run(FakeCommand::kEnable, 0);
//   f.StoreDescriptor(0x1000, FakeDescriptor(1));
//   CHECK(f.backend->Occupancy(0) == 1);
//
// Threads: the guest's side from any; the rest from the test's, which runs the loop (Turn).

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "devices/pci/fake_function.h"
#include "devices/siov/core/fake_backend.h"
#include "devices/siov/core/fake_personality.h"
#include "devices/siov/core/vdev.h"
#include "src/base/check.h"
#include "src/base/event_loop.h"
#include "tests/support/counter.h"

namespace postern::siov {

struct FakeVdevOptions {
  PortalMode portal = PortalMode::kTrapped;
  VdevLayout layout = FakePersonality::DefaultLayout();
  BackendCaps caps = FakeBackend::DefaultCaps();
};

struct FakeVdev {
  static constexpr std::uint64_t kRegisters = 0xc0100000;
  static constexpr std::uint64_t kPortals = 0x4000100000;
  static constexpr std::uint16_t kMemory = 0x2;
  static constexpr std::uint16_t kBusMaster = 0x4;
  static constexpr std::uint32_t kExpress = 0x40;

  explicit FakeVdev(const FakeVdevOptions& options = {}) {
    auto own_backend = std::make_unique<FakeBackend>(options.caps);
    auto own_personality = std::make_unique<FakePersonality>(options.layout);
    backend = own_backend.get();
    personality = own_personality.get();
    vdev = Vdev::Create({.name = "nothing0", .portal = options.portal}, std::move(own_personality),
                        std::move(own_backend), {bridge.platform.interrupts, *loop})
               .value();
    where = bridge.root->Add(*vdev).value();
    Place();
    Command(kMemory | kBusMaster);
  }
  ~FakeVdev() { CHECK(bridge.root->Remove(*vdev).has_value()); }
  FakeVdev(const FakeVdev&) = delete;
  FakeVdev& operator=(const FakeVdev&) = delete;

  // --- the guest ---
  void Place() {
    const auto put = [&](std::uint32_t bar, std::uint64_t address) {
      bridge.Config<std::uint32_t>(where, pci::kBar0 + 4 * bar,
                                   static_cast<std::uint32_t>(address));
      bridge.Config<std::uint32_t>(where, pci::kBar0 + 4 * bar + 4,
                                   static_cast<std::uint32_t>(address >> 32));
    };
    put(0, kRegisters);
    put(2, kPortals);
  }
  void Command(std::uint16_t value) { bridge.Config<std::uint16_t>(where, pci::kCommand, value); }
  template <typename U>
  U Register(std::uint64_t offset) {
    return bridge.Read<U>(kRegisters + offset);
  }
  template <typename U>
  void Register(std::uint64_t offset, U value) {
    bridge.Write<U>(kRegisters + offset, value);
  }
  // Starts a command and lets what it posted happen. RESULT.
  std::uint32_t Run(FakeCommand command, std::uint32_t argument = 0) {
    Register<std::uint32_t>(FakePersonality::kCommand,
                            static_cast<std::uint32_t>(command) | argument << 8);
    Turn();
    return Register<std::uint32_t>(FakePersonality::kResult);
  }
  // To the page where one is mapped, else by an exit.
  void Store(std::uint64_t offset, std::span<const std::byte> data) {
    const std::uint64_t at = kPortals + offset;
    if (!bridge.platform.pages.GuestWrite(memory::Gpa(at), data)) bridge.mmio.Write(at, data);
  }
  // In stores of 8 bytes, the first last.
  void StoreDescriptor(std::uint64_t offset, const Descriptor& descriptor) {
    const std::span<const std::byte> bytes = descriptor;
    for (std::size_t at = 8; at < bytes.size(); at += 8) Store(offset + at, bytes.subspan(at, 8));
    Store(offset, bytes.first(8));
  }
  void EnableMsix(std::uint16_t vectors) {
    for (std::uint32_t v = 0; v < vectors; ++v) {
      const std::uint64_t entry = vdev->personality().layout().msix_table_offset + 16 * v;
      Register<std::uint64_t>(entry, 0xfee00000);
      Register<std::uint32_t>(entry + 8, 0x40 + v);
      Register<std::uint32_t>(entry + 12, 0);
    }
    MsixControl(0x8000);
  }
  void MsixControl(std::uint16_t value) {
    bridge.Config<std::uint16_t>(where, kExpress + pci::kExpressSizeV2 + pci::kMsixControl, value);
  }
  void FunctionLevelReset() {
    bridge.Config<std::uint16_t>(where, kExpress + pci::kExpressDeviceControl, pci::kExpressFlr);
  }

  // --- the host ---
  void Turn() {
    for (int i = 0; i < 4; ++i) loop->RunOnce(0);
  }
  std::uint64_t Counter(std::string_view name) { return testing::ReportedCounter(*vdev, name); }

  pci::FakeBridge bridge;
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  FakeBackend* backend = nullptr;
  FakePersonality* personality = nullptr;
  std::unique_ptr<Vdev> vdev;
  pci::Bdf where;
};

}  // namespace postern::siov
