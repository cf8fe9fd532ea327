#include "devices/siov/core/posted_events.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

namespace postern::siov {
namespace {

struct Fixture {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  Mutex lock;
  std::unique_ptr<PostedEvents> events = std::make_unique<PostedEvents>(*loop, lock);
  std::vector<int> ran;

  void Post(PostedEvents::Kind kind, int what) {
    events->Post(kind, events->generation(), [this, what] { ran.push_back(what); });
  }
  void Turn() {
    for (int i = 0; i < 3; ++i) loop->RunOnce(0);
  }
};

TEST_CASE("posted events: they run on the loop, in order") {
  Fixture f;
  f.Post(PostedEvents::kReport, 1);
  f.Post(PostedEvents::kAnswer, 2);
  f.Post(PostedEvents::kFact, 3);
  CHECK(f.ran.empty());
  f.Turn();
  CHECK(f.ran == std::vector<int>{1, 2, 3});
  f.Post(PostedEvents::kReport, 4);
  f.Turn();
  CHECK(f.ran == std::vector<int>{1, 2, 3, 4});
}

TEST_CASE("posted events: what was said before a reset is stale, but for facts") {
  Fixture f;
  const std::uint64_t before = f.events->generation();
  f.Post(PostedEvents::kReport, 1);
  f.Post(PostedEvents::kAnswer, 2);
  f.Post(PostedEvents::kFact, 3);
  f.events->Forget();
  f.Post(PostedEvents::kReport, 4);
  // An answer to a call of before, that comes after.
  f.events->Post(PostedEvents::kAnswer, before, [&] { f.ran.push_back(5); });
  f.Turn();
  CHECK(f.ran == std::vector<int>{3, 4});
}

TEST_CASE("posted events: reports are bounded, answers and facts are not") {
  Fixture f;
  for (int i = 0; i < 1000; ++i) f.Post(PostedEvents::kReport, 0);
  f.Post(PostedEvents::kAnswer, 1);
  f.Post(PostedEvents::kFact, 2);
  CHECK(f.events->dropped() == 1000 - PostedEvents::kMaxReports);
  f.Turn();
  CHECK(f.ran.size() == PostedEvents::kMaxReports + 2);
  f.Post(PostedEvents::kReport, 3);
  f.Turn();
  CHECK(f.ran.back() == 3);
}

TEST_CASE("posted events: RunPending handles what waits, and what that posts") {
  Fixture f;
  f.events->Post(PostedEvents::kAnswer, 0, [&] {
    f.ran.push_back(1);
    f.Post(PostedEvents::kAnswer, 2);
  });
  {
    const MutexLock lock(f.lock);
    f.events->RunPending();
  }
  CHECK(f.ran == std::vector<int>{1, 2});
  f.Turn();
  CHECK(f.ran.size() == 2);
}

TEST_CASE("posted events: one that always posts again ends RunPending, and goes on") {
  Fixture f;
  std::uint64_t count = 0;
  std::function<void()> again = [&] {
    if (++count < 1000) f.events->Post(PostedEvents::kAnswer, 0, again);
  };
  f.events->Post(PostedEvents::kAnswer, 0, again);
  {
    const MutexLock lock(f.lock);
    f.events->RunPending();
  }
  CHECK(count < 1000);
  for (int i = 0; i < 100; ++i) f.Turn();
  CHECK(count == 1000);
}

TEST_CASE("posted events: nothing runs once it is gone") {
  Fixture f;
  f.Post(PostedEvents::kFact, 1);
  f.events.reset();
  f.Turn();
  CHECK(f.ran.empty());
}

TEST_CASE("posted events: from several threads, each runs once and with the lock") {
  Fixture f;
  std::uint64_t handled = 0;  // the lock's
  std::vector<std::thread> threads;
  threads.reserve(3);
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i)
        f.events->Post(PostedEvents::kAnswer, f.events->generation(), [&] { ++handled; });
    });
  }
  for (bool all = false; !all;) {
    f.loop->RunOnce(1);
    const MutexLock lock(f.lock);
    all = handled == 1500;
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(handled == 1500);
}

}  // namespace
}  // namespace postern::siov
