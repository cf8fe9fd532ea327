#include "devices/pci/function.h"

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "devices/pci/fake_function.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

constexpr std::uint16_t kMemory = 0x2;
constexpr std::uint16_t kIo = 0x1;
constexpr std::uint64_t kBase0 = 0xc0100000;
constexpr std::uint64_t kBase2 = 0x4000010000;

struct Fixture {
  Fixture() : function(bridge.platform.interrupts) { at = bridge.root->Add(function).value(); }
  ~Fixture() { (void)bridge.root->Remove(function); }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  void Place() {
    bridge.Config<std::uint32_t>(at, kBar0, static_cast<std::uint32_t>(kBase0));
    bridge.Config<std::uint32_t>(at, kBar0 + 4, 0x1100);
    bridge.Config<std::uint32_t>(at, kBar0 + 8, static_cast<std::uint32_t>(kBase2));
    bridge.Config<std::uint32_t>(at, kBar0 + 12, static_cast<std::uint32_t>(kBase2 >> 32));
  }
  void Command(std::uint16_t value) { bridge.Config<std::uint16_t>(at, kCommand, value); }
  std::uint64_t Counter(std::string_view name) { return testing::ReportedCounter(function, name); }
  [[nodiscard]] std::optional<std::uint64_t> Mapped(std::size_t bar) {
    return function.bars()[bar]->mapped();
  }

  FakeBridge bridge;
  FakeFunction function;
  Bdf at;
};

TEST_CASE("bar: sizes and tiles that do not fit are refused") {
  PlainFunction::Handler h;
  std::vector<std::byte> memory(0x2000);
  const bus::HostPages page{.fd = -1, .offset = 0, .address = memory.data(), .length = 0x1000};
  const auto code = [&](BarKind kind, std::uint64_t size, std::vector<Tile> tiles) {
    auto bar = Bar::Create(kind, size, std::move(tiles));
    return bar ? std::optional<Errc>() : bar.error().code;
  };
  const auto all = [&](std::uint64_t size) {
    return std::vector<Tile>{Trapped{0, size, &h, "all"}};
  };
  CHECK(!code(BarKind::kMem32, 16, all(16)));
  CHECK(!code(BarKind::kMem32, 1U << 31, all(1U << 31)));
  CHECK(!code(BarKind::kMem64, std::uint64_t{1} << 62, all(std::uint64_t{1} << 62)));
  CHECK(!code(BarKind::kIo, 4, all(4)));
  CHECK(!code(BarKind::kIo, 256, all(256)));
  CHECK(!code(BarKind::kMem64, 0x2000,
              {Pages{0, page, memory::Access::kRead, "p"}, Trapped{0x1000, 0x1000, &h, "t"}}));
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{8}, std::uint64_t{24},
                                   std::uint64_t{0x1001}, std::uint64_t{1} << 32}) {
    CAPTURE(size);
    CHECK(code(BarKind::kMem32, size, all(size)) == Errc::kInvalidArgument);
  }
  CHECK(code(BarKind::kMem64, std::uint64_t{1} << 63, all(std::uint64_t{1} << 63)) ==
        Errc::kInvalidArgument);
  CHECK(code(BarKind::kIo, 2, all(2)) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kIo, 512, all(512)) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, {}) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, all(0x800)) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, all(0x2000)) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, {Trapped{0, 0x1000, nullptr, "t"}}) ==
        Errc::kInvalidArgument);
  const Trapped half{0, 0x800, &h, "half"};
  CHECK(code(BarKind::kMem32, 0x1000, {half, Trapped{0x900, 0x700, &h, "gap"}}) ==
        Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, {half, Trapped{0x700, 0x900, &h, "overlap"}}) ==
        Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, {half, half}) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000, {Trapped{0, ~std::uint64_t{0}, &h, "huge"}}) ==
        Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000,
             {half, Trapped{0x800, 0, &h, "empty"}, Trapped{0x800, 0x800, &h, "rest"}}) ==
        Errc::kInvalidArgument);
  // Pages: page granular, never in an I/O BAR.
  CHECK(code(BarKind::kMem32, 0x2000,
             {half, Pages{0x800, page, memory::Access::kRead, "p"},
              Trapped{0x1800, 0x800, &h, "t"}}) == Errc::kInvalidArgument);
  CHECK(code(BarKind::kMem32, 0x1000,
             {Pages{0, {-1, 0, memory.data(), 0x800}, memory::Access::kRead, "p"}, half}) ==
        Errc::kInvalidArgument);
  CHECK(code(BarKind::kIo, 256, {Pages{0, page, memory::Access::kRead, "p"}}) ==
        Errc::kInvalidArgument);

  EventFd event = EventFd::Create().value();
  const auto bell = [&](std::uint64_t offset, std::uint32_t width, const EventFd* e) {
    return Bar::Create(
               BarKind::kMem64, 0x2000,
               {Pages{0, page, memory::Access::kRead, "p"}, Trapped{0x1000, 0x1000, &h, "t"}},
               {{.offset = offset, .width = width, .match = std::nullopt, .event = e}})
        .has_value();
  };
  CHECK(bell(0x1ffc, 4, &event));
  CHECK(bell(0x1fff, 0, &event));
  CHECK(!bell(0x1ffd, 4, &event));
  CHECK(!bell(0x2000, 0, &event));
  CHECK(!bell(0, 4, &event));
  CHECK(!bell(0x1000, 4, nullptr));
}

