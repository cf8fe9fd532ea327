#include "devices/virtio/queue/queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "devices/virtio/queue/split_ring.h"
#include "src/base/check.h"

namespace postern::virtio {

using memory::Access;
using memory::Gpa;
using memory::GuestView;

namespace internal {

// A chain dropped without an answer is a bug of the device: loud where asserts are on, counted
// elsewhere.
#ifdef NDEBUG
constexpr bool kDropsAreFatal = false;
#else
constexpr bool kDropsAreFatal = true;
#endif

// What a Queue and its chains in flight share. Counted without atomics: one owner thread at a time.
struct Ring {
  // A chain in flight; indexed by head, as no two of them may have the same.
  struct Slot {
    std::vector<GuestView> segments;  // readable ones first; keeps its storage
    std::size_t readable_segments = 0;
    std::uint64_t readable_bytes = 0;
    std::uint64_t writable_bytes = 0;
    std::uint16_t position = 0;  // value of next_avail it was popped at
    bool busy = false;
  };

  QueueState state;
  std::uint32_t references = 0;
  bool owned = true;  // false: its Queue is gone or was reset
  bool active = false;
  bool indirect = false;
  bool event_idx = false;
  bool broken = false;  // the driver broke a rule; only PutBack asks
  bool notify_always = false;
  bool hold_used = false;       // completions wait for ShowUsed
  std::uint16_t avail_idx = 0;  // the driver's, as last seen
  std::uint32_t in_flight = 0;
  std::uint32_t unnotified = 0;  // chains completed since NotifyIfNeeded last decided
  std::uint64_t dropped = 0;
  GuestView desc;
  GuestView avail;
  GuestView used;
  memory::GuestMemoryPtr memory;
  std::function<void()> interrupt;
  std::vector<Slot> slots;

  explicit Ring(const QueueState& initial) : state(initial) {}

  [[nodiscard]] RingRef Ref() {
    ++references;
    return RingRef(this);
  }
  void Release(Slot& slot) {
    slot.busy = false;
    --in_flight;
  }

  // Pairs with the driver's release of avail.idx (2.7.13.3): ring entries and descriptors up to it
  // are visible afterwards.
  [[nodiscard]] std::uint16_t LoadAvailIdx() const { return avail.LoadAcquire16(kRingIdx); }

