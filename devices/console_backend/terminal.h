#pragma once

// Terminal: the controlling terminal in raw mode, and everything that gives it back as it was: the
// destructor, exit(3), and the signals that end or stop the process.
//
// Terminating signals (HUP, INT, QUIT, TERM) are taken only where nobody handles or ignores them
// yet; crashes (SEGV, BUS, ILL, FPE, ABRT, SYS) restore the terminal first and then go where they
// would have gone. TSTP gives the terminal back and stops; after CONT raw mode returns when the
// process is in the foreground, and without CONT when its owner says so (Notice). TTIN and TTOU are
// ignored while a Terminal exists: a console in the background must not stop the machine. All
// dispositions return to what they were in the destructor.
//
// At most one exists (a signal handler needs to find it): the one piece of global state of this
// package. Threads: created and destroyed by one; the signals must be unblocked in some thread.

#include <memory>

#include "src/base/event_fd.h"
#include "src/base/result.h"

namespace postern::console {

class Terminal {
 public:
  // `fd`: the terminal, or -1 for the signal handling alone. kBadState when a Terminal exists.
  [[nodiscard]] static Result<std::unique_ptr<Terminal>> Create(int fd);
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;
  ~Terminal();

  // Signalled when the window size may have changed or the process came to the foreground.
  [[nodiscard]] const EventFd& changed() const { return changed_; }
  // False: another process group owns the terminal, and reading it would stop this one. A
  // descriptor that is no controlling terminal has no background.
  [[nodiscard]] static bool InForeground(int fd);
  // What InForeground said now. A shell that hands the terminal over, later than this process
  // began or without a signal, is noticed by nothing else.
  void Notice(bool foreground);

 private:
  explicit Terminal(EventFd changed) : changed_(std::move(changed)) {}
  EventFd changed_;
};

}  // namespace postern::console
