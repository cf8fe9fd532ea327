#include "src/api/control.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "src/api/fields.h"
#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/base/text.h"

namespace postern::api {
namespace {

using Json = Fields::Json;

constexpr const char* kLog = "control";
// Requests of one client before the others have their turn.
constexpr int kBurst = 8;
constexpr std::uint64_t kRemovalTimeoutS = 30;
constexpr std::uint64_t kLongestRemovalTimeoutS = 600;

std::string Line(const Json& answer) {
  return answer.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string Refusal(const Failure& failure) {
  return Line(Json{{"ok", false},
                   {"kind", failure.kind == Failure::Kind::kConfig ? "config" : "host"},
                   {"error", failure.cause},
                   {"next", failure.next_step}});
}

Json Listing(const std::vector<DeviceInfo>& devices) {
  Json list = Json::array();
  for (const DeviceInfo& device : devices) {
    Json entry{{"id", device.id}, {"detail", device.detail}, {"removable", device.slot != 0}};
    if (device.slot != 0) {
      entry["slot"] = device.slot;
      entry["leaving"] = device.leaving;
    }
    list.push_back(std::move(entry));
  }
  return list;
}

struct Parsed {
  std::string command;
  std::string device;
  std::string id;
  bool force = false;
  std::uint64_t timeout_s = kRemovalTimeoutS;
};

Outcome<Parsed> Parse(std::string_view line) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object())
    return ConfigFailure("the request is no JSON object",
                         "send {\"command\":\"list\"} and a newline");
  Parsed parsed;
  Fields fields(json, "");
  fields.Text("command", parsed.command)
      .Text("device", parsed.device)
      .Text("id", parsed.id)
      .Flag("force", parsed.force)
      .Number("timeout", 1, kLongestRemovalTimeoutS,
              [&](std::uint64_t s) { parsed.timeout_s = s; });
  if (Outcome<void> r = fields.Finish(); !r) return tl::unexpected(r.error());
  return parsed;
}

}  // namespace

struct ControlServer::Client {
  ClientId id = 0;
  Fd fd;
  std::string in;             // requests not served yet
  std::string out;            // answers not sent yet
  bool ended = false;         // it sends no more
  std::uint64_t removal = 0;  // the removal it waits for; 0: none
  EventLoop::TimerId timer = 0;
  bool posted = false;  // Serve is on its way
};

Outcome<std::unique_ptr<ControlServer>> ControlServer::Create(const std::string& path,
                                                              EventLoop& loop,
                                                              ControlTarget& target) {
  Outcome<UnixListener> listener = UnixListener::Create(path, "control socket");
  if (!listener) return tl::unexpected(listener.error());
  std::unique_ptr<ControlServer> server(new ControlServer(loop, target));
  server->listener_ = std::move(*listener);
  if (Result<void> r = loop.Watch(server->listener_.fd(), EPOLLIN, *server); !r) {
    server->listener_.Close();
    return HostFailure("control socket", r.error());
  }
  return server;
}

ControlServer::ControlServer(EventLoop& loop, ControlTarget& target)
    : loop_(loop), target_(target) {}

ControlServer::~ControlServer() {
  while (!clients_.empty()) Drop(clients_.begin()->first);
  if (listener_.fd() >= 0) loop_.Unwatch(listener_.fd());
}

void ControlServer::OnEvent(int fd, std::uint32_t events) {
  if (fd == listener_.fd()) {
    Accept();
    return;
  }
  const auto found = std::ranges::find_if(
      clients_, [fd](const auto& entry) { return entry.second->fd.get() == fd; });
  if (found == clients_.end()) return;
  Client& client = *found->second;
  // HUP: both directions are gone, so nobody is left to answer.
  const bool gone = (events & (EPOLLHUP | EPOLLERR)) != 0;
  if (gone || ((events & EPOLLIN) != 0 && !Receive(client))) {
    Drop(client.id);
    return;
  }
  Serve(client.id);
}