  Result<void> Build(std::uint16_t head, Slot& slot);
  Result<void> AddBuffer(const Descriptor& descriptor, Slot& slot);
  void PutUsed(std::uint16_t head, std::uint32_t length);
  [[nodiscard]] bool DriverWantsInterrupt();
};

void Unref::operator()(Ring* ring) const {
  if (--ring->references == 0) delete ring;
}

namespace {

[[nodiscard]] RingRef MakeRing(const QueueState& initial) {
  return (new Ring(initial))->Ref();
}

[[nodiscard]] bool IsPowerOfTwo(std::uint16_t n) {
  return std::has_single_bit(n);
}

[[nodiscard]] Unexpected Bad(const char* what, const char* file = __builtin_FILE(),
                             int line = __builtin_LINE()) {
  return Err(Errc::kGuestProtocol, what, file, line);
}

}  // namespace

Result<void> Ring::AddBuffer(const Descriptor& descriptor, Slot& slot) {
  const bool writable = (descriptor.flags.get() & kDescWrite) != 0;
  std::uint64_t left = descriptor.len.get();
  (writable ? slot.writable_bytes : slot.readable_bytes) += left;
  // 2.7.5: "the total length of all buffers in a chain" must stay below 2^32.
  if (slot.readable_bytes + slot.writable_bytes > std::numeric_limits<std::uint32_t>::max()) {
    return Bad("virtqueue: chain is longer than 4 GiB");
  }
  Gpa gpa(descriptor.addr.get());
  while (left > 0) {
    const GuestView run =
        TRY(memory->ViewRun(gpa, left, writable ? Access::kWrite : Access::kRead));
    slot.segments.push_back(run);
    if (!writable) ++slot.readable_segments;
    left -= run.size();
    if (left == 0) break;
    const std::optional<Gpa> next = gpa.CheckedAdd(run.size());
    if (!next) return Err(Errc::kGuestRange, "virtqueue: buffer wraps");
    gpa = *next;
  }
  return {};
}

// Every descriptor is fetched once; what was checked is what is used.
Result<void> Ring::Build(std::uint16_t head, Slot& slot) {
  slot.segments.clear();
  slot.readable_segments = 0;
  slot.readable_bytes = 0;
  slot.writable_bytes = 0;
  const GuestView* table = &desc;
  GuestView indirect_table;
  std::size_t table_entries = state.size;
  std::size_t index = head;
  std::uint32_t buffers = 0;
  bool writable_seen = false;
  while (true) {
    const Descriptor descriptor = TRY(table->Read<Descriptor>(index * sizeof(Descriptor)));
    const std::uint16_t flags = descriptor.flags.get();
    if ((flags & ~(kDescNext | kDescWrite | kDescIndirect)) != 0) {
      return Bad("virtqueue: unknown descriptor flags");
    }
    if ((flags & kDescIndirect) != 0) {
      // 2.7.5.3.1: only when negotiated, one level deep, not together with NEXT. 2.7.5.3.2: WRITE
      // is ignored here.
      if (!indirect) return Bad("virtqueue: indirect descriptor was not negotiated");
      if (table != &desc) return Bad("virtqueue: nested indirect descriptor");
      if ((flags & kDescNext) != 0) return Bad("virtqueue: indirect descriptor with NEXT");
      const std::uint32_t bytes = descriptor.len.get();
      if (bytes == 0 || bytes % sizeof(Descriptor) != 0) {
        return Bad("virtqueue: indirect table of odd length");
      }
      indirect_table = TRY(memory->View(Gpa(descriptor.addr.get()), bytes, Access::kRead));
      table = &indirect_table;
      table_entries = bytes / sizeof(Descriptor);
      index = 0;
      continue;
    }
    // 2.7.5.3.1: no chain is longer than the queue size; this also ends a loop.
    if (++buffers > state.size) return Bad("virtqueue: chain loops or is longer than the queue");
    // 2.7.4.2: device-readable buffers come first.
    const bool writable = (flags & kDescWrite) != 0;
    if (!writable && writable_seen) return Bad("virtqueue: readable buffer after a writable one");
    writable_seen = writable;
    TRY(AddBuffer(descriptor, slot));
    if ((flags & kDescNext) == 0) return {};
    index = descriptor.next.get();
    if (index >= table_entries) return Bad("virtqueue: next descriptor is out of range");
  }
}

void Ring::PutUsed(std::uint16_t head, std::uint32_t length) {
  const std::size_t index = state.next_used & (state.size - 1U);
  const UsedElem elem{le32(head), le32(length)};
  // The offset is inside the view by construction of Activate.
  CHECK(used.Write(kRingEntries + index * sizeof(UsedElem), elem).has_value());
  ++state.next_used;
  // 2.7.8.2 and 2.7.13: the element, and the buffers written before it, are visible before the
  // index. Pairs with the driver's load.
  if (!hold_used) used.StoreRelease16(kRingIdx, state.next_used);
  ++unnotified;
}

bool Ring::DriverWantsInterrupt() {
  const std::uint32_t count = std::exchange(unnotified, 0);
  if (std::exchange(notify_always, false)) return true;
  if (count == 0) return false;
  // 2.7.7.2: the store of used.idx is ordered before the load of what the driver asked for; the
  // driver does the reverse.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!event_idx) {
    // Inside the view by construction.
    const Result<le16> flags = avail.Read<le16>(kRingFlags);
    return !flags || (flags->get() & kAvailNoInterrupt) == 0;
  }
  const Result<le16> event = avail.Read<le16>(UsedEventOffset(state.size));
  return !event || EventPassed(event->get(), state.next_used, count);
}

}  // namespace internal

using internal::Ring;

// --- Chain ---

Chain::Chain(Chain&& other) noexcept = default;

Chain& Chain::operator=(Chain&& other) noexcept {
  if (this != &other) {
    Drop();
    ring_ = std::move(other.ring_);
    head_ = other.head_;
  }
  return *this;
}

Chain::~Chain() {
  Drop();
}

void Chain::Drop() {
  if (ring_ == nullptr) return;
  if (ring_->owned) {
    CHECK(!internal::kDropsAreFatal);
    ++ring_->dropped;
  }
  Complete(0);
}

Reader Chain::reader() const {
  const Ring::Slot& slot = ring_->slots[head_];
  return {Segments(slot.segments).first(slot.readable_segments), slot.readable_bytes};
}

Writer Chain::writer() const {
  const Ring::Slot& slot = ring_->slots[head_];
  return {Segments(slot.segments).subspan(slot.readable_segments), slot.writable_bytes};
}

std::uint64_t Chain::readable_size() const {
  return ring_->slots[head_].readable_bytes;
}
std::uint64_t Chain::writable_size() const {
  return ring_->slots[head_].writable_bytes;
}

