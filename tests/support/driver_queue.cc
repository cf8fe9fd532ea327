#include "tests/support/driver_queue.h"

#include <atomic>
#include <utility>

#include "src/base/check.h"
#include "tests/support/memory.h"

namespace postern::testing {

using memory::Access;
using memory::Gpa;
using virtio::Descriptor;

namespace {

std::uint64_t AlignUp(std::uint64_t value, std::uint64_t align) {
  return (value + align - 1) / align * align;
}

}  // namespace

DriverQueue::DriverQueue(memory::GuestMemoryPtr memory, const Options& options)
    : memory_(std::move(memory)), options_(options) {
  avail_ = options_.base + virtio::DescTableBytes(options_.size);
  used_ = AlignUp(avail_ + virtio::AvailRingBytes(options_.size, true), virtio::kUsedAlign);
  const std::uint64_t end = used_ + virtio::UsedRingBytes(options_.size, true);
  if (options_.arena == 0) options_.arena = AlignUp(end, 4096);
  avail_view_ =
      memory_->View(Gpa(avail_), virtio::AvailRingBytes(options_.size, true), Access::kReadWrite)
          .value();
  used_view_ =
      memory_->View(Gpa(used_), virtio::UsedRingBytes(options_.size, true), Access::kReadWrite)
          .value();
  Restart();
}

void DriverQueue::Restart() {
  const std::uint64_t bytes = used_ + virtio::UsedRingBytes(options_.size, true) - options_.base;
  Store(memory_, options_.base, std::vector<std::byte>(bytes));
  arena_next_ = options_.arena;
  avail_idx_ = staged_idx_ = kicked_idx_ = last_used_ = 0;
  free_.clear();
  for (std::uint32_t i = options_.size; i > 0; --i)
    free_.push_back(static_cast<std::uint16_t>(i - 1));
  buffers_.assign(options_.size, {});
  descriptors_.assign(options_.size, {});
}

void DriverQueue::Configure(virtio::Queue& queue) const {
  CHECK(queue.SetSize(options_.size));
  CHECK(queue.SetDescTable(options_.base));
  CHECK(queue.SetAvailRing(avail_));
  CHECK(queue.SetUsedRing(used_));
  queue.SetEventIdx(options_.event_idx);
  queue.SetReady(true);
}

Result<virtio::Queue> DriverQueue::MakeQueue(std::function<void()> interrupt,
                                             bool indirect_desc) const {
  virtio::Queue queue = TRY(virtio::Queue::Create(options_.size));
  Configure(queue);
  TRY(queue.Activate(memory_, indirect_desc, std::move(interrupt)));
  return queue;
}

std::uint64_t DriverQueue::Allocate(std::uint32_t length, std::uint32_t align) {
  CHECK(length <= options_.arena_size);
  std::uint64_t start = AlignUp(arena_next_, align);
  if (start + length > options_.arena + options_.arena_size) start = AlignUp(options_.arena, align);
  CHECK(start + length <= options_.arena + options_.arena_size);
  arena_next_ = start + length;
  return start;
}

std::uint16_t DriverQueue::TakeDescriptor() {
  CHECK(!free_.empty());
  const std::uint16_t index = free_.back();
  free_.pop_back();
  return index;
}

void DriverQueue::WriteDescriptor(std::uint16_t index, const Descriptor& descriptor) {
  CHECK(memory_->Write(Gpa(options_.base + sizeof(Descriptor) * index), descriptor).has_value());
}

void DriverQueue::WriteAvailEntry(std::uint16_t slot, std::uint16_t head) {
  CHECK(avail_view_.Write(virtio::kRingEntries + sizeof(le16) * (slot % options_.size), le16(head))
            .has_value());
}

void DriverQueue::SetAvailIdx(std::uint16_t index) {
  avail_idx_ = staged_idx_ = index;
  avail_view_.StoreRelease16(virtio::kRingIdx, index);
}

void DriverQueue::StageHead(std::uint16_t head) {
  WriteAvailEntry(staged_idx_++, head);
}

void DriverQueue::PublishStaged() {
  SetAvailIdx(staged_idx_);
}

void DriverQueue::PublishHead(std::uint16_t head) {
  StageHead(head);
  PublishStaged();
}

std::optional<DriverQueue::Used> DriverQueue::TakeUsed() {
  if (used_idx() == last_used_) return std::nullopt;
  const std::size_t slot = last_used_ % options_.size;
  const auto elem =
      used_view_.Read<virtio::UsedElem>(virtio::kRingEntries + sizeof(virtio::UsedElem) * slot)
          .value();
  ++last_used_;
  const Used used{elem.id.get(), elem.len.get()};
  if (used.head < options_.size) {
    for (const std::uint16_t index : std::exchange(descriptors_[used.head], {})) {
      free_.push_back(index);
    }
  }
  return used;
}

std::vector<std::byte> DriverQueue::Written(std::uint32_t head) const {
  std::vector<std::byte> bytes;
  for (const Buffer& buffer : Buffers(head)) {
    if (!buffer.writable) continue;
    const std::vector<std::byte> part = Load(memory_, buffer.gpa, buffer.length);
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

std::vector<DriverQueue::Buffer> DriverQueue::Buffers(std::uint32_t head) const {
  CHECK(head < options_.size);
  return buffers_[head];
}

bool DriverQueue::NeedsKick() {
  // 2.7.13.4.1: the store of avail.idx is ordered before this look at what the device asked for.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint16_t old = std::exchange(kicked_idx_, avail_idx_);
  if (old == avail_idx_) return false;
  if (!options_.event_idx) return (used_flags() & virtio::kUsedNoNotify) == 0;
  return static_cast<std::uint16_t>(avail_idx_ - avail_event() - 1) <
         static_cast<std::uint16_t>(avail_idx_ - old);
}

void DriverQueue::SetUsedEvent(std::uint16_t index) {
  CHECK(avail_view_.Write(virtio::UsedEventOffset(options_.size), le16(index)).has_value());
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void DriverQueue::SetNoInterrupt(bool on) {
  CHECK(
      avail_view_.Write(virtio::kRingFlags, le16(on ? virtio::kAvailNoInterrupt : 0)).has_value());
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

std::uint16_t DriverQueue::used_idx() const {
  return used_view_.LoadAcquire16(virtio::kRingIdx);
}

std::uint16_t DriverQueue::avail_event() const {
  return used_view_.Read<le16>(virtio::AvailEventOffset(options_.size)).value().get();
}

std::uint16_t DriverQueue::used_flags() const {
  return used_view_.Read<le16>(virtio::kRingFlags).value().get();
}

// --- Builder ---

DriverQueue::Builder& DriverQueue::Builder::Readable(std::span<const std::byte> bytes) {
  const auto length = static_cast<std::uint32_t>(bytes.size());
  const std::uint64_t gpa = driver_.Allocate(length);
  Store(driver_.memory_, gpa, bytes);
  return ReadableAt(gpa, length);
}

DriverQueue::Builder& DriverQueue::Builder::Readable(std::string_view text) {
  return Readable(std::as_bytes(std::span(text.data(), text.size())));
}

DriverQueue::Builder& DriverQueue::Builder::Writable(std::uint32_t length, std::byte fill) {
  const std::uint64_t gpa = driver_.Allocate(length);
  Store(driver_.memory_, gpa, std::vector<std::byte>(length, fill));
  return WritableAt(gpa, length);
}

DriverQueue::Builder& DriverQueue::Builder::ReadableAt(std::uint64_t gpa, std::uint32_t length) {
  return Raw(gpa, length, 0);
}

DriverQueue::Builder& DriverQueue::Builder::WritableAt(std::uint64_t gpa, std::uint32_t length) {
  return Raw(gpa, length, virtio::kDescWrite);
}

DriverQueue::Builder& DriverQueue::Builder::Raw(std::uint64_t gpa, std::uint32_t length,
                                                std::uint16_t flags) {
  entries_.push_back({{gpa, length, (flags & virtio::kDescWrite) != 0}, flags});
  return *this;
}

DriverQueue::Builder& DriverQueue::Builder::Indirect() {
  indirect_ = true;
  return *this;
}

DriverQueue::Builder& DriverQueue::Builder::Loop() {
  loop_ = true;
  return *this;
}

std::uint16_t DriverQueue::Builder::Place() {
  CHECK(!entries_.empty());
  std::vector<std::uint16_t> indices;
  std::uint64_t table = driver_.options_.base;
  if (indirect_) {
    table = driver_.Allocate(static_cast<std::uint32_t>(entries_.size() * sizeof(Descriptor)));
    for (std::size_t i = 0; i < entries_.size(); ++i)
      indices.push_back(static_cast<std::uint16_t>(i));
  } else {
    for (std::size_t i = 0; i < entries_.size(); ++i) indices.push_back(driver_.TakeDescriptor());
  }
  std::vector<Buffer> buffers;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    const bool last = i + 1 == entries_.size();
    const bool linked = !last || loop_;
    const Descriptor descriptor{
        le64(entry.buffer.gpa), le32(entry.buffer.length),
        le16(static_cast<std::uint16_t>(entry.flags | (linked ? virtio::kDescNext : 0))),
        le16(linked ? indices[last ? 0 : i + 1] : std::uint16_t{0})};
    CHECK(driver_.memory_->Write(Gpa(table + sizeof(Descriptor) * indices[i]), descriptor)
              .has_value());
    buffers.push_back(entry.buffer);
  }
  if (indirect_) {
    const auto bytes = static_cast<std::uint32_t>(entries_.size() * sizeof(Descriptor));
    indices = {driver_.TakeDescriptor()};
    driver_.WriteDescriptor(indices[0],
                            {le64(table), le32(bytes), le16(virtio::kDescIndirect), le16(0)});
  }
  const std::uint16_t head = indices[0];
  driver_.descriptors_[head] = std::move(indices);
  driver_.buffers_[head] = std::move(buffers);
  return head;
}

std::uint16_t DriverQueue::Builder::Publish() {
  const std::uint16_t head = Place();
  driver_.PublishHead(head);
  return head;
}

}  // namespace postern::testing