void ControlServer::Accept() {
  // One for each event: the loop has other work.
  Result<Fd> fd = listener_.Accept();
  if (!fd) {
    if (fd.error().code == Errc::kSystem) RestAccepting();
    return;
  }
  if (clients_.size() >= kMaxClients) {
    refused_clients_.Add();
    const std::string answer =
        Refusal({Failure::Kind::kHost, fmt::format("{} clients are connected already", kMaxClients),
                 "disconnect one"});
    (void)send(fd->get(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return;
  }
  auto client = std::make_unique<Client>();
  client->id = next_client_++;
  client->fd = std::move(*fd);
  if (!loop_.Watch(client->fd.get(), EPOLLIN, *this)) return;
  accepted_.Add();
  clients_.emplace(client->id, std::move(client));
}

// Out of descriptors, for one: the connection stays in the backlog, and would wake the loop at once
// again.
void ControlServer::RestAccepting() {
  constexpr std::uint64_t kRestMs = 1000;
  LOG_WARN(kLog, "a connection cannot be accepted now");
  (void)loop_.Modify(listener_.fd(), 0);
  (void)loop_.After(kRestMs, [weak = std::weak_ptr<ControlServer*>(self_), this] {
    if (weak.lock() != nullptr) (void)loop_.Modify(listener_.fd(), EPOLLIN);
  });
}

bool ControlServer::Receive(Client& client) {
  const std::size_t had = client.in.size();
  // An event from before Watch said that nothing more is wanted.
  if (had > kMaxRequest) return true;
  // One byte more than a request, so that one too long is seen.
  client.in.resize(kMaxRequest + 1);
  const ssize_t n =
      recv(client.fd.get(), client.in.data() + had, client.in.size() - had, MSG_DONTWAIT);
  client.in.resize(had + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) client.ended = true;
  return true;
}

bool ControlServer::Send(Client& client) {
  while (!client.out.empty()) {
    const ssize_t n =
        send(client.fd.get(), client.out.data(), client.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    client.out.erase(0, static_cast<std::size_t>(n));
  }
  return true;
}

void ControlServer::Serve(ClientId id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  Client& client = *found->second;
  for (int served = 0;; ++served) {
    if (!Send(client)) {
      Drop(id);
      return;
    }
    if (!client.out.empty() || client.removal != 0) break;
    const std::size_t end = client.in.find('\n');
    if (end == std::string::npos) {
      if (!client.ended && client.in.size() <= kMaxRequest) break;
      if (client.in.size() > kMaxRequest) RefuseEndless(client);
      Drop(id);
      return;
    }
    if (served == kBurst) {
      ServeLater(client);
      break;
    }
    const std::string line = client.in.substr(0, end);
    client.in.erase(0, end + 1);
    Request(client, line);
  }
  Watch(client);
}

void ControlServer::RefuseEndless(Client& client) {
  refused_requests_.Add();
  client.out = Refusal({Failure::Kind::kConfig,
                        fmt::format("the request is longer than {} bytes", kMaxRequest),
                        "end each request with a newline"});
  (void)Send(client);
}

void ControlServer::ServeLater(Client& client) {
  if (std::exchange(client.posted, true)) return;
  loop_.Post([weak = std::weak_ptr<ControlServer*>(self_), id = client.id] {
    const auto self = weak.lock();
    if (self == nullptr) return;
    ControlServer& server = **self;
    if (const auto at = server.clients_.find(id); at != server.clients_.end())
      at->second->posted = false;
    server.Serve(id);
  });
}

// What to wait for: room for an answer, or, when nothing of it waits to be served, more requests.
void ControlServer::Watch(Client& client) {
  std::uint32_t events = 0;
  if (!client.out.empty()) {
    events = EPOLLOUT;
  } else if (client.removal == 0 && !client.posted && !client.ended) {
    events = EPOLLIN;
  }
  if (!loop_.Modify(client.fd.get(), events)) Drop(client.id);
}

void ControlServer::Request(Client& client, std::string_view line) {
  requests_.Add();
  const auto refuse = [&](const Failure& failure) {
    refused_requests_.Add();
    client.out += Refusal(failure);
  };
  Outcome<Parsed> request = Parse(line);
  if (!request) return refuse(request.error());
  const std::string& command = request->command;
  if (command == "list") {
    client.out += Line(Json{{"ok", true},
                            {"devices", Listing(target_.Devices())},
                            {"free_slots", target_.free_slots()}});
  } else if (command == "add-device") {
    Outcome<std::string> id = target_.AddDevice(request->device);
    if (!id) return refuse(id.error());
    client.out += Line(Json{{"ok", true}, {"id", *id}});
  } else if (command == "remove-device" && request->force) {
    if (Outcome<void> r = target_.PullDevice(request->id); !r) return refuse(r.error());
    client.out += Line(Json{{"ok", true}});
  } else if (command == "remove-device") {
    Remove(client, request->id, request->timeout_s);
  } else if (command == "power-button") {
    target_.PowerButton();
    client.out += Line(Json{{"ok", true}});
  } else if (command == "metrics") {
    Json metrics = Json::parse(target_.Metrics(), nullptr, false);
    client.out += Line(Json{{"ok", true}, {"metrics", std::move(metrics)}});
  } else {
    refuse({Failure::Kind::kConfig, fmt::format("there is no command '{}'", Escaped(command, 80)),
            "commands: list, add-device, remove-device, power-button, metrics"});
  }
}

void ControlServer::Remove(Client& client, const std::string& device, std::uint64_t timeout_s) {
  const std::uint64_t removal = next_removal_++;
  const ClientId id = client.id;
  const Outcome<void> asked =
      target_.RemoveDevice(device, [weak = std::weak_ptr<ControlServer*>(self_), id, removal] {
        if (const auto server = weak.lock())
          (*server)->EndRemoval(id, removal, Line(Json{{"ok", true}}));
      });
  if (!asked) {
    refused_requests_.Add();
    client.out += Refusal(asked.error());
    return;
  }
  LOG_INFO(kLog, "asked the guest to release '{}'", device);
  client.removal = removal;
  // Cancelled with the client at the latest.
  client.timer = loop_.After(timeout_s * 1000, [this, id, removal, device, timeout_s] {
    EndRemoval(
        id, removal,
        Refusal({Failure::Kind::kHost,
                 fmt::format("the guest has not released '{}' within {} s", device, timeout_s),
                 "it still may: 'list' shows whether the device is there"}));
  });
}

void ControlServer::EndRemoval(ClientId id, std::uint64_t removal, const std::string& answer) {
  const auto found = clients_.find(id);
  if (found == clients_.end() || found->second->removal != removal) return;
  Client& client = *found->second;
  client.removal = 0;
  loop_.Cancel(client.timer);
  client.out += answer;
  Serve(id);
}

void ControlServer::Drop(ClientId id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  if (found->second->removal != 0) loop_.Cancel(found->second->timer);
  loop_.Unwatch(found->second->fd.get());
  clients_.erase(found);
}

void ControlServer::ReportCounters(CounterSink& sink) const {
  sink.Add("clients", accepted_.Get());
  sink.Add("refused_clients", refused_clients_.Get());
  sink.Add("requests", requests_.Get());
  sink.Add("refused_requests", refused_requests_.Get());
}

}  // namespace postern::api
