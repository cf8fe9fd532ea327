#include "vfio/user/channel.h"

#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "src/base/fd_passing.h"

namespace postern::vfio {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;

std::uint64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * kNsPerSecond +
         static_cast<std::uint64_t>(now.tv_nsec);
}

bool WouldBlock(const Error& error) {
  return error.code == Errc::kSystem &&
         (error.sys_errno == EAGAIN || error.sys_errno == EWOULDBLOCK);
}

}  // namespace

std::uint64_t DeadlineIn(std::uint64_t ms) {
  return NowNs() + ms * kNsPerMs;
}

Unexpected UserChannel::Gone() const {
  return SysError("vfio-user connection", ENODEV);
}

void UserChannel::Close(const Error& reason) {
  if (closed_) return;
  closed_ = reason;
  socket_.Close();
  outbox_.clear();
  backlog_ = 0;
  incoming_ = {};
}

Unexpected UserChannel::Fail(const Error& reason) {
  Close(reason);
  return Gone();
}

Result<bool> UserChannel::SendSome(Waiting& waiting, std::span<const int> fds) {
  while (waiting.sent < waiting.bytes.size()) {
    const Result<std::size_t> sent =
        SendWithFds(socket_.get(), std::span(waiting.bytes).subspan(waiting.sent), fds);
    if (!sent) {
      if (WouldBlock(sent.error())) return false;
      return Fail(sent.error());
    }
    // Whatever was taken took the descriptors along.
    fds = {};
    waiting.fds.clear();
    waiting.sent += *sent;
  }
  return true;
}

Result<void> UserChannel::Send(UserHeader header, std::span<const std::byte> payload,
                               std::span<const int> fds) {
  if (closed_) return Gone();
  header.size = static_cast<std::uint32_t>(kUserHeaderSize + payload.size());
  const auto head = BuildHeader(header);
  Waiting message;
  message.bytes.resize(header.size);
  std::memcpy(message.bytes.data(), head.data(), head.size());
  if (!payload.empty()) {
    std::memcpy(message.bytes.data() + head.size(), payload.data(), payload.size());
  }
  if (outbox_.empty() && TRY(SendSome(message, fds))) return {};
  if (message.sent == 0) {
    for (const int fd : fds) {
      // Borrowed: it is the caller's.
      Fd borrowed(fd);
      Result<Fd> copy = borrowed.Duplicate();
      (void)borrowed.release();
      if (!copy) return Fail(copy.error());
      message.fds.push_back(std::move(*copy));
    }
  }
  backlog_ += message.bytes.size() - message.sent;
  outbox_.push_back(std::move(message));
  return {};
}

Result<void> UserChannel::Flush() {
  if (closed_) return Gone();
  while (!outbox_.empty()) {
    Waiting& first = outbox_.front();
    std::vector<int> fds;
    for (const Fd& fd : first.fds) fds.push_back(fd.get());
    const std::size_t before = first.sent;
    const bool done = TRY(SendSome(first, fds));
    backlog_ -= first.sent - before;
    if (!done) return {};
    outbox_.pop_front();
  }
  return {};
}

Result<bool> UserChannel::ReceiveInto(std::span<std::byte> bytes, std::size_t& have) {
  while (have < bytes.size()) {
    // Not a byte more than the message has: the next one's descriptors come with its first byte.
    Result<Received> received = ReceiveWithFds(socket_.get(), bytes.subspan(have), limits_.max_fds);
    if (!received) {
      if (WouldBlock(received.error())) return false;
      return Fail(received.error());
    }
    if (received->size == 0) {
      const bool between = header_have_ == 0;
      return Fail(between ? SysError("vfio-user peer has closed", ECONNRESET).value()
                          : Err(Errc::kPeerProtocol, "message without an end").value());
    }
    have += received->size;
    if (incoming_.fds.size() + received->fds.size() > limits_.max_fds) {
      return Fail(Err(Errc::kPeerProtocol, "descriptors with a message").value());
    }
    std::move(received->fds.begin(), received->fds.end(), std::back_inserter(incoming_.fds));
  }
  return true;
}

Result<void> UserChannel::BeginMessage() {
  Result<UserHeader> header = ParseHeader(header_, limits_.max_payload);
  if (!header) return Fail(header.error());
  incoming_.header = *header;
  incoming_.payload.resize(header->size - kUserHeaderSize);
  return {};
}

Result<std::optional<UserMessage>> UserChannel::Receive() {
  if (closed_) return Gone();
  if (header_have_ < kUserHeaderSize) {
    if (!TRY(ReceiveInto(header_, header_have_))) return std::nullopt;
    TRY(BeginMessage());
  }
  if (!TRY(ReceiveInto(incoming_.payload, payload_have_))) return std::nullopt;
  header_have_ = 0;
  payload_have_ = 0;
  return std::exchange(incoming_, {});
}

Result<bool> UserChannel::Wait(std::uint64_t deadline, bool reading) {
  if (closed_) return Gone();
  const std::uint64_t now = NowNs();
  if (now >= deadline) return false;
  const std::uint64_t left = deadline - now;
  const timespec timeout{static_cast<time_t>(left / kNsPerSecond),
                         static_cast<long>(left % kNsPerSecond)};
  pollfd entry{socket_.get(), 0, 0};
  if (reading) entry.events = static_cast<short>(entry.events | POLLIN);
  if (backlog_ > 0) entry.events = static_cast<short>(entry.events | POLLOUT);
  // Interrupted by a signal: the caller looks, and comes back with the same deadline.
  const int n = ppoll(&entry, 1, &timeout, nullptr);
  if (n < 0 && errno != EINTR) return Fail(SysError("ppoll").value());
  return n != 0;
}

}  // namespace postern::vfio
