#include "devices/console_backend/backend.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "devices/console_backend/escape.h"
#include "src/base/fd.h"
#include "src/base/unix_socket.h"
#include "tests/support/counter.h"

#include <doctest/doctest.h>

namespace postern::console {
namespace {

using Kind = BackendOptions::Kind;

struct Client : ConsoleClient {
  ConsoleBackend* backend = nullptr;
  bool reads = true;
  std::string input;
  int writable = 0;
  void OnInput() override {
    std::array<std::byte, 100> bytes{};
    while (reads) {
      const std::size_t n = backend->Read(bytes);
      if (n == 0) return;
      input.append(reinterpret_cast<const char*>(bytes.data()), n);
    }
  }
  void OnWritable() override { ++writable; }
};

std::size_t Put(ConsoleBackend& backend, std::string_view text) {
  // The back end does not write to it.
  const iovec part{const_cast<char*>(text.data()), text.size()};
  return backend.Write(std::span(&part, 1));
}

std::string Get(int fd, std::size_t bytes) {
  std::string out(bytes, '\0');
  std::size_t got = 0;
  while (got < bytes) {
    const ssize_t n = read(fd, out.data() + got, bytes - got);
    if (n <= 0) break;
    got += static_cast<std::size_t>(n);
  }
  out.resize(got);
  return out;
}

template <typename Condition>
bool RunUntil(EventLoop& loop, Condition condition) {
  for (int i = 0; i < 500 && !condition(); ++i) loop.RunOnce(10);
  return condition();
}

double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Rounds of the loop in 100 ms in which nothing happens: one per expired wait.
int IdleRounds(EventLoop& loop) {
  int rounds = 0;
  timespec start{};
  clock_gettime(CLOCK_MONOTONIC, &start);
  while (true) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 >= 100) break;
    loop.RunOnce(20);
    ++rounds;
  }
  return rounds;
}

struct TempDir {
  std::string path = "/tmp/postern_console_XXXXXX";
  TempDir() { REQUIRE(mkdtemp(path.data()) != nullptr); }
  ~TempDir() {
    for (const char* name : {"/s", "/f"}) (void)unlink((path + name).c_str());
    (void)rmdir(path.c_str());
  }
};

TEST_CASE("escape: Ctrl-A sequences are the monitor's, all else is the guest's") {
  struct Row {
    const char* name;
    std::string typed;
    std::string guest;
    EscapeFilter::Command command;
  };
  using Command = EscapeFilter::Command;
  const std::vector<Row> rows{{"plain", "hello\x02", "hello\x02", Command::kNone},
                              {"quit", "a\x01x", "a", Command::kQuit},
                              {"nothing after quit", "\x01xrm", "", Command::kQuit},
                              {"Ctrl-A twice", "\x01\x01z", "\x01z", Command::kNone},
                              {"Ctrl-A a",
                               "\x01"
                               "ab",
                               "\x01"
                               "b",
                               Command::kNone},
                              {"Ctrl-A other",
                               "\x01"
                               "l",
                               "\x01l", Command::kNone},
                              {"help", "\x01h.", ".", Command::kHelp},
                              {"x alone", "x", "x", Command::kNone},
                              {"escaped, then x", "\x01\x01x", "\x01x", Command::kNone}};
  for (const Row& row : rows) {
    CAPTURE(row.name);
    for (const bool split : {false, true}) {
      EscapeFilter filter;
      std::vector<std::byte> out;
      Command command = Command::kNone;
      const auto* typed = reinterpret_cast<const std::byte*>(row.typed.data());
      if (split) {
        for (std::size_t i = 0; i < row.typed.size() && command != Command::kQuit; ++i) {
          const Command next = filter.Filter(std::span(typed + i, 1), out);
          if (next != Command::kNone) command = next;
        }
      } else {
        command = filter.Filter(std::span(typed, row.typed.size()), out);
      }
      CHECK(std::string(reinterpret_cast<const char*>(out.data()), out.size()) == row.guest);
      CHECK(command == row.command);
    }
  }
}

