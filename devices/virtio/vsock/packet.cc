#include "devices/virtio/vsock/packet.h"

namespace postern::virtio::vsock {
namespace {

std::uint64_t Join(le32 low, le32 high) {
  return std::uint64_t{high.get()} << 32 | low.get();
}
le32 Low(std::uint64_t cid) {
  return le32(static_cast<std::uint32_t>(cid));
}
le32 High(std::uint64_t cid) {
  return le32(static_cast<std::uint32_t>(cid >> 32));
}

}  // namespace

Result<Packet> ParsePacket(Reader& reader) {
  const auto header = TRY(reader.Read<Header>());
  Packet packet;
  packet.src_cid = Join(header.src_cid, header.src_cid_high);
  packet.dst_cid = Join(header.dst_cid, header.dst_cid_high);
  packet.src_port = header.src_port.get();
  packet.dst_port = header.dst_port.get();
  packet.len = header.len.get();
  packet.type = header.type.get();
  packet.op = static_cast<Op>(header.op.get());
  packet.flags = header.flags.get();
  packet.buf_alloc = header.buf_alloc.get();
  packet.fwd_cnt = header.fwd_cnt.get();
  if (packet.op != Op::kRw) {
    packet.len = 0;  // 5.10.6.6: only RW carries payload
  } else if (packet.len > reader.remaining()) {
    return Err(Errc::kGuestProtocol, "virtio-vsock: packet is shorter than its header says");
  }
  return packet;
}

Header Encode(const Packet& packet) {
  return Header{
      Low(packet.src_cid),  High(packet.src_cid),   Low(packet.dst_cid),
      High(packet.dst_cid), le32(packet.src_port),  le32(packet.dst_port),
      le32(packet.len),     le16(packet.type),      le16(static_cast<std::uint16_t>(packet.op)),
      le32(packet.flags),   le32(packet.buf_alloc), le32(packet.fwd_cnt)};
}

Packet ResetFor(const Packet& packet) {
  Packet reset;
  reset.src_cid = packet.dst_cid;
  reset.dst_cid = packet.src_cid;
  reset.src_port = packet.dst_port;
  reset.dst_port = packet.src_port;
  reset.type = packet.type;
  reset.op = Op::kRst;
  return reset;
}

}  // namespace postern::virtio::vsock
