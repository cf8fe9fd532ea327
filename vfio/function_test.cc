#include "vfio/function.h"

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "vfio/test_guest.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

constexpr std::uint32_t kDevControl = kExpressAt + pci::kExpressDeviceControl;

std::vector<Call> ConfigWrites(FakeHostDevice& device) {
  std::vector<Call> list;
  for (const Call& call : device.TakeCalls()) {
    if (call.op == Op::kWrite && call.index == kConfigRegion) list.push_back(call);
  }
  return list;
}

TEST_CASE("function: identity is answered without asking the device, the rest with it") {
  TestGuest guest(MakeDevice());
  CHECK(guest.Config<std::uint32_t>(0) == 0x10d38086);
  CHECK(guest.Config<std::uint8_t>(0xb) == 2);
  CHECK(guest.Config<std::uint16_t>(0x2e) == 0xa01f);
  CHECK(guest.Config<std::uint8_t>(pci::kHeaderType) == 0);
  CHECK(guest.Config<std::uint64_t>(0x28) == 0xa01f8086'00000000);
  CHECK(guest.device->TakeCalls().empty());

  CHECK(guest.Config<std::uint16_t>(kDevControl) == 0x2810);
  guest.device->Put<std::uint16_t>(kDevControl, 0xa8ff);
  CHECK(guest.Config<std::uint16_t>(kDevControl) == 0x28ff);  // the reset bit reads 0
  guest.device->Put<std::uint32_t>(0xf8, 0x04030201);         // belongs to no capability
  CHECK(guest.Config<std::uint32_t>(0xf8) == 0x04030201);
  CHECK(guest.Config<std::uint8_t>(0xf9) == 2);
  CHECK(guest.Config<std::uint64_t>(0xf8) == 0x04030201);
  guest.Config<std::uint16_t>(0xfa, 0x0807);
  CHECK(guest.device->Get<std::uint32_t>(0xf8) == 0x08070201);
  guest.device->Put<std::uint32_t>(0xffc, 0x11121314);
  CHECK(guest.Config<std::uint32_t>(0xffc) == 0x11121314);
  CHECK(guest.Counter("vfio_config_reads") > 5);
}

TEST_CASE("function: regression mtty: a config space of 255 bytes is one, and reads 0 beyond") {
  for (const std::uint32_t size : {64U, 65U, 255U, 257U, 4095U}) {
    CAPTURE(size);
    TestGuest guest(MakeDevice([size](FakeHostDevice& d) {
      d.device.regions[kConfigRegion].size = size;
      d.config[pci::kCapabilitiesPointer] = 0;
      d.Put<std::uint32_t>(0xfc, 0x04030201);
    }));
    const std::uint32_t there = size < 0x100 ? size - 0xfc : 4;
    const std::uint32_t wanted = size < 0xfc ? 0 : 0x04030201 & (0xffffffff >> (32 - 8 * there));
    CHECK(guest.Config<std::uint32_t>(0xfc) == wanted);
    CHECK(guest.Config<std::uint64_t>(0xf8) == std::uint64_t{wanted} << 32);
    CHECK(guest.Config<std::uint8_t>(0xff) == wanted >> 24);
    guest.Config<std::uint32_t>(0xfc, 0x14131211);
    CHECK(guest.device->Get<std::uint8_t>(0xff) == (size < 0x100 ? 0x04 : 0x14));
    CHECK(guest.Config<std::uint32_t>(0x100) == 0);
    CHECK(guest.Counter("vfio_device_errors") == 0);
  }
}

TEST_CASE("function: status error bits are cleared in the device; the list bit is ours") {
  TestGuest guest(MakeDevice());
  guest.device->Put<std::uint16_t>(pci::kStatus, 0xf908);
  CHECK(guest.Config<std::uint16_t>(pci::kStatus) == 0xf918);
  (void)guest.device->TakeCalls();
  guest.Config<std::uint16_t>(pci::kStatus, 0x2000);
  CHECK(guest.device->Get<std::uint16_t>(pci::kStatus) == 0xd908);
  // A dword write of COMMAND carries status along.
  guest.Config<std::uint32_t>(pci::kCommand, 0x80000000 | kMaster);
  CHECK(guest.device->Get<std::uint16_t>(pci::kStatus) == 0x5908);
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == kMaster);
}

