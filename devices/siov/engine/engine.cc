#include "devices/siov/engine/engine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "src/base/random.h"

namespace postern::dsa {
namespace {

constexpr std::uint32_t kMaxEntries = 65535;
constexpr std::uint16_t kMaxVectors = 2048;  // PCI 3.0 6.8.2.3
constexpr std::chrono::microseconds kMaxSleep{1'000'000};
// A handle has 16 bits in a command's result; below kFirstName are numbers that vectors have.
constexpr std::uint32_t kFirstName = kMaxVectors;
constexpr std::uint32_t kNames = 0x10000 - kFirstName;

bool Good(const EngineOptions& options) {
  const PollPolicy& poll = options.poll;
  return options.workers >= 1 && options.workers <= kMaxWorkers && options.queues >= 1 &&
         options.queues <= siov::kMaxQueues && options.entries >= 1 &&
         options.entries <= kMaxEntries && std::has_single_bit(options.max_transfer) &&
         (options.max_batch == 0 || std::has_single_bit(options.max_batch)) &&
         poll.first_sleep.count() >= 1 && poll.first_sleep <= poll.max_sleep &&
         poll.max_sleep <= kMaxSleep && poll.idle_permille >= 1 && poll.spin.count() >= 0 &&
         poll.spin <= kMaxSleep && options.vectors <= kMaxVectors &&
         options.quiesce_grace.count() >= 0;
}

template <typename F>
void ForEach(siov::QueueSet queues, std::size_t limit, F&& f) {
  for (std::uint32_t i = 0; i < limit; ++i) {
    if ((queues >> i & 1U) != 0) f(i);
  }
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options, EngineParts parts) {
  if (!Good(options) || !parts.runner) return Err(Errc::kInvalidArgument, "engine options");
  std::unique_ptr<Engine> engine(new Engine(options, std::move(parts)));
  std::array<std::byte, 2> start{};
  TRY(FillRandom(start));
  engine->next_handle_ =
      (std::to_integer<std::uint32_t>(start[0]) << 8 | std::to_integer<std::uint32_t>(start[1])) %
      kNames;
  TRY(engine->StartThreads());
  return engine;
}

Engine::Engine(EngineOptions options, EngineParts parts)
    : options_(std::move(options)), parts_(std::move(parts)) {
  caps_ = {.queues = options_.queues,
           .entries = options_.entries,
           .engines = options_.workers,
           .operations = options_.operations,
           .max_transfer = options_.max_transfer,
           .max_batch = options_.max_batch,
           .polled = parts_.polled != nullptr,
           .saves = true,
           .named_handles = options_.named_handles};
  shared_.poll = options_.poll;
  for (std::uint32_t i = 0; i < options_.queues; ++i)
    queues_.push_back(std::make_unique<WorkQueue>(i));
  for (std::uint32_t i = 0; i <= options_.workers; ++i)
    groups_.push_back(std::make_unique<WorkerGroup>());
}

Result<void> Engine::StartThreads() {
  for (std::uint32_t i = 0; i < options_.workers; ++i) {
    workers_.push_back(std::make_unique<Worker>(shared_, parts_.runner));
    TRY(workers_.back()->Start(fmt::format("{}-engine{}", options_.name, i), *groups_.back()));
  }
  return {};
}

Engine::~Engine() {
  Clear();
  shared_.ending.store(true, std::memory_order_release);
  shared_.gate.Open();
  for (const auto& group : groups_) group->door.RingAll();
  for (const auto& worker : workers_) worker->Join();
}

std::string Engine::Describe() const {
  return fmt::format("engine: software, {} worker thread{}", options_.workers,
                     options_.workers == 1 ? "" : "s");
}

void Engine::Attach(siov::BackendEvents& events) {
  shared_.events.store(&events, std::memory_order_release);
}

Result<bus::HostPages> Engine::OpenPortal(std::uint32_t queue, std::uint32_t page,
                                          siov::PortalMode mode) {
  if (mode != siov::PortalMode::kPolled || !caps_.polled)
    return Err(Errc::kUnsupported, "portal mode of the engine");
  if (queue >= queues_.size() || page >= kPolledPages)
    return Err(Errc::kInvalidArgument, "portal page");
  WorkQueue& to = *queues_[queue];
  if (to.size() >= kPageSlots)
    return Err(Errc::kBadState, "polled portal of a queue of 64 or more");
  if (!to.has_pages()) to.SetPages(TRY(parts_.polled(kPolledPages)));
  to.StartPolling();
  return to.host(page);
}

void Engine::StopPolling(std::uint32_t queue) {
  if (queue < queues_.size()) queues_[queue]->StopPolling();
}

siov::SubmitResult Engine::Submit(std::uint32_t queue, const siov::Descriptor& descriptor) {
  if (queue >= queues_.size()) return siov::SubmitResult::kDisabled;
  return queues_[queue]->Submit(descriptor);
}

Result<void> Engine::CheckDevice(const siov::DeviceConfig& config) const {
  siov::QueueSet seen = 0;
  std::uint64_t engines = 0;
  for (const siov::GroupConfig& group : config.groups) {
    const bool beyond = queues_.size() < siov::kMaxQueues && group.queues >> queues_.size() != 0;
    const bool half = (group.queues == 0) != (group.engines == 0);
    if (beyond || half || (seen & group.queues) != 0)
      return Err(Errc::kInvalidArgument, "queues of a group");
    seen |= group.queues;
    engines += group.engines;
  }
  if (engines > workers_.size()) return Err(Errc::kInvalidArgument, "engines of the groups");
  return {};
}

Result<void> Engine::CheckQueue(const siov::DeviceConfig& device, std::uint32_t queue,
                                const siov::QueueConfig& config) const {
  if (queue >= queues_.size()) return Err(Errc::kInvalidArgument, "queue number");
  const bool grouped =
      std::any_of(device.groups.begin(), device.groups.end(),
                  [queue](const auto& group) { return (group.queues >> queue & 1U) != 0; });
  if (!grouped) return Err(Errc::kInvalidArgument, "queue of no group");
  if (config.size == 0 || config.size > caps_.entries)
    return Err(Errc::kInvalidArgument, "queue size");
  if (config.max_transfer == 0 || config.max_transfer > caps_.max_transfer ||
      config.max_batch > caps_.max_batch || !siov::IsSubset(config.operations, caps_.operations)) {
    return Err(Errc::kInvalidArgument, "queue limits");
  }
  if (config.size >= kPageSlots && queues_[queue]->fed_by_pages())
    return Err(Errc::kInvalidArgument, "size of a polled queue");
  return {};
}

void Engine::Assign(const siov::DeviceConfig& config) {
  std::size_t next = 0;
  std::size_t place = 0;
  for (const siov::GroupConfig& group : config.groups) {
    if (group.engines == 0) continue;
    WorkerGroup& to = *groups_[place++];
    ForEach(group.queues, queues_.size(), [&](std::uint32_t i) {
      to.queues.push_back(queues_[i].get());
      queues_[i]->SetDoor(&to.door);
    });
    for (std::uint32_t i = 0; i < group.engines; ++i) workers_[next++]->SetGroup(to);
  }
  for (const auto& group : groups_) group->changes.fetch_add(1, std::memory_order_release);
  device_ = config;
  started_ = true;
}

void Engine::Unassign() {
  for (const auto& queue : queues_) queue->SetDoor(nullptr);
  for (const auto& worker : workers_) worker->SetGroup(*groups_.back());
  for (const auto& group : groups_) {
    group->queues.clear();
    group->changes.fetch_add(1, std::memory_order_release);
    group->door.RingAll();
  }
  device_ = {};
  started_ = false;
}

Result<void> Engine::Start(const siov::DeviceConfig& config) {
  if (started_) return Err(Errc::kBadState, "start of a started engine");
  TRY(CheckDevice(config));
  if (!quiesced_) shared_.gate.Shut({});
  Assign(config);
  groups_.back()->door.RingAll();
  if (!quiesced_) shared_.gate.Open();
  return {};
}

void Engine::Stop() {
  Clear();
  if (!quiesced_) shared_.gate.Open();
}

Result<void> Engine::Enable(std::uint32_t queue, const siov::QueueConfig& config) {
  if (!started_) return Err(Errc::kBadState, "enabling a queue of a stopped engine");
  TRY(CheckQueue(device_, queue, config));
  if (!queues_[queue]->idle()) return Err(Errc::kBadState, "enabling an enabled queue");
  std::uint64_t used = 0;
  for (const auto& other : queues_) used += other->size();
  if (used + config.size > caps_.entries) return Err(Errc::kExhausted, "queue entries");
  EnableQueue(queue, config, {});
  return {};
}

void Engine::EnableQueue(std::uint32_t queue, const siov::QueueConfig& config,
                         const std::vector<siov::Descriptor>& waiting) {
  queues_[queue]->Enable(config, waiting);
  for (const auto& group : groups_) {
    group->changes.fetch_add(1, std::memory_order_release);
    group->door.RingAll();
  }
}

void Engine::Halt(HaltKind kind, siov::QueueSet queues, siov::Done done) {
  const auto call = std::make_shared<HaltCall>();
  call->done = std::move(done);
  HaltCalls through;
  ForEach(queues, queues_.size(), [&](std::uint32_t i) { queues_[i]->Halt(kind, call, through); });
  if (shared_.gate.anyone_on_hold()) shared_.gate.Notify();
  for (const HaltCallPtr& one : through) FinishOne(one);
  FinishOne(call);
}

void Engine::Drain(siov::QueueSet queues, siov::Done done) {
  Halt(HaltKind::kDrain, queues, std::move(done));
}

void Engine::Disable(siov::QueueSet queues, siov::Done done) {
  Halt(HaltKind::kDisable, queues, std::move(done));
}

void Engine::Abort(siov::QueueSet queues, siov::Done done) {
  Halt(HaltKind::kAbort, queues, std::move(done));
}

void Engine::Clear() {
  for (const auto& queue : queues_) queue->Void();
  shared_.gate.ShutOut();
  Unassign();
}

void Engine::Reset() {
  Clear();
  handles_.clear();
  if (!quiesced_) shared_.gate.Open();
}

Result<std::uint32_t> Engine::OpenHandle(std::uint16_t vector) {
  const std::uint32_t vectors = options_.vectors != 0 ? options_.vectors : options_.queues + 1;
  if (vector >= vectors) return Err(Errc::kInvalidArgument, "interrupt vector");
  if (!options_.named_handles) {
    handles_.insert(vector);
    return vector;
  }
  if (handles_.size() >= vectors) return Err(Errc::kExhausted, "interrupt handles");
  std::uint32_t handle = 0;
  do {
    handle = kFirstName + next_handle_;
    next_handle_ = (next_handle_ + 1) % kNames;
  } while (!handles_.insert(handle).second);
  return handle;
}

void Engine::CloseHandle(std::uint32_t handle) {
  handles_.erase(handle);
}

void Engine::SetVector(std::uint16_t vector, const EventFd* trigger) {
  (void)vector;  // SignalHandle is how an engine interrupts
  (void)trigger;
}

std::uint32_t Engine::Occupancy(std::uint32_t queue) const {
  return queue < queues_.size() ? queues_[queue]->Occupancy() : 0;
}

void Engine::Quiesce() {
  if (std::exchange(quiesced_, true)) return;
  shared_.gate.Shut(options_.quiesce_grace);
}

void Engine::Resume() {
  if (!std::exchange(quiesced_, false)) return;
  shared_.gate.Open();
}

void Engine::ReportCounters(CounterSink& sink) const {
  for (const auto& queue : queues_) queue->ReportCounters(sink);
}

}  // namespace postern::dsa
