#pragma once

// PlainExecutor: what a DSA does with a descriptor, written a second time and as simply as can be:
// a byte at a time, a CRC a bit at a time, on memory that is a list of byte arrays. Tests and fuzz
// targets compare Executor with it.
//
//   PlainMemory memory{{{0x0, std::vector<std::uint8_t>(4096)}}};
//   PlainExecutor plain(memory, caps);
//   plain.Execute(limits, descriptor);
//   plain.errors, plain.signals, memory.ranges
//
// Shares nothing with Executor but the interface of executor.h: its numbers are its own.

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "devices/siov/core/backend.h"
#include "devices/siov/engine/executor.h"

namespace postern::dsa {

struct PlainMemory {
  struct Range {
    std::uint64_t base;
    std::vector<std::uint8_t> bytes;
  };
  std::vector<Range> ranges;

  // Null: no memory there.
  [[nodiscard]] std::uint8_t* Find(std::uint64_t address);
};

// The tags of a DIF block.
struct PlainTags {
  unsigned guard;
  unsigned app;
  std::uint64_t ref;
};

class PlainExecutor {
 public:
  PlainExecutor(PlainMemory& memory, const ExecutorCaps& caps) : memory_(memory), caps_(caps) {}

  Executed Execute(const QueueLimits& limits, const siov::Descriptor& descriptor);

  std::set<std::uint32_t> handles;
  std::vector<std::uint32_t> signals;
  std::vector<siov::ErrorRecord> errors;
  std::uint32_t drains = 0;

 private:
  struct Raw;
  struct Answer;
  struct DifState;

  Executed One(const QueueLimits& limits, const Raw& raw, std::optional<unsigned> index);
  bool IsWhole(std::uint64_t address, std::uint64_t size);
  Answer Check(const QueueLimits& limits, const Raw& raw, bool in_batch);
  [[nodiscard]] std::uint32_t WrongFlags(const Raw& raw, bool in_batch) const;
  [[nodiscard]] Answer CheckNumbers(const QueueLimits& limits, const Raw& raw) const;
  Answer Do(const QueueLimits& limits, const Raw& raw);
  void Finish(const QueueLimits& limits, const Raw& raw, std::optional<unsigned> index,
              const Answer& answer);
  void Tell(const QueueLimits& limits, const Raw& raw, std::optional<unsigned> index,
            const Answer& answer);

  Answer Batch(const QueueLimits& limits, const Raw& raw);
  Answer Move(const Raw& raw);
  Answer Fill(const Raw& raw);
  Answer Compare(const Raw& raw);
  Answer CreateDelta(const Raw& raw);
  Answer ApplyDelta(const Raw& raw);
  Answer Dualcast(const Raw& raw);
  Answer Crc(const Raw& raw);
  Answer Dif(const Raw& raw);
  Answer DifBlock(const Raw& raw, const DifState& state);
  static unsigned DifMismatch(const PlainTags& got, unsigned guard, const DifState& state);
  Answer Flush(const Raw& raw);

  PlainMemory& memory_;
  ExecutorCaps caps_;
};

}  // namespace postern::dsa
