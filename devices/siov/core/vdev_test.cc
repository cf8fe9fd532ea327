#include "devices/siov/core/vdev.h"

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "devices/siov/core/fake_vdev.h"

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

using F = FakePersonality;

// The first portal pages of the queues, and a sink of queue 0.
constexpr std::uint64_t kQueue0 = 0x0000;
constexpr std::uint64_t kQueue0Limited = 0x1000;
constexpr std::uint64_t kSink0 = 0x2000;
constexpr std::uint64_t kQueue1 = 0x4000;

std::uint64_t Ones() {
  return ~std::uint64_t{0};
}

template <typename U>
U LoadPortal(FakeVdev& f, std::uint64_t offset) {
  return f.bridge.Read<U>(FakeVdev::kPortals + offset);
}

Result<std::unique_ptr<Vdev>> Make(EventLoop& loop, bus::InterruptSource& interrupts,
                                   const VdevLayout& layout, PortalMode mode,
                                   const BackendCaps& caps) {
  return Vdev::Create({.name = "x", .portal = mode}, std::make_unique<F>(layout),
                      std::make_unique<FakeBackend>(caps), {interrupts, loop});
}

// --- composition ---

TEST_CASE("vdev: layouts that are not well formed, and modes the backend lacks, are refused") {
  bus::FakePlatform platform;
  const auto loop = EventLoop::Create().value();
  const auto code = [&](auto change) {
    VdevLayout layout = F::DefaultLayout();
    BackendCaps caps = FakeBackend::DefaultCaps();
    PortalMode mode = PortalMode::kTrapped;
    change(layout, caps, mode);
    auto made = Make(*loop, platform.interrupts, layout, mode, caps);
    return made ? Errc::kNotFound : made.error().code;
  };
  using L = VdevLayout;
  using C = BackendCaps;
  using M = PortalMode;
  CHECK(code([](L&, C&, M&) {}) == Errc::kNotFound);
  CHECK(code([](L& l, C&, M&) { l.queues = 0; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.queues = 5; }) == Errc::kInvalidArgument);  // the backend has 4
  CHECK(code([](L& l, C& c, M&) { l.queues = c.queues = 65; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C& c, M&) { l.queues = c.queues = 64; }) == Errc::kNotFound);
  CHECK(code([](L& l, C&, M&) { l.pages_per_queue = 0; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.pages_per_queue = 33; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.pages_per_queue = 32; }) == Errc::kNotFound);
  CHECK(code([](L& l, C&, M&) { l.portal_pages = 0; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.portal_pages = 0x10; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.register_bytes = 0x9000; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.register_bytes = 0x4000; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.msix_table_offset = 0x4010; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.msix_table_offset = 0; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.msix_pba_offset = 0x4000; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.msix_pba_offset = 0xffff'f000; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.vectors = 0; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.vectors = 257; }) ==
        Errc::kInvalidArgument);  // runs into the PBA
  CHECK(code([](L& l, C&, M&) { l.vectors = 2049; }) == Errc::kInvalidArgument);
  CHECK(code([](L& l, C&, M&) { l.msix_table_offset = 0x6000; }) == Errc::kNotFound);
  CHECK(code([](L&, C& c, M& m) {
          m = M::kPolled;
          c.polled = false;
        }) == Errc::kUnsupported);
  CHECK(code([](L&, C& c, M& m) {
          m = M::kDirect;
          c.direct = false;
        }) == Errc::kUnsupported);
}

TEST_CASE("vdev: config space of a root complex integrated endpoint with two BARs and MSI-X") {
  FakeVdev f;
  const auto config32 = [&](std::uint32_t at) {
    return f.bridge.Config<std::uint32_t>(f.where, at);
  };
  CHECK(config32(0) == 0x56781234);
  CHECK(config32(8) == 0x08800001);
  CHECK((config32(pci::kBar0) & 0xf) == 0xc);  // 64-bit, prefetchable
  CHECK((config32(pci::kBar0 + 8) & 0xf) == 0xc);
  CHECK(config32(pci::kBar0 + 16) == 0);
  CHECK(config32(pci::kBar0 + 20) == 0);
  CHECK(f.bridge.Config<std::uint8_t>(f.where, 0x3d) == 0);  // no INTx
  CHECK(f.vdev->bars()[0]->size() == 0x10000);
  CHECK(f.vdev->bars()[2]->size() == 0x10000);  // 3 queues of 4 pages, rounded up
  CHECK(f.bridge.Config<std::uint8_t>(f.where, 0x34) == FakeVdev::kExpress);
  CHECK((config32(FakeVdev::kExpress) & 0xffff00ff) == 0x00920010);
  const std::uint32_t msix = config32(FakeVdev::kExpress) >> 8 & 0xff;
  CHECK((config32(msix) & 0x7ff00ff) == 0x00040011);  // 5 vectors
  CHECK(config32(msix + 4) == 0x4000);
  CHECK(config32(msix + 8) == 0x5000);
  CHECK(config32(FakeVdev::kExpress + 4) == 0x10008000);
  // Device control: what a device without payload sizes has; FLR reads 0.
  CHECK(f.bridge.Config<std::uint16_t>(f.where, FakeVdev::kExpress + 8) == 0x2810);
  f.bridge.Config<std::uint16_t>(f.where, FakeVdev::kExpress + 8, 0x7fff);
  CHECK(f.bridge.Config<std::uint16_t>(f.where, FakeVdev::kExpress + 8) == 0x781f);
}

TEST_CASE("vdev: table before and after the pending bits, gaps in between") {
  VdevLayout layout = F::DefaultLayout();
  layout.msix_pba_offset = 0x2000;
  layout.msix_table_offset = 0x8000;
  FakeVdev f({.layout = layout});
  f.EnableMsix(5);
  CHECK(f.Register<std::uint32_t>(0x8000 + 16 + 8) == 0x41);
  CHECK(f.Register<std::uint64_t>(0x2000) == 0);
  CHECK(f.Register<std::uint64_t>(0x3000) == 0);
  CHECK(f.Register<std::uint64_t>(0xf000) == 0);
  f.Register<std::uint64_t>(0xf000, 1);
  CHECK(f.Counter("registers_empty") == 3);
}

TEST_CASE("vdev: registers by the table, counted by name; the rest of BAR 0 reads 0") {
  FakeVdev f;
  CHECK(f.Register<std::uint32_t>(F::kId) == F::kIdValue);
  f.Register<std::uint32_t>(F::kId, 0);
  CHECK(f.Register<std::uint32_t>(F::kId) == F::kIdValue);
  f.Register<std::uint64_t>(F::kScratch, 0x1122334455667788);
  CHECK(f.Register<std::uint32_t>(F::kScratch + 4) == 0x11223344);
  f.Register<std::uint8_t>(F::kScratch, 0xaa);
  CHECK(f.Register<std::uint64_t>(F::kScratch) == 0x11223344556677aa);
  CHECK(f.Register<std::uint32_t>(F::kCount) == 1);
  CHECK(f.Register<std::uint32_t>(F::kCount) == 2);
  CHECK(f.Register<std::uint32_t>(0x3ffc) == 0);
  CHECK(f.Register<std::uint32_t>(0x6000) == 0);
  CHECK(f.Register<std::uint32_t>(0xfffc) == 0);
  CHECK(f.Counter("register_ID") == 3);
  CHECK(f.Counter("register_SCRATCH") == 4);
  CHECK(f.Counter("register_COUNT") == 2);
  CHECK(f.Counter("register_SIZE") == Ones());  // never touched: not reported
  CHECK(f.Counter("registers_refused") == 1);
  CHECK(f.Counter("registers_empty") == 2);
}

// --- portals ---

TEST_CASE("vdev: trapped portals gather stores, any slot, the first two pages of a queue") {
  FakeVdev f;
  CHECK((f.Run(FakeCommand::kEnable, 0) & F::kFailed) == 0);
  CHECK((f.Run(FakeCommand::kEnable, 1) & F::kFailed) == 0);
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));
  f.StoreDescriptor(kQueue0 + 0xfc0, FakeDescriptor(2));
  f.StoreDescriptor(kQueue0Limited + 0x40, FakeDescriptor(3));
  f.StoreDescriptor(kQueue1, FakeDescriptor(4));
  f.StoreDescriptor(kSink0, FakeDescriptor(5));
  CHECK(f.backend->Occupancy(0) == 3);
  CHECK(f.backend->Occupancy(1) == 1);
  CHECK(f.backend->Occupancy(2) == 0);
  f.backend->Complete(0, 9);
  CHECK(f.backend->CompletedTags(0) == std::vector<std::uint64_t>{1, 2, 3});
  CHECK(f.Counter("queue0_portal_stores") == 24);
  CHECK(f.Counter("queue0_portal_exits") == 24);
  CHECK(f.Counter("queue0_portal_submitted") == 3);
  CHECK(f.Counter("queue0_portal_partial_slots") == 0);
  CHECK(f.Counter("queue1_portal_submitted") == 1);
  CHECK(f.Counter("portal_sink_accesses") == 8);
  CHECK(f.bridge.platform.pages.Mappings().empty());
}

