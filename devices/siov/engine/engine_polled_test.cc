// Polled portals of an Engine, with siov::PolledPage behind them and a driver's thread before them.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>

#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::HaltResult;
using siov::PortalMode;
using siov::SubmitResult;
using std::chrono::milliseconds;

// The sanitizers follow every access.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define POSTERN_SLOW_ACCESSES
#endif
#endif
#ifdef POSTERN_SLOW_ACCESSES
constexpr std::uint64_t kSlowdown = 10;
#else
constexpr std::uint64_t kSlowdown = 1;
#endif

siov::QueueConfig Config(std::uint32_t size) {
  return {.size = size, .priority = 1, .max_transfer = 4096};
}

struct PolledRig {
  explicit PolledRig(std::uint32_t workers = 1, std::size_t ids = 100'000)
      : ledger(ids),
        engine(Engine::Create({.name = "test", .workers = workers, .queues = 2},
                              {.runner = ledger.Runners(), .polled = PolledPages()})
                   .value()) {
    engine->Attach(events);
    REQUIRE(engine->Start({.groups = {{.queues = 0x3, .engines = workers}}}));
  }
  PageDriver Open(std::uint32_t queue, std::uint32_t page) {
    return PageDriver(engine->OpenPortal(queue, page, PortalMode::kPolled).value());
  }
  [[nodiscard]] bool Halted(void (Engine::*call)(siov::QueueSet, siov::Done),
                            siov::QueueSet queues) {
    auto done = std::make_shared<std::atomic<bool>>(false);
    ((*engine).*call)(queues, [done](HaltResult) { done->store(true); });
    return WaitFor([&] { return done->load(); });
  }

  Ledger ledger;
  FakeBackendEvents events;
  std::unique_ptr<Engine> engine;
};

TEST_CASE("engine: portals are polled pages, two a queue, of queues of 1 to 63 entries") {
  PolledRig rig;
  Engine& engine = *rig.engine;
  const auto code = [&](std::uint32_t queue, std::uint32_t page, PortalMode mode) {
    return engine.OpenPortal(queue, page, mode).error().code;
  };
  CHECK(engine.caps().polled);
  CHECK_FALSE(engine.caps().direct);
  CHECK(code(0, 0, PortalMode::kDirect) == Errc::kUnsupported);
  CHECK(code(0, 0, PortalMode::kTrapped) == Errc::kUnsupported);
  CHECK(code(2, 0, PortalMode::kPolled) == Errc::kInvalidArgument);
  CHECK(code(0, 2, PortalMode::kPolled) == Errc::kInvalidArgument);
  REQUIRE(engine.OpenPortal(0, 0, PortalMode::kPolled).has_value());
  REQUIRE(engine.OpenPortal(0, 1, PortalMode::kPolled).has_value());
  CHECK(engine.Enable(0, Config(64)).error().code == Errc::kInvalidArgument);
  CHECK(engine.Enable(0, Config(63)).has_value());
  CHECK(engine.Enable(1, Config(65)).has_value());  // trapped
  CHECK(code(1, 0, PortalMode::kPolled) == Errc::kBadState);
  // No pages any more: any size.
  engine.StopPolling(0);
  CHECK(rig.Halted(&Engine::Disable, 0x3));
  CHECK(engine.Enable(0, Config(64)).has_value());
}

TEST_CASE("engine: descriptors in either page of a queue are run, and drain waits for them") {
  PolledRig rig;
  PageDriver unlimited = rig.Open(0, 0);
  PageDriver limited = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(16)));
  for (std::uint64_t i = 0; i < 100; ++i) {
    (i % 2 == 0 ? unlimited : limited).Store(Note(i));
    if (i % 10 == 9) {
      CHECK(rig.Halted(&Engine::Drain, 0x1));
      CHECK(rig.ledger.done() == i + 1);
    }
  }
  CHECK(rig.ledger.once() == 100);
  CHECK(rig.events.rules_broken.load() == 0);
  const CounterMap counters(*rig.engine);
  CHECK(counters["queue0_submitted"] == 100);
  CHECK(counters["queue0_polls"] > 0);
  CHECK(counters["queue0_polls"] > counters["queue0_empty_polls"]);
}

