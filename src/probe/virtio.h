// The driver side of virtio: a queue, a device's way from reset to DRIVER_OK, and the transport
// below them as an interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "src/probe/interrupts.h"
#include "src/probe/pci.h"
#include "src/probe/report.h"
#include "src/probe/ring.h"

namespace postern::probe {

inline constexpr uint16_t kVirtioNet = 1;
inline constexpr uint16_t kVirtioBlk = 2;
inline constexpr uint16_t kVirtioConsole = 3;
inline constexpr uint16_t kVirtioRng = 4;
inline constexpr uint16_t kVirtioVsock = 19;

// VIRTIO 1.2 section 2.1.
inline constexpr uint8_t kStatusAcknowledge = 1;
inline constexpr uint8_t kStatusDriver = 2;
inline constexpr uint8_t kStatusDriverOk = 4;
inline constexpr uint8_t kStatusFeaturesOk = 8;
inline constexpr uint8_t kStatusNeedsReset = 64;
inline constexpr uint8_t kStatusFailed = 128;

// VIRTIO 1.2 section 6.
inline constexpr uint64_t kFeatureIndirect = uint64_t{1} << 28;
inline constexpr uint64_t kFeatureEventIdx = uint64_t{1} << 29;
inline constexpr uint64_t kFeatureVersion1 = uint64_t{1} << 32;
inline constexpr uint64_t kFeatureRingReset = uint64_t{1} << 40;

inline constexpr uint64_t kRequestMicros = 5'000'000;  // the time limit of any single request

inline constexpr uint64_t kInterruptMicros =
    2'000'000;  // how long one may come after what it tells

// One device by one transport. Queue registers are banked by a selector: every call selects first.
class Transport {
 public:
  virtual uint16_t DeviceId() = 0;
  virtual uint8_t Status() = 0;
  virtual void SetStatus(uint8_t status) = 0;
  virtual uint64_t DeviceFeatures() = 0;
  virtual void SetDriverFeatures(uint64_t features) = 0;
  virtual uint16_t QueueMaxSize(uint16_t queue) = 0;  // 0: no such queue
  virtual bool QueueEnabled(uint16_t queue) = 0;
  // Sets a queue's addresses and interrupt, and enables it. False if the device refuses the
  // interrupt.
  virtual bool EnableQueue(uint16_t queue, uint16_t size, uint64_t descriptors, uint64_t driver,
                           uint64_t device) = 0;
  virtual bool ResetQueue(uint16_t queue) = 0;  // VIRTIO_F_RING_RESET
  virtual void Notify(uint16_t queue) = 0;
  virtual uint8_t ReadConfig8(uint32_t offset) = 0;
  virtual uint16_t ReadConfig16(uint32_t offset) = 0;
  virtual uint32_t ReadConfig32(uint32_t offset) = 0;
  // A field in two halves, read until the generation stood still (VIRTIO 1.2 2.5.3).
  uint64_t ReadConfig64(uint32_t offset);
  virtual void WriteConfig8(uint32_t offset, uint8_t value) = 0;
  virtual uint8_t ConfigGeneration() = 0;
  // Interrupts for queues 0 .. count-1 are set up before the queues are, the others get none.
  // Disconnect undoes it.
  virtual bool ConnectInterrupts(uint16_t queue_count) = 0;
  virtual void DisconnectInterrupts() = 0;
  virtual uint8_t QueueVector(uint16_t queue) = 0;  // the processor vector
  virtual void AddAddress(Line& line) = 0;
  virtual Msix* msix() { return nullptr; }
  virtual unsigned QueueMsixEntry(uint16_t) { return 0; }
  // The device's register windows, for the hostile mode; 0 past the end.
  struct Window {
    uint64_t address;
    uint64_t size;
  };
  virtual Window WindowAt(size_t index) = 0;
};

struct Segment {
  const volatile void* data;
  uint32_t length;
};

// Memory for rings and buffers, given out in order and given back by returning to a mark. Not
// cleared.
void* Allocate(size_t size, size_t alignment = 16);
size_t AllocationMark();
void ReleaseAllocations(size_t mark);

// A split virtqueue, driver side. One thread of execution.
class Queue {
 public:
  static constexpr uint16_t kMaxSize = 256;
  static constexpr unsigned kMaxSegments = 4;  // of one request
  static constexpr uint16_t kNoToken = 0xffff;

  bool Start(Transport& transport, uint16_t index, uint16_t size, uint64_t features);
  // The same memory and size again, empty, after the device has forgotten the queue.
  bool Restart();

