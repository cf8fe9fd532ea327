#pragma once

// ControlServer: a machine's control socket: one JSON object a line in, one a line out.
//
//   auto control = ControlServer::Create("/run/vm.ctl", machine.control(), target);
//
//   {"command":"list"} {"ok":true,"devices":[...],"free_slots":3}
//   {"command":"add-device","device":"disk,path=F,id=X"}     {"ok":true,"id":"X"}
//   {"command":"remove-device","id":"X"}                     {"ok":true}, when the guest has let go
//   {"command":"remove-device","id":"X","force":true}        {"ok":true}: pulled, the guest unasked
//   {"command":"power-button"}                               {"ok":true}
//   {"command":"metrics"}                                    {"ok":true,"metrics":{...}}
//   anything else    {"ok":false,"kind":"config"|"host","error":CAUSE,"next":STEP}
//
// "kind" says whose fault it is, as Failure::Kind does. The commands of one client are answered in
// order, each after the one before; those of several clients interleave. A removal that the guest
// has not granted after "timeout" seconds (30 unless the request says 1 to 600) is answered with an
// error; it may still happen later.
//
// No client can hold up the machine or another client: at most 16 are served, a request is at most
// 64 KiB, nothing is read from a client that does not take its answers, and a few requests of one
// are served before others have their turn. Garbage is answered; a line that is too long ends the
// connection. The socket is accessible to its user alone.
//
// Ownership: borrows loop and target, which outlive it. Threads: all of it on the loop's thread, or
// while the loop does not run.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/unix_socket.h"
#include "src/machine/device_info.h"

namespace postern::api {

// What commands do. Called on the control loop's thread.
class ControlTarget {
 public:
  virtual ~ControlTarget() = default;
  // `spec`: "disk,path=F,id=X". Answers the id.
  [[nodiscard]] virtual Outcome<std::string> AddDevice(std::string_view spec) = 0;
  // `done` runs later on the loop's thread, once, if the guest lets go.
  [[nodiscard]] virtual Outcome<void> RemoveDevice(const std::string& id,
                                                   std::function<void()> done) = 0;
  // At once, without the guest; runs the `done` of a removal that waits.
  [[nodiscard]] virtual Outcome<void> PullDevice(const std::string& id) = 0;
  [[nodiscard]] virtual std::vector<DeviceInfo> Devices() = 0;
  [[nodiscard]] virtual std::size_t free_slots() = 0;
  virtual void PowerButton() = 0;
  // One JSON object.
  [[nodiscard]] virtual std::string Metrics() = 0;
};

class ControlServer final : private EventHandler {
 public:
  static constexpr std::size_t kMaxClients = 16;
  static constexpr std::size_t kMaxRequest = 64 << 10;

  // Failures name the path.
  [[nodiscard]] static Outcome<std::unique_ptr<ControlServer>> Create(const std::string& path,
                                                                      EventLoop& loop,
                                                                      ControlTarget& target);
  ~ControlServer() override;

  [[nodiscard]] std::size_t clients() const { return clients_.size(); }
  // clients, refused_clients, requests, refused_requests
  void ReportCounters(CounterSink& sink) const;

 private:
  struct Client;
  using ClientId = std::uint64_t;

  ControlServer(EventLoop& loop, ControlTarget& target);
  void OnEvent(int fd, std::uint32_t events) override;
  void Accept();
  void RestAccepting();
  // False when the client is gone.
  [[nodiscard]] bool Receive(Client& client);
  [[nodiscard]] bool Send(Client& client);
  // Serves waiting requests as far as they may be served now; may drop the client.
  void Serve(ClientId id);
  void ServeLater(Client& client);
  void RefuseEndless(Client& client);
  void Request(Client& client, std::string_view line);
  void Remove(Client& client, const std::string& device, std::uint64_t timeout_s);
  void EndRemoval(ClientId client, std::uint64_t removal, const std::string& answer);
  void Watch(Client& client);
  void Drop(ClientId id);

  EventLoop& loop_;
  ControlTarget& target_;
  UnixListener listener_;
  std::map<ClientId, std::unique_ptr<Client>> clients_;
  ClientId next_client_ = 1;
  std::uint64_t next_removal_ = 1;
  // What posted functions, timers and the target's callbacks look at: empty once this is gone.
  std::shared_ptr<ControlServer*> self_ = std::make_shared<ControlServer*>(this);
  Counter accepted_, refused_clients_, requests_, refused_requests_;
};

}  // namespace postern::api
