#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "devices/console_backend/backends.h"
#include "devices/console_backend/stream_backend.h"

namespace postern::console {
namespace {

// While no client has the slave open the master reports a hang-up without end, so it is left alone
// then; inotify tells of the next open.
class PtyBackend final : public StreamBackend {
 public:
  PtyBackend(EventLoop& loop, Fd master, Fd opens, std::string path)
      : StreamBackend(loop),
        master_(std::move(master)),
        opens_(std::move(opens)),
        path_(std::move(path)) {}
  ~PtyBackend() override {
    loop().RunSync([this] { loop().Unwatch(opens_.get()); });
    Stop();
  }

  [[nodiscard]] Result<void> Start() {
    KeepOutputWithoutPeer();
    return loop().Watch(opens_.get(), EPOLLIN, *this);
  }
  [[nodiscard]] std::string description() const override { return path_; }
  [[nodiscard]] WindowSize window_size() const override {
    winsize size{};
    if (ioctl(master_.get(), TIOCGWINSZ, &size) != 0) return {};
    return {size.ws_col, size.ws_row};
  }

 private:
  void OnOtherEvent(int /*fd*/, std::uint32_t /*events*/) override {
    std::array<std::byte, 1024> events{};
    // What the events are does not matter: there is one watch for one kind of event.
    while (read(opens_.get(), events.data(), events.size()) > 0) {
    }
    if (input_fd() < 0) counters_.connections.Add();
    SetInput(master_.get());
    SetOutput(master_.get());
  }
  void OnInputEnd(int /*error*/) override { SetOutput(-1); }
  void OnOutputEnd(int /*error*/) override { SetInput(-1); }

  Fd master_;
  Fd opens_;
  std::string path_;
};

struct Pty {
  Fd master;
  Fd opens;
  std::string path;
};

Result<Pty> OpenPty() {
  Pty pty;
  pty.master = Fd(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
  const int master = pty.master.get();
  if (master < 0) return SysError("open /dev/ptmx");
  std::array<char, 64> name{};
  if (const int error = ptsname_r(master, name.data(), name.size()); error != 0) {
    return SysError("ptsname", error);
  }
  if (unlockpt(master) != 0) return SysError("unlockpt");
  termios mode{};
  if (tcgetattr(master, &mode) != 0) return SysError("tcgetattr");
  cfmakeraw(&mode);
  if (tcsetattr(master, TCSANOW, &mode) != 0) return SysError("tcsetattr");
  pty.path = name.data();
  // Opening and closing the slave puts the master into the state "hung up", as after any later
  // client.
  {
    const Fd slave(open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    if (!slave.valid()) return SysError("open pty slave");
  }
  pty.opens = Fd(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!pty.opens.valid()) return SysError("inotify_init1");
  if (inotify_add_watch(pty.opens.get(), name.data(), IN_OPEN) < 0) {
    return SysError("inotify_add_watch");
  }
  return pty;
}

}  // namespace

Outcome<std::unique_ptr<ConsoleBackend>> CreatePty(
    const std::function<void(std::string_view)>& announce, EventLoop& loop) {
  Result<Pty> pty = OpenPty();
  if (!pty) {
    return HostFailure("console on a pty", pty.error(),
                       "check that /dev/ptmx exists and devpts is mounted");
  }
  auto backend =
      std::make_unique<PtyBackend>(loop, std::move(pty->master), std::move(pty->opens), pty->path);
  if (Result<void> started = backend->Start(); !started) {
    return HostFailure("console on a pty", started.error());
  }
  if (announce) {
    announce(pty->path);
  } else {
    fmt::print(stderr, "console: {}\n", pty->path);
  }
  return backend;
}

}  // namespace postern::console