TEST_CASE("vdev: portals, sinks and what lies behind the last queue read as all-ones") {
  FakeVdev f;
  CHECK(LoadPortal<std::uint64_t>(f, kQueue0) == Ones());
  CHECK(LoadPortal<std::uint8_t>(f, kSink0 + 1) == 0xff);
  CHECK(LoadPortal<std::uint32_t>(f, 0xfffc) == 0xffffffff);
  f.StoreDescriptor(0xf000, FakeDescriptor(1));
  CHECK(f.Counter("queue0_portal_exits") == 1);
  CHECK(f.Counter("portal_sink_accesses") == 10);
}

TEST_CASE(
    "vdev: a whole store (MOVDIR64B) is one submission; elsewhere and misaligned it is none") {
  FakeVdev f;
  f.Run(FakeCommand::kEnable, 1);
  const Descriptor part = FakeDescriptor(9);
  f.Store(kQueue1 + 0x40, std::span<const std::byte>(part).first(8));
  {
    const MutexLock lock(f.vdev->lock());
    f.vdev->SubmitAt(kQueue1 + 0x40, FakeDescriptor(1));
    f.vdev->SubmitAt(kQueue1 + 0x1fc0, FakeDescriptor(2));
    f.vdev->SubmitAt(kQueue1 + 0x41, FakeDescriptor(3));
    f.vdev->SubmitAt(kQueue1 + 0x2000, FakeDescriptor(4));
    f.vdev->SubmitAt(0xf000, FakeDescriptor(5));
    f.vdev->SubmitAt(Ones() - 63, FakeDescriptor(6));
  }
  f.backend->Complete(1, 9);
  CHECK(f.backend->CompletedTags(1) == std::vector<std::uint64_t>{1, 2});
  CHECK(f.Counter("queue1_portal_whole_stores") == 2);
  CHECK(f.Counter("queue1_portal_overwritten_bytes") == 8);
  CHECK(f.Counter("queue1_portal_partial_slots") == 0);
  CHECK(f.Counter("portal_misaligned") == 1);
  CHECK(f.Counter("portal_sink_accesses") == 3);
}

