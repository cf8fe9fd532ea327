#include "src/api/control.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "src/api/fake_target.h"
#include "src/base/unix_socket.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::api {
namespace {

using Json = nlohmann::json;

class Peer {
 public:
  explicit Peer(const std::string& path) : fd_(ConnectUnix(path).value()) {}
  // What was taken.
  std::size_t Say(std::string_view text) {
    const ssize_t n = send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
    return n < 0 ? 0 : static_cast<std::size_t>(n);
  }
  // Little room for requests on their way.
  void Narrow() {
    const int bytes = 4096;
    REQUIRE(setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) == 0);
  }
  void HalfClose() { REQUIRE(shutdown(fd_.get(), SHUT_WR) == 0); }
  // The next answer that has arrived; nothing if there is none.
  std::optional<Json> Hear() {
    Fill();
    const std::size_t end = in_.find('\n');
    if (end == std::string::npos) return std::nullopt;
    Json answer = Json::parse(in_.substr(0, end), nullptr, false);
    in_.erase(0, end + 1);
    REQUIRE(answer.is_object());
    return answer;
  }
  bool ended() {
    Fill();
    return ended_;
  }

 private:
  void Fill() {
    std::array<char, 65536> chunk{};
    while (true) {
      const ssize_t n = recv(fd_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno == ECONNRESET)) ended_ = true;
      if (n <= 0) return;
      in_.append(chunk.data(), static_cast<std::size_t>(n));
    }
  }
  Fd fd_;
  std::string in_;
  bool ended_ = false;
};

struct Fixture {
  Fixture() : loop(EventLoop::Create().value()) {
    char name[] = "/tmp/postern_control_XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    folder = name;
    path = folder + "/ctl";
    auto created = ControlServer::Create(path, *loop, target);
    REQUIRE(created.has_value());
    server = std::move(*created);
  }
  ~Fixture() {
    server.reset();
    CHECK(access(path.c_str(), F_OK) != 0);
    (void)rmdir(folder.c_str());
  }
  void Settle() {
    for (int i = 0; i < 50; ++i) loop->RunOnce(0);
  }
  Json Ask(Peer& peer, std::string_view request) {
    REQUIRE(peer.Say(std::string(request) + "\n") == request.size() + 1);
    Settle();
    std::optional<Json> answer = peer.Hear();
    REQUIRE(answer.has_value());
    return *answer;
  }

  std::unique_ptr<EventLoop> loop;
  FakeTarget target;
  std::string folder;
  std::string path;
  std::unique_ptr<ControlServer> server;
};

