#include "devices/virtio/vsock/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "src/base/check.h"

namespace postern::virtio::vsock {
namespace {

constexpr std::uint32_t kEvents = EPOLLIN | EPOLLRDHUP | EPOLLET;

// As writev: bytes, or -errno.
long Send(int fd, std::span<iovec> parts) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  while (true) {
    const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

}  // namespace

Connection::~Connection() {
  loop_.Cancel(timer);
  if (watched_) loop_.Unwatch(socket_.get());
}

Result<void> Connection::Watch() {
  TRY(loop_.Watch(socket_.get(), kEvents, *this));
  watched_ = true;
  return {};
}

// EPOLLOUT only while it is waited for: otherwise every read of the peer would wake the loop.
bool Connection::UpdateWatch() {
  const bool blocked = !ring_.empty();
  if (blocked == blocked_) return true;
  blocked_ = blocked;
  if (!blocked) ring_.Release();
  return loop_.Modify(socket_.get(), kEvents | (blocked ? std::uint32_t{EPOLLOUT} : 0)).has_value();
}

bool Connection::Deliver(Reader reader, std::uint32_t bytes, std::span<iovec> parts) {
  credit.Received(bytes);
  std::uint32_t sent = 0;
  Reader unsent = reader;
  if (ring_.empty() && bytes > 0) {
    const Result<std::size_t> count = reader.Iovecs(bytes, parts);
    if (!count) return false;  // cut into more parts than any sane driver makes
    const long n = Send(socket_.get(), parts.first(*count));
    if (n < 0 && n != -EAGAIN) return false;
    sent = n > 0 ? static_cast<std::uint32_t>(n) : 0;
    credit.Forwarded(sent);
  }
  if (sent == bytes) return true;
  // Has them: checked when the packet was parsed.
  CHECK(unsent.Skip(sent).has_value());
  std::size_t left = bytes - sent;
  for (const iovec& part : ring_.Room()) {
    const std::size_t n = std::min(left, part.iov_len);
    if (n == 0) break;
    CHECK(unsent.Copy(std::span(static_cast<std::byte*>(part.iov_base), n)).has_value());
    ring_.Commit(n);
    left -= n;
  }
  CHECK(left == 0);
  return UpdateWatch();
}

void Connection::Discard() {
  ring_.Release();
  credit.Forwarded(credit.held());
  // What epoll says of a broken socket does not matter any more.
  if (!UpdateWatch()) return;
}

bool Connection::Flush() {
  while (!ring_.empty()) {
    std::array<iovec, 2> parts = ring_.Contents();
    const long n = Send(socket_.get(), parts);
    if (n == -EAGAIN) break;
    if (n < 0) return false;
    ring_.Consume(static_cast<std::size_t>(n));
    credit.Forwarded(static_cast<std::uint32_t>(n));
  }
  return UpdateWatch();
}

long Connection::Receive(std::span<const iovec> parts) const {
  while (true) {
    const ssize_t n = readv(socket_.get(), parts.data(), static_cast<int>(parts.size()));
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

bool Connection::SendAll(std::span<const std::byte> bytes) const {
  return send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

void ReadyList::PushBack(Connection& connection) {
  if (connection.ready) return;
  connection.ready = true;
  connection.ready_prev = last_;
  connection.ready_next = nullptr;
  (last_ != nullptr ? last_->ready_next : first_) = &connection;
  last_ = &connection;
}

void ReadyList::Remove(Connection& connection) {
  if (!connection.ready) return;
  connection.ready = false;
  (connection.ready_prev != nullptr ? connection.ready_prev->ready_next : first_) =
      connection.ready_next;
  (connection.ready_next != nullptr ? connection.ready_next->ready_prev : last_) =
      connection.ready_prev;
}

}  // namespace postern::virtio::vsock
