// The vfio-user client against servers that break the rules: the connection is closed, whoever
// called gets an error, later calls fail at once, and nothing stays open.

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

#include "src/base/log.h"
#include "tests/support/memory.h"
#include "tests/support/vfio_user_server.h"
#include "vfio/user/client.h"
#include "vfio/user/client_rig.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using testing::Misbehaviour;
using testing::VfioUserServer;
using Kind = Misbehaviour::Kind;
using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kShort = 100;  // ms: for servers that say nothing

template <typename T>
void Put(Bytes& bytes, std::size_t at, T value) {
  REQUIRE(at + sizeof(T) <= bytes.size());
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

// Changes a word of the payload.
std::function<void(Bytes&)> Word(std::size_t at, std::uint32_t value) {
  return [=](Bytes& bytes) { Put(bytes, 16 + at, value); };
}
std::function<void(Bytes&)> Long(std::size_t at, std::uint64_t value) {
  return [=](Bytes& bytes) { Put(bytes, 16 + at, value); };
}
// Changes the length of the payload, and says so in the header or not.
std::function<void(Bytes&)> Resize(std::ptrdiff_t by, bool tell = true) {
  return [=](Bytes& bytes) {
    const auto size = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(bytes.size()) + by);
    bytes.resize(size);
    if (tell) Put(bytes, 4, static_cast<std::uint32_t>(size));
  };
}
std::function<void(Bytes&)> Text(const std::string& text) {
  return [=](Bytes& bytes) {
    bytes.resize(20 + text.size() + 1);
    std::memcpy(bytes.data() + 20, text.c_str(), text.size() + 1);
    Put(bytes, 4, static_cast<std::uint32_t>(bytes.size()));
  };
}

struct Row {
  std::string what;
  Misbehaviour misbehaviour;
};

// Fails to connect, in bounded time, with a cause, and leaves nothing open at either end.
void RefusesToConnect(const Row& row) {
  CAPTURE(row.what);
  ClientRig rig;
  const auto before = OpenFds();
  {
    VfioUserServer server({.misbehaviour = row.misbehaviour});
    const auto start = std::chrono::steady_clock::now();
    const auto device =
        UserDevice::Connect(server.path(), rig.memory, *rig.loop, {.connect_timeout_ms = kShort});
    CHECK_FALSE(device.has_value());
    if (!device) CHECK(device.error().cause.find(server.path()) != std::string::npos);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
    server.Drop();
    CHECK(server.WaitFor([](const VfioUserServer::Seen& seen) { return seen.closed == 1; }));
  }
  CHECK(OpenFds() == before);
}

TEST_CASE("vfio-user hostile: a server that breaks the framing in the handshake is refused") {
  log::SetLevel(LogLevel::kOff);
  for (const UserCommand at : {UserCommand::kVersion, UserCommand::kDeviceInfo,
                               UserCommand::kRegionInfo, UserCommand::kIrqInfo}) {
    CAPTURE(static_cast<int>(at));
    for (const Row& row : {
             Row{"dies", {.kind = Kind::kDie, .at = at}},
             Row{"is silent", {.kind = Kind::kSilence, .at = at}},
             Row{"sends noise", {.kind = Kind::kGarbage, .at = at}},
             Row{"stops in a message", {.kind = Kind::kHalf, .at = at}},
             Row{"sends many descriptors", {.kind = Kind::kManyFds, .at = at}},
             Row{"answers nobody", {.kind = Kind::kUnaskedReply, .at = at}},
             Row{"answers another command", {.kind = Kind::kWrongCommand, .at = at}},
             Row{"refuses", {.kind = Kind::kRefuse, .at = at, .number = EPERM}},
             Row{"says size 0",
                 {.kind = Kind::kEdit,
                 .at = at,
                 .edit = [](Bytes& b) { Put(b, 4, std::uint32_t{0}); }}},
             Row{"says size 15",
                 {.kind = Kind::kEdit,
                 .at = at,
                 .edit = [](Bytes& b) { Put(b, 4, std::uint32_t{15}); }}},
             Row{"says a huge size",
                 {.kind = Kind::kEdit,
                 .at = at,
                 .edit = [](Bytes& b) { Put(b, 4, std::uint32_t{0xfffffff0}); }}},
             Row{"has type 2",
                 {.kind = Kind::kEdit,
                 .at = at,
                 .edit = [](Bytes& b) { Put(b, 8, std::uint32_t{2}); }}},
             Row{"sends an empty reply",
                 {.kind = Kind::kEdit,
                 .at = at,
                 .edit =
                      [](Bytes& b) {
                        b.resize(16);
                        Put(b, 4, std::uint32_t{16});
                      }}},
             Row{"sends less than it says",
                 {.kind = Kind::kEdit, .at = at, .edit = Resize(-1, false)}},
             Row{"asks for memory in vain and lies", {.kind = Kind::kDmaLies, .at = at}},
             Row{"asks for too much", {.kind = Kind::kDmaHuge, .at = at}},
             Row{"asks with a descriptor", {.kind = Kind::kDmaFds, .at = at}},
         }) {
      RefusesToConnect(row);
    }
  }
}

