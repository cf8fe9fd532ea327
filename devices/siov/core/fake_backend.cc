#include "devices/siov/core/fake_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/base/check.h"

namespace postern::siov {
namespace {

constexpr std::size_t kHandleAt = 4;
constexpr std::size_t kTagAt = 8;
constexpr std::uint32_t kPage = PolledPage::kPageSize;

}  // namespace

Descriptor FakeDescriptor(std::uint64_t tag, std::optional<std::uint32_t> handle) {
  Descriptor descriptor{};
  descriptor[0] = std::byte{1};
  if (handle) {
    descriptor[1] = std::byte{1};
    std::memcpy(descriptor.data() + kHandleAt, &*handle, sizeof(*handle));
  }
  // All over, so that one made of two shows.
  for (std::size_t at = kTagAt; at < kDescriptorSize; at += sizeof(tag))
    std::memcpy(descriptor.data() + at, &tag, sizeof(tag));
  return descriptor;
}

std::uint64_t TagOf(const Descriptor& descriptor) {
  std::uint64_t tag = 0;
  std::memcpy(&tag, descriptor.data() + kTagAt, sizeof(tag));
  return tag;
}

BackendCaps FakeBackend::DefaultCaps() {
  BackendCaps caps;
  caps.queues = 4;
  caps.entries = 128;
  caps.engines = 4;
  caps.operations[0] = 0x3;
  caps.max_transfer = std::uint64_t{1} << 21;
  caps.max_batch = 64;
  caps.direct = true;
  caps.polled = true;
  caps.saves = true;
  return caps;
}

FakeBackend::FakeBackend(const BackendCaps& caps) : caps_(caps), queues_(caps.queues) {}

Result<bus::HostPages> FakeBackend::OpenPortal(std::uint32_t queue, std::uint32_t page,
                                               PortalMode mode) {
  const MutexLock lock(mutex_);
  if (queue >= queues_.size() || page >= kPagesPerQueue)
    return Err(Errc::kInvalidArgument, "portal");
  Queue& q = queues_[queue];
  if (mode == PortalMode::kPolled && caps_.polled) {
    if (!q.page) q.page = TRY(PolledPage::Create(kPagesPerQueue));
    q.polling = true;
    return q.page->host(page);
  }
  if (mode != PortalMode::kDirect || !caps_.direct) return Err(Errc::kUnsupported, "portal mode");
  q.direct.resize(std::size_t{kPagesPerQueue} * kPage);
  return bus::HostPages{.fd = -1,
                        .offset = 0,
                        .address = q.direct.data() + std::size_t{page} * kPage,
                        .length = kPage};
}

SubmitResult FakeBackend::Accept(std::uint32_t queue, const Descriptor& descriptor) {
  CHECK(queue < queues_.size());
  Queue& q = queues_[queue];
  if (!q.enabled) return SubmitResult::kDisabled;
  if (q.waiting.size() >= q.config.size) return SubmitResult::kFull;
  q.waiting.push_back(descriptor);
  return SubmitResult::kAccepted;
}

SubmitResult FakeBackend::Submit(std::uint32_t queue, const Descriptor& descriptor) {
  const MutexLock lock(mutex_);
  return Accept(queue, descriptor);
}

std::uint32_t FakeBackend::Poll(std::uint32_t queue) {
  std::uint32_t taken = 0;
  std::vector<SubmitResult> refused;
  bool trusted = true;
  {
    const MutexLock lock(mutex_);
    Queue& q = queues_[queue];
    if (!q.polling) return 0;
    taken = q.page->Scan([&](const Descriptor& descriptor) NO_THREAD_SAFETY_ANALYSIS {
      const SubmitResult result = Accept(queue, descriptor);
      if (result != SubmitResult::kAccepted) refused.push_back(result);
    });
    trusted = q.page->trusted();
  }
  for (const SubmitResult why : refused) events_->OnRefused(queue, why);
  if (!trusted) events_->OnRuleBroken(queue);
  return taken;
}

void FakeBackend::StopPolling(std::uint32_t queue) {
  Poll(queue);
  const MutexLock lock(mutex_);
  queues_[queue].polling = false;
}

Result<void> FakeBackend::Start(const DeviceConfig& config) {
  const MutexLock lock(mutex_);
  device_ = config;
  started_ = true;
  return {};
}

void FakeBackend::Stop() {
  const MutexLock lock(mutex_);
  started_ = false;
}

Result<void> FakeBackend::Enable(std::uint32_t queue, const QueueConfig& config) {
  const MutexLock lock(mutex_);
  if (queue >= queues_.size()) return Err(Errc::kInvalidArgument, "queue");
  Queue& q = queues_[queue];
  if (q.page) q.page->Forget();
  q.enabled = true;
  q.config = config;
  return {};
}

bool FakeBackend::Empty(QueueSet queues) const {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if ((queues >> i & 1) != 0 && !queues_[i].waiting.empty()) return false;
  }
  return true;
}

void FakeBackend::Halt(QueueSet queues, Kind kind, Done done) {
  {
    const MutexLock lock(mutex_);
    for (std::size_t i = 0; i < queues_.size(); ++i) {
      if ((queues >> i & 1) == 0) continue;
      if (kind == Kind::kAbort) queues_[i].waiting.clear();
      if (kind == Kind::kDisable) queues_[i].enabled = false;
    }
    halts_.push_back({queues, kind, std::move(done)});
  }
  FinishHalts();
}

