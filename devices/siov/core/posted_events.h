#pragma once

// PostedEvents: what a backend's threads tell a Vdev, carried to the event loop's thread, which
// handles it with the function's lock.
//
//   events.Post(PostedEvents::kReport, events.generation(), [this, record] { ... });
//   backend.Reset();
//   events.Forget();      // what was posted before that is of another life of the device
//
// Ownership: borrows loop and lock. Destroyed on the loop's thread, or while no thread runs it.
// Threads: Post and generation from any thread, without the lock, and neither blocks; Forget and
// RunPending with it.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/mutex.h"

namespace postern::siov {

class PostedEvents {
 public:
  enum Kind : std::uint8_t {
    kReport,  // one of possibly very many: dropped while kMaxReports wait
    kAnswer,  // to a call, so there are few
    kFact,    // holds whatever was reset since
  };
  // A device latches the first error it has and that there were more: nobody misses the rest.
  static constexpr std::size_t kMaxReports = 64;

  PostedEvents(EventLoop& loop, Mutex& lock);
  ~PostedEvents();
  PostedEvents(const PostedEvents&) = delete;
  PostedEvents& operator=(const PostedEvents&) = delete;

  [[nodiscard]] std::uint64_t generation() const {
    return generation_.load(std::memory_order_acquire);
  }
  // `run` is dropped if Forget was called since generation() was `generation`.
  void Post(Kind kind, std::uint64_t generation, std::function<void()> run);

  void Forget() { generation_.fetch_add(1, std::memory_order_acq_rel); }
  // Handles at once what waits, and what that posts.
  void RunPending();

  [[nodiscard]] std::uint64_t dropped() const { return dropped_.Get(); }

 private:
  struct Event {
    Kind kind;
    std::uint64_t generation;
    std::function<void()> run;
  };
  [[nodiscard]] std::vector<Event> Take();

  EventLoop& loop_;
  Mutex& lock_;
  std::atomic<std::uint64_t> generation_{0};
  Mutex mutex_;
  std::vector<Event> waiting_ GUARDED_BY(mutex_);
  std::size_t reports_ GUARDED_BY(mutex_) = 0;
  Counter dropped_;
  // What posted functions look at: empty once this is gone.
  std::shared_ptr<PostedEvents*> self_;
};

}  // namespace postern::siov
