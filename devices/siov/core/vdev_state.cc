// Vdev: quiesce, resume and saved state.

#include <algorithm>
#include <utility>

#include "devices/siov/core/vdev.h"

namespace postern::siov {

void Vdev::Quiesce() {
  quiesced_ = true;
  backend_->Quiesce();
  // Nothing more comes from its threads: what they said is part of the state.
  events_.RunPending();
}

void Vdev::Resume() {
  if (std::exchange(quiesced_, false)) backend_->Resume();
}

Result<VdevState> Vdev::Save() {
  if (!quiesced_) return Err(Errc::kBadState, "save a virtual device that runs");
  VdevState state;
  state.backend = TRY(backend_->Save());
  // Descriptors that were still in polled pages may have been refused.
  events_.RunPending();
  state.function = SaveFunction();
  state.registers = registers_->Save();
  state.personality = personality_->Save();
  if (backend_->caps().named_handles) state.handles = handles_.List();
  state.partial_slots = portals_->Save();
  state.rule_broken = rule_broken_;
  return state;
}

Result<void> Vdev::Restore(const VdevState& state) {
  const bool running = !quiesced_;
  if (running) Quiesce();
  Reset();
  Result<void> restored = RestoreParts(state);
  if (!restored) Reset();
  if (running) Resume();
  return restored;
}

Result<void> Vdev::RestoreParts(const VdevState& state) {
  if (state.version != 1) return Err(Errc::kBadFormat, "version of a virtual device's state");
  const bool named = backend_->caps().named_handles;
  const bool ascending =
      std::ranges::adjacent_find(state.handles, std::greater_equal<>()) == state.handles.end();
  if (!ascending || state.handles.size() > (named ? handles_.capacity() : 0))
    return Err(Errc::kBadFormat, "interrupt handles of a virtual device's state");
  TRY(RestoreFunction(state.function));
  bus_master_ = BusMaster();
  TRY(registers_->Load(state.registers));
  TRY(RestorePortals(state));
  TRY(backend_->Restore(state.backend));
  TRY(personality_->Restore(state.personality));
  // What the backend of before named is no name here.
  if (named) personality_->OnHandlesRevoked();
  return {};
}

Result<void> Vdev::RestorePortals(const VdevState& state) {
  const std::uint32_t queues = personality_->layout().queues;
  if (queues < kMaxQueues && state.rule_broken >> queues != 0)
    return Err(Errc::kBadFormat, "queues of a virtual device's state");
  TRY(portals_->Restore(state.partial_slots));
  // The rest of a partial slot comes by exits, and a driver that broke the rule breaks it again.
  QueueSet trapped = state.rule_broken;
  for (const PartialSlot& slot : state.partial_slots) trapped |= QueueSet{1} << slot.queue;
  for (std::uint32_t q = 0; q < queues; ++q) {
    if ((trapped >> q & 1) != 0 && portals_->mode(q) == PortalMode::kPolled) TRY(TrapPortal(q));
  }
  rule_broken_ |= state.rule_broken;
  return {};
}

}  // namespace postern::siov
