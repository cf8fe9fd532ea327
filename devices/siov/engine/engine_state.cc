// Engine: its saved state, and the checks of a state that comes from elsewhere.

#include <utility>

#include "devices/siov/engine/engine.h"

namespace postern::dsa {
namespace {

constexpr std::uint32_t kVersion = 1;

Unexpected Malformed(const char* what) {
  return Err(Errc::kBadFormat, what);
}

}  // namespace

Result<siov::BackendState> Engine::Save() {
  if (!quiesced_) return Err(Errc::kBadState, "saving an engine that runs");
  siov::BackendState state{.version = kVersion, .started = started_, .device = device_};
  for (const auto& queue : queues_) {
    std::optional<siov::QueueState> one = queue->Save();
    if (!one) return Err(Errc::kBadState, "saving an engine in the middle of a descriptor");
    state.queues.push_back(*std::move(one));
  }
  return state;
}

Result<void> Engine::CheckQueueState(const siov::DeviceConfig& device, std::uint32_t queue,
                                     const siov::QueueState& state) const {
  if (!state.enabled) {
    if (!state.waiting.empty()) return Malformed("descriptors of a disabled queue");
    return {};
  }
  if (!CheckQueue(device, queue, state.config)) return Malformed("configuration of a queue");
  if (state.waiting.size() > WorkQueue::MaxWaiting(state.config.size))
    return Malformed("descriptors of a queue");
  return {};
}

Result<void> Engine::CheckState(const siov::BackendState& state) const {
  if (state.version != kVersion) return Malformed("version of an engine's state");
  if (state.queues.size() != queues_.size()) return Malformed("number of queues");
  if (!state.started && !state.device.groups.empty())
    return Malformed("groups of a stopped engine");
  if (!CheckDevice(state.device)) return Malformed("groups of queues");
  std::uint64_t entries = 0;
  for (std::uint32_t i = 0; i < state.queues.size(); ++i) {
    TRY(CheckQueueState(state.device, i, state.queues[i]));
    if (state.queues[i].enabled) entries += state.queues[i].config.size;
  }
  if (entries > caps_.entries) return Malformed("queue entries");
  return {};
}

Result<void> Engine::Restore(const siov::BackendState& state) {
  if (!quiesced_) return Err(Errc::kBadState, "restoring an engine that runs");
  TRY(CheckState(state));
  Clear();
  if (!state.started) return {};
  Assign(state.device);
  for (std::uint32_t i = 0; i < state.queues.size(); ++i) {
    const siov::QueueState& queue = state.queues[i];
    if (queue.enabled) EnableQueue(i, queue.config, queue.waiting);
  }
  return {};
}

}  // namespace postern::dsa
