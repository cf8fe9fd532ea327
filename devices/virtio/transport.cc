#include "devices/virtio/transport.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::virtio {
namespace {

constexpr std::uint8_t kDriverSteps =
    kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk;
constexpr std::uint8_t kKnownBits = kDriverSteps | kStatusNeedsReset | kStatusFailed;
constexpr std::uint64_t kTransportFeatures =
    kFeatureVersion1 | kFeatureRingReset | kFeatureIndirectDesc | kFeatureEventIdx;

bool SizeFits(std::uint32_t size, std::uint16_t max_size) {
  return std::has_single_bit(size) && size <= max_size;
}

// 2.7, table of alignments: descriptor table 16, available ring 2, used ring 4.
std::uint64_t Alignment(Transport::Ring ring) {
  switch (ring) {
    case Transport::Ring::kDescriptors:
      return 16;
    case Transport::Ring::kDriver:
      return 2;
    case Transport::Ring::kDevice:
      return 4;
  }
  return 1;
}

QueueState FreshQueue(std::uint16_t max_size) {
  QueueState state;
  state.max_size = max_size;
  state.size = max_size;  // 4.1.4.3: on reset the maximum
  return state;
}

bool IsFresh(const QueueState& state) {
  return !state.ready && state.size == state.max_size && state.desc_table == 0 &&
         state.avail_ring == 0 && state.used_ring == 0 && state.next_avail == 0 &&
         state.next_used == 0;
}

bool IsReachable(std::uint8_t status) {
  if ((status & ~kKnownBits) != 0) return false;
  // NEEDS_RESET is told to a running driver only (2.1.2).
  if ((status & kStatusNeedsReset) != 0 && (status & kStatusDriverOk) == 0) return false;
  switch (status & kDriverSteps) {
    case 0:
    case kStatusAcknowledge:
    case kStatusAcknowledge | kStatusDriver:
    case kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk:
    case kDriverSteps:
      return true;
    default:
      return false;
  }
}

}  // namespace

StatusStep Classify(std::uint8_t status, std::uint8_t written) {
  if (written == 0) return StatusStep::kReset;
  if (written == status) return StatusStep::kNothing;
  if ((status & kStatusFailed) != 0 || (written & ~kKnownBits) != 0) return StatusStep::kIllegal;
  if ((written & kStatusFailed) != 0) return StatusStep::kFail;
  // 2.1.1: the driver must not clear a bit. NEEDS_RESET is the device's: it may have come after the
  // driver read the status.
  if ((status & ~written & kDriverSteps) != 0) return StatusStep::kIllegal;
  if ((written & ~status & kStatusNeedsReset) != 0) return StatusStep::kIllegal;
  const auto added = static_cast<std::uint8_t>(written & ~status);
  if (added == 0) return StatusStep::kNothing;
  if ((status & kStatusNeedsReset) != 0) return StatusStep::kIllegal;
  // 3.1.1: ACKNOWLEDGE, DRIVER, features, FEATURES_OK, queues, DRIVER_OK.
  switch (status) {
    case 0:
      return added == kStatusAcknowledge || added == (kStatusAcknowledge | kStatusDriver)
                 ? StatusStep::kAdvance
                 : StatusStep::kIllegal;
    case kStatusAcknowledge:
      return added == kStatusDriver ? StatusStep::kAdvance : StatusStep::kIllegal;
    case kStatusAcknowledge | kStatusDriver:
      return added == kStatusFeaturesOk ? StatusStep::kAdvance : StatusStep::kIllegal;
    case kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk:
      return added == kStatusDriverOk ? StatusStep::kAdvance : StatusStep::kIllegal;
    default:
      return StatusStep::kIllegal;
  }
}

Result<std::unique_ptr<Transport>> Transport::Create(Device& device,
                                                     const memory::MemoryMap& memory,
                                                     InterruptFace& face,
                                                     std::uint16_t max_queues) {
  const std::span<const std::uint16_t> sizes = device.queue_sizes();
  if (sizes.empty() || sizes.size() > max_queues)
    return Err(Errc::kInvalidArgument, "virtio queue count");
  std::unique_ptr<Transport> transport(new Transport(device, memory, face));
  for (const std::uint16_t size : sizes) {
    if (!SizeFits(size, 32768)) return Err(Errc::kInvalidArgument, "virtio queue size");
    transport->queues_.push_back({FreshQueue(size), TRY(EventFd::Create())});
  }
  return transport;
}

Transport::Transport(Device& device, const memory::MemoryMap& memory, InterruptFace& face)
    : device_(device),
      memory_(memory),
      face_(face),
      offered_(device.features() | kTransportFeatures) {
  state_.device_id = static_cast<std::uint32_t>(device.id());
}

Transport::~Transport() {
  Deactivate();
}

