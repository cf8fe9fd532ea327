// The server's side of vfio-user against clients that are right, wrong and hostile: a device of
// memory behind it, one thread.

#include "vfio/user/server.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/base/fd_passing.h"
#include "src/base/log.h"
#include "src/base/unix_socket.h"
#include "tests/support/counter.h"
#include "vfio/user/channel.h"
#include "vfio/user/wire.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

// BAR 0: 4 KiB of memory. BAR 2: 8 KiB, the second page to be mapped. Four MSI-X vectors.
struct FakeState {
  std::array<std::byte, 4096> bar{};
  std::vector<UserDmaMap> maps;
  std::vector<bool> vectors = std::vector<bool>(4);
  unsigned made = 0, gone = 0, resets = 0, triggers = 0;
  int with_file = 0;
};

class FakeServed final : public UserServed {
 public:
  FakeServed(FakeState& state, int fd) : state_(state), fd_(fd) {}
  ~FakeServed() override { ++state_.gone; }
  [[nodiscard]] std::string Describe() const override { return "a fake"; }
  [[nodiscard]] ServedRegion Region(std::uint32_t index) const override {
    if (index == 0) return {.info = {.size = 4096, .readable = true, .writable = true}};
    if (index == 1) return {.info = {.size = 16, .readable = true}};
    if (index != 2) return {};
    return {.info = {.size = 8192, .readable = true, .writable = true, .areas = {{4096, 4096}}},
            .fd = fd_};
  }
  [[nodiscard]] IrqInfo Irq(std::uint32_t index) const override {
    return {.count = index == kMsixIrq ? 4U : 0U, .eventfd = true};
  }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override {
    if (region != 0) return SysError("fake", EIO);
    std::memcpy(data.data(), state_.bar.data() + offset, data.size());
    return {};
  }
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override {
    if (region != 0) return SysError("fake", EIO);
    std::memcpy(state_.bar.data() + offset, data.data(), data.size());
    return {};
  }
  [[nodiscard]] Result<void> SetVectors(std::uint32_t /*irq*/, std::uint32_t start,
                                        std::vector<Fd> events) override {
    for (std::size_t i = 0; i < events.size(); ++i) state_.vectors.at(start + i) = true;
    return {};
  }
  void ClearVectors(std::uint32_t /*irq*/, std::uint32_t start, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i) state_.vectors.at(start + i) = false;
  }
  void TriggerVectors(std::uint32_t /*irq*/, std::uint32_t /*start*/,
                      std::uint32_t count) override {
    state_.triggers += count;
  }
  [[nodiscard]] Result<void> MapDma(const UserDmaMap& map, Fd file) override {
    if (map.address == 0xbad000) return Err(Errc::kOverlap, "fake");
    state_.maps.push_back(map);
    state_.with_file += file.valid() ? 1 : 0;
    return {};
  }
  [[nodiscard]] Result<void> UnmapDma(const UserDmaUnmap& unmap) override {
    if (!unmap.all && state_.maps.empty()) return Err(Errc::kNotFound, "fake");
    state_.maps.clear();
    return {};
  }
  void Reset() override { ++state_.resets; }
  void ReportCounters(CounterSink& sink) const override { sink.Add("fakes", 1); }

 private:
  FakeState& state_;
  const int fd_;
};

struct ServerRig {
  explicit ServerRig(const UserServerOptions& options = {}) : loop(EventLoop::Create().value()) {
    log::SetLevel(LogLevel::kOff);
    CHECK(mkdtemp(directory.data()) != nullptr);
    pages = Fd(memfd_create("server-test", MFD_CLOEXEC));
    CHECK(ftruncate(pages.get(), 8192) == 0);
    auto made = UserServer::Create(
        directory + "/socket", *loop,
        [this]() -> Outcome<std::unique_ptr<UserServed>> {
          if (fail) return HostFailure("no more of them");
          ++state.made;
          return std::unique_ptr<UserServed>(std::make_unique<FakeServed>(state, pages.get()));
        },
        options);
    CHECK(made.has_value());
    server = std::move(*made);
  }
  ~ServerRig() {
    server.reset();
    CHECK(rmdir(directory.c_str()) == 0);
  }
  ServerRig(const ServerRig&) = delete;
  ServerRig& operator=(const ServerRig&) = delete;

