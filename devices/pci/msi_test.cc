#include "devices/pci/msi.h"

#include <array>
#include <cstring>
#include <vector>

#include "devices/pci/fake_function.h"
#include "src/bus/fake_platform.h"

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

constexpr std::uint32_t kAt = 0x50;
constexpr std::uint16_t kEnable = 1;

constexpr std::uint16_t Enable(std::uint16_t log2) {
  return static_cast<std::uint16_t>(kEnable | log2 << 4);
}

struct Fixture {
  explicit Fixture(MsiCapability::Options options)
      : config({}), msi(MsiCapability::Create(interrupts, options).value()) {
    config.Load({std::vector<std::uint8_t>(256), std::vector<std::uint8_t>(256),
                 std::vector<std::uint8_t>(256)});
    msi->Place(config, kAt);
    data_at = kAt + (options.address64 ? 0xc : 0x8);
  }
  template <typename U>
  void Write(std::uint32_t at, U value) {
    std::array<std::byte, sizeof(U)> bytes{};
    std::memcpy(bytes.data(), &value, sizeof(U));
    CHECK(config.Write(at, bytes));
    msi->Update(config);
  }
  void Program(std::uint64_t address, std::uint16_t data) {
    Write<std::uint32_t>(kAt + 4, static_cast<std::uint32_t>(address));
    if (data_at == kAt + 0xc)
      Write<std::uint32_t>(kAt + 8, static_cast<std::uint32_t>(address >> 32));
    Write<std::uint16_t>(data_at, data);
  }
  std::uint32_t Pending() {
    msi->RefreshPending(config);
    return config.Get<std::uint32_t>(data_at + 8);
  }
  bus::FakeInterruptSource interrupts;
  ConfigSpace config;
  std::unique_ptr<MsiCapability> msi;
  std::uint32_t data_at;
};

TEST_CASE("msi: vector counts are powers of two up to 32") {
  bus::FakeInterruptSource interrupts;
  for (const std::uint16_t count : std::array<std::uint16_t, 4>{0, 3, 33, 64}) {
    CAPTURE(count);
    CHECK(MsiCapability::Create(interrupts, {.vectors = count}).error().code ==
          Errc::kInvalidArgument);
  }
  CHECK(MsiCapability::Create(interrupts, {.vectors = 32}).has_value());
  CHECK(MsiCapability::Size({.address64 = false}) == 10);
  CHECK(MsiCapability::Size({.address64 = true}) == 14);
  CHECK(MsiCapability::Size({.address64 = false, .per_vector_masking = true}) == 20);
  CHECK(MsiCapability::Size({.address64 = true, .per_vector_masking = true}) == 24);
}

TEST_CASE("msi: registers of each layout keep what the guest may write") {
  for (const bool wide : {false, true}) {
    for (const bool masking : {false, true}) {
      CAPTURE(wide);
      CAPTURE(masking);
      Fixture f({.vectors = 4, .address64 = wide, .per_vector_masking = masking});
      for (std::uint32_t at = kAt + 2; at < kAt + f.msi->size(); at += 2)
        f.Write<std::uint16_t>(at, at == kAt + 2 ? 0xfffe : 0xffff);  // not enabled
      CHECK(f.config.Get<std::uint16_t>(kAt + 2) ==
            (0x74 | (wide ? 0x80 : 0) | (masking ? 0x100 : 0)));
      CHECK(f.config.Get<std::uint32_t>(kAt + 4) == 0xfffffffc);
      if (wide) CHECK(f.config.Get<std::uint32_t>(kAt + 8) == 0xffffffff);
      CHECK(f.config.Get<std::uint16_t>(f.data_at) == 0xffff);
      if (masking) {
        CHECK(f.config.Get<std::uint32_t>(f.data_at + 4) == 0xf);
        CHECK(f.Pending() == 0);
      }
      CHECK(f.interrupts.routes() == 0);
    }
  }
}

TEST_CASE("msi: each vector has the address, and its number in the low bits of the data") {
  Fixture f({.vectors = 4});
  f.Program(0x1'fee01000, 0x4243);
  f.msi->vectors().Trigger(0);  // disabled: dropped
  f.Write<std::uint16_t>(kAt + 2, Enable(2));
  CHECK(f.msi->enabled_vectors() == 4);
  CHECK(f.interrupts.routes() == 4);
  for (const std::uint16_t vector : std::array<std::uint16_t, 4>{3, 0, 4, 31})
    f.msi->vectors().Trigger(vector);
  CHECK(f.interrupts.TakeDelivered() ==
        std::vector<bus::MsiMessage>{{0x1'fee01000, 0x4240}, {0x1'fee01000, 0x4243}});
  // Moved while enabled: at once.
  f.Program(0xfee02000, 0x50);
  f.msi->vectors().Trigger(1);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee02000, 0x51}});
  f.Write<std::uint16_t>(kAt + 2, 0);
  CHECK(f.msi->enabled_vectors() == 0);
  f.msi->vectors().Trigger(1);
  CHECK(f.interrupts.TakeDelivered().empty());
}

