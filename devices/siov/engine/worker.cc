#include "devices/siov/engine/worker.h"

#include <algorithm>
#include <utility>

namespace postern::dsa {
namespace {

// Looks between two readings of the clock.
constexpr std::uint32_t kLooksPerReading = 16;

void Relax() {
  __builtin_ia32_pause();
}

}  // namespace

void FinishOne(const HaltCallPtr& call) {
  if (call->open.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    call->done(siov::HaltResult::kDone);
  }
}

void Turns::Follow(const WorkerGroup& group) {
  turns_.clear();
  for (WorkQueue* queue : group.queues) {
    const std::uint32_t weight = std::max<std::uint32_t>(queue->priority(), 1);
    turns_.push_back({.queue = queue, .weight = weight, .left = weight});
  }
  std::stable_sort(turns_.begin(), turns_.end(),
                   [](const Turn& a, const Turn& b) { return a.weight > b.weight; });
}

Worker::Worker(WorkerShared& shared, const RunnerFactory& factory)
    : shared_(shared), runner_(factory(*this)), back_off_(shared.poll) {}

Result<void> Worker::Start(std::string_view name, WorkerGroup& group) {
  group_ = &group;
  thread_ = TRY(Thread::Start(name, [this] { Main(); }));
  return {};
}

bool Worker::IsHandle(std::uint32_t handle) const {
  const siov::BackendEvents* events = shared_.events.load(std::memory_order_acquire);
  return events != nullptr && events->IsHandle(handle);
}

void Worker::SignalHandle(std::uint32_t handle) {
  siov::BackendEvents* events = shared_.events.load(std::memory_order_acquire);
  if (events != nullptr) events->SignalHandle(handle);
}

void Worker::OnError(const siov::ErrorRecord& record) {
  siov::BackendEvents* events = shared_.events.load(std::memory_order_acquire);
  if (events != nullptr) events->OnError(record);
}

void Worker::WaitForEarlier() {
  if (queue_->EarlierComplete(slot_)) return;
  queue_->SetUntouched(slot_, true);
  shared_.gate.Hold(slot_.discard, [this] { return queue_->EarlierComplete(slot_); });
  queue_->SetUntouched(slot_, false);
}

bool Worker::aborted() const {
  if (!slot_.discard.load(std::memory_order_acquire) && shared_.gate.overdue()) {
    shared_.gate.Hold(slot_.discard, [] { return true; });
  }
  return slot_.discard.load(std::memory_order_acquire);
}

void Worker::Main() {
  while (true) {
    shared_.gate.Enter();
    if (shared_.ending.load(std::memory_order_acquire)) break;
    Serve();
    Doorstep& door = group_->door;
    const Doorstep::Ticket ticket = door.Prepare();
    const bool again = shared_.gate.shut() || AnyWaiting() ||
                       (back_off_.sleeps() % kSleepsPerScan == 0 && RunOne(Look::kEverySlot));
    const std::optional<std::chrono::nanoseconds> timeout = again ? std::nullopt : NextSleep();
    runner_->Rest();
    shared_.gate.Leave();
    if (again) {
      door.Cancel();
    } else {
      Sleep(ticket, door, timeout);
    }
  }
  shared_.gate.Leave();
}

void Worker::Sleep(Doorstep::Ticket ticket, Doorstep& door,
                   std::optional<std::chrono::nanoseconds> timeout) {
  expects_work_ = door.Wait(ticket, timeout);
  if (expects_work_) back_off_.Restart();
}

void Worker::FollowGroup() {
  const std::uint32_t changes = group_->changes.load(std::memory_order_acquire);
  if (turns_of_ == group_ && turns_at_ == changes) return;
  turns_.Follow(*group_);
  turns_of_ = group_;
  turns_at_ = changes;
}

void Worker::Serve() {
  using Clock = Gate::Clock;
  bool spins = std::exchange(expects_work_, false);
  Clock::time_point until = spins ? Clock::now() + shared_.poll.spin : Clock::time_point{};
  for (std::uint32_t idle = 0; !shared_.gate.shut(); ++idle) {
    FollowGroup();
    if (RunOne(Look::kNext)) {
      spins = true;
      back_off_.Restart();
      idle = 0;
      until = {};  // from the next reading of the clock on
      continue;
    }
    if (!spins) return;
    if (idle % kLooksPerReading == 0) {
      const Clock::time_point now = Clock::now();
      if (until == Clock::time_point{}) until = now + shared_.poll.spin;
      if (now >= until) return;
    }
    Relax();
  }
}

bool Worker::TakeFrom(WorkQueue& queue, Look look) {
  Noticed noticed;
  const bool taken = queue.Take(slot_, look, noticed);
  if (noticed.rule_broken) {
    siov::BackendEvents* events = shared_.events.load(std::memory_order_acquire);
    if (events != nullptr) {
      if (noticed.overflow) events->OnRefused(queue.index(), siov::SubmitResult::kFull);
      events->OnRuleBroken(queue.index());
    }
  }
  return taken;
}

bool Worker::RunOne(Look look) {
  queue_ = turns_.Next([&](WorkQueue& queue) { return TakeFrom(queue, look); });
  if (queue_ == nullptr) return false;
  const Executed done = runner_->Run(slot_.limits, slot_.descriptor);
  through_.clear();
  queue_->Complete(slot_, done, through_);
  for (const HaltCallPtr& call : through_) FinishOne(call);
  through_.clear();
  if (shared_.gate.anyone_on_hold()) shared_.gate.Notify();
  return true;
}

bool Worker::AnyWaiting() const {
  return std::any_of(group_->queues.begin(), group_->queues.end(),
                     [](const WorkQueue* queue) { return queue->has_waiting(); });
}

std::optional<std::chrono::nanoseconds> Worker::NextSleep() {
  bool polls = false;
  for (WorkQueue* queue : group_->queues) {
    if (!queue->polling()) continue;
    polls = true;
    queue->counters().sleeps.Add();
  }
  if (!polls) return std::nullopt;
  return back_off_.Next();
}

}  // namespace postern::dsa
