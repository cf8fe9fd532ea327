#pragma once

// ExecutorRig: an executor with memory of its own, and descriptors written field by field, for
// tests.
//
//   ExecutorRig rig;
//   const Ran ran = rig.Run(Describe(Opcode::kMove).From(0x1000).To(0x2000).Size(64));
//   CHECK(ran.record.status == 1);
//
// Everything is also run by PlainExecutor, and must come out the same.

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/executor_pair.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {

constexpr std::uint64_t kRecordAt = 0x100;
constexpr std::uint32_t kWithRecord = Flag::kRecordValid | Flag::kRequestRecord;

// A descriptor under construction. It asks for a record at kRecordAt.
class Describe {
 public:
  explicit Describe(Opcode opcode, std::uint32_t flags = 0) {
    descriptor_.flags_and_opcode =
        std::uint32_t{static_cast<std::uint8_t>(opcode)} << 24 | kWithRecord | flags;
    descriptor_.record = kRecordAt;
  }
  Describe& From(std::uint64_t address) { return Set(descriptor_.source, address); }
  Describe& To(std::uint64_t address) { return Set(descriptor_.destination, address); }
  Describe& Size(std::uint32_t size) { return Set(descriptor_.size, size); }
  Describe& Record(std::uint64_t address) { return Set(descriptor_.record, address); }
  Describe& Handle(std::uint16_t handle) { return Set(descriptor_.handle, handle); }
  // All 24 of them, kWithRecord too.
  Describe& Flags(std::uint32_t flags) {
    return Set(descriptor_.flags_and_opcode,
               (descriptor_.flags_and_opcode.get() & 0xff000000) | flags);
  }
  // No record at all.
  Describe& Silent() { return Record(0).Flags(descriptor_.flags() & ~kWithRecord); }
  // Bytes 40..63.
  template <typename T>
  Describe& With(const T& fields) {
    static_assert(sizeof(T) == sizeof(descriptor_.specific));
    descriptor_.specific = std::bit_cast<std::array<std::byte, 24>>(fields);
    return *this;
  }
  [[nodiscard]] siov::Descriptor bytes() const {
    return std::bit_cast<siov::Descriptor>(descriptor_);
  }

 private:
  template <typename T, typename U>
  Describe& Set(T& field, U value) {
    field = value;
    return *this;
  }
  WorkDescriptor descriptor_{};
};

struct Ran {
  Executed executed;
  CompletionRecord record;
  // Of this run.
  std::vector<std::uint32_t> signals;
  std::vector<siov::ErrorRecord> errors;

  [[nodiscard]] std::uint32_t bytes_completed() const { return record.bytes_completed.get(); }
  [[nodiscard]] std::uint64_t fault_address() const { return record.fault_address.get(); }
};

class ExecutorRig {
 public:
  // RAM: 0..64 KiB, a hole of 64 KiB, 64 KiB more that touch another 64 KiB.
  static constexpr std::uint64_t kHole = 0x10000;
  static constexpr std::uint64_t kAfterHole = 0x20000;
  static constexpr std::uint64_t kSeam = 0x30000;
  static constexpr std::uint64_t kEnd = 0x40000;

  explicit ExecutorRig(const ExecutorCaps& caps = {.operations = kAllOperations})
      : pair_({{0, kHole}, {kAfterHole, kSeam - kAfterHole}, {kSeam, kEnd - kSeam}}, caps, {0, 5}) {
  }

  QueueLimits limits{
      .queue = 2, .max_transfer = 0x8000, .max_batch = 8, .operations = kAllOperations};

  Ran Run(const siov::Descriptor& descriptor, std::uint64_t record_at = kRecordAt) {
    RecordingEnvironment& environment = pair_.environment();
    const std::size_t signals = environment.signals.size();
    const std::size_t errors = environment.errors.size();
    Store(record_at, std::vector<std::byte>(kRecordSize));
    const std::string difference = pair_.Run(limits, descriptor);
    CHECK_MESSAGE(difference.empty(), difference);
    Ran ran;
    ran.executed = pair_.last();
    ran.record = RecordAt(record_at);
    ran.signals.assign(environment.signals.begin() + static_cast<std::ptrdiff_t>(signals),
                       environment.signals.end());
    ran.errors.assign(environment.errors.begin() + static_cast<std::ptrdiff_t>(errors),
                      environment.errors.end());
    return ran;
  }
  Ran Run(const Describe& descriptor) { return Run(descriptor.bytes()); }
  // The status the record has, page faults with their write bit.
  unsigned Status(const Describe& descriptor) { return Run(descriptor).record.status; }
  unsigned Status(const siov::Descriptor& descriptor) { return Run(descriptor).record.status; }

  void Store(std::uint64_t gpa, std::span<const std::byte> bytes) { pair_.Store(gpa, bytes); }
  [[nodiscard]] std::vector<std::byte> Load(std::uint64_t gpa, std::size_t size) const {
    return postern::testing::Load(pair_.memory(), gpa, size);
  }
  [[nodiscard]] CompletionRecord RecordAt(std::uint64_t gpa) const {
    CompletionRecord record;
    const std::vector<std::byte> bytes = Load(gpa, sizeof(record));
    std::memcpy(&record, bytes.data(), sizeof(record));
    return record;
  }
  [[nodiscard]] ExecutorPair& pair() { return pair_; }

 private:
  ExecutorPair pair_;
};

// A descriptor of each kind that succeeds on a rig whose memory is all zeros.
[[nodiscard]] std::vector<std::pair<Opcode, Describe>> GoodDescriptors();

}  // namespace postern::dsa