TEST_CASE("vdev: what a queue does not take is told to the personality, at once where it trapped") {
  FakeVdev f;
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));
  CHECK(f.personality->refused == 1);
  CHECK(f.personality->last_refused == SubmitResult::kDisabled);
  f.Register<std::uint32_t>(F::kSize, 2);
  f.Run(FakeCommand::kEnable, 0);
  for (std::uint64_t i = 0; i < 3; ++i) f.StoreDescriptor(kQueue0, FakeDescriptor(i));
  CHECK(f.personality->refused == 2);
  CHECK(f.personality->last_refused == SubmitResult::kFull);
  CHECK(f.Counter("queue0_portal_refused") == 2);
  CHECK(f.Counter("queue0_portal_submitted") == 2);
  CHECK((f.Register<std::uint32_t>(F::kEvents) & F::kRefusedEvent) != 0);
}

std::vector<std::uint64_t> MappedAt(FakeVdev& f) {
  std::vector<std::uint64_t> at;
  for (const auto& mapping : f.bridge.platform.pages.Mappings())
    at.push_back(mapping.gpa.value - FakeVdev::kPortals);
  return at;
}

TEST_CASE("vdev: polled portals are one mapping a queue, sinks stay trapped, nothing exits") {
  FakeVdev f({.portal = PortalMode::kPolled});
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0, 0x4000, 0x8000});
  for (const auto& mapping : f.bridge.platform.pages.Mappings()) {
    CHECK(mapping.pages.length == 0x2000);
    CHECK(mapping.pages.fd >= 0);
  }
  CHECK(f.vdev->portal_mode(0) == PortalMode::kPolled);
  f.Run(FakeCommand::kEnable, 0);
  for (std::uint64_t i = 0; i < 20; ++i) {
    f.StoreDescriptor(kQueue0Limited + 64 * i, FakeDescriptor(i));
    CHECK(f.backend->Poll(0) == 1);
  }
  f.backend->Complete(0, 20);
  CHECK(f.backend->CompletedTags(0).size() == 20);
  CHECK(f.Counter("queue0_portal_exits") == 0);
  CHECK(LoadPortal<std::uint32_t>(f, kSink0) == 0xffffffff);
  CHECK(f.vdev->portal_mode(0) == PortalMode::kPolled);
}

