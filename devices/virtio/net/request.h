#pragma once

// What a driver asks of a network device, parsed and checked, nothing done yet: the header of a
// packet to transmit, and a control command. Pure.

#include <cstdint>
#include <variant>
#include <vector>

#include "devices/virtio/net/net_regs.h"
#include "devices/virtio/queue/chain.h"
#include "src/base/result.h"

namespace postern::virtio::net {

// The header to hand to the host for a packet of `packet_size` bytes (without header), from the one
// the driver wrote: unknown flags are cleared, and offloads that were not negotiated, that lack
// what they build on, or whose offsets lie outside the packet are an error (kGuestProtocol).
[[nodiscard]] Result<PacketHeader> CheckTransmitHeader(const PacketHeader& header,
                                                       std::uint64_t packet_size,
                                                       std::uint64_t negotiated);

// 5.1.6.5.1: one of the receive modes, by command number.
struct SetRxMode {
  std::uint8_t mode;
  bool on;
};
// 5.1.6.5.2
struct SetMacTable {
  std::vector<MacAddress> unicast;
  std::vector<MacAddress> multicast;
};
struct SetMacAddress {
  MacAddress mac;
};
// 5.1.6.5.5
struct SetQueuePairs {
  std::uint16_t pairs;
};
// 5.1.6.5.6
struct SetGuestOffloads {
  std::uint64_t offloads;
};
using Command =
    std::variant<SetRxMode, SetMacTable, SetMacAddress, SetQueuePairs, SetGuestOffloads>;

// Addresses of one table that are kept; a longer one is refused, and the driver falls back to
// promiscuous mode.
constexpr std::uint32_t kMaxMacTable = 64;

// kUnsupported for a command of a feature that was not negotiated, kGuestProtocol for one that is
// malformed.
[[nodiscard]] Result<Command> ParseCommand(Reader& reader, std::uint64_t negotiated,
                                           std::uint16_t max_pairs);

}  // namespace postern::virtio::net
