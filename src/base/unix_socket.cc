#include "src/base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "src/base/text.h"

namespace postern {
namespace {

Result<sockaddr_un> Address(std::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() > kMaxUnixPath) {
    return Err(Errc::kInvalidArgument, "path of a UNIX socket");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

}  // namespace

Result<Fd> ConnectUnix(std::string_view path) {
  const sockaddr_un address = TRY(Address(path));
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SysError("socket");
  if (connect(fd.get(), Generic(address), sizeof(address)) != 0) return SysError("connect");
  return fd;
}

Outcome<UnixListener> UnixListener::Create(const std::string& path, std::string_view what) {
  const std::string name = fmt::format("{} '{}'", what, Escaped(path));
  const Result<sockaddr_un> address = Address(path);
  if (!address) {
    return ConfigFailure(fmt::format("{}: a socket's path has 1 to {} bytes, this one has {}", name,
                                     kMaxUnixPath, path.size()),
                         "choose a shorter path");
  }
  UnixListener listener;
  listener.fd_ = Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.fd_.valid()) return HostFailure(name, SysError("socket").value());
  const int fd = listener.fd_.get();
  // The name is created by bind with the mode of the socket's inode: no moment in which others may
  // connect.
  if (fchmod(fd, S_IRUSR | S_IWUSR) != 0) return HostFailure(name, SysError("fchmod").value());
  if (bind(fd, Generic(*address), sizeof(*address)) != 0) {
    if (errno != EADDRINUSE) {
      return HostFailure(name, SysError("bind").value(),
                         "check that the directory exists and is writable");
    }
    struct stat found {};
    if (lstat(path.c_str(), &found) == 0 && !S_ISSOCK(found.st_mode)) {
      return ConfigFailure(fmt::format("{}: the file exists and is not a socket", name),
                           "choose another path, or remove it");
    }
    const Result<Fd> probe = ConnectUnix(path);
    if (probe || probe.error().sys_errno != ECONNREFUSED) {
      return HostFailure(fmt::format("{}: another process listens there", name),
                         "choose another path, or end that process");
    }
    if (unlink(path.c_str()) != 0) {
      return HostFailure(name, SysError("remove stale socket").value());
    }
    if (bind(fd, Generic(*address), sizeof(*address)) != 0) {
      return HostFailure(name, SysError("bind").value());
    }
  }
  listener.path_ = path;
  struct stat own {};
  if (lstat(path.c_str(), &own) == 0) {
    listener.device_ = own.st_dev;
    listener.inode_ = own.st_ino;
  }
  if (listen(fd, SOMAXCONN) != 0) return HostFailure(name, SysError("listen").value());
  return listener;
}

UnixListener::UnixListener(UnixListener&& other) noexcept
    : fd_(std::move(other.fd_)),
      path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_) {}

UnixListener& UnixListener::operator=(UnixListener&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = std::move(other.fd_);
    path_ = std::exchange(other.path_, {});
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

Result<Fd> UnixListener::Accept() const {
  Fd peer(accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (peer.valid()) return peer;
  if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) {
    return Err(Errc::kNotFound, "connection");
  }
  return SysError("accept");
}

void UnixListener::Close() {
  if (!path_.empty()) {
    struct stat now {};
    if (lstat(path_.c_str(), &now) == 0 && now.st_dev == device_ && now.st_ino == inode_) {
      // A name that cannot be removed is replaced by the next Create.
      (void)unlink(path_.c_str());
    }
    path_.clear();
  }
  fd_.Close();
}

}  // namespace postern
