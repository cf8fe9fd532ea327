#include "devices/pci/msix.h"

#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "src/bus/fake_platform.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::pci {
namespace {

template <typename U>
U Load(bus::MmioHandler& handler, std::uint64_t offset) {
  std::array<std::byte, sizeof(U)> bytes{};
  handler.Read(offset, bytes);
  U value;
  std::memcpy(&value, bytes.data(), sizeof(U));
  return value;
}

template <typename U>
void Store(bus::MmioHandler& handler, std::uint64_t offset, U value) {
  std::array<std::byte, sizeof(U)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(U));
  handler.Write(offset, bytes);
}

// The function's own calls into the table are serialised by the function's lock; a test is one
// thread.
struct Fixture {
  explicit Fixture(std::uint16_t vectors = 4)
      : table(MsixTable::Create(interrupts, vectors).value()) {}
  void Program(std::uint64_t vector, std::uint64_t address, std::uint32_t data) {
    Store<std::uint64_t>(table->table(), vector * 16, address);
    Store<std::uint32_t>(table->table(), vector * 16 + 8, data);
  }
  void Mask(std::uint64_t vector, bool masked) {
    Store<std::uint32_t>(table->table(), vector * 16 + 12, masked ? 1 : 0);
  }
  std::uint64_t Pba(std::uint64_t word = 0) { return Load<std::uint64_t>(table->pba(), word * 8); }

  bus::FakeInterruptSource interrupts;
  std::unique_ptr<MsixTable> table;
};

TEST_CASE("msix: entries are masked after reset and keep what the guest may write") {
  Fixture f;
  for (std::uint64_t vector = 0; vector < 4; ++vector) {
    CHECK(Load<std::uint64_t>(f.table->table(), vector * 16) == 0);
    CHECK(Load<std::uint64_t>(f.table->table(), vector * 16 + 8) == 0x1'0000'0000);
  }
  Store<std::uint64_t>(f.table->table(), 16, ~std::uint64_t{0});
  Store<std::uint64_t>(f.table->table(), 24, ~std::uint64_t{0});
  CHECK(Load<std::uint64_t>(f.table->table(), 16) == 0xffffffff'fffffffc);
  CHECK(Load<std::uint64_t>(f.table->table(), 24) == 0x1'ffffffff);
  CHECK(Load<std::uint32_t>(f.table->table(), 0) == 0);
  CHECK(Load<std::uint32_t>(f.table->table(), 32) == 0);
  Store<std::uint32_t>(f.table->table(), 16, 0x04030201);
  CHECK(Load<std::uint32_t>(f.table->table(), 16) == 0x04030200);
  CHECK(f.interrupts.routes() == 0);
}

TEST_CASE("msix: accesses other than aligned dwords and qwords inside the table are refused") {
  Fixture f;
  std::uint64_t refused = 0;
  for (const std::size_t width : {1U, 2U, 3U, 4U, 8U}) {
    for (const std::uint64_t offset :
         {0ULL, 1ULL, 2ULL, 4ULL, 6ULL, 8ULL, 12ULL, 56ULL, 60ULL, 64ULL, 0x7f8ULL}) {
      CAPTURE(width);
      CAPTURE(offset);
      const bool good = (width == 4 || width == 8) && offset % width == 0 && offset + width <= 64;
      std::array<std::byte, 8> bytes{};
      bytes.fill(std::byte{0x77});
      f.table->table().Read(offset, std::span(bytes).first(width));
      if (!good) {
        ++refused;
        CHECK(bytes[width - 1] == std::byte{0});
        f.table->table().Write(offset, std::span<const std::byte>(bytes).first(width));
        ++refused;
      }
      CHECK(testing::ReportedCounter(*f.table, "msix_refused_accesses") == refused);
    }
  }
  // The PBA of four vectors is one qword.
  CHECK(Load<std::uint32_t>(f.table->pba(), 4) == 0);
  CHECK(Load<std::uint64_t>(f.table->pba(), 8) == 0);
  Store<std::uint64_t>(f.table->pba(), 0, 0xf);
  CHECK(f.Pba() == 0);
  CHECK(testing::ReportedCounter(*f.table, "msix_refused_accesses") == refused + 2);
}

TEST_CASE("msix: vector counts are 1 to 2048") {
  bus::FakeInterruptSource interrupts;
  CHECK(MsixTable::Create(interrupts, 0).error().code == Errc::kInvalidArgument);
  CHECK(MsixTable::Create(interrupts, 2049).error().code == Errc::kInvalidArgument);
  CHECK(MsixTable::TableBytes(2048) == 32768);
  CHECK(MsixTable::PbaBytes(2048) == 256);
  CHECK(MsixTable::PbaBytes(64) == 8);
  CHECK(MsixTable::PbaBytes(65) == 16);
  Fixture f(2048);
  f.table->SetControl(true, false);
  f.Program(2047, 0xfee00000, 7);
  f.table->Trigger(2047);
  CHECK(f.Pba(31) == std::uint64_t{1} << 63);
  f.Mask(2047, false);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 7}});
  CHECK(f.interrupts.routes() == 1);  // vectors nobody unmasked cost nothing
}

