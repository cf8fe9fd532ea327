#include "devices/siov/engine/operations.h"

#include <bit>

namespace postern::dsa::internal {

using memory::Access;
using memory::Gpa;
using memory::GuestView;
using memory::Stores;

namespace {

// Where the first byte without memory is; some byte of the range has none.
std::uint64_t FirstHole(const OperationContext& context, std::uint64_t address,
                        std::uint64_t size) {
  std::uint64_t hole = address;
  const OperationOutcome end =
      ForPieces<1>(context, {{{address, Access::kRead}}}, size,
                   [&hole](const auto& views, std::uint64_t, std::uint64_t n) {
                     hole = views[0].gpa().value + n;
                     return true;
                   });
  static_cast<void>(end);
  return hole;
}

// DSA 8.3.4: from the end, where the destination begins in the source. Bytes completed count from
// there.
OperationOutcome MoveDownwards(const OperationContext& context, const Buffer& source,
                               const Buffer& destination, std::uint64_t size) {
  const auto fault = [size](const Buffer& buffer, std::uint64_t left) {
    OperationOutcome outcome = Fault(buffer, buffer.address + left - 1, size - left);
    outcome.result = 1;
    return outcome;
  };
  for (std::uint64_t left = size; left > 0;) {
    if (left != size && context.environment.aborted()) return Aborted(size - left);
    const std::optional<Gpa> from = At(source, left - 1);
    if (!from) return fault(source, left);
    const Result<GuestView> read =
        context.memory.ViewRunUpTo(*from, std::min(left, kPiece), Access::kRead);
    if (!read) return fault(source, left);
    const std::optional<Gpa> to = At(destination, left - 1);
    if (!to) return fault(destination, left);
    const Result<GuestView> write = context.memory.ViewRunUpTo(*to, read->size(), Access::kWrite);
    if (!write) return fault(destination, left);
    Must(read->CopyTo(read->size() - write->size(), *write, 0, write->size()));
    left -= write->size();
  }
  return {.bytes = size};
}

std::uint64_t Rotated(std::uint64_t pattern, std::uint64_t done) {
  return std::rotr(pattern, static_cast<int>(done % 8 * 8));
}

// DSA 8.3.6: bit 0 of the expected result is looked at where the flag asks for it.
void Judge(const WorkDescriptor& descriptor, const std::optional<std::uint64_t>& difference,
           OperationOutcome& outcome) {
  if (difference) {
    outcome.result = 1;
    outcome.bytes_completed = static_cast<std::uint32_t>(*difference);
    outcome.bytes = *difference;
  }
  if (outcome.status != Completion::kSuccess || !descriptor.Has(Flag::kCheckResult)) return;
  if ((descriptor.As<CompareFields>().expected & 1) != outcome.result) {
    outcome.status = Completion::kFalsePredicate;
  }
}

}  // namespace

OperationOutcome Fault(const Buffer& buffer, std::uint64_t at, std::uint64_t done) {
  return {.status = Completion::kPageFault,
          .status_bits = buffer.access == Access::kWrite ? kFaultOnWrite : std::uint8_t{0},
          .bytes_completed = static_cast<std::uint32_t>(done),
          .fault_address = at,
          .bytes = done};
}

std::optional<std::uint64_t> Fetch(const OperationContext& context, std::uint64_t address,
                                   std::span<std::byte> to) {
  if (context.memory.CopyOut(Gpa(address), to)) return std::nullopt;
  return FirstHole(context, address, to.size());
}

std::optional<std::uint64_t> Put(const OperationContext& context, std::uint64_t address,
                                 std::span<const std::byte> from) {
  if (context.memory.CopyIn(Gpa(address), from)) return std::nullopt;
  return FirstHole(context, address, from.size());
}

OperationOutcome Move(const OperationContext& context, const WorkDescriptor& descriptor) {
  const std::uint64_t size = descriptor.size.get();
  const std::array<Buffer, 2> buffers{
      {{descriptor.source.get(), Access::kRead}, {descriptor.destination.get(), Access::kWrite}}};
  const std::uint64_t ahead = descriptor.destination.get() - descriptor.source.get();
  if (ahead != 0 && ahead < size) return MoveDownwards(context, buffers[0], buffers[1], size);
  // DSA 8.1.3.1: cache control 1 asks for the data in the cache.
  const bool streamed = size >= kStreamFrom && !descriptor.Has(Flag::kCacheControl1);
  const Stores stores = streamed ? Stores::kStreamed : Stores::kCached;
  return ForPieces<2>(context, buffers, size,
                      [stores](const auto& views, std::uint64_t, std::uint64_t n) {
                        Must(views[0].CopyTo(0, views[1], 0, n, stores));
                        return true;
                      });
}

OperationOutcome Fill(const OperationContext& context, const WorkDescriptor& descriptor) {
  const std::uint64_t pattern = descriptor.source.get();
  return ForPieces<1>(context, {{{descriptor.destination.get(), Access::kWrite}}},
                      descriptor.size.get(),
                      [pattern](const auto& views, std::uint64_t done, std::uint64_t n) {
                        Must(views[0].FillPattern(0, n, Rotated(pattern, done)));
                        return true;
                      });
}

OperationOutcome Compare(const OperationContext& context, const WorkDescriptor& descriptor) {
  std::optional<std::uint64_t> difference;
  OperationOutcome outcome = ForPieces<2>(
      context,
      {{{descriptor.source.get(), Access::kRead}, {descriptor.destination.get(), Access::kRead}}},
      descriptor.size.get(), [&difference](const auto& views, std::uint64_t done, std::uint64_t n) {
        const Result<std::size_t> same = views[0].SameAs(0, views[1], 0, n);
        CHECK(same.has_value());
        if (*same < n) difference = done + *same;
        return *same == n;
      });
  Judge(descriptor, difference, outcome);
  return outcome;
}

OperationOutcome ComparePattern(const OperationContext& context, const WorkDescriptor& descriptor) {
  const std::uint64_t pattern = descriptor.destination.get();
  std::optional<std::uint64_t> difference;
  OperationOutcome outcome = ForPieces<1>(
      context, {{{descriptor.source.get(), Access::kRead}}}, descriptor.size.get(),
      [&](const auto& views, std::uint64_t done, std::uint64_t n) {
        const Result<std::size_t> same = views[0].SameAsPattern(0, n, Rotated(pattern, done));
        CHECK(same.has_value());
        if (*same < n) difference = done + *same;
        return *same == n;
      });
  Judge(descriptor, difference, outcome);
  return outcome;
}

OperationOutcome Dualcast(const OperationContext& context, const WorkDescriptor& descriptor) {
  return ForPieces<3>(context,
                      {{{descriptor.source.get(), Access::kRead},
                        {descriptor.destination.get(), Access::kWrite},
                        {descriptor.As<DualcastFields>().destination2.get(), Access::kWrite}}},
                      descriptor.size.get(), [](const auto& views, std::uint64_t, std::uint64_t n) {
                        Must(views[0].CopyTo(0, views[1], 0, n));
                        Must(views[0].CopyTo(0, views[2], 0, n));
                        return true;
                      });
}

// DSA 8.3.26. Nothing is written, so a fault is one of reading.
OperationOutcome FlushCaches(const OperationContext& context, const WorkDescriptor& descriptor) {
  const auto lines =
      descriptor.Has(Flag::kCacheControl1) ? memory::CacheLines::kKeep : memory::CacheLines::kEvict;
  return ForPieces<1>(context, {{{descriptor.destination.get(), Access::kRead}}},
                      descriptor.size.get(),
                      [lines](const auto& views, std::uint64_t, std::uint64_t n) {
                        Must(views[0].FlushCache(0, n, lines));
                        return true;
                      });
}

}  // namespace postern::dsa::internal
