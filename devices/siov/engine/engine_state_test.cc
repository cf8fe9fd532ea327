// What an Engine saves, what it restores, and what it refuses to.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "devices/siov/engine/engine.h"
#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::BackendState;
using siov::HaltResult;
using siov::PortalMode;
using siov::SubmitResult;
using std::chrono::milliseconds;

constexpr siov::QueueConfig kConfig{.size = 32, .priority = 1, .max_transfer = 4096};

std::unique_ptr<Engine> NewEngine(Ledger& ledger, std::uint32_t workers = 1,
                                  milliseconds grace = milliseconds(500)) {
  return Engine::Create({.name = "test", .workers = workers, .queues = 2, .quiesce_grace = grace},
                        {.runner = ledger.Runners(), .polled = PolledPages()})
      .value();
}

void StartQueue(Engine& engine) {
  REQUIRE(engine.Start({.groups = {{.queues = 0x3, .engines = engine.caps().engines}}}));
  REQUIRE(engine.Enable(0, kConfig));
}

bool Drained(Engine& engine) {
  auto done = std::make_shared<std::atomic<bool>>(false);
  engine.Drain(~siov::QueueSet{0}, [done](HaltResult) { done->store(true); });
  return WaitFor([&] { return done->load(); });
}

TEST_CASE("engine state: what waits is saved in its order, and runs once, elsewhere") {
  Ledger ledger(100);
  ledger.KeepOrder();
  auto from = NewEngine(ledger);
  PageDriver driver(from->OpenPortal(0, 1, PortalMode::kPolled).value());
  StartQueue(*from);
  CHECK(from->Save().error().code == Errc::kBadState);
  from->Quiesce();
  for (std::uint64_t i = 0; i < 10; ++i) CHECK(from->Submit(0, Note(i)) == SubmitResult::kAccepted);
  for (std::uint64_t i = 10; i < 20; ++i) driver.Store(Note(i));
  const BackendState state = from->Save().value();
  REQUIRE(state.queues.size() == 2);
  CHECK(state.started);
  CHECK(state.queues[0].enabled);
  CHECK(state.queues[0].waiting.size() == 20);
  CHECK_FALSE(state.queues[1].enabled);
  from->Reset();
  from->Resume();
  CHECK(ledger.done() == 0);

  auto to = NewEngine(ledger);
  CHECK(to->Restore(state).error().code == Errc::kBadState);
  PageDriver there(to->OpenPortal(0, 1, PortalMode::kPolled).value());
  to->Quiesce();
  REQUIRE(to->Restore(state));
  CHECK(to->Occupancy(0) == 20);
  CHECK(ledger.done() == 0);
  to->Resume();
  CHECK(Drained(*to));
  for (std::uint32_t i = 0; i < 20; ++i) there.StoreAt((i + 10) % 64, Note(20 + i));
  CHECK(WaitFor([&] { return ledger.done() == 40; }));
  CHECK(ledger.once() == 40);
  const auto order = ledger.order();
  bool in_order = true;
  for (std::uint64_t i = 0; i < 40; ++i) in_order = in_order && order[i].second == i;
  CHECK(in_order);
}

TEST_CASE("engine state: saving while submissions run loses nothing and runs nothing twice") {
  constexpr std::uint64_t kCount = 4000;
  Ledger ledger(kCount);
  auto engine = NewEngine(ledger, 2);
  StartQueue(*engine);
  for (std::uint64_t next = 0; next < kCount;) {
    if (engine->Submit(0, Note(next)) != SubmitResult::kAccepted) {
      std::this_thread::yield();
      continue;
    }
    // With some that wait, most of the time.
    if (++next % 100 != 0) continue;
    engine->Quiesce();
    const BackendState state = engine->Save().value();
    engine = NewEngine(ledger, 2);  // the old one is gone with what waited in it
    engine->Quiesce();
    REQUIRE(engine->Restore(state));
    engine->Resume();
  }
  CHECK(Drained(*engine));
  CHECK(ledger.once() == kCount);
}