TEST_CASE("msi: a guest that enables more vectors than there are gets those there are") {
  for (const std::uint16_t log2 : std::array<std::uint16_t, 4>{3, 5, 6, 7}) {
    CAPTURE(log2);
    Fixture f({.vectors = 4});
    f.Program(0xfee00000, 0x40);
    f.Write<std::uint16_t>(kAt + 2, Enable(log2));
    CHECK(f.msi->enabled_vectors() == 4);
    f.msi->vectors().Trigger(3);
    CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x43}});
  }
}

TEST_CASE("msi: fewer enabled vectors keep more bits of the data") {
  Fixture f({.vectors = 8});
  f.Program(0xfee00000, 0x47);
  f.Write<std::uint16_t>(kAt + 2, Enable(1));
  CHECK(f.interrupts.routes() == 2);
  f.msi->vectors().Trigger(1);
  f.msi->vectors().Trigger(2);  // not enabled
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x47}});
  // 6.8.1.3 forbids this; nothing is lost but what is pending.
  f.Write<std::uint16_t>(kAt + 2, Enable(3));
  CHECK(f.msi->enabled_vectors() == 8);
  f.msi->vectors().Trigger(7);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x47}});
  f.msi->vectors().Trigger(2);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x42}});
}

TEST_CASE("msi: what a masked vector signals is pending, and delivered once when unmasked") {
  Fixture f({.vectors = 2, .address64 = true, .per_vector_masking = true});
  f.Program(0xfee00000, 0x40);
  f.Write<std::uint32_t>(f.data_at + 4, 2);
  f.Write<std::uint16_t>(kAt + 2, Enable(1));
  CHECK(f.interrupts.routes() == 1);  // the masked one has none yet
  f.msi->vectors().Trigger(1);
  f.msi->vectors().Trigger(1);
  CHECK(f.Pending() == 2);
  CHECK(f.interrupts.TakeDelivered().empty());
  f.Write<std::uint32_t>(f.data_at + 8, 0xffffffff);  // read-only
  CHECK(f.Pending() == 2);
  f.Write<std::uint32_t>(f.data_at + 4, 0);
  CHECK(f.Pending() == 0);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x41}});

  // Disabled while pending: dropped.
  f.Write<std::uint32_t>(f.data_at + 4, 3);
  f.msi->vectors().Trigger(0);
  CHECK(f.Pending() == 1);
  f.Write<std::uint16_t>(kAt + 2, 0);
  f.Write<std::uint32_t>(f.data_at + 4, 0);
  f.Write<std::uint16_t>(kAt + 2, Enable(1));
  CHECK(f.interrupts.TakeDelivered().empty());
}

TEST_CASE("msi: save and restore carry pending bits, and refuse those of disabled vectors") {
  const MsiCapability::Options options{.vectors = 4, .address64 = true, .per_vector_masking = true};
  Fixture f(options);
  f.Program(0xfee00000, 0x40);
  f.Write<std::uint32_t>(f.data_at + 4, 0xf);
  f.Write<std::uint16_t>(kAt + 2, Enable(1));
  f.msi->vectors().Trigger(1);
  const MsiState state = f.msi->Save();
  CHECK(state.pending == 2);
  const ConfigState registers = f.config.Save();

  Fixture g(options);
  CHECK(g.config.Restore(registers).has_value());
  CHECK(g.msi->Restore(g.config, {.pending = 4}).error().code == Errc::kBadFormat);
  REQUIRE(g.msi->Restore(g.config, state).has_value());
  CHECK(g.Pending() == 2);
  CHECK(g.interrupts.TakeDelivered().empty());
  g.Write<std::uint32_t>(g.data_at + 4, 0);
  CHECK(g.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x41}});
  g.msi->Reset();
  CHECK(!g.msi->enabled());
}

