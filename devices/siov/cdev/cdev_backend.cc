// CdevBackend: its life, queues and state. Its thread is cdev_thread.cc.

#include "devices/siov/cdev/cdev_backend.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace postern::dsa {

// --- life ---

Result<std::unique_ptr<CdevBackend>> CdevBackend::Create(const CdevOptions& options,
                                                         const memory::MemoryMap& memory,
                                                         std::unique_ptr<IdxdQueue> queue) {
  const IdxdQueueInfo& info = queue->info();
  if (info.size == 0 || info.max_transfer == 0)
    return Err(Errc::kInvalidArgument, "size of the host's queue");
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  std::unique_ptr<CdevBackend> backend(new CdevBackend(options, memory, std::move(queue)));
  if (backend->caps_.operations == siov::OperationSet{})
    return Err(Errc::kUnsupported, "operations of the host's queue");
  CdevBackend* const self = backend.get();
  backend->thread_ = TRY(Thread::Start(options.name + "-cdev", [self] { self->Main(); }));
  return backend;
}

CdevBackend::CdevBackend(CdevOptions options, const memory::MemoryMap& memory,
                         std::unique_ptr<IdxdQueue> queue)
    : options_(std::move(options)),
      memory_(memory),
      queue_(std::move(queue)),
      info_(queue_->info()),
      slots_(info_.size),
      shadows_(info_.size) {
  caps_.queues = 1;
  caps_.entries = info_.size;
  caps_.engines = 1;
  for (std::size_t i = 0; i < caps_.operations.size(); ++i)
    caps_.operations[i] = info_.operations[i] & kRewritable[i];
  caps_.max_transfer = std::bit_floor(info_.max_transfer);
  caps_.saves = true;
}

CdevBackend::~CdevBackend() {
  {
    const MutexLock lock(mutex_);
    ending_ = true;
    waiting_.clear();
    ++waits_for_idle_;
  }
  door_.RingAll();
  thread_.Join();
  queue_->Close();
}

std::string CdevBackend::Describe() const {
  return fmt::format("cdev: /dev/dsa/{} ({})", info_.name, info_.shared ? "shared" : "dedicated");
}

void CdevBackend::Attach(siov::BackendEvents& events) {
  events_.store(&events, std::memory_order_release);
  bool lost = false;
  {
    const MutexLock lock(mutex_);
    lost = lost_;
  }
  if (lost) events.OnLost();
}

Result<bus::HostPages> CdevBackend::OpenPortal(std::uint32_t queue, std::uint32_t page,
                                               siov::PortalMode mode) {
  (void)queue;
  (void)page;
  (void)mode;
  return Err(Errc::kUnsupported, "portal mode of a queue of the host's driver");
}

// --- submission ---

std::size_t CdevBackend::Held() const {
  const bool first_is_begun = !waiting_.empty() && under_way_.contains(waiting_.front().sequence);
  return waiting_.size() + under_way_.size() - (first_is_begun ? 1 : 0);
}

siov::SubmitResult CdevBackend::Submit(std::uint32_t queue, const siov::Descriptor& descriptor) {
  {
    const MutexLock lock(mutex_);
    if (queue != 0 || !enabled_ || lost_) {
      counters_.refused_disabled.Add();
      return siov::SubmitResult::kDisabled;
    }
    if (Held() >= config_.size) {
      counters_.refused_full.Add();
      return siov::SubmitResult::kFull;
    }
    waiting_.push_back({.sequence = next_sequence_++, .descriptor = descriptor});
  }
  counters_.submitted.Add();
  (void)door_.Ring();
  return siov::SubmitResult::kAccepted;
}

std::uint32_t CdevBackend::Occupancy(std::uint32_t queue) const {
  const MutexLock lock(mutex_);
  return queue == 0 ? static_cast<std::uint32_t>(Held()) : 0;
}

// --- configuration ---