TEST_CASE("engine state: a descriptor under way is let finish, or held where it is") {
  Ledger ledger(10);
  SUBCASE("it finishes in time") {
    auto engine = NewEngine(ledger, 1, milliseconds(30'000));
    StartQueue(*engine);
    REQUIRE(engine->Submit(0, FakeDescriptor(FakeOp::kLong, 0)) == SubmitResult::kAccepted);
    REQUIRE(engine->Submit(0, Note(1)) == SubmitResult::kAccepted);
    REQUIRE(WaitFor([&] { return ledger.in_the_middle() == 1; }));
    std::thread releaser([&] {
      std::this_thread::sleep_for(milliseconds(10));
      ledger.Release();
    });
    engine->Quiesce();
    releaser.join();
    CHECK(ledger.runs(0) == 1);
    const BackendState state = engine->Save().value();
    CHECK(state.queues[0].waiting.size() == 1);
    engine->Resume();
    CHECK(Drained(*engine));
    CHECK(ledger.done() == 2);
  }
  SUBCASE("it does not") {
    auto engine = NewEngine(ledger, 1, milliseconds(1));
    StartQueue(*engine);
    REQUIRE(engine->Submit(0, FakeDescriptor(FakeOp::kLong, 0)) == SubmitResult::kAccepted);
    REQUIRE(WaitFor([&] { return ledger.in_the_middle() == 1; }));
    engine->Quiesce();
    ledger.Release();
    std::this_thread::sleep_for(milliseconds(5));
    CHECK(ledger.done() == 0);
    CHECK(engine->Save().error().code == Errc::kBadState);
    SUBCASE("and goes on after resume") {
      engine->Resume();
      CHECK(Drained(*engine));
      CHECK(ledger.runs(0) == 1);
      CHECK(ledger.aborted() == 0);
    }
    SUBCASE("and is ended by reset") {
      engine->Reset();
      CHECK(ledger.aborted() == 1);
      CHECK(ledger.done() == 0);
      // Still quiesced: what is accepted now waits for Resume.
      StartQueue(*engine);
      CHECK(engine->Submit(0, Note(1)) == SubmitResult::kAccepted);
      std::this_thread::sleep_for(milliseconds(5));
      CHECK(ledger.runs(1) == 0);
      engine->Resume();
      CHECK(Drained(*engine));
      CHECK(ledger.runs(1) == 1);
    }
    SUBCASE("and is ended by the engine's end") {
      engine.reset();
    }
  }
}

TEST_CASE("engine state: a drain descriptor that waits is saved with what is behind it") {
  Ledger ledger(10);
  ledger.KeepOrder();
  auto engine = NewEngine(ledger, 2, milliseconds(60'000));
  StartQueue(*engine);
  REQUIRE(engine->Submit(0, FakeDescriptor(FakeOp::kLong, 0)) == SubmitResult::kAccepted);
  REQUIRE(WaitFor([&] { return ledger.in_the_middle() == 1; }));
  REQUIRE(engine->Submit(0, FakeDescriptor(FakeOp::kDrain, 1)) == SubmitResult::kAccepted);
  REQUIRE(engine->Submit(0, Note(2)) == SubmitResult::kAccepted);
  // Worker two is in the drain; the pause comes, then the long one ends.
  std::this_thread::sleep_for(milliseconds(20));
  std::thread releaser([&] {
    std::this_thread::sleep_for(milliseconds(20));
    ledger.Release();
  });
  engine->Quiesce();
  releaser.join();
  CHECK(ledger.runs(0) == 1);
  const BackendState state = engine->Save().value();
  CHECK(state.queues[0].waiting.size() + ledger.done() == 3);
  engine = NewEngine(ledger, 2);
  engine->Quiesce();
  REQUIRE(engine->Restore(state));
  engine->Resume();
  CHECK(Drained(*engine));
  CHECK(ledger.once() == 3);
}

TEST_CASE("engine state: what no engine of the kind saves is refused, and nothing changes") {
  Ledger ledger(100);
  auto engine = NewEngine(ledger);
  StartQueue(*engine);
  engine->Quiesce();
  REQUIRE(engine->Submit(0, Note(0)) == SubmitResult::kAccepted);
  const BackendState good = engine->Save().value();
  constexpr std::uint32_t kMost = WorkQueue::MaxWaiting(kConfig.size);
  struct Row {
    const char* name;
    std::function<void(BackendState&)> spoil;
  };
  const Row rows[] = {
      {"version 0", [](BackendState& s) { s.version = 0; }},
      {"version 2", [](BackendState& s) { s.version = 2; }},
      {"a queue less", [](BackendState& s) { s.queues.pop_back(); }},
      {"a queue more", [](BackendState& s) { s.queues.emplace_back(); }},
      {"stopped with groups", [](BackendState& s) { s.started = false; }},
      {"stopped with a queue",
       [](BackendState& s) {
         s.started = false;
         s.device.groups.clear();
       }},
      {"group beyond", [](BackendState& s) { s.device.groups[0].queues = 0x7; }},
      {"too many engines", [](BackendState& s) { s.device.groups[0].engines = 2; }},
      {"groups that share", [](BackendState& s) { s.device.groups.push_back(s.device.groups[0]); }},
      {"waiting in a disabled queue", [](BackendState& s) { s.queues[0].enabled = false; }},
      {"size 0", [](BackendState& s) { s.queues[0].config.size = 0; }},
      {"size too large", [](BackendState& s) { s.queues[0].config.size = 129; }},
      {"size that wraps", [](BackendState& s) { s.queues[0].config.size = 0xffffffff; }},
      {"transfer", [](BackendState& s) { s.queues[0].config.max_transfer = ~0ULL; }},
      {"batch", [](BackendState& s) { s.queues[0].config.max_batch = 2048; }},
      {"operations", [](BackendState& s) { s.queues[0].config.operations[0] = 1; }},
      {"entries of all",
       [](BackendState& s) {
         s.queues[1] = s.queues[0];
         s.queues[1].config.size = 128;
       }},
      {"one waiting too many", [](BackendState& s) { s.queues[0].waiting.resize(kMost + 1); }},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    BackendState bad = good;
    row.spoil(bad);
    const Result<void> restored = engine->Restore(bad);
    REQUIRE_FALSE(restored);
    CHECK(restored.error().code == Errc::kBadFormat);
    CHECK(engine->Occupancy(0) == 1);
  }
  BackendState most_waiting = good;
  for (std::uint64_t i = 1; i < kMost; ++i) most_waiting.queues[0].waiting.push_back(Note(i % 100));
  REQUIRE(most_waiting.queues[0].waiting.size() == kMost);
  CHECK(engine->Restore(most_waiting));
  CHECK(engine->Occupancy(0) == kMost);
  // It saves what it was given.
  CHECK(engine->Save().value().queues[0].waiting == most_waiting.queues[0].waiting);
  CHECK(engine->Restore(good));
  engine->Resume();
  CHECK(Drained(*engine));
  CHECK(ledger.done() == 1);
}

TEST_CASE(
    "engine state: a stopped engine saves as one, and a polled queue keeps below 64 entries") {
  Ledger ledger(10);
  auto engine = NewEngine(ledger);
  engine->Quiesce();
  engine->Quiesce();
  const BackendState stopped = engine->Save().value();
  CHECK_FALSE(stopped.started);
  CHECK(engine->Restore(stopped));
  BackendState large = stopped;
  large.started = true;
  large.device.groups = {{.queues = 1, .engines = 1}};
  large.queues[0].enabled = true;
  large.queues[0].config = kConfig;
  large.queues[0].config.size = 64;
  CHECK(engine->Restore(large));
  CHECK(engine->Restore(stopped));
  REQUIRE(engine->OpenPortal(0, 0, PortalMode::kPolled));
  CHECK(engine->Restore(large).error().code == Errc::kBadFormat);
  engine->Resume();
  engine->Resume();
}

}  // namespace
}  // namespace postern::dsa