TEST_CASE("console back end: null takes everything and gives nothing") {
  auto loop = EventLoop::Create().value();
  auto backend = CreateBackend({}, *loop).value();
  CHECK(Put(*backend, "gone") == 4);
  std::array<std::byte, 4> bytes{};
  CHECK(backend->Read(bytes) == 0);
  CHECK(testing::ReportedCounter(*backend, "output_dropped") == 4);
}

TEST_CASE("console back end: a file is truncated or continued") {
  const TempDir dir;
  auto loop = EventLoop::Create().value();
  BackendOptions options{
      .kind = Kind::kFile, .path = dir.path + "/f", .append = false, .quit = {}, .announce = {}};
  const auto contents = [&] {
    const Fd fd(open(options.path.c_str(), O_RDONLY | O_CLOEXEC));
    return Get(fd.get(), 100);
  };
  { CHECK(Put(*CreateBackend(options, *loop).value(), "first") == 5); }
  { CHECK(Put(*CreateBackend(options, *loop).value(), "second") == 6); }
  CHECK(contents() == "second");
  options.append = true;
  { CHECK(Put(*CreateBackend(options, *loop).value(), "+third") == 6); }
  CHECK(contents() == "second+third");

  options.path = dir.path + "/none/f";
  const auto failed = CreateBackend(options, *loop);
  REQUIRE(!failed);
  CHECK(failed.error().kind == Failure::Kind::kHost);
  CHECK(failed.error().cause.find("No such file") != std::string::npos);
  CHECK(!failed.error().next_step.empty());
}

TEST_CASE("console back end: a full disk loses output and nothing else") {
  auto loop = EventLoop::Create().value();
  auto backend =
      CreateBackend(
          {.kind = Kind::kFile, .path = "/dev/full", .append = true, .quit = {}, .announce = {}},
          *loop)
          .value();
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  CHECK(Put(*backend, "lost") == 4);
  CHECK(Put(*backend, "also") == 4);
  CHECK(testing::ReportedCounter(*backend, "output_dropped") == 8);
  CHECK(IdleRounds(*loop) < 10);
}