void Chain::Complete(std::uint32_t written) {
  if (ring_ == nullptr) return;
  const internal::RingRef ring = std::move(ring_);
  Ring::Slot& slot = ring->slots[head_];
  if (ring->owned) {
    const auto length =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(written, slot.writable_bytes));
    std::uint64_t left = length;
    for (std::size_t i = slot.readable_segments; left > 0; ++i) {
      const std::uint64_t bytes = std::min<std::uint64_t>(left, slot.segments[i].size());
      slot.segments[i].MarkDirty(0, bytes);
      left -= bytes;
    }
    ring->PutUsed(head_, length);
  }
  ring->Release(slot);
}

void Chain::MarkWritableDirty() const {
  if (ring_ == nullptr) return;
  const Ring::Slot& slot = ring_->slots[head_];
  for (std::size_t i = slot.readable_segments; i < slot.segments.size(); ++i) {
    slot.segments[i].MarkDirty(0, slot.segments[i].size());
  }
}

void Chain::PutBack() {
  if (ring_ == nullptr) return;
  Ring& ring = *ring_;
  const auto last = static_cast<std::uint16_t>(ring.state.next_avail - 1);
  const bool is_last = ring.slots[head_].position == last;
  // After a chain that broke a rule the order is lost, and the device is on its way to a reset.
  CHECK(is_last || ring.broken || !ring.owned);
  if (is_last && ring.owned) ring.state.next_avail = last;
  Discard();
}

void Chain::Discard() {
  if (ring_ == nullptr) return;
  const internal::RingRef ring = std::move(ring_);
  ring->Release(ring->slots[head_]);
}

// --- Queue ---

Result<Queue> Queue::Create(std::uint16_t max_size) {
  if (!internal::IsPowerOfTwo(max_size) || max_size > kMaxQueueSize) {
    return Err(Errc::kInvalidArgument, "virtqueue: maximum size");
  }
  QueueState state;
  state.max_size = max_size;
  state.size = max_size;
  return Queue(internal::MakeRing(state));
}

Result<Queue> Queue::FromState(const QueueState& state) {
  if (!internal::IsPowerOfTwo(state.max_size) || state.max_size > kMaxQueueSize) {
    return Err(Errc::kBadFormat, "virtqueue state: max_size");
  }
  Queue queue = TRY(Create(state.max_size));
  if (!queue.SetSize(state.size)) return Err(Errc::kBadFormat, "virtqueue state: size");
  if (!queue.SetDescTable(state.desc_table)) {
    return Err(Errc::kBadFormat, "virtqueue state: desc_table");
  }
  if (!queue.SetAvailRing(state.avail_ring)) {
    return Err(Errc::kBadFormat, "virtqueue state: avail_ring");
  }
  if (!queue.SetUsedRing(state.used_ring)) {
    return Err(Errc::kBadFormat, "virtqueue state: used_ring");
  }
  // More chains out than the ring has entries cannot be.
  if (static_cast<std::uint16_t>(state.next_avail - state.next_used) > state.size) {
    return Err(Errc::kBadFormat, "virtqueue state: next_used");
  }
  queue.ring_->state = state;
  return queue;
  // The analyzer does not follow the count to the end of the early returns' Queue.
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)

Queue::Queue(Queue&& other) noexcept = default;

Queue& Queue::operator=(Queue&& other) noexcept {
  std::swap(ring_, other.ring_);
  return *this;
}

Queue::~Queue() {
  if (ring_ != nullptr) ring_->owned = false;
}

const QueueState& Queue::state() const {
  return ring_->state;
}

bool Queue::SetSize(std::uint16_t size) {
  if (ring_->active || !internal::IsPowerOfTwo(size) || size > ring_->state.max_size) return false;
  ring_->state.size = size;
  return true;
}

bool Queue::SetDescTable(std::uint64_t address) {
  if (ring_->active || address % kDescAlign != 0) return false;
  ring_->state.desc_table = address;
  return true;
}

bool Queue::SetAvailRing(std::uint64_t address) {
  if (ring_->active || address % kAvailAlign != 0) return false;
  ring_->state.avail_ring = address;
  return true;
}

bool Queue::SetUsedRing(std::uint64_t address) {
  if (ring_->active || address % kUsedAlign != 0) return false;
  ring_->state.used_ring = address;
  return true;
}

void Queue::SetReady(bool ready) {
  ring_->state.ready = ready;
}

void Queue::SetEventIdx(bool enabled) {
  if (!ring_->active) ring_->state.event_idx_enabled = enabled;
}

void Queue::Reset() {
  QueueState state;
  state.max_size = ring_->state.max_size;
  state.size = state.max_size;
  ring_->owned = false;
  ring_ = internal::MakeRing(state);
}