  void Turn(int rounds = 6) {
    for (int i = 0; i < rounds; ++i) loop->RunOnce(0);
  }
  [[nodiscard]] std::uint64_t Counter(std::string_view name) const {
    return testing::ReportedCounter(*server, name);
  }

  std::string directory = "/tmp/postern-server-XXXXXX";
  FakeState state;
  bool fail = false;
  Fd pages;
  std::unique_ptr<EventLoop> loop;
  std::unique_ptr<UserServer> server;
};

constexpr std::uint32_t kClosed = 0xdead;

struct RawClient {
  explicit RawClient(ServerRig& r, bool hello = true)
      : rig(r), channel(ConnectUnix(r.directory + "/socket").value(), {}) {
    rig.Turn();
    if (hello) CHECK(Ask(UserCommand::kVersion, BuildVersion({})) == 0);
  }
  // The errno of the answer, 0 if it is none, kClosed if there is no answer but the end.
  std::uint32_t Ask(UserCommand command, std::span<const std::byte> payload,
                    std::span<const int> fds = {}) {
    const std::uint16_t id = next++;
    if (!channel.Send({.id = id, .command = command}, payload, fds)) return kClosed;
    for (int i = 0; i < 50; ++i) {
      if (!channel.Flush()) return kClosed;
      rig.Turn();
      Result<std::optional<UserMessage>> message = channel.Receive();
      if (!message) return kClosed;
      if (!*message) continue;
      answer = std::move(**message);
      CHECK(answer.header.reply);
      CHECK(answer.header.id == id);
      CHECK(answer.header.command == command);
      return answer.header.failed ? answer.header.error : 0;
    }
    return ~0U;
  }
  std::uint32_t Region(UserCommand command, std::uint32_t region, std::uint64_t offset,
                       std::uint32_t count, std::size_t carried = 0) {
    const std::vector<std::byte> data(carried, std::byte{0x5a});
    return Ask(command, BuildRegionAccess({offset, region, count, data}));
  }
  std::uint32_t Irqs(UserSetIrqs::Data data, std::uint32_t index, std::uint32_t start,
                     std::uint32_t count, std::size_t fds = 0,
                     UserSetIrqs::Action action = UserSetIrqs::Action::kTrigger) {
    const std::vector<int> list(fds, rig.pages.get());
    const std::vector<std::byte> flags(data == UserSetIrqs::Data::kBool ? count : 0, std::byte{1});
    return Ask(UserCommand::kSetIrqs,
               BuildSetIrqs({.data = data,
                             .action = action,
                             .index = index,
                             .start = start,
                             .count = count,
                             .flags = flags}),
               list);
  }
  [[nodiscard]] bool Closed() {
    rig.Turn();
    const auto message = channel.Receive();
    return !message;
  }

  ServerRig& rig;
  UserChannel channel;
  UserMessage answer;
  std::uint16_t next = 7;
};

std::vector<std::byte> Noise(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(0x11 * i + 3);
  return bytes;
}

}  // namespace

TEST_CASE("vfio-user server: VERSION offers what we take, and the lower minor version") {
  ServerRig rig;
  RawClient client(rig, false);
  REQUIRE(client.Ask(UserCommand::kVersion, BuildVersion({.minor = 0})) == 0);
  Result<UserVersion> version = ParseVersion(client.answer.payload);
  REQUIRE(version);
  CHECK(version->minor == 0);
  CHECK(version->capabilities.max_msg_fds == 8);
  CHECK(version->capabilities.max_dma_maps == 1024);
  CHECK(client.Ask(UserCommand::kVersion, BuildVersion({})) == kClosed);
  CHECK(rig.Counter("clients_dropped") == 1);
  RawClient other(rig, false);
  REQUIRE(other.Ask(UserCommand::kVersion, BuildVersion({.minor = 9})) == 0);
  version = ParseVersion(other.answer.payload);
  REQUIRE(version);
  CHECK(version->minor == 1);
}