TEST_CASE("console back end: a FIFO whose reader left does not end the process") {
  const TempDir dir;
  auto loop = EventLoop::Create().value();
  const std::string path = dir.path + "/f";
  REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  const BackendOptions options{
      .kind = Kind::kFile, .path = path, .append = true, .quit = {}, .announce = {}};
  CHECK(!CreateBackend(options, *loop));  // no reader yet: refused, not waited for
  Fd reader(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  auto backend = CreateBackend(options, *loop).value();
  CHECK(Put(*backend, "seen") == 4);
  CHECK(Get(reader.get(), 4) == "seen");
  reader.Close();
  CHECK(Put(*backend, "lost") == 4);
  CHECK(testing::ReportedCounter(*backend, "output_dropped") == 4);
}

TEST_CASE(
    "console back end: a slow socket peer is waited for, without losing or repeating a byte") {
  const TempDir dir;
  auto loop = EventLoop::Create().value();
  auto backend = CreateBackend({.kind = Kind::kSocket,
                                .path = dir.path + "/s",
                                .append = false,
                                .quit = {},
                                .announce = {}},
                               *loop)
                     .value();
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  const Fd peer = ConnectUnix(dir.path + "/s").value();
  REQUIRE(RunUntil(*loop, [&] { return testing::ReportedCounter(*backend, "connections") == 1; }));

  std::string sent;
  std::string line;
  for (int i = 0; i < 3000; ++i) line += "line " + std::to_string(i) + "\n";
  std::size_t taken = 0;
  while ((taken = Put(*backend, line)) > 0) sent += line.substr(0, taken);
  CHECK(client.writable == 0);
  CHECK(Put(*backend, "no") == 0);
  CHECK(IdleRounds(*loop) < 10);
  std::string received;
  while (received.size() < sent.size()) {
    std::array<char, 65536> bytes{};
    const ssize_t n = read(peer.get(), bytes.data(), bytes.size());
    REQUIRE(n > 0);
    received.append(bytes.data(), static_cast<std::size_t>(n));
  }
  CHECK(received == sent);
  CHECK(RunUntil(*loop, [&] { return client.writable > 0; }));
  CHECK(Put(*backend, "go on") == 5);
  CHECK(testing::ReportedCounter(*backend, "output_dropped") == 0);
}

TEST_CASE("console back end: input is read only as far as it is wanted") {
  const TempDir dir;
  auto loop = EventLoop::Create().value();
  auto backend = CreateBackend({.kind = Kind::kSocket,
                                .path = dir.path + "/s",
                                .append = false,
                                .quit = {},
                                .announce = {}},
                               *loop)
                     .value();
  Client client;
  client.backend = backend.get();
  client.reads = false;
  backend->Attach(client);
  const Fd peer = ConnectUnix(dir.path + "/s").value();
  const std::string typed(50000, 'k');
  std::size_t written = 0;
  for (int i = 0; i < 50; ++i) {
    const ssize_t n = write(peer.get(), typed.data() + written, typed.size() - written);
    if (n > 0) written += static_cast<std::size_t>(n);
    loop->RunOnce(0);
  }
  CHECK(testing::ReportedCounter(*backend, "input_bytes") == kInputBuffer);
  CHECK(IdleRounds(*loop) < 10);
  client.reads = true;
  client.OnInput();
  CHECK(RunUntil(*loop, [&] {
    const ssize_t n = write(peer.get(), typed.data() + written, typed.size() - written);
    if (n > 0) written += static_cast<std::size_t>(n);
    return client.input.size() == typed.size();
  }));
  CHECK(testing::ReportedCounter(*backend, "input_dropped") == 0);
}

TEST_CASE(
    "console back end: a socket keeps output for the next client, oldest bytes dropped, and has "
    "one client at a time") {
  const TempDir dir;
  const std::string path = dir.path + "/s";
  auto loop = EventLoop::Create().value();
  auto backend =
      CreateBackend(
          {.kind = Kind::kSocket, .path = path, .append = false, .quit = {}, .announce = {}}, *loop)
          .value();
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  const std::string early(kReplayBuffer, 'e');
  CHECK(Put(*backend, early) == early.size());
  CHECK(Put(*backend, "tail") == 4);
  CHECK(testing::ReportedCounter(*backend, "output_dropped") == 4);

  Fd first = ConnectUnix(path).value();
  REQUIRE(RunUntil(*loop, [&] { return testing::ReportedCounter(*backend, "connections") == 1; }));
  std::string replay;
  CHECK(RunUntil(*loop, [&] {
    std::array<char, 8192> bytes{};
    const ssize_t n = read(first.get(), bytes.data(), bytes.size());
    if (n > 0) replay.append(bytes.data(), static_cast<std::size_t>(n));
    return replay.size() == kReplayBuffer;
  }));
  CHECK(replay.substr(kReplayBuffer - 4) == "tail");

  const Fd second = ConnectUnix(path).value();
  REQUIRE(RunUntil(*loop,
                   [&] { return testing::ReportedCounter(*backend, "refused_connections") == 1; }));
  CHECK(Get(second.get(), 1).empty());  // closed
  REQUIRE(write(first.get(), "ls\n", 3) == 3);
  CHECK(RunUntil(*loop, [&] { return client.input == "ls\n"; }));

  first.Close();
  CHECK(IdleRounds(*loop) < 10);
  CHECK(Put(*backend, "later") == 5);
  const Fd third = ConnectUnix(path).value();
  REQUIRE(RunUntil(*loop, [&] { return testing::ReportedCounter(*backend, "connections") == 2; }));
  CHECK(Get(third.get(), 5) == "later");
}

TEST_CASE("console back end: a client that only ended its own direction still gets output") {
  const TempDir dir;
  auto loop = EventLoop::Create().value();
  auto backend = CreateBackend({.kind = Kind::kSocket,
                                .path = dir.path + "/s",
                                .append = false,
                                .quit = {},
                                .announce = {}},
                               *loop)
                     .value();
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  const Fd peer = ConnectUnix(dir.path + "/s").value();
  REQUIRE(write(peer.get(), "cmd\n", 4) == 4);
  REQUIRE(shutdown(peer.get(), SHUT_WR) == 0);
  REQUIRE(RunUntil(*loop, [&] { return client.input == "cmd\n"; }));
  CHECK(IdleRounds(*loop) < 10);
  CHECK(Put(*backend, "answer") == 6);
  CHECK(Get(peer.get(), 6) == "answer");
}

TEST_CASE("console back end: the socket's name comes and goes with it, and is nobody else's") {
  const TempDir dir;
  const std::string path = dir.path + "/s";
  auto loop = EventLoop::Create().value();
  const BackendOptions options{
      .kind = Kind::kSocket, .path = path, .append = false, .quit = {}, .announce = {}};
  {
    auto backend = CreateBackend(options, *loop).value();
    CHECK(access(path.c_str(), F_OK) == 0);
    struct stat status {};
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 0077) == 0);
    const auto second = CreateBackend(options, *loop);
    REQUIRE(!second);
    CHECK(second.error().cause.find("another process listens") != std::string::npos);
    CHECK(access(path.c_str(), F_OK) == 0);
  }
  CHECK(access(path.c_str(), F_OK) != 0);
  {
    // Left behind by a process that was killed.
    const Fd stale(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    UnixListener listener = UnixListener::Create(path, "x").value();
    const std::string moved = dir.path + "/f";
    REQUIRE(rename(path.c_str(), moved.c_str()) == 0);
    listener.Close();  // its name is gone, so nothing is removed
    REQUIRE(rename(moved.c_str(), path.c_str()) == 0);
  }
  CHECK(access(path.c_str(), F_OK) == 0);
  { CHECK(CreateBackend(options, *loop).has_value()); }
  { const Fd file(open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); }
  const auto over_file = CreateBackend(options, *loop);
  REQUIRE(!over_file);
  CHECK(over_file.error().kind == Failure::Kind::kConfig);
  CHECK(access(path.c_str(), F_OK) == 0);

  for (const std::string& bad : {std::string(), std::string(108, 'p')}) {
    const auto failed = CreateBackend(
        {.kind = Kind::kSocket, .path = bad, .append = false, .quit = {}, .announce = {}}, *loop);
    REQUIRE(!failed);
    CHECK(failed.error().kind == Failure::Kind::kConfig);
    CHECK(failed.error().cause.find("107") != std::string::npos);
  }
}

