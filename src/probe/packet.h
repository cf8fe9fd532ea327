// Ethernet, ARP, IPv4 and ICMP echo, as much as it takes to be answered. Pure; tested on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace postern::probe {

struct Mac {
  uint8_t bytes[6];
  bool operator==(const Mac&) const = default;
};
inline constexpr Mac kBroadcast{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

inline constexpr size_t kEthernetSize = 14;
inline constexpr size_t kIpSize = 20;
inline constexpr size_t kIcmpSize = 8;
inline constexpr size_t kArpFrameSize = kEthernetSize + 28;
inline constexpr size_t kMinFrame = 60;
inline constexpr size_t kMaxFrame = 1514;
inline constexpr uint16_t kTypeIpv4 = 0x0800;
inline constexpr uint16_t kTypeArp = 0x0806;
inline constexpr uint16_t kTypeExperiment =
    0x88b5;  // IEEE Std 802 local experimental: nobody answers it

inline void Put16(uint8_t* at, uint16_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}
inline void Put32(uint8_t* at, uint32_t value) {
  Put16(at, static_cast<uint16_t>(value >> 16));
  Put16(at + 2, static_cast<uint16_t>(value));
}
inline uint16_t Get16(const uint8_t* at) {
  return static_cast<uint16_t>(at[0] << 8 | at[1]);
}
inline uint32_t Get32(const uint8_t* at) {
  return uint32_t{Get16(at)} << 16 | Get16(at + 2);
}

// RFC 1071. Over bytes that contain a right checksum the result is 0.
inline uint16_t InternetChecksum(std::span<const uint8_t> bytes) {
  // The sum is the same in any byte order, so four bytes are taken at a time and swapped once at
  // the end.
  uint64_t sum = 0;
  size_t at = 0;
  for (; at + 4 <= bytes.size(); at += 4) {
    uint32_t word = 0;
    __builtin_memcpy(&word, bytes.data() + at, 4);
    sum += word;
  }
  for (unsigned shift = 0; at < bytes.size(); ++at, shift += 8) sum += uint64_t{bytes[at]} << shift;
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  const auto folded = static_cast<uint16_t>(~sum);
  return static_cast<uint16_t>(folded << 8 | folded >> 8);
}

inline void PutEthernet(uint8_t* frame, const Mac& to, const Mac& from, uint16_t type) {
  std::memcpy(frame, to.bytes, 6);
  std::memcpy(frame + 6, from.bytes, 6);
  Put16(frame + 12, type);
}

// RFC 826. operation 1: request, 2: reply. Returns the frame's size.
inline size_t MakeArp(uint8_t* frame, uint16_t operation, const Mac& from, uint32_t from_ip,
                      const Mac& to, uint32_t to_ip) {
  PutEthernet(frame, operation == 1 ? kBroadcast : to, from, kTypeArp);
  uint8_t* arp = frame + kEthernetSize;
  Put16(arp, 1);
  Put16(arp + 2, kTypeIpv4);
  arp[4] = 6;
  arp[5] = 4;
  Put16(arp + 6, operation);
  std::memcpy(arp + 8, from.bytes, 6);
  Put32(arp + 14, from_ip);
  if (operation == 1) {
    std::memset(arp + 18, 0, 6);
  } else {
    std::memcpy(arp + 18, to.bytes, 6);
  }
  Put32(arp + 24, to_ip);
  std::memset(frame + kArpFrameSize, 0, kMinFrame - kArpFrameSize);
  return kMinFrame;
}

struct ArpView {
  uint16_t operation;
  Mac sender;
  uint32_t sender_ip;
  uint32_t target_ip;
};
// False if the frame is no ARP for IPv4 over Ethernet.
inline bool ParseArp(std::span<const uint8_t> frame, ArpView& view) {
  if (frame.size() < kArpFrameSize || Get16(frame.data() + 12) != kTypeArp) return false;
  const uint8_t* arp = frame.data() + kEthernetSize;
  if (Get16(arp) != 1 || Get16(arp + 2) != kTypeIpv4 || arp[4] != 6 || arp[5] != 4) return false;
  view.operation = Get16(arp + 6);
  std::memcpy(view.sender.bytes, arp + 8, 6);
  view.sender_ip = Get32(arp + 14);
  view.target_ip = Get32(arp + 24);
  return true;
}

// An echo request; the payload (`size` bytes behind the headers) must already be in the frame.
// Returns the frame's size.
inline size_t MakeEcho(uint8_t* frame, const Mac& to, const Mac& from, uint32_t from_ip,
                       uint32_t to_ip, uint16_t sequence, size_t size) {
  PutEthernet(frame, to, from, kTypeIpv4);
  uint8_t* ip = frame + kEthernetSize;
  uint8_t* icmp = ip + kIpSize;
  ip[0] = 0x45;
  ip[1] = 0;
  Put16(ip + 2, static_cast<uint16_t>(kIpSize + kIcmpSize + size));
  Put32(ip + 4, 0x00004000);  // identification 0, do not fragment
  ip[8] = 64;
  ip[9] = 1;  // ICMP
  Put16(ip + 10, 0);
  Put32(ip + 12, from_ip);
  Put32(ip + 16, to_ip);
  Put16(ip + 10, InternetChecksum({ip, kIpSize}));
  icmp[0] = 8;
  icmp[1] = 0;
  Put16(icmp + 2, 0);
  Put16(icmp + 4, 0x5054);
  Put16(icmp + 6, sequence);
  Put16(icmp + 2, InternetChecksum({icmp, kIcmpSize + size}));
  return kEthernetSize + kIpSize + kIcmpSize + size;
}

// The payload of the echo reply with this sequence number from `from_ip`; empty if the frame is
// something else. A reply that is damaged is reported by `damaged`.
inline std::span<const uint8_t> ParseEchoReply(std::span<const uint8_t> frame, uint32_t from_ip,
                                               uint16_t sequence, bool& damaged) {
  damaged = false;
  if (frame.size() < kEthernetSize + kIpSize + kIcmpSize || Get16(frame.data() + 12) != kTypeIpv4)
    return {};
  const uint8_t* ip = frame.data() + kEthernetSize;
  const size_t total = Get16(ip + 2);
  if (ip[0] != 0x45 || ip[9] != 1 || Get32(ip + 12) != from_ip || total < kIpSize + kIcmpSize ||
      total > frame.size() - kEthernetSize)
    return {};
  const uint8_t* icmp = ip + kIpSize;
  const size_t icmp_size = total - kIpSize;
  if (icmp[0] != 0 || Get16(icmp + 4) != 0x5054 || Get16(icmp + 6) != sequence) return {};
  damaged = InternetChecksum({ip, kIpSize}) != 0 || InternetChecksum({icmp, icmp_size}) != 0;
  return {icmp + kIcmpSize, icmp_size - kIcmpSize};
}

}  // namespace postern::probe
