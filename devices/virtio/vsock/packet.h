#pragma once

// Packet: the header of a vsock packet in host integers, parsed once from a chain, and the reverse.
// Pure.

#include <cstdint>

#include "devices/virtio/queue/chain.h"
#include "devices/virtio/vsock/vsock_regs.h"
#include "src/base/result.h"

namespace postern::virtio::vsock {

struct Packet {
  std::uint64_t src_cid = 0;
  std::uint64_t dst_cid = 0;
  std::uint32_t src_port = 0;
  std::uint32_t dst_port = 0;
  std::uint32_t len = 0;
  std::uint16_t type = kTypeStream;
  Op op = Op::kInvalid;  // perhaps none of those named
  std::uint32_t flags = 0;
  std::uint32_t buf_alloc = 0;
  std::uint32_t fwd_cnt = 0;
};

// Reads the header and leaves the reader at the payload. kGuestProtocol for a chain without a whole
// header or with fewer payload bytes than the header says (CVE-2019-18960 in a peer): the caller
// never has more than packet.len bytes to take, and always that many.
[[nodiscard]] Result<Packet> ParsePacket(Reader& reader);
[[nodiscard]] Header Encode(const Packet& packet);
// The RST that answers `packet` (5.10.6.4.1).
[[nodiscard]] Packet ResetFor(const Packet& packet);

}  // namespace postern::virtio::vsock