TEST_CASE("engine: a full polled queue leaves descriptors in the page, and drops none") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(1)));
  driver.Store(FakeDescriptor(FakeOp::kLong, 0));
  REQUIRE(WaitFor([&] { return rig.ledger.in_the_middle() == 1; }));
  // 63 that are submitted and not complete: as much as a page allows.
  for (std::uint64_t i = 1; i < 63; ++i) driver.Store(Note(i));
  CHECK(rig.engine->Occupancy(0) == 1);
  rig.ledger.Release();
  CHECK(WaitFor([&] { return rig.ledger.done() == 63; }));
  CHECK(rig.ledger.once() == 63);
  CHECK(rig.events.rules_broken.load() == 0);
  CHECK(rig.events.refused_full.load() == 0);
}

TEST_CASE("engine: a page whose 64 slots are all full is said to be broken, once") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(63)));
  rig.engine->Quiesce();
  // The last one is stored over the first.
  for (std::uint64_t i = 0; i < 65; ++i) driver.Store(Note(i));
  rig.engine->Resume();
  CHECK(WaitFor([&] { return rig.ledger.done() == 64; }));
  CHECK(WaitFor([&] { return rig.events.rules_broken.load() == 1; }));
  CHECK(rig.events.refused_full.load() == 1);
  CHECK(rig.events.broken_queue.load() == 0);
  CHECK(rig.ledger.runs(0) == 0);  // the loss
  // It is read on until somebody stops that, and nothing is said twice.
  rig.engine->Quiesce();
  for (std::uint64_t i = 65; i < 130; ++i) driver.Store(Note(i));
  rig.engine->Resume();
  CHECK(WaitFor([&] { return rig.ledger.done() == 128; }));
  CHECK(rig.events.rules_broken.load() == 1);
  CHECK(CounterMap(*rig.engine)["queue0_rules_broken"] == 1);
}

TEST_CASE(
    "engine: a driver that stores to slot 0 always is seen, and served through the trap then") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 0);
  REQUIRE(rig.engine->Enable(0, Config(16)));
  driver.StoreAt(0, Note(0));
  REQUIRE(WaitFor([&] { return rig.ledger.runs(0) == 1; }));
  driver.StoreAt(0, Note(1));
  REQUIRE(WaitFor([&] { return rig.events.rules_broken.load() == 1; }));
  CHECK(WaitFor([&] { return rig.ledger.runs(1) == 1; }));
  rig.engine->Quiesce();
  driver.StoreAt(5, Note(2));
  rig.engine->StopPolling(0);  // takes what is there
  driver.StoreAt(6, Note(3));
  rig.engine->Resume();
  CHECK(rig.engine->Submit(0, Note(4)) == SubmitResult::kAccepted);
  CHECK(rig.Halted(&Engine::Drain, 0x1));
  CHECK(rig.ledger.runs(2) == 1);
  CHECK(rig.ledger.runs(3) == 0);
  CHECK(rig.ledger.runs(4) == 1);
  CHECK(rig.events.rules_broken.load() == 1);
}

TEST_CASE("engine: disable takes the last of a polled page, and enable forgets what came since") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(8)));
  driver.Store(FakeDescriptor(FakeOp::kLong, 0));
  REQUIRE(WaitFor([&] { return rig.ledger.in_the_middle() == 1; }));
  for (std::uint64_t i = 1; i < 20; ++i) driver.Store(Note(i));
  auto done = std::make_shared<std::atomic<bool>>(false);
  rig.engine->Disable(0x1, [done](HaltResult) { done->store(true); });
  driver.Store(Note(20));
  CHECK_FALSE(done->load());
  rig.ledger.Release();
  REQUIRE(WaitFor([&] { return done->load(); }));
  CHECK(rig.ledger.done() == 20);
  REQUIRE(rig.engine->Enable(0, Config(8)));
  driver.Store(Note(21));  // keeps its place
  CHECK(WaitFor([&] { return rig.ledger.runs(21) == 1; }));
  CHECK(rig.ledger.runs(20) == 0);
  CHECK(rig.events.rules_broken.load() == 0);
}

