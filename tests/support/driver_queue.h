#pragma once

// DriverQueue: the driver's side of one split virtqueue, for tests, benches and fuzzers: writes
// rings and buffers in guest memory and reads the answers, as a guest would, right or wrong.
//
//   auto memory = MakeMemory(1 << 20);
//   DriverQueue driver(memory, {.base = 0x1000, .size = 16});
//   driver.Configure(queue);                                            // sizes and addresses,
//   ready, EVENT_IDX std::uint16_t head = driver.Build().Readable(header).Writable(4096).Publish();
//   ... the device runs ...
//   std::optional<DriverQueue::Used> used = driver.TakeUsed();          // {head, length}
//   std::vector<std::byte> answer = driver.Written(used->head);         // the writable part of
//   that chain
//
// Buffers come from an arena behind the rings, used as a ring itself: a buffer lives until the
// arena wrapped. Everything that breaks a rule on purpose is explicit: Raw, Loop, PublishHead,
// SetAvailIdx, WriteDescriptor. Threads: one, or any that agree on an order; the rings themselves
// are accessed with acquire and release as a driver must.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "devices/virtio/queue/queue.h"
#include "devices/virtio/queue/split_ring.h"
#include "src/memory/guest_memory.h"

namespace postern::testing {

class DriverQueue {
 public:
  struct Options {
    std::uint64_t base =
        0x1000;  // where descriptor table, available and used ring are laid out, in this order
    std::uint16_t size = 16;  // a power of two
    bool event_idx = false;
    std::uint64_t arena = 0;  // where buffers are taken from; 0: the page behind the used ring
    std::uint64_t arena_size = 256 << 10;
  };
  struct Used {
    std::uint32_t head;
    std::uint32_t length;
  };
  struct Buffer {
    std::uint64_t gpa;
    std::uint32_t length;
    bool writable;
  };

  class Builder {
   public:
    Builder& Readable(std::span<const std::byte> bytes);
    Builder& Readable(std::string_view text);
    template <memory::GuestPod T>
    Builder& ReadableObject(const T& object) {
      return Readable(std::as_bytes(std::span<const T, 1>(&object, 1)));
    }
    // Zero-filled unless `fill` says otherwise.
    Builder& Writable(std::uint32_t length, std::byte fill = std::byte{0});
    // Memory the caller chose; nothing is written to it.
    Builder& ReadableAt(std::uint64_t gpa, std::uint32_t length);
    Builder& WritableAt(std::uint64_t gpa, std::uint32_t length);
    // A descriptor as given, but for NEXT and next, which Place adds where another follows.
    Builder& Raw(std::uint64_t gpa, std::uint32_t length, std::uint16_t flags);
    // Puts all of the chain's descriptors into an indirect table.
    Builder& Indirect();
    // Makes the last descriptor point back to the first.
    Builder& Loop();
    // Writes the descriptors and returns the head; Publish also puts it on the available ring.
    std::uint16_t Place();
    std::uint16_t Publish();

   private:
    friend class DriverQueue;
    explicit Builder(DriverQueue& driver) : driver_(driver) {}
    struct Entry {
      Buffer buffer;
      std::uint16_t flags;
    };
    DriverQueue& driver_;
    std::vector<Entry> entries_;
    bool indirect_ = false;
    bool loop_ = false;
  };

  DriverQueue(memory::GuestMemoryPtr memory, const Options& options);

  // What a transport would do for this driver. The queue is then ready to be activated.
  void Configure(virtio::Queue& queue) const;
  // Configures a fresh queue of this size and activates it. `interrupt` as Queue::Activate.
  [[nodiscard]] Result<virtio::Queue> MakeQueue(std::function<void()> interrupt = {},
                                                bool indirect_desc = true) const;
  // Forgets everything and zeroes the rings, as a driver does that enables the queue anew.
  void Restart();

  [[nodiscard]] Builder Build() { return Builder(*this); }
  // Puts a head on the available ring and steps avail.idx: also one that is placed already, or
  // nonsense.
  void PublishHead(std::uint16_t head);
  // The same in two steps: entries first, one store of avail.idx for all of them.
  void StageHead(std::uint16_t head);
  void PublishStaged();

  // The next used entry, if there is one; its descriptors are free again.
  std::optional<Used> TakeUsed();
  // The writable (readable) bytes of the chain last placed at `head`.
  [[nodiscard]] std::vector<std::byte> Written(std::uint32_t head) const;
  [[nodiscard]] std::vector<Buffer> Buffers(std::uint32_t head) const;

  // Whether a driver would kick for what was published since the last call (2.7.13.4).
  [[nodiscard]] bool NeedsKick();
  // Asks for an interrupt when used.idx passes `index` (EVENT_IDX); and the flag that asks for
  // none.
  void SetUsedEvent(std::uint16_t index);
  void SetNoInterrupt(bool on);

  // The raw rings.
  void WriteDescriptor(std::uint16_t index, const virtio::Descriptor& descriptor);
  void WriteAvailEntry(std::uint16_t slot, std::uint16_t head);
  void SetAvailIdx(std::uint16_t index);
  [[nodiscard]] std::uint16_t avail_idx() const { return avail_idx_; }
  [[nodiscard]] std::uint16_t used_idx() const;
  [[nodiscard]] std::uint16_t avail_event() const;
  [[nodiscard]] std::uint16_t used_flags() const;

  // `length` bytes of the arena, aligned to `align`.
  std::uint64_t Allocate(std::uint32_t length, std::uint32_t align = 16);

  [[nodiscard]] std::uint16_t size() const { return options_.size; }
  [[nodiscard]] std::uint64_t desc_table() const { return options_.base; }
  [[nodiscard]] std::uint64_t avail_ring() const { return avail_; }
  [[nodiscard]] std::uint64_t used_ring() const { return used_; }
  // First byte behind rings and arena: where the next queue can be.
  [[nodiscard]] std::uint64_t end() const { return options_.arena + options_.arena_size; }
  [[nodiscard]] const memory::GuestMemoryPtr& memory() const { return memory_; }

 private:
  std::uint16_t TakeDescriptor();

  memory::GuestMemoryPtr memory_;
  Options options_;
  std::uint64_t avail_;
  std::uint64_t used_;
  memory::GuestView avail_view_;
  memory::GuestView used_view_;
  std::uint64_t arena_next_ = 0;
  std::uint16_t avail_idx_ = 0;
  std::uint16_t staged_idx_ = 0;
  std::uint16_t kicked_idx_ = 0;
  std::uint16_t last_used_ = 0;
  std::vector<std::uint16_t> free_;                      // descriptors, last in first out
  std::vector<std::vector<Buffer>> buffers_;             // by head
  std::vector<std::vector<std::uint16_t>> descriptors_;  // by head
};

}  // namespace postern::testing