TEST_CASE("vfio-user server: a version of another kind, or a command before it, is the end") {
  ServerRig rig;
  {
    RawClient client(rig, false);
    CHECK(client.Ask(UserCommand::kVersion, BuildVersion({.major = 1})) == EINVAL);
    CHECK(client.Closed());
  }
  {
    RawClient client(rig, false);
    CHECK(client.Ask(UserCommand::kVersion, Noise(40)) == EINVAL);
    CHECK(client.Closed());
  }
  {
    RawClient client(rig, false);
    CHECK(client.Ask(UserCommand::kReset, {}) == kClosed);
  }
  rig.Turn();
  CHECK(rig.Counter("clients") == 3);
  CHECK(rig.Counter("clients_dropped") == 3);
  CHECK(rig.state.resets == 0);
  // And the next one is served.
  RawClient client(rig);
  CHECK(client.Ask(UserCommand::kReset, {}) == 0);
  CHECK(rig.state.resets == 1);
}

TEST_CASE("vfio-user server: the device, its regions and interrupts") {
  ServerRig rig;
  RawClient client(rig);
  const auto query = [](UserCommand command, std::uint32_t argsz, std::uint32_t index) {
    return BuildQuery(command, {.argsz = argsz, .index = index});
  };
  REQUIRE(client.Ask(UserCommand::kDeviceInfo, query(UserCommand::kDeviceInfo, 24, 0)) == 0);
  const auto device = ParseDeviceInfo(client.answer.payload);
  REQUIRE(device);
  CHECK(device->can_reset);
  CHECK(device->pci);
  CHECK(device->regions == 9);
  CHECK(device->irqs == 5);
  CHECK(client.Ask(UserCommand::kDeviceInfo, query(UserCommand::kDeviceInfo, 15, 0)) == EINVAL);
  CHECK(client.Ask(UserCommand::kDeviceInfo, Noise(3)) == EINVAL);

  for (const std::uint32_t index : {0U, 1U, 3U, 8U}) {
    REQUIRE(client.Ask(UserCommand::kRegionInfo, query(UserCommand::kRegionInfo, 32, index)) == 0);
    const auto region = ParseRegionInfo(client.answer.payload);
    REQUIRE(region);
    CHECK(region->size == (index == 0 ? 4096 : index == 1 ? 16 : 0));
    CHECK_FALSE(region->mappable);
    CHECK(client.answer.fds.empty());
  }
  // Too short for its areas: no word of them, no descriptor, and how much is needed.
  REQUIRE(client.Ask(UserCommand::kRegionInfo, query(UserCommand::kRegionInfo, 32, 2)) == 0);
  CHECK(client.answer.fds.empty());
  WireRegionInfo raw{};
  std::memcpy(&raw, client.answer.payload.data(), sizeof(raw));
  CHECK((raw.flags.get() & kWireRegionCaps) == 0);
  const std::uint32_t needed = raw.argsz.get();
  CHECK(needed == 32 + 8 + 8 + 16);
  REQUIRE(client.Ask(UserCommand::kRegionInfo, query(UserCommand::kRegionInfo, needed, 2)) == 0);
  CHECK(client.answer.fds.size() == 1);
  const auto region = ParseRegionInfo(client.answer.payload);
  REQUIRE(region);
  CHECK(region->areas == std::vector<MapArea>{{4096, 4096}});
  CHECK(client.Ask(UserCommand::kRegionInfo, query(UserCommand::kRegionInfo, 32, 9)) == EINVAL);
  CHECK(client.Ask(UserCommand::kRegionInfo, query(UserCommand::kRegionInfo, 32, ~0U)) == EINVAL);

  REQUIRE(client.Ask(UserCommand::kIrqInfo, query(UserCommand::kIrqInfo, 16, kMsixIrq)) == 0);
  CHECK(ParseIrqInfo(client.answer.payload, kMsixIrq)->count == 4);
  CHECK(client.Ask(UserCommand::kIrqInfo, query(UserCommand::kIrqInfo, 16, 5)) == EINVAL);
  CHECK(client.Ask(UserCommand::kIrqInfo, query(UserCommand::kIrqInfo, 16, ~0U)) == EINVAL);
}

