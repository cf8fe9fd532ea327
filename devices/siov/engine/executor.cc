#include "devices/siov/engine/executor.h"

#include <array>
#include <bit>
#include <cstddef>
#include <optional>
#include <utility>

#include "devices/siov/engine/checks.h"
#include "devices/siov/engine/operations.h"

namespace postern::dsa {
namespace {

using internal::OperationContext;
using internal::OperationOutcome;
using memory::Access;
using memory::Gpa;
using memory::GuestView;

// Where a descriptor came from: its place in a batch, or the queue itself. One word: to read as one
// what was just stored in parts, as of an optional, makes the processor wait.
using BatchIndex = std::uint32_t;
constexpr BatchIndex kFromQueue = ~BatchIndex{0};

bool IsSuccess(Completion status) {
  return status == Completion::kSuccess || status == Completion::kFalsePredicate ||
         status == Completion::kBatchHadErrors;
}

bool IsFault(Completion status) {
  return status == Completion::kPageFault || status == Completion::kBatchListFault ||
         status == Completion::kRecordFault;
}

// DSA 8.2. Word by word from the fields, not by way of a CompletionRecord: to read as eight bytes
// what was just stored in pieces makes the processor wait.
[[gnu::always_inline]] inline void WriteRecord(const GuestView& record,
                                               const OperationOutcome& outcome) {
  static_assert(
      offsetof(CompletionRecord, result) == 1 && offsetof(CompletionRecord, bytes_completed) == 4 &&
      offsetof(CompletionRecord, fault_address) == 8 && offsetof(CompletionRecord, specific) == 16);
  internal::Must(record.Write(8, le64(outcome.fault_address)));
  internal::Must(record.Write(16, le64(outcome.specific[0])));
  internal::Must(record.Write(24, le64(outcome.specific[1])));
  const auto status = static_cast<std::uint8_t>(outcome.status);
  // Pairs with the guest's reading of the status: it then sees the data and the rest of the record.
  record.StoreRelease64(0, std::uint64_t{status} | outcome.status_bits |
                               std::uint64_t{outcome.result} << 8 |
                               std::uint64_t{outcome.bytes_completed} << 32);
}

// One call of Execute.
class Execution {
 public:
  Execution(const OperationContext& context, const ExecutorCaps& caps, const QueueLimits& limits,
            ExecutorEnvironment& environment)
      : context_(context), check_{caps, limits, environment}, environment_(environment) {}

  Executed Run(const WorkDescriptor& descriptor, BatchIndex index);

 private:
  struct Done {
    OperationOutcome outcome;
    std::uint32_t descriptors = 1;
  };

  // False: nothing was done, and it goes the way of all others, which does the same with it and has
  // an answer to whatever may be wrong.
  [[nodiscard, gnu::noinline]] bool RunPlainMove(const WorkDescriptor& descriptor);
  std::optional<OperationOutcome> FindRecord(const WorkDescriptor& descriptor, GuestView& record);
  Done Work(const WorkDescriptor& descriptor, BatchIndex index);
  Done RunBatch(const WorkDescriptor& batch);
  OperationOutcome Drain();
  void Complete(const WorkDescriptor& descriptor, BatchIndex index, const GuestView& record,
                const OperationOutcome& outcome);
  void Report(const WorkDescriptor& descriptor, BatchIndex index, const OperationOutcome& outcome);