bool Transport::Refuse() {
  refused_.Add();
  return false;
}

// --- features ---

std::uint32_t Transport::DeviceFeatures() const {
  return state_.device_features_select > 1
             ? 0
             : static_cast<std::uint32_t>(offered_ >> (32 * state_.device_features_select));
}

std::uint32_t Transport::DriverFeatures() const {
  const std::uint32_t select = state_.driver_features_select;
  return select > 1 ? 0 : static_cast<std::uint32_t>(state_.driver_features >> (32 * select));
}

void Transport::WriteDriverFeatures(std::uint32_t value) {
  const std::uint8_t now = status();
  const bool negotiating =
      (now & kStatusDriver) != 0 && (now & (kStatusFeaturesOk | kStatusFailed)) == 0;
  const std::uint32_t select = state_.driver_features_select;
  // Bits from 64 on are offered by nobody: a driver that knows them writes 0.
  if (!negotiating || (select > 1 && value != 0)) {
    Refuse();
    return;
  }
  if (select > 1) return;
  const std::uint64_t mask = std::uint64_t{0xffffffff} << (32 * select);
  state_.driver_features = (state_.driver_features & ~mask) | std::uint64_t{value} << (32 * select);
}

// --- status ---

void Transport::WriteStatus(std::uint8_t value) {
  const std::uint8_t now = status();
  switch (Classify(now, value)) {
    case StatusStep::kNothing:
      return;
    case StatusStep::kReset:
      resets_.Add();
      Reset();
      return;
    case StatusStep::kFail:
      status_.fetch_or(kStatusFailed, std::memory_order_acq_rel);
      GUEST_LOG("virtio", "device {}: the driver gave up (FAILED)", state_.device_id);
      return;
    case StatusStep::kIllegal:
      Refuse();
      GUEST_LOG("virtio", "device {}: status {:#x} after {:#x} ignored", state_.device_id, value,
                now);
      return;
    case StatusStep::kAdvance:
      Advance(static_cast<std::uint8_t>(value & ~now));
      return;
  }
}

void Transport::Advance(std::uint8_t bits) {
  // 2.2.2 and 6.1: what was not offered, or a driver without VERSION_1, is refused by leaving
  // FEATURES_OK clear.
  const std::uint64_t features = state_.driver_features;
  if (bits == kStatusFeaturesOk &&
      ((features & ~offered_) != 0 || (features & kFeatureVersion1) == 0)) {
    Refuse();
    GUEST_LOG("virtio", "device {}: features {:#x} refused, offered {:#x}", state_.device_id,
              features, offered_);
    return;
  }
  // DRIVER_OK first: a device that fails at once must find a driver that may be told.
  status_.fetch_or(bits, std::memory_order_acq_rel);
  if (bits == kStatusDriverOk) ActivateOrBreak();
}

void Transport::ActivateOrBreak() {
  Result<void> activated = Activate();
  if (activated) return;
  activation_failures_.Add();
  GUEST_LOG("virtio", "device {}: cannot be activated: {}", state_.device_id,
            Describe(activated.error()));
  NeedsReset();
}

Result<std::unique_ptr<ActiveQueue>> Transport::MakeQueue(std::uint16_t index,
                                                          const memory::GuestMemoryPtr& memory) {
  QueueSlot& slot = queues_[index];
  QueueState state = slot.config;
  state.event_idx_enabled = (state_.driver_features & kFeatureEventIdx) != 0;
  auto active =
      std::make_unique<ActiveQueue>(ActiveQueue{index, TRY(Queue::FromState(state)), &slot.kick});
  TRY(active->queue.Activate(memory, (state_.driver_features & kFeatureIndirectDesc) != 0,
                             [this, index] { Queue(index); }));
  return active;
}

Result<void> Transport::Activate() {
  Resources resources;
  resources.memory = memory_.Snapshot();
  resources.features = state_.driver_features;
  resources.interrupt = this;
  for (std::uint16_t i = 0; i < queue_count(); ++i) {
    resources.queues.push_back(queues_[i].config.ready ? TRY(MakeQueue(i, resources.memory))
                                                       : nullptr);
  }
  for (std::size_t i = 0; i < queues_.size(); ++i) queues_[i].active = resources.queues[i].get();
  state_.activated = true;
  activations_.Add();
  device_.loop().RunSync([&] { device_.Activate(std::move(resources)); });
  return {};
}

void Transport::Deactivate() {
  if (!std::exchange(state_.activated, false)) return;
  device_.loop().RunSync([&] { const Resources given_back = device_.Reset(); });
  for (QueueSlot& slot : queues_) slot.active = nullptr;
}