TEST_CASE("vdev: pages of one queue next to the next queue's are mapped apart where polled") {
  VdevLayout layout = F::DefaultLayout();
  layout.pages_per_queue = 2;
  FakeVdev f({.portal = PortalMode::kPolled, .layout = layout});
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0, 0x2000, 0x4000});
}

TEST_CASE("vdev: handles the backend took back are told once, and not after a reset") {
  FakeVdev f({.portal = PortalMode::kTrapped});
  f.backend->events().OnHandlesRevoked();
  f.backend->events().OnHandlesRevoked();
  f.Turn();
  CHECK((f.Register<std::uint32_t>(F::kEvents) & F::kRevokedEvent) != 0);
  CHECK(f.Counter("handles_revoked") == 1);
  f.backend->events().OnHandlesRevoked();
  f.FunctionLevelReset();
  f.Place();
  f.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
  f.Turn();
  CHECK((f.Register<std::uint32_t>(F::kEvents) & F::kRevokedEvent) == 0);
  CHECK(f.Counter("handles_revoked") == 1);
  f.backend->events().OnHandlesRevoked();
  f.Turn();
  CHECK(f.Counter("handles_revoked") == 2);
}

TEST_CASE("vdev: direct portals are the backend's pages, adjacent ones in one mapping") {
  FakeVdev f({.portal = PortalMode::kDirect});
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0, 0x4000, 0x8000});
  CHECK(f.bridge.platform.pages.Mappings()[0].pages.length == 0x2000);
  CHECK(f.vdev->portal_mode(2) == PortalMode::kDirect);
  // A driver cannot break a rule there is not.
  f.backend->events().OnRuleBroken(0);
  f.Turn();
  CHECK(f.vdev->portal_mode(0) == PortalMode::kDirect);
  CHECK(f.Counter("portal_rules_broken") == 0);
}

