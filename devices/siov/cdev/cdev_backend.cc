#include "devices/siov/cdev/cdev_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

constexpr const char* kLog = "siov";
constexpr std::uint32_t kSpins = 200;
constexpr std::chrono::microseconds kShortSleep{20}, kLongSleep{1000};

std::uint64_t AddressOf(const void* pointer) {
  return std::bit_cast<std::uint64_t>(pointer);
}

bool IsSubset(const siov::OperationSet& of, const siov::OperationSet& all) {
  for (std::size_t i = 0; i < of.size(); ++i) {
    if ((of[i] & ~all[i]) != 0) return false;
  }
  return true;
}

bool Has(const siov::OperationSet& set, Opcode opcode) {
  const auto code = static_cast<std::size_t>(opcode);
  return (set[code / 64] >> (code % 64) & 1) != 0;
}

bool IsSuccess(std::uint8_t status) {
  return status == static_cast<std::uint8_t>(Completion::kSuccess) ||
         status == static_cast<std::uint8_t>(Completion::kFalsePredicate);
}

bool IsOfRecord(Completion status) {
  return status == Completion::kRecordFault || status == Completion::kRecordMisaligned;
}

// A queue without block-on-fault reports a page that is not present, which for a guest's RAM is no
// error. Best effort: a kernel before 5.14 does not know how, and a page may go again.
void MakePresent(const Rewritten& rewritten) {
  constexpr std::uint64_t kInPage = 4095;
  for (const Rewritten::Span& span : rewritten.spans()) {
    const std::uint64_t begin = span.host & ~kInPage;
    (void)madvise(std::bit_cast<void*>(begin), span.host - begin + span.length,
                  span.write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  }
}

void MarkWritten(const memory::GuestMemory& memory, const Rewritten& rewritten) {
  for (const Rewritten::Span& span : rewritten.spans()) {
    if (!span.write) continue;
    const auto view = memory.View(memory::Gpa(span.guest), span.length, memory::Access::kWrite);
    if (view) view->MarkDirty(0, span.length);
  }
}

// What write(2) says when the queue may take it later.
bool IsForNow(int error) {
  return error == EAGAIN || error == EBUSY || error == ENOSPC || error == EINTR || error == ENOMEM;
}

}  // namespace

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
      config.max_batch > caps_.max_batch || !IsSubset(config.operations, caps_.operations)) {
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

// --- the thread ---

void CdevBackend::Main() {
  std::optional<Work> next;
  while (Prepare(next)) {
    const std::uint32_t completed = Collect();
    const Begun begun = next ? Begin(*next) : Begun::kLater;
    if (completed != 0 || begun == Begun::kUnderWay) last_progress_ = Clock::now();
    if (begun == Begun::kLost || HasGone()) Lose();
    Settle(next, begun);
    for (const Ready& ready : std::exchange(ready_, {})) ready.done(ready.result);
    Rest(completed != 0 || begun != Begun::kLater, next.has_value() && begun == Begun::kLater);
  }
}

bool CdevBackend::MayBegin() const {
  return !waiting_.empty() && !quiesced_ && !lost_ && under_way_.size() < info_.size;
}

bool CdevBackend::Prepare(std::optional<Work>& next) {
  next.reset();
  const MutexLock lock(mutex_);
  if (ending_ && under_way_.empty()) return false;
  busy_ = true;
  if (!MayBegin()) return true;
  next = waiting_.front();
  limits_ = config_;
  under_way_.insert(next->sequence);
  return true;
}

std::optional<Refusal> CdevBackend::CheckLimits(const Work& work, const Rewritten& rewritten) {
  const WorkDescriptor words = std::bit_cast<WorkDescriptor>(work.descriptor);
  if (!Has(limits_.operations, words.opcode())) return Refusal{.status = Completion::kBadOpcode};
  if (words.opcode() != Opcode::kNoop && words.size.get() > limits_.max_transfer)
    return Refusal{.status = Completion::kBadSize};
  const siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (rewritten.interrupt && (events == nullptr || !events->IsHandle(rewritten.handle)))
    return Refusal{.status = Completion::kBadHandle};
  return std::nullopt;
}

CdevBackend::Begun CdevBackend::Begin(const Work& work) {
  const auto free = std::ranges::find(slots_, false, &Slot::used);
  CHECK(free != slots_.end());  // no more are under way than there are
  Shadow& shadow = shadows_[static_cast<std::size_t>(free - slots_.begin())];
  shadow.record = {};
  memory::GuestMemoryPtr memory = memory_.Snapshot();
  auto rewritten = Rewriter::Rewrite(*memory, work.descriptor, AddressOf(&shadow.record));
  std::optional<Refusal> refusal;
  if (!rewritten) {
    refusal = rewritten.error();
  } else {
    refusal = CheckLimits(work, *rewritten);
  }
  if (refusal) {
    Refuse(*memory, work, *refusal);
    return Begun::kRefused;
  }
  MakePresent(*rewritten);
  const int error = queue_->Write(rewritten->descriptor);
  if (error == 0) {
    *free = {.used = true,
             .sequence = work.sequence,
             .rewritten = *rewritten,
             .descriptor = work.descriptor,
             .memory = std::move(memory)};
    return Begun::kUnderWay;
  }
  if (IsForNow(error)) {
    counters_.host_full.Add();
    return Begun::kLater;
  }
  if (error == EINVAL) {
    counters_.host_refused.Add();
    Refuse(*memory, work, {.status = Completion::kBadOpcode});
    return Begun::kRefused;
  }
  LOG_WARN(kLog, "{}: {}", Describe(), postern::Describe(SysError("write", error).value()));
  return Begun::kLost;
}

// DSA 5.4: without a record that can be written the error is the device's.
void CdevBackend::Refuse(const memory::GuestMemory& memory, const Work& work,
                         const Refusal& refusal) {
  counters_.refused_descriptors.Add();
  const WorkDescriptor words = std::bit_cast<WorkDescriptor>(work.descriptor);
  const auto code = static_cast<std::uint8_t>(refusal.status);
  counters_.status[code % counters_.status.size()].Add();
  const bool on_write = refusal.fault_on_write || refusal.status == Completion::kRecordFault;
  const auto status = static_cast<std::uint8_t>(code | (on_write ? kFaultOnWrite : 0));
  if (IsOfRecord(refusal.status)) {
    Report(work.descriptor, status,
           refusal.status == Completion::kRecordFault ? words.record.get() : 0);
    return;
  }
  const bool has_record = words.Has(Flag::kRecordValid);
  if (has_record) {
    CompletionRecord record;
    record.status = status;
    record.fault_address = le64(refusal.fault_address);
    WriteGuestRecord(memory, words.record.get(), record);
  }
  const bool bad_handle = refusal.status == Completion::kBadHandle;
  if (!has_record || bad_handle) Report(work.descriptor, status, refusal.fault_address);
  if (words.Has(Flag::kRequestInterrupt) && !bad_handle) Signal(words.handle.get());
}

// DSA 9.2.15.
void CdevBackend::Report(const siov::Descriptor& descriptor, std::uint8_t status,
                         std::uint64_t address) {
  constexpr std::uint64_t kValid = 1U << 0, kDescriptorValid = 1U << 2, kQueueValid = 1U << 3;
  constexpr std::uint64_t kWrite = 1U << 5;
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events == nullptr) return;
  const WorkDescriptor words = std::bit_cast<WorkDescriptor>(descriptor);
  std::uint64_t what = kValid | kDescriptorValid | kQueueValid;
  what |= std::uint64_t{status & 0x7fU} << 8;
  what |= std::uint64_t{static_cast<std::uint8_t>(words.opcode())} << 32;
  if ((status & kFaultOnWrite) != 0) what |= kWrite;
  events->OnError({.queue = 0, .words = {what, 0, address, 0}});
}

