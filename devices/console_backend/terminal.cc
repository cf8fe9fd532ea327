#include "devices/console_backend/terminal.h"

#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "src/base/check.h"

namespace postern::console {
namespace {

enum class Role : unsigned char { kTerminate, kCrash, kStop, kNotice, kIgnore };

struct Handled {
  int signal;
  Role role;
};

constexpr std::array<Handled, 15> kSignals{{{SIGHUP, Role::kTerminate},
                                            {SIGINT, Role::kTerminate},
                                            {SIGQUIT, Role::kTerminate},
                                            {SIGTERM, Role::kTerminate},
                                            {SIGSEGV, Role::kCrash},
                                            {SIGBUS, Role::kCrash},
                                            {SIGILL, Role::kCrash},
                                            {SIGFPE, Role::kCrash},
                                            {SIGABRT, Role::kCrash},
                                            {SIGSYS, Role::kCrash},
                                            {SIGTSTP, Role::kStop},
                                            {SIGCONT, Role::kNotice},
                                            {SIGWINCH, Role::kNotice},
                                            {SIGTTIN, Role::kIgnore},
                                            {SIGTTOU, Role::kIgnore}}};

// What the handlers need. Written while no handler of ours is installed; the atomics alone change
// afterwards.
struct State {
  int fd = -1;
  int event = -1;
  termios original{};
  termios raw{};
  std::array<struct sigaction, kSignals.size()> previous{};
  std::array<bool, kSignals.size()> installed{};
  std::atomic<bool> exists{false};
  std::atomic<bool> armed{false};   // the terminal is to be given back
  std::atomic<bool> is_raw{false};  // as far as we know: another may have it
};

// NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): signal handlers have no other
// way to their data.
State g_state;

// tcsetattr from a background process stops it by SIGTTOU unless that is blocked.
// Async-signal-safe.
void Apply(const termios& mode) {
  sigset_t block;
  sigset_t before;
  sigemptyset(&block);
  sigaddset(&block, SIGTTOU);
  pthread_sigmask(SIG_BLOCK, &block, &before);
  // Nothing can be done about a terminal that is gone.
  while (tcsetattr(g_state.fd, TCSANOW, &mode) != 0 && errno == EINTR) {
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// In the background the terminal is another's, with that one's settings.
void GiveBack() {
  if (g_state.armed.load(std::memory_order_acquire) && Terminal::InForeground(g_state.fd)) {
    g_state.is_raw.store(false, std::memory_order_relaxed);
    Apply(g_state.original);
  }
}

void TakeRaw() {
  g_state.is_raw.store(true, std::memory_order_relaxed);
  Apply(g_state.raw);
}

void OnExit() {
  GiveBack();
}

void Notify() {
  const std::uint64_t one = 1;
  // A full counter is signalled already.
  if (write(g_state.event, &one, sizeof(one)) < 0) return;
}

[[nodiscard]] std::size_t IndexOf(int signal) {
  std::size_t i = 0;
  while (i + 1 < kSignals.size() && kSignals[i].signal != signal) ++i;
  return i;
}

void Reraise(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  (void)raise(signal);
}

void Install(std::size_t index);

void OnSignal(int signal) {
  const int saved_errno = errno;
  const std::size_t index = IndexOf(signal);
  switch (kSignals[index].role) {
    case Role::kTerminate:
    case Role::kCrash:
      GiveBack();
      sigaction(signal, &g_state.previous[index], nullptr);
      Reraise(signal);
      break;
    case Role::kStop: {
      GiveBack();
      struct sigaction stop {};
      stop.sa_handler = SIG_DFL;
      sigaction(signal, &stop, nullptr);
      Reraise(signal);  // stops here, unless the group is orphaned
      Install(index);
      break;
    }
    case Role::kNotice:
      if (signal == SIGCONT && g_state.armed.load(std::memory_order_acquire) &&
          Terminal::InForeground(g_state.fd)) {
        TakeRaw();
      }
      Notify();
      break;
    case Role::kIgnore:
      break;
  }
  errno = saved_errno;
}

void Install(std::size_t index) {
  struct sigaction action {};
  action.sa_handler = kSignals[index].role == Role::kIgnore ? SIG_IGN : OnSignal;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(kSignals[index].signal, &action, nullptr);
}

void InstallAll() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction& previous = g_state.previous[i];
    sigaction(kSignals[i].signal, nullptr, &previous);
    const bool is_default = (previous.sa_flags & SA_SIGINFO) == 0 && previous.sa_handler == SIG_DFL;
    // Who handles a signal already ends the process, if at all, by a way that restores the
    // terminal.
    g_state.installed[i] = is_default || kSignals[i].role == Role::kCrash;
    if (g_state.installed[i]) Install(i);
  }
}

void RemoveAll() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    if (!g_state.installed[i]) continue;
    struct sigaction now {};
    sigaction(kSignals[i].signal, nullptr, &now);
    // Somebody who took the signal over since keeps it.
    const bool ours = now.sa_handler == (kSignals[i].role == Role::kIgnore ? SIG_IGN : OnSignal);
    if (ours) sigaction(kSignals[i].signal, &g_state.previous[i], nullptr);
  }
}

}  // namespace

bool Terminal::InForeground(int fd) {
  const pid_t owner = tcgetpgrp(fd);
  return owner < 0 || owner == getpgrp();
}

Result<std::unique_ptr<Terminal>> Terminal::Create(int fd) {
  if (g_state.exists.exchange(true))
    return Err(Errc::kBadState, "a second console on the terminal");
  Result<EventFd> changed = EventFd::Create();
  if (!changed) {
    g_state.exists = false;
    return Unexpected(changed.error());
  }
  std::unique_ptr<Terminal> terminal(new Terminal(std::move(*changed)));
  g_state.fd = fd;
  g_state.event = terminal->changed_.fd();
  const bool is_terminal = fd >= 0 && tcgetattr(fd, &g_state.original) == 0;
  if (is_terminal) {
    static const int registered = std::atexit(OnExit);
    (void)registered;  // without it a plain exit(3) leaves raw mode on; the other ways stay
    g_state.raw = g_state.original;
    cfmakeraw(&g_state.raw);
    // Lines of our own log keep their carriage return; the guest's, which have one, do not mind a
    // second.
    g_state.raw.c_oflag = g_state.original.c_oflag;
  }
  InstallAll();
  if (is_terminal) {
    g_state.armed.store(true, std::memory_order_release);
    if (InForeground(fd)) TakeRaw();
  }
  return terminal;
}

void Terminal::Notice(bool foreground) {
  if (!foreground) {
    g_state.is_raw.store(false, std::memory_order_relaxed);
  } else if (g_state.armed.load(std::memory_order_acquire) &&
             !g_state.is_raw.load(std::memory_order_relaxed)) {
    TakeRaw();
  }
}

Terminal::~Terminal() {
  RemoveAll();
  GiveBack();
  g_state.armed = false;
  g_state.is_raw = false;
  g_state.event = -1;
  g_state.fd = -1;
  g_state.exists = false;
}

}  // namespace postern::console