// A function with MSI appended to its chain and an expansion ROM.
class MsiFunction final : public PciFunction {
 public:
  explicit MsiFunction(bus::InterruptSource& interrupts)
      : PciFunction("msi", {.vendor = 0x1234, .device = 1}), rom(0x1000, std::byte{0x5a}) {
    CHECK(AddMsi(MsiCapability::Create(interrupts, {.vectors = 2}).value()).has_value());
    const bus::HostPages pages{.fd = -1, .offset = 0, .address = rom.data(), .length = 0x1000};
    const auto bar = [&](BarKind kind) {
      return Bar::Create(kind, 0x1000, {Pages{0, pages, memory::Access::kRead, "rom"}}).value();
    };
    CHECK(AddRom(bar(BarKind::kMem64)).error().code == Errc::kInvalidArgument);
    CHECK(AddRom(bar(BarKind::kMem32)).has_value());
    CHECK(AddRom(bar(BarKind::kMem32)).error().code == Errc::kInvalidArgument);
  }
  std::vector<std::byte> rom;
};

TEST_CASE("function: MSI follows message control at every width of write") {
  for (const std::size_t width : {1U, 2U, 4U}) {
    CAPTURE(width);
    FakeBridge bridge;
    MsiFunction function(bridge.platform.interrupts);
    const Bdf at = bridge.root->Add(function).value();
    const auto cap = bridge.Config<std::uint8_t>(at, kCapabilitiesPointer);
    CHECK(bridge.Config<std::uint8_t>(at, cap) == kCapMsi);
    bridge.Config<std::uint32_t>(at, cap + 4U, 0xfee00000);
    bridge.Config<std::uint16_t>(at, cap + 0xcU, 0x30);
    if (width == 1) bridge.Config<std::uint8_t>(at, cap + 2U, 1);
    if (width == 2) bridge.Config<std::uint16_t>(at, cap + 2U, 1);
    if (width == 4) bridge.Config<std::uint32_t>(at, cap, 0x0001ffff);
    CHECK(bridge.Config<std::uint8_t>(at, cap) == kCapMsi);
    function.msi()->vectors().Trigger(0);
    CHECK(bridge.platform.interrupts.TakeDelivered() ==
          std::vector<bus::MsiMessage>{{0xfee00000, 0x30}});
    {
      const MutexLock lock(function.lock());
      const FunctionState state = function.SaveFunction();
      REQUIRE(state.msi.has_value());
      function.Reset();
      CHECK(!function.msi()->enabled());
      FunctionState bad = state;
      bad.msi.reset();
      CHECK(function.RestoreFunction(bad).error().code == Errc::kBadFormat);
      CHECK(function.RestoreFunction(state).has_value());
      CHECK(function.msi()->enabled());
    }
    CHECK(bridge.root->Remove(function).has_value());
  }
}

TEST_CASE("function: the expansion ROM is decoded while its own bit and memory decoding are on") {
  FakeBridge bridge;
  MsiFunction function(bridge.platform.interrupts);
  const Bdf at = bridge.root->Add(function).value();
  bridge.Config<std::uint32_t>(at, kRomBase, 0xfffffffe);
  CHECK(bridge.Config<std::uint32_t>(at, kRomBase) == 0xfffff000);
  bridge.Config<std::uint32_t>(at, kRomBase, 0);
  REQUIRE(bridge.root->AssignAddresses().has_value());
  const auto base = bridge.Config<std::uint32_t>(at, kRomBase);
  CHECK(base != 0);
  CHECK(base % 0x1000 == 0);
  bridge.Config<std::uint16_t>(at, kCommand, 2);
  CHECK(bridge.platform.pages.Mappings().empty());
  bridge.Config<std::uint32_t>(at, kRomBase, base | kRomEnable);
  REQUIRE(bridge.platform.pages.Mappings().size() == 1);
  CHECK(bridge.platform.pages.Mappings()[0].gpa.value == base);
  CHECK(bridge.platform.pages.Mappings()[0].access == memory::Access::kRead);
  CHECK(Describe(bridge.root->Functions()[1]).find("ROM mem32") != std::string::npos);
  bridge.Config<std::uint16_t>(at, kCommand, 0);
  CHECK(bridge.platform.pages.Mappings().empty());
  bridge.Config<std::uint16_t>(at, kCommand, 2);
  CHECK(bridge.platform.pages.Mappings().size() == 1);
  bridge.Config<std::uint32_t>(at, kRomBase, base);
  CHECK(bridge.platform.pages.Mappings().empty());
  CHECK(bridge.root->Remove(function).has_value());
}

}  // namespace
}  // namespace postern::pci