  const OperationContext& context_;
  internal::CheckContext check_;
  ExecutorEnvironment& environment_;
};

// DSA 5.4: why a descriptor is to be discarded, if its record cannot be written.
std::optional<OperationOutcome> Execution::FindRecord(const WorkDescriptor& descriptor,
                                                      GuestView& record) {
  const std::uint64_t address = descriptor.record.get();
  if (address % kRecordSize != 0) {
    return OperationOutcome{.status = Completion::kRecordMisaligned};
  }
  record = context_.memory.Run(Gpa(address), kRecordSize);
  if (record.size() != kRecordSize) {
    return OperationOutcome{
        .status = Completion::kRecordFault, .status_bits = kFaultOnWrite, .fault_address = address};
  }
  return std::nullopt;
}

// A move as drivers send them by the million: of one piece, all of it in RAM, with a record and
// maybe an interrupt.
bool LooksPlain(const WorkDescriptor& descriptor) {
  constexpr std::uint32_t kPlain = std::uint32_t{static_cast<std::uint8_t>(Opcode::kMove)} << 24 |
                                   Flag::kRecordValid | Flag::kRequestRecord;
  constexpr std::uint32_t kOptional = Flag::kRequestInterrupt | Flag::kCacheControl1;
  return (descriptor.flags_and_opcode.get() & ~kOptional) == kPlain;
}

bool Execution::RunPlainMove(const WorkDescriptor& descriptor) {
  constexpr std::uint64_t kMoveBit = std::uint64_t{1} << static_cast<std::uint8_t>(Opcode::kMove);
  const std::uint32_t flags = descriptor.flags();
  const std::uint64_t source = descriptor.source.get();
  const std::uint64_t destination = descriptor.destination.get();
  const std::uint64_t record_at = descriptor.record.get();
  const std::uint64_t size = descriptor.size.get();
  const std::uint32_t handle = descriptor.handle.get();
  const auto specific = std::bit_cast<std::array<std::uint64_t, 3>>(descriptor.specific);
  const bool interrupts = (flags & Flag::kRequestInterrupt) != 0;
  const std::uint64_t reserved = specific[0] | specific[1] | specific[2] |
                                 descriptor.reserved.get() | (interrupts ? 0 : handle) |
                                 record_at % kRecordSize;
  const bool flushes = (flags & Flag::kCacheControl1) != 0 && !check_.caps.cache_control;
  const bool allowed =
      (check_.caps.operations[0] & check_.limits.operations[0] & kMoveBit) != 0 && !flushes;
  // Overlapping at all is enough to be no plain one. Differences wrap, as the ranges do.
  const bool apart = destination - source >= size && source - destination >= size;
  if (reserved != 0 || !allowed || !apart || size - 1 >= check_.limits.max_transfer ||
      size > internal::kPiece || (interrupts && !environment_.IsHandle(handle))) {
    return false;
  }
  const GuestView record = context_.memory.Run(Gpa(record_at), kRecordSize);
  const GuestView from = context_.memory.Run(Gpa(source), size);
  const GuestView to = context_.memory.Run(Gpa(destination), size);
  if (record.size() != kRecordSize || from.size() != size || to.size() != size) return false;
  internal::Must(from.CopyTo(0, to, 0, size));
  WriteRecord(record, {});
  if (interrupts) environment_.SignalHandle(handle);
  return true;
}

Executed Execution::Run(const WorkDescriptor& descriptor, BatchIndex index) {
  if (LooksPlain(descriptor) && RunPlainMove(descriptor)) {
    return {.operation = static_cast<std::uint8_t>(Opcode::kMove),
            .status = static_cast<std::uint8_t>(Completion::kSuccess),
            .bytes = descriptor.size.get()};
  }
  const auto operation = static_cast<std::uint8_t>(descriptor.opcode());
  GuestView record;
  if (descriptor.Has(Flag::kRecordValid)) {
    if (const auto discarded = FindRecord(descriptor, record)) {
      Report(descriptor, index, *discarded);
      return {.operation = operation, .status = static_cast<std::uint8_t>(discarded->status)};
    }
  }
  const Done done = Work(descriptor, index);
  if (done.outcome.status != Completion::kNone) {
    Complete(descriptor, index, record, done.outcome);
  }
  return {.operation = operation,
          .status = static_cast<std::uint8_t>(done.outcome.status),
          .bytes = done.outcome.bytes,
          .descriptors = done.descriptors};
}

Execution::Done Execution::Work(const WorkDescriptor& descriptor, BatchIndex index) {
  std::uint32_t invalid_flags = 0;
  const Completion verdict =
      internal::CheckDescriptor(check_, descriptor, index != kFromQueue, invalid_flags);
  if (verdict != Completion::kSuccess) {
    return {{.status = verdict, .specific = {invalid_flags, 0}}};
  }
  switch (descriptor.opcode()) {
    case Opcode::kNoop:
      return {};
    case Opcode::kBatch:
      return RunBatch(descriptor);
    case Opcode::kDrain:
      return {Drain()};
    case Opcode::kMove:
      return {internal::Move(context_, descriptor)};
    case Opcode::kFill:
      return {internal::Fill(context_, descriptor)};
    case Opcode::kCompare:
      return {internal::Compare(context_, descriptor)};
    case Opcode::kComparePattern:
      return {internal::ComparePattern(context_, descriptor)};
    case Opcode::kCreateDelta:
      return {internal::CreateDelta(context_, descriptor)};
    case Opcode::kApplyDelta:
      return {internal::ApplyDelta(context_, descriptor)};
    case Opcode::kDualcast:
      return {internal::Dualcast(context_, descriptor)};
    case Opcode::kCrc:
      return {internal::Crc(context_, descriptor)};
    case Opcode::kCopyCrc:
      return {internal::CopyCrc(context_, descriptor)};
    case Opcode::kDifCheck:
    case Opcode::kDifInsert:
    case Opcode::kDifStrip:
    case Opcode::kDifUpdate:
      return {internal::Dif(context_, descriptor)};
    case Opcode::kCacheFlush:
      return {internal::FlushCaches(context_, descriptor)};
  }
  return {{.status = Completion::kBadOpcode}};  // CheckDescriptor let it not come here
}

OperationOutcome Execution::Drain() {
  environment_.WaitForEarlier();
  return environment_.aborted() ? internal::Aborted(0) : OperationOutcome{};
}

// DSA 3.8, 8.3.2. One after the other, so a fence has nobody to wait for. A descriptor of the list
// is read when its turn comes, and once.
Execution::Done Execution::RunBatch(const WorkDescriptor& batch) {
  const internal::Buffer list{batch.source.get(), Access::kRead};
  Done done;
  bool failed = false;
  std::uint32_t index = 0;
  for (; index < batch.size.get(); ++index) {
    if (index != 0 && environment_.aborted()) {
      return {internal::Aborted(done.outcome.bytes), done.descriptors};
    }
    const std::uint64_t offset = std::uint64_t{index} * siov::kDescriptorSize;
    const std::optional<Gpa> at = internal::At(list, offset);
    const Result<WorkDescriptor> descriptor =
        at ? context_.memory.Read<WorkDescriptor>(*at) : Err(Errc::kGuestRange, "batch");
    if (!descriptor) {
      done.outcome.status = Completion::kBatchListFault;
      done.outcome.bytes_completed = index;
      done.outcome.fault_address = list.address + offset;
      return done;
    }
    // DSA 3.9: what follows a fence is abandoned if anything before did not succeed.
    if (failed && descriptor->Has(Flag::kFence)) break;
    const Executed one = Run(*descriptor, index);
    done.outcome.bytes += one.bytes;
    if (one.status == static_cast<std::uint8_t>(Completion::kNone)) {
      return {internal::Aborted(done.outcome.bytes), done.descriptors};
    }
    ++done.descriptors;
    failed = failed || one.status != static_cast<std::uint8_t>(Completion::kSuccess);
  }
  done.outcome.bytes_completed = index;
  if (failed) done.outcome.status = Completion::kBatchHadErrors;
  return done;
}

void Execution::Complete(const WorkDescriptor& descriptor, BatchIndex index,
                         const GuestView& record, const OperationOutcome& outcome) {
  const bool success = IsSuccess(outcome.status);
  const bool has_record = descriptor.Has(Flag::kRecordValid);
  if (has_record && (!success || descriptor.Has(Flag::kRequestRecord))) {
    WriteRecord(record, outcome);
  }
  if ((!success && !has_record) || outcome.status == Completion::kBadHandle) {
    Report(descriptor, index, outcome);
  }
  // DSA 5.4: none if the handle is wrong, which may be more than what was reported.
  if (descriptor.Has(Flag::kRequestInterrupt) && outcome.status != Completion::kBadHandle &&
      environment_.IsHandle(descriptor.handle.get())) {
    environment_.SignalHandle(descriptor.handle.get());
  }
}

// DSA 9.2.15.
void Execution::Report(const WorkDescriptor& descriptor, BatchIndex index,
                       const OperationOutcome& outcome) {
  constexpr std::uint64_t kValid = 1U << 0;
  constexpr std::uint64_t kDescriptorValid = 1U << 2;
  constexpr std::uint64_t kQueueValid = 1U << 3;
  constexpr std::uint64_t kInBatch = 1U << 4;
  constexpr std::uint64_t kWrite = 1U << 5;
  constexpr std::uint64_t kPrivileged = 1U << 6;
  constexpr std::uint64_t kInfoValid = 1U << 7;
  std::uint64_t what = kValid | kDescriptorValid | kQueueValid;
  what |= std::uint64_t{static_cast<std::uint8_t>(outcome.status)} << 8;
  what |= std::uint64_t{check_.limits.queue & 0xff} << 16;
  what |= std::uint64_t{static_cast<std::uint8_t>(descriptor.opcode())} << 32;
  if (index != kFromQueue) what |= kInBatch;
  if (check_.limits.privileged) what |= kPrivileged;
  if (outcome.status_bits == kFaultOnWrite) what |= kWrite;
  std::uint64_t info = 0;
  if (outcome.status == Completion::kBadFlags) info = outcome.specific[0];
  if (outcome.status == Completion::kBadHandle) info = descriptor.handle.get();
  if (info != 0 || outcome.status == Completion::kBadHandle) what |= kInfoValid;
  environment_.OnError({.queue = check_.limits.queue,
                        .words = {what, info << 32 | (index != kFromQueue ? index : 0),
                                  IsFault(outcome.status) ? outcome.fault_address : 0, 0}});
}

}  // namespace

Executor::Executor(const memory::MemoryMap& memory, const ExecutorCaps& caps,
                   ExecutorEnvironment& environment)
    : map_(memory), caps_(caps), environment_(environment), checksums_(BestChecksums()) {}

void Executor::Refresh() {
  const std::uint64_t generation = map_.generation();
  if (memory_ != nullptr && generation == generation_) return;
  memory_ = map_.Snapshot();
  generation_ = generation;
}

Executed Executor::Execute(const QueueLimits& limits, const siov::Descriptor& descriptor) {
  Refresh();
  const OperationContext context{*memory_, environment_, checksums_};
  return Execution(context, caps_, limits, environment_)
      .Run(std::bit_cast<WorkDescriptor>(descriptor), kFromQueue);
}

void Executor::Rest() {
  memory_.reset();
}

}  // namespace postern::dsa
