#include "src/cli/process.h"

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <fmt/format.h>

namespace postern::cli {

Outcome<void> OpenLog(LogLevel level, const std::string& file) {
  log::SetLevel(level);
  if (file.empty()) return {};
  if (const Result<void> opened = log::SetFile(file.c_str()); !opened) {
    return ConfigFailure(fmt::format("cannot log to '{}': {}", file, Describe(opened.error())),
                         "check the path");
  }
  return {};
}

sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  (void)signal(SIGPIPE, SIG_IGN);
  (void)signal(SIGXFSZ, SIG_IGN);
  return set;
}

SignalWatch::~SignalWatch() {
  if (fd_.valid()) loop_.Unwatch(fd_.get());
}

Result<void> SignalWatch::Watch(const sigset_t& signals) {
  fd_ = Fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd_.valid()) return SysError("signalfd");
  return loop_.Watch(fd_.get(), EPOLLIN, *this);
}

void SignalWatch::OnEvent(int /*fd*/, std::uint32_t /*events*/) {
  signalfd_siginfo info{};
  while (read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info)))
    heard_(static_cast<int>(info.ssi_signo));
}

}  // namespace postern::cli