void CdevBackend::Signal(std::uint16_t handle) {
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events != nullptr && events->IsHandle(handle)) events->SignalHandle(handle);
}

std::uint32_t CdevBackend::Collect() {
  std::uint32_t completed = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (!slots_[i].used) continue;
    CompletionRecord record;
    // Pairs with the device's store of the first eight bytes: the rest is there when the status is.
    const std::uint64_t first = __atomic_load_n(
        static_cast<const std::uint64_t*>(static_cast<const void*>(&shadows_[i].record)),
        __ATOMIC_ACQUIRE);
    if ((first & 0xff) == 0) continue;
    std::memcpy(&record, &shadows_[i].record, sizeof(record));
    Complete(slots_[i], record);
    completed_.push_back(slots_[i].sequence);
    slots_[i] = {};
    ++completed;
  }
  return completed;
}

void CdevBackend::Complete(Slot& slot, const CompletionRecord& shadow) {
  const std::uint8_t code = shadow.status & ~kFaultOnWrite;
  counters_.completed.Add();
  counters_.status[code % counters_.status.size()].Add();
  if (IsSuccess(code))
    counters_.bytes.Add(std::bit_cast<WorkDescriptor>(slot.descriptor).size.get());
  MarkWritten(*slot.memory, slot.rewritten);
  const bool interrupt = slot.rewritten.Finish(*slot.memory, shadow);
  if (!IsSuccess(code) && !slot.rewritten.has_record())
    Report(slot.descriptor, shadow.status, slot.rewritten.FaultAddress(shadow));
  if (interrupt) Signal(slot.rewritten.handle);
}