TEST_CASE("vfio-user server: accesses at 0, 1, the end, beyond it, and around it") {
  ServerRig rig;
  RawClient client(rig);
  constexpr UserCommand kRead = UserCommand::kRegionRead;
  constexpr UserCommand kWrite = UserCommand::kRegionWrite;
  CHECK(client.Region(kWrite, 0, 4095, 1, 1) == 0);
  CHECK(rig.state.bar[4095] == std::byte{0x5a});
  CHECK(client.Region(kWrite, 0, 0, 4096, 4096) == 0);
  CHECK(client.Region(kRead, 0, 1, 4095) == 0);
  const auto access = ParseRegionAccess(client.answer.payload, Carries::kData);
  REQUIRE(access);
  CHECK(access->data.size() == 4095);
  constexpr std::uint64_t kMax = ~std::uint64_t{0};
  for (const auto& pair :
       std::vector<std::pair<std::uint64_t, std::uint32_t>>{{0, 0},
                                                            {4096, 1},
                                                            {4095, 2},
                                                            {1, 4096},
                                                            {0, 4097},
                                                            {0, kUserMaxTransfer},
                                                            {0, kUserMaxTransfer + 1},
                                                            {0, ~0U},
                                                            {kMax, 1},
                                                            {kMax - 3, 4},
                                                            {kMax, ~0U}}) {
    const auto offset = pair.first;
    const auto count = pair.second;
    CAPTURE(offset);
    CAPTURE(count);
    CHECK(client.Region(kRead, 0, offset, count) == EINVAL);
    if (count <= kUserMaxTransfer) CHECK(client.Region(kWrite, 0, offset, count, count) == EINVAL);
  }
  // More or less data than it says; a read with data.
  CHECK(client.Region(kWrite, 0, 0, 8, 7) == EINVAL);
  CHECK(client.Region(kWrite, 0, 0, 8, 9) == EINVAL);
  CHECK(client.Region(kRead, 0, 0, 8, 8) == EINVAL);
  // Not to be written; not there; no such index; what the device itself refuses.
  CHECK(client.Region(kRead, 1, 0, 16) == EIO);
  CHECK(client.Region(kWrite, 1, 0, 4, 4) == EINVAL);
  CHECK(client.Region(kRead, 3, 0, 1) == EINVAL);
  CHECK(client.Region(kRead, 9, 0, 1) == EINVAL);
  CHECK(client.Region(kRead, ~0U, 0, 1) == EINVAL);
  CHECK(client.Region(kWrite, 2, 4096, 4, 4) == EIO);
  CHECK(rig.Counter("clients_dropped") == 0);
}

TEST_CASE("vfio-user server: vectors at 0, 1, the last, beyond, and around") {
  using Data = UserSetIrqs::Data;
  ServerRig rig;
  RawClient client(rig);
  CHECK(client.Irqs(Data::kEventFd, kMsixIrq, 0, 4, 4) == 0);
  CHECK(rig.state.vectors == std::vector<bool>{true, true, true, true});
  CHECK(client.Irqs(Data::kEventFd, kMsixIrq, 3, 1) == 0);
  CHECK(rig.state.vectors == std::vector<bool>{true, true, true, false});
  CHECK(client.Irqs(Data::kEventFd, kMsixIrq, 4, 0) == 0);
  CHECK(client.Irqs(Data::kNone, kMsixIrq, 1, 2) == 0);
  CHECK(client.Irqs(Data::kBool, kMsixIrq, 0, 4) == 0);
  CHECK(rig.state.triggers == 6);
  for (const auto& pair : std::vector<std::pair<std::uint32_t, std::uint32_t>>{
           {0, 5}, {4, 1}, {5, 0}, {~0U, 1}, {1, ~0U}, {~0U, ~0U}}) {
    const auto start = pair.first;
    const auto count = pair.second;
    CAPTURE(start);
    CAPTURE(count);
    CHECK(client.Irqs(Data::kEventFd, kMsixIrq, start, count) == EINVAL);
    CHECK(client.Irqs(Data::kNone, kMsixIrq, start, count) == EINVAL);
  }
  // As many descriptors as vectors, and eventfds alone.
  CHECK(client.Irqs(Data::kEventFd, kMsixIrq, 0, 2, 1) == EINVAL);
  CHECK(client.Irqs(Data::kEventFd, kMsixIrq, 0, 2, 3) == EINVAL);
  CHECK(client.Irqs(Data::kNone, kMsixIrq, 0, 1, 1) == EINVAL);
  CHECK(client.Irqs(Data::kNone, kIntxIrq, 0, 1) == EINVAL);
  CHECK(client.Irqs(Data::kNone, 5, 0, 0) == EINVAL);
  CHECK(client.Irqs(Data::kNone, ~0U, 0, 0) == EINVAL);
  CHECK(client.Irqs(Data::kNone, kMsixIrq, 0, 1, 0, UserSetIrqs::Action::kMask) == EOPNOTSUPP);
  CHECK(client.Ask(UserCommand::kSetIrqs, Noise(20)) == EINVAL);
  CHECK(client.Irqs(Data::kNone, kMsixIrq, 0, 0) == 0);
  CHECK(rig.state.vectors == std::vector<bool>(4));
}

