#include "src/probe/virtio.h"

#include <new>

#include "src/probe/acpi.h"
#include "src/probe/acpi_parse.h"
#include "src/probe/cmdline.h"
#include "src/probe/main.h"
#include "src/probe/virtio_transports.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

// Rings, buffers and transports all come from here.
constexpr size_t kHeapSize = size_t{2} << 20;
alignas(4096) uint8_t g_heap[kHeapSize];
size_t g_heap_used;

constexpr size_t kMaxPciDevices = 32;
constexpr size_t kMaxDevices = kMaxPciDevices + Options::kMaxMmioDevices;
Transport* g_devices[kMaxDevices];
uint16_t g_device_ids[kMaxDevices];
size_t g_device_count;

// Opens a transport at `where`; its memory is given back if there is no device.
template <typename T, typename Where>
void TryOpen(const Where& where) {
  const size_t mark = AllocationMark();
  void* memory = Allocate(sizeof(T), alignof(T));
  if (memory == nullptr || g_device_count == kMaxDevices) return;
  T* transport = new (memory) T();
  if (!transport->Open(where)) {
    ReleaseAllocations(mark);
    return;
  }
  g_device_ids[g_device_count] = transport->DeviceId();
  g_devices[g_device_count++] = transport;
}

}  // namespace

void* Allocate(size_t size, size_t alignment) {
  const size_t at = (g_heap_used + alignment - 1) & ~(alignment - 1);
  if (size > kHeapSize || at > kHeapSize - size) return nullptr;
  g_heap_used = at + size;
  return g_heap + at;
}

size_t AllocationMark() {
  return g_heap_used;
}
void ReleaseAllocations(size_t mark) {
  g_heap_used = mark;
}

uint64_t Transport::ReadConfig64(uint32_t offset) {
  uint64_t value = 0;
  for (int tries = 0; tries < 100; ++tries) {
    const uint8_t before = ConfigGeneration();
    value = ReadConfig32(offset) | uint64_t{ReadConfig32(offset + 4)} << 32;
    if (ConfigGeneration() == before) break;
  }
  return value;
}

bool Queue::Start(Transport& transport, uint16_t index, uint16_t size, uint64_t features) {
  transport_ = &transport;
  index_ = index;
  size_ = QueueSize(size < kMaxSize ? size : kMaxSize, transport.QueueMaxSize(index));
  if (size_ == 0) return false;
  indirect_ = (features & kFeatureIndirect) != 0;
  event_idx_ = (features & kFeatureEventIdx) != 0;
  descriptors_ = static_cast<Descriptor*>(Allocate(RingLayout::DescriptorBytes(size_), 16));
  avail_ = static_cast<uint16_t*>(Allocate(RingLayout::AvailBytes(size_), 2));
  used_ = static_cast<uint16_t*>(Allocate(RingLayout::UsedBytes(size_), 4));
  tokens_ = static_cast<uint16_t*>(Allocate(sizeof(uint16_t) * size_));
  counts_ = static_cast<uint16_t*>(Allocate(sizeof(uint16_t) * size_));
  tables_ = indirect_
                ? static_cast<Descriptor*>(Allocate(sizeof(Descriptor) * kMaxSegments * size_))
                : nullptr;
  if (descriptors_ == nullptr || avail_ == nullptr || used_ == nullptr || tokens_ == nullptr ||
      counts_ == nullptr || (indirect_ && tables_ == nullptr)) {
    return false;
  }
  completions_ = 0;
  notifications_ = 0;
  return Restart();
}

void Queue::Empty() {
  for (uint16_t i = 0; i < size_; ++i) {
    descriptors_[i].next = static_cast<uint16_t>(i + 1);
    tokens_[i] = kNoToken;
  }
  free_head_ = 0;
  free_count_ = size_;
  avail_index_ = published_ = last_used_ = 0;
  broken_ = false;
  avail_[RingLayout::kFlags / 2] = 0;
  avail_[RingLayout::kIndex / 2] = 0;
  avail_[RingLayout::UsedEvent(size_) / 2] = 0;
  used_[RingLayout::kFlags / 2] = 0;
  used_[RingLayout::kIndex / 2] = 0;
  used_[RingLayout::AvailEvent(size_) / 2] = 0;
}

bool Queue::Restart() {
  Empty();
  return transport_->EnableQueue(index_, size_, reinterpret_cast<uint64_t>(descriptors_),
                                 reinterpret_cast<uint64_t>(avail_),
                                 reinterpret_cast<uint64_t>(used_));
}