TEST_CASE(
    "vdev: a polled portal whose driver breaks the rule is trapped, and nothing is lost by it") {
  FakeVdev f({.portal = PortalMode::kPolled});
  f.Run(FakeCommand::kEnable, 0);
  f.Run(FakeCommand::kEnable, 1);
  f.StoreDescriptor(kQueue0, FakeDescriptor(0));
  CHECK(f.backend->Poll(0) == 1);
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));  // slot 0 again
  CHECK(f.backend->Poll(0) == 1);
  CHECK(f.backend->Poll(0) == 0);  // says it again: once is enough
  // Before the loop comes to it, the driver goes on.
  f.StoreDescriptor(kQueue0, FakeDescriptor(2));
  f.StoreDescriptor(kQueue0Limited + 0x80, FakeDescriptor(3));
  f.Turn();
  CHECK(f.vdev->portal_mode(0) == PortalMode::kTrapped);
  CHECK_FALSE(f.backend->polling(0));
  CHECK(f.Counter("portal_rules_broken") == 1);
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0x4000, 0x8000});
  // From now on by exits, in order behind what was in the page.
  f.StoreDescriptor(kQueue0, FakeDescriptor(4));
  f.StoreDescriptor(kQueue0, FakeDescriptor(5));
  CHECK(f.Counter("queue0_portal_submitted") == 2);
  f.backend->Complete(0, 9);
  CHECK(f.backend->CompletedTags(0) == std::vector<std::uint64_t>{0, 1, 2, 3, 4, 5});
  // The neighbour is as it was.
  CHECK(f.vdev->portal_mode(1) == PortalMode::kPolled);
  f.StoreDescriptor(kQueue1, FakeDescriptor(7));
  CHECK(f.backend->Poll(1) == 1);
  // It stays so over a reset.
  f.FunctionLevelReset();
  f.Place();
  f.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
  CHECK(f.vdev->portal_mode(0) == PortalMode::kTrapped);
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0x4000, 0x8000});
}

TEST_CASE("vdev: the rule broken while nothing is decoded, and for queues there are not") {
  FakeVdev f({.portal = PortalMode::kPolled});
  f.Command(0);
  f.backend->events().OnRuleBroken(2);
  f.backend->events().OnRuleBroken(3);
  f.backend->events().OnRuleBroken(64);
  f.backend->events().OnRuleBroken(0xffffffff);
  f.Turn();
  CHECK(f.Counter("portal_rules_broken") == 1);
  f.Command(FakeVdev::kMemory);
  CHECK(MappedAt(f) == std::vector<std::uint64_t>{0, 0x4000});
}

TEST_CASE("vdev: no descriptor is lost while a thread stores and the portal becomes trapped") {
  for (int round = 0; round < 8; ++round) {
    FakeVdev f({.portal = PortalMode::kPolled});
    f.Register<std::uint32_t>(F::kSize, 63);
    f.Run(FakeCommand::kEnable, 0);
    constexpr std::uint64_t kCount = 60;
    std::atomic<std::uint64_t> stored{0};
    std::thread guest([&] {
      for (std::uint64_t i = 0; i < kCount; ++i) {
        // Whole: the fake's guest stores to a mapped page under one lock.
        const Descriptor descriptor = FakeDescriptor(i);
        const memory::Gpa at(FakeVdev::kPortals + i % 64 * 64);
        if (!f.bridge.platform.pages.GuestWrite(at, descriptor))
          f.StoreDescriptor(i % 64 * 64, descriptor);
        stored.store(i + 1, std::memory_order_relaxed);
      }
    });
    while (stored.load(std::memory_order_relaxed) < static_cast<std::uint64_t>(round) * 7)
      std::this_thread::yield();
    f.backend->events().OnRuleBroken(0);
    f.Turn();
    CHECK(f.vdev->portal_mode(0) == PortalMode::kTrapped);
    guest.join();
    f.backend->Complete(0, kCount);
    std::vector<std::uint64_t> expected;
    for (std::uint64_t i = 0; i < kCount; ++i) expected.push_back(i);
    CHECK(f.backend->CompletedTags(0) == expected);
  }
}

// --- interrupts ---

TEST_CASE("vdev: a completion signals the vector of its handle") {
  FakeVdev f;
  f.EnableMsix(5);
  f.Run(FakeCommand::kEnable, 0);
  (void)f.bridge.platform.interrupts.TakeDelivered();
  f.StoreDescriptor(kQueue0, FakeDescriptor(1, 3));
  f.StoreDescriptor(kQueue0, FakeDescriptor(2));
  f.StoreDescriptor(kQueue0, FakeDescriptor(3, 5));  // no such vector
  f.backend->Complete(0, 3);
  const auto delivered = f.bridge.platform.interrupts.TakeDelivered();
  REQUIRE(delivered.size() == 1);
  CHECK(delivered[0].data == 0x43);
  CHECK(f.Counter("unknown_handles") == 1);
  CHECK(f.backend->events().IsHandle(0));
  CHECK(f.backend->events().IsHandle(4));
  CHECK_FALSE(f.backend->events().IsHandle(5));
}

