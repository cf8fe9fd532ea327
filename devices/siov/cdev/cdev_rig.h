#pragma once

// CdevRig: a CdevBackend on a FakeIdxdQueue, with guest memory and somebody who listens.
//
//   CdevRig rig;
//   rig.queue->Hold(true);
//   CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
//
// Threads: the test's; the back end has its own.

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "devices/siov/cdev/cdev_backend.h"
#include "devices/siov/cdev/fake_idxd_queue.h"
#include "devices/siov/engine/fake_parts.h"
#include "src/base/check.h"

namespace postern::dsa {

constexpr std::uint64_t kRigMemory = 0x100000;
constexpr std::uint64_t kRigRecords = 0x1000, kRigFrom = 0x40000, kRigTo = 0x80000;
constexpr std::uint32_t kRigSize = 0x1000;

struct RigDescriptor {
  Opcode opcode = Opcode::kMove;
  std::uint32_t flags = Flag::kRecordValid | Flag::kRequestRecord | Flag::kRequestInterrupt;
  std::uint32_t place = 0;                                // of record, source and destination
  std::uint64_t record = 0, source = 0, destination = 0;  // 0: those of `place`
  std::uint32_t size = kRigSize;
  std::uint16_t handle = 1;
};

[[nodiscard]] inline siov::Descriptor Make(const RigDescriptor& d) {
  WorkDescriptor words{};
  const std::uint64_t data = std::uint64_t{d.place} * kRigSize;
  words.flags_and_opcode = le32(static_cast<std::uint32_t>(d.opcode) << 24 | d.flags);
  words.record = le64(d.record != 0 ? d.record : kRigRecords + d.place * kRecordSize);
  words.source = le64(d.source != 0 ? d.source : kRigFrom + data);
  words.destination = le64(d.destination != 0 ? d.destination : kRigTo + data);
  words.size = le32(d.size);
  words.handle = le16(d.handle);
  return std::bit_cast<siov::Descriptor>(words);
}
[[nodiscard]] inline siov::Descriptor Move(std::uint32_t place) {
  return Make({.place = place});
}

struct CdevRig {
  explicit CdevRig(IdxdQueueInfo info = FakeIdxdQueue::DefaultInfo(),
                   const CdevOptions& options = {}, bool track_dirty = false)
      : memory(SharedMemory({{0, kRigMemory}}, track_dirty)) {
    auto own = std::make_unique<FakeIdxdQueue>(memory.Snapshot(), std::move(info));
    queue = own.get();
    backend = CdevBackend::Create(options, memory, std::move(own)).value();
    backend->Attach(events);
  }
  // "" or what was wrong.
  std::string Enable(std::uint32_t size = 16) {
    if (auto started = backend->Start({.groups = {{.queues = 1, .engines = 1}}}); !started)
      return started.error().op;
    const auto enabled = backend->Enable(0, Config(size));
    return enabled ? "" : enabled.error().op;
  }
  [[nodiscard]] siov::QueueConfig Config(std::uint32_t size = 16) const {
    return {.size = size,
            .max_transfer = std::uint64_t{1} << 20,
            .operations = backend->caps().operations};
  }
  siov::SubmitResult Submit(const siov::Descriptor& descriptor) {
    return backend->Submit(0, descriptor);
  }
  [[nodiscard]] std::uint8_t Status(std::uint32_t place) const {
    return Record(kRigRecords + place * kRecordSize).status;
  }
  [[nodiscard]] CompletionRecord Record(std::uint64_t address = kRigRecords) const {
    const auto view =
        memory.Snapshot()->View(memory::Gpa(address), kRecordSize, memory::Access::kRead).value();
    CompletionRecord record;
    std::array<std::byte, sizeof(record)> bytes{};
    // Pairs with the back end's store of it.
    const std::uint64_t first = __atomic_load_n(
        static_cast<const std::uint64_t*>(view.ToIovec().iov_base), __ATOMIC_ACQUIRE);
    if ((first & 0xff) == 0) return record;
    CHECK(memory.Snapshot()->CopyOut(memory::Gpa(address), bytes));
    std::memcpy(&record, bytes.data(), sizeof(record));
    return record;
  }
  [[nodiscard]] std::uint64_t Count(const std::string& name) const {
    return CounterMap(*backend)[name];
  }

  memory::MemoryMap memory;
  FakeBackendEvents events;
  FakeIdxdQueue* queue = nullptr;
  std::unique_ptr<CdevBackend> backend;
};

}  // namespace postern::dsa
