#include "devices/siov/cdev/fake_idxd_queue.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "src/base/check.h"

namespace postern::dsa {
namespace {

// Where no process has memory: the executor's record, before it is copied to its place.
constexpr std::uint64_t kScratch = 0x1000;

memory::GuestMemoryPtr ByProcessAddress(const memory::GuestMemoryPtr& memory) {
  std::vector<memory::RegionPtr> regions;
  regions.push_back(memory::Region::Create(memory::Gpa(kScratch), 0x1000, {}).value());
  for (const memory::RegionPtr& region : memory->regions()) {
    regions.push_back(
        memory::Region::Adopt(memory::Gpa(region->host_address()), region->size(), region->fd(), 0)
            .value());
  }
  return memory::GuestMemory::Create(std::move(regions)).value();
}

}  // namespace

memory::GuestMemoryPtr SharedMemory(const std::vector<testing::RegionSpec>& regions,
                                    bool track_dirty) {
  std::vector<memory::RegionPtr> made;
  made.reserve(regions.size());
  for (const testing::RegionSpec& region : regions) {
    made.push_back(
        memory::Region::Create(
            memory::Gpa(region.base), region.size,
            {.kind = memory::Backing::Kind::kMemfd, .shared = true, .track_dirty = track_dirty})
            .value());
  }
  return memory::GuestMemory::Create(std::move(made)).value();
}

IdxdQueueInfo FakeIdxdQueue::DefaultInfo() {
  return {.name = "wq0.0",
          .shared = false,
          .size = 16,
          .max_transfer = std::uint64_t{1} << 21,
          .operations = kAllOperations};
}

FakeIdxdQueue::FakeIdxdQueue(const memory::GuestMemoryPtr& memory, IdxdQueueInfo info)
    : info_(std::move(info)),
      process_(ByProcessAddress(memory)),
      executor_(process_, {.operations = kAllOperations}, *this) {}

int FakeIdxdQueue::Write(const siov::Descriptor& descriptor) {
  const MutexLock lock(mutex_);
  if (closed_) return EBADF;
  if (gone_) return ENODEV;
  if (failures_ != 0) {
    --failures_;
    return error_;
  }
  const auto words = std::bit_cast<WorkDescriptor>(descriptor);
  if (words.opcode() == Opcode::kBatch || words.record.get() % kRecordSize != 0 ||
      words.submitter.get() != 0) {
    ++refused_;
    return EINVAL;
  }
  if (held_.size() >= info_.size) {
    if (info_.shared) return EAGAIN;
    ++dropped_;
    return 0;
  }
  written_.push_back(descriptor);
  if (holds_) {
    held_.push_back(descriptor);
    most_held_ = std::max(most_held_, static_cast<std::uint32_t>(held_.size()));
  } else {
    Execute(descriptor);
  }
  return 0;
}

bool FakeIdxdQueue::Alive() {
  const MutexLock lock(mutex_);
  return !gone_ && !closed_;
}

void FakeIdxdQueue::Close() {
  const MutexLock lock(mutex_);
  closed_ = true;
  held_.clear();
}

void FakeIdxdQueue::Hold(bool held) {
  const MutexLock lock(mutex_);
  holds_ = held;
}

std::uint32_t FakeIdxdQueue::Run(std::uint32_t count) {
  const MutexLock lock(mutex_);
  std::uint32_t done = 0;
  for (; done < count && !held_.empty() && !gone_; ++done) {
    Execute(held_.front());
    held_.pop_front();
  }
  return done;
}

void FakeIdxdQueue::Script(const CompletionRecord& record) {
  const MutexLock lock(mutex_);
  script_.push_back(record);
}

void FakeIdxdQueue::Fail(int error, std::uint32_t times) {
  const MutexLock lock(mutex_);
  error_ = error;
  failures_ = times;
}

void FakeIdxdQueue::Vanish() {
  const MutexLock lock(mutex_);
  gone_ = true;
}

std::vector<siov::Descriptor> FakeIdxdQueue::written() const {
  const MutexLock lock(mutex_);
  return written_;
}

std::size_t FakeIdxdQueue::held() const {
  const MutexLock lock(mutex_);
  return held_.size();
}

std::uint32_t FakeIdxdQueue::dropped() const {
  const MutexLock lock(mutex_);
  return dropped_;
}

std::uint32_t FakeIdxdQueue::most_held() const {
  const MutexLock lock(mutex_);
  return most_held_;
}

std::uint32_t FakeIdxdQueue::refused() const {
  const MutexLock lock(mutex_);
  return refused_;
}

bool FakeIdxdQueue::closed() const {
  const MutexLock lock(mutex_);
  return closed_;
}

bool FakeIdxdQueue::IsHandle(std::uint32_t handle) const {
  (void)handle;
  return false;
}

// Only what was written for a guest could ask for one.
void FakeIdxdQueue::SignalHandle(std::uint32_t handle) {
  (void)handle;
  CHECK(false);
}

// Every descriptor has a record here: there is nothing without a place for its error.
void FakeIdxdQueue::OnError(const siov::ErrorRecord& record) {
  (void)record;
  CHECK(false);
}

void FakeIdxdQueue::Execute(const siov::Descriptor& descriptor) {
  WorkDescriptor words = std::bit_cast<WorkDescriptor>(descriptor);
  auto* const to = std::bit_cast<std::byte*>(words.record.get());
  CompletionRecord record;
  if (!script_.empty()) {
    record = script_.front();
    script_.pop_front();
  } else {
    words.record = le64(kScratch);
    (void)executor_.Execute({.queue = 0,
                             .max_transfer = info_.max_transfer,
                             .max_batch = 0,
                             .operations = info_.operations},
                            std::bit_cast<siov::Descriptor>(words));
    std::array<std::byte, sizeof(record)> bytes{};
    const memory::GuestMemoryPtr process = process_.Snapshot();
    CHECK(process->CopyOut(memory::Gpa(kScratch), bytes));
    std::memcpy(&record, bytes.data(), sizeof(record));
  }
  constexpr std::size_t kFirst = 8;
  std::array<std::byte, sizeof(record)> bytes{};
  std::memcpy(bytes.data(), &record, sizeof(record));
  std::memcpy(to + kFirst, bytes.data() + kFirst, sizeof(record) - kFirst);
  std::uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof(first));
  __atomic_store_n(static_cast<std::uint64_t*>(static_cast<void*>(to)), first, __ATOMIC_RELEASE);
}

}  // namespace postern::dsa
