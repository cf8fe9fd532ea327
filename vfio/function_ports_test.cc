// I/O BARs of an assigned device: ports of the guest that are read and written in the device's
// region.

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "tests/support/counter.h"
#include "vfio/test_guest.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

constexpr std::uint32_t kBar4 = pci::kBar0 + 4 * 4;

// BAR 4 has `ports` ports of which the device has `real`.
std::unique_ptr<FakeHostDevice> Ports(std::uint64_t real) {
  return MakeDevice([real](FakeHostDevice& d) { d.SetBar(4, 0x0000e001, real, false); });
}

template <typename U>
U In(TestGuest& guest, std::uint64_t port) {
  return guest.bridge.Load<U>(guest.bridge.ports, port);
}
template <typename U>
void Out(TestGuest& guest, std::uint64_t port, U value) {
  guest.bridge.Store<U>(guest.bridge.ports, port, value);
}
std::size_t Accesses(TestGuest& guest) {
  std::size_t count = 0;
  for (const Call& call : guest.device->TakeCalls()) count += call.index == 4 ? 1 : 0;
  return count;
}

TEST_CASE("ports: each width reaches the device as one access of that width") {
  TestGuest guest(Ports(8));
  guest.Command(kIoOn);
  CHECK((guest.device->Get<std::uint16_t>(pci::kCommand) & kIoOn) == kIoOn);
  const std::uint64_t base = guest.Bar(4);
  CHECK(pci::FakeBridge::kWindows.io.Contains(base, 8));
  (void)guest.device->TakeCalls();
  Out<std::uint8_t>(guest, base + 7, 0x80);
  Out<std::uint16_t>(guest, base + 1, 0x0302);  // not aligned: the processor allows it
  Out<std::uint32_t>(guest, base + 3, 0x07060504);
  CHECK(In<std::uint8_t>(guest, base + 7) == 0x80);
  CHECK(In<std::uint16_t>(guest, base + 1) == 0x0302);
  CHECK(In<std::uint32_t>(guest, base + 3) == 0x07060504);
  const std::vector<Call> calls = guest.device->TakeCalls();
  REQUIRE(calls.size() == 6);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    CAPTURE(i);
    constexpr std::array<std::uint64_t, 3> kOffsets{7, 1, 3};
    CHECK(calls[i].op == (i < 3 ? Op::kWrite : Op::kRead));
    CHECK(calls[i].index == 4);
    CHECK(calls[i].offset == kOffsets[i % 3]);
    CHECK(calls[i].size == std::size_t{1} << (i % 3));
  }
  CHECK(guest.Counter("vfio_bar4_reads") == 3);
  CHECK(guest.Counter("vfio_bar4_writes") == 3);
  CHECK(guest.Counter("vfio_bar4_refused") == 0);
  CHECK(guest.Mappings() == 0);
}

TEST_CASE("ports: accesses that leave the BAR, or of no width, never reach the device") {
  TestGuest guest(Ports(8));
  guest.Command(kIoOn);
  const std::uint64_t base = guest.Bar(4);
  (void)guest.device->TakeCalls();
  CHECK(In<std::uint16_t>(guest, base + 7) == 0xffff);
  CHECK(In<std::uint32_t>(guest, base + 5) == 0xffffffff);
  CHECK(In<std::uint8_t>(guest, base + 8) == 0xff);
  CHECK(In<std::uint8_t>(guest, base - 1) == 0xff);
  Out<std::uint32_t>(guest, base + 6, 0);
  std::array<std::byte, 3> odd{};
  guest.bridge.ports.Read(base, odd);
  CHECK(odd[2] == std::byte{0xff});
  guest.bridge.ports.Write(base, odd);
  CHECK(Accesses(guest) == 0);
}

TEST_CASE("ports: COMMAND's I/O bit alone decides, whatever memory decoding does") {
  TestGuest guest(Ports(8));
  const std::uint64_t base = guest.Bar(4);
  for (const std::uint16_t command : {std::uint16_t{0}, kMemory, kMaster}) {
    CAPTURE(command);
    guest.Command(command);
    (void)guest.device->TakeCalls();
    CHECK(In<std::uint8_t>(guest, base) == 0xff);
    Out<std::uint8_t>(guest, base, 1);
    CHECK(Accesses(guest) == 0);
    guest.Command(command | kIoOn);
    CHECK(guest.device->Get<std::uint16_t>(pci::kCommand) == (command | kIoOn));
    Out<std::uint8_t>(guest, base, 0x5a);
    CHECK(In<std::uint8_t>(guest, base) == 0x5a);
    CHECK(Accesses(guest) == 2);
  }
  guest.Command(kIoOn);
  CHECK(guest.Mappings() == 0);
  // Low power and a reset take the ports away as they do memory.
  guest.Config<std::uint16_t>(kPowerAt + pci::kPowerControl, 3);
  CHECK(In<std::uint8_t>(guest, base) == 0xff);
  guest.Config<std::uint16_t>(kPowerAt + pci::kPowerControl, 0);
  CHECK(In<std::uint8_t>(guest, base) == 0x5a);
  {
    const MutexLock hold(guest.function->lock());
    guest.function->Reset();
  }
  CHECK(In<std::uint8_t>(guest, base) == 0xff);
}