TEST_CASE("function: memory decoding goes on at the device before, and off after, the mappings") {
  TestGuest guest(MakeDevice());
  std::vector<std::size_t> mapped_when_told;
  guest.device->on_call = [&](const Call& call) {
    if (call.op == Op::kWrite && call.index == kConfigRegion && call.offset == pci::kCommand)
      mapped_when_told.push_back(guest.Mappings());
  };
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 2);
  CHECK(guest.device->decodes());
  guest.Command(kMemory | kMaster);
  guest.Command(kMaster);
  CHECK(guest.Mappings() == 0);
  CHECK(!guest.device->decodes());
  CHECK(mapped_when_told == std::vector<std::size_t>{0, 2, 0});
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == kMaster);
}

TEST_CASE("function: regression #7063: COMMAND at every width of write, told once") {
  for (const std::size_t width : {1U, 2U, 4U, 8U}) {
    CAPTURE(width);
    TestGuest guest(MakeDevice());
    for (const std::uint16_t value : std::array<std::uint16_t, 4>{kMemory, kMemory, 0, 0}) {
      if (width == 1) guest.Config<std::uint8_t>(pci::kCommand, static_cast<std::uint8_t>(value));
      if (width == 2) guest.Config<std::uint16_t>(pci::kCommand, value);
      if (width == 4) guest.Config<std::uint32_t>(pci::kCommand, value);
      if (width == 8)
        guest.bridge.Write<std::uint64_t>(pci::FakeBridge::ConfigAddress(guest.at, 0),
                                          std::uint64_t{value} << 32);
      CHECK(guest.Mappings() == (value != 0 ? 2 : 0));
    }
    std::size_t told = 0;
    for (const Call& call : ConfigWrites(*guest.device))
      told += call.offset == pci::kCommand ? 1 : 0;
    CHECK(told == 2);
  }
}

TEST_CASE("function: BARs are sized and moved by the guest; the device never hears of it") {
  TestGuest guest(MakeDevice());
  // Regression b67e7da10: probes with ones in parts, by halves, and while decoding.
  const std::uint32_t bar0 = guest.Config<std::uint32_t>(0x10);
  for (const std::uint32_t probe : {0xffffffffU, 0xfffffff0U}) {
    guest.Config<std::uint32_t>(0x10, probe);
    CHECK(guest.Config<std::uint32_t>(0x10) == 0xffffc000);
  }
  guest.Config<std::uint16_t>(0x10, 0xffff);
  CHECK(guest.Config<std::uint16_t>(0x10) == 0xc000);
  guest.Config<std::uint32_t>(0x1c, 0xffffffff);
  guest.Config<std::uint32_t>(0x18, 0xffffffff);
  CHECK(guest.Config<std::uint32_t>(0x18) == 0xffffc00c);
  CHECK(guest.Config<std::uint32_t>(0x1c) == 0xffffffff);
  guest.Config<std::uint32_t>(0x20, 0xffffffff);
  CHECK(guest.Config<std::uint32_t>(0x20) == 0xffffffe1);
  for (const std::uint32_t none : {0x14U, 0x24U, 0x30U}) {
    guest.Config<std::uint32_t>(none, 0xffffffff);
    CHECK(guest.Config<std::uint32_t>(none) == 0);
  }
  guest.Config<std::uint32_t>(0x18, 0);
  guest.Config<std::uint32_t>(0x1c, 0x40);
  guest.Config<std::uint32_t>(0x10, bar0);
  guest.Command(kMemory);
  // Regression #593, #3244: moved while decoded, up, down, and over its own old place.
  for (const std::uint32_t to : {0xc8000000U, 0xc8004000U, 0xc8000000U}) {
    guest.Config<std::uint32_t>(0x10, to);
    CHECK(guest.Mapped(0) == std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0, 0x4000}});
    CHECK(guest.Bar(0) == to);
  }
  CHECK(guest.Mapped(2).size() == 1);
  for (const Call& call : ConfigWrites(*guest.device))
    CHECK((call.offset < pci::kBar0 || call.offset >= pci::kBarEnd));
}

