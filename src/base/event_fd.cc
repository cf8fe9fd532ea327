#include "src/base/event_fd.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace postern {

Result<EventFd> EventFd::Create() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return SysError("eventfd");
  return EventFd(Fd(fd));
}

void EventFd::Signal() const {
  const std::uint64_t one = 1;
  // EAGAIN: the counter is at its maximum, so it is signalled already.
  while (write(fd_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

std::uint64_t EventFd::Consume() const {
  std::uint64_t count = 0;
  ssize_t n = 0;
  do {
    n = read(fd_.get(), &count, sizeof(count));
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(sizeof(count)) ? count : 0;
}

bool EventFd::Pending() const {
  pollfd poll_fd{fd_.get(), POLLIN, 0};
  int n = 0;
  do {
    n = poll(&poll_fd, 1, 0);
  } while (n < 0 && errno == EINTR);
  return n == 1 && (poll_fd.revents & POLLIN) != 0;
}

Result<EventFd> EventFd::Duplicate() const {
  return EventFd(TRY(fd_.Duplicate()));
}

}  // namespace postern
