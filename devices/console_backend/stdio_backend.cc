#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "devices/console_backend/backends.h"
#include "devices/console_backend/escape.h"
#include "devices/console_backend/stream_backend.h"
#include "devices/console_backend/terminal.h"
#include "src/base/log.h"

namespace postern::console {
namespace {

constexpr std::uint64_t kBackgroundPollMs = 1000;

// A descriptor of ours that does not block. O_NONBLOCK belongs to the open file, which standard
// input and output share with the shell and with whoever else has the terminal: so the file is
// opened anew. Where that is not possible (a socket, a file of another user), the shared one is
// made non-blocking for as long as this lives.
class PrivateFd {
 public:
  [[nodiscard]] static Result<PrivateFd> Open(int fd, int access) {
    PrivateFd out;
    std::array<char, 32> path{};
    fmt::format_to_n(path.data(), path.size() - 1, "/proc/self/fd/{}", fd);
    struct stat status {};
    if (fstat(fd, &status) != 0) return SysError("fstat");
    // A regular file opened anew would start at offset 0, and never blocks anyway.
    if (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode)) {
      out.fd_ = Fd(open(path.data(), access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    }
    if (out.fd_.valid()) return out;
    out.fd_ = Fd(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!out.fd_.valid()) return SysError("fcntl(F_DUPFD_CLOEXEC)");
    const int flags = fcntl(fd, F_GETFL);
    if (!S_ISREG(status.st_mode) && flags >= 0 && (flags & O_NONBLOCK) == 0) {
      if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return SysError("fcntl(F_SETFL)");
      out.restore_flags_ = flags;
    }
    return out;
  }
  PrivateFd() = default;
  PrivateFd(PrivateFd&& other) noexcept
      : fd_(std::move(other.fd_)), restore_flags_(std::exchange(other.restore_flags_, -1)) {}
  PrivateFd& operator=(PrivateFd&&) = delete;
  PrivateFd(const PrivateFd&) = delete;
  PrivateFd& operator=(const PrivateFd&) = delete;
  ~PrivateFd() {
    // Best effort: the file may be gone.
    if (restore_flags_ >= 0) (void)fcntl(fd_.get(), F_SETFL, restore_flags_);
  }
  [[nodiscard]] int get() const { return fd_.get(); }

 private:
  Fd fd_;
  int restore_flags_ = -1;
};

class StdioBackend final : public StreamBackend {
 public:
  StdioBackend(EventLoop& loop, std::function<void()> quit, PrivateFd input, PrivateFd output,
               std::unique_ptr<Terminal> terminal)
      : StreamBackend(loop),
        quit_(std::move(quit)),
        input_(std::move(input)),
        output_(std::move(output)),
        terminal_(std::move(terminal)),
        interactive_(input_.get() >= 0 && isatty(input_.get()) == 1) {}

  ~StdioBackend() override {
    loop().RunSync([this] {
      loop().Cancel(background_timer_);
      loop().Unwatch(terminal_->changed().fd());
    });
    Stop();
  }

  [[nodiscard]] Result<void> Start() {
    TRY(loop().Watch(terminal_->changed().fd(), EPOLLIN, *this));
    if (output_.get() >= 0) SetOutput(output_.get());
    if (input_.get() >= 0) SetInput(input_.get());
    size_ = QuerySize();
    return {};
  }

  [[nodiscard]] WindowSize window_size() const override { return size_; }
  [[nodiscard]] std::string description() const override { return "standard input and output"; }

 private:
  void OnInputEnd(int error) override {
    if (error != 0) LOG_DEBUG("console", "standard input: errno {}", error);
  }
  void OnOutputEnd(int error) override {
    LOG_WARN("console", "standard output is gone (errno {}): console output is dropped", error);
  }

  void OnBytes(std::span<const std::byte> bytes) override {
    if (!interactive_) {
      Deliver(bytes);
      return;
    }
    typed_.clear();
    const EscapeFilter::Command command = escape_.Filter(bytes, typed_);
    if (!typed_.empty()) Deliver(typed_);
    if (command == EscapeFilter::Command::kHelp) {
      fmt::print(stderr,
                 "\r\nCtrl-A x: leave   Ctrl-A Ctrl-A: send Ctrl-A   Ctrl-A h: this help\r\n");
    }
    if (command == EscapeFilter::Command::kQuit && quit_) quit_();
  }

  [[nodiscard]] bool ReadsWhenFull() const override { return interactive_; }

  [[nodiscard]] bool InputPaused() override {
    if (!interactive_) return false;
    const bool foreground = Terminal::InForeground(input_.get());
    terminal_->Notice(foreground);
    if (foreground) return false;
    // SIGCONT tells of most returns to the foreground; a shell that only hands over the terminal
    // sends nothing.
    loop().Cancel(background_timer_);
    background_timer_ = loop().After(kBackgroundPollMs, [this] { UpdateWatches(); });
    return true;
  }

  void OnOtherEvent(int /*fd*/, std::uint32_t /*events*/) override {
    terminal_->changed().Consume();
    UpdateWatches();
    const WindowSize now = QuerySize();
    if (now == size_) return;
    size_ = now;
    if (client() != nullptr) client()->OnResize(size_);
  }

  [[nodiscard]] WindowSize QuerySize() const {
    for (const int fd : {output_.get(), input_.get()}) {
      winsize size{};
      if (fd >= 0 && ioctl(fd, TIOCGWINSZ, &size) == 0) return {size.ws_col, size.ws_row};
    }
    return {};
  }

  std::function<void()> quit_;
  PrivateFd input_;
  PrivateFd output_;
  std::unique_ptr<Terminal> terminal_;
  bool interactive_;
  WindowSize size_;
  EscapeFilter escape_;
  std::vector<std::byte> typed_;
  EventLoop::TimerId background_timer_ = 0;
};

}  // namespace

Outcome<std::unique_ptr<ConsoleBackend>> CreateStdio(std::function<void()> quit, EventLoop& loop) {
  // Either may be closed: then there is no input, or output is dropped.
  PrivateFd input;
  PrivateFd output;
  Result<PrivateFd> in = PrivateFd::Open(STDIN_FILENO, O_RDONLY);
  Result<PrivateFd> out = PrivateFd::Open(STDOUT_FILENO, O_WRONLY);
  const int terminal_fd = in && isatty(in->get()) == 1 ? in->get() : -1;
  Result<std::unique_ptr<Terminal>> terminal = Terminal::Create(terminal_fd);
  if (!terminal) {
    if (terminal.error().code == Errc::kBadState) {
      return ConfigFailure("standard input and output are already used by another console",
                           "give one of the two another back end: pty, file, socket or null");
    }
    return HostFailure("console on standard input and output", terminal.error());
  }
  auto backend = std::make_unique<StdioBackend>(
      loop, std::move(quit), in ? std::move(*in) : std::move(input),
      out ? std::move(*out) : std::move(output), std::move(*terminal));
  if (Result<void> started = backend->Start(); !started) {
    return HostFailure("console on standard input and output", started.error());
  }
  return backend;
}

}  // namespace postern::console
