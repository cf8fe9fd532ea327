#include "tests/support/device_rig.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <utility>

#include "src/base/check.h"
#include "tests/support/counter.h"
#include "tests/support/memory.h"

namespace postern::testing {

DeviceRig::DeviceRig(virtio::Device& device, const Options& options)
    : device_(device), options_(options) {
  const auto sizes = device_.queue_sizes();
  // Rings of the largest queue take less than 27 bytes an entry.
  std::uint64_t needed = 0x1000;
  for (const std::uint16_t max_size : sizes) {
    const std::uint64_t size = options_.queue_size == 0 ? max_size : options_.queue_size;
    needed += 27 * size + 3UL * 4096 + options_.arena_size;
  }
  needed = (std::max(needed, options_.memory_size) + 4095) / 4096 * 4096;
  memory_ = MakeMemory(needed, options_.track_dirty);
  std::uint64_t base = 0x1000;
  for (const std::uint16_t max_size : sizes) {
    drivers_.push_back(std::make_unique<DriverQueue>(
        memory_,
        DriverQueue::Options{.base = base,
                             .size = options_.queue_size == 0 ? max_size : options_.queue_size,
                             .event_idx = options_.event_idx,
                             .arena_size = options_.arena_size}));
    base = (drivers_.back()->end() + 4095) / 4096 * 4096;
    kicks_.push_back(EventFd::Create().value());
  }
  parked_.resize(sizes.size());
  if (!options_.threaded) return;
  thread_ = std::thread([this] { device_.loop().Run(); });
  // RunSync runs on the caller's thread while the loop does not run: wait until it does.
  auto running = std::make_shared<std::atomic<bool>>(false);
  device_.loop().Post([running] { running->store(true); });
  while (!running->load()) std::this_thread::yield();
}

DeviceRig::~DeviceRig() {
  Reset();
  if (thread_.joinable()) {
    device_.loop().Stop();
    thread_.join();
  }
}

std::uint64_t DeviceRig::negotiated() const {
  std::uint64_t ring = virtio::kFeatureVersion1 | virtio::kFeatureRingReset;
  if (options_.event_idx) ring |= virtio::kFeatureEventIdx;
  if (options_.indirect_desc) ring |= virtio::kFeatureIndirectDesc;
  return (device_.features() & options_.features) | ring;
}

std::unique_ptr<virtio::ActiveQueue> DeviceRig::Enable(std::uint16_t index, virtio::Queue queue) {
  CHECK(queue.Activate(memory_, options_.indirect_desc, [this, index] { interrupt_.Queue(index); })
            .has_value());
  return std::make_unique<virtio::ActiveQueue>(
      virtio::ActiveQueue{index, std::move(queue), &kicks_[index]});
}

void DeviceRig::ActivateQueues(std::vector<std::unique_ptr<virtio::ActiveQueue>> queues) {
  virtio::Resources resources;
  resources.memory = memory_;
  resources.features = negotiated();
  resources.queues = std::move(queues);
  resources.interrupt = &interrupt_;
  device_.loop().RunSync([&] { device_.Activate(std::move(resources)); });
}

void DeviceRig::Activate(const std::vector<bool>& enabled) {
  std::vector<std::unique_ptr<virtio::ActiveQueue>> queues;
  for (std::size_t i = 0; i < drivers_.size(); ++i) {
    drivers_[i]->Restart();
    if (!enabled.empty() && !enabled[i]) {
      queues.push_back(nullptr);
      continue;
    }
    virtio::Queue queue = virtio::Queue::Create(device_.queue_sizes()[i]).value();
    drivers_[i]->Configure(queue);
    queues.push_back(Enable(static_cast<std::uint16_t>(i), std::move(queue)));
  }
  ActivateQueues(std::move(queues));
}

void DeviceRig::ActivateFrom(const std::vector<virtio::QueueState>& states) {
  std::vector<std::unique_ptr<virtio::ActiveQueue>> queues;
  for (std::size_t i = 0; i < states.size(); ++i) {
    queues.push_back(
        Enable(static_cast<std::uint16_t>(i), virtio::Queue::FromState(states[i]).value()));
  }
  ActivateQueues(std::move(queues));
}

std::vector<virtio::QueueState> DeviceRig::Reset() {
  std::vector<virtio::QueueState> states;
  device_.loop().RunSync([&] {
    const virtio::Resources resources = device_.Reset();
    for (const auto& queue : resources.queues) {
      if (queue == nullptr) continue;
      CHECK(queue->queue.in_flight() == 0);
      CHECK(queue->queue.dropped() == 0);
      states.push_back(queue->queue.state());
    }
  });
  for (auto& queue : parked_) queue.reset();
  return states;
}

void DeviceRig::ResetQueue(std::uint16_t index) {
  device_.loop().RunSync([&] { parked_[index] = device_.ResetQueue(index); });
  if (parked_[index] != nullptr) CHECK(parked_[index]->queue.in_flight() == 0);
}

void DeviceRig::ResumeQueue(std::uint16_t index) {
  drivers_[index]->Restart();
  virtio::Queue queue = virtio::Queue::Create(device_.queue_sizes()[index]).value();
  drivers_[index]->Configure(queue);
  auto active = Enable(index, std::move(queue));
  device_.loop().RunSync([&] { device_.ResumeQueue(std::move(active)); });
}

void DeviceRig::Kick(std::uint16_t index) {
  kicks_[index].Signal();
  if (!options_.threaded) Run();
}

void DeviceRig::Run(int timeout_ms) {
  device_.loop().RunOnce(timeout_ms);
}

std::optional<DriverQueue::Used> DeviceRig::WaitUsed(std::uint16_t index) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (std::chrono::steady_clock::now() < deadline) {
    if (std::optional<DriverQueue::Used> used = drivers_[index]->TakeUsed()) return used;
    if (options_.threaded) {
      std::this_thread::yield();
    } else {
      Run(10);
    }
  }
  return std::nullopt;
}

std::uint64_t DeviceRig::counter(std::string_view name) const {
  const std::uint64_t value = ReportedCounter(device_, name);
  CHECK(value != ~std::uint64_t{0});
  return value;
}

std::vector<std::byte> DeviceRig::Config() {
  std::vector<std::byte> bytes(device_.config_size());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    device_.ReadConfig(i, std::span(bytes).subspan(i, 1));
  }
  return bytes;
}

}  // namespace postern::testing
