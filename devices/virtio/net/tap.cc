#include "devices/virtio/net/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "src/base/text.h"

namespace postern::virtio::net {
namespace {

// Since Linux 6.2; headers may be older.
constexpr unsigned kTunFUso4 = 0x20;
constexpr unsigned kTunFUso6 = 0x40;

constexpr int kHeaderSize = sizeof(PacketHeader);

ifreq Request(const std::string& name) {
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), std::min<std::size_t>(name.size(), IFNAMSIZ - 1));
  return request;
}

// For the SIOC* ioctls.
Result<Fd> ControlSocket() {
  Fd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SysError("socket");
  return fd;
}

Result<void> BringUp(const std::string& name) {
  const Fd control = TRY(ControlSocket());
  ifreq request = Request(name);
  if (ioctl(control.get(), SIOCGIFFLAGS, &request) != 0) return SysError("SIOCGIFFLAGS");
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (ioctl(control.get(), SIOCSIFFLAGS, &request) != 0) return SysError("SIOCSIFFLAGS");
  return {};
}

int SetInterface(int fd, const std::string& name, bool multi_queue) {
  ifreq request = Request(name);
  const int flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (multi_queue ? IFF_MULTI_QUEUE : 0);
  request.ifr_flags = static_cast<short>(flags);
  return ioctl(fd, TUNSETIFF, &request) == 0 ? 0 : errno;
}

tl::unexpected<Failure> OpenFailed(const Tap::Options& options, bool existed, int error) {
  const std::string what = fmt::format("network interface '{}'", Escaped(options.name));
  const Error cause = SysError("TUNSETIFF", error).value();
  switch (error) {
    case EBUSY:
      return HostFailure(
          what + ": another process uses it (EBUSY)",
          options.queues > 1
              ? "end that process; for several queues the interface must also have been made with "
                "'ip tuntap add ... multi_queue'"
              : "end that process, or choose another interface");
    case EPERM:
      if (existed) {
        return HostFailure(what, cause,
                           fmt::format("make it yours: 'ip tuntap add dev {} mode tap user $USER "
                                       "vnet_hdr', or run with CAP_NET_ADMIN",
                                       Escaped(options.name)));
      }
      return HostFailure(what + ": does not exist, and may not be created (EPERM)",
                         fmt::format("create it as root: 'ip tuntap add dev {} mode tap user $USER "
                                     "vnet_hdr', or run with CAP_NET_ADMIN",
                                     Escaped(options.name)));
    case EINVAL:
      if (existed && options.queues > 1) {
        return ConfigFailure(
            what + ": is no TAP interface with several queues",
            fmt::format(
                "create it with 'ip tuntap add dev {} mode tap multi_queue', or use one queue pair",
                Escaped(options.name)));
      }
      if (existed)
        return ConfigFailure(what + ": is no TAP interface",
                             "choose another name, or create it with 'ip tuntap add'");
      return HostFailure(what, cause);
    case E2BIG:
      return ConfigFailure(what + ": has not that many queues", "use fewer queue pairs");
    default:
      return HostFailure(what, cause);
  }
}

}  // namespace

Result<void> Tap::Prepare(int fd) {
  int size = kHeaderSize;
  if (ioctl(fd, TUNSETVNETHDRSZ, &size) != 0) return SysError("TUNSETVNETHDRSZ");
  // Offloads of an earlier user of a persistent interface do not concern this one.
  if (ioctl(fd, TUNSETOFFLOAD, 0UL) != 0) return SysError("TUNSETOFFLOAD");
  return {};
}

Outcome<std::vector<Tap>> Tap::Open(const Options& options) {
  const std::string what = fmt::format("network interface '{}'", Escaped(options.name));
  if (options.name.empty() || options.name.size() >= IFNAMSIZ ||
      options.name.find('/') != std::string::npos || options.name.find('%') != std::string::npos) {
    return ConfigFailure(what + ": not a name of an interface",
                         fmt::format("use 1 to {} bytes without '/' and '%'", IFNAMSIZ - 1));
  }
  const bool existed = if_nametoindex(options.name.c_str()) != 0;
  std::vector<Tap> taps;
  bool multi_queue = options.queues > 1;
  for (std::uint16_t i = 0; i < options.queues; ++i) {
    Fd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd.valid()) {
      const Error error = SysError("open /dev/net/tun").value();
      return HostFailure(what, error,
                         error.sys_errno == EACCES || error.sys_errno == EPERM
                             ? "run as a user who may open /dev/net/tun"
                             : "load the kernel module: 'modprobe tun'");
    }
    int error = SetInterface(fd.get(), options.name, multi_queue);
    if (error == EINVAL && existed && !multi_queue) {
      // One queue of an interface that was made for several.
      multi_queue = true;
      error = SetInterface(fd.get(), options.name, multi_queue);
    }
    if (error != 0) return OpenFailed(options, existed, error);
    if (Result<void> prepared = Prepare(fd.get()); !prepared)
      return HostFailure(what, prepared.error());
    taps.push_back(Tap(std::move(fd), options.name, !existed));
  }
  if (!existed) {
    if (Result<void> up = BringUp(options.name); !up) return HostFailure(what, up.error());
  }
  return taps;
}

