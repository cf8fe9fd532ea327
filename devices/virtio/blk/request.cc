#include "devices/virtio/blk/request.h"

namespace postern::virtio {

namespace {

BlkRequestKind KindOf(std::uint32_t type) {
  switch (type) {
    case kBlkTypeIn:
      return BlkRequestKind::kRead;
    case kBlkTypeOut:
      return BlkRequestKind::kWrite;
    case kBlkTypeFlush:
      return BlkRequestKind::kFlush;
    case kBlkTypeGetId:
      return BlkRequestKind::kGetId;
    case kBlkTypeDiscard:
      return BlkRequestKind::kDiscard;
    case kBlkTypeWriteZeroes:
      return BlkRequestKind::kWriteZeroes;
    default:
      return BlkRequestKind::kUnsupported;
  }
}

// Whether [sector, sector + count) lies on the disk.
bool OnDisk(std::uint64_t sector, std::uint64_t count, std::uint64_t capacity) {
  return sector <= capacity && count <= capacity - sector;
}

}  // namespace

Result<BlkRequest> ParseRequest(Reader& reader, Writer& writer) {
  BlkRequest request;
  request.status = TRY(writer.SplitOffTail(1));
  const BlkHeader header = TRY(reader.Read<BlkHeader>());
  request.kind = KindOf(header.type.get());
  request.sector = header.sector.get();
  const bool from_device =
      request.kind == BlkRequestKind::kRead || request.kind == BlkRequestKind::kGetId;
  request.bytes = from_device ? writer.remaining() : reader.remaining();
  return request;
}

std::optional<BlkStatus> Refuse(const BlkRequest& request, const BlkLimits& limits) {
  switch (request.kind) {
    case BlkRequestKind::kUnsupported:
      return BlkStatus::kUnsupported;
    case BlkRequestKind::kFlush:
    case BlkRequestKind::kGetId:
      return std::nullopt;
    case BlkRequestKind::kWrite:
      // 5.2.6.2: a write to a read-only device fails and changes nothing.
      if (limits.readonly) return BlkStatus::kIoErr;
      [[fallthrough]];
    case BlkRequestKind::kRead:
      // 5.2.6.1: payloads are multiples of 512 bytes.
      if (request.bytes % kSectorSize != 0 || request.bytes % limits.alignment != 0) {
        return BlkStatus::kIoErr;
      }
      if (request.sector % (limits.alignment / kSectorSize) != 0) return BlkStatus::kIoErr;
      if (!OnDisk(request.sector, request.bytes / kSectorSize, limits.capacity)) {
        return BlkStatus::kIoErr;
      }
      return std::nullopt;
    case BlkRequestKind::kDiscard:
    case BlkRequestKind::kWriteZeroes:
      if (!(request.kind == BlkRequestKind::kDiscard ? limits.discard : limits.write_zeroes)) {
        return limits.readonly ? BlkStatus::kIoErr : BlkStatus::kUnsupported;
      }
      if (request.bytes == 0 || request.bytes % sizeof(BlkRange) != 0 ||
          request.bytes / sizeof(BlkRange) > limits.max_ranges) {
        return BlkStatus::kIoErr;
      }
      return std::nullopt;
  }
  return BlkStatus::kUnsupported;
}

std::optional<BlkStatus> RefuseRange(BlkRequestKind kind, const BlkRange& range,
                                     const BlkLimits& limits) {
  const bool discard = kind == BlkRequestKind::kDiscard;
  const std::uint32_t known = discard ? 0 : kBlkRangeUnmap;
  // 5.2.6.2: unknown flags, and unmap in a discard, are answered as unsupported.
  if ((range.flags.get() & ~known) != 0) return BlkStatus::kUnsupported;
  const std::uint32_t count = range.num_sectors.get();
  if (count > (discard ? limits.max_discard_sectors : limits.max_write_zeroes_sectors)) {
    return BlkStatus::kIoErr;
  }
  if (!OnDisk(range.sector.get(), count, limits.capacity)) return BlkStatus::kIoErr;
  return std::nullopt;
}

}  // namespace postern::virtio