TEST_CASE("vfio-user server: DMA mappings go to the device with their file, errors come back") {
  ServerRig rig;
  RawClient client(rig);
  const UserDmaMap map{.readable = true, .writable = true, .address = 0x1000, .size = 0x2000};
  const std::array<int, 2> files{rig.pages.get(), rig.pages.get()};
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(map), std::span(files).first(1)) == 0);
  CHECK(rig.state.with_file == 1);
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(map)) == 0);
  CHECK(rig.state.with_file == 1);
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(map), files) == EINVAL);
  UserDmaMap bad = map;
  bad.size = 0;
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(bad)) == EINVAL);
  bad = map;
  bad.address = ~std::uint64_t{0xfff};
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(bad)) == EINVAL);
  bad = map;
  bad.address = 0xbad000;
  CHECK(client.Ask(UserCommand::kDmaMap, BuildDmaMap(bad)) == EEXIST);
  CHECK(rig.state.maps.size() == 2);
  CHECK(client.Ask(UserCommand::kDmaUnmap, BuildDmaUnmap({0x1000, 0x2000})) == 0);
  CHECK(client.answer.payload.size() == 24);
  CHECK(client.Ask(UserCommand::kDmaUnmap, BuildDmaUnmap({0x1000, 0x2000})) == ENOENT);
  CHECK(client.Ask(UserCommand::kDmaUnmap, BuildDmaUnmap({~std::uint64_t{0}, 2})) == EINVAL);
  CHECK(client.Ask(UserCommand::kDmaUnmap, BuildDmaUnmap({0, 0, true})) == 0);
  CHECK(client.Ask(UserCommand::kDmaUnmap, Noise(24)) == EINVAL);
}

TEST_CASE("vfio-user server: unknown commands are refused, and those without reply get none") {
  ServerRig rig;
  RawClient client(rig);
  for (const unsigned command : {0U, 6U, 11U, 12U, 14U, 15U, 16U, 17U, 18U, 0xffffU})
    CHECK(client.Ask(static_cast<UserCommand>(command), Noise(16)) == EINVAL);
  CHECK(rig.Counter("commands_unknown") == 10);
  CHECK(client.Ask(UserCommand::kReset, Noise(1)) == EINVAL);
  // Answered by nothing, right or wrong.
  for (const UserCommand command : {UserCommand::kReset, UserCommand::kRegionRead}) {
    REQUIRE(client.channel.Send({.id = 1, .command = command, .no_reply = true}, {}));
    rig.Turn();
    CHECK_FALSE(client.channel.Receive()->has_value());
  }
  CHECK(rig.state.resets == 1);
}

