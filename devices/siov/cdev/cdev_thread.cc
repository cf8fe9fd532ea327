// CdevBackend: its thread, which begins descriptors, watches the records of those begun, and ends
// them.

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "devices/siov/cdev/cdev_backend.h"
#include "src/base/check.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

constexpr const char* kLog = "siov";
constexpr std::uint32_t kSpins = 200;
constexpr std::chrono::microseconds kShortSleep{20}, kLongSleep{1000};

std::uint64_t AddressOf(const void* pointer) {
  return std::bit_cast<std::uint64_t>(pointer);
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
  if (!siov::IsIn(limits_.operations, static_cast<std::uint8_t>(words.opcode())))
    return Refusal{.status = Completion::kBadOpcode};
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

}  // namespace postern::dsa