TEST_CASE("msix: a trigger is delivered as the entry says") {
  Fixture f;
  f.Program(1, 0x1'fee01000, 0x41);
  f.table->Trigger(1);  // disabled: dropped
  f.table->SetControl(true, false);
  f.Mask(1, false);
  CHECK(f.interrupts.TakeDelivered().empty());
  f.table->Trigger(1);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0x1'fee01000, 0x41}});
  CHECK(f.Pba() == 0);
  f.table->Trigger(4);       // there is none
  f.table->Trigger(0xffff);  // virtio's NO_VECTOR
  CHECK(f.interrupts.TakeDelivered().empty());
  CHECK(testing::ReportedCounter(*f.table, "msix_triggers") == 1);

  // Rewritten while unmasked: at once. The same value again: not worth a call.
  f.Program(1, 0x1'fee02000, 0x42);
  f.table->Trigger(1);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0x1'fee02000, 0x42}});
  const std::uint64_t sets = f.interrupts.Msi(0).sets;
  f.Program(1, 0x1'fee02000, 0x42);
  f.Mask(1, true);
  f.Mask(1, false);
  CHECK(f.interrupts.Msi(0).sets == sets);
  // Rewritten while masked: once, at the unmask.
  f.Mask(1, true);
  f.Program(1, 0xfee03000, 0x43);
  f.Program(1, 0xfee04000, 0x44);
  CHECK(f.interrupts.Msi(0).sets == sets);
  f.Mask(1, false);
  CHECK(f.interrupts.Msi(0).sets == sets + 1);
}

TEST_CASE("msix: triggers while masked show in the PBA and are delivered once on unmask") {
  Fixture f;
  f.Program(2, 0xfee00000, 0x22);
  f.table->SetControl(true, false);
  SUBCASE("a vector that never was unmasked") {
    for (int i = 0; i < 3; ++i) f.table->Trigger(2);
    CHECK(f.interrupts.routes() == 0);
    CHECK(f.Pba() == 4);
    CHECK(Load<std::uint32_t>(f.table->pba(), 0) == 4);
    f.Mask(2, false);
  }
  SUBCASE("a vector masked again") {
    f.Mask(2, false);
    f.Mask(2, true);
    for (int i = 0; i < 3; ++i) f.table->Trigger(2);
    CHECK(f.Pba() == 4);
    f.Mask(2, false);
  }
  SUBCASE("the function masked") {
    f.Mask(2, false);
    f.table->SetControl(true, true);
    for (int i = 0; i < 3; ++i) f.table->Trigger(2);
    CHECK(f.Pba() == 4);
    f.Mask(2, true);
    f.table->SetControl(true, false);
    CHECK(f.Pba() == 4);  // still masked on its own
    f.Mask(2, false);
  }
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x22}});
  CHECK(f.Pba() == 0);
  f.Mask(2, true);
  f.Mask(2, false);
  CHECK(f.interrupts.TakeDelivered().empty());
}

