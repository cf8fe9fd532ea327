#include "devices/siov/host/vfio_backend.h"

#include <algorithm>
#include <bit>
#include <utility>

#include <fmt/format.h>

#include "src/base/log.h"

namespace postern::dsa {
namespace {

constexpr const char* kLog = "siov";
constexpr std::uint32_t kPortalsOfQueue = 2;

}  // namespace

Result<std::unique_ptr<VfioBackend>> VfioBackend::Create(DsaHost& host, const HostRequest& request,
                                                         std::unique_ptr<GuestSpace> space) {
  HostRequest wanted = request;
  if (space != nullptr) wanted.pasid = space->pasid();
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  std::unique_ptr<VfioBackend> backend(new VfioBackend(host, std::move(space)));
  TRY(backend->Init(wanted));
  return backend;
}

VfioBackend::VfioBackend(DsaHost& host, std::unique_ptr<GuestSpace> space)
    : host_(host), space_(std::move(space)) {}

VfioBackend::~VfioBackend() {
  if (!lease_.queues.empty()) host_.Release(lease_);
}

Result<void> VfioBackend::Init(const HostRequest& request) {
  const HostCaps& host = host_.caps();
  const std::uint32_t count = request.queues;
  if (count > host.queues) return Err(Errc::kExhausted, "queues of the host's DSA");
  // Before the host can say something of them.
  for (std::uint32_t i = 0; i < count; ++i) queues_.push_back(std::make_unique<Queue>());
  lease_ = TRY(host_.Reserve(request, *this));
  bool first_ones = true;
  bool direct = true;
  for (std::uint32_t i = 0; i < count; ++i) {
    first_ones = first_ones && lease_.queues[i] == i;
    for (std::uint32_t page = 0; page < kPortalsOfQueue; ++page)
      direct = direct && CanMapPortal(host_.device(), lease_.queues[i], page);
  }
  caps_ = {.queues = count,
           .entries = count * lease_.size,
           .engines = host.engines,
           .operations = host.operations,
           .max_transfer = std::uint64_t{1} << host.transfer_shift,
           .max_batch = host.batch_shift == 0 ? 0 : std::uint32_t{1} << host.batch_shift,
           .direct = direct,
           .polled = false,
           .saves = true,
           .named_handles = host.handles || !first_ones};
  return {};
}

Result<void> VfioBackend::CanSubmit() {
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if (queues_[i]->page != nullptr) continue;
    Result<std::unique_ptr<PortalPage>> page =
        PortalPage::Open(host_.device(), lease_.queues[i], host_.options().portals_are_memory);
    if (!page) return Unexpected(page.error());
    queues_[i]->page = std::move(*page);
  }
  return {};
}

std::string VfioBackend::Describe() const {
  std::string queues;
  for (const std::uint32_t queue : lease_.queues)
    queues += fmt::format("{}{}", queues.empty() ? "" : ", ", queue);
  return fmt::format("vfio: {}, its queue{} {}", host_.device().info().name,
                     lease_.queues.size() == 1 ? "" : "s", queues);
}

void VfioBackend::Attach(siov::BackendEvents& events) {
  events_.store(&events, std::memory_order_release);
  if (host_.lost()) events.OnLost();
}

Result<bus::HostPages> VfioBackend::OpenPortal(std::uint32_t queue, std::uint32_t page,
                                               siov::PortalMode mode) {
  if (mode != siov::PortalMode::kDirect || !caps_.direct)
    return Err(Errc::kUnsupported, "portal mode of a host's DSA");
  if (queue >= queues_.size() || page >= kPortalsOfQueue)
    return Err(Errc::kInvalidArgument, "portal page");
  std::unique_ptr<vfio::RegionMapping>& mapped = queues_[queue]->mapped[page];
  if (mapped == nullptr) mapped = TRY(MapPortal(host_.device(), lease_.queues[queue], page));
  return mapped->pages();
}

// --- submission ---

siov::SubmitResult VfioBackend::Submit(std::uint32_t queue, const siov::Descriptor& descriptor) {
  if (queue >= queues_.size()) return siov::SubmitResult::kDisabled;
  Queue& to = *queues_[queue];
  const MutexLock lock(to.mutex);
  if (!to.enabled.load(std::memory_order_acquire)) {
    to.refused_disabled.Add();
    return siov::SubmitResult::kDisabled;
  }
  if (!to.held) return StoreNow(to, descriptor);
  if (to.waiting.size() >= to.config.size) {
    to.refused_full.Add();
    return siov::SubmitResult::kFull;
  }
  to.waiting.push_back(descriptor);
  to.waited.Add();
  return siov::SubmitResult::kAccepted;
}

siov::SubmitResult VfioBackend::StoreNow(Queue& queue, const siov::Descriptor& descriptor) {
  // A device that is gone completes nothing, which its owner is told elsewhere.
  if (queue.page == nullptr || host_.lost() || !queue.page->Store(descriptor)) {
    queue.failed.Add();
    return siov::SubmitResult::kDisabled;
  }
  queue.submitted.Add();
  return siov::SubmitResult::kAccepted;
}