TEST_CASE("function: mapped pages are the device's; the rest of a BAR is read and written") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.AddMsix(4);
    d.device.regions[0].areas = {{0x1000, 0x1000}};
  }));
  guest.Command(kMemory | kIoOn);
  CHECK(guest.Mapped(0) == std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0x1000, 0x1000}});
  CHECK(guest.Mapped(2) ==
        std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0, 0x1000}, {0x3000, 0x1000}});
  const std::array<std::byte, 4> word{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
  CHECK(guest.bridge.platform.pages.GuestWrite(memory::Gpa(guest.Bar(0) + 0x1ffc), word));
  CHECK(guest.device->memory[0][0x1ffd] == std::byte{2});

  guest.Write<std::uint64_t>(0, 0x8, 0x0807060504030201);
  CHECK(guest.device->memory[0][0xf] == std::byte{8});
  CHECK(guest.Read<std::uint16_t>(0, 0xa) == 0x0403);
  guest.Write<std::uint8_t>(2, 0x1040, 0x77);  // beside the table, in its page
  CHECK(guest.device->memory[2][0x1040] == std::byte{0x77});
  CHECK(guest.Read<std::uint8_t>(2, 0x1040) == 0x77);
  guest.Write<std::uint32_t>(2, 0x1000, 0xfee00000);  // the table never reaches the device
  CHECK(guest.device->memory[2][0x1003] == std::byte{0});
  // I/O.
  const auto io = static_cast<std::uint16_t>(guest.Bar(4));
  guest.bridge.Store<std::uint16_t>(guest.bridge.ports, io + 2U, 0x1234);
  CHECK(guest.device->memory[4][2] == std::byte{0x34});
  CHECK(guest.bridge.Load<std::uint32_t>(guest.bridge.ports, io) == 0x12340000);
  CHECK(guest.Counter("vfio_bar0_reads") == 1);
  CHECK(guest.Counter("vfio_bar0_writes") == 1);
  CHECK(guest.Counter("vfio_bar2_writes") == 1);
  CHECK(guest.Counter("vfio_bar4_reads") == 1);
}

TEST_CASE("function: trap_bars, sub-page BARs and pages that cannot be mapped are trapped") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
                    d.SetBar(1, 0xfd000000, 0x800, false);
                    d.fail = [](const Call& call) {
                      return call.op == Op::kMap && call.index == 0 ? ENOMEM : 0;
                    };
                  }),
                  {.trap_bars = {2}});
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 0);
  CHECK(guest.Counter("vfio_unmappable_pieces") == 1);
  for (const std::size_t bar : {0U, 1U, 2U}) {
    guest.Write<std::uint32_t>(bar, 0x10, 0x04030201);
    CHECK(guest.device->memory[bar][0x13] == std::byte{4});
    CHECK(guest.Read<std::uint32_t>(bar, 0x10) == 0x04030201);
  }
}

TEST_CASE("function: reads that fail, or beyond the region, answer all ones") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.SetBar(0, 0xfe000000, 0x3800, false);
    d.SetBar(1, 0xfd000000, 0x1000, false);
    d.device.regions[1].readable = false;
    d.SetBar(5, 0xfc000000, 0x1000, false);
    d.device.regions[5].writable = false;
  }));
  guest.Command(kMemory);
  guest.Write<std::uint32_t>(0, 0x37fc, 0x04030201);
  CHECK(guest.Read<std::uint32_t>(0, 0x37fc) == 0x04030201);
  CHECK(guest.Read<std::uint32_t>(0, 0x3800) == 0xffffffff);
  CHECK(guest.Read<std::uint64_t>(0, 0x3ff8) == ~std::uint64_t{0});
  guest.Write<std::uint32_t>(0, 0x3ffc, 1);
  CHECK(guest.Counter("vfio_bar0_refused") == 3);
  CHECK(guest.Read<std::uint16_t>(1, 0) == 0xffff);
  guest.Write<std::uint16_t>(5, 0, 1);
  CHECK(guest.device->memory[5][0] == std::byte{0});
  CHECK(guest.Counter("vfio_bar5_refused") == 1);

  guest.device->fail = [](const Call& call) {
    return (call.op == Op::kRead || call.op == Op::kWrite) && call.offset < 0x1000 ? EIO : 0;
  };
  CHECK(guest.Read<std::uint64_t>(0, 0) == ~std::uint64_t{0});
  guest.Write<std::uint64_t>(0, 0, 0);
  CHECK(guest.Config<std::uint32_t>(kDevControl) == 0xffff7fff);  // our bits stay ours
  CHECK(guest.Config<std::uint32_t>(0) == 0x10d38086);
  guest.Config<std::uint32_t>(0xf8, 1);
  CHECK(!guest.function->lost());
  CHECK(guest.Counter("vfio_device_errors") == 4);
}

