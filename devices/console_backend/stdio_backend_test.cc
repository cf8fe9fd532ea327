// The console on standard input and output, run in child processes that have a pty for a terminal,
// as under a shell.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <functional>
#include <string>

#include "devices/console_backend/backend.h"
#include "src/base/fd.h"

#include <doctest/doctest.h>

namespace postern::console {
namespace {

constexpr int kTimeoutMs = 10000;

void SleepMs(long ms) {
  const timespec time{ms / 1000, (ms % 1000) * 1000000};
  nanosleep(&time, nullptr);
}

struct Client : ConsoleClient {
  ConsoleBackend* backend = nullptr;
  WindowSize size;
  // Echoes in upper brackets, so that a test sees that it came from here.
  void OnInput() override {
    std::array<char, 64> bytes{};
    while (true) {
      const std::size_t n = backend->Read(std::as_writable_bytes(std::span(bytes)));
      if (n == 0) return;
      std::string echo = "[" + std::string(bytes.data(), n) + "]";
      const iovec part{echo.data(), echo.size()};
      (void)backend->Write(std::span(&part, 1));
    }
  }
  void OnWritable() override {}
  void OnResize(WindowSize now) override {
    size = now;
    std::string text = "size " + std::to_string(now.cols) + "x" + std::to_string(now.rows) + "\n";
    const iovec part{text.data(), text.size()};
    (void)backend->Write(std::span(&part, 1));
  }
};

enum class Ending { kRunToQuit, kPlainExit, kAbort, kFault };

// What a monitor does with its console; the exit status of the child. 7: left by Ctrl-A x.
int MonitorMain(Ending ending) {
  auto loop = EventLoop::Create().value();
  bool quit = false;
  auto backend = CreateBackend({.kind = BackendOptions::Kind::kStdio,
                                .path = {},
                                .append = false,
                                .quit = [&] { quit = true; },
                                .announce = {}},
                               *loop);
  if (!backend) return 90;
  if (CreateBackend({.kind = BackendOptions::Kind::kStdio,
                     .path = {},
                     .append = false,
                     .quit = {},
                     .announce = {}},
                    *loop))
    return 91;
  Client client;
  client.backend = backend->get();
  (*backend)->Attach(client);
  std::string ready = "ready\n";
  const iovec part{ready.data(), ready.size()};
  (void)(*backend)->Write(std::span(&part, 1));
  // What is tested; and no other thread is here.
  if (ending == Ending::kPlainExit) std::exit(5);  // NOLINT(concurrency-mt-unsafe)
  if (ending == Ending::kAbort) std::abort();
  if (ending == Ending::kFault) {
    (void)raise(SIGSEGV);
    return 92;
  }
  while (!quit) loop->RunOnce(-1);
  return 7;
}

[[noreturn]] void RunAsChild(const std::function<int()>& body) {
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGTERM, SIGINT}) {
    struct sigaction action {};  // without what doctest or a sanitizer installed
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
  }
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  const int status = body();
  _exit(status);
}