TEST_CASE("function: BAR registers and MSI-X that collide are refused") {
  bus::FakeInterruptSource interrupts;
  class Bare final : public PciFunction {
   public:
    Bare() : PciFunction("bare", {}) {}
    using PciFunction::AddBar;
    using PciFunction::AddMsix;
  } function;
  PlainFunction::Handler h;
  const auto bar = [&](BarKind kind) {
    const std::uint64_t size = kind == BarKind::kIo ? 16 : 0x1000;
    return Bar::Create(kind, size, {Trapped{0, size, &h, "all"}}).value();
  };
  CHECK(function.AddBar(5, bar(BarKind::kMem64)).error().code == Errc::kInvalidArgument);
  CHECK(function.AddBar(6, bar(BarKind::kMem32)).error().code == Errc::kInvalidArgument);
  CHECK(function.AddBar(1, bar(BarKind::kMem64)).has_value());  // an odd index is fine
  CHECK(function.AddBar(1, bar(BarKind::kMem32)).error().code == Errc::kInvalidArgument);
  CHECK(function.AddBar(2, bar(BarKind::kMem32)).error().code == Errc::kInvalidArgument);
  CHECK(function.AddBar(0, bar(BarKind::kMem64)).error().code == Errc::kInvalidArgument);
  CHECK(function.AddBar(0, bar(BarKind::kIo)).has_value());
  CHECK(function.AddBar(5, bar(BarKind::kMem32)).has_value());
  const auto table = [&](std::uint16_t n) { return MsixTable::Create(interrupts, n).value(); };
  CHECK(!function.AddMsix(table(4), 0, 0, 0x40).has_value());  // an I/O BAR
  CHECK(!function.AddMsix(table(4), 2, 0, 0x40).has_value());  // an upper half
  CHECK(!function.AddMsix(table(4), 6, 0, 0x40).has_value());
  CHECK(!function.AddMsix(table(4), 1, 4, 0x40).has_value());      // misaligned
  CHECK(!function.AddMsix(table(4), 1, 0xfc8, 0x40).has_value());  // too long
  CHECK(!function.AddMsix(table(4), 1, 0, 0x1000).has_value());
  CHECK(!function.AddMsix(table(4), 1, 0xfffffff8, 0).has_value());
  CHECK(function.AddMsix(table(4), 1, 0xfc0, 0xfb8).has_value());
  CHECK(!function.AddMsix(table(4), 1, 0, 0x40).has_value());
}

