#include "devices/virtio/blk/request.h"

#include <array>
#include <optional>
#include <utility>

#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::MakeMemory;

constexpr BlkLimits kLimits{.capacity = 1000,
                            .readonly = false,
                            .alignment = 512,
                            .discard = true,
                            .write_zeroes = true,
                            .max_ranges = 4,
                            .max_discard_sectors = 100,
                            .max_write_zeroes_sectors = 50};

struct Parser {
  DriverQueue driver{MakeMemory(1 << 20), {}};
  Queue queue = driver.MakeQueue().value();

  Result<BlkRequest> Parse() {
    Chain chain = std::move(*queue.Pop().value());
    Reader reader = chain.reader();
    Writer writer = chain.writer();
    Result<BlkRequest> request = ParseRequest(reader, writer);
    payload_in = reader.remaining();
    payload_out = writer.remaining();
    chain.Discard();
    return request;
  }
  std::uint64_t payload_in = 0;
  std::uint64_t payload_out = 0;
};

BlkHeader Header(std::uint32_t type, std::uint64_t sector) {
  return {le32(type), le32(0), le64(sector)};
}

TEST_CASE("blk request: kinds, sector and payload come from the right places") {
  struct Row {
    std::uint32_t type;
    BlkRequestKind kind;
    std::uint64_t bytes;
  };
  // Each with 1024 bytes to read and 512 to write.
  const std::array<Row, 9> rows{
      {{0, BlkRequestKind::kRead, 512},
       {1, BlkRequestKind::kWrite, 1024},
       {4, BlkRequestKind::kFlush, 1024},
       {8, BlkRequestKind::kGetId, 512},
       {11, BlkRequestKind::kDiscard, 1024},
       {13, BlkRequestKind::kWriteZeroes, 1024},
       {2, BlkRequestKind::kUnsupported, 1024},   // SCSI, long gone
       {14, BlkRequestKind::kUnsupported, 1024},  // secure erase is not offered
       {0xffffffff, BlkRequestKind::kUnsupported, 1024}}};
  for (const Row& row : rows) {
    CAPTURE(row.type);
    Parser parser;
    parser.driver.Build()
        .ReadableObject(Header(row.type, 0x0102030405060708))
        .Readable(std::vector<std::byte>(1024))
        .Writable(512)
        .Writable(1)
        .Publish();
    const Result<BlkRequest> request = parser.Parse();
    REQUIRE(request.has_value());
    CHECK(request->kind == row.kind);
    CHECK(request->sector == 0x0102030405060708);
    CHECK(request->bytes == row.bytes);
    CHECK(request->status.remaining() == 1);
    CHECK(parser.payload_in == 1024);
    CHECK(parser.payload_out == 512);
  }
}

TEST_CASE("blk request: header and status may lie anywhere in the descriptors") {
  Parser parser;
  const BlkHeader header = Header(0, 7);
  const auto bytes = std::as_bytes(std::span(&header, 1));
  parser.driver.Build().Readable(bytes.first(3)).Readable(bytes.subspan(3)).Writable(513).Publish();
  const Result<BlkRequest> request = parser.Parse();
  REQUIRE(request.has_value());
  CHECK(request->sector == 7);
  CHECK(request->bytes == 512);
}

TEST_CASE("blk request: without a whole header or a status byte there is no request") {
  Parser parser;
  const BlkHeader header = Header(0, 0);
  parser.driver.Build().ReadableObject(header).Publish();
  CHECK_FALSE(parser.Parse().has_value());
  parser.driver.Build()
      .Readable(std::as_bytes(std::span(&header, 1)).first(15))
      .Writable(513)
      .Publish();
  CHECK_FALSE(parser.Parse().has_value());
  parser.driver.Build().Writable(1).Publish();
  CHECK_FALSE(parser.Parse().has_value());
}

