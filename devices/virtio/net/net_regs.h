#pragma once

// Constants and wire layouts of virtio-net (VIRTIO 1.2, 5.1). No logic.

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/base/endian.h"

namespace postern::virtio::net {

// 5.1.3
constexpr std::uint64_t Feature(unsigned bit) {
  return std::uint64_t{1} << bit;
}
constexpr std::uint64_t kFeatureCsum = Feature(0);
constexpr std::uint64_t kFeatureGuestCsum = Feature(1);
constexpr std::uint64_t kFeatureCtrlGuestOffloads = Feature(2);
constexpr std::uint64_t kFeatureMtu = Feature(3);
constexpr std::uint64_t kFeatureMac = Feature(5);
constexpr std::uint64_t kFeatureGuestTso4 = Feature(7);
constexpr std::uint64_t kFeatureGuestTso6 = Feature(8);
constexpr std::uint64_t kFeatureGuestEcn = Feature(9);
constexpr std::uint64_t kFeatureHostTso4 = Feature(11);
constexpr std::uint64_t kFeatureHostTso6 = Feature(12);
constexpr std::uint64_t kFeatureHostEcn = Feature(13);
constexpr std::uint64_t kFeatureMrgRxbuf = Feature(15);
constexpr std::uint64_t kFeatureStatus = Feature(16);
constexpr std::uint64_t kFeatureCtrlVq = Feature(17);
constexpr std::uint64_t kFeatureCtrlRx = Feature(18);
constexpr std::uint64_t kFeatureCtrlRxExtra = Feature(20);
constexpr std::uint64_t kFeatureMq = Feature(22);
constexpr std::uint64_t kFeatureCtrlMacAddr = Feature(23);
constexpr std::uint64_t kFeatureGuestUso4 = Feature(54);
constexpr std::uint64_t kFeatureGuestUso6 = Feature(55);
constexpr std::uint64_t kFeatureHostUso = Feature(56);
constexpr std::uint64_t kFeatureSpeedDuplex = Feature(63);

// The offloads that VIRTIO_NET_CTRL_GUEST_OFFLOADS can switch (5.1.6.5.6.1); same bits as the
// features.
constexpr std::uint64_t kGuestOffloads = kFeatureGuestCsum | kFeatureGuestTso4 | kFeatureGuestTso6 |
                                         kFeatureGuestEcn | kFeatureGuestUso4 | kFeatureGuestUso6;

using MacAddress = std::array<std::uint8_t, 6>;

// 5.1.4
struct ConfigLayout {
  MacAddress mac;
  le16 status;
  le16 max_virtqueue_pairs;
  le16 mtu;
  le32 speed;
  std::uint8_t duplex;
};
constexpr std::uint32_t kConfigSize = 17;
static_assert(offsetof(ConfigLayout, speed) == 12 && offsetof(ConfigLayout, duplex) == 16);
constexpr std::uint16_t kStatusLinkUp = 1;
// What a TAP says of itself to ethtool.
constexpr std::uint32_t kSpeedMbps = 10000;
constexpr std::uint8_t kDuplexFull = 1;
// 5.1.4.1: a device that offers MTU has one of at least 68 (RFC 791).
constexpr std::uint16_t kMinMtu = 68;

// 5.1.6
struct PacketHeader {
  std::uint8_t flags;
  std::uint8_t gso_type;
  le16 hdr_len;
  le16 gso_size;
  le16 csum_start;
  le16 csum_offset;
  le16 num_buffers;
};
static_assert(sizeof(PacketHeader) == 12);
constexpr std::uint8_t kHeaderNeedsCsum = 1;
constexpr std::uint8_t kHeaderDataValid = 2;
constexpr std::uint8_t kGsoNone = 0;
constexpr std::uint8_t kGsoTcpV4 = 1;
constexpr std::uint8_t kGsoTcpV6 = 4;
constexpr std::uint8_t kGsoUdpL4 = 5;
constexpr std::uint8_t kGsoEcn = 0x80;

// An Ethernet header, one VLAN tag, and the largest IP packet.
constexpr std::size_t kEthernetHeader = 14;
constexpr std::size_t kMaxPacket = kEthernetHeader + 4 + 65535;

// 5.1.6.5: control virtqueue
struct ControlHeader {
  std::uint8_t command_class;
  std::uint8_t command;
};
static_assert(sizeof(ControlHeader) == 2);
constexpr std::uint8_t kControlOk = 0;
constexpr std::uint8_t kControlError = 1;
constexpr std::uint8_t kClassRx = 0;
constexpr std::uint8_t kClassMac = 1;
constexpr std::uint8_t kClassMq = 4;
constexpr std::uint8_t kClassGuestOffloads = 5;
constexpr std::uint8_t kRxPromisc = 0;
constexpr std::uint8_t kRxAllMulti = 1;
constexpr std::uint8_t kRxNoBroadcast = 5;  // 2 to 5 need CTRL_RX_EXTRA
constexpr std::uint8_t kMacTableSet = 0;
constexpr std::uint8_t kMacAddrSet = 1;
constexpr std::uint8_t kMqPairsSet = 0;
constexpr std::uint8_t kGuestOffloadsSet = 0;

}  // namespace postern::virtio::net