TEST_CASE("function: a device that refuses memory decoding has nothing mapped, and may again try") {
  TestGuest guest(MakeDevice());
  bool broken = true;
  guest.device->fail = [&](const Call& call) {
    return broken && call.op == Op::kWrite && call.offset == pci::kCommand ? EIO : 0;
  };
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 0);
  broken = false;
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 2);
  CHECK(guest.device->decodes());
}

TEST_CASE("function: in D3 nothing is mapped and nothing is lost") {
  TestGuest guest(MakeDevice());
  guest.Command(kMemory | kMaster);
  std::size_t mapped_when_told = 99;
  guest.device->on_call = [&](const Call& call) {
    if (call.op == Op::kWrite && call.offset == kPowerAt + 4) mapped_when_told = guest.Mappings();
  };
  guest.Config<std::uint16_t>(kPowerAt + 4, 0x8103);  // with PME, which there is not
  CHECK(mapped_when_told == 0);
  CHECK(guest.Config<std::uint16_t>(kPowerAt + 4) == 3);
  CHECK(guest.device->Get<std::uint16_t>(kPowerAt + 4) == 3);
  CHECK(guest.Mappings() == 0);
  guest.Config<std::uint32_t>(0x10, 0xc9000000);  // moved meanwhile
  CHECK(guest.Mappings() == 0);
  guest.Config<std::uint8_t>(kPowerAt + 4, 0);
  CHECK(mapped_when_told == 0);
  CHECK(guest.Mappings() == 2);
  CHECK(guest.Bar(0) == 0xc9000000);

  // A state the device does not take: it stays in D0, and mapped.
  guest.device->on_call = [&](const Call& call) {
    if (call.op == Op::kRead && call.offset == kPowerAt + 4)
      guest.device->Put<std::uint8_t>(kPowerAt + 4, 0);
  };
  guest.Config<std::uint32_t>(kPowerAt + 4, 1);
  CHECK(guest.Mappings() == 2);
}

TEST_CASE("function: the guest's function-level reset: interrupts, decoding, device, registers") {
  for (const std::size_t width : {1U, 2U, 4U}) {
    CAPTURE(width);
    TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); }));
    guest.Command(kMemory | kMaster);
    guest.UnmaskMsix(1, 0x41);
    guest.MsixControl(true);
    guest.Config<std::uint8_t>(pci::kCacheLineSize, 16);
    (void)guest.device->TakeCalls();
    const int resets = guest.device->resets;
    std::size_t mapped_at_reset = 99;
    guest.device->on_call = [&](const Call& call) {
      if (call.op == Op::kWrite && (call.offset == kDevControl || call.offset == kDevControl + 1))
        mapped_at_reset = guest.Mappings();
    };
    if (width == 1) guest.Config<std::uint8_t>(kDevControl + 1, 0xa8);
    if (width == 2) guest.Config<std::uint16_t>(kDevControl, 0xa810);
    if (width == 4) guest.Config<std::uint32_t>(kDevControl, 0x0000a810);
    CHECK(guest.device->function_resets == 1);
    CHECK(guest.device->resets == resets);
    CHECK(mapped_at_reset == 0);
    const std::vector<Call> calls = guest.device->TakeCalls();
    REQUIRE(calls.size() >= 3);
    CHECK(calls[0].op == Op::kDisable);
    CHECK(calls[0].index == kMsixIrq);
    CHECK(calls[1].offset == pci::kCommand);
    CHECK(calls[1].value == 0);
    CHECK(calls[2].op == Op::kWrite);
    CHECK((calls[2].offset & ~std::uint64_t{1}) == kDevControl);
    CHECK(guest.device->enabled() == kIrqCount);
    CHECK(guest.Config<std::uint16_t>(pci::kCommand) == 0);
    CHECK(guest.Config<std::uint8_t>(pci::kCacheLineSize) == 0);
    CHECK((guest.Config<std::uint16_t>(kMsixAt + 2) & 0xc000) == 0);
    CHECK(guest.Mappings() == 0);
    CHECK(guest.Counter("vfio_resets") == 1);
    // And on with it.
    guest.Command(kMemory);
    CHECK(guest.Read<std::uint32_t>(2, 0x1000 + 28) == 1);  // masked again
    guest.UnmaskMsix(1, 0x42);
    guest.MsixControl(true);
    CHECK(guest.device->Fire(kMsixIrq, 1));
    CHECK(guest.Delivered() == std::vector<std::uint32_t>{0x42});
  }
}