TEST_CASE("vdev: vectors go to the backend as they are opened, and leave when MSI-X goes off") {
  FakeVdev f;
  CHECK(f.backend->vectors().empty());
  f.EnableMsix(2);
  CHECK(f.backend->vectors().size() == 2);
  CHECK(f.backend->vectors().at(1) != nullptr);
  // Hardware that signals it by itself.
  (void)f.bridge.platform.interrupts.TakeDelivered();
  f.backend->vectors().at(1)->Signal();
  CHECK(f.bridge.platform.interrupts.TakeDelivered().size() == 1);
  f.MsixControl(0);
  CHECK(f.backend->vectors().empty());
}

TEST_CASE("vdev: where handles are vectors, asking gives the vector and closing changes nothing") {
  FakeVdev f;
  CHECK(f.Run(FakeCommand::kOpenHandle, 3) == 3);
  CHECK((f.Run(FakeCommand::kOpenHandle, 5) & F::kFailed) != 0);
  CHECK((f.Run(FakeCommand::kOpenHandle, 0x10003) & F::kFailed) == 0);  // the command takes 16 bits
  CHECK((f.Run(FakeCommand::kCloseHandle, 3) & F::kFailed) == 0);
  CHECK(f.backend->events().IsHandle(3));
  CHECK((f.Run(FakeCommand::kCloseHandle, 5) & F::kFailed) != 0);
}

TEST_CASE("vdev: where the backend names handles, only those that were asked for count") {
  BackendCaps caps = FakeBackend::DefaultCaps();
  caps.named_handles = true;
  FakeVdev f({.caps = caps});
  CHECK_FALSE(f.backend->events().IsHandle(3));
  const std::uint32_t handle = f.Run(FakeCommand::kOpenHandle, 3);
  CHECK(handle == 0x100);
  CHECK(f.backend->events().IsHandle(0x100));
  f.EnableMsix(5);
  (void)f.bridge.platform.interrupts.TakeDelivered();
  f.backend->events().SignalHandle(0x100);
  CHECK(f.bridge.platform.interrupts.TakeDelivered().size() == 1);
  // The same name for the same vector is no mistake of the backend's; for another one it is.
  f.backend->NextHandle(0x100);
  CHECK(f.Run(FakeCommand::kOpenHandle, 3) == 0x100);
  f.backend->NextHandle(0x100);
  CHECK((f.Run(FakeCommand::kOpenHandle, 4) & F::kFailed) != 0);
  CHECK(f.backend->events().IsHandle(0x100));
  CHECK((f.Run(FakeCommand::kCloseHandle, 0x100) & F::kFailed) == 0);
  CHECK((f.Run(FakeCommand::kCloseHandle, 0x100) & F::kFailed) != 0);
  CHECK_FALSE(f.backend->events().IsHandle(0x100));
  // More than there is room for are given back.
  f.backend->NextHandle(0x200);
  for (int i = 0; i < 10; ++i) CHECK((f.Run(FakeCommand::kOpenHandle, 1) & F::kFailed) == 0);
  CHECK((f.Run(FakeCommand::kOpenHandle, 1) & F::kFailed) != 0);
  CHECK(f.backend->open_handles() == 10);
  f.FunctionLevelReset();
  CHECK_FALSE(f.backend->events().IsHandle(0x200));
}

// --- events and resets ---

