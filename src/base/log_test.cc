#include "src/base/log.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "src/base/fd.h"
#include "src/base/thread.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

// Points the log at a new file and gives its lines.
class LogFile {
 public:
  LogFile() {
    const char* base =
        std::getenv("TEST_TMPDIR");  // NOLINT(concurrency-mt-unsafe): nothing sets the environment
    path_ = std::string(base != nullptr ? base : "/tmp") + "/postern-log-XXXXXX";
    const Fd created(mkstemp(path_.data()));
    REQUIRE(created.valid());
    REQUIRE(log::SetFile(path_.c_str()).has_value());
    log::SetLevel(LogLevel::kWarn);
  }
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;
  ~LogFile() {
    log::SetLevel(LogLevel::kWarn);
    unlink(path_.c_str());
  }
  [[nodiscard]] std::vector<std::string> Lines() const {
    std::vector<std::string> lines;
    std::ifstream in(path_);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What stands after "2026-01-02T03:04:05.678Z ", whose form is checked.
std::string AfterTime(const std::string& line) {
  const std::string form = "dddd-dd-ddTdd:dd:dd.dddZ ";
  REQUIRE(line.size() > form.size());
  for (std::size_t i = 0; i < form.size(); ++i) {
    CAPTURE(line);
    if (form[i] == 'd') {
      CHECK((line[i] >= '0' && line[i] <= '9'));
    } else {
      CHECK(line[i] == form[i]);
    }
  }
  return line.substr(form.size());
}

TEST_CASE("log: a line has time, level and package, and nothing below the level is written") {
  const LogFile file;
  LOG_INFO("machine", "not written");
  LOG_WARN("virtio", "queue {} at {:#x}", 3, 4096);
  LOG_ERROR("machine", "gone");
  log::SetLevel(LogLevel::kTrace);
  LOG_TRACE("bus", "t");
  LOG_DEBUG("bus", "d");
  LOG_INFO("bus", "i");
  log::SetLevel(LogLevel::kOff);
  LOG_ERROR("machine", "not written");
  std::vector<std::string> texts;
  for (const std::string& line : file.Lines()) texts.push_back(AfterTime(line));
  CHECK(texts == std::vector<std::string>{"warn [virtio] queue 3 at 0x1000", "error [machine] gone",
                                          "trace [bus] t", "debug [bus] d", "info [bus] i"});
}

TEST_CASE("log: arguments of a line that is not written are not evaluated") {
  const LogFile file;
  int evaluated = 0;
  const auto costly = [&] { return ++evaluated; };
  LOG_TRACE("bus", "{}", costly());
  CHECK(evaluated == 0);
  LOG_WARN("bus", "{}", costly());
  CHECK(evaluated == 1);
}

TEST_CASE("log: a peer cannot forge a line or write a very long one") {
  const LogFile file;
  LOG_WARN("vsock", "peer says {}",
           "hello\n2026-01-02T03:04:05.678Z error [machine] forged\x1b[2J");
  LOG_WARN("vsock", "{}", std::string(100'000, 'x'));
  const std::vector<std::string> lines = file.Lines();
  REQUIRE(lines.size() == 2);
  CHECK(AfterTime(lines[0]) ==
        "warn [vsock] peer says hello\\x0a2026-01-02T03:04:05.678Z error [machine] forged\\x1b[2J");
  CHECK(lines[1].size() < 4200);
  CHECK(lines[1].ends_with("xxx..."));
}

TEST_CASE("log: the file is appended to, and one that cannot be opened changes nothing") {
  const LogFile file;
  LOG_WARN("a", "first");
  REQUIRE(log::SetFile(file.path().c_str()).has_value());
  LOG_WARN("a", "second");
  const Result<void> bad = log::SetFile("/nonexistent-directory/log");
  REQUIRE_FALSE(bad);
  CHECK(bad.error().sys_errno == ENOENT);
  LOG_WARN("a", "third");
  CHECK(file.Lines().size() == 3);
}

TEST_CASE("log: a call site writes ten lines in five seconds and then says how many it held back") {
  log::RateLimiter limiter;
  constexpr std::uint64_t kStart = 1'000'000'000;
  std::uint64_t suppressed = 99;
  for (int i = 0; i < 10; ++i) {
    CHECK(limiter.AdmitAt(kStart + static_cast<std::uint64_t>(i), suppressed));
    CHECK(suppressed == 0);
  }
  for (int i = 0; i < 1000; ++i) CHECK_FALSE(limiter.AdmitAt(kStart + 1000, suppressed));
  CHECK_FALSE(limiter.AdmitAt(kStart + log::RateLimiter::kWindowNs - 1, suppressed));
  CHECK(limiter.AdmitAt(kStart + log::RateLimiter::kWindowNs, suppressed));
  CHECK(suppressed == 1001);
  CHECK(limiter.AdmitAt(kStart + log::RateLimiter::kWindowNs, suppressed));
  CHECK(suppressed == 0);
}

TEST_CASE("log: guest lines are limited per call site, and free when warnings are off") {
  const LogFile file;
  for (int i = 0; i < 1000; ++i) GUEST_LOG("virtio", "head {} out of range", i);
  for (int i = 0; i < 3; ++i) GUEST_LOG("virtio", "another place {}", i);
  CHECK(file.Lines().size() == 13);
  log::RateLimiter limiter;
  log::SetLevel(LogLevel::kError);
  for (int i = 0; i < 20; ++i) log::GuestLine(limiter, "virtio", "quiet");
  CHECK(file.Lines().size() == 13);
  std::uint64_t suppressed = 1;
  CHECK(limiter.Admit(suppressed));
  CHECK(suppressed == 0);
  log::SetLevel(LogLevel::kWarn);
  for (int i = 0; i < 12; ++i) log::GuestLine(limiter, "virtio", "loud");
  CHECK(file.Lines().size() == 22);
}

TEST_CASE("log: the held-back count stands in the next line that is written") {
  const LogFile file;
  log::RateLimiter limiter;
  std::uint64_t suppressed = 0;
  // A window that ended long ago, in which lines were held back.
  for (int i = 0; i < 15; ++i) (void)limiter.AdmitAt(1, suppressed);
  log::GuestLine(limiter, "virtio", "bad head");
  const std::vector<std::string> lines = file.Lines();
  REQUIRE(lines.size() == 1);
  CHECK(AfterTime(lines[0]) == "warn [virtio] bad head (5 like this held back)");
}

TEST_CASE("log: lines of several threads do not mix") {
  const LogFile file;
  {
    std::vector<Thread> threads;
    threads.reserve(4);
    for (int t = 0; t < 4; ++t) {
      threads.push_back(std::move(*Thread::Start("writer", [t] {
        for (int i = 0; i < 250; ++i)
          LOG_WARN("test", "{}", std::string(100, static_cast<char>('a' + t)));
      })));
    }
  }
  const std::vector<std::string> lines = file.Lines();
  CHECK(lines.size() == 1000);
  for (const std::string& line : lines) {
    const std::string text = AfterTime(line);
    REQUIRE(text.size() == std::string("warn [test] ").size() + 100);
    const std::string body = text.substr(text.size() - 100);
    CHECK(body == std::string(100, body[0]));
  }
}

}  // namespace
}  // namespace postern