TEST_CASE(
    "function: the AF reset bit; and reset bits of devices that cannot reset are not passed on") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.Put<std::uint32_t>(kExpressAt + 4, 1);  // no FLR
    d.Put<std::uint8_t>(kPowerAt + 1, 0xc8);
    d.Put<std::uint32_t>(0xc8, 0x03068013);
  }));
  guest.Command(kMemory);
  guest.Config<std::uint16_t>(kDevControl, 0xa810);
  CHECK(guest.device->function_resets == 0);
  CHECK(guest.Mappings() == 2);
  CHECK(guest.device->Get<std::uint16_t>(kDevControl) == 0x2810);
  guest.Config<std::uint8_t>(0xcc, 0xfe);  // not the reset bit
  CHECK(guest.Mappings() == 2);
  guest.Config<std::uint8_t>(0xcc, 1);
  CHECK(guest.Mappings() == 0);
  CHECK(guest.device->Get<std::uint8_t>(0xcc) == 1);  // the device's to act on
  CHECK(guest.Config<std::uint8_t>(0xcc) == 0);
  CHECK(guest.Counter("vfio_resets") == 1);
}

TEST_CASE("function: reset by the machine tries again while the device is busy") {
  TestGuest guest(MakeDevice());
  guest.Command(kMemory | kMaster);
  guest.Config<std::uint8_t>(kPowerAt + 4, 3);
  int busy = 3;
  guest.device->fail = [&](const Call& call) {
    return call.op == Op::kReset && busy-- > 0 ? EAGAIN : 0;
  };
  (void)guest.device->TakeCalls();
  const int before = guest.device->resets;
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(guest.device->resets == before + 1);
  CHECK(Only(guest.device->TakeCalls(), Op::kReset).size() == 4);
  CHECK(guest.device->Get<std::uint8_t>(kPowerAt + 4) == 0);
  guest.device->fail = [&](const Call& call) { return call.op == Op::kReset ? EAGAIN : 0; };
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(Only(guest.device->TakeCalls(), Op::kReset).size() == 10);
  CHECK(guest.Counter("vfio_reset_failures") == 1);
  CHECK(guest.Mappings() == 0);
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 2);  // it goes on as it is
}

TEST_CASE("function: a reset that fails, or is none, leaves no device behind in D3") {
  for (const bool resets : {false, true}) {
    CAPTURE(resets);
    TestGuest guest(MakeDevice([=](FakeHostDevice& d) { d.device.can_reset = resets; }));
    guest.Config<std::uint8_t>(kPowerAt + 4, 3);
    guest.device->fail = [](const Call& call) { return call.op == Op::kReset ? EIO : 0; };
    {
      const MutexLock lock(guest.function->lock());
      guest.function->Reset();
    }
    CHECK((guest.Config<std::uint8_t>(kPowerAt + 4) & 3) == 0);
    guest.Command(kMemory);
    CHECK(guest.Mappings() == 2);
  }
}

TEST_CASE("function: a device without reset is stopped, and its registers start again") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) {
    d.device.can_reset = false;
    d.AddMsix(2);
  }));
  guest.Command(kMemory | kMaster);
  guest.UnmaskMsix(0, 0x40);
  guest.MsixControl(true);
  {
    const MutexLock lock(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(guest.device->resets == 0);
  CHECK(guest.device->enabled() == kIrqCount);
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == 0);
  CHECK(guest.Config<std::uint16_t>(pci::kCommand) == 0);
  CHECK(guest.Mappings() == 0);
}

