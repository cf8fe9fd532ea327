#include "devices/siov/engine/engine.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "devices/siov/engine/fake_parts.h"
#include "devices/siov/engine/polled_pages.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::HaltResult;
using siov::SubmitResult;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr siov::QueueConfig kConfig{.size = 32, .priority = 1, .max_transfer = 4096};

EngineOptions Options(std::uint32_t workers = 1) {
  return {.name = "test", .workers = workers, .queues = 4, .entries = 128};
}

// An Engine in one group with all queues, its ledger and its listener.
struct Rig {
  explicit Rig(const EngineOptions& options = Options(), std::size_t ids = 100'000)
      : ledger(ids),
        engine(Engine::Create(options, {.runner = ledger.Runners(), .polled = PolledPages()})
                   .value()) {
    engine->Attach(events);
    REQUIRE(engine->Start({.groups = {{.queues = 0xf, .engines = options.workers}}}));
  }
  // Runs `call` with a Done and waits for it.
  template <typename Call>
  bool Finishes(Call&& call) {
    auto done = std::make_shared<std::atomic<int>>(0);
    call([done](HaltResult result) { done->fetch_add(result == HaltResult::kDone ? 1 : 100); });
    return WaitFor([&] { return done->load() != 0; }) && done->load() == 1;
  }
  [[nodiscard]] bool Drained(siov::QueueSet queues) {
    return Finishes([&](siov::Done done) { engine->Drain(queues, std::move(done)); });
  }
  [[nodiscard]] bool Disabled(siov::QueueSet queues) {
    return Finishes([&](siov::Done done) { engine->Disable(queues, std::move(done)); });
  }
  [[nodiscard]] bool Aborted(siov::QueueSet queues) {
    return Finishes([&](siov::Done done) { engine->Abort(queues, std::move(done)); });
  }
  // Holds a worker in the middle of a long descriptor.
  void SubmitLong(std::uint64_t id, std::uint32_t middle = 1) {
    REQUIRE(engine->Submit(0, FakeDescriptor(FakeOp::kLong, id)) == SubmitResult::kAccepted);
    REQUIRE(WaitFor([&] { return ledger.in_the_middle() == middle; }));
  }

  Ledger ledger;
  FakeBackendEvents events;
  std::unique_ptr<Engine> engine;
};

TEST_CASE("engine: options beyond their limits are refused") {
  Ledger ledger(1);
  const auto created = [&](const EngineOptions& options) {
    return Engine::Create(options, {.runner = ledger.Runners()}).has_value();
  };
  CHECK(created({}));
  CHECK_FALSE(Engine::Create({}, {}).has_value());
  CHECK_FALSE(created({.workers = 0}));
  CHECK_FALSE(created({.workers = 65}));
  CHECK_FALSE(created({.queues = 0}));
  CHECK(created({.queues = 64}));
  CHECK_FALSE(created({.queues = 65}));
  CHECK_FALSE(created({.entries = 0}));
  CHECK_FALSE(created({.entries = 65536}));
  CHECK_FALSE(created({.max_transfer = 3}));
  CHECK_FALSE(created({.max_batch = 3}));
  CHECK_FALSE(created({.poll = {.first_sleep = microseconds(0)}}));
  CHECK_FALSE(created({.poll = {.first_sleep = microseconds(10'001)}}));
  CHECK_FALSE(created({.poll = {.max_sleep = microseconds(1'000'001)}}));
  CHECK_FALSE(created({.poll = {.idle_permille = 0}}));
}

TEST_CASE("engine: groups that share queues, lack engines or have too many are refused") {
  Ledger ledger(1);
  auto engine = Engine::Create(Options(2), {.runner = ledger.Runners()}).value();
  const auto code = [&](std::vector<siov::GroupConfig> groups) {
    const Result<void> started = engine->Start({.groups = std::move(groups)});
    return started ? std::string("started") : std::string(started.error().op);
  };
  CHECK(code({{.queues = 0x3, .engines = 1}, {.queues = 0x2, .engines = 1}}) ==
        "queues of a group");
  CHECK(code({{.queues = 0x10, .engines = 1}}) == "queues of a group");
  CHECK(code({{.queues = 0x1, .engines = 0}}) == "queues of a group");
  CHECK(code({{.queues = 0x0, .engines = 1}}) == "queues of a group");
  CHECK(code({{.queues = 0x1, .engines = 2}, {.queues = 0x2, .engines = 1}}) ==
        "engines of the groups");
  CHECK(code({{.queues = 0x1, .engines = 0xffffffff}, {.queues = 0x2, .engines = 0xffffffff}}) ==
        "engines of the groups");
  CHECK(engine->Enable(0, kConfig).error().code == Errc::kBadState);
  CHECK(code({{}, {.queues = 0x1, .engines = 1}, {.queues = 0x2, .engines = 1}}) == "started");
  CHECK(code({}) == "start of a started engine");
  CHECK(engine->Enable(2, kConfig).error().code == Errc::kInvalidArgument);  // of no group
  engine->Stop();
  CHECK(code({}) == "started");
}

TEST_CASE("engine: a queue is enabled within the limits of the engine only") {
  Rig rig;
  const auto code = [&](std::uint32_t queue, siov::QueueConfig config) {
    return rig.engine->Enable(queue, config).error().code;
  };
  siov::QueueConfig config = kConfig;
  CHECK(code(4, config) == Errc::kInvalidArgument);
  CHECK(code(0xffffffff, config) == Errc::kInvalidArgument);
  config.size = 0;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config.size = 129;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config = kConfig;
  config.max_transfer = 0;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config.max_transfer = (std::uint64_t{1} << 31) + 1;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config = kConfig;
  config.max_batch = 1025;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config = kConfig;
  config.operations[3] = 1;
  CHECK(code(0, config) == Errc::kInvalidArgument);
  config = kConfig;
  config.size = 128;
  CHECK(rig.engine->Enable(0, config));
  CHECK(code(0, config) == Errc::kBadState);
  config.size = 1;
  CHECK(code(1, config) == Errc::kExhausted);
  CHECK(rig.Disabled(0x1));
  CHECK(rig.engine->Enable(1, config));
}

TEST_CASE("engine: a queue takes as many descriptors as its size, and not one more") {
  for (const std::uint32_t size : {1U, 2U, 63U, 64U, 128U}) {
    CAPTURE(size);
    Rig rig;
    rig.engine->Quiesce();  // nothing is begun
    siov::QueueConfig config = kConfig;
    config.size = size;
    REQUIRE(rig.engine->Enable(0, config));
    CHECK(rig.engine->Submit(1, Note(0)) == SubmitResult::kDisabled);
    CHECK(rig.engine->Submit(4, Note(0)) == SubmitResult::kDisabled);
    CHECK(rig.engine->Submit(0xffffffff, Note(0)) == SubmitResult::kDisabled);
    for (std::uint32_t i = 0; i < size; ++i) {
      CHECK(rig.engine->Occupancy(0) == i);
      CHECK(rig.engine->Submit(0, Note(i)) == SubmitResult::kAccepted);
    }
    CHECK(rig.engine->Submit(0, Note(size)) == SubmitResult::kFull);
    CHECK(rig.engine->Occupancy(0) == size);
    CHECK(rig.engine->Occupancy(4) == 0);
    rig.engine->Resume();
    CHECK(rig.Drained(0x1));
    CHECK(rig.engine->Occupancy(0) == 0);
    CHECK(rig.ledger.done() == size);
    CHECK(rig.ledger.runs(size) == 0);
    const CounterMap counters(*rig.engine);
    CHECK(counters["queue0_submitted"] == size);
    CHECK(counters["queue0_completed"] == size);
    CHECK(counters["queue0_status_01"] == size);
    CHECK(counters["queue0_bytes"] == 100 * size);
    CHECK(counters["queue0_descriptors"] == size);
    CHECK(counters["queue0_refused_full"] == 1);
    CHECK(counters["queue1_refused_disabled"] == 1);
  }
}

TEST_CASE("engine: the descriptor under way has left its entry, and counts as occupancy") {
  Rig rig;
  siov::QueueConfig config = kConfig;
  config.size = 1;
  REQUIRE(rig.engine->Enable(0, config));
  rig.SubmitLong(0);
  CHECK(rig.engine->Occupancy(0) == 1);
  CHECK(rig.engine->Submit(0, Note(1)) == SubmitResult::kAccepted);
  CHECK(rig.engine->Occupancy(0) == 2);
  CHECK(rig.engine->Submit(0, Note(2)) == SubmitResult::kFull);
  rig.ledger.Release();
  CHECK(rig.Drained(0x1));
  CHECK(rig.ledger.done() == 2);
}

TEST_CASE("engine: one worker keeps the order of a queue") {
  Rig rig;
  rig.ledger.KeepOrder();
  REQUIRE(rig.engine->Enable(0, kConfig));
  constexpr std::uint64_t kCount = 5000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    while (rig.engine->Submit(0, Note(i)) == SubmitResult::kFull) std::this_thread::yield();
  }
  CHECK(rig.Drained(0x1));
  const auto order = rig.ledger.order();
  REQUIRE(order.size() == kCount);
  bool in_order = true;
  for (std::uint64_t i = 0; i < kCount; ++i) in_order = in_order && order[i].second == i;
  CHECK(in_order);
}

TEST_CASE("engine: a submission wakes a worker that sleeps, every time") {
  EngineOptions options = Options();
  options.poll.spin = microseconds(0);  // to sleep is all it does
  Rig rig(options);
  REQUIRE(rig.engine->Enable(0, kConfig));
  for (std::uint64_t i = 0; i < 3000; ++i) {
    REQUIRE(rig.engine->Submit(0, Note(i)) == SubmitResult::kAccepted);
    // Without a timeout: a lost wake-up would last.
    REQUIRE(WaitFor([&] { return rig.ledger.runs(i) == 1; }));
  }
  CHECK(CounterMap(*rig.engine)["queue0_wakeups"] > 0);
}

TEST_CASE("engine: queues of higher priority have more turns, and none starves") {
  Rig rig;
  rig.ledger.KeepOrder();
  rig.engine->Quiesce();
  siov::QueueConfig config = kConfig;
  config.size = 60;
  config.priority = 3;
  REQUIRE(rig.engine->Enable(1, config));
  config.priority = 0;  // counts as 1
  REQUIRE(rig.engine->Enable(0, config));
  for (std::uint64_t i = 0; i < 60; ++i) {
    REQUIRE(rig.engine->Submit(0, Note(i)) == SubmitResult::kAccepted);
    REQUIRE(rig.engine->Submit(1, Note(100 + i)) == SubmitResult::kAccepted);
  }
  rig.engine->Resume();
  CHECK(rig.Drained(0x3));
  const auto order = rig.ledger.order();
  REQUIRE(order.size() == 120);
  CHECK(order[0].first == 1);
  int low = 0;
  for (std::size_t i = 0; i < 80; ++i) low += order[i].first == 0 ? 1 : 0;
  CHECK(low == 20);
}

TEST_CASE("engine: drain waits for what came before it and for nothing after it") {
  Rig rig;
  REQUIRE(rig.engine->Enable(0, kConfig));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> accepted{0};
  std::thread submitter([&] {
    for (std::uint64_t id = 0; !stop.load(); id = accepted.load() % 100'000) {
      if (rig.engine->Submit(0, Note(id)) == SubmitResult::kAccepted) accepted.fetch_add(1);
      if (accepted.load() % 64 == 0) std::this_thread::yield();
    }
  });
  REQUIRE(WaitFor([&] { return accepted.load() > 100; }));
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t before = accepted.load();
    auto done_then = std::make_shared<std::atomic<std::uint64_t>>(0);
    auto finished = std::make_shared<std::atomic<bool>>(false);
    rig.engine->Drain(0x1, [&rig, done_then, finished](HaltResult) {
      done_then->store(rig.ledger.done());
      finished->store(true);
    });
    REQUIRE(WaitFor([&] { return finished->load(); }));
    CHECK(done_then->load() >= before);
  }
  stop.store(true);
  submitter.join();
  CHECK(rig.Drained(0x1));
  CHECK(rig.ledger.done() == accepted.load());
}

TEST_CASE("engine: a halting call of several queues runs its done once, after the last") {
  Rig rig(Options(2));
  for (std::uint32_t i = 0; i < 3; ++i) REQUIRE(rig.engine->Enable(i, kConfig));
  rig.SubmitLong(0);
  std::atomic<int> done{0};
  // Queue 3 is disabled, and the other bits are no queues.
  rig.engine->Drain(~siov::QueueSet{0}, [&](HaltResult) { done.fetch_add(1); });
  for (std::uint64_t i = 1; i < 10; ++i)
    CHECK(rig.engine->Submit(1, Note(i)) == SubmitResult::kAccepted);
  CHECK(rig.Drained(0x6));
  CHECK(done.load() == 0);
  rig.ledger.Release();
  CHECK(WaitFor([&] { return done.load() != 0; }));
  CHECK(rig.Drained(0xf));
  CHECK(done.load() == 1);
  CHECK(rig.Drained(0));
}

TEST_CASE("engine: abort ends a long descriptor, discards those behind it, and the queue goes on") {
  Rig rig;
  REQUIRE(rig.engine->Enable(0, kConfig));
  rig.SubmitLong(0);
  for (std::uint64_t i = 1; i <= 20; ++i)
    REQUIRE(rig.engine->Submit(0, Note(i)) == SubmitResult::kAccepted);
  CHECK(rig.engine->Occupancy(0) == 21);
  CHECK(rig.Aborted(0x1));
  CHECK(rig.engine->Occupancy(0) == 0);
  CHECK(rig.ledger.aborted() == 1);
  CHECK(rig.ledger.done() == 0);
  CHECK(CounterMap(*rig.engine)["queue0_aborted"] == 21);
  REQUIRE(rig.engine->Submit(0, Note(21)) == SubmitResult::kAccepted);
  CHECK(rig.Drained(0x1));
  CHECK(rig.ledger.runs(21) == 1);
  CHECK(rig.ledger.done() == 1);
}

TEST_CASE("engine: disable takes nothing from its call on, and ends when the queue is empty") {
  Rig rig;
  REQUIRE(rig.engine->Enable(0, kConfig));
  rig.SubmitLong(0);
  REQUIRE(rig.engine->Submit(0, Note(1)) == SubmitResult::kAccepted);
  std::atomic<int> done{0};
  rig.engine->Disable(0x1, [&](HaltResult) { done.fetch_add(1); });
  CHECK(rig.engine->Submit(0, Note(2)) == SubmitResult::kDisabled);
  CHECK(rig.engine->Enable(0, kConfig).error().code == Errc::kBadState);
  CHECK(done.load() == 0);
  rig.ledger.Release();
  CHECK(WaitFor([&] { return done.load() == 1; }));
  CHECK(rig.ledger.done() == 2);
  CHECK(rig.ledger.runs(2) == 0);
  CHECK(rig.engine->Enable(0, kConfig));
}

TEST_CASE("engine: two engines of a group run two descriptors of one queue at once") {
  Rig rig(Options(2));
  REQUIRE(rig.engine->Enable(0, kConfig));
  rig.SubmitLong(0);
  rig.SubmitLong(1, 2);
  rig.ledger.Release();
  CHECK(rig.Drained(0x1));
  CHECK(rig.ledger.most_in_the_middle() == 2);
}

TEST_CASE("engine: a drain descriptor waits for the earlier ones of its queue") {
  Rig rig(Options(2));
  rig.ledger.KeepOrder();
  REQUIRE(rig.engine->Enable(0, kConfig));
  REQUIRE(rig.engine->Enable(1, kConfig));
  rig.SubmitLong(0);
  REQUIRE(rig.engine->Submit(0, FakeDescriptor(FakeOp::kDrain, 1)) == SubmitResult::kAccepted);
  REQUIRE(WaitFor([&] { return rig.engine->Occupancy(0) == 2; }));
  std::this_thread::sleep_for(milliseconds(20));
  CHECK(rig.ledger.runs(1) == 0);
  SUBCASE("until they are complete") {
    rig.ledger.Release();
    CHECK(rig.Drained(0x1));
    REQUIRE(rig.ledger.order().size() == 2);
    CHECK(rig.ledger.order()[1].second == 1);
  }
  SUBCASE("until it is aborted") {
    CHECK(rig.Aborted(0x1));
    CHECK(rig.ledger.done() == 0);
  }
  SUBCASE("and is saved as one that has not begun") {
    rig.engine->Quiesce();
    // The long one is half done.
    CHECK(rig.engine->Save().error().code == Errc::kBadState);
    rig.engine->Resume();
    rig.ledger.Release();
    CHECK(rig.Drained(0x1));
  }
}

TEST_CASE("engine: after reset nothing runs, signals or calls back any more") {
  for (int round = 0; round < 50; ++round) {
    Rig rig(Options(2));
    REQUIRE(rig.engine->Enable(0, kConfig));
    REQUIRE(rig.engine->Enable(1, kConfig));
    if (round % 2 == 0) rig.SubmitLong(0);
    for (std::uint64_t i = 1; i < 30; ++i) (void)rig.engine->Submit(i % 2, Note(i, 3));
    auto done = std::make_shared<std::atomic<int>>(0);
    rig.engine->Drain(0x3, [done](HaltResult) { done->fetch_add(1); });
    rig.engine->Reset();
    const int called = done->load();
    const std::uint64_t ran = rig.ledger.done();
    const std::uint64_t signals = rig.events.signals.load();
    CHECK(rig.engine->Submit(0, Note(31)) == SubmitResult::kDisabled);
    CHECK(rig.engine->Occupancy(0) == 0);
    std::this_thread::sleep_for(milliseconds(1));
    CHECK(done->load() == called);
    if (round % 2 == 0) CHECK(called == 0);
    CHECK(rig.ledger.done() == ran);
    CHECK(rig.events.signals.load() == signals);
    CHECK(rig.engine->Enable(0, kConfig).error().code == Errc::kBadState);
    // And it starts anew.
    REQUIRE(rig.engine->Start({.groups = {{.queues = 0x1, .engines = 1}}}));
    REQUIRE(rig.engine->Enable(0, kConfig));
    REQUIRE(rig.engine->Submit(0, Note(32)) == SubmitResult::kAccepted);
    CHECK(rig.Drained(0x1));
    CHECK(rig.ledger.runs(32) == 1);
  }
}

TEST_CASE("engine: completions signal the handle they name, errors reach the events") {
  Rig rig;
  REQUIRE(rig.engine->Enable(0, kConfig));
  REQUIRE(rig.engine->Submit(0, Note(0, 7)) == SubmitResult::kAccepted);
  REQUIRE(rig.engine->Submit(0, Note(1, 100)) == SubmitResult::kAccepted);  // no handle
  REQUIRE(rig.engine->Submit(0, FakeDescriptor(FakeOp::kBroken, 2)) == SubmitResult::kAccepted);
  CHECK(rig.Drained(0x1));
  CHECK(rig.events.signals.load() == 1);
  CHECK(rig.events.last_handle.load() == 7);
  CHECK(rig.events.errors.load() == 1);
  CHECK(rig.events.last_error.load() == 2);
}

TEST_CASE("engine: handles are vector numbers, or names that are not used twice in a row") {
  Ledger ledger(1);
  auto plain = Engine::Create({.queues = 2}, {.runner = ledger.Runners()}).value();
  CHECK_FALSE(plain->caps().named_handles);
  CHECK(plain->OpenHandle(0).value() == 0);
  CHECK(plain->OpenHandle(2).value() == 2);
  CHECK(plain->OpenHandle(2).value() == 2);
  CHECK(plain->OpenHandle(3).error().code == Errc::kInvalidArgument);

  auto named = Engine::Create({.queues = 2, .vectors = 3, .named_handles = true},
                              {.runner = ledger.Runners()})
                   .value();
  CHECK(named->caps().named_handles);
  const std::uint32_t first = named->OpenHandle(1).value();
  CHECK(first >= 2048);
  CHECK(first <= 0xffff);
  named->CloseHandle(first);
  CHECK(named->OpenHandle(1).value() != first);
  CHECK(named->OpenHandle(3).error().code == Errc::kInvalidArgument);
  CHECK(named->OpenHandle(0).has_value());
  CHECK(named->OpenHandle(0).has_value());
  CHECK(named->OpenHandle(0).error().code == Errc::kExhausted);
  named->Reset();
  CHECK(named->OpenHandle(0).has_value());
  named->CloseHandle(1);  // none: nothing
}

TEST_CASE("engine: hostile calls from many threads leave it whole") {
  Rig rig(Options(2));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> accepted{0};
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = t; !stop.load(); i += 8) {
        if (rig.engine->Submit(static_cast<std::uint32_t>(i % 5),
                               Note(i % 100'000, static_cast<std::uint32_t>(i % 200))) ==
            SubmitResult::kAccepted) {
          accepted.fetch_add(1);
        }
        (void)rig.engine->Occupancy(static_cast<std::uint32_t>(i % 5));
        if (i % 32 == t) std::this_thread::yield();
      }
    });
  }
  for (int round = 0; round < 300 || accepted.load() < 20'000; ++round) {
    for (std::uint32_t q = 0; q < 4; ++q) (void)rig.engine->Enable(q, kConfig);
    switch (round % 6) {
      case 0:
        CHECK(rig.Disabled(0x5));
        break;
      case 1:
        CHECK(rig.Aborted(0xf));
        break;
      case 2:
        rig.engine->Drain(0xf, [](HaltResult) {});
        rig.engine->Reset();
        REQUIRE(rig.engine->Start({.groups = {{.queues = 0xf, .engines = 2}}}));
        break;
      case 3:
        rig.engine->Quiesce();
        CHECK(rig.engine->Save().has_value());
        rig.engine->Resume();
        break;
      case 4:
        CHECK(rig.Drained(0xf));
        break;
      default:
        rig.engine->Stop();
        REQUIRE(rig.engine->Start(
            {.groups = {{.queues = 0x3, .engines = 1}, {.queues = 0xc, .engines = 1}}}));
        break;
    }
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(rig.Drained(0xf));
  const CounterMap counters(*rig.engine);
  std::uint64_t submitted = 0;
  std::uint64_t completed = 0;
  std::uint64_t aborted = 0;
  for (int q = 0; q < 4; ++q) {
    const std::string prefix = "queue" + std::to_string(q);
    submitted += counters[prefix + "_submitted"];
    completed += counters[prefix + "_completed"];
    aborted += counters[prefix + "_aborted"];
  }
  CHECK(submitted == accepted.load());
  CHECK(completed + aborted == submitted);
  CHECK(rig.ledger.done() == completed);
  CHECK(rig.ledger.torn() == 0);
}

}  // namespace
}  // namespace postern::dsa