// --- configuration ---

Result<void> VfioBackend::CheckDevice(const siov::DeviceConfig& config) const {
  siov::QueueSet seen = 0;
  std::uint64_t engines = 0;
  for (const siov::GroupConfig& group : config.groups) {
    const bool beyond = queues_.size() < siov::kMaxQueues && group.queues >> queues_.size() != 0;
    if (beyond || (group.queues == 0) != (group.engines == 0) || (seen & group.queues) != 0)
      return Err(Errc::kInvalidArgument, "queues of a group");
    seen |= group.queues;
    engines += group.engines;
  }
  if (engines > caps_.engines) return Err(Errc::kInvalidArgument, "engines of the groups");
  return {};
}

Result<void> VfioBackend::CheckQueue(std::uint32_t queue, const siov::QueueConfig& config) const {
  if (queue >= queues_.size()) return Err(Errc::kInvalidArgument, "queue number");
  if (config.size == 0 || config.size > lease_.size)
    return Err(Errc::kInvalidArgument, "queue size");
  if (config.max_transfer == 0 || config.max_transfer > caps_.max_transfer ||
      config.max_batch > caps_.max_batch || !siov::IsSubset(config.operations, caps_.operations)) {
    return Err(Errc::kInvalidArgument, "queue limits");
  }
  if (!host_.caps().operations_config && config.operations != caps_.operations)
    return Err(Errc::kUnsupported, "queue with some of the operations");
  return {};
}

Result<void> VfioBackend::Start(const siov::DeviceConfig& config) {
  if (started_) return Err(Errc::kBadState, "start of a started device");
  TRY(CheckDevice(config));
  TRY(host_.Start());
  device_ = config;
  started_ = true;
  return {};
}

void VfioBackend::Stop() {
  started_ = false;
  device_ = {};
}

Result<void> VfioBackend::Enable(std::uint32_t queue, const siov::QueueConfig& config) {
  if (!started_) return Err(Errc::kBadState, "enabling a queue of a stopped device");
  TRY(CheckQueue(queue, config));
  Queue& of = *queues_[queue];
  if (of.enabled.load(std::memory_order_relaxed))
    return Err(Errc::kBadState, "enabling an enabled queue");
  TRY(host_.EnableQueue(lease_.queues[queue], config));
  of.enables.Add();
  {
    const MutexLock lock(of.mutex);
    of.config = config;
    of.waiting.clear();
    of.held = quiesced_;
  }
  of.enabled.store(true, std::memory_order_release);
  return {};
}

// --- halting ---

siov::QueueSet VfioBackend::OfHost(siov::QueueSet queues) const {
  siov::QueueSet of_host = 0;
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if ((queues >> i & 1) != 0) of_host |= siov::QueueSet{1} << lease_.queues[i];
  }
  return of_host;
}

void VfioBackend::Halt(QueueHalt kind, siov::QueueSet queues, siov::Done done) {
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if ((queues >> i & 1) != 0) queues_[i]->halts.Add();
  }
  host_.Halt(kind, OfHost(queues), std::move(done));
}

void VfioBackend::Drain(siov::QueueSet queues, siov::Done done) {
  Halt(QueueHalt::kDrain, queues, std::move(done));
}

void VfioBackend::Disable(siov::QueueSet queues, siov::Done done) {
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if ((queues >> i & 1) == 0) continue;
    // After this no submission is on its way to the device.
    const MutexLock lock(queues_[i]->mutex);
    queues_[i]->enabled.store(false, std::memory_order_release);
    queues_[i]->waiting.clear();
  }
  Halt(QueueHalt::kDisable, queues, std::move(done));
}

void VfioBackend::Abort(siov::QueueSet queues, siov::Done done) {
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if ((queues >> i & 1) == 0) continue;
    const MutexLock lock(queues_[i]->mutex);
    queues_[i]->waiting.clear();
  }
  Halt(QueueHalt::kAbort, queues, std::move(done));
}

void VfioBackend::Reset() {
  resets_.Add();
  for (const auto& queue : queues_) {
    const MutexLock lock(queue->mutex);
    queue->enabled.store(false, std::memory_order_release);
    queue->waiting.clear();
  }
  host_.Reset(OfHost(~siov::QueueSet{0}));
  Stop();
}

void VfioBackend::Hold(Queue& queue, bool held) {
  const MutexLock lock(queue.mutex);
  queue.held = held;
  if (held) return;
  for (const siov::Descriptor& descriptor : std::exchange(queue.waiting, {}))
    (void)StoreNow(queue, descriptor);
}