TEST_CASE("function: BARs are sized by writing ones, at any width and in any order") {
  Fixture f;
  struct Row {
    std::uint32_t offset;
    std::uint32_t type;
    std::uint32_t sized;
  };
  const Row rows[] = {{kBar0, 0x0, 0xffffe000},     {kBar0 + 4, 0x1, 0xfffffff1},
                      {kBar0 + 8, 0xc, 0xffff000c}, {kBar0 + 12, 0x0, 0xffffffff},
                      {kBar0 + 16, 0x0, 0},         {kBar0 + 20, 0x0, 0}};
  for (const Row& row : rows) {
    CAPTURE(row.offset);
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) == row.type);
    f.bridge.Config<std::uint32_t>(f.at, row.offset, 0xffffffff);
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) == row.sized);
    f.bridge.Config<std::uint32_t>(f.at, row.offset, 0);
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) == row.type);
    f.bridge.Config<std::uint32_t>(f.at, row.offset, 0xfffffff0);  // as some guests size
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) ==
          ((row.sized & 0xfffffff0) | row.type));
    f.bridge.Config<std::uint32_t>(f.at, row.offset, 0);
    f.bridge.Config<std::uint16_t>(f.at, row.offset, 0xffff);
    f.bridge.Config<std::uint16_t>(f.at, row.offset + 2, 0xffff);
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) == row.sized);
    for (std::uint32_t i = 0; i < 4; ++i) f.bridge.Config<std::uint8_t>(f.at, row.offset + i, 0);
    CHECK(f.bridge.Config<std::uint32_t>(f.at, row.offset) == row.type);
  }
  f.bridge.Config<std::uint64_t>(f.at, kBar0 + 8, ~std::uint64_t{0});
  CHECK(f.bridge.Config<std::uint64_t>(f.at, kBar0 + 8) == 0xffffffff'ffff000c);
  CHECK(f.Counter("pci_bar_maps") == 0);
  CHECK(f.Counter("pci_bar_refusals") == 0);
}

constexpr std::size_t kLow = 0;  // tiles of BAR 2
constexpr std::size_t kBell = 1;
constexpr std::size_t kHigh = 2;

// A guest's store to BAR 2: to the page where one is mapped, else by an exit.
void GuestStore(FakeBridge& bridge, std::uint64_t offset, std::uint32_t value) {
  std::array<std::byte, 4> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(value));
  if (!bridge.platform.pages.GuestWrite(memory::Gpa(kBase2 + offset), bytes))
    bridge.mmio.Write(kBase2 + offset, bytes);
}

TEST_CASE("bar: pages become trapped while the BAR is decoded") {
  Fixture f;
  f.Place();
  f.Command(kMemory);
  FakeRegisters trap(0x8000);
  GuestStore(f.bridge, 0x10, 1);
  {
    const MutexLock lock(f.function.lock());
    REQUIRE(f.function.TrapBarPages(2, kLow, {0, 0x8000, &trap, "low trap"}));
  }
  CHECK(f.bridge.platform.pages.Mappings().size() == 1);
  GuestStore(f.bridge, 0x10, 2);
  CHECK(f.function.pages[0x10] == std::byte{1});
  CHECK(trap.bytes[0x10] == std::byte{2});
  // Its neighbours, and where the BAR is, stay.
  GuestStore(f.bridge, 0x8004, 3);
  CHECK(f.function.doorbell_page.bytes[4] == std::byte{3});
  CHECK(f.bridge.platform.doorbells.size() == 1);
  CHECK(f.Mapped(2) == kBase2);
  CHECK(TileName(f.function.bars()[2]->tiles()[kLow]) == "low trap");
  CHECK(f.Counter("pci_bar_maps") == 2);
  // It stays so when the BAR is decoded anew.
  f.Command(0);
  f.Command(kMemory);
  GuestStore(f.bridge, 0x10, 4);
  CHECK(trap.bytes[0x10] == std::byte{4});
}

TEST_CASE("bar: a tile trapped while nothing is decoded is so when it is") {
  Fixture f;
  FakeRegisters trap(0x7000);
  {
    const MutexLock lock(f.function.lock());
    REQUIRE(f.function.TrapBarPages(2, kHigh, {0x9000, 0x7000, &trap, "high trap"}));
  }
  f.Place();
  f.Command(kMemory);
  CHECK(f.bridge.platform.pages.Mappings().size() == 1);
  GuestStore(f.bridge, 0x9008, 7);
  CHECK(trap.bytes[8] == std::byte{7});
}