Result<void> CdevBackend::CheckDevice(const siov::DeviceConfig& config) const {
  siov::QueueSet seen = 0;
  std::uint64_t engines = 0;
  for (const siov::GroupConfig& group : config.groups) {
    if (group.queues > 1 || (group.queues == 0) != (group.engines == 0) ||
        (seen & group.queues) != 0) {
      return Err(Errc::kInvalidArgument, "queues of a group");
    }
    seen |= group.queues;
    engines += group.engines;
  }
  if (engines > caps_.engines) return Err(Errc::kInvalidArgument, "engines of the groups");
  return {};
}

Result<void> CdevBackend::CheckQueue(std::uint32_t queue, const siov::QueueConfig& config) const {
  if (queue != 0) return Err(Errc::kInvalidArgument, "queue number");
  if (config.size == 0 || config.size > caps_.entries)
    return Err(Errc::kInvalidArgument, "queue size");
  if (config.max_transfer == 0 || config.max_transfer > caps_.max_transfer ||
      config.max_batch > caps_.max_batch || !siov::IsSubset(config.operations, caps_.operations)) {
    return Err(Errc::kInvalidArgument, "queue limits");
  }
  return {};
}

Result<void> CdevBackend::Start(const siov::DeviceConfig& config) {
  if (started_) return Err(Errc::kBadState, "start of a started device");
  TRY(CheckDevice(config));
  device_ = config;
  started_ = true;
  return {};
}

void CdevBackend::Stop() {
  started_ = false;
  device_ = {};
}

Result<void> CdevBackend::Enable(std::uint32_t queue, const siov::QueueConfig& config) {
  if (!started_) return Err(Errc::kBadState, "enabling a queue of a stopped device");
  TRY(CheckQueue(queue, config));
  const MutexLock lock(mutex_);
  if (lost_) return Err(Errc::kBadState, "enabling a queue that the host has lost");
  if (enabled_) return Err(Errc::kBadState, "enabling an enabled queue");
  config_ = config;
  enabled_ = true;
  counters_.enables.Add();
  return {};
}

// --- halting ---

std::uint64_t CdevBackend::OldestIncomplete() const {
  std::uint64_t oldest = next_sequence_;
  if (!waiting_.empty()) oldest = waiting_.front().sequence;
  if (!under_way_.empty()) oldest = std::min(oldest, *under_way_.begin());
  return oldest;
}

void CdevBackend::Halt(Kind kind, siov::QueueSet queues, siov::Done done) {
  siov::HaltResult result = siov::HaltResult::kDone;
  if ((queues & 1) != 0) {
    const MutexLock lock(mutex_);
    counters_.halts.Add();
    if (kind == Kind::kDisable) enabled_ = false;
    if (kind == Kind::kAbort) {
      counters_.aborted.Add(waiting_.size());
      waiting_.clear();
    }
    if (lost_) {
      result = siov::HaltResult::kLost;
    } else if (OldestIncomplete() < next_sequence_) {
      waiters_.push_back({.target = next_sequence_, .done = std::move(done)});
      return;
    }
  }
  done(result);
}

void CdevBackend::Drain(siov::QueueSet queues, siov::Done done) {
  Halt(Kind::kDrain, queues, std::move(done));
}

void CdevBackend::Disable(siov::QueueSet queues, siov::Done done) {
  Halt(Kind::kDisable, queues, std::move(done));
}

void CdevBackend::Abort(siov::QueueSet queues, siov::Done done) {
  Halt(Kind::kAbort, queues, std::move(done));
}

void CdevBackend::WaitUntilIdle() {
  const MutexLock lock(mutex_);
  ++waits_for_idle_;
  while (busy_ || !under_way_.empty()) idle_.wait(mutex_);
  --waits_for_idle_;
}

