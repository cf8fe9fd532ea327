#include "devices/virtio/vsock/packet.h"

#include <cstring>
#include <vector>

#include "devices/virtio/vsock/credit.h"
#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio::vsock {
namespace {

TEST_CASE("vsock packet: encoding and parsing are each other's reverse") {
  Packet packet;
  packet.src_cid = 0x0102030405060708;
  packet.dst_cid = 0x1112131415161718;
  packet.src_port = 0x21222324;
  packet.dst_port = 0x31323334;
  packet.len = 4;
  packet.type = 0x4142;
  packet.op = Op::kRw;
  packet.flags = 0x51525354;
  packet.buf_alloc = 0x61626364;
  packet.fwd_cnt = 0x71727374;
  const Header header = Encode(packet);
  std::array<std::uint8_t, sizeof(Header)> wire{};
  std::memcpy(wire.data(), &header, sizeof(header));
  // 5.10.6: the order and width of the fields on the wire.
  CHECK(wire[0] == 8);
  CHECK(wire[7] == 1);
  CHECK(wire[8] == 0x18);
  CHECK(wire[16] == 0x24);
  CHECK(wire[20] == 0x34);
  CHECK(wire[24] == 4);
  CHECK(wire[28] == 0x42);
  CHECK(wire[30] == 5);
  CHECK(wire[32] == 0x54);
  CHECK(wire[36] == 0x64);
  CHECK(wire[43] == 0x71);

  testing::DriverQueue driver(testing::MakeMemory(1 << 20), {});
  Queue queue = driver.MakeQueue().value();
  driver.Build()
      .Readable(std::as_bytes(std::span(wire)).first(13))
      .Readable(std::as_bytes(std::span(wire)).subspan(13))
      .Readable("data+")
      .Publish();
  Chain chain = std::move(*queue.Pop().value());
  Reader reader = chain.reader();
  const Packet parsed = ParsePacket(reader).value();
  const Header again = Encode(parsed);
  CHECK(std::memcmp(&again, &header, sizeof(header)) == 0);
  CHECK(reader.remaining() == 5);
  chain.Complete(0);
  const Packet reset = ResetFor(parsed);
  CHECK(reset.op == Op::kRst);
  CHECK(reset.src_cid == packet.dst_cid);
  CHECK(reset.dst_port == packet.src_port);
  CHECK(reset.type == packet.type);
  CHECK(reset.len == 0);
}

TEST_CASE("regression CVE-2019-18960: a length beyond the chain is refused, at every boundary") {
  testing::DriverQueue driver(testing::MakeMemory(1 << 20), {});
  Queue queue = driver.MakeQueue().value();
  struct Row {
    const char* name;
    std::size_t header_bytes;
    std::uint32_t len;
    std::size_t payload;
    Op op;
    bool good;
  };
  for (const Row& row :
       {Row{"no payload", 44, 0, 0, Op::kRw, true}, Row{"exact", 44, 5, 5, Op::kRw, true},
        Row{"less than there is", 44, 4, 5, Op::kRw, true},
        Row{"one over", 44, 6, 5, Op::kRw, false},
        Row{"all ones", 44, 0xffffffff, 5, Op::kRw, false},
        Row{"half a header", 43, 0, 0, Op::kRw, false},
        Row{"length of what has no payload", 44, 77, 0, Op::kShutdown, true}}) {
    CAPTURE(row.name);
    Packet packet;
    packet.len = row.len;
    packet.op = row.op;
    const Header header = Encode(packet);
    auto build = driver.Build();
    build.Readable(std::as_bytes(std::span(&header, 1)).first(row.header_bytes));
    if (row.payload > 0) build.Readable(testing::Pattern(row.payload));
    build.Publish();
    Chain chain = std::move(*queue.Pop().value());
    Reader reader = chain.reader();
    const Result<Packet> parsed = ParsePacket(reader);
    CHECK(parsed.has_value() == row.good);
    if (parsed) CHECK(parsed->len <= reader.remaining());
    chain.Complete(0);
    CHECK(driver.TakeUsed());
  }
}

TEST_CASE("vsock credit: what may be received, and when it is worth telling") {
  Credit credit(1000);
  CHECK(credit.MayReceive(1000));
  CHECK_FALSE(credit.MayReceive(1001));
  CHECK_FALSE(credit.MayReceive(0xffffffff));
  credit.Received(900);
  CHECK(credit.MayReceive(100));
  CHECK_FALSE(credit.MayReceive(101));
  credit.Forwarded(249);
  CHECK(credit.held() == 651);
  CHECK_FALSE(credit.ShouldAnnounce());
  credit.Forwarded(1);
  CHECK(credit.ShouldAnnounce());
  CHECK(credit.fwd_cnt() == 250);
  credit.Announced();
  CHECK_FALSE(credit.ShouldAnnounce());
}

TEST_CASE("vsock credit: counts wrap at 2^32 and senseless ones give nothing") {
  Credit credit(65536);
  // A peer with 4096 bytes, and 2^32 + 1000 bytes through it.
  std::uint64_t sent = 0;
  std::uint32_t forwarded = 0;
  credit.Learned(4096, 0);
  while (sent < (std::uint64_t{1} << 32) + 1000) {
    REQUIRE(credit.MaySend() == 4096);
    credit.Sent(4000);
    REQUIRE(credit.MaySend() == 96);
    credit.Sent(96);
    REQUIRE(credit.MaySend() == 0);
    sent += 4096;
    forwarded += 4096;
    credit.Learned(4096, forwarded);
    credit.Received(60000);
    REQUIRE_FALSE(credit.MayReceive(5537));
    credit.Forwarded(60000);
  }
  credit.Learned(4096, forwarded + 1);  // more forwarded than was ever sent
  CHECK(credit.MaySend() == 0);
  credit.Learned(4096, forwarded - 5000);  // its buffer shrank
  CHECK(credit.MaySend() == 0);
  credit.Learned(0, forwarded);
  CHECK(credit.MaySend() == 0);
  credit.Learned(0xffffffff, forwarded);
  CHECK(credit.MaySend() == 0xffffffff);
}

}  // namespace
}  // namespace postern::virtio::vsock
