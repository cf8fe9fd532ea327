#pragma once

// ExecutorPair: an Executor and a PlainExecutor on memories of the same content. Both run each
// descriptor, and all they did is compared: memory, records, signals, error records, and that pages
// which changed are marked dirty. For tests and fuzz targets.
//
//   ExecutorPair pair({{0, 0x2000}}, caps);
//   pair.Store(0x1000, bytes);
//   CHECK(pair.Run(limits, descriptor) == "");
//
// Sequence makes descriptors of any bytes that mostly make sense, so that random bytes go deep.
// Threads: one.

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/executor.h"
#include "devices/siov/engine/plain_executor.h"
#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

namespace postern::dsa {

// An environment that keeps what it was told.
class RecordingEnvironment final : public ExecutorEnvironment {
 public:
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const override {
    return handles.count(handle) != 0;
  }
  void SignalHandle(std::uint32_t handle) override { signals.push_back(handle); }
  void OnError(const siov::ErrorRecord& record) override { errors.push_back(record); }
  void WaitForEarlier() override { ++drains; }
  [[nodiscard]] bool aborted() const override {
    ++asked;
    return asked > abort_after;
  }

  std::set<std::uint32_t> handles;
  std::vector<std::uint32_t> signals;
  std::vector<siov::ErrorRecord> errors;
  std::uint32_t drains = 0;
  mutable std::uint64_t asked = 0;
  std::uint64_t abort_after = ~std::uint64_t{0};  // answers of "go on"
};

class ExecutorPair {
 public:
  ExecutorPair(const std::vector<postern::testing::RegionSpec>& regions, const ExecutorCaps& caps,
               const std::set<std::uint32_t>& handles = {});

  void Store(std::uint64_t gpa, std::span<const std::byte> bytes);
  // What differs between the two, in words; nothing if nothing does.
  std::string Run(const QueueLimits& limits, const siov::Descriptor& descriptor);

  [[nodiscard]] const memory::GuestMemoryPtr& memory() const { return memory_; }
  [[nodiscard]] RecordingEnvironment& environment() { return environment_; }
  [[nodiscard]] const Executed& last() const { return last_; }

 private:
  std::string CompareMemory();

  memory::GuestMemoryPtr memory_;
  memory::MemoryMap map_;
  RecordingEnvironment environment_;
  Executor executor_;
  PlainMemory plain_memory_;
  PlainExecutor plain_;
  std::vector<std::vector<std::uint8_t>> before_;
  Executed last_;
};

// Turns bytes into a sequence of descriptors, and into the batches' lists.
class Sequence {
 public:
  Sequence(std::span<const std::uint8_t> bytes, ExecutorPair& pair) : bytes_(bytes), pair_(pair) {}

  // The memory its addresses are about.
  [[nodiscard]] static std::vector<postern::testing::RegionSpec> Regions();
  [[nodiscard]] static QueueLimits Limits();
  [[nodiscard]] static std::set<std::uint32_t> Handles() { return {0, 1, 7}; }

  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  siov::Descriptor Next() { return Make(false); }
  // Some bytes of guest memory.
  void Scribble();

 private:
  siov::Descriptor Make(bool in_batch);
  WorkDescriptor Fresh(bool in_batch);
  WorkDescriptor FollowUp();
  Opcode DifFollowUp(WorkDescriptor& descriptor);
  std::uint32_t Flags(Opcode opcode, bool in_batch);
  void Operands(WorkDescriptor& descriptor);
  void CrcOperands(WorkDescriptor& descriptor);
  void DifOperands(WorkDescriptor& descriptor);
  void DeltaOperands(WorkDescriptor& descriptor);
  void MakeBatch(WorkDescriptor& descriptor);

  std::uint8_t Byte();
  bool OneIn(std::uint8_t n) { return Byte() % n == 0; }
  std::uint64_t Number(int bytes);
  std::uint64_t Address(std::uint64_t alignment);
  std::uint32_t Size();

  std::span<const std::uint8_t> bytes_;
  ExecutorPair& pair_;
  WorkDescriptor previous_{};
};

}  // namespace postern::dsa
