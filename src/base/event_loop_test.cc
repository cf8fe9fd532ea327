#include "src/base/event_loop.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "src/base/event_fd.h"
#include "src/base/thread.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

// Calls a function for each event and remembers the descriptors.
class Recorder : public EventHandler {
 public:
  explicit Recorder(std::function<void(int, std::uint32_t)> then = {}) : then_(std::move(then)) {}
  void OnEvent(int fd, std::uint32_t events) override {
    seen.emplace_back(fd, events);
    if (then_) then_(fd, events);
  }
  std::vector<std::pair<int, std::uint32_t>> seen;

 private:
  std::function<void(int, std::uint32_t)> then_;
};

std::unique_ptr<EventLoop> NewLoop() {
  return std::move(*EventLoop::Create());
}
EventFd NewEvent() {
  return std::move(*EventFd::Create());
}

TEST_CASE("event_loop: an event reaches the handler of its descriptor, as long as it is watched") {
  const auto loop = NewLoop();
  const EventFd event = NewEvent();
  Recorder recorder;
  REQUIRE(loop->Watch(event.fd(), EPOLLIN, recorder).has_value());
  loop->RunOnce(0);
  CHECK(recorder.seen.empty());
  event.Signal();
  loop->RunOnce(-1);
  REQUIRE(recorder.seen.size() == 1);
  CHECK(recorder.seen[0] == std::pair<int, std::uint32_t>(event.fd(), EPOLLIN));
  loop->RunOnce(-1);  // level-triggered: still there
  CHECK(recorder.seen.size() == 2);
  REQUIRE(loop->Modify(event.fd(), EPOLLOUT).has_value());
  loop->RunOnce(-1);
  REQUIRE(recorder.seen.size() == 3);
  CHECK(recorder.seen[2].second == EPOLLOUT);
  loop->Unwatch(event.fd());
  loop->RunOnce(0);
  CHECK(recorder.seen.size() == 3);
  loop->Unwatch(event.fd());
  loop->Unwatch(-1);
  loop->Unwatch(1 << 20);
  CHECK(loop->Modify(event.fd(), EPOLLIN).error().code == Errc::kNotFound);
  CHECK(loop->Modify(-1, EPOLLIN).error().code == Errc::kNotFound);
  CHECK(loop->Watch(-1, EPOLLIN, recorder).error().code == Errc::kInvalidArgument);
  REQUIRE(loop->Watch(event.fd(), EPOLLIN, recorder).has_value());
  CHECK(loop->Watch(event.fd(), EPOLLIN, recorder).error().sys_errno == EEXIST);
}

TEST_CASE("event_loop: a handler that unwatches another descriptor of the batch drops its event") {
  const auto loop = NewLoop();
  const EventFd a = NewEvent();
  const EventFd b = NewEvent();
  Recorder recorder([&](int fd, std::uint32_t) { loop->Unwatch(fd == a.fd() ? b.fd() : a.fd()); });
  REQUIRE(loop->Watch(a.fd(), EPOLLIN, recorder).has_value());
  REQUIRE(loop->Watch(b.fd(), EPOLLIN, recorder).has_value());
  a.Signal();
  b.Signal();
  loop->RunOnce(-1);
  CHECK(recorder.seen.size() == 1);
}

TEST_CASE(
    "event_loop: an event fetched for a closed descriptor does not reach the next one of that "
    "number") {
  const auto loop = NewLoop();
  EventFd a = NewEvent();
  EventFd b = NewEvent();
  Recorder stale;
  bool replaced = false;
  int number = -1;
  Recorder recorder([&](int fd, std::uint32_t) {
    if (std::exchange(replaced, true)) return;
    EventFd& other = fd == a.fd() ? b : a;
    number = other.fd();
    loop->Unwatch(number);
    other = EventFd(Fd());  // closed: the next descriptor gets its number
    other = NewEvent();
    REQUIRE(other.fd() == number);
    REQUIRE(loop->Watch(number, EPOLLIN, stale).has_value());
  });
  REQUIRE(loop->Watch(a.fd(), EPOLLIN, recorder).has_value());
  REQUIRE(loop->Watch(b.fd(), EPOLLIN, recorder).has_value());
  a.Signal();
  b.Signal();
  loop->RunOnce(-1);
  CHECK(replaced);
  CHECK(stale.seen.empty());
  (number == a.fd() ? a : b).Signal();
  loop->RunOnce(-1);
  CHECK(stale.seen.size() == 1);
}

TEST_CASE(
    "event_loop: a descriptor closed without Unwatch leaves room for the next of its number") {
  const auto loop = NewLoop();
  Recorder first;
  Recorder second;
  EventFd event = NewEvent();
  const int number = event.fd();
  REQUIRE(loop->Watch(number, EPOLLIN, first).has_value());
  event = EventFd(Fd());
  event = NewEvent();
  REQUIRE(event.fd() == number);
  REQUIRE(loop->Watch(number, EPOLLIN, second).has_value());
  event.Signal();
  loop->RunOnce(-1);
  CHECK(first.seen.empty());
  CHECK(second.seen.size() == 1);
  event = EventFd(Fd());
  loop->Unwatch(number);
}

TEST_CASE("event_loop: more descriptors than one batch are all served") {
  const auto loop = NewLoop();
  Recorder recorder;
  std::vector<EventFd> events;
  for (int i = 0; i < 150; ++i) {
    events.push_back(NewEvent());
    REQUIRE(loop->Watch(events.back().fd(), EPOLLIN | EPOLLET, recorder).has_value());
    events.back().Signal();
  }
  for (int i = 0; i < 3; ++i) loop->RunOnce(0);
  CHECK(recorder.seen.size() == 150);
}

