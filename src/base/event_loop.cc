#include "src/base/event_loop.h"

#include <sys/epoll.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/base/fd.h"
#include "src/base/mutex.h"

namespace postern {
namespace {

std::uint64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

// A number no other living thread has; 0 is nobody.
std::uintptr_t Self() {
  static thread_local char tag;
  return reinterpret_cast<std::uintptr_t>(&tag);
}

struct WatchEntry {
  EventHandler* handler = nullptr;
  // Changes with every Watch, and is part of the epoll data: an event of a descriptor that was
  // unwatched, and perhaps closed and its number watched anew, since the batch was fetched is
  // recognised and dropped.
  std::uint32_t generation = 0;
};

struct Posted {
  std::function<void()> function;
  std::uint64_t ticket;
};

constexpr std::size_t kBatch = 64;

}  // namespace

// The loop has an owner: the thread in Run or RunOnce, or one that runs a RunSync inline.
// Everything but the mailbox is touched by the owner alone, so ownership is the lock of watches and
// timers.
struct EventLoop::Impl {
  Fd epoll;
  EventFd wake{Fd()};
  std::vector<WatchEntry> watches;  // by descriptor number
  std::uint32_t next_generation = 0;

  using TimerKey = std::pair<std::uint64_t, TimerId>;  // deadline in ns, id
  std::map<TimerKey, std::function<void()>> timers;
  std::unordered_map<TimerId, std::uint64_t> deadlines;
  TimerId next_timer = 1;

  std::atomic<std::uintptr_t> owner{0};  // written under `mutex`
  Mutex mutex;
  std::condition_variable_any changed;  // the owner left, or a posted function was run
  std::deque<Posted> mailbox GUARDED_BY(mutex);
  std::uint64_t next_ticket GUARDED_BY(mutex) = 1;
  bool stop GUARDED_BY(mutex) = false;

  // True if this call made the thread the owner; false if it was already.
  bool Acquire() {
    if (owner.load(std::memory_order_relaxed) == Self()) return false;
    const MutexLock lock(mutex);
    while (owner.load(std::memory_order_relaxed) != 0) changed.wait(mutex);
    owner.store(Self(), std::memory_order_relaxed);
    return true;
  }

  void Release() {
    {
      const MutexLock lock(mutex);
      owner.store(0, std::memory_order_relaxed);
    }
    changed.notify_all();
  }

  std::uint64_t Enqueue(std::function<void()> function) REQUIRES(mutex) {
    const std::uint64_t ticket = next_ticket++;
    mailbox.push_back(Posted{std::move(function), ticket});
    if (mailbox.size() == 1) wake.Signal();
    return ticket;
  }

  // Takes back a function that no owner has fetched yet.
  bool Withdraw(std::uint64_t ticket) REQUIRES(mutex) {
    for (auto it = mailbox.begin(); it != mailbox.end(); ++it) {
      if (it->ticket == ticket) {
        mailbox.erase(it);
        return true;
      }
    }
    return false;
  }

  // One batch: functions posted by these functions wait for the next round, so that they cannot
  // starve the descriptors.
  void RunPosted() {
    wake.Consume();
    std::deque<Posted> batch;
    {
      const MutexLock lock(mutex);
      batch.swap(mailbox);
    }
    for (Posted& posted : batch) posted.function();
  }

  void RunTimers() {
    if (timers.empty()) return;
    const std::uint64_t now = NowNs();
    const TimerId limit = next_timer;  // a timer set by a timer waits for the next round
    while (!timers.empty()) {
      auto first = timers.begin();
      if (first->first.first > now || first->first.second >= limit) break;
      deadlines.erase(first->first.second);
      const std::function<void()> function = std::move(first->second);
      timers.erase(first);
      function();
    }
  }

  // The caller's timeout, or less when a timer is due earlier; rounded up so that the timer is due
  // when epoll_wait returns.
  [[nodiscard]] int Timeout(int timeout_ms) const {
    if (timers.empty()) return timeout_ms;
    const std::uint64_t deadline = timers.begin()->first.first;
    const std::uint64_t now = NowNs();
    const std::uint64_t left = deadline > now ? deadline - now : 0;
    const std::uint64_t left_ms = left / 1'000'000 + (left % 1'000'000 != 0 ? 1 : 0);
    const int timer_ms = static_cast<int>(std::min<std::uint64_t>(
        left_ms, static_cast<std::uint64_t>(std::numeric_limits<int>::max())));
    return timeout_ms < 0 ? timer_ms : std::min(timeout_ms, timer_ms);
  }

  void Dispatch(const epoll_event& event) {
    const auto fd = static_cast<std::uint32_t>(event.data.u64);
    const auto generation = static_cast<std::uint32_t>(event.data.u64 >> 32);
    if (fd >= watches.size()) return;
    const WatchEntry entry = watches[fd];  // a copy: the handler may Watch and so move the vector
    if (entry.handler == nullptr || entry.generation != generation) return;
    entry.handler->OnEvent(static_cast<int>(fd), event.events);
  }

  void Round(int timeout_ms) {
    std::array<epoll_event, kBatch> events{};
    const int n = epoll_wait(epoll.get(), events.data(), static_cast<int>(events.size()),
                             Timeout(timeout_ms));
    bool posted = false;
    for (int i = 0; i < n; ++i) {
      const epoll_event& event = events[static_cast<std::size_t>(i)];
      if (event.data.u64 == kWakeData) {
        posted = true;
      } else {
        Dispatch(event);
      }
    }
    if (posted) RunPosted();
    RunTimers();
  }

  bool TakeStop() {
    const MutexLock lock(mutex);
    return std::exchange(stop, false);
  }