TEST_CASE("msix: what was pending at a disable is gone after the next enable") {
  Fixture f;
  f.Program(0, 0xfee00000, 1);
  f.Program(1, 0xfee00000, 2);
  f.table->SetControl(true, false);
  f.Mask(0, false);
  f.Mask(0, true);
  f.table->Trigger(0);
  f.table->Trigger(1);
  CHECK(f.Pba() == 3);
  f.table->SetControl(false, false);
  CHECK(f.Pba() == 0);
  f.table->Trigger(0);
  f.table->SetControl(true, true);
  CHECK(f.Pba() == 0);
  f.Mask(0, false);
  f.Mask(1, false);
  f.table->SetControl(true, false);
  CHECK(f.interrupts.TakeDelivered().empty());
  f.table->Trigger(0);
  f.table->Trigger(1);
  CHECK(f.interrupts.TakeDelivered().size() == 2);
  f.table->Reset();
  CHECK(!f.table->enabled());
  CHECK(Load<std::uint64_t>(f.table->table(), 8) == 0x1'0000'0000);
}

TEST_CASE("msix: enabled with every vector masked, then unmasked one by one, as Linux does") {
  Fixture f;
  f.table->SetControl(true, true);
  for (std::uint64_t vector = 0; vector < 4; ++vector) f.Mask(vector, true);
  f.table->SetControl(true, false);
  CHECK(f.interrupts.routes() == 0);
  for (std::uint64_t vector = 0; vector < 4; ++vector) {
    f.Program(vector, 0xfee00000, static_cast<std::uint32_t>(vector));
    f.Mask(vector, false);
    CHECK(f.interrupts.Msi(vector).sets == 1);
    CHECK(f.interrupts.Msi(vector).masks == 1);
  }
}

TEST_CASE("msix: a platform without routes left costs interrupts, not the monitor") {
  Fixture f;
  f.interrupts.LimitRoutes(1);
  f.table->SetControl(true, false);
  f.Mask(0, false);
  f.table->Trigger(1);
  f.Mask(1, false);
  CHECK(testing::ReportedCounter(*f.table, "msix_route_errors") == 1);
  CHECK(f.Pba() == 2);
  f.interrupts.LimitRoutes(2);
  f.Mask(1, true);
  f.Program(1, 0xfee00000, 9);
  f.Mask(1, false);
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 9}});

  f.interrupts.FailUpdates(true);
  f.Program(1, 0xfee05000, 9);
  f.Mask(0, true);
  CHECK(testing::ReportedCounter(*f.table, "msix_route_errors") > 1);
  f.interrupts.FailUpdates(false);
  f.Mask(0, true);
  CHECK(f.interrupts.Msi(0).masked);
}

