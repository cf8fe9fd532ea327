#include "devices/virtio/single_loop_device.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::virtio {

SingleLoopDevice::~SingleLoopDevice() {
  for (const auto& queue : resources_.queues) {
    if (queue != nullptr) loop_.Unwatch(queue->kick->fd());
  }
}

void SingleLoopDevice::Activate(Resources resources) {
  CHECK(!active_);
  resources_ = std::move(resources);
  active_ = true;
  broken_ = false;
  OnActivate();
  for (const auto& queue : resources_.queues) {
    if (queue != nullptr) Start(*queue);
  }
}

void SingleLoopDevice::Start(ActiveQueue& queue) {
  // Edge-triggered: each kick is one event, and the eventfd need not be read.
  const Result<void> watched = loop_.Watch(queue.kick->fd(), EPOLLIN | EPOLLET, *this);
  if (!watched) return Broken(watched.error());
  // A queue that was running before (a restore) may owe the driver an interrupt.
  if (queue.queue.state().next_used != 0) queue.queue.NotifyAlways();
  // What the driver published before this moment was kicked for at nobody.
  Pump(queue.index);
}

Resources SingleLoopDevice::Reset() {
  if (!active_) return {};
  for (const auto& queue : resources_.queues) {
    if (queue != nullptr) loop_.Unwatch(queue->kick->fd());
  }
  OnDeactivate();
  active_ = false;
  return std::exchange(resources_, {});
}

std::unique_ptr<ActiveQueue> SingleLoopDevice::ResetQueue(std::uint16_t index) {
  if (!queue_enabled(index)) return nullptr;
  loop_.Unwatch(resources_.queues[index]->kick->fd());
  OnQueueReset(index);
  return std::move(resources_.queues[index]);
}

void SingleLoopDevice::ResumeQueue(std::unique_ptr<ActiveQueue> queue) {
  const std::uint16_t index = queue->index;
  CHECK(active_ && index < resources_.queues.size() && resources_.queues[index] == nullptr);
  resources_.queues[index] = std::move(queue);
  Start(*resources_.queues[index]);
}

void SingleLoopDevice::ReportCounters(CounterSink& sink) const {
  sink.Add("kicks", kicks_.Get());
  sink.Add("chains", chains_.Get());
  sink.Add("protocol_errors", protocol_errors_.Get());
}

void SingleLoopDevice::OnEvent(int fd, std::uint32_t /*events*/) {
  for (const auto& queue : resources_.queues) {
    if (queue == nullptr || queue->kick->fd() != fd) continue;
    kicks_.Add();
    return Pump(queue->index);
  }
}

void SingleLoopDevice::Pump(std::uint16_t index) {
  if (broken_ || !queue_enabled(index)) return;
  PopAll(index);
  if (!broken_) OnPumped(index);
}

void SingleLoopDevice::PopAll(std::uint16_t index) {
  ActiveQueue& active = *resources_.queues[index];
  // A driver that refills the ring as fast as it is emptied must not keep the loop from its other
  // work: after one ring's worth the rest waits for its turn.
  std::uint32_t budget = std::max<std::uint32_t>(active.queue.size(), 64);
  active.queue.DisableKicks();
  while (WantsChain(index)) {
    if (budget-- == 0) {
      active.queue.NotifyIfNeeded();
      return active.kick->Signal();
    }
    Result<std::optional<Chain>> next = active.queue.Pop();
    if (!next) {
      active.queue.NotifyIfNeeded();
      return Broken(next.error());
    }
    if (*next) {
      chains_.Add();
      OnChain(index, std::move(**next));
      if (broken_) return;
      continue;
    }
    active.queue.NotifyIfNeeded();
    if (!active.queue.EnableKicks()) return;
    active.queue.DisableKicks();
  }
  active.queue.NotifyIfNeeded();
}

void SingleLoopDevice::Notify(std::uint16_t index) {
  if (queue_enabled(index)) resources_.queues[index]->queue.NotifyIfNeeded();
}

void SingleLoopDevice::Broken(const Error& error) {
  protocol_errors_.Add();
  GUEST_LOG("virtio", "{}: {}; the device stops until it is reset", name_, Describe(error));
  if (broken_ || !active_) return;
  broken_ = true;
  resources_.interrupt->NeedsReset();
}

bool SingleLoopDevice::queue_enabled(std::uint16_t index) const {
  return active_ && index < resources_.queues.size() && resources_.queues[index] != nullptr;
}

Queue& SingleLoopDevice::queue(std::uint16_t index) {
  CHECK(queue_enabled(index));
  return resources_.queues[index]->queue;
}

}  // namespace postern::virtio