TEST_CASE("vfio-user server: what breaks the framing ends the client, and the next is served") {
  ServerRig rig;
  const auto raw = [&](std::span<const std::byte> bytes, std::span<const int> fds = {}) {
    RawClient client(rig);
    CHECK(SendWithFds(client.channel.fd(), bytes, fds).has_value());
    const bool closed = client.Closed();
    return closed;
  };
  const auto header = [](std::uint32_t size, std::uint32_t flags) {
    WireHeader h{};
    h.command = static_cast<std::uint16_t>(UserCommand::kReset);
    h.size = size;
    h.flags = flags;
    std::vector<std::byte> bytes(sizeof(h));
    std::memcpy(bytes.data(), &h, sizeof(h));
    return bytes;
  };
  CHECK(raw(header(0, 0)));
  CHECK(raw(header(15, 0)));
  CHECK(raw(header(~0U, 0)));
  CHECK(raw(header(kUserHeaderSize + kUserMaxPayload + 1, 0)));
  CHECK(raw(header(16, 2)));               // neither command nor reply
  CHECK(raw(header(16, kWireTypeReply)));  // to nothing
  const std::vector<int> nine(9, rig.pages.get());
  const std::array<int, 1> one{rig.pages.get()};
  CHECK(raw(header(16, 0), one));
  CHECK(raw(header(16, 0), nine));
  CHECK(rig.Counter("clients_dropped") == 8);
  CHECK(rig.state.resets == 0);
  {
    // Half a message, and the end.
    RawClient client(rig);
    CHECK(SendWithFds(client.channel.fd(), header(100, 0), {}).has_value());
    rig.Turn();
    CHECK(rig.server->busy());
  }
  rig.Turn();
  CHECK_FALSE(rig.server->busy());
  CHECK(rig.Counter("clients_dropped") == 9);
  RawClient client(rig);
  CHECK(client.Ask(UserCommand::kReset, {}) == 0);
  CHECK(rig.state.made == 10);
  CHECK(rig.state.gone == 9);
  CHECK(rig.Counter("fakes") == 10);
}

TEST_CASE("vfio-user server: requests without end and without reading are not served for ever") {
  ServerRig rig;
  RawClient client(rig);
  // Each is answered by 4 KiB that nobody reads.
  const auto access = BuildRegionAccess({0, 0, 4096, {}});
  bool full = false;
  for (int i = 0; i < 200'000 && !full; ++i) {
    REQUIRE(client.channel.Send({.id = 1, .command = UserCommand::kRegionRead}, access));
    if (i % 64 == 0) rig.Turn(2);
    // The server has stopped reading: what we send waits on our side.
    full = client.channel.backlog() > (1U << 16);
  }
  CHECK(full);
  CHECK(rig.server->busy());
  const std::uint64_t commands = rig.Counter("commands");
  rig.Turn(50);
  CHECK(rig.Counter("commands") == commands);
  // It reads, and all is answered.
  std::uint64_t answers = 0;
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(client.channel.Flush());
    rig.Turn(1);
    while (client.channel.Receive()->has_value()) ++answers;
  }
  CHECK(answers > commands);
}

TEST_CASE("vfio-user server: who comes while another is there is turned away") {
  ServerRig rig;
  RawClient client(rig);
  {
    RawClient second(rig, false);
    CHECK(second.Closed());
  }
  CHECK(rig.Counter("clients_refused") == 1);
  CHECK(client.Ask(UserCommand::kReset, {}) == 0);
}

TEST_CASE("vfio-user server: who says nothing is turned out") {
  ServerRig rig({.hello_timeout_ms = 1});
  RawClient silent(rig, false);
  while (rig.server->busy()) rig.loop->RunOnce(10);
  CHECK(silent.Closed());
  CHECK(rig.Counter("clients_dropped") == 1);
  // Whoever has said VERSION may be silent after it.
  RawClient client(rig);
  for (int i = 0; i < 5; ++i) rig.loop->RunOnce(1);
  CHECK(client.Ask(UserCommand::kReset, {}) == 0);
}

TEST_CASE("vfio-user server: a device that cannot be made turns the client away, for now") {
  ServerRig rig;
  { RawClient first(rig); }
  rig.Turn();
  rig.fail = true;
  {
    RawClient second(rig, false);
    CHECK(second.Closed());
  }
  rig.fail = false;
  RawClient third(rig);
  CHECK(third.Ask(UserCommand::kReset, {}) == 0);
}

TEST_CASE("vfio-user server: a socket in use is refused; a file that is none, too") {
  ServerRig rig;
  const auto make = [&]() -> Outcome<std::unique_ptr<UserServed>> {
    return std::unique_ptr<UserServed>(std::make_unique<FakeServed>(rig.state, -1));
  };
  const auto again = UserServer::Create(rig.directory + "/socket", *rig.loop, make);
  REQUIRE_FALSE(again);
  CHECK(again.error().cause.find("another process listens there") != std::string::npos);
  CHECK_FALSE(UserServer::Create("/tmp", *rig.loop, make));
  CHECK_FALSE(UserServer::Create(rig.directory + "/none/socket", *rig.loop, make));
  CHECK_FALSE(UserServer::Create(std::string(200, 'x'), *rig.loop, make));
}

}  // namespace postern::vfio
