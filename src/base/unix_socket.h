#pragma once

// UnixListener: a listening AF_UNIX stream socket with a name in the file system, which it removes
// again; and the connecting side.
//
//   auto listener = UnixListener::Create(path, "vsock socket");   // a failure names the path
//   Result<Fd> peer = listener->Accept();
//
// A socket left behind by a process that is gone is replaced; one that answers, or a file that is
// no socket, is not touched. The destructor removes the name only while it is still this socket's.
// Threads: one owner.

#include <sys/types.h>

#include <string>
#include <string_view>

#include "src/base/failure.h"
#include "src/base/fd.h"

namespace postern {

// Bytes of a path that fit a socket address.
constexpr std::size_t kMaxUnixPath = 107;

class UnixListener {
 public:
  UnixListener() = default;
  // `what`: for the words of a Failure. The descriptor is non-blocking; the socket is accessible to
  // its user alone (mode 0600).
  [[nodiscard]] static Outcome<UnixListener> Create(const std::string& path, std::string_view what);
  UnixListener(UnixListener&& other) noexcept;
  UnixListener& operator=(UnixListener&& other) noexcept;
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;
  ~UnixListener() { Close(); }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  // The next waiting connection (non-blocking); kNotFound when there is none (any more).
  [[nodiscard]] Result<Fd> Accept() const;
  void Close();

 private:
  Fd fd_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// A connected non-blocking stream socket. An AF_UNIX connect is done at once or fails: EAGAIN when
// the backlog is full.
[[nodiscard]] Result<Fd> ConnectUnix(std::string_view path);

}  // namespace postern
