// The server's parsers under a client that sends anything: each parser alone, and all of a
// connection against the server of tests/support. The first byte chooses.

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "src/base/check.h"
#include "src/base/fd_passing.h"
#include "src/base/log.h"
#include "src/base/unix_socket.h"
#include "tests/support/vfio_user_server.h"
#include "vfio/user/protocol.h"

namespace {

using namespace postern;        // NOLINT(google-build-using-namespace)
using namespace postern::vfio;  // NOLINT(google-build-using-namespace)

void ParseAlone(std::span<const std::byte> bytes) {
  if (bytes.size() >= kUserHeaderSize) {
    if (const auto header = ParseHeader(bytes.first<kUserHeaderSize>(), 100); header) {
      CHECK(header->size >= kUserHeaderSize && header->size <= kUserHeaderSize + 100);
    }
  }
  if (const auto version = ParseVersion(bytes); version) {
    CHECK(version->capabilities.max_msg_fds <= kUserMaxFds);
    CHECK(version->capabilities.max_data_xfer_size - 1 < kUserMaxTransfer);
    CHECK((version->capabilities.pgsizes & 0xfff) == 0 && version->capabilities.pgsizes != 0);
  }
  if (const auto map = ParseDmaMap(bytes); map)
    CHECK(map->address + (map->size - 1) >= map->address);
  (void)ParseDmaUnmap(bytes);
  (void)ParseQuery(UserCommand::kRegionInfo, bytes);
  (void)ParseDeviceInfo(bytes);
  if (const auto region = ParseRegionInfo(bytes); region) {
    if (const auto checked = CheckRegion(*region); checked) {
      std::uint64_t end = 0;
      for (const MapArea& area : checked->areas) {
        CHECK(area.offset >= end && area.length > 0);
        end = area.offset + area.length;
        CHECK(end <= checked->size);
      }
    }
  }
  (void)ParseIrqInfo(bytes, kMsixIrq);
  (void)ParseSetIrqs(bytes);
  for (const Carries carries : {Carries::kNothing, Carries::kData}) {
    if (const auto access = ParseRegionAccess(bytes, carries); access) {
      CHECK(access->count - 1 < kUserMaxTransfer);
    }
    if (const auto access = ParseDmaAccess(bytes, carries); access) {
      CHECK(access->count - 1 < kUserMaxTransfer);
    }
  }
}

// Commands whose payload is the input's; every one gets a good header.
void Speak(std::span<const std::byte> bytes) {
  static testing::VfioUserServer server;
  Result<Fd> socket = ConnectUnix(server.path());
  if (!socket) return;
  std::vector<std::byte> out;
  std::uint16_t id = 0;
  while (bytes.size() >= 2) {
    const auto command = static_cast<std::uint16_t>(bytes[0]) % 20;
    const std::size_t length =
        std::min<std::size_t>(static_cast<std::uint8_t>(bytes[1]) % 64, bytes.size() - 2);
    UserHeader header{.id = id++, .command = static_cast<UserCommand>(command)};
    header.size = static_cast<std::uint32_t>(kUserHeaderSize + length);
    const auto head = BuildHeader(header);
    const std::size_t at = out.size();
    out.resize(at + header.size);
    std::memcpy(out.data() + at, head.data(), head.size());
    if (length > 0) std::memcpy(out.data() + at + head.size(), bytes.data() + 2, length);
    bytes = bytes.subspan(2 + length);
  }
  if (!out.empty()) (void)SendWithFds(socket->get(), out, {});
  if (shutdown(socket->get(), SHUT_WR) != 0) return;
  const timeval limit{5, 0};
  CHECK(setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
  // Blocking from here on: until the server has answered what it could and closed.
  CHECK(fcntl(socket->get(), F_SETFL, 0) == 0);
  std::array<std::byte, 4096> answer{};
  ssize_t n = 0;
  do {
    n = recv(socket->get(), answer.data(), answer.size(), 0);
  } while (n > 0);
  // The end, or a reset: never nothing for five seconds.
  CHECK(n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  log::SetLevel(LogLevel::kOff);
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  if (data[0] % 2 == 0) {
    ParseAlone(bytes);
  } else {
    Speak(bytes);
  }
  return 0;
}
