// The server facing a hostile client, all of it: commands with the input's payloads, descriptors of
// several kinds, or bytes as they come, against a served PCI function that runs no threads.

#include "vfio/user/session.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "devices/siov/core/fake_backend.h"
#include "devices/siov/core/fake_personality.h"
#include "devices/siov/core/vdev.h"
#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/base/event_loop.h"
#include "src/base/fd_passing.h"
#include "src/base/log.h"
#include "vfio/user/protocol.h"
#include "vfio/user/served_function.h"

namespace {

using namespace postern;        // NOLINT(google-build-using-namespace)
using namespace postern::vfio;  // NOLINT(google-build-using-namespace)

Fd Memory() {
  Fd file(memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK(file.valid() && ftruncate(file.get(), 0x4000) == 0);
  return file;
}

std::unique_ptr<ServedFunction> MakeFunction(EventLoop& loop) {
  auto served = ServedFunction::Create(
      [&](bus::InterruptSource& interrupts, const memory::MemoryMap&) -> Outcome<ServedParts> {
        siov::BackendCaps caps = siov::FakeBackend::DefaultCaps();
        auto vdev = siov::Vdev::Create(
            {.name = "fuzz", .pages_leave = true},
            std::make_unique<siov::FakePersonality>(siov::FakePersonality::DefaultLayout()),
            std::make_unique<siov::FakeBackend>(caps), {interrupts, loop});
        CHECK(vdev.has_value());
        return ServedParts{std::move(*vdev), {}};
      });
  CHECK(served.has_value());
  return std::move(*served);
}

class Client {
 public:
  explicit Client(int socket) : socket_(socket) {}
  // 0: bytes as they come; else a command with a good header.
  void Step(std::span<const std::byte>& input) {
    const auto kind = std::to_integer<unsigned>(input[0]);
    const std::size_t length =
        std::min<std::size_t>(std::to_integer<unsigned>(input[1]) % 96, input.size() - 2);
    const auto payload = input.subspan(2, length);
    std::vector<std::byte> bytes;
    if (kind % 20 != 0 || kind == 0) {
      UserHeader header{.id = 1, .command = static_cast<UserCommand>(kind % 20)};
      header.size = static_cast<std::uint32_t>(kUserHeaderSize + length);
      const auto head = BuildHeader(header);
      bytes.assign(head.begin(), head.end());
    }
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    input = input.subspan(2 + length);
    const std::array<int, 4> fds{memory_.get(), event_.fd(), socket_, memory_.get()};
    const std::size_t count = kind < 128 ? 0 : (kind >> 5) & 3U;
    if (!bytes.empty()) (void)SendWithFds(socket_, bytes, std::span(fds).subspan(kind & 1U, count));
  }
  void Hello() {
    const auto payload = BuildVersion({});
    UserHeader header{.id = 1, .command = UserCommand::kVersion};
    header.size = static_cast<std::uint32_t>(kUserHeaderSize + payload.size());
    const auto head = BuildHeader(header);
    std::vector<std::byte> bytes(head.begin(), head.end());
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    CHECK(SendWithFds(socket_, bytes, {}).has_value());
  }
  void Drain() const {
    std::array<std::byte, 65536> answer{};
    while (recv(socket_, answer.data(), answer.size(), MSG_DONTWAIT) > 0) {
    }
  }

 private:
  int socket_;
  Fd memory_ = Memory();
  EventFd event_ = EventFd::Create().value();
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  log::SetLevel(LogLevel::kOff);
  static const std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  auto input = std::as_bytes(std::span(data, size));
  if (input.empty()) return 0;
  int ends[2] = {-1, -1};
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
  const Fd theirs(ends[1]);
  const std::unique_ptr<ServedFunction> function = MakeFunction(*loop);
  ServerCounters counters;
  UserSession session(Fd(ends[0]), *function, counters, "fuzz");
  Client client(theirs.get());
  if (std::to_integer<unsigned>(input[0]) != 0) client.Hello();
  input = input.subspan(1);
  bool alive = session.Work();
  while (alive && input.size() >= 2) {
    client.Step(input);
    alive = session.Work();
    loop->RunOnce(0);
    client.Drain();
  }
  CHECK(session.reason().has_value() == !alive);
  CHECK(session.greeted() || function->Irq(kMsixIrq).count > 0);
  return 0;
}
