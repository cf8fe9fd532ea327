#pragma once

// EventFd: a non-blocking eventfd(2) counter; the one way threads, KVM (irqfd, ioeventfd) and VFIO
// wake each other. Threads: Signal and Consume may be called from any thread.

#include <cstdint>

#include "src/base/fd.h"

namespace postern {

class EventFd {
 public:
  [[nodiscard]] static Result<EventFd> Create();
  explicit EventFd(Fd fd) : fd_(std::move(fd)) {}

  // Adds 1. Never blocks: a counter at its maximum stays signalled, which is all a reader can see
  // anyway.
  void Signal() const;
  // Takes and clears the count; 0 when it was not signalled.
  // NOLINTNEXTLINE(modernize-use-nodiscard): most callers only clear it
  std::uint64_t Consume() const;
  // True when a Consume would return non-zero; does not clear.
  [[nodiscard]] bool Pending() const;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] Result<EventFd> Duplicate() const;

 private:
  Fd fd_;
};

}  // namespace postern