  // Puts a request on the ring, the readable segments first. False if there is no room.
  bool Add(std::span<const Segment> readable, std::span<const Segment> writable, uint16_t token);
  // Publishes what was added and notifies the device unless it asked not to be.
  void Kick();
  // The next completion, or kNoToken. A device that names a request that is not under way is
  // remembered in broken().
  uint16_t Pop(uint32_t& length);
  // For loops over unchanging requests, where every instruction counts: the head of the next
  // completion with its descriptors left in place (kNoToken: none), and that same request published
  // again by the next Kick.
  uint16_t PopKept() {
    if (!HasUsed()) return kNoToken;
    CompilerBarrier();
    const auto* elements =
        reinterpret_cast<const volatile UsedElement*>(used_ + RingLayout::kEntries / 2);
    const uint32_t head = elements[last_used_ & (size_ - 1)].id;
    ++last_used_;
    ++completions_;
    if (head < size_) return static_cast<uint16_t>(head);
    broken_ = true;
    return kNoToken;
  }
  void Repeat(uint16_t head) {
    avail_[RingLayout::kEntries / 2 + (avail_index_ & (size_ - 1))] = head;
    ++avail_index_;
  }
  void Free(uint16_t head);  // a kept request's descriptors, once it is not repeated any more
  [[nodiscard]] uint16_t TokenOf(uint16_t head) const { return tokens_[head]; }

  // Waits for a completion; false after the time limit.
  bool Wait(uint64_t micros = kRequestMicros);
  // One request from beginning to end. Length: bytes the device wrote.
  bool Run(std::span<const Segment> readable, std::span<const Segment> writable, uint32_t& length);
  [[nodiscard]] bool HasUsed() const { return used_[RingLayout::kIndex / 2] != last_used_; }
  // Whether the next completion shall interrupt. Wait and Run do it by themselves.
  void AskForInterrupt(bool wanted);

  [[nodiscard]] uint16_t size() const { return size_; }
  [[nodiscard]] uint16_t index() const { return index_; }
  [[nodiscard]] bool broken() const { return broken_; }
  [[nodiscard]] uint32_t completions() const { return completions_; }
  [[nodiscard]] uint32_t notifications() const { return notifications_; }

  // The bare memory, for the tests of a device's nerves.
  Descriptor* descriptors() { return descriptors_; }
  volatile uint16_t* avail() { return avail_; }
  volatile uint16_t* used() { return used_; }

 private:
  void Empty();

  Transport* transport_ = nullptr;
  uint16_t index_ = 0;
  uint16_t size_ = 0;
  uint16_t free_head_ = 0;
  uint16_t free_count_ = 0;
  uint16_t avail_index_ = 0;
  uint16_t published_ = 0;
  uint16_t last_used_ = 0;
  bool indirect_ = false;
  bool event_idx_ = false;
  bool broken_ = false;
  uint32_t completions_ = 0;
  uint32_t notifications_ = 0;
  Descriptor* descriptors_ = nullptr;
  volatile uint16_t* avail_ = nullptr;
  volatile uint16_t* used_ = nullptr;
  Descriptor* tables_ = nullptr;  // kMaxSegments indirect descriptors for every head
  uint16_t* tokens_ = nullptr;    // by head; kNoToken: not under way
  uint16_t* counts_ = nullptr;    // descriptors of the chain, by head
};

// A device under a driver's control, from reset to reset.
class VirtioDevice {
 public:
  static constexpr uint16_t kMaxQueues = 8;

  explicit VirtioDevice(Transport& transport) : transport_(transport) {}
  VirtioDevice(const VirtioDevice&) = delete;
  VirtioDevice& operator=(const VirtioDevice&) = delete;

  // Reset, ACKNOWLEDGE, DRIVER, features (`wanted` and what the ring needs, as far as offered),
  // FEATURES_OK. `interrupts`: the number of queues, counted from 0, that need an interrupt.
  bool Begin(uint64_t wanted, uint16_t interrupts, Row& row);
  // Queue `index` of the device, at most `size` entries; nullptr (and a failed row) if the device
  // does not have it.
  Queue* AddQueue(uint16_t index, uint16_t size, Row& row);
  bool DriverOk(Row& row);
  // Reset, checked; gives back memory and vectors.
  bool End(Row& row);

  [[nodiscard]] uint64_t features() const { return features_; }
  [[nodiscard]] bool Has(uint64_t feature) const { return (features_ & feature) == feature; }
  Transport& transport() { return transport_; }
  // Interrupts that arrived for this queue since Begin.
  uint32_t Interrupts(const Queue& queue);
  // Whether there were more than `before`, or come to be: the device completes a request first and
  // interrupts then, and may be put to sleep in between.
  bool InterruptsExceed(const Queue& queue, uint32_t before);
  uint32_t TotalInterrupts();

 private:
  Transport& transport_;
  uint64_t features_ = 0;
  size_t memory_mark_ = 0;
  uint8_t vector_mark_ = 0;
  uint32_t base_counts_[kMaxQueues]{};
  uint16_t interrupts_ = 0;
  uint16_t queue_count_ = 0;
  Queue queues_[kMaxQueues];
};

// Every virtio device of the machine, PCI first, then those of the command line.
void InitVirtio();
size_t VirtioCount();
Transport& VirtioAt(size_t index);
// The `nth` device of this kind; nullptr if there are fewer.
Transport* FindVirtio(uint16_t device_id, size_t nth = 0);

}  // namespace postern::probe