TEST_CASE("function: an option ROM is offered if it is one, and only on demand") {
  CHECK(!TestGuest(MakeDevice([](FakeHostDevice& d) { d.AddRom(0x1800); })).function->bars()[6]);
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.AddRom(0x1800); }), {.rom_bar = true});
  REQUIRE(guest.function->bars()[pci::kRomIndex].has_value());
  CHECK(guest.function->bars()[pci::kRomIndex]->size() == 0x2000);
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == 0);  // as before it was read
  guest.Command(kMemory);
  const std::uint64_t base = guest.Bar(pci::kRomIndex);
  guest.Config<std::uint32_t>(pci::kRomBase, static_cast<std::uint32_t>(base) | pci::kRomEnable);
  (void)guest.device->TakeCalls();
  std::array<std::byte, 4> word{};
  CHECK(guest.bridge.platform.pages.GuestRead(memory::Gpa(base), word));
  CHECK(word[0] == std::byte{0x55});
  CHECK(word[3] == std::byte{21});
  CHECK(guest.bridge.platform.pages.GuestRead(memory::Gpa(base + 0x17fc), word));
  CHECK(word[0] == static_cast<std::byte>(0x17fc * 7 % 256));
  CHECK(!guest.bridge.platform.pages.GuestWrite(memory::Gpa(base), word));
  CHECK(guest.device->TakeCalls().empty());

  const auto refused = [](const std::function<void(FakeHostDevice&)>& change) {
    TestGuest other(MakeDevice(change), {.rom_bar = true});
    return !other.function->bars()[pci::kRomIndex] && other.Counter("vfio_rom_refused") == 1 &&
           other.device->Get<std::uint16_t>(pci::kCommand) == 0;
  };
  CHECK(refused([](FakeHostDevice& d) { d.AddRom(0x1000, 0x55, 0xab); }));
  CHECK(refused([](FakeHostDevice& d) {
    d.AddRom(0x1000);
    d.device.regions[kRomRegion].size = (16 << 20) + 1;
  }));
  CHECK(refused([](FakeHostDevice& d) {
    d.AddRom(0x2000);
    d.fail = [](const Call& call) {
      return call.index == kRomRegion && call.offset != 0 ? EIO : 0;
    };
  }));
}

TEST_CASE("function: peer-to-peer maps follow the BARs and never matter") {
  iommu::PeerMemory peers;
  TestGuest guest(MakeDevice(), {.peers = &peers});
  auto& space = guest.device->space;
  std::vector<std::size_t> mapped_when_told;
  guest.device->on_call = [&](const Call& call) {
    if (call.op == Op::kWrite && call.offset == pci::kCommand)
      mapped_when_told.push_back(space.mapped.size());
  };
  guest.Command(kMemory);
  REQUIRE(space.mapped.size() == 2);
  CHECK(space.mapped[0].at == guest.Bar(0));
  CHECK(space.mapped[0].length == 0x4000);
  // Regression #7027, #7053: they move with the BAR.
  guest.Config<std::uint32_t>(0x10, 0xc9000000);
  REQUIRE(space.mapped.size() == 2);
  CHECK(space.mapped[1].at == 0xc9000000);
  guest.Command(0);
  CHECK(space.mapped.empty());
  CHECK(mapped_when_told == std::vector<std::size_t>{0, 0});
  space.fail = EINVAL;
  guest.Command(kMemory);
  CHECK(guest.Mappings() == 2);
  CHECK(space.mapped.empty());
  CHECK(guest.Counter("vfio_p2p_refused") == 2);
  space.fail = 0;
  guest.Command(0);
  guest.Command(kMemory);
  CHECK(space.mapped.size() == 2);
  CHECK(guest.bridge.root->Remove(*guest.function).has_value());
  CHECK(space.mapped.empty());
  guest.at = guest.bridge.root->Add(*guest.function).value();
}

