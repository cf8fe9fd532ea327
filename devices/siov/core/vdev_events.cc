// Vdev: what the backend tells, and what becomes of it.

#include <utility>

#include "devices/siov/core/vdev.h"
#include "src/base/log.h"

namespace postern::siov {

bool Vdev::IsHandle(std::uint32_t handle) const {
  return handles_.IsHandle(handle);
}

void Vdev::SignalHandle(std::uint32_t handle) {
  if (const std::optional<std::uint16_t> vector = handles_.VectorOf(handle)) {
    msix()->Trigger(*vector);
  } else {
    unknown_handles_.Add();
  }
}

void Vdev::OnError(const ErrorRecord& record) {
  events_.Post(PostedEvents::kReport, events_.generation(),
               [this, record] { personality_->OnError(record); });
}

void Vdev::OnRefused(std::uint32_t queue, SubmitResult why) {
  portals_->CountRefused(queue);
  events_.Post(PostedEvents::kReport, events_.generation(),
               [this, queue, why] { personality_->OnRefused(queue, why); });
}

// A backend may say so with every look at the page: one of them waits at a time.
void Vdev::OnRuleBroken(std::uint32_t queue) {
  if (queue >= personality_->layout().queues) return;
  const QueueSet bit = QueueSet{1} << queue;
  if ((broken_posted_.fetch_or(bit, std::memory_order_relaxed) & bit) != 0) return;
  // Of the driver that was there: the one after a reset may be another.
  events_.Post(PostedEvents::kAnswer, events_.generation(), [this, queue, bit] {
    ReactToBrokenRule(queue);
    broken_posted_.fetch_and(~bit, std::memory_order_relaxed);
  });
}

// One of them waits at a time, however often the host's device says so. What a guest was given
// between then and now is void for it too; it asks again.
void Vdev::OnHandlesRevoked() {
  if (revoked_posted_.exchange(true, std::memory_order_relaxed)) return;
  events_.Post(PostedEvents::kAnswer, events_.generation(), [this] {
    revoked_posted_.store(false, std::memory_order_relaxed);
    handles_revoked_.Add();
    personality_->OnHandlesRevoked();
  });
}

void Vdev::OnLost() {
  if (lost_posted_.exchange(true, std::memory_order_relaxed)) return;
  events_.Post(PostedEvents::kFact, 0, [this] { Lose(); });
}

void Vdev::ReactToBrokenRule(std::uint32_t queue) {
  if (lost_ || portals_->mode(queue) != PortalMode::kPolled) return;
  rules_broken_.Add();
  pages_leave_ ? HaltForGood(queue) : MakeTrapped(queue);
}

// The page stays with whoever has it: from here on nobody looks at it, and the halted state says so
// to the driver.
void Vdev::HaltForGood(std::uint32_t queue) {
  backend_->StopPolling(queue);
  GUEST_LOG("siov",
            "{}: queue {}: the driver does not store to the slots of the portal page one after the "
            "other (several CPUs submit at once, or one slot is used again): descriptors may have "
            "been lost, and the page cannot be taken back from it: the device halts; serve it with "
            "portal=trapped for this driver",
            name(), queue);
  lost_ = true;
  losses_.Add();
  personality_->OnLost();
}

void Vdev::MakeTrapped(std::uint32_t queue) {
  if (Result<void> trapped = TrapPortal(queue); !trapped) {
    trap_failures_.Add();
    GUEST_LOG("siov",
              "{}: queue {}: its portal stays mapped although its driver breaks the rule: {}",
              name(), queue, trapped.error().op);
    return;
  }
  GUEST_LOG(
      "siov",
      "{}: queue {}: the driver does not store to the slots of the portal page one after the "
      "other (several CPUs submit at once, or one slot is used again): descriptors may have "
      "been lost; the portal is trapped from now on, which loses none and costs an exit each; "
      "start with portal=trapped for this driver",
      name(), queue);
}

Result<void> Vdev::TrapPortal(std::uint32_t queue) {
  TRY(portals_->Trap(queue, bars()[kPortalBar]->tiles(),
                     [this](std::size_t index, const pci::Trapped& tile) {
                       return TrapBarPages(kPortalBar, index, tile);
                     }));
  rule_broken_ |= QueueSet{1} << queue;
  // No guest reaches the pages any more: the last look sees all that was stored.
  backend_->StopPolling(queue);
  return {};
}

void Vdev::Lose() {
  lost_ = true;
  losses_.Add();
  LOG_ERROR("siov", "{}: its back end ({}) is gone: nothing submitted will complete any more",
            name(), backend_->Describe());
  personality_->OnLost();
}

}  // namespace postern::siov
