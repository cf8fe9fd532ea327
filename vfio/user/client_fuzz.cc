// The client's end of vfio-user under a server that sends anything: the input edits the replies of
// a well-behaved server, bit by bit, and adds bytes of its own; then every kind of call is made.

#include "vfio/user/client.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "src/base/check.h"
#include "src/base/fd_passing.h"
#include "src/base/log.h"
#include "tests/support/memory.h"

namespace {

using namespace postern;        // NOLINT(google-build-using-namespace)
using namespace postern::vfio;  // NOLINT(google-build-using-namespace)

struct Message {
  std::vector<std::byte> bytes;
  bool with_fd = false;
};

void Add(std::vector<Message>& to, UserCommand command, std::span<const std::byte> payload,
         bool with_fd = false, bool reply = true) {
  UserHeader header{
      .id = static_cast<std::uint16_t>(to.size()), .command = command, .reply = reply};
  header.size = static_cast<std::uint32_t>(kUserHeaderSize + payload.size());
  const auto head = BuildHeader(header);
  Message message{std::vector<std::byte>(header.size), with_fd};
  std::memcpy(message.bytes.data(), head.data(), head.size());
  if (!payload.empty()) {
    std::memcpy(message.bytes.data() + head.size(), payload.data(), payload.size());
  }
  to.push_back(std::move(message));
}

// What a good server says to a client that connects and then does what LLVMFuzzerTestOneInput does.
std::vector<Message> GoodReplies() {
  std::vector<Message> out;
  Add(out, UserCommand::kVersion, BuildVersion({}));
  Add(out, UserCommand::kDeviceInfo,
      BuildDeviceInfo({.can_reset = true, .pci = true, .regions = 9, .irqs = 5}));
  for (std::uint32_t i = 0; i < kRegionCount; ++i) {
    UserRegionInfo info{.index = i, .readable = true, .writable = true, .size = 4096};
    if (i == 2) {
      info.size = 0x4000;
      info.mappable = info.sparse = true;
      info.areas = {{0, 0x1000}, {0x2000, 0x2000}};
    }
    Add(out, UserCommand::kRegionInfo, BuildRegionInfo(info, 4096), i == 2);
  }
  for (std::uint32_t i = 0; i < kIrqCount; ++i) {
    Add(out, UserCommand::kIrqInfo,
        BuildIrqInfo({.count = 1, .eventfd = true, .maskable = true}, i));
  }
  Add(out, UserCommand::kDmaMap, {});
  const std::array<std::byte, 4> word{};
  Add(out, UserCommand::kRegionRead, BuildRegionAccess({0, 0, 4, word}));
  Add(out, UserCommand::kRegionWrite, BuildRegionAccess({0, 0, 4, {}}));
  Add(out, UserCommand::kSetIrqs, {});
  Add(out, UserCommand::kReset, {});
  Add(out, UserCommand::kDmaUnmap, BuildDmaUnmap({0, 0x10000}));
  return out;
}

class Input {
 public:
  explicit Input(std::span<const std::uint8_t> data) : data_(data) {}
  [[nodiscard]] bool left() const { return !data_.empty(); }
  std::uint8_t Byte() {
    if (data_.empty()) return 0;
    const std::uint8_t byte = data_.front();
    data_ = data_.subspan(1);
    return byte;
  }

 private:
  std::span<const std::uint8_t> data_;
};

// Edits: which message, and what to do with it.
void Edit(std::vector<Message>& messages, Input& input) {
  const std::size_t at = input.Byte() % messages.size();
  Message& message = messages[at];
  const std::uint8_t what = input.Byte();
  switch (what % 6) {
    case 0:
    case 1:
      if (!message.bytes.empty()) {
        message.bytes[(what / 6U + input.Byte()) % message.bytes.size()] = std::byte{input.Byte()};
      }
      break;
    case 2:
      message.bytes.resize(message.bytes.size() + input.Byte(), std::byte{input.Byte()});
      break;
    case 3:
      message.bytes.resize(message.bytes.size() * input.Byte() / 256);
      break;
    case 4:
      message.with_fd = !message.with_fd;
      break;
    default: {
      // A request in between.
      std::vector<Message> one;
      const bool write = (what & 0x80) != 0;
      const std::array<std::byte, 8> data{};
      const UserDmaAccess access{
          input.Byte() * 0x101ULL, write ? 8U : input.Byte(),
          write ? std::span<const std::byte>(data) : std::span<const std::byte>()};
      Add(one, write ? UserCommand::kDmaWrite : UserCommand::kDmaRead, BuildDmaAccess(access),
          false, false);
      messages.insert(messages.begin() + static_cast<std::ptrdiff_t>(at), std::move(one[0]));
    }
  }
}

struct World {
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  memory::MemoryMap memory{testing::MakeMemory(0x10000)};
  Fd file{memfd_create("fuzz", MFD_CLOEXEC)};
  std::vector<Message> good = GoodReplies();
  World() {
    log::SetLevel(LogLevel::kOff);
    CHECK(ftruncate(file.get(), 0x4000) == 0);
  }
};

void Use(UserDevice& device, const memory::MemoryMap& memory, EventLoop& loop) {
  const memory::RegionPtr& region = memory.Snapshot()->regions()[0];
  std::array<std::byte, 4> word{};
  (void)device.address_space().Map(
      iommu::Iova(0),
      {.address = reinterpret_cast<std::byte*>(region->host_address()), .length = 0x10000},
      memory::Access::kReadWrite);
  (void)device.ReadRegion(0, 0, word);
  (void)device.WriteRegion(0, 0, word);
  const EventFd event = EventFd::Create().value();
  (void)device.SetVectors(kMsixIrq, 0, std::array{event.fd()});
  (void)device.Reset();
  (void)device.address_space().Unmap(iommu::Iova(0), 0x10000);
  for (std::uint32_t i = 0; i < kRegionCount; ++i) {
    for (const MapArea& area : device.info().regions[i].areas) {
      CHECK(area.length > 0 && area.length <= device.info().regions[i].size - area.offset);
      (void)device.MapRegion(i, area);
    }
  }
  loop.RunOnce(0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World world;
  Input input(std::span(data, size));
  std::vector<Message> messages = world.good;
  for (int edits = input.Byte() % 8; edits > 0; --edits) Edit(messages, input);
  std::array<int, 2> fds{};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()) == 0);
  Fd client(fds[0]);
  const Fd server(fds[1]);
  const std::array<int, 1> file{world.file.get()};
  for (const Message& message : messages) {
    // All that the socket takes, before the client asks.
    if (message.bytes.empty()) continue;
    (void)SendWithFds(server.get(), message.bytes,
                      message.with_fd ? std::span<const int>(file) : std::span<const int>());
  }
  std::vector<std::byte> tail;
  while (input.left()) tail.push_back(std::byte{input.Byte()});
  if (!tail.empty()) (void)SendWithFds(server.get(), tail, {});
  CHECK(shutdown(server.get(), SHUT_WR) == 0);
  auto device = UserDevice::Adopt(std::move(client), "fuzz", world.memory, *world.loop,
                                  {.connect_timeout_ms = 1000, .timeout_ms = 1000});
  if (device) Use(**device, world.memory, *world.loop);
  return 0;
}