TEST_CASE("function: peers of other address spaces reach the BARs, until one of them goes") {
  iommu::PeerMemory peers;
  TestGuest gpu(MakeDevice(), {.peers = &peers});
  auto& own = gpu.device->space;
  gpu.Command(kMemory);
  auto nic = std::make_unique<TestGuest>(MakeDevice(), VfioFunction::Options{.peers = &peers});
  auto& other = nic->device->space;
  CHECK(other.mapped == own.mapped);
  REQUIRE(own.mapped.size() == 2);
  // The nic's own have the same addresses on its other bus: refused, and it runs.
  nic->Command(kMemory);
  CHECK(nic->Counter("vfio_p2p_refused") == 4);
  CHECK(nic->Mappings() == 2);
  nic->Command(0);
  // They follow the BAR, and are gone before the device stops decoding.
  gpu.Config<std::uint32_t>(0x10, 0xc9000000);
  CHECK(other.mapped == own.mapped);
  CHECK(own.mapped[1].at == 0xc9000000);
  std::vector<std::size_t> reached;
  gpu.device->on_call = [&](const Call& call) {
    if (call.op == Op::kWrite && call.offset == pci::kCommand)
      reached.push_back(own.mapped.size() + other.mapped.size());
  };
  gpu.Command(0);
  gpu.Command(kMemory);
  CHECK(reached == std::vector<std::size_t>{0, 0});
  CHECK(other.mapped.size() == 2);
  // A device that vanished is not reached any more.
  gpu.device->on_call = nullptr;
  gpu.device->fail = [](const Call&) { return ENODEV; };
  (void)gpu.Config<std::uint32_t>(0x40);
  gpu.loop->RunOnce(0);
  CHECK(other.mapped.empty());
  CHECK(own.mapped.empty());
  gpu.Unplug();
  nic->Command(kMemory);
  CHECK(other.mapped.size() == 2);
}

TEST_CASE("function: a device that leaves has nothing of its peers in its address space") {
  iommu::PeerMemory peers;
  TestGuest gpu(MakeDevice(), {.peers = &peers});
  gpu.Command(kMemory);
  bool closed_clean = false;
  auto device = MakeDevice();
  FakeAddressSpace* other = &device->space;
  device->on_close = [&] { closed_clean = other->mapped.empty(); };
  {
    TestGuest nic(std::move(device), {.peers = &peers});
    CHECK(other->mapped.size() == 2);
  }
  CHECK(closed_clean);
  CHECK(gpu.device->space.mapped.size() == 2);
}

TEST_CASE("function: state goes from one function to another, with COMMAND and vectors") {
  const auto change = [](FakeHostDevice& d) {
    d.AddMsix(4);
    d.AddMsi(2, true, true);
  };
  VfioFunctionState state;
  {
    TestGuest guest(MakeDevice(change));
    guest.Command(kMemory | kMaster);
    guest.UnmaskMsix(1, 0x41);
    guest.Program(2, 0x42);
    guest.MsixControl(true);
    guest.MaskMsix(1, true);
    CHECK(guest.device->Fire(kMsixIrq, 1));
    const MutexLock lock(guest.function->lock());
    state = guest.function->Save();
  }
  CHECK(state.version == 1);
  TestGuest guest(MakeDevice(change));
  {
    const MutexLock lock(guest.function->lock());
    VfioFunctionState bad = state;
    bad.version = 2;
    CHECK(guest.function->Restore(bad).error().code == Errc::kBadFormat);
    bad = state;
    bad.function.config.registers[0] ^= 1;
    CHECK(guest.function->Restore(bad).error().code == Errc::kBadFormat);
    bad = state;
    bad.function.msix.reset();
    CHECK(guest.function->Restore(bad).error().code == Errc::kBadFormat);
    CHECK(guest.device->enabled() == kIrqCount);
    // Regression #8303: the device hears of COMMAND, and its vectors are armed.
    REQUIRE(guest.function->Restore(state).has_value());
  }
  CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == (kMemory | kMaster));
  CHECK(guest.Mappings() == 3);
  CHECK(guest.device->enabled() == kMsixIrq);
  CHECK(guest.Pba() == 2);
  CHECK(guest.Delivered().empty());
  guest.MaskMsix(1, false);
  CHECK(guest.Delivered() == std::vector<std::uint32_t>{0x41});
  CHECK(guest.device->Fire(kMsixIrq, 1));
  CHECK(guest.Delivered() == std::vector<std::uint32_t>{0x41});
}