TEST_CASE("bar: pages alone become trapped, and by a tile of their range") {
  Fixture f;
  f.Place();
  f.Command(kMemory);
  FakeRegisters trap(0x8000);
  const auto refused = [&](std::size_t bar, std::size_t index, const Trapped& tile) {
    const MutexLock lock(f.function.lock());
    Result<void> done = f.function.TrapBarPages(bar, index, tile);
    return !done && done.error().code == Errc::kInvalidArgument;
  };
  CHECK(refused(2, 3, {0, 0x8000, &trap, ""}));
  CHECK(refused(4, 0, {0, 0x8000, &trap, ""}));
  CHECK(refused(99, 0, {0, 0x8000, &trap, ""}));
  CHECK(refused(2, kLow, {0, 0x7000, &trap, ""}));
  CHECK(refused(2, kLow, {0x1000, 0x8000, &trap, ""}));
  CHECK(refused(2, kLow, {0, 0x8000, nullptr, ""}));
  CHECK(refused(2, kBell, {0x8000, 0x1000, &trap, ""}));  // is trapped
  CHECK(f.bridge.platform.pages.Mappings().size() == 2);

  // What the bus refuses leaves the pages in place.
  const auto other = f.bridge.mmio.Add(kBase2 + 0x2000, 1, trap, f.function.lock(), "other");
  REQUIRE(other);
  {
    const MutexLock lock(f.function.lock());
    CHECK(f.function.TrapBarPages(2, kLow, {0, 0x8000, &trap, ""}).error().code == Errc::kOverlap);
  }
  GuestStore(f.bridge, 0x20, 9);
  CHECK(f.function.pages[0x20] == std::byte{9});
}

TEST_CASE("bar: no store is lost while its page becomes trapped") {
  for (std::uint32_t round = 0; round < 32; ++round) {
    Fixture f;
    f.Place();
    f.Command(kMemory);
    FakeRegisters trap(0x8000);
    constexpr std::uint32_t kStores = 0x200;  // a word each
    std::atomic<std::uint32_t> stored{0};
    std::thread guest([&] {
      for (std::uint32_t i = 0; i < kStores; ++i) {
        GuestStore(f.bridge, std::uint64_t{4} * i, i + 1);
        stored.store(i + 1, std::memory_order_relaxed);
      }
    });
    while (stored.load(std::memory_order_relaxed) < round * 8) std::this_thread::yield();
    {
      const MutexLock lock(f.function.lock());
      CHECK(f.function.TrapBarPages(2, kLow, {0, 0x8000, &trap, "low trap"}));
    }
    guest.join();
    std::uint32_t lost = 0;
    for (std::uint32_t i = 0; i < kStores; ++i) {
      std::uint32_t in_page = 0;
      std::uint32_t in_trap = 0;
      std::memcpy(&in_page, f.function.pages.data() + std::size_t{4} * i, sizeof(in_page));
      std::memcpy(&in_trap, trap.bytes.data() + std::size_t{4} * i, sizeof(in_trap));
      if (in_page + in_trap != i + 1) ++lost;
    }
    CHECK(lost == 0);
  }
}

TEST_CASE("function: COMMAND decides what is decoded") {
  Fixture f;
  f.Place();
  CHECK(f.bridge.Config<std::uint16_t>(f.at, kCommand) == 0);
  CHECK(f.bridge.Read<std::uint32_t>(kBase0) == 0xffffffff);
  CHECK(f.bridge.platform.pages.Mappings().empty());
  CHECK(f.bridge.platform.doorbells.size() == 0);

  f.Command(kMemory);
  CHECK(f.Mapped(0) == kBase0);
  CHECK(f.Mapped(2) == kBase2);
  CHECK(!f.Mapped(1));
  CHECK(f.function.decode_events == std::vector<bool>{true});
  CHECK(f.function.mapped_at_decode ==
        std::vector<bool>{false});  // told before the BARs are mapped
  f.bridge.Write<std::uint32_t>(kBase0 + 8, 0x04030201);
  CHECK(f.bridge.Read<std::uint32_t>(kBase0 + 8) == 0x04030201);
  CHECK(f.bridge.Read<std::uint32_t>(kBase0 + 0x100c) == 1);  // vector control of entry 0
  // Pages: one for reading and writing, one for reading.
  CHECK(f.bridge.platform.pages.Mappings().size() == 2);
  const std::byte value[1] = {std::byte{0x42}};
  CHECK(f.bridge.platform.pages.GuestWrite(memory::Gpa(kBase2 + 0x7fff), value));
  CHECK(f.function.pages[0x7fff] == std::byte{0x42});
  CHECK(!f.bridge.platform.pages.GuestWrite(memory::Gpa(kBase2 + 0x9000), value));
  CHECK(!f.bridge.platform.pages.GuestWrite(memory::Gpa(kBase2 + 0x8000), value));
  CHECK(f.bridge.platform.doorbells.Write(memory::Gpa(kBase2 + FakeFunction::kDoorbell), 4, 1));
  CHECK(f.function.kick.Consume() == 1);
  CHECK(!f.bridge.platform.doorbells.Write(memory::Gpa(kBase2 + FakeFunction::kDoorbell), 2, 1));

  f.Command(kMemory | kIo);
  CHECK(f.Mapped(1) == 0x1100);
  f.bridge.Store<std::uint16_t>(f.bridge.ports, 0x1102, 0x1234);
  CHECK(f.bridge.Load<std::uint16_t>(f.bridge.ports, 0x1102) == 0x1234);
  CHECK(f.Counter("pci_bar_maps") == 3);

  // By a byte, and by a dword that also writes STATUS.
  f.bridge.Config<std::uint8_t>(f.at, kCommand, kIo);
  CHECK(!f.Mapped(0));
  CHECK(!f.Mapped(2));
  CHECK(f.Mapped(1).has_value());
  CHECK(f.bridge.Read<std::uint32_t>(kBase0) == 0xffffffff);
  CHECK(f.bridge.platform.pages.Mappings().empty());
  CHECK(f.bridge.platform.doorbells.size() == 0);
  CHECK(f.function.decode_events == std::vector<bool>{true, false});
  CHECK(f.function.mapped_at_decode[1] == false);  // told after they were unmapped
  f.bridge.Config<std::uint32_t>(f.at, kCommand, 0xffff0000 | kMemory);
  CHECK(f.Mapped(0).has_value());
  CHECK(!f.Mapped(1));
  // An 8-byte write covers COMMAND and the class code behind it.
  f.bridge.Config<std::uint64_t>(f.at, 0, 0);
  CHECK(!f.Mapped(0));
}