void CdevBackend::Settle(const std::optional<Work>& next, Begun begun) {
  const MutexLock lock(mutex_);
  for (const std::uint64_t sequence : std::exchange(completed_, {})) under_way_.erase(sequence);
  if (next && begun != Begun::kUnderWay) under_way_.erase(next->sequence);
  // It may have been discarded meanwhile.
  const bool first = next && !waiting_.empty() && waiting_.front().sequence == next->sequence;
  if (first && begun != Begun::kLater) waiting_.pop_front();
  if (lost_) {
    waiting_.clear();
    under_way_.clear();
  }
  const std::uint64_t oldest = OldestIncomplete();
  const auto open = std::ranges::find_if(
      waiters_, [oldest](const Waiter& waiter) { return waiter.target > oldest; });
  for (auto it = waiters_.begin(); it != open; ++it)
    ready_.push_back(
        {std::move(it->done), lost_ ? siov::HaltResult::kLost : siov::HaltResult::kDone});
  waiters_.erase(waiters_.begin(), open);
}

bool CdevBackend::HasGone() {
  if (std::ranges::none_of(slots_, &Slot::used)) return false;
  const Clock::time_point now = Clock::now();
  if (now - last_progress_ < std::min(options_.look_after, options_.patience)) return false;
  {
    const MutexLock lock(mutex_);
    if (waits_for_idle_ != 0 && now - last_progress_ >= options_.patience) return true;
  }
  if (now - std::max(last_look_, last_progress_) < options_.look_after) return false;
  last_look_ = now;
  return !queue_->Alive();
}

void CdevBackend::Lose() {
  {
    const MutexLock lock(mutex_);
    if (std::exchange(lost_, true)) return;
  }
  counters_.losses.Add();
  // Only after this what was under way may go: the device writes there no more.
  queue_->Close();
  for (Slot& slot : slots_) slot = {};
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events != nullptr) events->OnLost();
}

void CdevBackend::Rest(bool progress, bool full) {
  const Doorstep::Ticket ticket = door_.Prepare();
  bool more = progress;
  bool watches = full;
  {
    const MutexLock lock(mutex_);
    busy_ = false;
    idle_.notify_all();
    more = more || (MayBegin() && !full) || (ending_ && under_way_.empty());
    watches = watches || !under_way_.empty();
  }
  if (more) idle_looks_ = 0;
  if (more || (watches && ++idle_looks_ < kSpins)) {
    door_.Cancel();
    __builtin_ia32_pause();
    return;
  }
  if (!watches) {
    idle_looks_ = 0;
    (void)door_.Wait(ticket, std::nullopt);
    return;
  }
  counters_.sleeps.Add();
  const std::uint32_t doublings = std::min((idle_looks_ - kSpins) / 8, 6U);
  const bool rung = door_.Wait(ticket, std::min(kShortSleep * (1U << doublings), kLongSleep));
  if (rung) idle_looks_ = 0;
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