TEST_CASE("msix: saved state carries masks and pending bits") {
  Fixture f(70);
  f.table->SetControl(true, true);
  f.Program(3, 0x1'fee00000, 3);
  f.Program(69, 0xfee00000, 69);
  f.Mask(3, false);
  f.table->Trigger(69);
  f.table->Trigger(3);
  const MsixState state = f.table->Save();
  CHECK(state.enabled);
  CHECK(state.masked);
  CHECK(state.pba_entries == std::vector<std::uint64_t>{8, 32});

  Fixture g(70);
  CHECK(g.table->Restore(state).has_value());
  CHECK(g.Pba(0) == 8);
  CHECK(g.Pba(1) == 32);
  g.table->SetControl(true, false);
  CHECK(g.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0x1'fee00000, 3}});
  g.Mask(69, false);
  CHECK(g.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 69}});

  MsixState bad = state;
  SUBCASE("entries") {
    bad.table_entries.pop_back();
  }
  SUBCASE("no entries") {
    bad.table_entries.clear();
  }
  SUBCASE("pending words") {
    bad.pba_entries.push_back(0);
  }
  SUBCASE("no pending words") {
    bad.pba_entries.clear();
  }
  SUBCASE("pending beyond the last vector") {
    bad.pba_entries[1] |= 64;
  }
  SUBCASE("pending while disabled") {
    bad.enabled = false;
  }
  SUBCASE("low address bits") {
    bad.table_entries[0].msg_addr_lo = 1;
  }
  SUBCASE("reserved control bits") {
    bad.table_entries[0].vector_ctl = 2;
  }
  Fixture h(70);
  CHECK(h.table->Restore(bad).error().code == Errc::kBadFormat);
  CHECK(!h.table->enabled());
}

// For each trigger while enabled at least one interrupt follows, whatever the guest does with the
// masks meanwhile.
TEST_CASE("msix: no trigger is lost between masks and unmasks of another thread") {
  Fixture f(2);
  f.Program(0, 0xfee00000, 0);
  f.Program(1, 0xfee00000, 1);
  f.table->SetControl(true, false);
  std::atomic<bool> stop{false};
  std::thread device([&] {
    while (!stop.load()) {
      f.table->Trigger(0);
      f.table->Trigger(1);
    }
  });
  for (int i = 0; i < 200; ++i) {
    f.Mask(1, i % 2 == 0);
    f.table->SetControl(true, i % 3 == 0);
    f.Mask(0, i % 5 == 0);
    (void)f.Pba();
  }
  stop.store(true);
  device.join();
  f.table->SetControl(true, true);
  (void)f.interrupts.TakeDelivered();
  f.table->Trigger(0);
  f.table->Trigger(1);
  f.Mask(0, false);
  f.Mask(1, false);
  CHECK(f.Pba() == 3);
  f.table->SetControl(true, false);
  CHECK(f.interrupts.TakeDelivered().size() == 2);
}

struct Observer final : MsixObserver {
  void OnVectorOpened(std::uint16_t vector, const EventFd& trigger) override {
    events.push_back(vector);
    last = &trigger;
  }
  void OnEnabled() override { events.push_back(-1); }
  void OnDisabled() override { events.push_back(-2); }
  std::vector<int> events;
  const EventFd* last = nullptr;
};

TEST_CASE("msix: an observer learns of each unmasking, of enabling after it and of disabling") {
  Fixture f;
  Observer observer;
  f.table->SetObserver(&observer);
  f.Program(2, 0xfee00000, 0x42);
  f.Mask(2, false);
  CHECK(observer.events.empty());
  f.table->SetControl(true, true);
  f.table->SetControl(true, false);
  CHECK(observer.events == std::vector<int>{-1, 2});
  observer.last->Signal();  // as a device with the trigger would
  CHECK(f.interrupts.TakeDelivered() == std::vector<bus::MsiMessage>{{0xfee00000, 0x42}});
  f.Mask(2, true);
  observer.last->Signal();
  CHECK(f.Pba() == 4);
  f.Mask(2, false);
  CHECK(f.interrupts.TakeDelivered().size() == 1);
  f.Program(3, 0xfee00000, 0x43);
  f.Mask(3, false);
  const MsixState state = f.table->Save();
  f.table->SetControl(false, false);
  CHECK(observer.events == std::vector<int>{-1, 2, 2, 3, -2});
  observer.events.clear();
  REQUIRE(f.table->Restore(state).has_value());
  CHECK(observer.events == std::vector<int>{2, 3, -1});
  f.table->Reset();
  f.table->SetObserver(nullptr);
  CHECK(observer.events == std::vector<int>{2, 3, -1, -2});
}

}  // namespace
}  // namespace postern::pci
