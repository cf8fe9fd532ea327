// DeviceSet's hot-plug slots over a fake platform, with the test in the guest's place.

#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "src/arch/x86_64/layout.h"
#include "src/bus/fake_platform.h"
#include "src/machine/device_set.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

struct Rig {
  static constexpr pci::Windows kWindows = {
      .memory32 = {x86_64::kPciWindow32, x86_64::kPciWindow32Size},
      .memory64 = {0x1000000000, 0x3000000000},
      .io = {x86_64::kPciPorts, x86_64::kPciPortsSize}};

  explicit Rig(std::uint32_t ports, const pci::Windows& windows = kWindows)
      : control(EventLoop::Create().value()) {
    std::vector<memory::RegionPtr> regions;
    regions.push_back(memory::Region::Create(memory::Gpa(0), 1 << 20, {}).value());
    memory = std::make_unique<memory::MemoryMap>(
        memory::GuestMemory::Create(std::move(regions)).value());
    Config config;
    config.console.mode = ConsoleConfig::Mode::kOff;
    config.hotplug_ports = ports;
    auto made = DeviceSet::Create(config, {.platform = platform.Get(),
                                           .mmio = mmio,
                                           .ports = port_bus,
                                           .memory = *memory,
                                           .windows = windows,
                                           .quit = [] {},
                                           .control = *control});
    if (!made) {
      failure = made.error();
      return;
    }
    devices = std::move(*made);
    char name[] = "/tmp/postern_hot_XXXXXX";
    const int fd = mkstemp(name);
    REQUIRE(fd >= 0);
    REQUIRE(ftruncate(fd, 1 << 20) == 0);
    REQUIRE(close(fd) == 0);
    path = name;
  }
  ~Rig() {
    devices.reset();
    (void)unlink(path.c_str());
  }
  template <typename U>
  U Load(unsigned bus, unsigned device, std::uint64_t offset) {
    std::array<std::byte, sizeof(U)> bytes{};
    mmio.Read(x86_64::kEcam + (bus << 20 | device << 15) + offset, bytes);
    U value;
    std::memcpy(&value, bytes.data(), sizeof(U));
    return value;
  }
  // The guest says of the first port (slot 2, after rng0) that it has let go: the power indicator.
  void Release() {
    std::uint64_t at = Load<std::uint8_t>(0, 2, 0x34);
    while (Load<std::uint8_t>(0, 2, at) != pci::kCapPciExpress)
      at = Load<std::uint8_t>(0, 2, at + 1);
    const std::array<std::byte, 2> off = {std::byte{0xc0}, std::byte{0x03}};
    mmio.Write(x86_64::kEcam + (2 << 15) + at + pci::kExpSlotControl, off);
  }
  DiskConfig Disk(std::string id = {}) { return {.id = std::move(id), .path = path}; }

  bus::FakePlatform platform;
  bus::Bus mmio;
  bus::Bus port_bus;
  std::unique_ptr<EventLoop> control;
  std::unique_ptr<memory::MemoryMap> memory;
  std::unique_ptr<DeviceSet> devices;  // null after a failure
  Failure failure;
  std::string path;
};

TEST_CASE("hot devices: a disk appears behind a port, and goes when the guest lets go") {
  Rig rig(2);
  CHECK(rig.devices->free_slots() == 2);
  boot::acpi::Config acpi;
  rig.devices->DescribeTo(acpi);
  REQUIRE(acpi.pci.has_value());
  CHECK(acpi.pci->buses == 3);
  CHECK(rig.devices->AddDevice(rig.Disk()).value() == "disk0");
  CHECK(rig.Load<std::uint32_t>(1, 0, 0) == 0x10421af4);
  CHECK(rig.devices->free_slots() == 1);
  int done = 0;
  CHECK(rig.devices->RemoveDevice("disk0", [&] { ++done; }));
  CHECK(rig.devices->Devices().back().leaving);
  const Outcome<void> again = rig.devices->RemoveDevice("disk0", [&] { ++done; });
  REQUIRE_FALSE(again);
  CHECK(again.error().kind == Failure::Kind::kHost);
  rig.Release();
  rig.control->RunOnce(0);
  CHECK(done == 1);
  CHECK(rig.Load<std::uint32_t>(1, 0, 0) == 0xffffffff);
  CHECK(rig.devices->free_slots() == 2);
  CHECK(rig.devices->Devices().size() == 1);
  // Name and slot are free again; the file is, too.
  CHECK(rig.devices->AddDevice(rig.Disk("disk0")).value() == "disk0");
  CHECK(rig.devices->Devices().back().slot == 1);
}

