#pragma once

// Descriptors sent over an AF_UNIX socket (SCM_RIGHTS), for protocols that hand over memory and
// eventfds (vhost-user, vfio-user). Threads: any, but one sender and one receiver at a time per
// socket.

#include <cstddef>
#include <span>
#include <vector>

#include "src/base/fd.h"
#include "src/base/result.h"

namespace postern {

// What Linux sends in one message at most (SCM_MAX_FD).
constexpr std::size_t kMaxPassedFds = 253;

// One sendmsg(2) of `data` (not empty), with copies of `fds`; says how many bytes were taken, which
// on a stream socket may be fewer: the descriptors are then on their way already, and the rest is
// sent without them. Never raises SIGPIPE.
[[nodiscard]] Result<std::size_t> SendWithFds(int socket, std::span<const std::byte> data,
                                              std::span<const int> fds);

struct Received {
  std::size_t size = 0;  // 0: the peer has closed
  std::vector<Fd> fds;
};
// One recvmsg(2). Descriptors are received close-on-exec; a message with more than `max_fds` of
// them is kPeerProtocol, and none of them stays open.
[[nodiscard]] Result<Received> ReceiveWithFds(int socket, std::span<std::byte> data,
                                              std::size_t max_fds);

}  // namespace postern
