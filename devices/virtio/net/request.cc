#include "devices/virtio/net/request.h"

namespace postern::virtio::net {
namespace {

bool Has(std::uint64_t features, std::uint64_t wanted) {
  return (features & wanted) == wanted;
}

Unexpected Malformed(const char* what) {
  return Err(Errc::kGuestProtocol, what);
}

// 5.1.3.1: what the segmentation features build on.
bool GsoAllowed(std::uint8_t type, std::uint64_t negotiated) {
  if (!Has(negotiated, kFeatureCsum)) return false;
  switch (type) {
    case kGsoTcpV4:
      return Has(negotiated, kFeatureHostTso4);
    case kGsoTcpV6:
      return Has(negotiated, kFeatureHostTso6);
    case kGsoUdpL4:
      return Has(negotiated, kFeatureHostUso);
    default:
      return false;
  }
}

Result<std::vector<MacAddress>> ParseMacTable(Reader& reader) {
  const std::uint32_t entries = TRY(reader.Read<le32>()).get();
  if (entries > kMaxMacTable) return Err(Errc::kExhausted, "virtio-net: MAC table");
  std::vector<MacAddress> table(entries);
  for (MacAddress& mac : table) mac = TRY(reader.Read<MacAddress>());
  return table;
}

}  // namespace

Result<PacketHeader> CheckTransmitHeader(const PacketHeader& header, std::uint64_t packet_size,
                                         std::uint64_t negotiated) {
  PacketHeader checked{};
  if ((header.flags & kHeaderNeedsCsum) != 0) {
    // 5.1.6.2.1
    if (!Has(negotiated, kFeatureCsum)) return Malformed("virtio-net: checksum was not negotiated");
    const std::uint64_t field = std::uint64_t{header.csum_start.get()} + header.csum_offset.get();
    if (field + 2 > packet_size) return Malformed("virtio-net: checksum lies outside the packet");
    checked.flags = kHeaderNeedsCsum;
    checked.csum_start = header.csum_start;
    checked.csum_offset = header.csum_offset;
  }
  const auto type = static_cast<std::uint8_t>(header.gso_type & ~kGsoEcn);
  if (type == kGsoNone) return checked;
  if (!GsoAllowed(type, negotiated))
    return Malformed("virtio-net: segmentation was not negotiated");
  // 5.1.6.2.1: segmentation needs the checksum and a size.
  if (checked.flags == 0 || header.gso_size.get() == 0) {
    return Malformed("virtio-net: segmentation without checksum or size");
  }
  const bool ecn = (header.gso_type & kGsoEcn) != 0;
  if (ecn && !Has(negotiated, kFeatureHostEcn))
    return Malformed("virtio-net: ECN was not negotiated");
  checked.gso_type = header.gso_type;
  checked.gso_size = header.gso_size;
  // A hint (5.1.6.2.1); the host parses the packet itself, so the hint only has to lie inside.
  if (header.hdr_len.get() <= packet_size) checked.hdr_len = header.hdr_len;
  return checked;
}

Result<Command> ParseCommand(Reader& reader, std::uint64_t negotiated, std::uint16_t max_pairs) {
  const auto header = TRY(reader.Read<ControlHeader>());
  const auto unsupported = Err(Errc::kUnsupported, "virtio-net: control command");
  switch (header.command_class) {
    case kClassRx: {
      const bool extra = header.command > kRxAllMulti;
      if (header.command > kRxNoBroadcast) return unsupported;
      if (!Has(negotiated, extra ? kFeatureCtrlRxExtra : kFeatureCtrlRx)) return unsupported;
      const auto on = TRY(reader.Read<std::uint8_t>());
      return Command(SetRxMode{header.command, on != 0});
    }
    case kClassMac:
      if (header.command == kMacTableSet && Has(negotiated, kFeatureCtrlRx)) {
        SetMacTable tables;
        tables.unicast = TRY(ParseMacTable(reader));
        tables.multicast = TRY(ParseMacTable(reader));
        return Command(std::move(tables));
      }
      if (header.command == kMacAddrSet && Has(negotiated, kFeatureCtrlMacAddr)) {
        return Command(SetMacAddress{TRY(reader.Read<MacAddress>())});
      }
      return unsupported;
    case kClassMq: {
      if (header.command != kMqPairsSet || !Has(negotiated, kFeatureMq)) return unsupported;
      const std::uint16_t pairs = TRY(reader.Read<le16>()).get();
      if (pairs < 1 || pairs > max_pairs) return Malformed("virtio-net: number of queue pairs");
      return Command(SetQueuePairs{pairs});
    }
    case kClassGuestOffloads: {
      if (header.command != kGuestOffloadsSet || !Has(negotiated, kFeatureCtrlGuestOffloads))
        return unsupported;
      const std::uint64_t offloads = TRY(reader.Read<le64>()).get();
      // 5.1.6.5.6.2: only what was negotiated.
      if ((offloads & ~(negotiated & kGuestOffloads)) != 0)
        return Malformed("virtio-net: guest offloads");
      return Command(SetGuestOffloads{offloads});
    }
    default:
      return unsupported;
  }
}

}  // namespace postern::virtio::net