TEST_CASE("hot devices: a pulled disk is gone at once, and whoever asked for it is told") {
  Rig rig(1);
  CHECK(rig.devices->AddDevice(rig.Disk("x")).value() == "x");
  int done = 0;
  CHECK(rig.devices->RemoveDevice("x", [&] { ++done; }));
  CHECK(rig.devices->PullDevice("x"));
  CHECK(done == 1);
  CHECK(rig.Load<std::uint32_t>(1, 0, 0) == 0xffffffff);
  CHECK(rig.devices->AddDevice(rig.Disk("x")).value() == "x");
  CHECK(rig.devices->PullDevice("x"));
  CHECK(done == 1);
}

TEST_CASE("hot devices: slots have I/O windows as long as bus 0 keeps some ports") {
  Rig rig(16);
  for (unsigned port = 1; port <= 16; ++port) {
    CAPTURE(port);
    const auto window = rig.Load<std::uint16_t>(0, port + 1, pci::kIoBase);
    const auto base = static_cast<std::uint16_t>((window & 0xf0U) << 8);
    const std::uint16_t limit = window & 0xf000U;
    CHECK(base == (port <= 14 ? port * 0x1000 : 0));
    CHECK(limit == base);
  }
  boot::acpi::Config acpi;
  rig.devices->DescribeTo(acpi);
  CHECK(acpi.pci->ports == x86_64::AddressRange{0x1000, 0xf000});
}

TEST_CASE("hot devices: what cannot be is refused by name, and changes nothing") {
  Rig rig(1);
  const auto refused = [](const auto& outcome, const char* cause) {
    return !outcome && outcome.error().kind == Failure::Kind::kConfig &&
           outcome.error().cause.find(cause) != std::string::npos &&
           !outcome.error().next_step.empty();
  };
  CHECK(refused(rig.devices->AddDevice(DiskConfig{}), "disk.path"));
  CHECK(refused(rig.devices->AddDevice(DiskConfig{.path = "/nowhere"}), "/nowhere"));
  for (const char* taken : {"rng0", "port1", "serial0", "hotplug"})
    CHECK(refused(rig.devices->AddDevice(rig.Disk(taken)), "taken"));
  CHECK(refused(rig.devices->RemoveDevice("rng0", [] {}), "from the start"));
  CHECK(refused(rig.devices->RemoveDevice("x\n", [] {}), "no device 'x\\x0a'"));
  CHECK(refused(rig.devices->PullDevice("rng0"), "from the start"));
  CHECK(rig.devices->AddDevice(rig.Disk()));
  CHECK(refused(rig.devices->AddDevice(rig.Disk()), "all 1 hot-plug slots"));
  CHECK(refused(rig.devices->AddDevice(AssignedConfig{.host = "0000:3b:00.0"}),
                "all 1 hot-plug slots"));
  CHECK(rig.devices->Devices().size() == 2);
  Rig none(0);
  CHECK(refused(none.devices->AddDevice(none.Disk()), "no hot-plug slots"));
}

TEST_CASE("hot devices: a BAR that no slot has room for is refused with the sizes") {
  Rig rig(1, {.memory32 = {x86_64::kPciWindow32, 0x100000}, .memory64 = {}, .io = {}});
  REQUIRE(rig.devices != nullptr);
  for (int round = 0; round < 2; ++round) {
    const Outcome<std::string> added = rig.devices->AddDevice(rig.Disk("x"));
    REQUIRE_FALSE(added);
    CHECK(added.error().kind == Failure::Kind::kConfig);
    CHECK(added.error().cause.starts_with("device 'x': no room for its BAR "));
    CHECK(added.error().next_step.find("--hotplug-ports") != std::string::npos);
  }
  CHECK(rig.devices->free_slots() == 1);
  CHECK(rig.devices->Devices().size() == 1);
}

TEST_CASE("devices: BARs that do not fit the windows are refused, the largest by name") {
  const Rig rig(0, {.memory32 = {x86_64::kPciWindow32, 0x1000}, .memory64 = {}, .io = {}});
  REQUIRE(rig.devices == nullptr);
  CHECK(rig.failure.kind == Failure::Kind::kConfig);
  CHECK(rig.failure.cause.find("4K below 4 GiB and 0 above") != std::string::npos);
  CHECK(rig.failure.cause.find("of 'rng0'") != std::string::npos);
  CHECK_FALSE(rig.failure.next_step.empty());
}

TEST_CASE("hot devices: a set ends with disks plugged in and asked to go") {
  Rig rig(2);
  int done = 0;
  CHECK(rig.devices->AddDevice(rig.Disk("a")));
  CHECK(rig.devices->RemoveDevice("a", [&] { ++done; }));
  rig.Release();  // and nobody has come by yet
  rig.devices.reset();
  rig.control->RunOnce(0);
  CHECK(done == 0);
  CHECK(rig.mmio.Ranges().empty());
}

}  // namespace
}  // namespace postern
