#pragma once

// UserServer: a listening vfio-user socket that serves a device to one client after the other.
//
//   auto server = UserServer::Create("/run/dsa.sock", loop, [&] { return MakeDevice(); });
//
// Each client gets a device of its own, made when it connects and destroyed when it goes: so of one
// client nothing reaches the next, not even through memory that the former still has mapped. While
// a client is there others are turned away. A client that does not say VERSION within
// `hello_timeout_ms`, or breaks the protocol (session.h), is turned out, and the next one served.
//
// The socket is its user's alone (mode 0600); a name left by a server that is gone is replaced, and
// the destructor removes ours. No thread of its own: all happens on the loop, MakeDevice included.
//
// Ownership: borrows the loop. Threads: created and destroyed on the loop's thread, or while no
// thread runs it; ReportCounters on the loop's thread. Source: vfio-user specification.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/unix_socket.h"
#include "vfio/user/served.h"
#include "vfio/user/session.h"

namespace postern::vfio {

struct UserServerOptions {
  std::uint64_t hello_timeout_ms = 10'000;
};

class UserServer final : private EventHandler {
 public:
  using MakeDevice = std::function<Outcome<std::unique_ptr<UserServed>>()>;

  // The first device is made here, so that what is wrong with it is known before anyone connects.
  [[nodiscard]] static Outcome<std::unique_ptr<UserServer>> Create(
      const std::string& path, EventLoop& loop, MakeDevice make,
      const UserServerOptions& options = UserServerOptions());
  ~UserServer() override;
  UserServer(const UserServer&) = delete;
  UserServer& operator=(const UserServer&) = delete;

  [[nodiscard]] bool busy() const { return session_ != nullptr; }
  // Of the server, and of all its devices together.
  void ReportCounters(CounterSink& sink) const;

 private:
  UserServer(EventLoop& loop, MakeDevice make, const UserServerOptions& options)
      : loop_(loop), make_(std::move(make)), options_(options) {}
  void OnEvent(int fd, std::uint32_t events) override;
  void Accept();
  void Begin(Fd socket);
  void Serve();
  void End();
  void Listen(bool on);

  EventLoop& loop_;
  const MakeDevice make_;
  const UserServerOptions options_;
  UnixListener listener_;
  bool listening_ = false;
  ServerCounters counters_;
  // Sums of devices that are gone.
  std::map<std::string, std::uint64_t, std::less<>> totals_;
  std::unique_ptr<UserServed> device_;  // outlives session_
  std::unique_ptr<UserSession> session_;
  std::uint32_t watched_for_ = 0;
  std::optional<EventLoop::TimerId> hello_;  // for VERSION
  std::optional<EventLoop::TimerId> pause_;  // until it listens again
};

}  // namespace postern::vfio