TEST_CASE("vfio-user hostile: a server whose words break a rule is refused") {
  log::SetLevel(LogLevel::kOff);
  const auto edit = [](UserCommand at, std::function<void(Bytes&)> change, unsigned skip = 0) {
    return Misbehaviour{.kind = Kind::kEdit, .at = at, .skip = skip, .edit = std::move(change)};
  };
  constexpr auto kVersion = UserCommand::kVersion;
  constexpr auto kInfo = UserCommand::kDeviceInfo;
  constexpr auto kRegion = UserCommand::kRegionInfo;
  constexpr auto kIrq = UserCommand::kIrqInfo;
  for (const Row& row : {
           Row{"major version", edit(kVersion, Word(0, 0x00010001))},
           Row{"newer minor version", edit(kVersion, Word(0, 0x00020000))},
           Row{"no JSON", edit(kVersion, Text("{{{"))},
           Row{"deep JSON", edit(kVersion, Text(std::string(3000, '[')))},
           Row{"long JSON", edit(kVersion, Text(std::string(100'000, ' ')))},
           Row{"negative number", edit(kVersion, Text("{\"capabilities\":{\"max_msg_fds\":-1}}"))},
           Row{"zero", edit(kVersion, Text("{\"capabilities\":{\"max_data_xfer_size\":0}}"))},
           Row{"not PCI", edit(kInfo, Word(4, 1))},
           Row{"no regions", edit(kInfo, Word(8, 0))},
           Row{"no configuration space", edit(kInfo, Word(8, 7))},
           Row{"argsz 0", edit(kInfo, Word(0, 0))},
           Row{"short info", edit(kInfo, Resize(-4))},
           Row{"another region", edit(kRegion, Word(8, 5))},
           Row{"region of 2^63 bytes", edit(kRegion, Long(16, std::uint64_t{1} << 63))},
           Row{"argsz without end", edit(kRegion, Word(0, 0xffffffff), 2)},
           Row{"argsz below the structure", edit(kRegion, Word(0, 8), 2)},
           Row{"short region", edit(kRegion, Resize(-60), 2)},
           Row{"list cut short", edit(kRegion, Resize(-16), 2)},
           Row{"chain into the structure", edit(kRegion, Word(12, 8), 2)},
           Row{"chain that loops", edit(kRegion, Word(36, 32), 2)},
           Row{"chain out of the message", edit(kRegion, Word(12, 0x10000), 2)},
           Row{"chain at an odd place", edit(kRegion, Word(12, 33), 2)},
           Row{"areas without number", edit(kRegion, Word(40, 0xffffffff), 2)},
           Row{"area outside", edit(kRegion, Long(56, 0x100000), 2)},
           Row{"area that wraps", edit(kRegion, Long(56, ~std::uint64_t{0}), 2)},
           Row{"areas overlap", edit(kRegion, Long(64, 0x1000), 2)},
           Row{"area beyond its file", edit(kRegion, Long(24, 0x1000), 2)},
           Row{"file offset that wraps", edit(kRegion, Long(24, ~std::uint64_t{0xfff}), 2)},
           Row{"file offset within a page", edit(kRegion, Long(24, 0x10), 2)},
           Row{"small configuration space", edit(kRegion, Long(16, 64), 7)},
           Row{"another interrupt", edit(kIrq, Word(8, 3))},
           Row{"INTx of two", edit(kIrq, Word(12, 2))},
           Row{"MSI-X of 2049", edit(kIrq, Word(12, 2049), 2)},
           Row{"MSI-X of 2^32 - 1", edit(kIrq, Word(12, 0xffffffff), 2)},
       }) {
    RefusesToConnect(row);
  }
}

TEST_CASE("vfio-user hostile: a mappable region without its file is not mappable") {
  ClientRig rig;
  VfioUserServer server(
      {.misbehaviour = {.kind = Kind::kNoFds, .at = UserCommand::kRegionInfo, .skip = 2}});
  const auto device = rig.Connect(server);
  CHECK(device->info().regions[2].size == testing::kTestMemorySize);
  CHECK(device->info().regions[2].areas.empty());
  CHECK_FALSE(device->MapRegion(2, {0x1000, 0x1000}));
  WriteWord(*device, 2, 0x1000, 5);
  CHECK(ReadWord(*device, 2, 0x1000) == 5);
}

TEST_CASE("vfio-user hostile: a region that needs more room is asked for once more, not for ever") {
  log::SetLevel(LogLevel::kOff);
  ClientRig rig;
  {
    // Says 2 KiB, and then what it is.
    VfioUserServer server(
        {.misbehaviour = {
             .kind = Kind::kEdit, .at = UserCommand::kRegionInfo, .edit = Word(0, 2048)}});
    const auto device = rig.Connect(server);
    CHECK(server.seen().commands[UserCommand::kRegionInfo] == kRegionCount + 1);
  }
  RefusesToConnect({"more than it was given room for",
                    {.kind = Kind::kEdit, .at = UserCommand::kRegionInfo, .edit = [](Bytes& b) {
                       b.resize(16 + 2048);
                       Put(b, 4, std::uint32_t{16 + 2048});
                     }}});
}

// A call on a device whose server then misbehaves: the call fails; the device has vanished.
using Act = std::function<Result<void>(UserDevice&, ClientRig&)>;

iommu::HostRange Ram(const ClientRig& rig) {
  const auto& region = rig.memory.Snapshot()->regions()[0];
  return {.address = reinterpret_cast<std::byte*>(region->host_address()),
          .fd = region->fd(),
          .length = region->size()};
}

Result<void> DoRead(UserDevice& device, ClientRig& /*rig*/) {
  std::array<std::byte, 4> word{};
  return device.ReadRegion(0, 0, word);
}
Result<void> DoWrite(UserDevice& device, ClientRig& /*rig*/) {
  return device.WriteRegion(0, 0x28, std::array<std::byte, 4>{});
}
Result<void> DoMap(UserDevice& device, ClientRig& rig) {
  return device.address_space().Map(iommu::Iova(0), Ram(rig), memory::Access::kReadWrite);
}
Result<void> DoUnmap(UserDevice& device, ClientRig& rig) {
  TRY(DoMap(device, rig));
  return device.address_space().Unmap(iommu::Iova(0), Ram(rig).length);
}
Result<void> DoVector(UserDevice& device, ClientRig& /*rig*/) {
  const EventFd event = TRY(EventFd::Create());
  return device.SetVectors(kMsixIrq, 0, std::array{event.fd()});
}
Result<void> DoReset(UserDevice& device, ClientRig& /*rig*/) {
  return device.Reset();
}

bool Gone(const Result<void>& result) {
  return !result && result.error().code == Errc::kSystem && result.error().sys_errno == ENODEV;
}

void AllCallsFail(UserDevice& device, ClientRig& rig) {
  const auto start = std::chrono::steady_clock::now();
  for (const Act& act : {Act(DoRead), Act(DoWrite), Act(DoMap), Act(DoVector), Act(DoReset)}) {
    CHECK(Gone(act(device, rig)));
  }
  const auto map = device.MapRegion(2, {0x1000, 0x1000});
  CHECK((!map && map.error().sys_errno == ENODEV));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

void VanishesAt(const Row& row, const Act& act) {
  CAPTURE(row.what);
  ClientRig rig;
  const auto before = OpenFds();
  {
    VfioUserServer server({.misbehaviour = row.misbehaviour});
    auto device = UserDevice::Connect(server.path(), rig.memory, *rig.loop, {.timeout_ms = kShort});
    REQUIRE(device.has_value());
    const EventFd request = EventFd::Create().value();
    REQUIRE((*device)->SetVectors(kRequestIrq, 0, std::array{request.fd()}));
    const auto start = std::chrono::steady_clock::now();
    CHECK_FALSE(act(**device, rig).has_value());
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
    CHECK((*device)->vanished());
    CHECK((*device)->counters().vanished.Get() == 1);
    CHECK(request.Consume() == 1);
    AllCallsFail(**device, rig);
    CHECK_FALSE(request.Pending());
    server.Drop();
    CHECK(server.WaitFor([](const VfioUserServer::Seen& seen) { return seen.closed == 1; }));
  }
  CHECK(OpenFds() == before);
}

TEST_CASE("vfio-user hostile: a server that misbehaves in a call has vanished") {
  log::SetLevel(LogLevel::kOff);
  struct Call {
    UserCommand at;
    Act act;
  };
  for (const Call& call :
       {Call{UserCommand::kRegionRead, DoRead}, Call{UserCommand::kRegionWrite, DoWrite},
        Call{UserCommand::kDmaMap, DoMap}, Call{UserCommand::kDmaUnmap, DoUnmap},
        Call{UserCommand::kSetIrqs, DoVector}, Call{UserCommand::kReset, DoReset}}) {
    const UserCommand at = call.at;
    CAPTURE(static_cast<int>(at));
    for (const Row& row : {
             Row{"dies", {.kind = Kind::kDie, .at = at}},
             Row{"is silent", {.kind = Kind::kSilence, .at = at}},
             Row{"sends noise", {.kind = Kind::kGarbage, .at = at}},
             Row{"stops in a message", {.kind = Kind::kHalf, .at = at}},
             Row{"sends many descriptors", {.kind = Kind::kManyFds, .at = at}},
             Row{"answers nobody", {.kind = Kind::kUnaskedReply, .at = at}},
             Row{"answers another command", {.kind = Kind::kWrongCommand, .at = at}},
             Row{"asks without end", {.kind = Kind::kFlood, .at = at}},
             Row{"lies about the data of a write", {.kind = Kind::kDmaLies, .at = at}},
             Row{"asks for 2^40 bytes", {.kind = Kind::kDmaHuge, .at = at}},
             Row{"asks with a descriptor", {.kind = Kind::kDmaFds, .at = at}},
             Row{"sends too much", {.kind = Kind::kEdit, .at = at, .edit = Resize(4)}},
         }) {
      VanishesAt(row, call.act);
    }
  }
}

TEST_CASE("vfio-user hostile: a reply that does not fit its command is the end") {
  log::SetLevel(LogLevel::kOff);
  const auto edit = [](UserCommand at, std::function<void(Bytes&)> change) {
    return Misbehaviour{.kind = Kind::kEdit, .at = at, .edit = std::move(change)};
  };
  constexpr auto kRead = UserCommand::kRegionRead;
  constexpr auto kWrite = UserCommand::kRegionWrite;
  constexpr auto kUnmap = UserCommand::kDmaUnmap;
  VanishesAt({"less data", edit(kRead, Resize(-1))}, DoRead);
  VanishesAt({"another count", edit(kRead, Word(12, 2))}, DoRead);
  VanishesAt({"count 2^32 - 1", edit(kRead, Word(12, 0xffffffff))}, DoRead);
  VanishesAt({"another offset", edit(kRead, Long(0, 8))}, DoRead);
  VanishesAt({"another region", edit(kRead, Word(8, 1))}, DoRead);
  VanishesAt({"less written", edit(kWrite, Word(12, 2))}, DoWrite);
  VanishesAt({"elsewhere written", edit(kWrite, Long(0, 0x20))}, DoWrite);
  VanishesAt({"nothing said", edit(kWrite, Resize(-16))}, DoWrite);
  VanishesAt({"another mapping gone", edit(kUnmap, Long(8, 0x1000))}, DoUnmap);
  VanishesAt({"part of a mapping gone", edit(kUnmap, Long(16, 0x1000))}, DoUnmap);
  VanishesAt({"a mapping kept", {.kind = Kind::kRefuse, .at = kUnmap, .number = EBUSY}}, DoUnmap);
}

TEST_CASE("vfio-user hostile: an error is the caller's, with its errno, and the device stays") {
  log::SetLevel(LogLevel::kOff);
  struct Errno {
    std::uint32_t told;
    int seen;
  };
  for (const Errno& row : {Errno{EPERM, EPERM}, Errno{0, EIO}, Errno{ENODEV, EIO}, Errno{4096, EIO},
                           Errno{0xffffffff, EIO}}) {
    CAPTURE(row.told);
    ClientRig rig;
    VfioUserServer server(
        {.misbehaviour = {
             .kind = Kind::kRefuse, .at = UserCommand::kRegionRead, .number = row.told}});
    const auto device = rig.Connect(server);
    const auto read = DoRead(*device, rig);
    REQUIRE_FALSE(read);
    CHECK(read.error().code == Errc::kSystem);
    CHECK(read.error().sys_errno == row.seen);
    CHECK(device->counters().call_errors.Get() == 2);  // region 8 was the other
    CHECK(DoRead(*device, rig));
    CHECK_FALSE(device->vanished());
  }
}

TEST_CASE("vfio-user hostile: DMA where nothing is mapped, and unknown requests, are answered so") {
  log::SetLevel(LogLevel::kOff);
  for (const Kind kind : {Kind::kDmaOutside, Kind::kUnknownRequest}) {
    ClientRig rig;
    VfioUserServer server({.misbehaviour = {.kind = kind, .at = UserCommand::kRegionRead}});
    const auto device = rig.Connect(server);
    CHECK(DoRead(*device, rig));
    CHECK(server.seen().dma_errors == 1);
    CHECK(device->counters().dma_faults.Get() == (kind == Kind::kDmaOutside ? 1 : 0));
    CHECK(device->counters().unknown_requests.Get() == (kind == Kind::kUnknownRequest ? 1 : 0));
    CHECK_FALSE(device->vanished());
  }
}

TEST_CASE("vfio-user hostile: a server that goes while nobody calls is noticed by the loop") {
  log::SetLevel(LogLevel::kOff);
  ClientRig rig;
  VfioUserServer server;
  const auto device = rig.Connect(server);
  const EventFd request = EventFd::Create().value();
  REQUIRE(device->SetVectors(kRequestIrq, 0, std::array{request.fd()}));
  server.Drop();
  REQUIRE(WaitFor(request));
  CHECK(device->vanished());
  AllCallsFail(*device, rig);
  // Whoever asks later is told as well.
  const EventFd late = EventFd::Create().value();
  REQUIRE(device->SetVectors(kRequestIrq, 0, std::array{late.fd()}));
  CHECK(late.Pending());
  CHECK(Gone(device->address_space().Map(iommu::Iova(0), Ram(rig), memory::Access::kRead)));
}

TEST_CASE("vfio-user hostile: the server's own request for removal is passed on") {
  ClientRig rig;
  VfioUserServer server({.request_irq = true});
  const auto device = rig.Connect(server);
  const EventFd request = EventFd::Create().value();
  REQUIRE(device->SetVectors(kRequestIrq, 0, std::array{request.fd()}));
  server.Raise(kRequestIrq, 0);
  CHECK(request.Consume() == 1);
  CHECK_FALSE(device->vanished());
  REQUIRE(device->DisableIrq(kRequestIrq));
  server.Raise(kRequestIrq, 0);
  CHECK_FALSE(request.Pending());
}

TEST_CASE("vfio-user hostile: a server that does not read ends a long write in time") {
  log::SetLevel(LogLevel::kOff);
  ClientRig rig;
  VfioUserServer server({.misbehaviour = {.kind = Kind::kSilence, .at = UserCommand::kRegionRead}});
  const auto device = rig.Connect(server, {.timeout_ms = kShort, .posted_writes = true});
  CHECK_FALSE(DoRead(*device, rig));
  CHECK(device->vanished());

  VfioUserServer other({.misbehaviour = {.kind = Kind::kSilence, .at = UserCommand::kRegionWrite}});
  const auto posting = rig.Connect(other, {.timeout_ms = kShort, .posted_writes = true});
  const std::vector<std::byte> data(testing::kTestMemorySize);
  Result<void> result;
  for (int i = 0; i < 100 && result; ++i) result = posting->WriteRegion(2, 0, data);
  CHECK(Gone(result));
  CHECK(posting->vanished());
}

TEST_CASE("vfio-user hostile: a file that was cut off after the handshake is not mapped") {
  ClientRig rig;
  VfioUserServer server;
  const auto device = rig.Connect(server);
  const auto mapping = device->MapRegion(2, {0x1000, 0x1000});
  REQUIRE(mapping);
  REQUIRE(ftruncate((*mapping)->pages().fd, 0x9000) == 0);
  CHECK(device->MapRegion(2, {0x8000, 0x1000}));
  const auto beyond = device->MapRegion(2, {0x9000, 0x1000});
  REQUIRE_FALSE(beyond);
  CHECK(beyond.error().code == Errc::kPeerProtocol);
  REQUIRE(ftruncate((*mapping)->pages().fd, testing::kTestMemorySize) == 0);
}

TEST_CASE("vfio-user hostile: threads that wait for a silent server all get their error in time") {
  log::SetLevel(LogLevel::kOff);
  ClientRig rig;
  VfioUserServer server({.misbehaviour = {.kind = Kind::kSilence, .at = UserCommand::kReset}});
  const auto device = rig.Connect(server, {.timeout_ms = kShort});
  const auto start = std::chrono::steady_clock::now();
  std::vector<Thread> threads;
  threads.reserve(8);
  for (int i = 0; i < 8; ++i) {
    threads.push_back(Thread::Start("caller", [&] {
                        if (device->Reset()) std::abort();
                      }).value());
  }
  for (Thread& thread : threads) thread.Join();
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}

}  // namespace
}  // namespace postern::vfio
