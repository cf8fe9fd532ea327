#pragma once

// ParseRequest: a virtio-blk request as a value: what the driver asks, checked against nothing but
// its own form; and the checks against a disk's limits. Pure: no I/O, no state.
//
//   Reader reader = chain.reader();
//   Writer writer = chain.writer();
//   BlkRequest request = TRY(ParseRequest(reader, writer));   // the cursors are now at the payload
//   if (auto refused = Refuse(request, limits)) ...           // answer *refused, touch no disk
//
// Source: VIRTIO 1.2, 5.2.6. Threads: any.

#include <cstdint>
#include <optional>

#include "devices/virtio/blk/blk_config.h"
#include "devices/virtio/queue/chain.h"

namespace postern::virtio {

enum class BlkRequestKind : std::uint8_t {
  kRead,
  kWrite,
  kFlush,
  kGetId,
  kDiscard,
  kWriteZeroes,
  kUnsupported,
};

struct BlkRequest {
  BlkRequestKind kind = BlkRequestKind::kUnsupported;
  std::uint64_t sector = 0;
  std::uint64_t bytes = 0;  // of payload, without the status byte
  Writer status{Segments()};
};

// What a disk allows.
struct BlkLimits {
  std::uint64_t capacity = 0;  // sectors
  bool readonly = false;
  std::uint32_t alignment = 512;  // reads and writes begin and end at multiples of this many bytes
  bool discard = false;
  bool write_zeroes = false;
  std::uint32_t max_ranges = 0;           // of one discard or write-zeroes request
  std::uint32_t max_discard_sectors = 0;  // of one range
  std::uint32_t max_write_zeroes_sectors = 0;
};

// Leaves `reader` at the payload of a write, `writer` over the payload of a read. kGuestProtocol if
// there is no room for a header or for the status: such a request cannot be answered.
[[nodiscard]] Result<BlkRequest> ParseRequest(Reader& reader, Writer& writer);

// The status to answer without doing anything, if the disk cannot serve the request. Ranges are
// checked one by one by RefuseRange.
[[nodiscard]] std::optional<BlkStatus> Refuse(const BlkRequest& request, const BlkLimits& limits);
[[nodiscard]] std::optional<BlkStatus> RefuseRange(BlkRequestKind kind, const BlkRange& range,
                                                   const BlkLimits& limits);

}  // namespace postern::virtio