TEST_CASE("control: every command is answered with one object") {
  Fixture f;
  struct stat status {};
  REQUIRE(stat(f.path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  Peer peer(f.path);
  CHECK(f.Ask(peer, R"({"command":"add-device","device":"disk,path=x"})") ==
        Json{{"ok", true}, {"id", "disk0"}});
  const Json list = f.Ask(peer, R"({"command":"list"})");
  CHECK(list["ok"] == true);
  CHECK(list["free_slots"] == 3);
  REQUIRE(list["devices"].size() == 2);
  CHECK(list["devices"][0]["removable"] == false);
  CHECK(list["devices"][1]["id"] == "disk0");
  CHECK(list["devices"][1]["slot"] == 1);
  CHECK(list["devices"][1]["leaving"] == false);
  CHECK(f.Ask(peer, R"({"command":"metrics"})")["metrics"]["a"]["b"] == 2);
  CHECK(f.Ask(peer, R"({"command":"power-button"})") == Json{{"ok", true}});
  CHECK(f.target.presses == 1);
  CHECK(testing::ReportedCounter(*f.server, "requests") == 4);
  CHECK(testing::ReportedCounter(*f.server, "refused_requests") == 0);
}

TEST_CASE("control: what is wrong is answered with cause, next step and whose fault it is") {
  Fixture f;
  Peer peer(f.path);
  for (const char* request :
       {"", "garbage", "[]", "null", "{", R"({"command":7})", R"({"command":"dance"})",
        R"({"command":"list","speed":1})", R"({"command":"add-device"})",
        R"({"command":"add-device","device":"toaster"})", R"({"command":"remove-device"})",
        R"({"command":"remove-device","id":"nobody"})",
        R"({"command":"remove-device","id":"disk0","timeout":0})",
        R"({"command":"remove-device","id":"disk0","timeout":601})", "{\"command\":\"\xff\"}"}) {
    CAPTURE(request);
    const Json answer = f.Ask(peer, request);
    CHECK(answer["ok"] == false);
    CHECK(answer["kind"] == "config");
    CHECK_FALSE(answer["error"].get<std::string>().empty());
    CHECK_FALSE(answer["next"].get<std::string>().empty());
  }
  CHECK(testing::ReportedCounter(*f.server, "refused_requests") == 15);
  CHECK(f.Ask(peer, R"({"command":"list"})")["ok"] == true);
}

TEST_CASE(
    "control: a removal is answered when the guest lets go, and others are served meanwhile") {
  Fixture f;
  Peer waiting(f.path);
  Peer other(f.path);
  CHECK(f.Ask(waiting, R"({"command":"add-device","device":"disk,path=x"})")["ok"] == true);
  REQUIRE(waiting.Say("{\"command\":\"remove-device\",\"id\":\"disk0\"}\n"
                      "{\"command\":\"list\"}\n") != 0);
  f.Settle();
  CHECK_FALSE(waiting.Hear().has_value());
  const Json list = f.Ask(other, R"({"command":"list"})");
  CHECK(list["devices"][1]["leaving"] == true);
  const Json twice = f.Ask(other, R"({"command":"remove-device","id":"disk0"})");
  CHECK(twice["ok"] == false);
  CHECK(twice["kind"] == "host");
  f.target.Release("disk0");
  f.Settle();
  CHECK(waiting.Hear() == Json{{"ok", true}});
  // In order: what it asked afterwards.
  const std::optional<Json> after = waiting.Hear();
  REQUIRE(after.has_value());
  CHECK((*after)["devices"].size() == 1);
}

TEST_CASE("control: a device that is pulled answers a removal that waits, too") {
  Fixture f;
  Peer waiting(f.path);
  Peer other(f.path);
  CHECK(f.Ask(waiting, R"({"command":"add-device","device":"disk,path=x"})")["ok"] == true);
  REQUIRE(waiting.Say("{\"command\":\"remove-device\",\"id\":\"disk0\"}\n") != 0);
  f.Settle();
  CHECK(f.Ask(other, R"({"command":"remove-device","id":"disk0","force":true})") ==
        Json{{"ok", true}});
  CHECK(waiting.Hear() == Json{{"ok", true}});
  CHECK(f.Ask(other, R"({"command":"remove-device","id":"disk0","force":true})")["kind"] ==
        "config");
}

TEST_CASE("control: a removal the guest does not grant is answered in time, and may still happen") {
  Fixture f;
  Peer peer(f.path);
  CHECK(f.Ask(peer, R"({"command":"add-device","device":"disk,path=x"})")["ok"] == true);
  REQUIRE(peer.Say("{\"command\":\"remove-device\",\"id\":\"disk0\",\"timeout\":1}\n") != 0);
  std::optional<Json> answer;
  for (int i = 0; i < 400 && !answer; ++i) {
    f.loop->RunOnce(10);
    answer = peer.Hear();
  }
  REQUIRE(answer.has_value());
  CHECK((*answer)["ok"] == false);
  CHECK((*answer)["kind"] == "host");
  f.target.Release("disk0");
  f.Settle();
  CHECK_FALSE(peer.Hear().has_value());
  CHECK(f.Ask(peer, R"({"command":"list"})")["free_slots"] == 4);
}

TEST_CASE("control: clients and server may go away while a removal waits") {
  Fixture f;
  {
    Peer peer(f.path);
    CHECK(f.Ask(peer, R"({"command":"add-device","device":"disk,path=x"})")["ok"] == true);
    REQUIRE(peer.Say("{\"command\":\"remove-device\",\"id\":\"disk0\"}\n") != 0);
    f.Settle();
    CHECK(f.server->clients() == 1);
  }
  f.Settle();
  CHECK(f.server->clients() == 0);
  f.target.Release("disk0");
  CHECK(f.target.devices.empty());
  Peer peer(f.path);
  CHECK(f.Ask(peer, R"({"command":"add-device","device":"disk,path=x"})")["ok"] == true);
  REQUIRE(peer.Say("{\"command\":\"remove-device\",\"id\":\"disk1\"}\n") != 0);
  f.Settle();
  f.server.reset();
  f.target.Release("disk1");
  CHECK(peer.ended());
}

TEST_CASE("control: a client that ends its side is answered first") {
  Fixture f;
  Peer peer(f.path);
  REQUIRE(peer.Say("{\"command\":\"power-button\"}\n{\"command\":\"list\"}\nhalf a line") != 0);
  peer.HalfClose();
  f.Settle();
  CHECK(peer.Hear() == Json{{"ok", true}});
  CHECK(peer.Hear().has_value());
  CHECK(peer.ended());
  CHECK(f.server->clients() == 0);
}

TEST_CASE("control: a request that does not end is refused and its client dropped") {
  Fixture f;
  Peer peer(f.path);
  const std::string chunk(4096, 'x');
  for (int i = 0; i < 17; ++i) {
    (void)peer.Say(chunk);
    f.Settle();
  }
  const std::optional<Json> answer = peer.Hear();
  REQUIRE(answer.has_value());
  CHECK((*answer)["ok"] == false);
  CHECK(peer.ended());
  CHECK(f.server->clients() == 0);
}

TEST_CASE("control: a client that takes no answers is not read, and holds up nobody") {
  Fixture f;
  Peer deaf(f.path);
  deaf.Narrow();
  std::string many;
  for (int i = 0; i < 100; ++i) many += "{\"command\":\"list\"}\n";
  std::size_t sent = 0;
  std::size_t last = 1;
  // Until its requests are not taken any more.
  for (int i = 0; i < 2000 && last != 0; ++i) {
    last = deaf.Say(many);
    sent += last;
    f.Settle();
  }
  CHECK(last == 0);
  CHECK(sent < (4U << 20));
  Peer other(f.path);
  CHECK(f.Ask(other, R"({"command":"list"})")["ok"] == true);
  // It listens again: every whole request is answered.
  std::size_t answers = 0;
  for (int i = 0; i < 20000 && answers < sent / 19; ++i) {
    f.loop->RunOnce(0);
    while (deaf.Hear().has_value()) ++answers;
  }
  CHECK(answers == sent / 19);
}

TEST_CASE("control: more clients than are served are told so") {
  Fixture f;
  std::vector<std::unique_ptr<Peer>> silent;
  for (std::size_t i = 0; i < ControlServer::kMaxClients; ++i)
    silent.push_back(std::make_unique<Peer>(f.path));
  f.Settle();
  CHECK(f.server->clients() == ControlServer::kMaxClients);
  Peer one_more(f.path);
  f.Settle();
  const std::optional<Json> answer = one_more.Hear();
  REQUIRE(answer.has_value());
  CHECK((*answer)["ok"] == false);
  CHECK(one_more.ended());
  CHECK(testing::ReportedCounter(*f.server, "refused_clients") == 1);
  silent.pop_back();
  f.Settle();
  Peer next(f.path);
  CHECK(f.Ask(next, R"({"command":"list"})")["ok"] == true);
}

TEST_CASE("control: a path that cannot be listened on is named") {
  const auto loop = EventLoop::Create().value();
  FakeTarget target;
  const auto refused = ControlServer::Create("/nowhere/at/all", *loop, target);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().cause.find("/nowhere/at/all") != std::string::npos);
}

}  // namespace
}  // namespace postern::api