void CdevBackend::Reset() {
  std::vector<Waiter> forgotten;  // destroyed without the lock: they hold the caller's functions
  {
    const MutexLock lock(mutex_);
    enabled_ = false;
    counters_.aborted.Add(waiting_.size());
    waiting_.clear();
    forgotten.swap(waiters_);
  }
  counters_.resets.Add();
  WaitUntilIdle();
  Stop();
}

void CdevBackend::Quiesce() {
  {
    const MutexLock lock(mutex_);
    quiesced_ = true;
  }
  WaitUntilIdle();
}

void CdevBackend::Resume() {
  {
    const MutexLock lock(mutex_);
    quiesced_ = false;
  }
  (void)door_.Ring();
}

// --- interrupts ---

Result<std::uint32_t> CdevBackend::OpenHandle(std::uint16_t vector) {
  if (vector > caps_.queues) return Err(Errc::kInvalidArgument, "interrupt vector");
  return vector;
}

void CdevBackend::SetVector(std::uint16_t vector, const EventFd* trigger) {
  (void)vector;
  (void)trigger;
}

// --- state ---

Result<siov::BackendState> CdevBackend::Save() {
  const MutexLock lock(mutex_);
  if (!quiesced_) return Err(Errc::kBadState, "saving a device at work");
  if (lost_) return Err(Errc::kBadState, "saving a device that is lost");
  siov::BackendState state;
  state.started = started_;
  state.device = device_;
  siov::QueueState& queue = state.queues.emplace_back();
  queue.enabled = enabled_;
  if (!enabled_) return state;
  queue.config = config_;
  for (const Work& work : waiting_) queue.waiting.push_back(work.descriptor);
  return state;
}

Result<void> CdevBackend::CheckState(const siov::BackendState& state) const {
  if (state.version != 1 || state.queues.size() != 1)
    return Err(Errc::kBadFormat, "state of a back end");
  if (!CheckDevice(state.device)) return Err(Errc::kBadFormat, "groups of a state");
  const siov::QueueState& queue = state.queues[0];
  if (!queue.enabled && queue.waiting.empty()) return {};
  if (!queue.enabled || !state.started || !CheckQueue(0, queue.config) ||
      queue.waiting.size() > queue.config.size) {
    return Err(Errc::kBadFormat, "queue of a state");
  }
  return {};
}

Result<void> CdevBackend::Restore(const siov::BackendState& state) {
  {
    const MutexLock lock(mutex_);
    if (!quiesced_) return Err(Errc::kBadState, "restoring a device at work");
  }
  TRY(CheckState(state));
  Reset();
  if (!state.started) return {};
  TRY(Start(state.device));
  if (!state.queues[0].enabled) return {};
  TRY(Enable(0, state.queues[0].config));
  const MutexLock lock(mutex_);
  for (const siov::Descriptor& descriptor : state.queues[0].waiting)
    waiting_.push_back({.sequence = next_sequence_++, .descriptor = descriptor});
  return {};
}

void CdevBackend::ReportCounters(CounterSink& sink) const {
  const auto add = [&](std::string_view name, const Counter& counter) {
    sink.Add(fmt::format("queue0_{}", name), counter.Get());
  };
  add("submitted", counters_.submitted);
  add("completed", counters_.completed);
  add("bytes", counters_.bytes);
  add("refused_full", counters_.refused_full);
  add("refused_disabled", counters_.refused_disabled);
  add("refused_descriptors", counters_.refused_descriptors);
  add("aborted", counters_.aborted);
  add("host_full", counters_.host_full);
  add("host_refused", counters_.host_refused);
  add("sleeps", counters_.sleeps);
  add("enables", counters_.enables);
  add("halts", counters_.halts);
  for (std::size_t i = 0; i < counters_.status.size(); ++i) {
    if (counters_.status[i].Get() != 0) add(fmt::format("status_{:02x}", i), counters_.status[i]);
  }
  sink.Add("queue_resets", counters_.resets.Get());
  sink.Add("losses", counters_.losses.Get());
}

}  // namespace postern::dsa