TEST_CASE("console back end: a pty announces its slave and outlives its clients") {
  auto loop = EventLoop::Create().value();
  std::string path;
  auto backend = CreateBackend({.kind = Kind::kPty,
                                .path = {},
                                .append = false,
                                .quit = {},
                                .announce = [&](std::string_view p) { path = p; }},
                               *loop)
                     .value();
  CHECK(backend->description() == path);
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  CHECK(Put(*backend, "boot\n") == 5);
  CHECK(IdleRounds(*loop) < 10);
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    client.input.clear();
    Fd slave(open(path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(slave.valid());
    REQUIRE(RunUntil(*loop, [&] {
      return testing::ReportedCounter(*backend, "connections") == static_cast<unsigned>(round) + 1;
    }));
    CHECK(Get(slave.get(), 5) == "boot\n");  // no \r added: the slave is raw
    REQUIRE(write(slave.get(), "\x03id\r", 4) == 4);
    CHECK(RunUntil(*loop, [&] { return client.input == "\x03id\r"; }));
    CHECK(IdleRounds(*loop) < 10);
    slave.Close();
    CHECK(IdleRounds(*loop) < 12);
    CHECK(Put(*backend, "boot\n") == 5);
  }
  const double before = CpuSeconds();
  CHECK(IdleRounds(*loop) < 10);
  CHECK(CpuSeconds() - before < 0.05);
}

TEST_CASE("console back end: what a pty client typed before it left arrives") {
  auto loop = EventLoop::Create().value();
  std::string path;
  auto backend = CreateBackend({.kind = Kind::kPty,
                                .path = {},
                                .append = false,
                                .quit = {},
                                .announce = [&](std::string_view p) { path = p; }},
                               *loop)
                     .value();
  Client client;
  client.backend = backend.get();
  backend->Attach(client);
  {
    const Fd slave(open(path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
    REQUIRE(write(slave.get(), "quick", 5) == 5);
  }
  CHECK(RunUntil(*loop, [&] { return client.input == "quick"; }));
}

}  // namespace
}  // namespace postern::console
