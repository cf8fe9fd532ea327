#include "devices/console_backend/stream_backend.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "src/base/check.h"

namespace postern::console {
namespace {

std::size_t Total(std::span<const iovec> parts) {
  std::size_t total = 0;
  for (const iovec& part : parts) total += part.iov_len;
  return total;
}

// While it lives, a write to a pipe without a reader fails with EPIPE and leaves no SIGPIPE behind
// in this thread.
class PipeSignalBlock {
 public:
  PipeSignalBlock() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigemptyset(&pending);
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~PipeSignalBlock() {
    const int saved_errno = errno;
    const timespec now{};
    if (!was_pending_) {
      while (sigtimedwait(&pipe_, nullptr, &now) < 0 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = saved_errno;
  }
  PipeSignalBlock(const PipeSignalBlock&) = delete;
  PipeSignalBlock& operator=(const PipeSignalBlock&) = delete;

 private:
  sigset_t pipe_{};
  sigset_t before_{};
  bool was_pending_ = false;
};

}  // namespace

StreamBackend::~StreamBackend() {
  // Stop was the derived class's to call, while its descriptors were still open.
  CHECK(stopped_);
}

void StreamBackend::Stop() {
  loop_.RunSync([this] {
    SetWatch(input_watch_, -1, 0);
    SetWatch(output_watch_, -1, 0);
    loop_.Cancel(input_timer_);
    loop_.Cancel(writable_timer_);
    client_ = nullptr;
    stopped_ = true;
  });
}

void StreamBackend::Attach(ConsoleClient& client) {
  client_ = &client;
  if (has_input()) ScheduleInput();
}

void StreamBackend::SetWatch(Watched& watched, int fd, std::uint32_t events) {
  if (fd < 0) events = 0;
  if (watched.fd >= 0 && (watched.fd != fd || events == 0)) {
    // Unwatched, not watched for nothing: a hang-up is reported whatever was asked for, and would
    // be reported without end.
    loop_.Unwatch(watched.fd);
    watched = Watched{};
  }
  if (events == 0) return;
  if (watched.fd < 0) {
    if (!loop_.Watch(fd, events, *this)) return;
  } else if (watched.events != events) {
    if (!loop_.Modify(fd, events)) return;
  }
  watched = Watched{fd, events};
}

void StreamBackend::UpdateWatches() {
  const bool want_input =
      input_fd_ >= 0 && !InputPaused() && (input_.room() > 0 || ReadsWhenFull());
  const std::uint32_t in = want_input && input_pollable_ ? std::uint32_t{EPOLLIN} : 0;
  const std::uint32_t out = output_fd_ >= 0 && output_blocked_ ? std::uint32_t{EPOLLOUT} : 0;
  if (input_fd_ == output_fd_) {
    SetWatch(input_watch_, input_fd_, in | out);
    SetWatch(output_watch_, -1, 0);
  } else {
    SetWatch(input_watch_, input_fd_, in);
    SetWatch(output_watch_, output_fd_, out);
  }
  if (want_input && !input_pollable_) ScheduleInput();
  const Watched& output = input_fd_ == output_fd_ ? input_watch_ : output_watch_;
  if (out != 0 && (output.events & EPOLLOUT) == 0) {
    // A short write to what cannot be waited for (a file on a disk that is getting full): try again
    // at once.
    output_blocked_ = false;
    ScheduleWritable();
  }
}

void StreamBackend::SetInput(int fd) {
  input_fd_ = fd;
  input_pollable_ = true;
  if (fd >= 0) {
    // epoll refuses what never has to be waited for: regular files, /dev/null.
    if (Result<void> watched = loop_.Watch(fd, EPOLLIN, *this); watched) {
      loop_.Unwatch(fd);
    } else if (watched.error().sys_errno == EPERM) {
      input_pollable_ = false;
    }
  }
  UpdateWatches();
}

void StreamBackend::SetOutput(int fd) {
  output_fd_ = fd;
  struct stat status {};
  if (fd >= 0 && fstat(fd, &status) == 0) {
    output_kind_ = S_ISSOCK(status.st_mode)   ? OutputKind::kSocket
                   : S_ISFIFO(status.st_mode) ? OutputKind::kPipe
                                              : OutputKind::kOther;
  }
  if (std::exchange(output_blocked_, false)) ScheduleWritable();
  if (fd >= 0) FlushReplay();
  UpdateWatches();
}

// From the loop itself and not from within a call of the client's, which may be the cause.
void StreamBackend::ScheduleWritable() {
  loop_.Cancel(writable_timer_);
  writable_timer_ = loop_.After(0, [this] {
    FlushReplay();
    if (client_ != nullptr && !output_blocked_) client_->OnWritable();
  });
}

void StreamBackend::ScheduleInput() {
  loop_.Cancel(input_timer_);
  input_timer_ = loop_.After(0, [this] {
    if (!input_pollable_) ReadInput();
    if (client_ != nullptr && has_input()) client_->OnInput();
  });
}

void StreamBackend::OnEvent(int fd, std::uint32_t events) {
  const bool is_input = fd == input_watch_.fd;
  const bool is_output = fd == output_watch_.fd || (is_input && input_fd_ == output_fd_);
  if (!is_input && !is_output) {
    OnOtherEvent(fd, events);
    return;
  }
  if (is_output && output_blocked_ && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0) {
    output_blocked_ = false;
    FlushReplay();
    UpdateWatches();
    if (!output_blocked_ && client_ != nullptr) client_->OnWritable();
  }
  if (is_input && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) ReadInput();
}

void StreamBackend::ReadInput() {
  if (input_fd_ < 0 || InputPaused()) {
    UpdateWatches();
    return;
  }
  std::array<std::byte, kInputBuffer> bytes{};
  const std::size_t room = ReadsWhenFull() ? bytes.size() : std::min(bytes.size(), input_.room());
  if (room == 0) {
    UpdateWatches();
    return;
  }
  const ssize_t n = read(input_fd_, bytes.data(), room);
  if (n > 0) {
    OnBytes(std::span(bytes).first(static_cast<std::size_t>(n)));
    UpdateWatches();
  } else if (n == 0) {
    EndInput(0);
  } else if (errno != EAGAIN && errno != EINTR) {
    EndInput(errno);
  }
}

void StreamBackend::Deliver(std::span<const std::byte> bytes) {
  const std::size_t taken = input_.Write(bytes);
  counters_.input_bytes.Add(taken);
  counters_.input_dropped.Add(bytes.size() - taken);
  if (client_ != nullptr && !input_.empty()) client_->OnInput();
}

std::size_t StreamBackend::Read(std::span<std::byte> to) {
  const bool was_full = input_.room() == 0;
  const std::size_t n = input_.Read(to);
  if (was_full && n > 0) UpdateWatches();
  return n;
}

// A peer that left must not end the process by SIGPIPE, and whether that is ignored is not for a
// library to decide.
long StreamBackend::WriteSome(std::span<const iovec> from) {
  // writev takes at most IOV_MAX parts; what is beyond makes a short write.
  const std::size_t count = std::min<std::size_t>(from.size(), 1024);
  while (true) {
    long n = 0;
    if (output_kind_ == OutputKind::kSocket) {
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(from.data());  // sendmsg does not write to it
      message.msg_iovlen = count;
      n = sendmsg(output_fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } else if (output_kind_ == OutputKind::kPipe) {
      const PipeSignalBlock block;
      n = writev(output_fd_, from.data(), static_cast<int>(count));
    } else {
      n = writev(output_fd_, from.data(), static_cast<int>(count));
    }
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

std::size_t StreamBackend::Write(std::span<const iovec> from) {
  const std::size_t total = Total(from);
  if (output_fd_ >= 0) {
    if (output_blocked_) return 0;
    const long n = WriteSome(from);
    if (n >= 0 || n == -EAGAIN) {
      const auto taken = n >= 0 ? static_cast<std::size_t>(n) : std::size_t{0};
      counters_.output_bytes.Add(taken);
      if (taken < total) {
        output_blocked_ = true;
        UpdateWatches();
      }
      return taken;
    }
    EndOutput(static_cast<int>(-n));
  }
  std::size_t dropped = 0;
  if (keep_without_peer_) {
    for (const iovec& part : from) {
      dropped += replay_.WriteDroppingOldest(
          std::span(static_cast<const std::byte*>(part.iov_base), part.iov_len));
    }
  } else {
    dropped = total;
  }
  counters_.output_dropped.Add(dropped);
  return total;
}

void StreamBackend::FlushReplay() {
  while (!replay_.empty() && output_fd_ >= 0 && !output_blocked_) {
    const long n = WriteSome(replay_.Contents());
    if (n >= 0) {
      replay_.Consume(static_cast<std::size_t>(n));
      counters_.output_bytes.Add(static_cast<std::uint64_t>(n));
    } else if (n == -EAGAIN) {
      output_blocked_ = true;
    } else {
      EndOutput(static_cast<int>(-n));
    }
  }
  if (replay_.empty()) replay_.Release();
}

void StreamBackend::EndInput(int error) {
  input_fd_ = -1;
  UpdateWatches();
  OnInputEnd(error);
}

void StreamBackend::EndOutput(int error) {
  output_fd_ = -1;
  if (std::exchange(output_blocked_, false)) ScheduleWritable();
  UpdateWatches();
  OnOutputEnd(error);
}

void StreamBackend::ReportCounters(CounterSink& sink) const {
  sink.Add("input_bytes", counters_.input_bytes.Get());
  sink.Add("output_bytes", counters_.output_bytes.Get());
  sink.Add("input_dropped", counters_.input_dropped.Get());
  sink.Add("output_dropped", counters_.output_dropped.Get());
  sink.Add("connections", counters_.connections.Get());
  sink.Add("refused_connections", counters_.refused_connections.Get());
}

}  // namespace postern::console
