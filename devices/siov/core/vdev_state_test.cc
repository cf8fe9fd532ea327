#include <functional>
#include <vector>

#include "devices/siov/core/fake_vdev.h"
#include "devices/siov/core/vdev.h"

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

using F = FakePersonality;

VdevState Saved(FakeVdev& f) {
  const MutexLock lock(f.vdev->lock());
  f.vdev->Quiesce();
  VdevState state = f.vdev->Save().value();
  f.vdev->Resume();
  return state;
}

Result<void> Restored(FakeVdev& f, const VdevState& state) {
  const MutexLock lock(f.vdev->lock());
  return f.vdev->Restore(state);
}

// A guest that uses it.
void Use(FakeVdev& f) {
  f.EnableMsix(5);
  f.Run(FakeCommand::kStart);
  f.Register<std::uint32_t>(F::kSize, 20);
  f.Run(FakeCommand::kEnable, 0);
  f.Register<std::uint64_t>(F::kScratch, 0xfeed);
  (void)f.Register<std::uint32_t>(F::kCount);
  for (std::uint64_t i = 0; i < 3; ++i) f.StoreDescriptor(64 * i, FakeDescriptor(i));
}

TEST_CASE("vdev state: registers, config, vectors, waiting and partial descriptors move along") {
  FakeVdev from;
  Use(from);
  const Descriptor rest = FakeDescriptor(9);
  const std::span<const std::byte> bytes = rest;
  from.Store(0x1000 + 0x40, bytes.first(8));
  from.Store(0x1000 + 0x48, bytes.subspan(8, 8));
  const VdevState state = Saved(from);
  CHECK(state.partial_slots.size() == 1);
  CHECK(state.handles.empty());

  FakeVdev to;
  REQUIRE(Restored(to, state));
  CHECK(to.Register<std::uint64_t>(F::kScratch) == 0xfeed);
  CHECK(to.Register<std::uint32_t>(F::kSize) == 20);
  CHECK(to.Register<std::uint32_t>(F::kCount) == 2);
  CHECK(to.backend->started());
  CHECK(to.backend->enabled(0));
  CHECK_FALSE(to.backend->quiesced());
  CHECK(to.backend->Occupancy(0) == 3);
  CHECK(to.backend->vectors().size() == 5);
  CHECK(to.personality->bus_master_changes == 1);  // its own guest's before, not the state's
  // The guest goes on: the rest of a descriptor, and one with an interrupt.
  for (std::size_t at = 16; at < 64; at += 8) to.Store(0x1000 + 0x40 + at, bytes.subspan(at, 8));
  to.StoreDescriptor(0, FakeDescriptor(10, 2));
  (void)to.bridge.platform.interrupts.TakeDelivered();
  to.backend->Complete(0, 9);
  CHECK(to.backend->CompletedTags(0) == std::vector<std::uint64_t>{0, 1, 2, 9, 10});
  const auto delivered = to.bridge.platform.interrupts.TakeDelivered();
  REQUIRE(delivered.size() == 1);
  CHECK(delivered[0].data == 0x42);
  CHECK((to.Register<std::uint32_t>(F::kEvents) & F::kRevokedEvent) == 0);
}

TEST_CASE("vdev state: what is in polled pages moves along, and the driver keeps its place") {
  FakeVdev from({.portal = PortalMode::kPolled});
  from.Run(FakeCommand::kEnable, 0);
  for (std::uint64_t i = 0; i < 5; ++i) from.StoreDescriptor(64 * i, FakeDescriptor(i));
  const VdevState state = Saved(from);
  CHECK(state.backend.queues[0].waiting.size() == 5);
  FakeVdev to({.portal = PortalMode::kPolled});
  REQUIRE(Restored(to, state));
  for (std::uint64_t i = 5; i < 9; ++i) to.StoreDescriptor(64 * i, FakeDescriptor(i));
  CHECK(to.backend->Poll(0) == 4);
  to.backend->Complete(0, 20);
  CHECK(to.backend->CompletedTags(0) == std::vector<std::uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8});
  CHECK(to.vdev->portal_mode(0) == PortalMode::kPolled);
}

