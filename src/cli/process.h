#pragma once

// What a verb that runs for long does with its process: where its log goes, and which signals it
// hears, on an event loop.
//
//   const sigset_t signals = BlockSignals();            // before any thread starts
//   SignalWatch watch(loop, [&](int signal) { ... });
//   TRY(watch.Watch(signals));
//
// Threads: OpenLog and BlockSignals before there are others; SignalWatch on the loop's thread, or
// while that does not run.

#include <csignal>
#include <functional>
#include <string>

#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/base/result.h"

namespace postern::cli {

// No file: standard error.
[[nodiscard]] Outcome<void> OpenLog(LogLevel level, const std::string& file);

// SIGTERM, SIGINT, SIGHUP and SIGUSR1, in every thread that is started from now on. A peer that
// goes away is an error of one write, and so is a write beyond the file size limit.
[[nodiscard]] sigset_t BlockSignals();

class SignalWatch final : private EventHandler {
 public:
  SignalWatch(EventLoop& loop, std::function<void(int)> heard)
      : loop_(loop), heard_(std::move(heard)) {}
  ~SignalWatch() override;
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;
  [[nodiscard]] Result<void> Watch(const sigset_t& signals);

 private:
  void OnEvent(int fd, std::uint32_t events) override;

  EventLoop& loop_;
  const std::function<void(int)> heard_;
  Fd fd_;
};

}  // namespace postern::cli
