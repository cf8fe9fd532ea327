// Delta records: what to change where in one buffer to make it like another. DSA 8.3.8, 8.3.9.

#include <cstring>

#include "devices/siov/engine/operations.h"

namespace postern::dsa::internal {

using memory::Access;

namespace {

// Two bytes of offset, in units of 8, and the 8 bytes.
using Delta = std::array<std::byte, kDeltaSize>;
constexpr std::size_t kUnit = 8;

// Sources are compared in copies of ours of this size.
constexpr std::size_t kWindow = 2048;
using Window = std::array<std::byte, kWindow>;

// A record being created.
class DeltaWriter {
 public:
  DeltaWriter(const OperationContext& context, const CreateDeltaFields& fields)
      : context_(context), address_(fields.record.get()), room_(fields.max_size.get()) {}

  [[nodiscard]] std::uint32_t size() const { return size_; }
  [[nodiscard]] bool full() const { return room_ - size_ < kDeltaSize; }
  // Where memory is missing, if it is.
  [[nodiscard]] std::optional<std::uint64_t> Add(std::uint64_t offset,
                                                 std::span<const std::byte> data) {
    Delta delta;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
    const le16 unit(static_cast<std::uint16_t>(offset / kUnit));
    std::memcpy(delta.data(), &unit, sizeof(unit));
    std::memcpy(delta.data() + sizeof(unit), data.data(), kUnit);
    // Past the end of the address space there is no memory.
    const std::optional<memory::Gpa> at = At({address_, Access::kWrite}, size_);
    if (!at) return address_ + size_;
    if (const auto hole = Put(context_, at->value, delta)) return hole;
    size_ += kDeltaSize;
    return std::nullopt;
  }

 private:
  const OperationContext& context_;
  std::uint64_t address_;
  std::uint32_t room_;
  std::uint32_t size_ = 0;
};

// What ended the walk inside a window, if anything did.
std::optional<OperationOutcome> AddDifferences(DeltaWriter& writer, std::uint64_t offset,
                                               std::span<const std::byte> first,
                                               std::span<const std::byte> second) {
  for (std::size_t at = 0; at < first.size(); at += kUnit) {
    if (std::memcmp(first.data() + at, second.data() + at, kUnit) == 0) continue;
    if (writer.full()) {
      return OperationOutcome{.result = 2,
                              .bytes_completed = static_cast<std::uint32_t>(offset + at),
                              .bytes = offset + at};
    }
    if (const auto hole = writer.Add(offset + at, second.subspan(at, kUnit))) {
      return Fault({0, Access::kWrite}, *hole, offset + at);
    }
  }
  return std::nullopt;
}

// DSA 8.3.8: which results are success is a mask with one bit each.
void Judge(const WorkDescriptor& descriptor, OperationOutcome& outcome) {
  if (outcome.status != Completion::kSuccess || !descriptor.Has(Flag::kCheckResult)) return;
  if ((descriptor.As<CreateDeltaFields>().expected_mask >> outcome.result & 1) == 0) {
    outcome.status = Completion::kFalsePredicate;
  }
}

}  // namespace

OperationOutcome CreateDelta(const OperationContext& context, const WorkDescriptor& descriptor) {
  DeltaWriter writer(context, descriptor.As<CreateDeltaFields>());
  std::optional<OperationOutcome> ended;
  Window first;   // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  Window second;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  OperationOutcome outcome = ForPieces<2>(
      context,
      {{{descriptor.source.get(), Access::kRead}, {descriptor.destination.get(), Access::kRead}}},
      descriptor.size.get(), [&](const auto& views, std::uint64_t done, std::uint64_t n) {
        for (std::uint64_t at = 0; at < n && !ended; at += kWindow) {
          const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(n - at, kWindow));
          Must(views[0].CopyOut(at, std::span(first).first(size)));
          Must(views[1].CopyOut(at, std::span(second).first(size)));
          ended = AddDifferences(writer, done + at, std::span(first).first(size),
                                 std::span(second).first(size));
        }
        return !ended;
      });
  if (ended) outcome = *ended;
  if (outcome.result == 0 && writer.size() > 0) outcome.result = 1;
  outcome.specific[0] = writer.size();
  Judge(descriptor, outcome);
  return outcome;
}

OperationOutcome ApplyDelta(const OperationContext& context, const WorkDescriptor& descriptor) {
  const Buffer record{descriptor.source.get(), Access::kRead};
  const Buffer target{descriptor.destination.get(), Access::kWrite};
  const std::uint32_t record_size = descriptor.As<ApplyDeltaFields>().size.get();
  std::uint64_t next = 0;  // the least offset the next delta may have
  for (std::uint32_t done = 0; done < record_size; done += kDeltaSize) {
    if (done % (kPiece / 8) < kDeltaSize && done != 0 && context.environment.aborted()) {
      return Aborted(done);
    }
    Delta delta;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
    const std::optional<memory::Gpa> from = At(record, done);
    if (!from) return Fault(record, record.address + done, done);
    if (const auto hole = Fetch(context, from->value, delta)) return Fault(record, *hole, done);
    le16 unit;
    std::memcpy(&unit, delta.data(), sizeof(unit));
    const std::uint64_t offset = unit.get() * kUnit;
    if (offset < next) return {.status = Completion::kDeltaNotIncreasing, .bytes_completed = done};
    if (offset >= descriptor.size.get()) {
      return {.status = Completion::kDeltaOutOfRange, .bytes_completed = done};
    }
    const std::optional<memory::Gpa> to = At(target, offset);
    if (!to) return Fault(target, target.address + offset, done);
    if (const auto hole = Put(context, to->value, std::span(delta).subspan(sizeof(unit)))) {
      return Fault(target, *hole, done);
    }
    next = offset + kUnit;
  }
  return {.bytes = record_size};
}

}  // namespace postern::dsa::internal