  // Descriptor numbers are non-negative ints, so no watch has this.
  static constexpr std::uint64_t kWakeData = ~std::uint64_t{0};
};

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {}
EventLoop::~EventLoop() = default;

Result<std::unique_ptr<EventLoop>> EventLoop::Create() {
  std::unique_ptr<EventLoop> loop(new EventLoop());
  Impl& impl = *loop->impl_;
  impl.epoll = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!impl.epoll.valid()) return SysError("epoll_create1");
  impl.wake = TRY(EventFd::Create());
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = Impl::kWakeData;
  if (epoll_ctl(impl.epoll.get(), EPOLL_CTL_ADD, impl.wake.fd(), &event) != 0) {
    return SysError("epoll_ctl(EPOLL_CTL_ADD)");
  }
  return loop;
}

Result<void> EventLoop::Watch(int fd, std::uint32_t events, EventHandler& handler) {
  if (fd < 0) return Err(Errc::kInvalidArgument, "watch descriptor");
  const std::uint32_t generation = impl_->next_generation++;
  epoll_event event{};
  event.events = events;
  event.data.u64 = std::uint64_t{generation} << 32 | static_cast<std::uint32_t>(fd);
  if (epoll_ctl(impl_->epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return SysError("epoll_ctl(EPOLL_CTL_ADD)");
  }
  const auto index = static_cast<std::size_t>(fd);
  if (index >= impl_->watches.size()) impl_->watches.resize(index + 1);
  impl_->watches[index] = WatchEntry{&handler, generation};
  return {};
}

Result<void> EventLoop::Modify(int fd, std::uint32_t events) {
  const auto index = static_cast<std::size_t>(fd);
  if (fd < 0 || index >= impl_->watches.size() || impl_->watches[index].handler == nullptr) {
    return Err(Errc::kNotFound, "watched descriptor");
  }
  epoll_event event{};
  event.events = events;
  event.data.u64 =
      std::uint64_t{impl_->watches[index].generation} << 32 | static_cast<std::uint32_t>(fd);
  if (epoll_ctl(impl_->epoll.get(), EPOLL_CTL_MOD, fd, &event) != 0) {
    return SysError("epoll_ctl(EPOLL_CTL_MOD)");
  }
  return {};
}

void EventLoop::Unwatch(int fd) {
  const auto index = static_cast<std::size_t>(fd);
  if (fd < 0 || index >= impl_->watches.size() || impl_->watches[index].handler == nullptr) return;
  impl_->watches[index].handler = nullptr;
  epoll_event unused{};
  // Fails if the descriptor was closed first, and then the kernel has forgotten it already.
  if (epoll_ctl(impl_->epoll.get(), EPOLL_CTL_DEL, fd, &unused) != 0) return;
}

EventLoop::TimerId EventLoop::After(std::uint64_t delay_ms, std::function<void()> function) {
  std::uint64_t delay_ns = 0;
  std::uint64_t deadline = 0;
  if (__builtin_mul_overflow(delay_ms, std::uint64_t{1'000'000}, &delay_ns) ||
      __builtin_add_overflow(NowNs(), delay_ns, &deadline)) {
    deadline = std::numeric_limits<std::uint64_t>::max();
  }
  const TimerId id = impl_->next_timer++;
  impl_->timers.emplace(Impl::TimerKey{deadline, id}, std::move(function));
  impl_->deadlines.emplace(id, deadline);
  return id;
}

void EventLoop::Cancel(TimerId id) {
  const auto it = impl_->deadlines.find(id);
  if (it == impl_->deadlines.end()) return;
  impl_->timers.erase(Impl::TimerKey{it->second, id});
  impl_->deadlines.erase(it);
}

void EventLoop::Post(std::function<void()> function) {
  const MutexLock lock(impl_->mutex);
  impl_->Enqueue(std::move(function));
}

void EventLoop::RunSync(const std::function<void()>& function) {
  Impl& impl = *impl_;
  if (OnLoopThread()) {
    function();
    return;
  }
  bool done = false;  // guarded by impl.mutex
  {
    const MutexLock lock(impl.mutex);
    bool queued = false;
    std::uint64_t ticket = 0;
    while (impl.owner.load(std::memory_order_relaxed) != 0) {
      if (!queued) {
        queued = true;
        ticket = impl.Enqueue([&] {
          function();
          // Notified with the lock held: once it is released the waiter may return, and what this
          // captured is gone.
          const MutexLock done_lock(impl.mutex);
          done = true;
          impl.changed.notify_all();
        });
      }
      impl.changed.wait(impl.mutex);
      if (done) return;
    }
    // Nobody runs the loop, or whoever did has left without fetching this function: run it here, as
    // the owner.
    if (queued) CHECK(impl.Withdraw(ticket));
    impl.owner.store(Self(), std::memory_order_relaxed);
  }
  function();
  impl.Release();
}

void EventLoop::Run() {
  const bool acquired = impl_->Acquire();
  CHECK(acquired);  // Run inside Run
  while (!impl_->TakeStop()) impl_->Round(-1);
  impl_->RunPosted();
  impl_->Release();
}

void EventLoop::Stop() {
  const MutexLock lock(impl_->mutex);
  impl_->stop = true;
  impl_->wake.Signal();
}

void EventLoop::RunOnce(int timeout_ms) {
  const bool acquired = impl_->Acquire();
  impl_->Round(timeout_ms);
  if (acquired) impl_->Release();
}

bool EventLoop::OnLoopThread() const {
  return impl_->owner.load(std::memory_order_relaxed) == Self();
}

}  // namespace postern