TEST_CASE("blk request: what the disk cannot serve is refused before any I/O") {
  using K = BlkRequestKind;
  constexpr std::uint64_t kMax = ~std::uint64_t{0};
  struct Row {
    const char* name = "";
    K kind = K::kUnsupported;
    std::uint64_t sector = 0, bytes = 0;
    std::optional<BlkStatus> refused;
  };
  const std::array<Row, 21> rows{{
      {"read all", K::kRead, 0, 512000, std::nullopt},
      {"read the last sector", K::kRead, 999, 512, std::nullopt},
      {"read nothing at the end", K::kRead, 1000, 0, std::nullopt},
      {"read nothing beyond", K::kRead, 1001, 0, BlkStatus::kIoErr},
      {"read one beyond", K::kRead, 1000, 512, BlkStatus::kIoErr},
      {"read over the end", K::kRead, 999, 1024, BlkStatus::kIoErr},
      {"sector wraps", K::kRead, kMax, 1024, BlkStatus::kIoErr},
      {"byte offset wraps", K::kRead, kMax / 512 + 1, 512, BlkStatus::kIoErr},
      {"length 511", K::kRead, 0, 511, BlkStatus::kIoErr},
      {"length 513", K::kWrite, 0, 513, BlkStatus::kIoErr},
      {"write over the end", K::kWrite, 999, 1024, BlkStatus::kIoErr},
      {"write wraps", K::kWrite, kMax, 512, BlkStatus::kIoErr},
      {"flush", K::kFlush, kMax, 0, std::nullopt},
      {"id", K::kGetId, kMax, 20, std::nullopt},
      {"unknown", K::kUnsupported, 0, 0, BlkStatus::kUnsupported},
      {"discard nothing", K::kDiscard, 0, 0, BlkStatus::kIoErr},
      {"discard half a range", K::kDiscard, 0, 24, BlkStatus::kIoErr},
      {"discard four", K::kDiscard, 0, 64, std::nullopt},
      {"discard five (regression: guest-set counts)", K::kDiscard, 0, 80, BlkStatus::kIoErr},
      {"zero four", K::kWriteZeroes, 0, 64, std::nullopt},
      {"zero very many", K::kWriteZeroes, 0, 0xfffffff0, BlkStatus::kIoErr},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    BlkRequest request;
    request.kind = row.kind;
    request.sector = row.sector;
    request.bytes = row.bytes;
    CHECK(Refuse(request, kLimits) == row.refused);
  }
}

TEST_CASE("blk request: a read-only disk refuses everything that writes") {
  BlkLimits limits = kLimits;
  limits.readonly = true;
  limits.discard = limits.write_zeroes = false;
  for (const BlkRequestKind kind :
       {BlkRequestKind::kWrite, BlkRequestKind::kDiscard, BlkRequestKind::kWriteZeroes}) {
    BlkRequest request;
    request.kind = kind;
    request.bytes = 512;
    CHECK(Refuse(request, limits) == BlkStatus::kIoErr);
  }
  BlkRequest read;
  read.kind = BlkRequestKind::kRead;
  read.bytes = 512;
  CHECK_FALSE(Refuse(read, limits).has_value());
}

TEST_CASE("blk request: what was not offered is unsupported") {
  BlkLimits limits = kLimits;
  limits.discard = false;
  BlkRequest request;
  request.kind = BlkRequestKind::kDiscard;
  request.bytes = 16;
  CHECK(Refuse(request, limits) == BlkStatus::kUnsupported);
}

TEST_CASE("blk request: blocks of 4096 bytes are read and written whole") {
  BlkLimits limits = kLimits;
  limits.alignment = 4096;
  BlkRequest request;
  request.kind = BlkRequestKind::kRead;
  request.bytes = 4096;
  request.sector = 8;
  CHECK_FALSE(Refuse(request, limits).has_value());
  request.sector = 7;
  CHECK(Refuse(request, limits) == BlkStatus::kIoErr);
  request.sector = 8;
  request.bytes = 512;
  CHECK(Refuse(request, limits) == BlkStatus::kIoErr);
}

TEST_CASE("blk request: ranges of discard and write-zeroes") {
  using K = BlkRequestKind;
  struct Row {
    const char* name = "";
    K kind = K::kUnsupported;
    std::uint64_t sector = 0;
    std::uint32_t count = 0, flags = 0;
    std::optional<BlkStatus> refused;
  };
  const std::array<Row, 12> rows{{
      {"discard", K::kDiscard, 900, 100, 0, std::nullopt},
      {"discard too many", K::kDiscard, 0, 101, 0, BlkStatus::kIoErr},
      {"discard over the end", K::kDiscard, 901, 100, 0, BlkStatus::kIoErr},
      {"discard wraps", K::kDiscard, ~std::uint64_t{0}, 2, 0, BlkStatus::kIoErr},
      {"discard with unmap", K::kDiscard, 0, 1, 1, BlkStatus::kUnsupported},
      {"discard with unknown flag", K::kDiscard, 0, 1, 2, BlkStatus::kUnsupported},
      {"zero", K::kWriteZeroes, 0, 50, 0, std::nullopt},
      {"zero with unmap", K::kWriteZeroes, 0, 50, 1, std::nullopt},
      {"zero with unknown flag", K::kWriteZeroes, 0, 50, 0x80000001, BlkStatus::kUnsupported},
      {"zero too many", K::kWriteZeroes, 0, 51, 0, BlkStatus::kIoErr},
      {"zero all there could be", K::kWriteZeroes, 0, 0xffffffff, 0, BlkStatus::kIoErr},
      {"zero nothing", K::kWriteZeroes, 1000, 0, 0, std::nullopt},
  }};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK(RefuseRange(row.kind, {le64(row.sector), le32(row.count), le32(row.flags)}, kLimits) ==
          row.refused);
  }
}

}  // namespace
}  // namespace postern::virtio
