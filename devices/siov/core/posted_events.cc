#include "devices/siov/core/posted_events.h"

#include <utility>

namespace postern::siov {
namespace {

// A handler that always posts again may not hold up the caller of RunPending.
constexpr int kMaxRounds = 64;

}  // namespace

PostedEvents::PostedEvents(EventLoop& loop, Mutex& lock)
    : loop_(loop), lock_(lock), self_(std::make_shared<PostedEvents*>(this)) {}

PostedEvents::~PostedEvents() = default;

void PostedEvents::Post(Kind kind, std::uint64_t generation, std::function<void()> run) {
  {
    const MutexLock lock(mutex_);
    if (kind == kReport && reports_ >= kMaxReports) {
      dropped_.Add();
      return;
    }
    if (kind == kReport) ++reports_;
    waiting_.push_back({kind, generation, std::move(run)});
    if (waiting_.size() > 1) return;  // the loop knows
  }
  loop_.Post([weak = std::weak_ptr<PostedEvents*>(self_)] {
    const auto self = weak.lock();
    if (self == nullptr) return;
    const MutexLock lock((*self)->lock_);
    (*self)->RunPending();
  });
}

std::vector<PostedEvents::Event> PostedEvents::Take() {
  const MutexLock lock(mutex_);
  reports_ = 0;
  return std::exchange(waiting_, {});
}

void PostedEvents::RunPending() {
  for (int round = 0; round < kMaxRounds; ++round) {
    const std::vector<Event> events = Take();
    if (events.empty()) return;
    for (const Event& event : events) {
      if (event.kind == kFact || event.generation == generation()) event.run();
    }
  }
}

}  // namespace postern::siov
