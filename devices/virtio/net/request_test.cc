#include "devices/virtio/net/request.h"

#include <cstring>
#include <vector>

#include "tests/support/driver_queue.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio::net {
namespace {

constexpr std::uint64_t kAll = ~std::uint64_t{0};

PacketHeader Header(std::uint8_t flags, std::uint8_t gso, std::uint16_t size = 0,
                    std::uint16_t start = 0, std::uint16_t offset = 0, std::uint16_t hdr_len = 0) {
  PacketHeader header{};
  header.flags = flags;
  header.gso_type = gso;
  header.gso_size = size;
  header.csum_start = start;
  header.csum_offset = offset;
  header.hdr_len = hdr_len;
  header.num_buffers = 0xffff;
  return header;
}

TEST_CASE("virtio-net transmit header: what is passed on, and what is refused") {
  struct Row {
    const char* name;
    PacketHeader header;
    std::uint64_t size;
    std::uint64_t features;
    bool good;
  };
  const std::uint64_t no_csum = kAll & ~kFeatureCsum;
  const std::vector<Row> rows{
      {"plain", Header(0, 0), 60, 0, true},
      {"checksum", Header(kHeaderNeedsCsum, 0, 0, 34, 16), 60, kFeatureCsum, true},
      {"checksum at the very end", Header(kHeaderNeedsCsum, 0, 0, 34, 24), 60, kFeatureCsum, true},
      {"checksum one byte over", Header(kHeaderNeedsCsum, 0, 0, 34, 25), 60, kFeatureCsum, false},
      {"checksum far over", Header(kHeaderNeedsCsum, 0, 0, 0xffff, 0xffff), 60, kFeatureCsum,
       false},
      {"checksum not negotiated", Header(kHeaderNeedsCsum, 0, 0, 34, 16), 60, no_csum, false},
      {"TSO4", Header(1, kGsoTcpV4, 1448, 34, 16, 54), 9000, kFeatureCsum | kFeatureHostTso4, true},
      {"TSO6", Header(1, kGsoTcpV6, 1428, 54, 16, 74), 9000, kFeatureCsum | kFeatureHostTso6, true},
      {"USO", Header(1, kGsoUdpL4, 1472, 34, 6, 42), 9000, kFeatureCsum | kFeatureHostUso, true},
      {"TSO4 not negotiated", Header(1, kGsoTcpV4, 1448, 34, 16), 9000, kAll & ~kFeatureHostTso4,
       false},
      {"TSO6 not negotiated", Header(1, kGsoTcpV6, 1448, 34, 16), 9000, kAll & ~kFeatureHostTso6,
       false},
      {"USO not negotiated", Header(1, kGsoUdpL4, 1448, 34, 16), 9000, kAll & ~kFeatureHostUso,
       false},
      {"TSO without checksum feature", Header(0, kGsoTcpV4, 1448), 9000, no_csum, false},
      {"TSO without checksum", Header(0, kGsoTcpV4, 1448), 9000, kAll, false},
      {"TSO of size 0", Header(1, kGsoTcpV4, 0, 34, 16), 9000, kAll, false},
      {"ECN", Header(1, kGsoTcpV4 | kGsoEcn, 1448, 34, 16), 9000, kAll, true},
      {"ECN not negotiated", Header(1, kGsoTcpV4 | kGsoEcn, 1448, 34, 16), 9000,
       kAll & ~kFeatureHostEcn, false},
      {"UFO, which is never offered", Header(1, 3, 1448, 34, 16), 9000, kAll, false},
      {"unknown segmentation", Header(1, 0x42, 1448, 34, 16), 9000, kAll, false},
      {"ECN alone", Header(0, kGsoEcn), 60, kAll, true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const Result<PacketHeader> checked = CheckTransmitHeader(row.header, row.size, row.features);
    CHECK(checked.has_value() == row.good);
    if (!checked) {
      CHECK(checked.error().code == Errc::kGuestProtocol);
      continue;
    }
    CHECK(checked->num_buffers.get() == 0);
    CHECK((checked->flags & ~kHeaderNeedsCsum) == 0);
  }
  // Data-valid is not for this direction, and a length hint beyond the packet is dropped.
  const PacketHeader odd = CheckTransmitHeader(Header(0xfe, 0, 5, 6, 7, 8), 60, kAll).value();
  const PacketHeader zero{};
  CHECK(std::memcmp(&odd, &zero, sizeof(odd)) == 0);
  CHECK(CheckTransmitHeader(Header(1, kGsoTcpV4, 100, 34, 16, 9001), 9000, kAll)->hdr_len.get() ==
        0);
}

struct Parsed {
  memory::GuestMemoryPtr memory = testing::MakeMemory(1 << 20);
  testing::DriverQueue driver{memory, {}};
  Queue queue = driver.MakeQueue().value();

  Result<Command> operator()(const std::vector<std::uint8_t>& bytes, std::uint64_t features = kAll,
                             std::uint16_t pairs = 4) {
    // In pieces of three bytes, as nothing says where a driver cuts.
    auto build = driver.Build();
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
      build.Readable(
          std::as_bytes(std::span(bytes)).subspan(i, std::min<std::size_t>(3, bytes.size() - i)));
    }
    if (bytes.empty()) build.Writable(1);
    build.Publish();
    Chain chain = std::move(*queue.Pop().value());
    Reader reader = chain.reader();
    Result<Command> command = ParseCommand(reader, features, pairs);
    chain.Complete(0);
    while (driver.TakeUsed()) {
    }
    return command;
  }
};

TEST_CASE("virtio-net control commands: the well-formed ones") {
  Parsed parse;
  CHECK(std::get<SetRxMode>(parse({0, 0, 1}).value()).on);
  CHECK(std::get<SetRxMode>(parse({0, 5, 0}).value()).mode == 5);
  CHECK(std::get<SetMacAddress>(parse({1, 1, 2, 0, 0, 0, 0, 9}).value()).mac ==
        MacAddress{2, 0, 0, 0, 0, 9});
  const auto table =
      std::get<SetMacTable>(parse({1, 0, 1, 0, 0,    0, 2, 1, 1,    1,    1, 1, 2, 0,
                                   0, 0, 1, 0, 0x5e, 0, 0, 1, 0x33, 0x33, 0, 0, 0, 2})
                                .value());
  CHECK(table.unicast.size() == 1);
  CHECK(table.multicast ==
        std::vector<MacAddress>{{1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 2}});
  CHECK(std::get<SetMacTable>(parse({1, 0, 0, 0, 0, 0, 0, 0, 0, 0}).value()).unicast.empty());
  CHECK(std::get<SetQueuePairs>(parse({4, 0, 4, 0}).value()).pairs == 4);
  CHECK(std::get<SetGuestOffloads>(parse({5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0}).value()).offloads ==
        (kFeatureGuestCsum | kFeatureGuestTso4));
}

TEST_CASE("virtio-net control commands: the others are refused") {
  Parsed parse;
  struct Row {
    const char* name;
    std::vector<std::uint8_t> bytes;
    std::uint64_t features;
  };
  const std::vector<Row> rows{
      {"empty", {}, kAll},
      {"half a header", {0}, kAll},
      {"no argument", {0, 0}, kAll},
      {"unknown class", {3, 0, 1}, kAll},
      {"VLAN", {2, 0, 1, 0}, kAll},
      {"unknown mode", {0, 6, 1}, kAll},
      {"unknown mode 255", {0, 255, 1}, kAll},
      {"mode without CTRL_RX", {0, 0, 1}, kAll & ~kFeatureCtrlRx},
      {"mode without CTRL_RX_EXTRA", {0, 2, 1}, kAll & ~kFeatureCtrlRxExtra},
      {"MAC too short", {1, 1, 2, 0, 0, 0, 0}, kAll},
      {"MAC without its feature", {1, 1, 2, 0, 0, 0, 0, 9}, kAll & ~kFeatureCtrlMacAddr},
      {"MAC command unknown", {1, 2, 2, 0, 0, 0, 0, 9}, kAll},
      {"table of 65", {1, 0, 65, 0, 0, 0}, kAll},
      {"table of 2^32 - 1", {1, 0, 255, 255, 255, 255}, kAll},
      {"table shorter than it says", {1, 0, 2, 0, 0, 0, 2, 1, 1, 1, 1, 1}, kAll},
      {"second table missing", {1, 0, 0, 0, 0, 0}, kAll},
      {"no pairs", {4, 0, 0, 0}, kAll},
      {"five pairs of four", {4, 0, 5, 0}, kAll},
      {"many pairs", {4, 0, 255, 255}, kAll},
      {"pairs without MQ", {4, 0, 1, 0}, kAll & ~kFeatureMq},
      {"RSS", {4, 1, 1, 0}, kAll},
      {"offloads not negotiated", {5, 0, 2, 0, 0, 0, 0, 0, 0, 0}, kAll & ~kFeatureGuestCsum},
      {"offloads that are none", {5, 0, 1, 0, 0, 0, 0, 0, 0, 0}, kAll},
      {"offloads too short", {5, 0, 2, 0, 0, 0, 0, 0, 0}, kAll},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK_FALSE(parse(row.bytes, row.features).has_value());
  }
}

}  // namespace
}  // namespace postern::virtio::net
