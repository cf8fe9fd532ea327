#include "src/cli/ctl.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "src/base/fd.h"
#include "src/base/text.h"
#include "src/base/unix_socket.h"
#include "src/cli/options.h"
#include "src/cli/parse.h"
#include "src/cli/print.h"

namespace postern::cli {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kLongestAnswer = 16 << 20;
// Beyond what the machine itself waits for a guest.
constexpr int kPatienceMs = 15'000;
constexpr std::uint64_t kDefaultTimeoutS = 30;

struct Settings {
  bool json = false;
  bool help = false;
  bool force = false;
  std::uint64_t timeout_s = kDefaultTimeoutS;
  std::vector<std::string> words;  // SOCKET COMMAND [ARGUMENT]
};

// Flags may stand anywhere: no socket, command, device or id begins with two dashes.
Outcome<Settings> ParseCtl(const std::vector<std::string>& arguments) {
  Settings settings;
  std::vector<std::string> flags;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i].starts_with('-')) {
      settings.words.push_back(arguments[i]);
      continue;
    }
    flags.push_back(arguments[i]);
    if (arguments[i] == "--timeout" && i + 1 < arguments.size()) flags.push_back(arguments[++i]);
  }
  Outcome<std::vector<Given>> given = ParseOptions(CtlOptions(), "ctl", flags);
  if (!given) return tl::unexpected(given.error());
  for (const Given& g : *given) {
    if (g.option->name == "json") settings.json = true;
    if (g.option->name == "help") settings.help = true;
    if (g.option->name == "force") settings.force = true;
    if (g.option->name != "timeout") continue;
    const char* const end = g.value.data() + g.value.size();
    const auto [stop, error] = std::from_chars(g.value.data(), end, settings.timeout_s);
    if (error != std::errc() || stop != end || settings.timeout_s < 1 || settings.timeout_s > 600)
      return ConfigFailure(fmt::format("--timeout: '{}' is not a number of seconds", g.value),
                           "give 1 to 600");
  }
  return settings;
}

Outcome<Json> RequestOf(const Settings& settings) {
  const std::vector<std::string>& words = settings.words;
  if (words.size() < 2) {
    return ConfigFailure(words.empty() ? "ctl needs a socket and a command" : "ctl needs a command",
                         fmt::format("postern ctl SOCKET COMMAND; commands: {}", CtlCommands()));
  }
  const std::string& command = words[1];
  const char* key = nullptr;
  if (command == "add-device") {
    key = "device";
  } else if (command == "remove-device") {
    key = "id";
  } else if (command != "list" && command != "power-button" && command != "metrics") {
    return ConfigFailure(fmt::format("there is no command '{}'", command),
                         fmt::format("commands: {}", CtlCommands()));
  }
  const std::size_t wanted = key == nullptr ? 2 : 3;
  if (words.size() < wanted)
    return ConfigFailure(fmt::format("{} needs a device", command),
                         command == "add-device" ? "such as disk,path=FILE,id=NAME"
                                                 : "give its id; 'list' shows them");
  if (words.size() > wanted)
    return ConfigFailure(fmt::format("unexpected argument '{}'", words[wanted]),
                         "postern ctl --help shows the commands");
  Json request{{"command", command}};
  if (key != nullptr) request[key] = words[2];
  if (command != "remove-device") return request;
  request["timeout"] = settings.timeout_s;
  if (settings.force) request["force"] = true;
  return request;
}

Outcome<void> WaitFor(int fd, short events, int timeout_ms) {
  pollfd entry{fd, events, 0};
  const int ready = poll(&entry, 1, timeout_ms);
  if (ready < 0 && errno != EINTR) return HostFailure("control socket", SysError("poll").value());
  if (ready == 0)
    return HostFailure("the machine does not answer", "it may be busy or stopped; try again");
  return {};
}

Outcome<std::string> Exchange(const std::string& socket, std::string text, int timeout_ms) {
  Result<Fd> fd = ConnectUnix(socket);
  if (!fd) {
    return HostFailure(fmt::format("cannot reach a machine at '{}'", Escaped(socket)), fd.error(),
                       "start it with --control PATH, and give that path");
  }
  while (!text.empty()) {
    const ssize_t n = send(fd->get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      text.erase(0, static_cast<std::size_t>(n));
    } else if (errno != EAGAIN && errno != EINTR) {
      return HostFailure("control socket", SysError("send").value());
    } else if (Outcome<void> r = WaitFor(fd->get(), POLLOUT, timeout_ms); !r) {
      return tl::unexpected(r.error());
    }
  }
  std::string answer;
  std::array<char, 16384> chunk{};
  while (answer.find('\n') == std::string::npos && answer.size() < kLongestAnswer) {
    if (Outcome<void> r = WaitFor(fd->get(), POLLIN, timeout_ms); !r)
      return tl::unexpected(r.error());
    const ssize_t n = recv(fd->get(), chunk.data(), chunk.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n < 0) return HostFailure("control socket", SysError("recv").value());
    if (n == 0)
      return HostFailure("the machine closed the connection without an answer",
                         "it may have ended");
    answer.append(chunk.data(), static_cast<std::size_t>(n));
  }
  return answer.substr(0, answer.find('\n'));
}

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? Escaped(found->get<std::string>(), 512)
                                                     : std::string();
}

