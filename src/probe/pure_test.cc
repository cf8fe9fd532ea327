// The parts of the built-in guest that are arithmetic on bytes.
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "src/probe/acpi_parse.h"
#include "src/probe/checksum.h"
#include "src/probe/cmdline.h"
#include "src/probe/packet.h"
#include "src/probe/ring.h"
#include "src/probe/text.h"

#include <doctest/doctest.h>

namespace postern::probe {
namespace {

// ------------------------------------------------------------------------------------------------
// text

std::string Text(const Line& line) {
  return std::string(line.view());
}

TEST_CASE("line: numbers in every form, columns, and no byte beyond its capacity") {
  CHECK(Text(Line().Dec(0)) == "0");
  CHECK(Text(Line().Dec(~uint64_t{0})) == "18446744073709551615");
  CHECK(Text(Line().Hex(0)) == "0");
  CHECK(Text(Line().Hex(0xf, 4)) == "000f");
  CHECK(Text(Line().Hex(0xfee00000)) == "fee00000");
  CHECK(Text(Line().Hex(~uint64_t{0})) == "ffffffffffffffff");
  CHECK(Text(Line().Tenths(0)) == "0.0");
  CHECK(Text(Line().Tenths(125)) == "12.5");
  CHECK(Text(Line().Add("ab").PadTo(4).Add('c')) == "ab  c");
  CHECK(Text(Line().Add("abcd").PadTo(4).Add('c')) == "abcd c");
  CHECK(Text(Line().PadTo(2).Add('x')) == "  x");
  Line full;
  for (int i = 0; i < 100; ++i) full.Add("0123456789");
  full.Add('x').Dec(5).PadTo(1000);
  CHECK(full.view().size() == Line::kCapacity);
  CHECK(full.view().substr(240) == "01234567");
  full.Clear();
  CHECK(full.empty());
}

TEST_CASE("numbers: decimal and hexadecimal, whole, within 64 bits") {
  struct Row {
    std::string_view text;
    bool good;
    uint64_t value;
  };
  for (const Row& row :
       {Row{"0", true, 0}, Row{"18446744073709551615", true, ~uint64_t{0}},
        Row{"18446744073709551616", false, 0}, Row{"0x10", true, 16}, Row{"0XfF", true, 255},
        Row{"0xffffffffffffffff", true, ~uint64_t{0}}, Row{"0x1ffffffffffffffff", false, 0},
        Row{"", false, 0}, Row{"0x", false, 0}, Row{"12a", false, 0}, Row{"-1", false, 0},
        Row{" 1", false, 0}, Row{"a", false, 0}}) {
    CAPTURE(row.text);
    uint64_t value = 77;
    CHECK(ParseNumber(row.text, value) == row.good);
    CHECK(value == (row.good ? row.value : 77));
  }
}

TEST_CASE("IPv4 addresses: four octets and nothing else") {
  uint32_t address = 0;
  CHECK(ParseIpv4("10.0.2.1", address));
  CHECK(address == 0x0a000201);
  CHECK(ParseIpv4("255.255.255.255", address));
  CHECK(address == 0xffffffff);
  for (std::string_view bad : {"", "10.0.2", "10.0.2.1.5", "10.0.2.256", "10..2.1", "10.0.2.1x",
                               "10.0.2.", ".0.2.1", "10.0.2.0001"}) {
    CAPTURE(bad);
    address = 7;
    CHECK_FALSE(ParseIpv4(bad, address));
    CHECK(address == 7);
  }
}

// ------------------------------------------------------------------------------------------------
// command line

TEST_CASE("command line: defaults, every parameter, and words of others") {
  Options options;
  ParseCommandLine("", options);
  CHECK(options.mode == Mode::kTable);
  CHECK(options.ip == 0x0a000202);
  CHECK(options.peer == 0x0a000201);
  CHECK(options.vsock_port == 1234);
  CHECK(options.descriptors == 20000);
  CHECK(options.stores == 64);
  CHECK(options.Wants("rng"));
  CHECK(options.unknown.empty());

  ParseCommandLine(
      "console=hvc0  probe.mode=blkbench probe.ops=500 probe.qd=8 quiet probe.size=64 "
      "probe.seed=0x10 probe.ip=1.2.3.4 "
      "probe.peer=none probe.vsock=99 probe.require=blk,net probe.only=net,dsa probe.descriptors=7 "
      "probe.stores=8",
      options);
  CHECK(options.unknown.empty());
  CHECK(options.mode == Mode::kBlkBench);
  CHECK(options.ops == 500);
  CHECK(options.queue_depth == 8);
  CHECK(options.size == 64);
  CHECK(options.seed == 16);
  CHECK(options.ip == 0x01020304);
  CHECK_FALSE(options.has_peer);
  CHECK(options.vsock_port == 99);
  CHECK(options.Requires("blk"));
  CHECK(options.Requires("net"));
  CHECK_FALSE(options.Requires("rng"));
  CHECK_FALSE(options.Requires("bl"));
  CHECK_FALSE(options.Requires(""));
  CHECK(options.descriptors == 7);
  CHECK(options.stores == 8);
  CHECK(options.Wants("dsa"));
  CHECK_FALSE(options.Wants("blk"));
}

TEST_CASE("command line: every mode by its name") {
  struct Row {
    std::string_view text;
    Mode mode;
  };
  for (const Row& row :
       {Row{"probe.mode=table", Mode::kTable}, Row{"probe.mode=blkbench", Mode::kBlkBench},
        Row{"probe.mode=netbench", Mode::kNetBench}, Row{"probe.mode=exit", Mode::kExit},
        Row{"probe.mode=pio", Mode::kPio}, Row{"probe.mode=mmio", Mode::kMmio},
        Row{"probe.mode=hostile", Mode::kHostile}}) {
    CAPTURE(row.text);
    Options options;
    ParseCommandLine(row.text, options);
    CHECK(options.mode == row.mode);
    CHECK(options.unknown.empty());
  }
}

TEST_CASE("command line: the first word of ours that makes no sense is kept") {
  for (std::string_view bad :
       {"probe.mode=fast", "probe.ops=0", "probe.ops=x", "probe.qd=0", "probe.size=1473",
        "probe.ip=1.2.3", "probe.what=1", "probe.", "probe.vsock=4294967296",
        "virtio_mmio.device=512", "virtio_mmio.device=512@0xfeb00000",
        "virtio_mmio.device=16@0xfeb00000:5", "virtio_mmio.device=512@0xfeb00001:5",
        "virtio_mmio.device=512@0xfeb00000:65536"}) {
    CAPTURE(bad);
    Options options;
    ParseCommandLine(std::string("probe.seed=3 ") + std::string(bad) + " probe.nonsense=1",
                     options);
    // A fresh string went out of scope: only the length may be looked at.
    CHECK(options.unknown.size() == bad.size());
  }
}

TEST_CASE("command line: virtio-mmio devices as Linux spells them") {
  Options options;
  ParseCommandLine("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@0xd0001000:6:3",
                   options);
  CHECK(options.unknown.empty());
  REQUIRE(options.mmio_count == 2);
  CHECK(options.mmio[0].size == 4096);
  CHECK(options.mmio[0].address == 0xd0000000);
  CHECK(options.mmio[0].irq == 5);
  CHECK(options.mmio[1].size == 512);
  CHECK(options.mmio[1].irq == 6);

  std::string many;
  for (size_t i = 0; i <= Options::kMaxMmioDevices; ++i) many += "virtio_mmio.device=512@0x1000:5 ";
  Options full;
  ParseCommandLine(many, full);
  CHECK(full.mmio_count == Options::kMaxMmioDevices);
  CHECK_FALSE(full.unknown.empty());
}

// ------------------------------------------------------------------------------------------------
// checksums

TEST_CASE("checksums: the check values of their catalogue, in one piece and in two") {
  const std::string digits = "123456789";
  const auto* data = reinterpret_cast<const uint8_t*>(digits.data());
  CHECK(~Crc32c(~uint32_t{0}, data, 9) == 0xe3069283);
  CHECK(~Crc32c(Crc32c(~uint32_t{0}, data, 4), data + 4, 5) == 0xe3069283);
  CHECK(Crc16T10(0, data, 9) == 0xd0db);
  CHECK(Crc16T10(Crc16T10(0, data, 4), data + 4, 5) == 0xd0db);
  CHECK(Crc16T10(0, data, 0) == 0);
  // RFC 3720 appendix B.4: 32 bytes of zeroes, and of ones.
  const std::array<uint8_t, 32> zeroes{};
  std::array<uint8_t, 32> ones{};
  ones.fill(0xff);
  CHECK(~Crc32c(~uint32_t{0}, zeroes.data(), 32) == 0x8a9136aa);
  CHECK(~Crc32c(~uint32_t{0}, ones.data(), 32) == 0x62a8ab43);
}

// ------------------------------------------------------------------------------------------------
// rings

TEST_CASE(
    "ring: the event index is passed exactly once, also across the wrap (VIRTIO 1.2 2.7.10)") {
  struct Row {
    uint16_t event, after, before;
    bool passes;
  };
  for (const Row& row :
       {Row{0, 1, 0, true}, Row{1, 1, 0, false}, Row{0, 2, 1, false}, Row{5, 6, 0, true},
        Row{5, 5, 0, false}, Row{5, 20, 6, false}, Row{0xffff, 0, 0xffff, true},
        Row{0xffff, 1, 0, false}, Row{0, 1, 0xffff, true}, Row{0xfffe, 2, 0xfff0, true},
        Row{3, 3, 3, false}}) {
    CAPTURE(row.event);
    CAPTURE(row.after);
    CAPTURE(row.before);
    CHECK(PassesEvent(row.event, row.after, row.before) == row.passes);
  }
}

TEST_CASE("ring: sizes are powers of two within both limits, areas as in VIRTIO 1.2 2.7") {
  CHECK(QueueSize(0, 256) == 0);
  CHECK(QueueSize(16, 0) == 0);
  CHECK(QueueSize(16, 256) == 16);
  CHECK(QueueSize(256, 100) == 64);
  CHECK(QueueSize(1, 1) == 1);
  CHECK(QueueSize(0xffffffff, 0xffffffff) == 32768);
  CHECK(RingLayout::DescriptorBytes(8) == 128);
  CHECK(RingLayout::AvailBytes(8) == 6 + 2 * 8);
  CHECK(RingLayout::UsedBytes(8) == 6 + 8 * 8);
  CHECK(RingLayout::UsedEvent(8) == 4 + 16);
  CHECK(RingLayout::AvailEvent(8) == 4 + 64);
}

// ------------------------------------------------------------------------------------------------
// ACPI

TEST_CASE("ACPI: the checksum is the sum of all bytes") {
  std::vector<uint8_t> table = {1, 2, 3, 250};
  CHECK(HasZeroSum(table));
  table[0] = 2;
  CHECK_FALSE(HasZeroSum(table));
  CHECK(HasZeroSum({}));
}

TEST_CASE("ACPI: the S5 sleep type in each encoding, and none out of bytes that end too early") {
  struct Row {
    const char* name;
    std::vector<uint8_t> aml;
    bool found;
    uint8_t type;
  };
  const std::vector<Row> rows = {
      {"byte prefix",
       {0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04, 0x0a, 0x05, 0x0a, 0x00},
       true,
       5},
      {"zero", {0x08, '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x00, 0x00}, true, 0},
      {"one", {0x08, '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x01, 0x00}, true, 1},
      {"two-byte package length",
       {0x08, '_', 'S', '5', '_', 0x12, 0x48, 0x00, 0x04, 0x0a, 0x07},
       true,
       7},
      {"after other bytes",
       {1, 2, '_', 'S', '5', 0, '_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x0a, 0x03},
       true,
       3},
      {"too large", {'_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x0a, 0x08}, false, 0},
      {"no package", {'_', 'S', '5', '_', 0x0a, 0x05}, false, 0},
      {"a reference", {'_', 'S', '5', '_', 0x12, 0x06, 0x04, 'A', 'B'}, false, 0},
      {"ends after the name", {'_', 'S', '5', '_'}, false, 0},
      {"ends after the package op", {'_', 'S', '5', '_', 0x12}, false, 0},
      {"ends before the element", {'_', 'S', '5', '_', 0x12, 0x06, 0x04}, false, 0},
      {"ends in the element", {'_', 'S', '5', '_', 0x12, 0x06, 0x04, 0x0a}, false, 0},
      {"empty", {}, false, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    uint8_t type = 0;
    CHECK(FindS5Type(row.aml, type) == row.found);
    if (row.found) CHECK(type == row.type);
  }
}

std::vector<uint8_t> MmioDeviceAml(uint32_t address, uint32_t size, uint32_t irq) {
  std::vector<uint8_t> aml = {0x08, '_', 'H', 'I', 'D',  0x0d, 'L', 'N', 'R', 'O',
                              '0',  '0', '0', '5', 0x00, 0x08, '_', 'C', 'R', 'S'};
  const auto put = [&aml](uint32_t value) {
    for (unsigned i = 0; i < 4; ++i) aml.push_back(static_cast<uint8_t>(value >> (8 * i)));
  };
  aml.insert(aml.end(), {0x86, 0x09, 0x00, 0x01});
  put(address);
  put(size);
  aml.insert(aml.end(), {0x89, 0x06, 0x00, 0x03, 0x01});
  put(irq);
  return aml;
}

TEST_CASE("ACPI: virtio-mmio devices of a DSDT, none of which is cut short") {
  std::vector<uint8_t> aml = MmioDeviceAml(0xfeb00000, 512, 16);
  const std::vector<uint8_t> second = MmioDeviceAml(0xfeb00200, 512, 17);
  aml.insert(aml.end(), second.begin(), second.end());
  std::array<AmlMmioDevice, 4> found{};
  REQUIRE(FindMmioDevices(aml, found) == 2);
  CHECK(found[0].address == 0xfeb00000);
  CHECK(found[0].size == 512);
  CHECK(found[0].irq == 16);
  CHECK(found[1].address == 0xfeb00200);
  CHECK(found[1].irq == 17);
  std::array<AmlMmioDevice, 1> one{};
  CHECK(FindMmioDevices(aml, one) == 1);
  const std::vector<uint8_t> whole = MmioDeviceAml(0xfeb00000, 512, 16);
  for (size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    CHECK(FindMmioDevices(std::span(whole).first(size), found) == 0);
  }
}

// ------------------------------------------------------------------------------------------------
// packets

TEST_CASE(
    "internet checksum: RFC 1071's example, odd lengths, and zero over a checksummed header") {
  const std::array<uint8_t, 8> example = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  CHECK(InternetChecksum(example) == static_cast<uint16_t>(~0xddf2));
  CHECK(InternetChecksum({}) == 0xffff);
  const std::array<uint8_t, 1> odd = {0x12};
  CHECK(InternetChecksum(odd) == static_cast<uint16_t>(~0x1200));
  const std::array<uint8_t, 3> three = {0x12, 0x34, 0x56};
  CHECK(InternetChecksum(three) == static_cast<uint16_t>(~(0x1234 + 0x5600)));
  // Against the definition, for every length and a pattern without symmetry.
  std::vector<uint8_t> bytes;
  for (unsigned n = 0; n < 70; ++n) {
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes.size(); ++i)
      sum += i % 2 == 0 ? uint32_t{bytes[i]} << 8 : bytes[i];
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    CAPTURE(n);
    CHECK(InternetChecksum(bytes) == static_cast<uint16_t>(~sum));
    bytes.push_back(static_cast<uint8_t>(0xf1 - 7 * n));
  }
}

constexpr Mac kUs{{0x52, 0x54, 0, 1, 2, 3}};
constexpr Mac kThem{{0x02, 9, 8, 7, 6, 5}};

TEST_CASE("ARP: what is made can be parsed, what is damaged cannot") {
  std::array<uint8_t, kMinFrame> frame{};
  REQUIRE(MakeArp(frame.data(), 1, kUs, 0x0a000202, {}, 0x0a000201) == kMinFrame);
  ArpView view{};
  REQUIRE(ParseArp(frame, view));
  CHECK(view.operation == 1);
  CHECK(view.sender == kUs);
  CHECK(view.sender_ip == 0x0a000202);
  CHECK(view.target_ip == 0x0a000201);
  CHECK(frame[0] == 0xff);
  MakeArp(frame.data(), 2, kUs, 0x0a000202, kThem, 0x0a000201);
  CHECK(frame[0] == 0x02);
  REQUIRE(ParseArp(frame, view));
  CHECK(view.operation == 2);
  CHECK_FALSE(ParseArp(std::span(frame).first(kArpFrameSize - 1), view));
  frame[13] = 0x07;
  CHECK_FALSE(ParseArp(frame, view));
}

TEST_CASE(
    "ICMP echo: the reply to a request is recognised, its damage is seen, and others are left "
    "alone") {
  constexpr size_t kPayload = 33;
  std::array<uint8_t, 128> frame{};
  for (size_t i = 0; i < kPayload; ++i)
    frame[kEthernetSize + kIpSize + kIcmpSize + i] = static_cast<uint8_t>(i * 3);
  const size_t size = MakeEcho(frame.data(), kThem, kUs, 0x0a000202, 0x0a000201, 7, kPayload);
  REQUIRE(size == kEthernetSize + kIpSize + kIcmpSize + kPayload);
  uint8_t* ip = frame.data() + kEthernetSize;
  uint8_t* icmp = ip + kIpSize;
  CHECK(InternetChecksum({ip, kIpSize}) == 0);
  CHECK(InternetChecksum({icmp, kIcmpSize + kPayload}) == 0);

  // The peer's kernel turns it round: type 0, addresses exchanged, checksums anew.
  icmp[0] = 0;
  Put16(icmp + 2, 0);
  Put16(icmp + 2, InternetChecksum({icmp, kIcmpSize + kPayload}));
  Put32(ip + 12, 0x0a000201);
  Put32(ip + 16, 0x0a000202);
  bool damaged = true;
  const std::span<const uint8_t> whole(frame.data(), size);
  std::span<const uint8_t> payload = ParseEchoReply(whole, 0x0a000201, 7, damaged);
  REQUIRE(payload.size() == kPayload);
  CHECK_FALSE(damaged);
  CHECK(payload[32] == 96);
  CHECK(ParseEchoReply(whole, 0x0a000201, 8, damaged).empty());
  CHECK(ParseEchoReply(whole, 0x0a000209, 7, damaged).empty());
  CHECK(ParseEchoReply(whole.first(size - 1), 0x0a000201, 7, damaged).empty());
  CHECK(ParseEchoReply(whole.first(20), 0x0a000201, 7, damaged).empty());
  icmp[kIcmpSize + 4] ^= 1;
  payload = ParseEchoReply(whole, 0x0a000201, 7, damaged);
  CHECK(payload.size() == kPayload);
  CHECK(damaged);
}

}  // namespace
}  // namespace postern::probe
