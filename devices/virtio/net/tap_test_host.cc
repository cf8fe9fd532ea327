#include "devices/virtio/net/tap_test_host.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace postern::testing {
namespace {

void WriteFile(const char* path, std::string_view text) {
  const Fd fd(open(path, O_WRONLY | O_CLOEXEC));
  if (write(fd.get(), text.data(), text.size()) < 0) std::perror(path);
}

}  // namespace

std::string EnterNetworkNamespace() {
  static bool entered = false;
  if (entered) return {};
  if (unshare(CLONE_NEWNET) != 0) {
    // Without privilege: own the namespace by way of a user namespace.
    const auto uid = std::to_string(getuid());
    const auto gid = std::to_string(getgid());
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
      return "network namespaces are not permitted here";
    WriteFile("/proc/self/setgroups", "deny");
    WriteFile("/proc/self/uid_map", "0 " + uid + " 1");
    WriteFile("/proc/self/gid_map", "0 " + gid + " 1");
  }
  if (access("/dev/net/tun", R_OK | W_OK) != 0) return "/dev/net/tun cannot be opened";
  entered = true;
  // No packets of the kernel's own. A kernel without IPv6 has none.
  if (access("/proc/sys/net/ipv6", F_OK) == 0) {
    WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
  }
  return {};
}

std::vector<std::byte> TestFrame(std::size_t size, std::uint32_t seed) {
  std::vector<std::byte> frame(size);
  for (std::size_t i = 14; i < size; ++i)
    frame[i] = static_cast<std::byte>((i * 7 + std::size_t{seed} * 31) >> (i % 3));
  for (std::size_t i = 0; i < 6; ++i) frame[i] = std::byte{0xff};
  frame[6] = std::byte{2};
  frame[12] = std::byte{kTestEthertype >> 8};
  frame[13] = std::byte{kTestEthertype & 0xff};
  return frame;
}

TapHost::TapHost(const std::string& name)
    : socket_(socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(kTestEthertype))) {
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(kTestEthertype);
  address.sll_ifindex = static_cast<int>(if_nametoindex(name.c_str()));
  const int ignore_own = 1;
  if (bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      setsockopt(socket_.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &ignore_own,
                 sizeof(ignore_own)) != 0) {
    std::perror("packet socket");
    std::abort();
  }
}

bool TapHost::Send(std::span<const std::byte> frame) const {
  return send(socket_.get(), frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size());
}

std::vector<std::byte> TapHost::Receive(int timeout_ms) const {
  std::vector<std::byte> frame(70000);
  pollfd fd{socket_.get(), POLLIN, 0};
  if (poll(&fd, 1, timeout_ms) <= 0) return {};
  const ssize_t n = recv(socket_.get(), frame.data(), frame.size(), 0);
  frame.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return frame;
}

}  // namespace postern::testing
