#pragma once

// Constants and wire layouts of virtio-vsock (VIRTIO 1.2, 5.10). No logic.

#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::virtio::vsock {

constexpr std::uint64_t kFeatureStream = std::uint64_t{1} << 0;  // 5.10.3

constexpr std::uint64_t kHostCid = 2;  // 5.10.4: well-known address
constexpr std::uint64_t kMinGuestCid = 3;
constexpr std::uint64_t kMaxGuestCid =
    0xfffffffe;  // the upper 32 bits are reserved, all ones is "any"

// 5.10.6. Context identifiers are split in two, so that the structure is 44 bytes without padding.
struct Header {
  le32 src_cid;
  le32 src_cid_high;
  le32 dst_cid;
  le32 dst_cid_high;
  le32 src_port;
  le32 dst_port;
  le32 len;
  le16 type;
  le16 op;
  le32 flags;
  le32 buf_alloc;
  le32 fwd_cnt;
};
static_assert(sizeof(Header) == 44);

constexpr std::uint16_t kTypeStream = 1;

enum class Op : std::uint16_t {
  kInvalid = 0,
  kRequest = 1,
  kResponse = 2,
  kRst = 3,
  kShutdown = 4,
  kRw = 5,
  kCreditUpdate = 6,
  kCreditRequest = 7,
};

// 5.10.6.5: the sender of the packet ...
constexpr std::uint32_t kShutdownReceive = 1;  // ... will receive no more
constexpr std::uint32_t kShutdownSend = 2;     // ... will send no more
constexpr std::uint32_t kShutdownBoth = 3;

// 5.10.6.7: event virtqueue
struct Event {
  le32 id;
};
constexpr std::uint32_t kEventTransportReset = 0;

}  // namespace postern::virtio::vsock