TEST_CASE("event_loop: posted functions run in order, and those they post in the next round") {
  const auto loop = NewLoop();
  std::vector<int> order;
  loop->Post([&] {
    order.push_back(1);
    loop->Post([&] { order.push_back(3); });
  });
  loop->Post([&] { order.push_back(2); });
  loop->RunOnce(-1);
  CHECK(order == std::vector<int>{1, 2});
  loop->RunOnce(-1);
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("event_loop: functions posted before Stop run, also when Stop comes before Run") {
  const auto loop = NewLoop();
  int ran = 0;
  loop->Post([&] { ++ran; });
  loop->Stop();
  loop->Run();
  CHECK(ran == 1);
  // The stop was used up: the loop runs again.
  loop->Post([&] {
    ++ran;
    loop->Post([&] { ++ran; });
    loop->Stop();
  });
  loop->Run();
  CHECK(ran == 3);
}

TEST_CASE("event_loop: timers run once, in the order of their deadlines, never early") {
  const auto loop = NewLoop();
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  std::vector<int> order;
  loop->After(20, [&] {
    order.push_back(3);
    CHECK(Clock::now() - start >= std::chrono::milliseconds(20));
    loop->Stop();
  });
  loop->After(5, [&] {
    order.push_back(1);
    CHECK(Clock::now() - start >= std::chrono::milliseconds(5));
  });
  const EventLoop::TimerId cancelled = loop->After(6, [&] { order.push_back(-1); });
  loop->After(7, [&] { order.push_back(2); });
  loop->After(~std::uint64_t{0}, [&] { order.push_back(-2); });
  loop->Cancel(cancelled);
  loop->Cancel(cancelled);
  loop->Cancel(12345);
  loop->Run();
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("event_loop: a due timer that another due timer cancels does not run") {
  const auto loop = NewLoop();
  int ran = 0;
  EventLoop::TimerId second = 0;
  loop->After(0, [&] {
    ++ran;
    loop->Cancel(second);
  });
  second = loop->After(0, [&] { ran += 100; });
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  loop->RunOnce(0);
  loop->RunOnce(0);
  CHECK(ran == 1);
}

TEST_CASE("event_loop: a timer that sets itself again with no delay does not starve descriptors") {
  const auto loop = NewLoop();
  const EventFd event = NewEvent();
  std::uint64_t rounds = 0;
  std::function<void()> again = [&] {
    ++rounds;
    loop->After(0, again);
  };
  again();
  Recorder recorder([&](int, std::uint32_t) { loop->Stop(); });
  REQUIRE(loop->Watch(event.fd(), EPOLLIN, recorder).has_value());
  loop->RunOnce(0);
  CHECK(rounds == 2);
  event.Signal();
  loop->Run();
  CHECK(recorder.seen.size() == 1);
}

TEST_CASE("event_loop: RunSync runs at once where no thread runs the loop, or on the loop's own") {
  const auto loop = NewLoop();
  int ran = 0;
  CHECK_FALSE(loop->OnLoopThread());
  loop->RunSync([&] {
    ++ran;
    CHECK(loop->OnLoopThread());
    loop->RunSync([&] { ++ran; });
    loop->Post([&] { ran += 100; });
  });
  CHECK(ran == 2);
  CHECK_FALSE(loop->OnLoopThread());
  loop->RunOnce(0);
  CHECK(ran == 102);
}

TEST_CASE("event_loop: RunSync from another thread returns when the loop's thread has run it") {
  const auto loop = NewLoop();
  std::atomic<bool> started{false};
  Thread runner = std::move(*Thread::Start("runner", [&] {
    loop->Post([&] { started = true; });
    loop->Run();
  }));
  while (!started) std::this_thread::yield();
  std::thread::id where;
  int plain = 0;  // not atomic: RunSync orders both sides
  for (int i = 0; i < 1000; ++i) {
    loop->RunSync([&] {
      where = std::this_thread::get_id();
      ++plain;
    });
    CHECK(plain == i + 1);
  }
  CHECK(where != std::this_thread::get_id());
  loop->Stop();
  runner.Join();
}

TEST_CASE("event_loop: no RunSync is lost, doubled or left hanging while Run starts and stops") {
  const auto loop = NewLoop();
  constexpr int kThreads = 4;
  constexpr int kCalls = 2000;
  int plain = 0;  // only ever touched inside the loop: ThreadSanitizer proves the exclusion
  std::atomic<int> finished{0};
  std::vector<Thread> callers;
  callers.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    callers.push_back(std::move(*Thread::Start("caller", [&] {
      for (int i = 0; i < kCalls; ++i) loop->RunSync([&] { ++plain; });
      ++finished;
    })));
  }
  int runs = 0;
  while (finished < kThreads) {
    Thread stopper = std::move(*Thread::Start("stopper", [&] {
      std::this_thread::yield();
      loop->Stop();
    }));
    loop->Run();
    ++runs;
  }
  callers.clear();
  CHECK(plain == kThreads * kCalls);
  CHECK(runs > 0);
}

TEST_CASE("event_loop: posts from many threads all run on the loop's thread") {
  const auto loop = NewLoop();
  constexpr int kThreads = 4;
  constexpr int kPosts = 5000;
  int plain = 0;
  std::vector<Thread> posters;
  posters.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    posters.push_back(std::move(*Thread::Start("poster", [&] {
      for (int i = 0; i < kPosts; ++i) {
        loop->Post([&] {
          if (++plain == kThreads * kPosts) loop->Stop();
        });
      }
    })));
  }
  loop->Run();
  CHECK(plain == kThreads * kPosts);
}

}  // namespace
}  // namespace postern