bool Queue::Add(std::span<const Segment> readable, std::span<const Segment> writable,
                uint16_t token) {
  const size_t total = readable.size() + writable.size();
  const bool use_table = indirect_ && total > 1;
  const size_t needed = use_table ? 1 : total;
  if (total == 0 || total > kMaxSegments || needed > free_count_) return false;

  const uint16_t head = free_head_;
  Descriptor* table = use_table ? tables_ + size_t{head} * kMaxSegments : descriptors_;
  uint16_t at = use_table ? 0 : head;
  for (size_t i = 0; i < total; ++i) {
    const bool from_driver = i < readable.size();
    const Segment& segment = from_driver ? readable[i] : writable[i - readable.size()];
    Descriptor& descriptor = table[at];
    descriptor.address = reinterpret_cast<uint64_t>(segment.data);
    descriptor.length = segment.length;
    descriptor.flags = static_cast<uint16_t>((from_driver ? 0 : kDescriptorWrite) |
                                             (i + 1 < total ? kDescriptorNext : 0));
    // In the ring itself the free list already runs through `next`.
    if (use_table) descriptor.next = static_cast<uint16_t>(i + 1);
    at = descriptor.next;
  }
  if (use_table) {
    Descriptor& descriptor = descriptors_[head];
    descriptor.address = reinterpret_cast<uint64_t>(table);
    descriptor.length = static_cast<uint32_t>(total * sizeof(Descriptor));
    descriptor.flags = kDescriptorIndirect;
    at = descriptor.next;
  }
  free_head_ = at;
  free_count_ = static_cast<uint16_t>(free_count_ - needed);
  tokens_[head] = token;
  counts_[head] = static_cast<uint16_t>(needed);
  avail_[RingLayout::kEntries / 2 + (avail_index_ & (size_ - 1))] = head;
  ++avail_index_;
  return true;
}

void Queue::Kick() {
  if (published_ == avail_index_) return;
  const uint16_t before = published_;
  CompilerBarrier();  // the entries before the index (2.7.13.2)
  avail_[RingLayout::kIndex / 2] = avail_index_;
  published_ = avail_index_;
  FullBarrier();  // the index before the question whether a notification is wanted (2.7.13.4.1)
  const bool wanted =
      event_idx_ ? PassesEvent(used_[RingLayout::AvailEvent(size_) / 2], avail_index_, before)
                 : (used_[RingLayout::kFlags / 2] & kUsedNoNotify) == 0;
  if (!wanted) return;
  ++notifications_;
  transport_->Notify(index_);
}

uint16_t Queue::Pop(uint32_t& length) {
  if (!HasUsed() || broken_) return kNoToken;
  CompilerBarrier();  // the index before the entry
  const auto* element =
      reinterpret_cast<const volatile UsedElement*>(used_ + RingLayout::kEntries / 2) +
      (last_used_ & (size_ - 1));
  const uint32_t head = element->id;
  length = element->length;
  ++last_used_;
  if (head >= size_ || tokens_[head] == kNoToken) {
    broken_ = true;
    return kNoToken;
  }
  const uint16_t token = tokens_[head];
  Free(static_cast<uint16_t>(head));
  ++completions_;
  return token;
}

void Queue::Free(uint16_t head) {
  tokens_[head] = kNoToken;
  uint16_t tail = head;
  for (uint16_t i = 1; i < counts_[head]; ++i) tail = descriptors_[tail].next;
  descriptors_[tail].next = free_head_;
  free_head_ = head;
  free_count_ = static_cast<uint16_t>(free_count_ + counts_[head]);
}

void Queue::AskForInterrupt(bool wanted) {
  if (event_idx_) {
    // The event index lies just behind what was seen: the next completion passes it. Left alone,
    // none does (2.7.7.1).
    if (wanted) avail_[RingLayout::UsedEvent(size_) / 2] = last_used_;
  } else {
    avail_[RingLayout::kFlags / 2] = wanted ? 0 : kAvailNoInterrupt;
  }
  FullBarrier();  // the wish before the question whether it came too late
}

bool Queue::Wait(uint64_t micros) {
  AskForInterrupt(true);
  const bool result = WaitFor(micros, [this] { return HasUsed(); });
  if (!event_idx_) AskForInterrupt(false);
  return result;
}

bool Queue::Run(std::span<const Segment> readable, std::span<const Segment> writable,
                uint32_t& length) {
  if (!Add(readable, writable, 0)) return false;
  // Asked for before the device is told, so that even an answer within the notification interrupts.
  AskForInterrupt(true);
  Kick();
  return Wait() && Pop(length) == 0;
}