TEST_CASE("engine: abort discards what is in the page, reset forgets it") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(8)));
  driver.Store(FakeDescriptor(FakeOp::kLong, 0));
  REQUIRE(WaitFor([&] { return rig.ledger.in_the_middle() == 1; }));
  for (std::uint64_t i = 1; i < 20; ++i) driver.Store(Note(i));
  CHECK(rig.Halted(&Engine::Abort, 0x1));
  CHECK(rig.ledger.done() == 0);
  CHECK(CounterMap(*rig.engine)["queue0_aborted"] == 20);
  driver.Store(Note(20));
  rig.engine->Reset();
  const auto start_anew = [&] {
    REQUIRE(rig.engine->Start({.groups = {{.queues = 0x1, .engines = 1}}}));
    REQUIRE(rig.engine->Enable(0, Config(8)));
  };
  start_anew();
  driver.Store(Note(21));
  CHECK(WaitFor([&] { return rig.ledger.runs(21) == 1; }));
  // What was stopped stays so until the pages are asked for again.
  rig.engine->StopPolling(0);
  rig.engine->Reset();
  start_anew();
  driver.Store(Note(22));
  CHECK(rig.Halted(&Engine::Drain, 0x1));
  CHECK(rig.ledger.runs(22) == 0);
  (void)rig.Open(0, 1);
  CHECK(WaitFor([&] { return rig.ledger.runs(22) == 1; }));
}

TEST_CASE("engine: an idle polled queue sleeps, and finds a descriptor after any rest") {
  PolledRig rig;
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(8)));
  for (std::uint64_t i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(milliseconds(i));
    driver.Store(Note(i));
    REQUIRE(WaitFor([&] { return rig.ledger.runs(i) == 1; }));
  }
  CHECK(CounterMap(*rig.engine)["queue0_sleeps"] > 20);
  // Disabled, it does not even look.
  CHECK(rig.Halted(&Engine::Disable, 0x1));
  std::this_thread::sleep_for(milliseconds(5));
  const std::uint64_t polls = CounterMap(*rig.engine)["queue0_polls"];
  std::this_thread::sleep_for(milliseconds(20));
  CHECK(CounterMap(*rig.engine)["queue0_polls"] == polls);
}

// A driver's thread that keeps the rules: at most `depth` submitted and not complete.
void Drive(PolledRig& rig, PageDriver& driver, std::uint64_t count, std::uint64_t depth) {
  std::thread thread([&] {
    for (std::uint64_t i = 0; i < count; ++i) {
      while (i - rig.ledger.done() >= depth) std::this_thread::yield();
      driver.Store(Note(i));
    }
  });
  thread.join();
}

TEST_CASE("engine: a driver's thread on the other side of the page loses no descriptor") {
  // ./check --long sets it.
  const bool soak = std::getenv("POSTERN_SOAK") != nullptr;  // NOLINT(concurrency-mt-unsafe)
  std::uint64_t count = (soak ? 10'000'000 : 1'000'000) / kSlowdown;
  std::uint32_t workers = 1;
  SUBCASE("one engine") {}
  SUBCASE("two engines") {
    workers = 2;
    count /= 4;
  }
  PolledRig rig(workers, count);
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(63)));
  Drive(rig, driver, count, 63);
  CHECK(rig.Halted(&Engine::Drain, 0x1));
  CHECK(rig.ledger.done() == count);
  CHECK(rig.ledger.once() == count);
  CHECK(rig.ledger.torn() == 0);
  CHECK(rig.events.rules_broken.load() == 0);
  CHECK(CounterMap(*rig.engine)["queue0_submitted"] == count);
}

TEST_CASE("engine: drains, aborts of another queue and pauses lose no descriptor of a driver") {
  constexpr std::uint64_t kCount = 30'000;
  PolledRig rig(2);
  PageDriver driver = rig.Open(0, 1);
  REQUIRE(rig.engine->Enable(0, Config(63)));
  std::atomic<bool> over{false};
  std::thread thread([&] {
    Drive(rig, driver, kCount, 63);
    over.store(true);
  });
  for (int i = 0; !over.load(); ++i) {
    (void)rig.engine->Enable(1, Config(4));
    rig.engine->Quiesce();
    CHECK(rig.engine->Save().has_value());
    rig.engine->Resume();
    CHECK(rig.Halted(&Engine::Drain, 0x1));
    CHECK(rig.Halted(i % 2 == 0 ? &Engine::Abort : &Engine::Disable, 0x2));
  }
  thread.join();
  CHECK(rig.Halted(&Engine::Drain, 0x1));
  CHECK(rig.ledger.once() == kCount);
  CHECK(rig.events.rules_broken.load() == 0);
}

}  // namespace
}  // namespace postern::dsa