TEST_CASE("vdev: a halting command is active until the backend is done, and then interrupts") {
  FakeVdev f;
  f.EnableMsix(1);
  f.Run(FakeCommand::kStart);
  f.Run(FakeCommand::kEnable, 0);
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));
  CHECK(f.Run(FakeCommand::kDrain, 0) == F::kActive);
  (void)f.bridge.platform.interrupts.TakeDelivered();
  f.backend->Complete(0);
  f.Turn();
  CHECK(f.Register<std::uint32_t>(F::kResult) == 0);
  CHECK(f.bridge.platform.interrupts.TakeDelivered().size() == 1);
  CHECK(f.Run(FakeCommand::kDisable, 0) == 0);  // nothing to wait for
  CHECK_FALSE(f.backend->enabled(0));
}

TEST_CASE("vdev: errors and refusals of the backend's threads reach the personality on the loop") {
  FakeVdev f;
  std::thread worker([&] {
    f.backend->events().OnError({.queue = 1, .words = {0x55}});
    f.backend->events().OnRefused(1, SubmitResult::kFull);
    f.backend->events().OnRefused(0xffffffff, SubmitResult::kFull);
  });
  worker.join();
  CHECK(f.personality->errors == 0);
  f.Turn();
  CHECK(f.personality->errors == 1);
  CHECK(f.personality->refused == 2);
  CHECK(f.Register<std::uint64_t>(F::kError) == 0x55);
  CHECK(f.Counter("queue1_portal_refused") == 1);
}

TEST_CASE("vdev: a flood of errors is bounded") {
  FakeVdev f;
  for (int i = 0; i < 10000; ++i) f.backend->events().OnError({});
  f.Turn();
  CHECK(f.personality->errors == PostedEvents::kMaxReports);
  CHECK(f.Counter("events_dropped") == 10000 - PostedEvents::kMaxReports);
}

TEST_CASE(
    "vdev: function level reset: queues, registers, config and handles of this device alone") {
  FakeVdev f;
  f.EnableMsix(5);
  f.Run(FakeCommand::kStart);
  f.Run(FakeCommand::kEnable, 0);
  f.Register<std::uint64_t>(F::kScratch, 7);
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));
  f.Store(kQueue0 + 0x40, std::span<const std::byte>(FakeDescriptor(2)).first(8));
  CHECK(f.Run(FakeCommand::kDrain, 0) == F::kActive);
  const std::uint32_t before = f.backend->resets();
  f.FunctionLevelReset();
  CHECK(f.backend->resets() == before + 1);
  CHECK(f.personality->resets == 1);
  CHECK(f.backend->Occupancy(0) == 0);
  CHECK_FALSE(f.backend->enabled(0));
  CHECK(f.bridge.Config<std::uint16_t>(f.where, pci::kCommand) == 0);
  CHECK(f.bridge.Config<std::uint16_t>(f.where, FakeVdev::kExpress + 8) == 0x2810);
  CHECK(f.bridge.Config<std::uint32_t>(f.where, 0) == 0x56781234);
  CHECK_FALSE(f.vdev->bars()[0]->mapped());
  CHECK_FALSE(f.vdev->msix()->enabled());
  CHECK(f.backend->vectors().empty());
  f.Place();
  f.Command(FakeVdev::kMemory);
  CHECK(f.Register<std::uint64_t>(F::kScratch) == 0);
  CHECK(f.Register<std::uint32_t>(F::kResult) == 0);
  CHECK(f.Counter("queue0_portal_partial_slots") == 0);
  CHECK(f.Counter("resets") == 1);
  // The other half of the bit's word, and its word at other widths.
  f.bridge.Config<std::uint8_t>(f.where, FakeVdev::kExpress + 8, 0x80);
  CHECK(f.Counter("resets") == 1);
  f.bridge.Config<std::uint8_t>(f.where, FakeVdev::kExpress + 9, 0x80);
  CHECK(f.Counter("resets") == 2);
  f.bridge.Config<std::uint32_t>(f.where, FakeVdev::kExpress + 8, 0x8000);
  CHECK(f.Counter("resets") == 3);
  f.bridge.Config<std::uint64_t>(f.where, FakeVdev::kExpress + 8, 0x8000);
  CHECK(f.Counter("resets") == 4);
}