std::string StateOf(const Json& device) {
  const auto slot = device.find("slot");
  if (slot == device.end() || !slot->is_number_unsigned()) return "fixed";
  const bool leaving = device.value("leaving", false);
  return fmt::format("slot {}{}", slot->get<std::uint64_t>(), leaving ? ", leaving" : "");
}

std::string Table(const Json& answer) {
  std::string text = fmt::format("{:<16} {:<18} {}\n", "device", "place", "what");
  const auto devices = answer.find("devices");
  if (devices == answer.end() || !devices->is_array()) return text;
  for (const Json& device : *devices) {
    if (!device.is_object()) continue;
    text += fmt::format("{:<16} {:<18} {}\n", TextOf(device, "id"), StateOf(device),
                        TextOf(device, "detail"));
  }
  const auto free = answer.find("free_slots");
  if (free != answer.end() && free->is_number_unsigned())
    text += fmt::format("free slots: {}\n", free->get<std::uint64_t>());
  return text;
}

std::string ForPeople(const std::string& command, const Settings& settings, const Json& answer) {
  if (command == "list") return Table(answer);
  if (command == "add-device") return fmt::format("added '{}'\n", TextOf(answer, "id"));
  if (command == "remove-device") return fmt::format("removed '{}'\n", settings.words[2]);
  if (command == "metrics") {
    const auto metrics = answer.find("metrics");
    return (metrics == answer.end() ? answer : *metrics)
               .dump(2, ' ', false, Json::error_handler_t::replace) +
           "\n";
  }
  return "asked\n";
}

int Show(const Settings& settings, const std::string& line) {
  const Json answer = Json::parse(line, nullptr, false);
  if (!answer.is_object()) {
    return PrintFailure({Failure::Kind::kHost, "the answer is not what a machine sends",
                         "check that the socket is a machine's --control"});
  }
  const auto ok = answer.find("ok");
  const bool good = ok != answer.end() && ok->is_boolean() && ok->get<bool>();
  const auto kind =
      TextOf(answer, "kind") == "config" ? Failure::Kind::kConfig : Failure::Kind::kHost;
  if (settings.json) {
    Print(stdout, line + "\n");
    if (good) return 0;
    return kind == Failure::Kind::kConfig ? 2 : 1;
  }
  if (!good) return PrintFailure({kind, TextOf(answer, "error"), TextOf(answer, "next")});
  Print(stdout, ForPeople(settings.words[1], settings, answer));
  return 0;
}

constexpr std::string_view kHelp = R"(Usage: postern ctl SOCKET COMMAND [ARGUMENT] [FLAG...]

Asks the machine that was started with --control SOCKET.

Commands:
  list               the devices, and the hot-plug slots that are free
  add-device SPEC    put a device into a free slot: disk,path=FILE[,id=NAME][,KEY...] as --disk takes it
  remove-device ID   ask the guest to release a device that was added, and wait until it has (Linux takes 5 s)
  power-button       press the ACPI power button
  metrics            the counters

)";

}  // namespace

int Ctl(const std::vector<std::string>& arguments) {
  Outcome<Settings> settings = ParseCtl(arguments);
  if (!settings) return PrintFailure(settings.error());
  if (settings->help) {
    Print(stdout,
          fmt::format("{}{}\nExit codes: 0 done; 1 the machine or its guest could not; 2 the "
                      "command is wrong.\n",
                      kHelp, FormatOptions(CtlOptions())));
    return 0;
  }
  Outcome<Json> request = RequestOf(*settings);
  if (!request) return PrintFailure(request.error());
  const int wait_ms =
      kPatienceMs +
      (request->contains("timeout") ? static_cast<int>(settings->timeout_s) * 1000 : 0);
  Outcome<std::string> answer =
      Exchange(settings->words[0],
               request->dump(-1, ' ', false, Json::error_handler_t::replace) + "\n", wait_ms);
  if (!answer) return PrintFailure(answer.error());
  return Show(*settings, *answer);
}

}  // namespace postern::cli