TEST_CASE("function: a BAR moved while decoding is on follows its register") {
  Fixture f;
  f.Place();
  f.Command(kMemory);
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0xc0200000);
  CHECK(f.Mapped(0) == 0xc0200000);
  CHECK(f.bridge.Read<std::uint32_t>(kBase0) == 0xffffffff);
  CHECK(f.bridge.Read<std::uint32_t>(0xc020100c) == 1);
  // Within its own old range.
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0xc0202000);
  CHECK(f.Mapped(0) == 0xc0202000);

  // Half by half: the address in between is outside the windows.
  f.bridge.Config<std::uint32_t>(f.at, kBar0 + 12, 0x41);
  CHECK(f.Mapped(2) == 0x4100010000);
  f.bridge.Config<std::uint32_t>(f.at, kBar0 + 12, 0x1);
  CHECK(!f.Mapped(2));
  CHECK(f.Counter("pci_bar_refusals") == 1);
  CHECK(f.bridge.platform.doorbells.size() == 0);
  f.bridge.Config<std::uint32_t>(f.at, kBar0 + 12, 0x42);
  CHECK(f.Mapped(2) == 0x4200010000);
  CHECK(f.bridge.platform.doorbells.size() == 1);
  // Sizing while decoding is on: nowhere, and back.
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0xffffffff);
  CHECK(!f.Mapped(0));
  CHECK(f.bridge.Config<std::uint32_t>(f.at, kBar0) == 0xffffe000);
  f.bridge.Config<std::uint32_t>(f.at, kBar0, static_cast<std::uint32_t>(kBase0));
  CHECK(f.Mapped(0) == kBase0);
  // 0 means unplaced.
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0);
  CHECK(!f.Mapped(0));
  const std::uint64_t refusals = f.Counter("pci_bar_refusals");
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0);
  CHECK(f.Counter("pci_bar_refusals") == refusals);
}

