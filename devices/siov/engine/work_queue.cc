#include "devices/siov/engine/work_queue.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"

namespace postern::dsa {
namespace {

// Held for some tens of nanoseconds at a time by whoever submits or takes: waiting for it is
// shorter than going to sleep for it, which is what happens when its holder was preempted.
constexpr int kLockTries = 100;

void LockSoon(Mutex& mutex) ACQUIRE(mutex) NO_THREAD_SAFETY_ANALYSIS {
  for (int i = 0; i < kLockTries; ++i) {
    if (mutex.TryLock()) return;
    __builtin_ia32_pause();
  }
  mutex.Lock();
}

class SCOPED_CAPABILITY BriefLock {
 public:
  explicit BriefLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { LockSoon(mutex_); }
  ~BriefLock() RELEASE() { mutex_.Unlock(); }
  BriefLock(const BriefLock&) = delete;
  BriefLock& operator=(const BriefLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace

siov::SubmitResult WorkQueue::Submit(const siov::Descriptor& descriptor) {
  Doorstep* door = nullptr;
  {
    const BriefLock lock(mutex_);
    if (state_ != State::kEnabled) {
      counters_.refused_disabled.Add();
      return siov::SubmitResult::kDisabled;
    }
    if (count_ >= config_.size) {
      counters_.refused_full.Add();
      return siov::SubmitResult::kFull;
    }
    Push(descriptor);
    Publish();
    door = door_;
  }
  if (door != nullptr && door->Ring()) counters_.wakeups.Add();
  return siov::SubmitResult::kAccepted;
}

void WorkQueue::Push(const siov::Descriptor& descriptor) {
  CHECK(count_ < ring_.size());
  ring_[(head_ + count_) % ring_.size()] = descriptor;
  ++count_;
  ++next_sequence_;
  counters_.submitted.Add();
}

void WorkQueue::Publish() {
  waiting_.store(count_, std::memory_order_seq_cst);  // pairs with Doorstep::Prepare
  occupancy_.store(held(), std::memory_order_relaxed);
  polling_now_.store(pages_ != nullptr && polling_ && state_ == State::kEnabled,
                     std::memory_order_relaxed);
}

void WorkQueue::LookAt(Look look) {
  const auto take = [this](const siov::Descriptor& descriptor)
                        NO_THREAD_SAFETY_ANALYSIS { Push(descriptor); };
  const std::uint32_t got = look == Look::kNext ? pages_->Poll(take) : pages_->Scan(take);
  counters_.polls.Add();
  if (got == 0) counters_.empty_polls.Add();
  const std::uint64_t overwritten = pages_->overwritten();
  counters_.refused_full.Add(overwritten - std::exchange(overwritten_, overwritten));
  // 64 wait that were submitted and are not complete: a page whose slots were all full may have
  // been stored over, which leaves no trace. What is under way does not count: its record may be
  // written.
  const bool overflow = count_ >= kPageSlots;
  if ((overflow || !pages_->trusted()) && !std::exchange(rule_broken_, true)) {
    counters_.rules_broken.Add();
    noticed_.rule_broken = true;
    noticed_.overflow = overflow;
  }
}

void WorkQueue::EmptyPages() {
  const bool looks = pages_ != nullptr && polling_ && state_ == State::kEnabled;
  // With more than that waiting the pages' rules are broken, and what is in them stays there.
  if (looks && count_ <= config_.size) LookAt(Look::kEverySlot);
}

// NO_THREAD_SAFETY_ANALYSIS: whether the lock is waited for depends on what there is to do.
bool WorkQueue::Take(UnderWay& slot, Look look, Noticed& noticed) NO_THREAD_SAFETY_ANALYSIS {
  if (waiting_.load(std::memory_order_relaxed) != 0) {
    LockSoon(mutex_);
  } else if (!polling() || !mutex_.TryLock()) {
    return false;  // somebody else looks at the pages, or submits
  }
  const bool taken = TakeLocked(slot, look, noticed);
  Doorstep* const door = taken && count_ != 0 ? door_ : nullptr;
  mutex_.Unlock();
  // Another worker of the group may sleep while pages gave more than one descriptor.
  if (door != nullptr && door->Ring()) counters_.wakeups.Add();
  return taken;
}

bool WorkQueue::TakeLocked(UnderWay& slot, Look look, Noticed& noticed) {
  if (count_ == 0 && pages_ != nullptr && polling_ && state_ == State::kEnabled &&
      held() < config_.size) {
    LookAt(look);
  }
  if (noticed_.rule_broken) noticed = std::exchange(noticed_, Noticed{});
  if (count_ == 0) return false;
  slot.descriptor = ring_[head_];
  slot.limits = {.queue = index_,
                 .max_transfer = config_.max_transfer,
                 .max_batch = config_.max_batch,
                 .operations = config_.operations,
                 .privileged = config_.privileged};
  slot.sequence = next_sequence_ - count_;
  slot.untouched = false;
  slot.discard.store(false, std::memory_order_relaxed);
  head_ = (head_ + 1) % static_cast<std::uint32_t>(ring_.size());
  --count_;
  under_way_.push_back(&slot);
  Publish();
  return true;
}

void WorkQueue::Complete(UnderWay& slot, const Executed& done, HaltCalls& through) {
  if (done.status == 0) {
    counters_.aborted.Add();
  } else {
    counters_.completed.Add();
    counters_.status[done.status % counters_.status.size()].Add();
  }
  counters_.descriptors.Add(done.descriptors);
  counters_.bytes.Add(done.bytes);
  const BriefLock lock(mutex_);
  under_way_.erase(std::find(under_way_.begin(), under_way_.end(), &slot));
  Publish();
  if (!waiters_.empty()) CollectThrough(through);
}

void WorkQueue::SetUntouched(UnderWay& slot, bool untouched) {
  const MutexLock lock(mutex_);
  slot.untouched = untouched;
}

bool WorkQueue::EarlierComplete(const UnderWay& slot) const {
  const MutexLock lock(mutex_);
  // What waits is later: it leaves in order.
  return std::all_of(under_way_.begin(), under_way_.end(),
                     [&](const UnderWay* other) { return other->sequence >= slot.sequence; });
}

std::uint64_t WorkQueue::OldestIncomplete() const {
  std::uint64_t oldest = next_sequence_ - count_;
  for (const UnderWay* slot : under_way_) oldest = std::min(oldest, slot->sequence);
  return oldest;
}

void WorkQueue::CollectThrough(HaltCalls& through) {
  const std::uint64_t oldest = OldestIncomplete();
  const auto first_open =
      std::find_if(waiters_.begin(), waiters_.end(),
                   [oldest](const Waiter& waiter) { return waiter.target > oldest; });
  for (auto it = waiters_.begin(); it != first_open; ++it) through.push_back(std::move(it->call));
  waiters_.erase(waiters_.begin(), first_open);
  // While it is being disabled nothing comes in: all is complete when the oldest is the next.
  if (state_ == State::kDisabling && held() == 0) state_ = State::kDisabled;
}

void WorkQueue::Halt(HaltKind kind, const HaltCallPtr& call, HaltCalls& through) {
  const MutexLock lock(mutex_);
  EmptyPages();  // what the driver stored before the call was submitted before it
  if (kind == HaltKind::kAbort) Discard();
  if (kind == HaltKind::kDisable && state_ == State::kEnabled) state_ = State::kDisabling;
  call->open.fetch_add(1, std::memory_order_relaxed);
  waiters_.push_back({.target = next_sequence_, .call = call});
  CollectThrough(through);
  Publish();
  if (door_ != nullptr && count_ != 0) (void)door_->Ring();
}

void WorkQueue::Discard() {
  counters_.aborted.Add(count_);
  head_ = 0;
  count_ = 0;
  for (UnderWay* slot : under_way_) slot->discard.store(true, std::memory_order_release);
}

void WorkQueue::Void() {
  std::vector<Waiter> forgotten;  // destroyed without the lock: they hold the caller's functions
  const MutexLock lock(mutex_);
  Discard();
  forgotten.swap(waiters_);
  state_ = State::kDisabled;
  noticed_ = {};
  Publish();
}

void WorkQueue::SetDoor(Doorstep* door) {
  const MutexLock lock(mutex_);
  door_ = door;
}

bool WorkQueue::enabled() const {
  const MutexLock lock(mutex_);
  return state_ == State::kEnabled;
}

bool WorkQueue::idle() const {
  const MutexLock lock(mutex_);
  return state_ == State::kDisabled;
}

std::uint32_t WorkQueue::size() const {
  const MutexLock lock(mutex_);
  return state_ == State::kDisabled ? 0 : config_.size;
}

void WorkQueue::Enable(const siov::QueueConfig& config,
                       const std::vector<siov::Descriptor>& waiting) {
  const MutexLock lock(mutex_);
  CHECK(state_ == State::kDisabled && count_ == 0);
  config_ = config;
  ring_.assign(MaxWaiting(config.size), siov::Descriptor{});
  head_ = 0;
  state_ = State::kEnabled;
  priority_.store(config.priority, std::memory_order_relaxed);
  if (pages_ != nullptr) pages_->Forget();
  rule_broken_ = false;
  for (const siov::Descriptor& descriptor : waiting) Push(descriptor);
  Publish();
}

bool WorkQueue::fed_by_pages() const {
  const MutexLock lock(mutex_);
  return pages_ != nullptr && polling_;
}

bool WorkQueue::has_pages() const {
  const MutexLock lock(mutex_);
  return pages_ != nullptr;
}

void WorkQueue::SetPages(std::unique_ptr<PolledSource> pages) {
  const MutexLock lock(mutex_);
  pages_ = std::move(pages);
}

void WorkQueue::StartPolling() {
  const MutexLock lock(mutex_);
  polling_ = pages_ != nullptr;
  Publish();
  if (door_ != nullptr) door_->RingAll();  // sleepers learn that they sleep for a time only
}

void WorkQueue::StopPolling() {
  const MutexLock lock(mutex_);
  EmptyPages();
  polling_ = false;
  Publish();
  if (door_ != nullptr && count_ != 0) (void)door_->Ring();
}

bus::HostPages WorkQueue::host(std::uint32_t page) const {
  const MutexLock lock(mutex_);
  return pages_->host(page);
}

std::optional<siov::QueueState> WorkQueue::Save() {
  const MutexLock lock(mutex_);
  EmptyPages();
  siov::QueueState state;
  if (state_ == State::kDisabled) return state;
  state.enabled = true;
  state.config = config_;
  std::vector<UnderWay*> begun = under_way_;
  std::sort(begun.begin(), begun.end(),
            [](const UnderWay* a, const UnderWay* b) { return a->sequence < b->sequence; });
  for (const UnderWay* slot : begun) {
    if (slot->discard.load(std::memory_order_acquire)) continue;
    if (!slot->untouched) return std::nullopt;
    state.waiting.push_back(slot->descriptor);
  }
  for (std::uint32_t i = 0; i < count_; ++i)
    state.waiting.push_back(ring_[(head_ + i) % ring_.size()]);
  Publish();
  return state;
}

void WorkQueue::ReportCounters(CounterSink& sink) const {
  const auto add = [&](std::string_view name, const Counter& counter) {
    sink.Add(fmt::format("queue{}_{}", index_, name), counter.Get());
  };
  add("submitted", counters_.submitted);
  add("completed", counters_.completed);
  add("descriptors", counters_.descriptors);
  add("bytes", counters_.bytes);
  add("refused_full", counters_.refused_full);
  add("refused_disabled", counters_.refused_disabled);
  add("polls", counters_.polls);
  add("empty_polls", counters_.empty_polls);
  add("sleeps", counters_.sleeps);
  add("wakeups", counters_.wakeups);
  add("aborted", counters_.aborted);
  add("rules_broken", counters_.rules_broken);
  for (std::size_t i = 0; i < counters_.status.size(); ++i) {
    if (counters_.status[i].Get() != 0) add(fmt::format("status_{:02x}", i), counters_.status[i]);
  }
}

}  // namespace postern::dsa
