#pragma once

// The data operations of a DSA on guest memory, each a function of a checked descriptor.
//
//   const OperationOutcome outcome = Move(context, descriptor);
//
// What lies outside RAM ends an operation with kPageFault, the address of the first byte that could
// not be reached and the bytes that were done before it. Of several buffers with no memory at the
// same place the one that comes first in the operation's list (sources first) is named.
//
// Is not about completion: Executor writes records and signals. Threads: the executor's.

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "devices/siov/engine/checksum.h"
#include "devices/siov/engine/descriptor.h"
#include "devices/siov/engine/executor.h"
#include "src/base/check.h"
#include "src/memory/guest_memory.h"

namespace postern::dsa::internal {

// Between two pieces of a transfer the executor asks whether to go on.
constexpr std::uint64_t kPiece = 1 << 20;
// Moves of at least so much go around the caches (unless the descriptor asks for the cache).
constexpr std::uint64_t kStreamFrom = 16 << 20;

struct OperationContext {
  const memory::GuestMemory& memory;
  const ExecutorEnvironment& environment;
  const Checksums& checksums;
};

struct OperationOutcome {
  Completion status = Completion::kSuccess;  // kNone: aborted
  std::uint8_t status_bits = 0;              // kFaultOnWrite
  std::uint8_t result = 0;
  std::uint32_t bytes_completed = 0;
  std::uint64_t fault_address = 0;
  std::array<std::uint64_t, 2> specific{};
  std::uint64_t bytes = 0;  // moved, filled, read: for counters
};

struct Buffer {
  std::uint64_t address;
  memory::Access access;
};

[[nodiscard]] OperationOutcome Fault(const Buffer& buffer, std::uint64_t at, std::uint64_t done);
[[nodiscard]] inline OperationOutcome Aborted(std::uint64_t done) {
  return {.status = Completion::kNone, .bytes = done};
}

// The byte `done` of a buffer; nothing beyond the end of the address space.
[[nodiscard]] inline std::optional<memory::Gpa> At(const Buffer& buffer, std::uint64_t done) {
  return memory::Gpa(buffer.address).CheckedAdd(done);
}

// Walks `size` bytes of all buffers together, upwards, in the largest pieces that lie in one region
// each: work(views, done, n) gets n bytes of each, and returns false to stop. An outcome other than
// kSuccess is a fault or an abort.
template <std::size_t N, typename F>
[[nodiscard]] OperationOutcome ForPieces(const OperationContext& context,
                                         const std::array<Buffer, N>& buffers, std::uint64_t size,
                                         F&& work) {
  std::uint64_t done = 0;
  while (done < size) {
    if (done != 0 && context.environment.aborted()) return Aborted(done);
    std::uint64_t n = std::min(size - done, kPiece);
    std::array<memory::GuestView, N> views;
    for (std::size_t i = 0; i < N; ++i) {
      const std::optional<memory::Gpa> at = At(buffers[i], done);
      if (!at) return Fault(buffers[i], buffers[i].address + done, done);
      views[i] = context.memory.Run(*at, n);
      n = views[i].size();
      if (n == 0) return Fault(buffers[i], at->value, done);
    }
    if (!work(views, done, n)) break;
    done += n;
  }
  return {.bytes = done};
}

// A whole range to or from a copy of ours; nothing is written unless all of it can be. Otherwise
// the address of the first byte without memory.
[[nodiscard]] std::optional<std::uint64_t> Fetch(const OperationContext& context,
                                                 std::uint64_t address, std::span<std::byte> to);
[[nodiscard]] std::optional<std::uint64_t> Put(const OperationContext& context,
                                               std::uint64_t address,
                                               std::span<const std::byte> from);

// For what fits the view it was made from.
inline void Must(const Result<void>& result) {
  CHECK(result.has_value());
}

using Operation = OperationOutcome(const OperationContext&, const WorkDescriptor&);
Operation Move;
Operation Fill;
Operation Compare;
Operation ComparePattern;
Operation CreateDelta;
Operation ApplyDelta;
Operation Dualcast;
Operation Crc;
Operation CopyCrc;
Operation Dif;  // all four
Operation FlushCaches;

}  // namespace postern::dsa::internal