void Transport::Reset() {
  Deactivate();
  for (QueueSlot& slot : queues_) {
    slot.config = FreshQueue(slot.config.max_size);
    slot.kick.Consume();
  }
  state_.driver_features = 0;
  state_.device_features_select = 0;
  state_.driver_features_select = 0;
  state_.queue_select = 0;
  interrupt_status_.store(0, std::memory_order_release);
  // Last: a driver that reads 0 knows that the device is at rest (2.4.2).
  status_.store(0, std::memory_order_release);
}

// --- queues ---

const QueueState* Transport::Selected() const {
  return state_.queue_select < queues_.size() ? &queues_[state_.queue_select].config : nullptr;
}

Transport::QueueSlot* Transport::SelectedSlot() {
  return state_.queue_select < queues_.size() ? &queues_[state_.queue_select] : nullptr;
}

bool Transport::Configurable(const QueueSlot& slot) const {
  const std::uint8_t now = status();
  if (slot.config.ready || (now & kStatusFeaturesOk) == 0 || (now & kStatusFailed) != 0)
    return false;
  if ((now & kStatusDriverOk) == 0) return true;
  return state_.activated && (state_.driver_features & kFeatureRingReset) != 0;
}

bool Transport::SetQueueSize(std::uint32_t size) {
  QueueSlot* slot = SelectedSlot();
  if (slot == nullptr || !Configurable(*slot) || !SizeFits(size, slot->config.max_size))
    return Refuse();
  slot->config.size = static_cast<std::uint16_t>(size);
  return true;
}

bool Transport::SetRing(Ring ring, std::uint64_t address) {
  QueueSlot* slot = SelectedSlot();
  if (slot == nullptr || !Configurable(*slot) || address % Alignment(ring) != 0) return Refuse();
  switch (ring) {
    case Ring::kDescriptors:
      slot->config.desc_table = address;
      break;
    case Ring::kDriver:
      slot->config.avail_ring = address;
      break;
    case Ring::kDevice:
      slot->config.used_ring = address;
      break;
  }
  return true;
}

bool Transport::EnableQueue() {
  QueueSlot* slot = SelectedSlot();
  if (slot == nullptr || !Configurable(*slot)) return Refuse();
  slot->config.ready = true;
  if (!state_.activated) return true;
  auto queue = MakeQueue(static_cast<std::uint16_t>(state_.queue_select), memory_.Snapshot());
  if (!queue) {
    activation_failures_.Add();
    GUEST_LOG("virtio", "device {}: queue {} cannot be enabled: {}", state_.device_id,
              state_.queue_select, Describe(queue.error()));
    NeedsReset();
    return true;
  }
  slot->active = queue->get();
  device_.loop().RunSync([&] { device_.ResumeQueue(std::move(*queue)); });
  return true;
}

bool Transport::DisableQueue() {
  QueueSlot* slot = SelectedSlot();
  if (slot == nullptr) return Refuse();
  if (!slot->config.ready) return true;
  if ((status() & kStatusDriverOk) != 0) return Refuse();
  slot->config.ready = false;
  return true;
}

bool Transport::ResetQueue() {
  QueueSlot* slot = SelectedSlot();
  const std::uint8_t now = status();
  const bool negotiated =
      (now & kStatusFeaturesOk) != 0 && (state_.driver_features & kFeatureRingReset) != 0;
  if (slot == nullptr || !negotiated || (now & kStatusFailed) != 0 || !slot->config.ready)
    return Refuse();
  if (slot->active != nullptr) {
    const auto index = static_cast<std::uint16_t>(state_.queue_select);
    slot->active = nullptr;
    device_.loop().RunSync([&] { const auto given_back = device_.ResetQueue(index); });
  }
  slot->config = FreshQueue(slot->config.max_size);
  slot->kick.Consume();
  return true;
}

bool Transport::Kick(std::uint32_t index) {
  if (index >= queues_.size()) return Refuse();
  kicks_trapped_.Add();
  queues_[index].kick.Signal();
  return true;
}

// --- configuration ---

void Transport::ReadConfig(std::uint64_t offset, std::span<std::byte> data) {
  device_.ReadConfig(offset, data);
}

void Transport::WriteConfig(std::uint64_t offset, std::span<const std::byte> data) {
  const std::uint8_t now = status();
  if ((now & kStatusDriver) == 0 || (now & kStatusFailed) != 0) {
    Refuse();
    return;
  }
  device_.WriteConfig(offset, data);
}

// --- interrupts: no lock here, see the header ---

void Transport::AckInterrupt(std::uint8_t bits) {
  interrupt_status_.fetch_and(static_cast<std::uint8_t>(~bits), std::memory_order_acq_rel);
}

void Transport::Queue(std::uint16_t index) {
  interrupts_.Add();
  if (record_queue_interrupts_.load(std::memory_order_acquire)) {
    interrupt_status_.fetch_or(kInterruptQueue, std::memory_order_acq_rel);
  }
  face_.SendQueue(index);
}

