// The control socket against arbitrary bytes of two clients: whatever they send, every answer is a
// JSON object of the documented shape, and clients that went away are forgotten.

#include "src/api/control.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "src/api/fake_target.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace {

void Read(int fd, std::string& into) {
  std::array<char, 4096> chunk{};
  ssize_t n = 0;
  while ((n = recv(fd, chunk.data(), chunk.size(), MSG_DONTWAIT)) > 0)
    into.append(chunk.data(), static_cast<std::size_t>(n));
}

void CheckAnswers(const std::string& text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos) return;  // cut off with the connection
    const auto answer = nlohmann::json::parse(text.substr(at, end - at), nullptr, false);
    CHECK(answer.is_object() && answer.contains("ok") && answer["ok"].is_boolean());
    if (!answer["ok"].get<bool>()) CHECK(!answer["error"].get<std::string>().empty());
    at = end + 1;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::log::SetLevel(postern::LogLevel::kOff);
  static const std::string path = fmt::format("/tmp/postern_control_fuzz.{}", getpid());
  const auto loop = postern::EventLoop::Create().value();
  postern::api::FakeTarget target;
  {
    auto server = postern::api::ControlServer::Create(path, *loop, target);
    CHECK(server.has_value());
    std::array<postern::Fd, 2> clients;
    std::array<std::string, 2> answers;
    for (auto& client : clients) client = postern::ConnectUnix(path).value();
    while (size > 0) {
      const std::uint8_t control = *data++;
      --size;
      const std::size_t who = control & 1;
      if ((control & 0x0e) == 0) {
        target.Release(fmt::format("disk{}", control >> 4));
      } else if ((control & 0x0e) == 2 && target.devices.size() < 3) {
        // What bytes alone seldom spell.
        const std::string line =
            (control & 0x10) != 0
                ? "{\"command\":\"add-device\",\"device\":\"disk,a\"}\n"
                : fmt::format("{{\"command\":\"remove-device\",\"id\":\"disk{}\",\"force\":{}}}\n",
                              control >> 6, (control & 0x20) != 0);
        (void)send(clients[who].get(), line.data(), line.size(), MSG_NOSIGNAL);
      } else {
        const std::size_t length = std::min<std::size_t>(size, control >> 1);
        (void)send(clients[who].get(), data, length, MSG_NOSIGNAL);
        data += length;
        size -= length;
      }
      loop->RunOnce(0);
      Read(clients[who].get(), answers[who]);
    }
    for (auto& client : clients) (void)shutdown(client.get(), SHUT_WR);
    for (int i = 0; i < 4; ++i) loop->RunOnce(0);
    for (std::size_t i = 0; i < clients.size(); ++i) {
      Read(clients[i].get(), answers[i]);
      CheckAnswers(answers[i]);
      clients[i].Close();
    }
    for (int i = 0; i < 20; ++i) loop->RunOnce(0);
    CHECK((*server)->clients() == 0);
  }
  return 0;
}