TEST_CASE("function: a device that cannot be one is refused with the reason") {
  bus::FakePlatform platform;
  auto loop = EventLoop::Create().value();
  const auto failure = [&](const std::function<void(FakeHostDevice&)>& change,
                           VfioFunction::Options options = {}) {
    auto made =
        VfioFunction::Create(MakeDevice(change), platform.Get(), *loop, std::move(options), [] {});
    REQUIRE(!made.has_value());
    return made.error();
  };
  const Failure bridge = failure([](FakeHostDevice& d) { d.Put<std::uint8_t>(0xe, 1); });
  CHECK(bridge.kind == Failure::Kind::kConfig);
  CHECK(bridge.cause.find("fake0") != std::string::npos);
  CHECK(bridge.cause.find("bridge") != std::string::npos);
  const Failure ones = failure([](FakeHostDevice& d) { d.config.assign(0x1000, 0xff); });
  CHECK(ones.kind == Failure::Kind::kHost);
  CHECK(ones.cause.find("all ones") != std::string::npos);
  CHECK(failure([](FakeHostDevice& d) {
          d.device.regions[kConfigRegion].size = 63;
        }).cause.find("64") != std::string::npos);
  CHECK(failure([](FakeHostDevice& d) {
          d.fail = [](const Call& call) { return call.op == Op::kRead ? EIO : 0; };
        }).cause.find("config space") != std::string::npos);
  const Failure trap = failure({}, {.id = "gpu0", .trap_bars = {0, 6}});
  CHECK(trap.kind == Failure::Kind::kConfig);
  CHECK(trap.cause.find("gpu0") != std::string::npos);
  CHECK(trap.cause.find('6') != std::string::npos);
}

TEST_CASE(
    "function: regression #4069, #7676: plugged and unplugged a hundred times, nothing stays") {
  bus::FakePlatform platform;
  auto loop = EventLoop::Create().value();
  pci::FakeBridge bridge;
  for (int i = 0; i < 100; ++i) {
    auto fake = MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); });
    auto function =
        VfioFunction::Create(std::move(fake), bridge.platform.Get(), *loop, {}, [] {}).value();
    const pci::Bdf at = bridge.root->Add(*function).value();
    REQUIRE(bridge.root->AssignAddresses().has_value());
    bridge.Config<std::uint16_t>(at, pci::kCommand, kMemory);
    bridge.Config<std::uint16_t>(at, kMsixAt + 2, 0x8000);
    bridge.Write<std::uint32_t>(function->BarAddress(2) + 0x100c, 0);
    CHECK(bridge.platform.interrupts.routes() == 1);
    CHECK(bridge.platform.pages.Mappings().size() == 3);
    REQUIRE(bridge.root->Remove(*function).has_value());
    function.reset();
    CHECK(bridge.platform.interrupts.routes() == 0);
    CHECK(bridge.platform.pages.Mappings().empty());
  }
}

TEST_CASE("function: regression teardown order: vectors off, DMA off, then the device goes") {
  std::vector<Call> last;
  {
    auto fake = MakeDevice([](FakeHostDevice& d) { d.AddMsix(4); });
    fake->on_call = [&](const Call& call) { last.push_back(call); };
    TestGuest guest(std::move(fake));
    guest.Command(kMemory | kMaster);
    guest.MsixControl(true);
    last.clear();
    guest.Unplug();
  }
  REQUIRE(last.size() == 4);
  CHECK(last[0].op == Op::kDisable);
  CHECK(last[0].index == kMsixIrq);
  CHECK(last[1].index == kErrorIrq);
  CHECK(last[2].index == kRequestIrq);
  CHECK(last[3].offset == pci::kCommand);
  CHECK(last[3].value == 0);
}

TEST_CASE("function: memory decoding switched on and off while another vCPU touches the BAR") {
  TestGuest guest(MakeDevice([](FakeHostDevice& d) { d.device.regions[0].areas.clear(); }));
  std::atomic<bool> stop{false};
  guest.Command(kMemory);
  const std::uint64_t base = guest.Bar(0);
  std::thread vcpu([&] {
    while (!stop.load()) {
      const auto value = guest.bridge.Read<std::uint32_t>(base);
      CHECK((value == 0 || value == 0xffffffff));
      guest.bridge.Write<std::uint32_t>(base, 0);
    }
  });
  for (int i = 0; i < 200; ++i) guest.Command(i % 2 == 0 ? 0 : kMemory);
  stop = true;
  vcpu.join();
  CHECK(guest.device->decodes());
}

}  // namespace
}  // namespace postern::vfio