TEST_CASE("ports: a BAR follows its register, inside the window and nowhere else") {
  TestGuest guest(Ports(8));
  guest.Command(kIoOn);
  const std::uint64_t first = guest.Bar(4);
  guest.Config<std::uint32_t>(kBar4, 0xffffffff);  // sizing: 8 ports
  CHECK(guest.Config<std::uint32_t>(kBar4) == 0xfffffff9);
  for (const std::uint32_t to : {0x1ff8U, 0x1000U, 0x1008U, 0x1ff8U}) {
    CAPTURE(to);
    guest.Config<std::uint32_t>(kBar4, to);
    CHECK(guest.Config<std::uint32_t>(kBar4) == (to | 1));
    const auto mark = static_cast<std::uint8_t>(to >> 3 ^ 0x55);
    Out<std::uint8_t>(guest, to + 3U, mark);
    CHECK(guest.device->memory[4][3] == std::byte{mark});
  }
  CHECK(In<std::uint8_t>(guest, first) == 0xff);
  // 0xcf8 and the mainboard's ports are outside, and so is what a 16-bit port cannot say.
  const std::uint64_t refusals = guest.Counter("pci_bar_refusals");
  for (const std::uint32_t outside :
       {0x0cf8U, 0x03f8U, 0x2000U, 0xfff8U, 0x00011000U, 0xfffffff8U}) {
    CAPTURE(outside);
    guest.Config<std::uint32_t>(kBar4, outside);
    (void)guest.device->TakeCalls();
    CHECK(In<std::uint8_t>(guest, outside) == 0xff);
    CHECK(Accesses(guest) == 0);
  }
  CHECK(guest.Counter("pci_bar_refusals") == refusals + 6);
  guest.Config<std::uint32_t>(kBar4, static_cast<std::uint32_t>(first));
  CHECK(In<std::uint8_t>(guest, first + 3) != 0xff);
}

TEST_CASE("ports: sizes: rounded up to a power of two, 4 to 256; what is beyond reads as ones") {
  struct Row {
    std::uint64_t real;
    std::uint64_t size;  // 0: no BAR
  };
  for (const Row& row : {Row{1, 4}, Row{4, 4}, Row{5, 8}, Row{8, 8}, Row{255, 256}, Row{256, 256},
                         Row{257, 0}, Row{0x10000, 0}}) {
    CAPTURE(row.real);
    TestGuest guest(Ports(row.real));
    const auto& bar = guest.function->bars()[4];
    CHECK((bar ? bar->size() : 0) == row.size);
    CHECK(guest.Counter("vfio_bars_refused") == (row.size == 0 ? 1 : 0));
    if (row.size == 0) continue;
    guest.Command(kIoOn);
    const std::uint64_t base = guest.Bar(4);
    Out<std::uint8_t>(guest, base + row.real - 1, 0x21);
    CHECK(In<std::uint8_t>(guest, base + row.real - 1) == 0x21);
    if (row.real == row.size) continue;
    (void)guest.device->TakeCalls();
    CHECK(In<std::uint8_t>(guest, base + row.real) == 0xff);
    Out<std::uint8_t>(guest, base + row.size - 1, 1);
    CHECK(Accesses(guest) == 0);
    CHECK(guest.Counter("vfio_bar4_refused") == 2);
  }
}

TEST_CASE(
    "ports: a device that fails an access reads as ones; one that vanished is asked no more") {
  TestGuest guest(Ports(8));
  guest.Command(kIoOn);
  const std::uint64_t base = guest.Bar(4);
  int error = EIO;
  guest.device->fail = [&](const Call& call) { return call.index == 4 ? error : 0; };
  CHECK(In<std::uint16_t>(guest, base) == 0xffff);
  Out<std::uint8_t>(guest, base, 1);
  CHECK(!guest.function->lost());
  CHECK(guest.Counter("vfio_bar4_refused") == 2);
  error = ENODEV;
  CHECK(In<std::uint8_t>(guest, base) == 0xff);
  CHECK(guest.function->lost());
  (void)guest.device->TakeCalls();
  Out<std::uint8_t>(guest, base, 1);
  CHECK(Accesses(guest) == 0);
}

TEST_CASE("ports: a host bridge without room for them: the device works by its memory") {
  pci::FakeBridge bridge;
  bus::Bus mmio;
  pci::Windows windows = pci::FakeBridge::kWindows;
  windows.io.size = 16;  // the device has 32
  auto root = pci::PciRoot::Create({memory::Gpa(pci::FakeBridge::kEcam), windows}, mmio,
                                   &bridge.ports, bridge.platform.Get())
                  .value();
  const auto loop = EventLoop::Create().value();
  auto function =
      VfioFunction::Create(MakeDevice(), bridge.platform.Get(), *loop, {}, [] {}).value();
  const pci::Bdf at = root->Add(*function).value();
  REQUIRE(root->AssignAddresses().has_value());
  const std::array<std::byte, 2> command{std::byte{kMemory | kIoOn}, std::byte{0}};
  mmio.Write(pci::FakeBridge::ConfigAddress(at, pci::kCommand), command);
  CHECK(!function->bars()[4]->mapped());
  CHECK(function->bars()[0]->mapped());
  CHECK(bridge.platform.pages.Mappings().size() == 2);
  CHECK(testing::ReportedCounter(*function, "pci_without_ports") == 1);
  CHECK(root->Remove(*function).has_value());
}

}  // namespace
}  // namespace postern::vfio
