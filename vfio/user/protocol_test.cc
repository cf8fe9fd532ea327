#include "vfio/user/protocol.h"

#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "vfio/user/wire.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

template <typename T>
bool Refused(const Result<T>& result) {
  return !result && result.error().code == Errc::kPeerProtocol;
}

template <typename T>
void Put(std::vector<std::byte>& bytes, std::size_t at, T value) {
  REQUIRE(at + sizeof(T) <= bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

std::vector<std::byte> VersionOf(std::string_view text, std::uint16_t major = 0,
                                 std::uint16_t minor = 1) {
  std::vector<std::byte> bytes(4 + text.size());
  Put(bytes, 0, major);
  Put(bytes, 2, minor);
  std::memcpy(bytes.data() + 4, text.data(), text.size());
  return bytes;
}
// With the NUL that has to be at its end.
std::vector<std::byte> Json(const std::string& text) {
  return VersionOf(std::string_view(text.c_str(), text.size() + 1));
}

UserRegionInfo SparseRegion() {
  return {.index = 2,
          .readable = true,
          .writable = true,
          .mappable = true,
          .size = 0x10000,
          .offset = 0x4000,
          .sparse = true,
          .areas = {{0x1000, 0x2000}, {0x8000, 0x8000}}};
}

TEST_CASE("vfio-user header: what is built is parsed") {
  const UserHeader header{.id = 0x1234,
                          .command = UserCommand::kSetIrqs,
                          .size = 40,
                          .reply = true,
                          .failed = true,
                          .error = 22};
  const auto bytes = BuildHeader(header);
  CHECK(bytes[0] == std::byte{0x34});
  CHECK(bytes[4] == std::byte{40});
  CHECK(bytes[8] == std::byte{0x21});
  const auto parsed = ParseHeader(bytes, 24);
  REQUIRE(parsed);
  CHECK(parsed->id == header.id);
  CHECK(parsed->command == header.command);
  CHECK(parsed->size == 40);
  CHECK(parsed->reply);
  CHECK(parsed->failed);
  CHECK_FALSE(parsed->no_reply);
  CHECK(parsed->error == 22);
}

TEST_CASE("vfio-user header: a size below 16 or above the limit is refused") {
  struct Row {
    std::uint32_t size;
    bool ok;
  };
  for (const Row& row :
       {Row{0, false}, Row{1, false}, Row{15, false}, Row{16, true}, Row{16 + 100, true},
        Row{16 + 101, false}, Row{0x7fffffff, false}, Row{0xffffffff, false}}) {
    CAPTURE(row.size);
    const auto bytes = BuildHeader({.command = UserCommand::kReset, .size = row.size});
    CHECK(ParseHeader(bytes, 100).has_value() == row.ok);
  }
}

TEST_CASE(
    "vfio-user header: what is neither command nor reply is refused; an error needs a reply") {
  auto bytes = BuildHeader({.command = UserCommand::kReset, .size = 16});
  for (unsigned type = 0; type < 16; ++type) {
    bytes[8] = static_cast<std::byte>(type | 0x20);
    const auto parsed = ParseHeader(bytes, 0);
    CHECK(parsed.has_value() == (type < 2));
    if (parsed) CHECK(parsed->failed == (type == 1));
  }
}

TEST_CASE("vfio-user VERSION: what is built is parsed") {
  const UserVersion version{
      .major = 0,
      .minor = 1,
      .capabilities = {
          .max_msg_fds = 8, .max_data_xfer_size = 65536, .max_dma_maps = 100, .pgsizes = 0x201000}};
  const auto bytes = BuildVersion(version);
  CHECK(bytes.back() == std::byte{0});
  const auto parsed = ParseVersion(bytes);
  REQUIRE(parsed);
  CHECK(parsed->minor == 1);
  CHECK(parsed->capabilities.max_msg_fds == 8);
  CHECK(parsed->capabilities.max_data_xfer_size == 65536);
  CHECK(parsed->capabilities.max_dma_maps == 100);
  CHECK(parsed->capabilities.pgsizes == 0x201000);
}

TEST_CASE("vfio-user VERSION: what is not told has the specification's default") {
  for (const auto& bytes : {VersionOf(""), Json("{}"), Json("{\"capabilities\":{}}"),
                            Json("{\"capabilities\":{\"migration\":{\"pgsize\":4096}}}")}) {
    const auto parsed = ParseVersion(bytes);
    REQUIRE(parsed);
    CHECK(parsed->capabilities.max_msg_fds == 1);
    CHECK(parsed->capabilities.max_data_xfer_size == 1048576);
    CHECK(parsed->capabilities.max_dma_maps == 65535);
    CHECK(parsed->capabilities.pgsizes == 4096);
  }
}

TEST_CASE("vfio-user VERSION: numbers beyond our limits are cut to them") {
  const auto parsed = ParseVersion(
      Json("{\"capabilities\":{\"max_msg_fds\":18446744073709551615,\"max_data_xfer_size\":"
           "4294967296,\"max_dma_maps\":99999999,\"pgsizes\":1}}"));
  REQUIRE(parsed);
  CHECK(parsed->capabilities.max_msg_fds == kUserMaxFds);
  CHECK(parsed->capabilities.max_data_xfer_size == kUserMaxTransfer);
  CHECK(parsed->capabilities.max_dma_maps == 65535);
  CHECK(parsed->capabilities.pgsizes == 4096);
}

TEST_CASE("vfio-user VERSION: text that breaks a rule is refused") {
  const std::string deep(4000, '[');
  for (const auto& bytes :
       {std::vector<std::byte>(3), VersionOf("{}"), VersionOf(std::string_view("{}\0x", 4)),
        VersionOf(std::string_view("\0{}\0", 4)), Json("{"), Json("nonsense"), Json("[]"),
        Json("7"), Json(""), Json("{\"capabilities\":[]}"),
        Json("{\"capabilities\":{\"max_msg_fds\":-1}}"),
        Json("{\"capabilities\":{\"max_msg_fds\":\"8\"}}"),
        Json("{\"capabilities\":{\"max_msg_fds\":1.5}}"),
        Json("{\"capabilities\":{\"max_data_xfer_size\":0}}"),
        Json("{\"capabilities\":{\"pgsizes\":0}}"), Json("\xff\xfe"), Json(deep),
        Json(std::string(5000, ' '))}) {
    CHECK(Refused(ParseVersion(bytes)));
  }
}

TEST_CASE("vfio-user DMA_MAP and DMA_UNMAP: round trip, and what is refused") {
  auto bytes = BuildDmaMap(
      {.readable = true, .writable = false, .offset = 0x2000, .address = 0x1000, .size = 0x3000});
  CHECK(bytes.size() == 32);
  const auto map = ParseDmaMap(bytes);
  REQUIRE(map);
  CHECK(map->readable);
  CHECK_FALSE(map->writable);
  CHECK(map->offset == 0x2000);
  CHECK(map->address == 0x1000);
  CHECK(map->size == 0x3000);
  for (std::size_t size = 0; size < 32; ++size) {
    CHECK(Refused(ParseDmaMap(std::span(bytes).first(size))));
  }
  const auto broken = [&](std::size_t at, std::uint64_t value) {
    auto copy = bytes;
    Put(copy, at, value);
    return Refused(ParseDmaMap(copy));
  };
  CHECK(broken(24, 0));                    // no size
  CHECK(broken(16, kTop - 0x2ffe));        // wraps by one
  CHECK_FALSE(broken(16, kTop - 0x2fff));  // ends with the address space
  CHECK(broken(8, kTop - 0x2ffe));         // offset wraps
  Put(bytes, 4, std::uint32_t{7});
  CHECK(Refused(ParseDmaMap(bytes)));  // unknown flag

  auto unmap = BuildDmaUnmap({0x1000, 0x3000});
  REQUIRE(ParseDmaUnmap(unmap));
  CHECK(ParseDmaUnmap(unmap)->size == 0x3000);
  CHECK(Refused(ParseDmaUnmap(std::span(unmap).first(23))));
  Put(unmap, 4, std::uint32_t{1});
  CHECK(Refused(ParseDmaUnmap(unmap)));
}

TEST_CASE("vfio-user queries: round trip, argsz below the structure is refused") {
  for (const auto& [command, size] :
       {std::pair{UserCommand::kDeviceInfo, 16U}, std::pair{UserCommand::kRegionInfo, 32U},
        std::pair{UserCommand::kIrqInfo, 16U}}) {
    const auto bytes = BuildQuery(command, {.argsz = size, .index = 3});
    CHECK(bytes.size() == size);
    const auto query = ParseQuery(command, bytes);
    REQUIRE(query);
    CHECK(query->argsz == size);
    CHECK(query->index == (command == UserCommand::kDeviceInfo ? 0 : 3));
    CHECK(Refused(ParseQuery(command, BuildQuery(command, {.argsz = size - 1, .index = 3}))));
    CHECK(Refused(ParseQuery(command, std::span(bytes).first(size - 1))));
  }
}

TEST_CASE("vfio-user DEVICE_GET_INFO: round trip") {
  const auto info =
      ParseDeviceInfo(BuildDeviceInfo({.can_reset = true, .pci = true, .regions = 9, .irqs = 5}));
  REQUIRE(info);
  CHECK(info->can_reset);
  CHECK(info->pci);
  CHECK(info->regions == 9);
  CHECK(info->irqs == 5);
  CHECK(Refused(ParseDeviceInfo(std::vector<std::byte>(15))));
  CHECK(Refused(ParseDeviceInfo(std::vector<std::byte>(16))));  // argsz 0
}

TEST_CASE("vfio-user region: areas come through, in whole pages and in order") {
  UserRegionInfo told = SparseRegion();
  std::swap(told.areas[0], told.areas[1]);
  told.areas.push_back({0x4001, 0x1ffe});  // no whole page
  told.areas.push_back({0x5800, 0x1800});  // one and a half
  told.areas.push_back({0x7000, 0});
  const auto parsed = ParseRegionInfo(BuildRegionInfo(told, kUserMaxRegionInfo));
  REQUIRE(parsed);
  CHECK(parsed->index == 2);
  CHECK(parsed->offset == 0x4000);
  CHECK(parsed->areas == told.areas);
  const auto region = CheckRegion(*parsed);
  REQUIRE(region);
  CHECK(region->size == 0x10000);
  CHECK(region->areas ==
        std::vector<MapArea>{{0x1000, 0x2000}, {0x6000, 0x1000}, {0x8000, 0x8000}});
}

TEST_CASE("vfio-user region: without a list all of it is mappable, if any of it is") {
  UserRegionInfo told = SparseRegion();
  told.sparse = false;
  told.size = 0x1800;
  CHECK(CheckRegion(told)->areas == std::vector<MapArea>{{0, 0x1000}});
  told.mappable = false;
  CHECK(CheckRegion(told)->areas.empty());
  told = SparseRegion();
  told.areas.clear();
  CHECK(CheckRegion(told)->areas.empty());
}

TEST_CASE(
    "vfio-user region: areas that overlap or leave the region, and huge regions, are refused") {
  const auto with = [](std::vector<MapArea> areas, std::uint64_t size = 0x10000) {
    UserRegionInfo told = SparseRegion();
    told.areas = std::move(areas);
    told.size = size;
    return CheckRegion(told);
  };
  CHECK(with({{0, 0x1000}, {0x1000, 0x1000}}));
  CHECK(Refused(with({{0, 0x2000}, {0x1000, 0x1000}})));
  CHECK(Refused(with({{0x1000, 0x1000}, {0x1000, 0x1000}})));
  CHECK(with({{0xf000, 0x1000}}));
  CHECK(Refused(with({{0xf000, 0x1001}})));
  CHECK(Refused(with({{0x10001, 0}})));
  CHECK(Refused(with({{0x1000, kTop}})));
  CHECK(Refused(with({{kTop, 0x1000}})));
  CHECK(with({}, std::uint64_t{1} << 62));
  CHECK(Refused(with({}, (std::uint64_t{1} << 62) + 1)));
  CHECK(Refused(with({}, kTop)));
}

TEST_CASE("vfio-user region: capability chains that loop, leave the message or grow are refused") {
  const auto good = BuildRegionInfo(SparseRegion(), kUserMaxRegionInfo);
  REQUIRE(ParseRegionInfo(good));
  const auto broken = [&](std::size_t at, std::uint32_t value) {
    auto copy = good;
    Put(copy, at, value);
    return Refused(ParseRegionInfo(copy));
  };
  constexpr std::size_t kFirst = 12;      // cap_offset
  constexpr std::size_t kNext = 32 + 4;   // of the first capability
  constexpr std::size_t kCount = 32 + 8;  // of the areas
  for (const std::uint32_t value : {1U, 4U, 28U, 33U, 34U, 0x10000U, 0xfffffffcU}) {
    CAPTURE(value);
    CHECK(broken(kFirst, value));
  }
  CHECK(broken(kNext, 32));  // itself
  CHECK(broken(kNext, 36));  // into itself
  CHECK(broken(kNext, 0xfffffff0));
  CHECK(broken(kCount, 3));
  CHECK(broken(kCount, 257));
  CHECK(broken(kCount, 0xffffffff));
  CHECK(broken(0, 31));  // argsz
  CHECK(broken(0, kUserMaxRegionInfo + 1));
  for (std::size_t size = 0; size < 32; ++size) {
    CHECK(Refused(ParseRegionInfo(std::span(good).first(size))));
  }
  // A payload shorter than argsz: the capabilities are missing, and are not looked for.
  const auto fixed = ParseRegionInfo(std::span(good).first(32));
  REQUIRE(fixed);
  CHECK(fixed->needed == good.size());
  CHECK(fixed->areas.empty());
}

TEST_CASE("vfio-user region: two lists of areas, and chains of many capabilities, are refused") {
  std::vector<std::byte> bytes = BuildRegionInfo(
      {.readable = true, .mappable = true, .size = 0x1000, .sparse = true}, kUserMaxRegionInfo);
  REQUIRE(bytes.size() == 48);
  const auto extend = [&](std::uint16_t id, unsigned count) {
    std::vector<std::byte> out = bytes;
    std::size_t last = 32;
    for (unsigned i = 0; i < count; ++i) {
      const std::size_t at = out.size();
      out.resize(at + 16);
      Put(out, last + 4, static_cast<std::uint32_t>(at));
      Put(out, at, id);
      last = at;
    }
    Put(out, 0, static_cast<std::uint32_t>(out.size()));
    return ParseRegionInfo(out);
  };
  CHECK(Refused(extend(kWireCapabilitySparse, 1)));
  CHECK(extend(77, kUserMaxCapabilities - 1));
  CHECK(Refused(extend(77, kUserMaxCapabilities)));
}

TEST_CASE("vfio-user region: a reply that would be longer than argsz comes without its areas") {
  const auto bytes = BuildRegionInfo(SparseRegion(), 79);
  CHECK(bytes.size() == 32);
  CHECK(ParseRegionInfo(bytes)->needed == 80);
  CHECK(BuildRegionInfo(SparseRegion(), 80).size() == 80);
}

TEST_CASE("vfio-user IRQ_INFO: round trip; more vectors than PCI allows are refused") {
  struct Row {
    std::uint32_t index;
    std::uint32_t most;
  };
  for (const Row& row : {Row{kIntxIrq, 1}, Row{kMsiIrq, 32}, Row{kMsixIrq, 2048}, Row{kErrorIrq, 1},
                         Row{kRequestIrq, 1}}) {
    const auto [index, most] = row;
    CAPTURE(row.index);
    const IrqInfo info{.count = most, .eventfd = true, .maskable = true, .automasked = index == 0};
    const auto parsed = ParseIrqInfo(BuildIrqInfo(info, index), index);
    REQUIRE(parsed);
    CHECK(parsed->count == most);
    CHECK(parsed->maskable);
    CHECK(parsed->automasked == (index == 0));
    CHECK(ParseIrqInfo(BuildIrqInfo({.count = 0}, index), index)->count == 0);
    CHECK(Refused(ParseIrqInfo(BuildIrqInfo({.count = most + 1}, index), index)));
    CHECK(Refused(ParseIrqInfo(BuildIrqInfo({.count = 0xffffffff}, index), index)));
    CHECK(Refused(ParseIrqInfo(BuildIrqInfo(info, index), index + 1)));
  }
}

TEST_CASE("vfio-user SET_IRQS: round trip, and what is refused") {
  using Data = UserSetIrqs::Data;
  const std::vector<std::byte> flags(3, std::byte{1});
  const auto set = ParseSetIrqs(
      BuildSetIrqs({.data = Data::kBool, .index = 2, .start = 5, .count = 3, .flags = flags}));
  CHECK(set);
  const auto bytes = BuildSetIrqs({.data = Data::kEventFd, .index = 2, .start = 5, .count = 3});
  const auto parsed = ParseSetIrqs(bytes);
  REQUIRE(parsed);
  CHECK(parsed->data == Data::kEventFd);
  CHECK(parsed->action == UserSetIrqs::Action::kTrigger);
  CHECK(parsed->index == 2);
  CHECK(parsed->start == 5);
  CHECK(parsed->count == 3);
  const auto broken = [&](std::size_t at, std::uint32_t value) {
    auto copy = bytes;
    Put(copy, at, value);
    return Refused(ParseSetIrqs(copy));
  };
  CHECK(broken(0, 19));
  CHECK(broken(4, 0x20));         // no data kind
  CHECK(broken(4, 0x04));         // no action
  CHECK(broken(4, 0x06 | 0x20));  // two data kinds
  CHECK(broken(4, 0x04 | 0x30));  // two actions
  CHECK(broken(4, 0x44 | 0x20));  // unknown flag
  CHECK(broken(4, 0x22));         // kBool without its bytes
  CHECK(broken(12, 0xfffffffe));  // start + count wraps
  CHECK(Refused(ParseSetIrqs(std::span(bytes).first(19))));
}

TEST_CASE("vfio-user region and DMA accesses: count is exact, in limits, and does not wrap") {
  const std::vector<std::byte> data(8, std::byte{0x5a});
  const auto region = BuildRegionAccess({.offset = 4, .region = 1, .count = 8, .data = data});
  const auto access = ParseRegionAccess(region, Carries::kData);
  REQUIRE(access);
  CHECK(access->offset == 4);
  CHECK(access->region == 1);
  CHECK(access->data.size() == 8);
  CHECK(Refused(ParseRegionAccess(region, Carries::kNothing)));
  CHECK(Refused(ParseRegionAccess(std::span(region).first(23), Carries::kData)));
  CHECK(Refused(ParseRegionAccess(std::span(region).first(15), Carries::kNothing)));
  const auto count_ok = [](std::uint64_t at, std::uint32_t count) {
    return ParseRegionAccess(BuildRegionAccess({at, 0, count, {}}), Carries::kNothing).has_value();
  };
  CHECK_FALSE(count_ok(0, 0));
  CHECK(count_ok(0, 1));
  CHECK(count_ok(0, kUserMaxTransfer));
  CHECK_FALSE(count_ok(0, kUserMaxTransfer + 1));
  CHECK_FALSE(count_ok(0, 0xffffffff));
  CHECK(count_ok(kTop - 8, 8));
  CHECK_FALSE(count_ok(kTop - 7, 8));

  const auto dma = BuildDmaAccess({0x1000, 8, data});
  REQUIRE(ParseDmaAccess(dma, Carries::kData));
  CHECK(Refused(ParseDmaAccess(std::span(dma).first(20), Carries::kData)));
  const auto dma_ok = [](std::uint64_t at, std::uint64_t count) {
    return ParseDmaAccess(BuildDmaAccess({at, count, {}}), Carries::kNothing).has_value();
  };
  CHECK_FALSE(dma_ok(0, 0));
  CHECK(dma_ok(0, kUserMaxTransfer));
  CHECK_FALSE(dma_ok(0, kUserMaxTransfer + 1));
  CHECK_FALSE(dma_ok(0, std::uint64_t{1} << 40));
  CHECK_FALSE(dma_ok(0, kTop));
  CHECK(dma_ok(kTop - 7, 8));
  CHECK_FALSE(dma_ok(kTop - 6, 8));
}

}  // namespace
}  // namespace postern::vfio
