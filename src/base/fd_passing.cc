#include "src/base/fd_passing.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace postern {
namespace {

struct alignas(cmsghdr) Control {
  std::array<std::byte, CMSG_SPACE(kMaxPassedFds * sizeof(int))> bytes{};
};

void TakeDescriptors(msghdr& message, std::vector<Fd>& out) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      out.emplace_back(fd);
    }
  }
}

}  // namespace

Result<std::size_t> SendWithFds(int socket, std::span<const std::byte> data,
                                std::span<const int> fds) {
  if (data.empty() || fds.size() > kMaxPassedFds) return Err(Errc::kInvalidArgument, "sendmsg");
  // sendmsg does not write through the vector; POSIX only forgot to say const.
  iovec part{const_cast<std::byte*>(data.data()), data.size()};
  Control control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  ssize_t n = 0;
  do {
    n = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return SysError("sendmsg");
  return static_cast<std::size_t>(n);
}

Result<Received> ReceiveWithFds(int socket, std::span<std::byte> data, std::size_t max_fds) {
  if (data.empty() || max_fds > kMaxPassedFds) return Err(Errc::kInvalidArgument, "recvmsg");
  iovec part{data.data(), data.size()};
  Control control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  // All of it, whatever the limit: what does not fit a smaller buffer is lost without a count, and
  // padding makes it inexact.
  message.msg_controllen = control.bytes.size();
  ssize_t n = 0;
  do {
    n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return SysError("recvmsg");
  Received received;
  received.size = static_cast<std::size_t>(n);
  TakeDescriptors(message, received.fds);
  // MSG_CTRUNC: descriptors were dropped, because of their number or because this process may open
  // no more.
  if ((message.msg_flags & MSG_CTRUNC) != 0 || received.fds.size() > max_fds) {
    return Err(Errc::kPeerProtocol, "descriptors with a message");
  }
  return received;
}

}  // namespace postern