TEST_CASE(
    "vdev state: a queue whose driver broke the rule, and one half stored to, is trapped there") {
  FakeVdev from({.portal = PortalMode::kPolled});
  from.backend->events().OnRuleBroken(1);
  from.backend->events().OnRuleBroken(2);
  from.Turn();
  from.Store(0x8000, std::span<const std::byte>(FakeDescriptor(1)).first(8));
  VdevState state = Saved(from);
  CHECK(state.rule_broken == 6);
  state.rule_broken = 2;
  FakeVdev to({.portal = PortalMode::kPolled});
  REQUIRE(Restored(to, state));
  CHECK(to.vdev->portal_mode(0) == PortalMode::kPolled);
  CHECK(to.vdev->portal_mode(1) == PortalMode::kTrapped);
  CHECK(to.vdev->portal_mode(2) == PortalMode::kTrapped);
  CHECK_FALSE(to.backend->polling(1));
}

TEST_CASE("vdev state: handles the backend named are void elsewhere, and the guest is told") {
  BackendCaps caps = FakeBackend::DefaultCaps();
  caps.named_handles = true;
  FakeVdev from({.caps = caps});
  CHECK(from.Run(FakeCommand::kOpenHandle, 1) == 0x100);
  CHECK(from.Run(FakeCommand::kOpenHandle, 2) == 0x101);
  const VdevState state = Saved(from);
  CHECK(state.handles == std::vector<std::uint32_t>{0x100, 0x101});
  FakeVdev to({.caps = caps});
  CHECK(to.Run(FakeCommand::kOpenHandle, 1) == 0x100);  // of the guest that was there
  REQUIRE(Restored(to, state));
  CHECK_FALSE(to.backend->events().IsHandle(0x100));
  CHECK((to.Register<std::uint32_t>(F::kEvents) & F::kRevokedEvent) != 0);
  CHECK(to.Run(FakeCommand::kOpenHandle, 1) == 0x101);
  CHECK(to.backend->events().IsHandle(0x101));
}

TEST_CASE("vdev state: quiesced, nothing completes; what was said before is part of the state") {
  FakeVdev f;
  f.Run(FakeCommand::kEnable, 0);
  f.StoreDescriptor(0, FakeDescriptor(1));
  f.backend->events().OnError({.words = {0x77}});  // not handled yet
  {
    const MutexLock lock(f.vdev->lock());
    CHECK(f.vdev->Save().error().code == Errc::kBadState);
    f.vdev->Quiesce();
    CHECK(f.personality->errors == 1);
    CHECK(f.backend->quiesced());
    CHECK(f.backend->Complete(0) == 0);
  }
  f.StoreDescriptor(0, FakeDescriptor(2));  // still accepted
  {
    const MutexLock lock(f.vdev->lock());
    const VdevState state = f.vdev->Save().value();
    CHECK(state.backend.queues[0].waiting.size() == 2);
    f.vdev->Resume();
    f.vdev->Resume();
    CHECK(f.vdev->Save().error().code == Errc::kBadState);
  }
  CHECK_FALSE(f.backend->quiesced());
  CHECK(f.backend->Complete(0, 2) == 2);
}

TEST_CASE("vdev state: a restore between Quiesce and Resume leaves it quiesced") {
  FakeVdev from;
  Use(from);
  const VdevState state = Saved(from);
  FakeVdev to;
  const MutexLock lock(to.vdev->lock());
  to.vdev->Quiesce();
  REQUIRE(to.vdev->Restore(state));
  CHECK(to.backend->quiesced());
  CHECK(to.backend->Complete(0) == 0);
  to.vdev->Resume();
  CHECK(to.backend->Complete(0) == 1);
}

TEST_CASE("vdev state: a backend without state cannot be saved") {
  BackendCaps caps = FakeBackend::DefaultCaps();
  caps.saves = false;
  FakeVdev f({.caps = caps});
  const MutexLock lock(f.vdev->lock());
  f.vdev->Quiesce();
  CHECK(f.vdev->Save().error().code == Errc::kUnsupported);
  f.vdev->Resume();
}