TEST_CASE("vdev: what the backend said before a reset is not heard after it") {
  FakeVdev f;
  f.Run(FakeCommand::kEnable, 0);
  f.StoreDescriptor(kQueue0, FakeDescriptor(1));
  f.Register<std::uint32_t>(F::kCommand, static_cast<std::uint32_t>(FakeCommand::kDrain));
  f.backend->Complete(0);  // done, and posted
  f.backend->events().OnError({});
  f.backend->events().OnRefused(0, SubmitResult::kFull);
  f.FunctionLevelReset();
  f.Turn();
  f.Place();
  f.Command(FakeVdev::kMemory);
  CHECK(f.Register<std::uint32_t>(F::kEvents) == 0);
  CHECK(f.personality->errors == 0);
  CHECK(f.personality->refused == 0);
  // And a rule broken by the driver of before is not the next one's.
  CHECK(f.Counter("portal_rules_broken") == 0);
}

TEST_CASE("vdev: a rule broken before a reset is forgotten by it, and seen again after it") {
  FakeVdev f({.portal = PortalMode::kPolled});
  f.backend->events().OnRuleBroken(0);
  f.FunctionLevelReset();
  f.Turn();
  CHECK(f.vdev->portal_mode(0) == PortalMode::kPolled);
  f.backend->events().OnRuleBroken(0);
  f.Turn();
  CHECK(f.vdev->portal_mode(0) == PortalMode::kTrapped);
}

TEST_CASE("vdev: a backend that is gone stays gone over resets") {
  FakeVdev f;
  f.backend->events().OnLost();
  f.backend->events().OnLost();
  f.Turn();
  CHECK(f.Register<std::uint32_t>(F::kEvents) == (F::kLostEvent | F::kBusMasterEvent));
  f.Register<std::uint32_t>(F::kEvents, F::kLostEvent);
  CHECK(f.Register<std::uint32_t>(F::kEvents) == F::kBusMasterEvent);
  f.FunctionLevelReset();
  f.Place();
  f.Command(FakeVdev::kMemory);
  CHECK(f.Register<std::uint32_t>(F::kEvents) == F::kLostEvent);
}

TEST_CASE("vdev: a backend lost while a reset comes between is still told") {
  FakeVdev f;
  f.backend->events().OnLost();
  f.FunctionLevelReset();
  f.Turn();
  f.Place();
  f.Command(FakeVdev::kMemory);
  CHECK(f.Register<std::uint32_t>(F::kEvents) == F::kLostEvent);
}

TEST_CASE("vdev: bus mastering is told when it changes, and by no reset") {
  FakeVdev f;
  CHECK(f.personality->bus_master_changes == 1);
  f.Command(FakeVdev::kMemory | FakeVdev::kBusMaster | 0x400);
  CHECK(f.personality->bus_master_changes == 1);
  f.Command(FakeVdev::kMemory);
  CHECK(f.personality->bus_master_changes == 2);
  CHECK((f.Run(FakeCommand::kStart) & F::kFailed) != 0);
  f.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
  CHECK(f.Run(FakeCommand::kStart) == 0);
  f.FunctionLevelReset();
  CHECK(f.personality->bus_master_changes == 3);
}

TEST_CASE("vdev: threads that signal, store and say things while another resets") {
  FakeVdev f({.portal = PortalMode::kPolled});
  f.EnableMsix(5);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    for (std::uint32_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      f.backend->events().SignalHandle(i % 8);
      if (i % 64 == 0) f.backend->events().OnError({});
      (void)f.backend->events().IsHandle(i % 8);
    }
  });
  threads.emplace_back([&] {
    for (std::uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      f.StoreDescriptor(i % 64 * 64, FakeDescriptor(i));
      f.backend->Poll(0);
    }
  });
  for (int i = 0; i < 100; ++i) {
    f.Run(FakeCommand::kEnable, 0);
    f.FunctionLevelReset();
    f.Place();
    f.Command(FakeVdev::kMemory | FakeVdev::kBusMaster);
    f.EnableMsix(5);
    f.Turn();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(f.personality->resets == 100);
}

}  // namespace
}  // namespace postern::siov
