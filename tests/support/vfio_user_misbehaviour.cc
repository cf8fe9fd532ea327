// What a VfioUserServer does wrong, apart from what it does right.

#include <poll.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "src/base/fd_passing.h"
#include "tests/support/memory.h"
#include "tests/support/vfio_user_peer.h"

namespace postern::testing {

using vfio::UserCommand;
using vfio::UserHeader;

namespace {

using Kind = Misbehaviour::Kind;

constexpr std::uint64_t kNowhere = std::uint64_t{1} << 40;

std::vector<std::byte> Whole(UserHeader header, std::span<const std::byte> payload) {
  header.size = static_cast<std::uint32_t>(vfio::kUserHeaderSize + payload.size());
  const auto head = vfio::BuildHeader(header);
  std::vector<std::byte> bytes(header.size);
  std::memcpy(bytes.data(), head.data(), head.size());
  if (!payload.empty()) std::memcpy(bytes.data() + head.size(), payload.data(), payload.size());
  return bytes;
}

}  // namespace

Result<void> VfioUserPeer::SendRaw(std::span<const std::byte> bytes, std::span<const int> fds) {
  while (!bytes.empty()) {
    const Result<std::size_t> sent = SendWithFds(channel_.fd(), bytes, fds);
    if (sent) {
      bytes = bytes.subspan(*sent);
      fds = {};
      continue;
    }
    if (sent.error().sys_errno != EAGAIN) return Unexpected(sent.error());
    std::array<pollfd, 3> entries{{{server_.stop_.fd(), POLLIN, 0},
                                   {server_.drop_.fd(), POLLIN, 0},
                                   {channel_.fd(), POLLOUT, 0}}};
    if (poll(entries.data(), entries.size(), -1) < 0 && errno != EINTR) return SysError("poll");
    if (entries[0].revents != 0 || entries[1].revents != 0) return SysError("stopped", EINTR);
  }
  return {};
}

Result<bool> VfioUserPeer::Misbehave(const UserHeader& to, Payload payload,
                                     std::span<const int> fds) {
  const UserHeader header{.id = to.id, .command = to.command, .reply = true};
  std::vector<std::byte> bytes = Whole(header, payload);
  switch (options_.misbehaviour.kind) {
    case Kind::kEdit:
      options_.misbehaviour.edit(bytes);
      TRY(SendRaw(bytes, fds));
      return true;
    case Kind::kNoFds:
      TRY(SendRaw(bytes));
      return true;
    case Kind::kSilence:
      Silence();
      return Err(Errc::kBadState, "silence");
    case Kind::kDie:
      return Err(Errc::kBadState, "death");
    case Kind::kGarbage:
      TRY(SendRaw(Pattern(4096, 7)));
      return true;
    case Kind::kHalf:
      TRY(SendRaw(std::span(bytes).first(bytes.size() / 2)));
      Silence();
      return Err(Errc::kBadState, "silence");
    case Kind::kManyFds:
      TRY(SendRaw(bytes, std::vector<int>(40, server_.stop_.fd())));
      return true;
    case Kind::kRefuse:
      TRY(Refuse(to, options_.misbehaviour.number));
      return true;
    default:
      return MisspeakTo(to, payload);
  }
}

// Messages that are well formed, and out of place.
Result<bool> VfioUserPeer::MisspeakTo(const UserHeader& to, Payload payload) {
  UserHeader header{.id = to.id, .command = to.command, .reply = true};
  const std::array<std::byte, 4> data{};
  const std::array<int, 1> fd{server_.stop_.fd()};
  switch (options_.misbehaviour.kind) {
    case Kind::kUnaskedReply:
      header.id = static_cast<std::uint16_t>(to.id + 77);
      TRY(channel_.Send(header, payload));
      return false;
    case Kind::kWrongCommand:
      header.command = UserCommand::kDmaRead;
      TRY(channel_.Send(header, payload));
      return true;
    case Kind::kFlood:
      while (Ask(UserCommand::kDmaRead, vfio::BuildDmaAccess({0, 16, {}}))) {
      }
      return Err(Errc::kBadState, "flood");
    case Kind::kDmaOutside:
      TRY(Ask(UserCommand::kDmaRead, vfio::BuildDmaAccess({kNowhere, 16, {}})));
      return false;
    case Kind::kDmaLies:
      TRY(Ask(UserCommand::kDmaWrite, vfio::BuildDmaAccess({0, 8, data})));
      return false;
    case Kind::kDmaHuge:
      TRY(Ask(UserCommand::kDmaRead, vfio::BuildDmaAccess({0, kNowhere, {}})));
      return false;
    case Kind::kDmaFds:
      TRY(Ask(UserCommand::kDmaRead, vfio::BuildDmaAccess({0, 16, {}}), fd));
      return false;
    case Kind::kUnknownRequest:
      TRY(Ask(static_cast<UserCommand>(99), payload));
      return false;
    default:
      return false;
  }
}

}  // namespace postern::testing