TEST_CASE("vdev state: what Save could not have given is refused, and leaves the device reset") {
  FakeVdev from;
  Use(from);
  const VdevState good = Saved(from);
  struct Row {
    const char* what;
    std::function<void(VdevState&)> change;
  };
  PartialSlot partial{.queue = 0, .page = 1, .slot = 2, .present = 1};
  const Row rows[] = {
      {"version", [](VdevState& s) { s.version = 2; }},
      {"no registers", [](VdevState& s) { s.registers.clear(); }},
      {"a register too many", [](VdevState& s) { s.registers.push_back(0); }},
      {"a register too wide", [](VdevState& s) { s.registers[0] = ~std::uint64_t{0}; }},
      {"config size", [](VdevState& s) { s.function.config.registers.clear(); }},
      {"identity", [](VdevState& s) { s.function.config.registers[0] = 0; }},
      {"no MSI-X", [](VdevState& s) { s.function.msix.reset(); }},
      {"MSI", [](VdevState& s) { s.function.msi.emplace(); }},
      {"vectors", [](VdevState& s) { s.function.msix->table_entries.pop_back(); }},
      {"handles", [](VdevState& s) { s.handles = {1}; }},
      {"backend's version", [](VdevState& s) { s.backend.version = 9; }},
      {"backend's queues", [](VdevState& s) { s.backend.queues.pop_back(); }},
      {"more waiting than fit", [](VdevState& s) { s.backend.queues[0].waiting.resize(64); }},
      {"personality's version", [](VdevState& s) { s.personality.version = 9; }},
      {"personality's words", [](VdevState& s) { s.personality.words.clear(); }},
      {"rule of a queue there is not", [](VdevState& s) { s.rule_broken = 8; }},
      {"slot of a queue there is not",
       [&](VdevState& s) {
         s.partial_slots = {partial};
         s.partial_slots[0].queue = 3;
       }},
      {"slot of a queue far away",
       [&](VdevState& s) {
         s.partial_slots = {partial};
         s.partial_slots[0].queue = 0xffffffff;
       }},
      {"slot of a sink",
       [&](VdevState& s) {
         s.partial_slots = {partial};
         s.partial_slots[0].page = 2;
       }},
      {"slot of no page",
       [&](VdevState& s) {
         s.partial_slots = {partial};
         s.partial_slots[0].page = 4;
       }},
      {"slot twice",
       [&](VdevState& s) {
         s.partial_slots = {partial, partial};
       }},
      {"slot empty",
       [&](VdevState& s) {
         s.partial_slots = {partial};
         s.partial_slots[0].present = 0;
       }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    VdevState state = good;
    row.change(state);
    FakeVdev to;
    Use(to);
    const auto restored = Restored(to, state);
    REQUIRE_FALSE(restored);
    CHECK(restored.error().code == Errc::kBadFormat);
    CHECK_FALSE(to.backend->enabled(0));
    CHECK_FALSE(to.backend->quiesced());
    CHECK_FALSE(to.vdev->msix()->enabled());
    to.Place();
    to.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
    CHECK(to.Register<std::uint64_t>(F::kScratch) == 0);
    CHECK(to.Counter("queue0_portal_partial_slots") == 0);
    REQUIRE(Restored(to, good));
    CHECK(to.Register<std::uint64_t>(F::kScratch) == 0xfeed);
  }
}

TEST_CASE("vdev state: named handles of a hostile state") {
  BackendCaps caps = FakeBackend::DefaultCaps();
  caps.named_handles = true;
  FakeVdev f({.caps = caps});
  VdevState state = Saved(f);
  state.handles = {2, 1};
  CHECK(Restored(f, state).error().code == Errc::kBadFormat);
  state.handles = {2, 2};
  CHECK(Restored(f, state).error().code == Errc::kBadFormat);
  state.handles.clear();
  for (std::uint32_t h = 0; h < 10; ++h) state.handles.push_back(h);
  CHECK(Restored(f, state));
  state.handles.push_back(10);
  CHECK(Restored(f, state).error().code == Errc::kBadFormat);
}

}  // namespace
}  // namespace postern::siov