void Transport::Config() {
  config_changes_.Add();
  generation_.fetch_add(1, std::memory_order_acq_rel);
  interrupt_status_.fetch_or(kInterruptConfig, std::memory_order_acq_rel);
  face_.SendConfig();
}

void Transport::NeedsReset() {
  needs_reset_.Add();
  const std::uint8_t before = status_.fetch_or(kStatusNeedsReset, std::memory_order_acq_rel);
  // 2.1.2: only a driver that set DRIVER_OK is notified.
  if ((before & kStatusDriverOk) == 0) return;
  interrupt_status_.fetch_or(kInterruptConfig, std::memory_order_acq_rel);
  face_.SendConfig();
}

// --- saved state ---

TransportState Transport::Save() const {
  TransportState state = state_;
  state.device_status = status();
  state.interrupt_status = interrupt_status();
  state.config_generation = config_generation();
  for (const QueueSlot& slot : queues_) state.queues.push_back(slot.config);
  if (!state_.activated) return state;
  // The positions move on the loop thread.
  device_.loop().RunSync([&] {
    for (std::size_t i = 0; i < queues_.size(); ++i) {
      if (queues_[i].active != nullptr) state.queues[i] = queues_[i].active->queue.state();
    }
  });
  return state;
}

Result<void> Transport::Check(const TransportState& state) const {
  const std::uint8_t now = state.device_status;
  const bool features_ok = (now & kStatusFeaturesOk) != 0;
  const bool driver_ok = (now & kStatusDriverOk) != 0;
  if (state.device_id != static_cast<std::uint32_t>(device_.id()))
    return Err(Errc::kBadFormat, "virtio state of another device");
  if (state.queues.size() != queues_.size())
    return Err(Errc::kBadFormat, "virtio state: queue count");
  if (!IsReachable(now)) return Err(Errc::kBadFormat, "virtio state: status");
  if ((state.interrupt_status & ~(kInterruptQueue | kInterruptConfig)) != 0) {
    return Err(Errc::kBadFormat, "virtio state: interrupt status");
  }
  // Before FEATURES_OK a driver may have written anything; it was not accepted yet.
  const bool features_fit =
      (state.driver_features & ~offered_) == 0 && (state.driver_features & kFeatureVersion1) != 0;
  if (features_ok ? !features_fit : (now & kStatusDriver) == 0 && state.driver_features != 0) {
    return Err(Errc::kBadFormat, "virtio state: features");
  }
  // A driver at DRIVER_OK has a running device, or one that failed to start.
  if (state.activated ? !driver_ok : driver_ok && (now & kStatusNeedsReset) == 0) {
    return Err(Errc::kBadFormat, "virtio state: activation");
  }
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    const QueueState& queue = state.queues[i];
    const bool fits =
        queue.max_size == queues_[i].config.max_size && SizeFits(queue.size, queue.max_size) &&
        queue.desc_table % Alignment(Ring::kDescriptors) == 0 &&
        queue.avail_ring % Alignment(Ring::kDriver) == 0 &&
        queue.used_ring % Alignment(Ring::kDevice) == 0 && (features_ok || IsFresh(queue)) &&
        (queue.ready || (queue.next_avail == 0 && queue.next_used == 0));
    if (!fits) return Err(Errc::kBadFormat, "virtio state: queue");
  }
  return {};
}

Result<void> Transport::Restore(const TransportState& state) {
  Reset();
  TRY(Check(state));
  for (std::size_t i = 0; i < queues_.size(); ++i) queues_[i].config = state.queues[i];
  state_ = state;
  state_.queues.clear();
  state_.activated = false;
  generation_.store(state.config_generation, std::memory_order_release);
  interrupt_status_.store(state.interrupt_status, std::memory_order_release);
  status_.store(state.device_status, std::memory_order_release);
  // A device that waits for its reset waits for it idle: what broke it is not tried again.
  if (!state.activated || (state.device_status & kStatusNeedsReset) != 0) return {};
  if (Result<void> activated = Activate(); !activated) {
    Reset();
    return Err(Errc::kBadFormat, "virtio state: queue cannot be activated");
  }
  return {};
}

void Transport::ReportCounters(CounterSink& sink) const {
  sink.Add("virtio_refused", refused_.Get());
  sink.Add("virtio_resets", resets_.Get());
  sink.Add("virtio_activations", activations_.Get());
  sink.Add("virtio_activation_failures", activation_failures_.Get());
  sink.Add("virtio_kicks_trapped", kicks_trapped_.Get());
  sink.Add("virtio_interrupts", interrupts_.Get());
  sink.Add("virtio_config_changes", config_changes_.Get());
  sink.Add("virtio_needs_reset", needs_reset_.Get());
}

}  // namespace postern::virtio