class Pty {
 public:
  Pty() : master_(open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    std::array<char, 64> name{};
    REQUIRE(ptsname_r(master_.get(), name.data(), name.size()) == 0);
    REQUIRE(unlockpt(master_.get()) == 0);
    path_ = name.data();
    slave_ = Fd(open(path_.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(tcgetattr(slave_.get(), &original_) == 0);
  }
  [[nodiscard]] int master() const { return master_.get(); }
  [[nodiscard]] int slave() const { return slave_.get(); }
  [[nodiscard]] bool Restored() const {
    termios now{};
    return tcgetattr(slave_.get(), &now) == 0 && now.c_lflag == original_.c_lflag &&
           now.c_iflag == original_.c_iflag && now.c_oflag == original_.c_oflag;
  }
  [[nodiscard]] bool Raw() const {
    termios now{};
    return tcgetattr(slave_.get(), &now) == 0 && (now.c_lflag & (ICANON | ECHO | ISIG)) == 0;
  }
  void Type(std::string_view text) const {
    REQUIRE(write(master_.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  // Reads what appears on the screen until `text` is part of it.
  [[nodiscard]] bool Shows(std::string_view text) {
    for (int waited = 0; waited < kTimeoutMs / 10; ++waited) {
      if (const std::size_t at = screen_.find(text); at != std::string::npos) {
        screen_.erase(0, at + text.size());
        return true;
      }
      pollfd fd{master_.get(), POLLIN, 0};
      if (poll(&fd, 1, 10) > 0) {
        std::array<char, 512> bytes{};
        const ssize_t n = read(master_.get(), bytes.data(), bytes.size());
        if (n > 0) screen_.append(bytes.data(), static_cast<std::size_t>(n));
      }
    }
    MESSAGE("screen: " << screen_);
    return false;
  }
  [[nodiscard]] bool Eventually(bool (Pty::*state)() const) const {
    for (int waited = 0; waited < kTimeoutMs / 10; ++waited) {
      if ((this->*state)()) return true;
      SleepMs(10);
    }
    return false;
  }

 private:
  Fd master_;
  Fd slave_;
  std::string path_;
  termios original_{};
  std::string screen_;
};

// Session leader on the pty: what login and a shell do. Only async-signal-safe calls and our own
// code follow a fork here.
pid_t StartSession(const Pty& pty, const std::function<int()>& body) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    setsid();
    ioctl(pty.slave(), TIOCSCTTY, 0);
    for (int fd = 0; fd < 3; ++fd) dup2(pty.slave(), fd);
    RunAsChild(body);
  }
  return pid;
}

int Wait(pid_t pid) {
  int status = 0;
  for (int waited = 0; waited < kTimeoutMs / 10; ++waited) {
    if (waitpid(pid, &status, WNOHANG) == pid) return status;
    SleepMs(10);
  }
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  FAIL("child had to be killed");
  return status;
}

TEST_CASE("stdio console: raw mode, escape sequences, resize, and the terminal as it was") {
  Pty pty;
  const pid_t pid = StartSession(pty, [] { return MonitorMain(Ending::kRunToQuit); });
  REQUIRE(pty.Shows("ready"));
  CHECK(pty.Raw());
  pty.Type("\x03\x1a");  // Ctrl-C and Ctrl-Z are the guest's
  CHECK(pty.Shows("[\x03\x1a]"));
  pty.Type("\x01\x01z");
  CHECK(pty.Shows("[\x01z]"));
  const winsize size{40, 132, 0, 0};
  REQUIRE(ioctl(pty.master(), TIOCSWINSZ, &size) == 0);
  CHECK(pty.Shows("size 132x40"));
  pty.Type("\x01x");
  const int status = Wait(pid);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
  CHECK(pty.Restored());
}

TEST_CASE("stdio console: the terminal is restored however the process ends") {
  struct Row {
    const char* name;
    Ending ending;
    int kill_with;
    int ends_by;  // signal, or 0 for an exit
  };
  for (const Row& row :
       {Row{"exit(3)", Ending::kPlainExit, 0, 0}, Row{"abort(3)", Ending::kAbort, 0, SIGABRT},
        Row{"fault", Ending::kFault, 0, SIGSEGV},
        Row{"SIGTERM", Ending::kRunToQuit, SIGTERM, SIGTERM},
        Row{"SIGINT", Ending::kRunToQuit, SIGINT, SIGINT},
        Row{"SIGQUIT", Ending::kRunToQuit, SIGQUIT, SIGQUIT},
        Row{"SIGHUP", Ending::kRunToQuit, SIGHUP, SIGHUP}}) {
    CAPTURE(row.name);
    Pty pty;
    const Row copy = row;
    const pid_t pid = StartSession(pty, [copy] { return MonitorMain(copy.ending); });
    REQUIRE(pty.Shows("ready"));
    if (row.kill_with != 0) {
      CHECK(pty.Raw());
      kill(pid, row.kill_with);
    }
    const int status = Wait(pid);
    if (row.ends_by != 0) {
      CHECK(WIFSIGNALED(status));
      CHECK(WTERMSIG(status) == row.ends_by);
    } else {
      CHECK(WEXITSTATUS(status) == 5);
    }
    CHECK(pty.Restored());
  }
}

void SetAction(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigaction(signal, &action, nullptr);
}

// A shell with job control around the monitor: reports by exit status which expectation failed
// first.
int ShellMain(const std::function<int(pid_t monitor)>& script) {
  SetAction(SIGTTOU, SIG_IGN);  // tcsetpgrp by a background process, as shells do
  const pid_t monitor = fork();
  if (monitor == 0) {
    SetAction(SIGTTOU, SIG_DFL);
    setpgid(0, 0);
    _exit(MonitorMain(Ending::kRunToQuit));
  }
  setpgid(monitor, monitor);
  const int result = script(monitor);
  kill(monitor, SIGKILL);
  waitpid(monitor, nullptr, 0);
  return result;
}

TEST_CASE("stdio console: stopping gives the terminal back, continuing takes it again") {
  Pty pty;
  const pid_t shell = StartSession(pty, [] {
    return ShellMain([](pid_t monitor) {
      tcsetpgrp(0, monitor);
      int status = 0;
      if (waitpid(monitor, &status, WUNTRACED) != monitor || !WIFSTOPPED(status)) return 1;
      if (WSTOPSIG(status) != SIGTSTP) return 2;
      tcsetpgrp(0, getpgrp());
      termios now{};
      tcgetattr(0, &now);
      if ((now.c_lflag & ICANON) == 0) return 3;
      if (write(1, "stopped\n", 8) != 8) return 4;
      SleepMs(50);
      tcsetpgrp(0, monitor);
      kill(monitor, SIGCONT);
      if (waitpid(monitor, &status, 0) != monitor) return 5;
      return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 6;
    });
  });
  REQUIRE(pty.Shows("ready"));
  CHECK(pty.Eventually(&Pty::Raw));
  pid_t group = 0;
  REQUIRE(ioctl(pty.master(), TIOCGPGRP, &group) == 0);
  REQUIRE(group > 0);
  kill(group, SIGTSTP);
  REQUIRE(pty.Shows("stopped"));
  CHECK(pty.Eventually(&Pty::Raw));
  pty.Type("q");
  CHECK(pty.Shows("[q]"));
  pty.Type("\x01x");
  CHECK(WEXITSTATUS(Wait(shell)) == 0);
  CHECK(pty.Restored());
}

TEST_CASE("stdio console: raw mode comes with a terminal that is handed over late, in silence") {
  Pty pty;
  const pid_t shell = StartSession(pty, [] {
    return ShellMain([](pid_t monitor) {
      SleepMs(300);
      termios now{};
      tcgetattr(0, &now);
      if ((now.c_lflag & ICANON) == 0) return 1;  // it is ours so far
      tcsetpgrp(0, monitor);
      int status = 0;
      if (waitpid(monitor, &status, 0) != monitor) return 2;
      return WIFEXITED(status) && WEXITSTATUS(status) == 7 ? 0 : 3;
    });
  });
  REQUIRE(pty.Shows("ready"));
  CHECK(pty.Eventually(&Pty::Raw));
  pty.Type("q");
  CHECK(pty.Shows("[q]"));
  pty.Type("\x01x");
  CHECK(WEXITSTATUS(Wait(shell)) == 0);
}

TEST_CASE(
    "stdio console: in the background it neither stops nor spins, and reads again in the "
    "foreground") {
  Pty pty;
  const pid_t shell = StartSession(pty, [] {
    return ShellMain([](pid_t monitor) {
      // In the background from the start; the guest writes ("ready"), which with TOSTOP would stop
      // it.
      termios mode{};
      tcgetattr(0, &mode);
      mode.c_lflag |= TOSTOP;
      tcsetattr(0, TCSANOW, &mode);
      SleepMs(600);
      int status = 0;
      if (waitpid(monitor, &status, WUNTRACED | WNOHANG) != 0) return 1;
      rusage before{};
      getrusage(RUSAGE_CHILDREN, &before);
      termios now{};
      tcgetattr(0, &now);
      if ((now.c_lflag & ICANON) == 0) return 2;  // it is ours, not the monitor's
      tcsetpgrp(0, monitor);
      kill(monitor, SIGCONT);
      rusage usage{};
      if (wait4(monitor, &status, 0, &usage) != monitor) return 3;
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) return 4;
      const long cpu_ms = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
                          (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
      return cpu_ms < 400 ? 0 : 5;
    });
  });
  pty.Type("typed\n");  // readable for the monitor all the time
  REQUIRE(pty.Shows("ready"));
  CHECK(pty.Shows("[typed"));
  pty.Type("\x01x");
  CHECK(WEXITSTATUS(Wait(shell)) == 0);
}

TEST_CASE("stdio console: without a terminal there is no escape, and the end of input is quiet") {
  struct Row {
    const char* name;
    const char* path;  // nullptr: a pipe
  };
  for (const Row& row : {Row{"/dev/null", "/dev/null"}, Row{"pipe", nullptr},
                         Row{"file", "/etc/hostname"}, Row{"closed", ""}}) {
    CAPTURE(row.name);
    std::array<int, 2> in{-1, -1};
    std::array<int, 2> out{-1, -1};
    REQUIRE(pipe2(in.data(), O_CLOEXEC) == 0);
    REQUIRE(pipe2(out.data(), O_CLOEXEC) == 0);
    const Row copy = row;
    const pid_t pid = fork();
    if (pid == 0) {
      dup2(out[1], 1);
      if (copy.path == nullptr) {
        dup2(in[0], 0);
      } else if (copy.path[0] == '\0') {
        close(0);
      } else {
        dup2(open(copy.path, O_RDONLY | O_CLOEXEC), 0);
      }
      close(in[1]);
      RunAsChild([] {
        // As main() of the monitor does: descriptor 0 must not become something of ours.
        if (fcntl(0, F_GETFD) < 0 && open("/dev/null", O_RDONLY | O_CLOEXEC) != 0) return 80;
        auto loop = EventLoop::Create().value();
        auto backend = CreateBackend({.kind = BackendOptions::Kind::kStdio,
                                      .path = {},
                                      .append = false,
                                      .quit = [] { _exit(81); },
                                      .announce = {}},
                                     *loop);
        if (!backend) return 82;
        Client client;
        client.backend = backend->get();
        (*backend)->Attach(client);
        int rounds = 0;
        timespec start{};
        timespec now{};
        clock_gettime(CLOCK_MONOTONIC, &start);
        do {
          loop->RunOnce(50);
          ++rounds;
          clock_gettime(CLOCK_MONOTONIC, &now);
        } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 <
                 500);
        return rounds < 30 ? 7 : 83;
      });
    }
    close(in[0]);
    close(out[1]);
    REQUIRE(write(in[1], "\x01xy", 3) == 3);
    close(in[1]);
    const int status = Wait(pid);
    CHECK(WEXITSTATUS(status) == 7);
    std::array<char, 64> bytes{};
    const ssize_t n = read(out[0], bytes.data(), bytes.size());
    close(out[0]);
    if (row.path == nullptr)
      CHECK(std::string(bytes.data(), static_cast<std::size_t>(n)) == "[\x01xy]");
    CHECK((fcntl(1, F_GETFL) & O_NONBLOCK) == 0);
  }
}

}  // namespace
}  // namespace postern::console