Outcome<std::vector<Tap>> Tap::Adopt(std::span<const int> descriptors) {
  std::vector<Fd> owned;
  for (const int fd : descriptors) owned.emplace_back(fd);
  std::vector<Tap> taps;
  for (Fd& fd : owned) {
    const std::string what = fmt::format("network descriptor {}", fd.get());
    ifreq request{};
    if (!fd.valid() || ioctl(fd.get(), TUNGETIFF, &request) != 0) {
      return ConfigFailure(what + ": is no open TAP interface",
                           "pass a descriptor on which TUNSETIFF was done");
    }
    const auto flags = static_cast<unsigned short>(request.ifr_flags);
    if ((flags & IFF_TAP) == 0 || (flags & IFF_VNET_HDR) == 0 || (flags & IFF_NO_PI) == 0) {
      return ConfigFailure(what + ": was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
                           "open it with these flags");
    }
    if (descriptors.size() > 1 && (flags & IFF_MULTI_QUEUE) == 0) {
      return ConfigFailure(what + ": was not opened with IFF_MULTI_QUEUE",
                           "open it with this flag, or use one queue pair");
    }
    const int status = fcntl(fd.get(), F_GETFL);
    if (status < 0 || fcntl(fd.get(), F_SETFL, status | O_NONBLOCK) != 0 ||
        fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) {
      return HostFailure(what, SysError("fcntl").value());
    }
    if (Result<void> prepared = Prepare(fd.get()); !prepared)
      return HostFailure(what, prepared.error());
    request.ifr_name[IFNAMSIZ - 1] = '\0';
    taps.push_back(Tap(std::move(fd), request.ifr_name, false));
  }
  return taps;
}

long Tap::Read(std::span<const iovec> parts) const {
  const ssize_t n = readv(fd_.get(), parts.data(), static_cast<int>(parts.size()));
  return n >= 0 ? n : -errno;
}

long Tap::Write(std::span<const iovec> parts) const {
  const ssize_t n = writev(fd_.get(), parts.data(), static_cast<int>(parts.size()));
  return n >= 0 ? n : -errno;
}

Result<void> Tap::SetOffloads(std::uint64_t guest_offloads) const {
  unsigned long flags = 0;
  if ((guest_offloads & kFeatureGuestCsum) != 0) {
    flags |= TUN_F_CSUM;
    const bool tso4 = (guest_offloads & kFeatureGuestTso4) != 0;
    const bool tso6 = (guest_offloads & kFeatureGuestTso6) != 0;
    if (tso4) flags |= TUN_F_TSO4;
    if (tso6) flags |= TUN_F_TSO6;
    if ((tso4 || tso6) && (guest_offloads & kFeatureGuestEcn) != 0) flags |= TUN_F_TSO_ECN;
    // The kernel has both or none.
    constexpr std::uint64_t kUso = kFeatureGuestUso4 | kFeatureGuestUso6;
    if ((guest_offloads & kUso) == kUso) flags |= kTunFUso4 | kTunFUso6;
  }
  if (ioctl(fd_.get(), TUNSETOFFLOAD, flags) != 0) return SysError("TUNSETOFFLOAD");
  return {};
}

bool Tap::ProbeUso() const {
  constexpr unsigned long kFlags = TUN_F_CSUM | kTunFUso4 | kTunFUso6;
  const bool known = ioctl(fd_.get(), TUNSETOFFLOAD, kFlags) == 0;
  return ioctl(fd_.get(), TUNSETOFFLOAD, 0UL) == 0 && known;
}

Result<void> Tap::Attach(bool attached) {
  if (attached_ == attached) return {};
  ifreq request{};
  request.ifr_flags = static_cast<short>(attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE);
  if (ioctl(fd_.get(), TUNSETQUEUE, &request) != 0) return SysError("TUNSETQUEUE");
  attached_ = attached;
  return {};
}

std::optional<std::uint16_t> Tap::Mtu() const {
  const Result<Fd> control = ControlSocket();
  ifreq request = Request(name_);
  if (!control || ioctl(control->get(), SIOCGIFMTU, &request) != 0) return std::nullopt;
  if (request.ifr_mtu < kMinMtu || request.ifr_mtu > 65535) return std::nullopt;
  return static_cast<std::uint16_t>(request.ifr_mtu);
}

Result<void> Tap::SetMtu(std::uint16_t mtu) const {
  const Fd control = TRY(ControlSocket());
  ifreq request = Request(name_);
  request.ifr_mtu = mtu;
  if (ioctl(control.get(), SIOCSIFMTU, &request) != 0) return SysError("SIOCSIFMTU");
  return {};
}

}  // namespace postern::virtio::net
