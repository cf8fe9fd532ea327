#include "vfio/user/server.h"

#include <sys/epoll.h>

#include <cerrno>
#include <utility>

#include "src/base/log.h"
#include "src/base/text.h"

namespace postern::vfio {
namespace {

// How long nobody is accepted when the process has no descriptor left for it.
constexpr std::uint64_t kPauseMs = 1000;

class Sums final : public CounterSink {
 public:
  explicit Sums(std::map<std::string, std::uint64_t, std::less<>>& sums) : sums_(sums) {}
  void Add(std::string_view name, std::uint64_t value) override {
    sums_[std::string(name)] += value;
  }

 private:
  std::map<std::string, std::uint64_t, std::less<>>& sums_;
};

}  // namespace

Outcome<std::unique_ptr<UserServer>> UserServer::Create(const std::string& path, EventLoop& loop,
                                                        MakeDevice make,
                                                        const UserServerOptions& options) {
  std::unique_ptr<UserServer> server(new UserServer(loop, std::move(make), options));
  Outcome<std::unique_ptr<UserServed>> device = server->make_();
  if (!device) return tl::unexpected(device.error());
  server->device_ = std::move(*device);
  Outcome<UnixListener> listener = UnixListener::Create(path, "vfio-user socket");
  if (!listener) return tl::unexpected(listener.error());
  server->listener_ = std::move(*listener);
  EventHandler& handler = *server;
  if (Result<void> watched = loop.Watch(server->listener_.fd(), EPOLLIN, handler); !watched)
    return HostFailure("vfio-user socket", watched.error());
  server->listening_ = true;
  return server;
}

UserServer::~UserServer() {
  if (hello_) loop_.Cancel(*hello_);
  if (pause_) loop_.Cancel(*pause_);
  if (session_ != nullptr) loop_.Unwatch(session_->fd());
  Listen(false);
}

void UserServer::ReportCounters(CounterSink& sink) const {
  counters_.Report(sink);
  std::map<std::string, std::uint64_t, std::less<>> sums = totals_;
  Sums add(sums);
  if (device_ != nullptr) device_->ReportCounters(add);
  for (const auto& [name, value] : sums) sink.Add(name, value);
}

void UserServer::OnEvent(int fd, std::uint32_t /*events*/) {
  if (fd == listener_.fd()) {
    Accept();
  } else {
    Serve();
  }
}

void UserServer::Listen(bool on) {
  if (std::exchange(listening_, on) == on) return;
  if (!on) {
    loop_.Unwatch(listener_.fd());
  } else if (Result<void> watched = loop_.Watch(listener_.fd(), EPOLLIN, *this); !watched) {
    LOG_ERROR("vfio-user", "{}: nobody can connect any more: {}", Escaped(listener_.path()),
              Describe(watched.error()));
  }
}

void UserServer::Accept() {
  Result<Fd> peer = listener_.Accept();
  if (!peer) {
    if (peer.error().code == Errc::kNotFound) return;
    LOG_WARN("vfio-user", "{}: a client cannot be accepted: {}", Escaped(listener_.path()),
             Describe(peer.error()));
    // It waits there, and would wake us at once.
    Listen(false);
    pause_ = loop_.After(kPauseMs, [this] {
      pause_.reset();
      Listen(true);
    });
    return;
  }
  if (session_ == nullptr) {
    Begin(std::move(*peer));
    return;
  }
  counters_.clients_refused.Add();
  GUEST_LOG("vfio-user", "{}: a client is turned away: another one has the device",
            Escaped(listener_.path()));
}

void UserServer::Begin(Fd socket) {
  if (device_ == nullptr) {
    Outcome<std::unique_ptr<UserServed>> device = make_();
    if (!device) {
      LOG_ERROR("vfio-user", "{}: a client is turned away: {}", Escaped(listener_.path()),
                device.error().cause);
      return;
    }
    device_ = std::move(*device);
  }
  session_ = std::make_unique<UserSession>(std::move(socket), *device_, counters_,
                                           Escaped(listener_.path()));
  watched_for_ = EPOLLIN;
  if (!loop_.Watch(session_->fd(), watched_for_, *this)) {
    session_.reset();
    return;
  }
  counters_.clients.Add();
  LOG_INFO("vfio-user", "{}: client {} has come", Escaped(listener_.path()),
           counters_.clients.Get());
  hello_ = loop_.After(options_.hello_timeout_ms, [this] {
    hello_.reset();
    if (session_ == nullptr || session_->greeted()) return;
    const int fd = session_->fd();
    loop_.Unwatch(fd);
    session_->Close(SysError("wait for VERSION", ETIMEDOUT).value());
    End();
  });
}

void UserServer::Serve() {
  if (session_ == nullptr) return;
  const int fd = session_->fd();
  if (!session_->Work()) {
    // The session may have closed it already; the number is the loop's name for it.
    loop_.Unwatch(fd);
    End();
    return;
  }
  const std::uint32_t wanted = session_->events();
  if (wanted != watched_for_ && loop_.Modify(fd, wanted)) watched_for_ = wanted;
}

void UserServer::End() {
  if (hello_) loop_.Cancel(*std::exchange(hello_, std::nullopt));
  if (session_->broke_rules()) {
    counters_.clients_dropped.Add();
    GUEST_LOG("vfio-user", "{}: client {} is turned out: {}", Escaped(listener_.path()),
              counters_.clients.Get(), Describe(*session_->reason()));
  }
  LOG_INFO("vfio-user", "{}: client {} has gone; it had {}", Escaped(listener_.path()),
           counters_.clients.Get(), device_->Describe());
  session_.reset();
  Sums sums(totals_);
  device_->ReportCounters(sums);
  device_.reset();
}

}  // namespace postern::vfio