bool VirtioDevice::Begin(uint64_t wanted, uint16_t interrupts, Row& row) {
  memory_mark_ = AllocationMark();
  vector_mark_ = VectorMark();
  queue_count_ = 0;
  interrupts_ = interrupts < kMaxQueues ? interrupts : kMaxQueues;

  // VIRTIO 1.2 3.1.1, step by step.
  transport_.SetStatus(0);
  if (!WaitFor(kRequestMicros, [this] { return transport_.Status() == 0; }))
    return row.Fail("reset: status stays", transport_.Status());
  transport_.SetStatus(kStatusAcknowledge);
  transport_.SetStatus(kStatusAcknowledge | kStatusDriver);
  const uint64_t offered = transport_.DeviceFeatures();
  if ((offered & kFeatureVersion1) == 0) return row.Fail("VIRTIO_F_VERSION_1 is not offered");
  features_ = offered &
              (wanted | kFeatureVersion1 | kFeatureIndirect | kFeatureEventIdx | kFeatureRingReset);
  transport_.SetDriverFeatures(features_);
  transport_.SetStatus(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
  if ((transport_.Status() & kStatusFeaturesOk) == 0)
    return row.Fail("FEATURES_OK refused for features", features_);
  if (!transport_.ConnectInterrupts(interrupts_))
    return row.Fail("no interrupts: MSI-X or I/O APIC pin missing");
  for (uint16_t i = 0; i < interrupts_; ++i)
    base_counts_[i] = InterruptCount(transport_.QueueVector(i));
  return true;
}

Queue* VirtioDevice::AddQueue(uint16_t index, uint16_t size, Row& row) {
  if (queue_count_ == kMaxQueues) return nullptr;
  Queue& queue = queues_[queue_count_];
  if (!queue.Start(transport_, index, size, features_)) {
    row.Fail("cannot enable queue", index);
    return nullptr;
  }
  ++queue_count_;
  return &queue;
}

bool VirtioDevice::DriverOk(Row& row) {
  constexpr uint8_t kAll = kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk | kStatusDriverOk;
  transport_.SetStatus(kAll);
  const uint8_t status = transport_.Status();
  return status == kAll || row.Fail("DRIVER_OK: status reads", status);
}

bool VirtioDevice::End(Row& row) {
  for (uint16_t i = 0; i < queue_count_; ++i) {
    if (queues_[i].broken())
      row.Fail("the device used a descriptor it was not given, queue", queues_[i].index());
  }
  if ((transport_.Status() & (kStatusNeedsReset | kStatusFailed)) != 0)
    row.Fail("the device asks for a reset");
  transport_.SetStatus(0);
  if (!WaitFor(kRequestMicros, [this] { return transport_.Status() == 0; }))
    row.Fail("reset: status stays", transport_.Status());
  // VIRTIO 1.2 4.1.4.3.1, 4.2.2.1: after a reset no queue is enabled.
  for (uint16_t i = 0; i < queue_count_; ++i) {
    if (transport_.QueueEnabled(queues_[i].index()))
      row.Fail("after reset still enabled: queue", queues_[i].index());
  }
  transport_.DisconnectInterrupts();
  ReleaseVectors(vector_mark_);
  ReleaseAllocations(memory_mark_);
  return !row.failed();
}

uint32_t VirtioDevice::Interrupts(const Queue& queue) {
  if (queue.index() >= interrupts_) return 0;
  return InterruptCount(transport_.QueueVector(queue.index())) - base_counts_[queue.index()];
}

bool VirtioDevice::InterruptsExceed(const Queue& queue, uint32_t before) {
  return WaitFor(kInterruptMicros, [&] { return Interrupts(queue) > before; });
}

uint32_t VirtioDevice::TotalInterrupts() {
  uint32_t total = 0;
  for (uint16_t i = 0; i < queue_count_; ++i) {
    bool shared = false;
    for (uint16_t k = 0; k < i; ++k) {
      shared = shared || transport_.QueueVector(queues_[k].index()) ==
                             transport_.QueueVector(queues_[i].index());
    }
    if (!shared) total += Interrupts(queues_[i]);
  }
  return total;
}

void InitVirtio() {
  for (size_t i = 0; i < PciFunctionCount(); ++i) {
    if (PciTransport::IsVirtio(PciFunctionAt(i))) TryOpen<PciTransport>(PciFunctionAt(i));
  }
  const Options& options = ProbeOptions();
  for (size_t i = 0; i < options.mmio_count; ++i) TryOpen<MmioTransport>(options.mmio[i]);
  // Nobody named any: perhaps the DSDT describes them. Last, because looking through it takes time.
  if (g_device_count == 0 && AcpiInfo().dsdt != 0) {
    AmlMmioDevice found[Options::kMaxMmioDevices];
    const auto* dsdt = reinterpret_cast<const uint8_t*>(AcpiInfo().dsdt);
    const size_t count = FindMmioDevices({dsdt, Read32(AcpiInfo().dsdt + 4)}, found);
    for (size_t i = 0; i < count; ++i)
      TryOpen<MmioTransport>(MmioDeviceArgument{found[i].address, found[i].size, found[i].irq});
  }
}

size_t VirtioCount() {
  return g_device_count;
}
Transport& VirtioAt(size_t index) {
  return *g_devices[index];
}

Transport* FindVirtio(uint16_t device_id, size_t nth) {
  for (size_t i = 0; i < g_device_count; ++i) {
    if (g_device_ids[i] == device_id && nth-- == 0) return g_devices[i];
  }
  return nullptr;
}

}  // namespace postern::probe