void VfioBackend::Quiesce() {
  if (std::exchange(quiesced_, true)) return;
  siov::QueueSet enabled = 0;
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    Hold(*queues_[i], true);
    if (queues_[i]->enabled.load(std::memory_order_relaxed)) enabled |= siov::QueueSet{1} << i;
  }
  if (enabled != 0) (void)host_.DrainNow(OfHost(enabled));
}

void VfioBackend::Resume() {
  if (!std::exchange(quiesced_, false)) return;
  for (const auto& queue : queues_) Hold(*queue, false);
}

// --- interrupts ---

Result<std::uint32_t> VfioBackend::OpenHandle(std::uint16_t vector) {
  // Vector 0 is the host's: no descriptor of a guest may name it.
  if (vector == 0 || vector > queues_.size())
    return Err(Errc::kInvalidArgument, "interrupt vector");
  return host_.Handle(static_cast<std::uint16_t>(lease_.queues[vector - 1] + 1));
}

void VfioBackend::SetVector(std::uint16_t vector, const EventFd* trigger) {
  if (vector == 0 || vector > queues_.size()) return;
  const auto of_host = static_cast<std::uint16_t>(lease_.queues[vector - 1] + 1);
  const Result<void> set = host_.SetVector(of_host, trigger == nullptr ? -1 : trigger->fd());
  if (set || host_.lost()) return;
  vector_errors_.Add();
  LOG_WARN(kLog, "{}: interrupt vector {}: {}", host_.device().info().name, of_host,
           postern::Describe(set.error()));
}

std::uint32_t VfioBackend::Occupancy(std::uint32_t queue) const {
  return queue < queues_.size() ? host_.Occupancy(lease_.queues[queue]) : 0;
}

void VfioBackend::OnQueueError(std::uint32_t queue, const std::array<std::uint64_t, 4>& words) {
  queues_[queue]->errors.Add();
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events != nullptr) events->OnError({.queue = queue, .words = words});
}

void VfioBackend::OnHandlesRevoked() {
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events != nullptr) events->OnHandlesRevoked();
}

void VfioBackend::OnHostLost() {
  siov::BackendEvents* const events = events_.load(std::memory_order_acquire);
  if (events != nullptr) events->OnLost();
}

// --- state ---

Result<siov::BackendState> VfioBackend::Save() {
  if (!quiesced_) return Err(Errc::kBadState, "saving a device at work");
  if (host_.lost()) return Err(Errc::kBadState, "saving a device that is lost");
  siov::BackendState state;
  state.started = started_;
  state.device = device_;
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    Queue& queue = *queues_[i];
    if (queue.enabled.load(std::memory_order_relaxed) && Occupancy(i) != 0)
      return Err(Errc::kBadState, "saving a queue that is not empty");
    const MutexLock lock(queue.mutex);
    siov::QueueState& of = state.queues.emplace_back();
    of.enabled = queue.enabled.load(std::memory_order_relaxed);
    if (of.enabled) of.config = queue.config;
    of.waiting = queue.waiting;
  }
  return state;
}

Result<void> VfioBackend::CheckState(const siov::BackendState& state) const {
  if (state.version != 1 || state.queues.size() != queues_.size())
    return Err(Errc::kBadFormat, "state of a back end");
  if (!CheckDevice(state.device)) return Err(Errc::kBadFormat, "groups of a state");
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    const siov::QueueState& queue = state.queues[i];
    if (!queue.enabled && queue.waiting.empty()) continue;
    if (!queue.enabled || !state.started || !CheckQueue(i, queue.config) ||
        queue.waiting.size() > queue.config.size) {
      return Err(Errc::kBadFormat, "queue of a state");
    }
  }
  return {};
}

Result<void> VfioBackend::Restore(const siov::BackendState& state) {
  if (!quiesced_) return Err(Errc::kBadState, "restoring a device at work");
  TRY(CheckState(state));
  Reset();
  if (!state.started) return {};
  TRY(Start(state.device));
  for (std::uint32_t i = 0; i < queues_.size(); ++i) {
    if (!state.queues[i].enabled) continue;
    TRY(Enable(i, state.queues[i].config));
    const MutexLock lock(queues_[i]->mutex);
    queues_[i]->waiting = state.queues[i].waiting;
  }
  return {};
}

void VfioBackend::ReportCounters(CounterSink& sink) const {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    const Queue& queue = *queues_[i];
    const auto add = [&](std::string_view name, const Counter& counter) {
      sink.Add(fmt::format("queue{}_{}", i, name), counter.Get());
    };
    add("submitted", queue.submitted);
    add("waited", queue.waited);
    add("refused_disabled", queue.refused_disabled);
    add("refused_full", queue.refused_full);
    add("submit_failures", queue.failed);
    add("errors", queue.errors);
    add("enables", queue.enables);
    add("halts", queue.halts);
  }
  sink.Add("vector_errors", vector_errors_.Get());
  sink.Add("queue_resets", resets_.Get());
  host_.ReportCounters(sink);
}

}  // namespace postern::dsa