Result<void> Queue::Activate(memory::GuestMemoryPtr memory, bool indirect_desc,
                             std::function<void()> interrupt) {
  Ring& ring = *ring_;
  const QueueState& state = ring.state;
  if (!state.ready || ring.in_flight > 0) return Err(Errc::kBadState, "virtqueue: activate");
  const bool event = state.event_idx_enabled;
  struct Part {
    std::uint64_t address;
    std::size_t bytes;
  };
  const std::array<Part, 3> parts{{{state.desc_table, DescTableBytes(state.size)},
                                   {state.avail_ring, AvailRingBytes(state.size, event)},
                                   {state.used_ring, UsedRingBytes(state.size, event)}}};
  std::array<GuestView, 3> views;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    views[i] = TRY(memory->View(Gpa(parts[i].address), parts[i].bytes,
                                i == 2 ? Access::kWrite : Access::kRead));
    for (std::size_t j = 0; j < i; ++j) {  // all of them were seen to lie in RAM: no sum wraps
      if (parts[i].address < parts[j].address + parts[j].bytes &&
          parts[j].address < parts[i].address + parts[i].bytes) {
        return Err(Errc::kGuestProtocol, "virtqueue: rings overlap");
      }
    }
  }
  ring.desc = views[0];
  ring.avail = views[1];
  ring.used = views[2];
  ring.memory = std::move(memory);
  ring.indirect = indirect_desc;
  ring.event_idx = event;
  ring.interrupt = std::move(interrupt);
  ring.avail_idx = state.next_avail;
  ring.slots.resize(state.size);
  ring.active = true;
  return {};
}

bool Queue::active() const {
  return ring_->active;
}

Result<std::optional<Chain>> Queue::Pop() {
  Ring& ring = *ring_;
  if (!ring.active) return Err(Errc::kBadState, "virtqueue: not active");
  QueueState& state = ring.state;
  if (state.next_avail == ring.avail_idx) {
    const std::uint16_t avail_idx = ring.LoadAvailIdx();
    if (avail_idx == state.next_avail) return std::optional<Chain>();
    if (static_cast<std::uint16_t>(avail_idx - state.next_avail) > state.size) {
      ring.broken = true;
      return internal::Bad("virtqueue: available index jumped");
    }
    ring.avail_idx = avail_idx;
  }
  const std::size_t index = state.next_avail & (state.size - 1U);
  const std::uint16_t head = TRY(ring.avail.Read<le16>(kRingEntries + index * sizeof(le16))).get();
  const std::uint16_t position = state.next_avail++;
  if (head >= state.size) {
    ring.broken = true;
    return internal::Bad("virtqueue: head is out of range");
  }
  Ring::Slot& slot = ring.slots[head];
  if (slot.busy) {
    ring.broken = true;
    return internal::Bad("virtqueue: head is already in flight");
  }
  if (Result<void> built = ring.Build(head, slot); !built) {
    ring.broken = true;
    return Unexpected(built.error());
  }
  slot.busy = true;
  slot.position = position;
  ++ring.in_flight;
  return std::optional<Chain>(Chain(ring.Ref(), head));
}

bool Queue::HasWork() const {
  return ring_->active && ring_->LoadAvailIdx() != ring_->state.next_avail;
}

void Queue::DisableKicks() {
  // 2.7.10: with EVENT_IDX the flag stays 0; the avail_event left behind suppresses kicks until
  // EnableKicks moves it.
  if (!ring_->active || ring_->event_idx) return;
  CHECK(ring_->used.Write(kRingFlags, le16(kUsedNoNotify)).has_value());
}

bool Queue::EnableKicks() {
  Ring& ring = *ring_;
  if (!ring.active) return false;
  if (ring.event_idx) {
    CHECK(ring.used.Write(AvailEventOffset(ring.state.size), le16(ring.state.next_avail))
              .has_value());
  } else {
    CHECK(ring.used.Write(kRingFlags, le16(0)).has_value());
  }
  // 2.7.10.2: the request for kicks is ordered before the look at avail.idx; the driver does the
  // reverse (2.7.13.4.1), so one of the two sees the other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return ring.LoadAvailIdx() != ring.state.next_avail;
}

void Queue::NotifyIfNeeded() {
  if (!ring_->active) return;
  if (ring_->DriverWantsInterrupt() && ring_->interrupt) ring_->interrupt();
}

void Queue::HoldUsed() {
  ring_->hold_used = true;
}

void Queue::ShowUsed() {
  if (!std::exchange(ring_->hold_used, false) || !ring_->active) return;
  // As in PutUsed: everything before is visible before the index.
  ring_->used.StoreRelease16(kRingIdx, ring_->state.next_used);
}

void Queue::NotifyAlways() {
  ring_->notify_always = true;
  NotifyIfNeeded();
}

std::uint32_t Queue::in_flight() const {
  return ring_->in_flight;
}
std::uint64_t Queue::dropped() const {
  return ring_->dropped;
}

}  // namespace postern::virtio
