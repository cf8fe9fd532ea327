#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "devices/console_backend/backends.h"
#include "devices/console_backend/stream_backend.h"
#include "src/base/log.h"
#include "src/base/unix_socket.h"

namespace postern::console {
namespace {

constexpr std::uint64_t kAcceptRetryMs = 1000;

// One client at a time: a second one is let in and shown the door at once, so that it does not wait
// for nothing.
class SocketBackend final : public StreamBackend {
 public:
  SocketBackend(EventLoop& loop, UnixListener listener)
      : StreamBackend(loop), listener_(std::move(listener)) {}
  ~SocketBackend() override {
    loop().RunSync([this] {
      loop().Cancel(retry_timer_);
      loop().Unwatch(listener_.fd());
    });
    Stop();
  }

  [[nodiscard]] Result<void> Start() {
    KeepOutputWithoutPeer();
    return loop().Watch(listener_.fd(), EPOLLIN, *this);
  }
  [[nodiscard]] std::string description() const override { return listener_.path(); }

 private:
  void OnOtherEvent(int /*fd*/, std::uint32_t /*events*/) override {
    Result<Fd> peer = listener_.Accept();
    if (!peer) {
      if (peer.error().code == Errc::kSystem) PauseAccepting(peer.error());
      return;
    }
    if (peer_.valid() && !PeerIsGone()) {
      counters_.refused_connections.Add();
      return;
    }
    Disconnect();
    counters_.connections.Add();
    peer_ = std::move(*peer);
    SetInput(peer_.get());
    if (peer_.valid()) SetOutput(peer_.get());
  }

  // The listener stays ready when accept fails for want of descriptors.
  void PauseAccepting(const Error& error) {
    GUEST_LOG("console", "cannot accept a console client: {}", Describe(error));
    loop().Unwatch(listener_.fd());
    retry_timer_ = loop().After(kAcceptRetryMs, [this] {
      if (!loop().Watch(listener_.fd(), EPOLLIN, *this)) {
        LOG_ERROR("console", "cannot watch the console socket any more");
      }
    });
  }

  // A client may have left while its input was not being read.
  [[nodiscard]] bool PeerIsGone() const {
    std::byte byte{};
    return recv(peer_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  }

  void Disconnect() {
    SetInput(-1);
    SetOutput(-1);
    peer_.Close();
  }

  // A client that only ended its own direction (a pipe into socat) goes on reading.
  void OnInputEnd(int /*error*/) override {
    pollfd peer{peer_.get(), 0, 0};
    if (poll(&peer, 1, 0) != 0) Disconnect();
  }
  void OnOutputEnd(int /*error*/) override { Disconnect(); }

  UnixListener listener_;
  Fd peer_;
  EventLoop::TimerId retry_timer_ = 0;
};

}  // namespace

Outcome<std::unique_ptr<ConsoleBackend>> CreateSocket(const std::string& path, EventLoop& loop) {
  Outcome<UnixListener> listener = UnixListener::Create(path, "console socket");
  if (!listener) return tl::unexpected(listener.error());
  auto backend = std::make_unique<SocketBackend>(loop, std::move(*listener));
  if (Result<void> started = backend->Start(); !started) {
    return HostFailure("console socket", started.error());
  }
  return backend;
}

}  // namespace postern::console