TEST_CASE("function: a BAR over RAM, ECAM, another BAR or pages stays unmapped and harms nobody") {
  Fixture f;
  FakeFunction other(f.bridge.platform.interrupts, "other");
  const Bdf where = f.bridge.root->Add(other).value();
  f.Place();
  f.Command(kMemory);
  f.bridge.platform.pages.Occupy(memory::Gpa(0x4100000000), 0x1000000);
  std::uint64_t refusals = 0;
  const auto refused = [&](std::uint64_t bar0, std::uint64_t bar2) {
    f.bridge.Config<std::uint16_t>(where, kCommand, 0);
    f.bridge.Config<std::uint32_t>(where, kBar0, static_cast<std::uint32_t>(bar0));
    f.bridge.Config<std::uint64_t>(where, kBar0 + 8, bar2);
    f.bridge.Config<std::uint16_t>(where, kCommand, kMemory);
    const std::uint64_t before =
        std::exchange(refusals, testing::ReportedCounter(other, "pci_bar_refusals"));
    return refusals - before;
  };
  CHECK(refused(0x80000000, 0) == 1);  // RAM below the window
  CHECK(refused(0xd0000000, 0) == 1);  // right behind it
  CHECK(refused(FakeBridge::kEcam, 0) == 1);
  CHECK(refused(0xfee00000, 0) == 1);
  CHECK(refused(kBase0, 0) == 1);  // the other's BAR 0, exactly
  CHECK(refused(0, kBase2) == 1);
  CHECK(refused(0, 0xffffffff'ffff0000) == 1);
  CHECK(refused(0, 0x8000000000000000) == 1);
  CHECK(refused(0, 0x4100000000) == 1);  // the page mapper says no: nothing of the BAR stays
  CHECK(f.bridge.platform.doorbells.size() == 1);
  CHECK(f.bridge.platform.pages.Mappings().size() == 2);
  // All through, the first function's stay as they were.
  CHECK(f.Mapped(0) == kBase0);
  CHECK(f.Mapped(2) == kBase2);
  CHECK(f.bridge.Read<std::uint32_t>(kBase0 + 0x100c) == 1);
  // The place is free again: the next change of the other takes it.
  CHECK(refused(kBase0, 0) == 1);
  f.bridge.Config<std::uint32_t>(f.at, kBar0, 0xc0400000);
  CHECK(!other.bars()[0]->mapped());
  f.bridge.Config<std::uint16_t>(where, kCommand, kMemory);
  CHECK(other.bars()[0]->mapped() == kBase0);
  CHECK(f.bridge.root->Remove(other).has_value());
}

TEST_CASE("function: two BARs swap places in one enable") {
  Fixture f;
  PlainFunction pair({{0, BarKind::kMem32, 0x1000}, {1, BarKind::kMem32Prefetchable, 0x1000}});
  const Bdf where = f.bridge.root->Add(pair).value();
  f.bridge.Config<std::uint64_t>(where, kBar0, 0xc0001000'c0000000);
  f.bridge.Config<std::uint16_t>(where, kCommand, kMemory);
  CHECK(pair.bars()[0]->mapped() == 0xc0000000);
  f.bridge.Config<std::uint64_t>(where, kBar0, 0xc0000000'c0001000);
  CHECK(pair.bars()[0]->mapped() == 0xc0001000);
  CHECK(pair.bars()[1]->mapped() == 0xc0000000);
  CHECK(f.bridge.Config<std::uint32_t>(where, kBar0 + 4) == 0xc0000008);
  CHECK(f.bridge.root->Remove(pair).has_value());
}

TEST_CASE("function: MSI-X follows message control at every width") {
  Fixture f;
  const std::uint8_t cap = f.bridge.Config<std::uint8_t>(f.at, kCapabilitiesPointer);
  CHECK(f.bridge.Config<std::uint8_t>(f.at, cap) == kCapMsix);
  CHECK(f.bridge.Config<std::uint16_t>(f.at, cap + 2U) == 3);
  CHECK(f.bridge.Config<std::uint32_t>(f.at, cap + 4U) == FakeFunction::kTable);
  CHECK(f.bridge.Config<std::uint32_t>(f.at, cap + 8U) == FakeFunction::kPba);
  f.bridge.Config<std::uint16_t>(f.at, cap + 2U, 0xffff);
  CHECK(f.bridge.Config<std::uint16_t>(f.at, cap + 2U) == 0xc003);
  CHECK(f.function.msix()->enabled());
  f.bridge.Config<std::uint16_t>(f.at, cap + 2U, 0);
  CHECK(!f.function.msix()->enabled());
  // Control is the upper half of the capability's first dword.
  f.bridge.Config<std::uint32_t>(f.at, cap, 0x80000000);
  CHECK(f.function.msix()->enabled());
  f.bridge.Config<std::uint8_t>(f.at, cap + 3U, 0);
  CHECK(!f.function.msix()->enabled());
  if (cap % 8 == 0) {
    f.bridge.Config<std::uint64_t>(f.at, cap, ~std::uint64_t{0});
    CHECK(f.function.msix()->enabled());
  }
  f.bridge.Config<std::uint32_t>(f.at, cap + 4U, 0);
  CHECK(f.bridge.Config<std::uint32_t>(f.at, cap + 4U) == FakeFunction::kTable);
}

TEST_CASE("function: reset disables everything and brings the registers back") {
  Fixture f;
  const std::vector<std::uint32_t> initial = f.function.config().Save().registers;
  f.Place();
  f.Command(kMemory | kIo);
  const std::uint8_t cap = f.bridge.Config<std::uint8_t>(f.at, kCapabilitiesPointer);
  f.bridge.Config<std::uint16_t>(f.at, cap + 2U, 0x8000);
  {
    const MutexLock lock(f.function.lock());
    f.function.Reset();
  }
  CHECK(f.function.resets == 1);
  CHECK(f.function.config().Save().registers == initial);
  CHECK(!f.Mapped(0));
  CHECK(!f.function.msix()->enabled());
  CHECK(f.bridge.platform.pages.Mappings().empty());
}

TEST_CASE("function: saved state brings back decoding and MSI-X") {
  Fixture f;
  f.Place();
  f.Command(kMemory);
  const std::uint8_t cap = f.bridge.Config<std::uint8_t>(f.at, kCapabilitiesPointer);
  f.bridge.Config<std::uint16_t>(f.at, cap + 2U, 0x8000);
  f.bridge.Write<std::uint64_t>(kBase0 + 0x1010, 0xfee00000);
  f.bridge.Write<std::uint64_t>(kBase0 + 0x1018, 0x55);
  FunctionState state;
  {
    const MutexLock lock(f.function.lock());
    state = f.function.SaveFunction();
  }
  Fixture g;
  {
    const MutexLock lock(g.function.lock());
    CHECK(g.function.RestoreFunction(state).has_value());
  }
  CHECK(g.Mapped(0) == kBase0);
  CHECK(g.Mapped(2) == kBase2);
  g.function.msix()->Trigger(1);
  CHECK(g.bridge.platform.interrupts.TakeDelivered() ==
        std::vector<bus::MsiMessage>{{0xfee00000, 0x55}});

  FunctionState bad = state;
  SUBCASE("without MSI-X") {
    bad.msix.reset();
  }
  SUBCASE("control that says otherwise: enable") {
    bad.msix->enabled = false;
  }
  SUBCASE("control that says otherwise: mask") {
    bad.msix->masked = true;
  }
  SUBCASE("another function's identity") {
    bad.config.registers[0] ^= 1;
  }
  SUBCASE("type bits of a BAR") {
    bad.config.registers[kBar0 / 4] |= 8;
  }
  SUBCASE("table entry") {
    bad.msix->table_entries[0].vector_ctl = 0xff;
  }
  Fixture h;
  {
    const MutexLock lock(h.function.lock());
    CHECK(h.function.RestoreFunction(bad).error().code == Errc::kBadFormat);
  }
  CHECK(!h.Mapped(0));
}

// vCPU threads enable, disable and move BARs while others access them and the device interrupts:
// run under TSan.
TEST_CASE("function: decoding changes under concurrent accesses") {
  Fixture f;
  f.Place();
  const std::uint8_t cap = f.bridge.Config<std::uint8_t>(f.at, kCapabilitiesPointer);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    while (!stop.load()) {
      f.bridge.Write<std::uint32_t>(kBase0 + 0x10, 1);
      (void)f.bridge.Read<std::uint32_t>(kBase0 + 0x2000 + 0x10);
      f.bridge.Write<std::uint32_t>(kBase0 + 0x100c, 0);
      (void)f.bridge.Read<std::uint64_t>(kBase0 + 0x1800);
    }
  });
  threads.emplace_back([&] {
    while (!stop.load()) f.function.msix()->Trigger(0);
  });
  threads.emplace_back([&] {
    while (!stop.load()) (void)f.bridge.root->Functions();
  });
  for (std::uint32_t i = 0; i < 300; ++i) {
    f.Command(i % 2 == 0 ? kMemory : 0);
    f.bridge.Config<std::uint32_t>(f.at, kBar0,
                                   static_cast<std::uint32_t>(kBase0) + (i % 3) * 0x2000);
    f.bridge.Config<std::uint16_t>(f.at, cap + 2U, i % 5 == 0 ? 0 : 0x8000);
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  f.Command(0);
  CHECK(!f.Mapped(0));
}

}  // namespace
}  // namespace postern::pci