void FakeBackend::FinishHalts() {
  std::vector<Done> ready;
  {
    const MutexLock lock(mutex_);
    std::erase_if(halts_, [&](Pending& pending) NO_THREAD_SAFETY_ANALYSIS {
      if (!Empty(pending.queues)) return false;
      ready.push_back(std::move(pending.done));
      return true;
    });
  }
  for (const Done& done : ready) done(HaltResult::kDone);
}

std::uint32_t FakeBackend::Complete(std::uint32_t queue, std::uint32_t count) {
  std::vector<Descriptor> done;
  {
    const MutexLock lock(mutex_);
    Queue& q = queues_[queue];
    while (!quiesced_ && done.size() < count && !q.waiting.empty()) {
      done.push_back(q.waiting.front());
      q.completed.push_back(TagOf(q.waiting.front()));
      q.waiting.pop_front();
    }
  }
  for (const Descriptor& descriptor : done) {
    std::uint32_t handle = 0;
    std::memcpy(&handle, descriptor.data() + kHandleAt, sizeof(handle));
    if ((descriptor[1] & std::byte{1}) != std::byte{0}) events_->SignalHandle(handle);
  }
  FinishHalts();
  return static_cast<std::uint32_t>(done.size());
}

void FakeBackend::Reset() {
  const MutexLock lock(mutex_);
  for (Queue& q : queues_) {
    q.enabled = false;
    q.waiting.clear();
  }
  halts_.clear();
  handles_.clear();
  started_ = false;
  ++resets_;
}

Result<std::uint32_t> FakeBackend::OpenHandle(std::uint16_t vector) {
  const MutexLock lock(mutex_);
  if (!caps_.named_handles) return vector;
  handles_[next_handle_] = vector;
  return next_handle_++;
}

void FakeBackend::CloseHandle(std::uint32_t handle) {
  const MutexLock lock(mutex_);
  handles_.erase(handle);
}

void FakeBackend::NextHandle(std::uint32_t handle) {
  const MutexLock lock(mutex_);
  next_handle_ = handle;
}

void FakeBackend::SetVector(std::uint16_t vector, const EventFd* trigger) {
  const MutexLock lock(mutex_);
  if (trigger == nullptr) {
    vectors_.erase(vector);
  } else {
    vectors_[vector] = trigger;
  }
}

std::uint32_t FakeBackend::Occupancy(std::uint32_t queue) const {
  const MutexLock lock(mutex_);
  return queue < queues_.size() ? static_cast<std::uint32_t>(queues_[queue].waiting.size()) : 0;
}

void FakeBackend::Quiesce() {
  const MutexLock lock(mutex_);
  quiesced_ = true;
}

void FakeBackend::Resume() {
  {
    const MutexLock lock(mutex_);
    quiesced_ = false;
  }
  FinishHalts();
}

Result<BackendState> FakeBackend::Save() {
  if (!caps_.saves) return Err(Errc::kUnsupported, "save");
  for (std::uint32_t q = 0; q < caps_.queues; ++q) Poll(q);
  const MutexLock lock(mutex_);
  BackendState state;
  state.started = started_;
  state.device = device_;
  for (const Queue& q : queues_) {
    // One that is being disabled is still to be: whoever asked for that asks again.
    state.queues.push_back({q.enabled || !q.waiting.empty(), q.config,
                            std::vector<Descriptor>(q.waiting.begin(), q.waiting.end())});
  }
  return state;
}

Result<void> FakeBackend::Restore(const BackendState& state) {
  if (!caps_.saves) return Err(Errc::kUnsupported, "restore");
  const MutexLock lock(mutex_);
  const bool fits = std::ranges::all_of(state.queues, [](const QueueState& q) {
    return q.waiting.size() <= q.config.size && (q.enabled || q.waiting.empty());
  });
  if (state.version != 1 || state.queues.size() != queues_.size() || !fits)
    return Err(Errc::kBadFormat, "fake backend's state");
  started_ = state.started;
  device_ = state.device;
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    queues_[i].enabled = state.queues[i].enabled;
    queues_[i].config = state.queues[i].config;
    queues_[i].waiting.assign(state.queues[i].waiting.begin(), state.queues[i].waiting.end());
  }
  return {};
}

void FakeBackend::ReportCounters(CounterSink& sink) const {
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < queues_.size(); ++i)
    sink.Add("queue" + std::to_string(i) + "_completed", queues_[i].completed.size());
}

std::vector<std::uint64_t> FakeBackend::CompletedTags(std::uint32_t queue) const {
  const MutexLock lock(mutex_);
  return queues_[queue].completed;
}
bool FakeBackend::enabled(std::uint32_t queue) const {
  const MutexLock lock(mutex_);
  return queues_[queue].enabled;
}
bool FakeBackend::started() const {
  const MutexLock lock(mutex_);
  return started_;
}
bool FakeBackend::quiesced() const {
  const MutexLock lock(mutex_);
  return quiesced_;
}
bool FakeBackend::polling(std::uint32_t queue) const {
  const MutexLock lock(mutex_);
  return queues_[queue].polling;
}
std::uint32_t FakeBackend::resets() const {
  const MutexLock lock(mutex_);
  return resets_;
}
std::map<std::uint16_t, const EventFd*> FakeBackend::vectors() const {
  const MutexLock lock(mutex_);
  return vectors_;
}
std::size_t FakeBackend::open_handles() const {
  const MutexLock lock(mutex_);
  return handles_.size();
}

}  // namespace postern::siov
