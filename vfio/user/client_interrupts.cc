#include "vfio/user/client_interrupts.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "src/base/check.h"
#include "src/base/event_fd.h"

namespace postern::vfio {
namespace {

void SetNonBlocking(int fd) {
  // Fails for nothing that Check let through.
  if (const int flags = fcntl(fd, F_GETFL); flags >= 0 && (flags & O_NONBLOCK) == 0)
    (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

}  // namespace

class ClientInterrupts::Route final : public bus::MsiRoute {
 public:
  Route(ClientInterrupts& owner, EventFd trigger, EventFd sink)
      : owner_(owner), trigger_(std::move(trigger)), sink_(std::move(sink)) {}
  ~Route() override {
    if (vector_) owner_.routes_.erase(*vector_);
  }
  Route(const Route&) = delete;
  Route& operator=(const Route&) = delete;

  [[nodiscard]] Result<void> Set(const bus::MsiMessage& message) override {
    const auto vector = static_cast<std::uint16_t>(message.data);
    if (vector_ == vector) return {};
    if (vector_) owner_.routes_.erase(*vector_);
    vector_ = vector;
    owner_.routes_[vector] = this;
    return {};
  }
  [[nodiscard]] Result<void> Mask(bool /*masked*/) override { return {}; }
  [[nodiscard]] const EventFd& trigger() const override { return trigger_; }

  [[nodiscard]] Result<void> Take(Fd event) {
    Drop();
    event_.emplace(EventFd(std::move(event)));
    return PointAtClient();
  }
  void Drop() {
    if (!event_) return;
    PointAtSink();
    event_.reset();
  }
  [[nodiscard]] bool taken() const { return event_.has_value(); }
  void Forget() { sink_.Consume(); }
  [[nodiscard]] Result<void> PointAtClient() {
    if (!event_) return {};
    SetNonBlocking(event_->fd());
    if (dup3(event_->fd(), trigger_.fd(), O_CLOEXEC) < 0) return SysError("dup3");
    // What came before, and while it changed.
    if (sink_.Consume() != 0) trigger_.Signal();
    return {};
  }
  void PointAtSink() {
    if (!event_) return;
    // Both are open: it cannot fail.
    CHECK(dup3(sink_.fd(), trigger_.fd(), O_CLOEXEC) >= 0);
  }
  // A thread of the device may wait in a write to an eventfd that the client filled and made
  // blocking: room lets it go on.
  void FreeWriters() {
    if (!event_) return;
    pollfd entry{event_->fd(), POLLOUT, 0};
    if (poll(&entry, 1, 0) != 0) return;
    SetNonBlocking(event_->fd());
    event_->Consume();
    event_->Signal();
  }

 private:
  ClientInterrupts& owner_;
  std::optional<std::uint16_t> vector_;
  EventFd trigger_;  // the number stays, the file changes
  EventFd sink_;     // where it points at first, and when nobody took the vector
  std::optional<EventFd> event_;
};

ClientInterrupts::~ClientInterrupts() {
  CHECK(routes_.empty());
}

Result<std::unique_ptr<bus::MsiRoute>> ClientInterrupts::NewMsi() {
  EventFd sink = TRY(EventFd::Create());
  EventFd trigger = TRY(sink.Duplicate());
  return std::make_unique<Route>(*this, std::move(trigger), std::move(sink));
}

Result<std::unique_ptr<bus::IrqLine>> ClientInterrupts::NewLine(std::uint32_t /*gsi*/,
                                                                const EventFd* /*resample*/) {
  return Err(Errc::kUnsupported, "wired interrupt of a served function");
}

Result<void> ClientInterrupts::Check(const Fd& event) {
  std::array<char, 64> link{};
  (void)std::snprintf(link.data(), link.size(), "/proc/self/fd/%d", event.get());
  std::array<char, 64> target{};
  const ssize_t length = readlink(link.data(), target.data(), target.size());
  if (length < 0) return SysError("readlink(/proc/self/fd)");
  // Linux fs/eventfd.c names them so, fs/anon_inodes.c puts the brackets of proc around it.
  if (std::string_view(target.data(), static_cast<std::size_t>(length)) != "anon_inode:[eventfd]")
    return Err(Errc::kInvalidArgument, "descriptor of a vector that is no eventfd");
  SetNonBlocking(event.get());
  return {};
}

Result<void> ClientInterrupts::Assign(std::uint16_t vector, Fd event) {
  const auto found = routes_.find(vector);
  if (found == routes_.end()) return Err(Errc::kInvalidArgument, "vector");
  return found->second->Take(std::move(event));
}

void ClientInterrupts::Clear(std::uint16_t vector) {
  if (const auto found = routes_.find(vector); found != routes_.end()) found->second->Drop();
}

std::size_t ClientInterrupts::assigned() const {
  std::size_t count = 0;
  for (const auto& [vector, route] : routes_) count += route->taken() ? 1 : 0;
  return count;
}

void ClientInterrupts::Forget() {
  for (const auto& [vector, route] : routes_) route->Forget();
}

void ClientInterrupts::Detach() {
  for (const auto& [vector, route] : routes_) {
    route->PointAtSink();
    route->FreeWriters();
  }
}

void ClientInterrupts::Attach() {
  // Fails for want of memory alone; signals are then kept.
  for (const auto& [vector, route] : routes_) (void)route->PointAtClient();
}

}  // namespace postern::vfio
