#include "src/base/log.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <spdlog/details/log_msg.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>

#include "src/base/fd.h"
#include "src/base/mutex.h"
#include "src/base/text.h"

namespace postern::log {
namespace {

constexpr std::size_t kMaxText = 4096;

// One write(2) a line and no buffer: a line is in the file when Write returns, also if the process
// is killed next, and lines of several processes that append to one file do not mix.
class FdSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void Use(Fd file) {
    const std::lock_guard<std::mutex> lock(mutex_);
    file_ = std::move(file);
  }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const int fd = file_.valid() ? file_.get() : STDERR_FILENO;
    const char* at = line.data();
    std::size_t left = line.size();
    while (left > 0) {
      const ssize_t n = write(fd, at, left);
      if (n < 0) {
        if (errno == EINTR) continue;
        return;  // a full disk, a closed or non-blocking stderr: the line is lost, the monitor goes
                 // on
      }
      at += n;
      left -= static_cast<std::size_t>(n);
    }
  }
  void flush_() override {}

  Fd file_;  // none: stderr
};

// Our own names for %*: spdlog says "warning".
class LevelName final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm& /*time*/,
              spdlog::memory_buf_t& out) override {
    constexpr std::string_view kNames[] = {"trace", "debug", "info", "warn",
                                           "error", "error", "off"};
    const std::string_view name = kNames[message.level];
    out.append(name.data(), name.data() + name.size());
  }
  [[nodiscard]] std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<LevelName>();
  }
};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

// Made by the first line: a run that logs nothing neither pays for this in start-up time nor in
// memory. Never destroyed, so that threads may log until the very end.
FdSink& Sink() {
  static FdSink* const sink = [] {
    auto formatter =
        std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc, "\n");
    formatter->add_flag<LevelName>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %* [%n] %v");
    auto made = std::make_unique<FdSink>();
    made->set_formatter(std::move(formatter));
    return made.release();
  }();
  return *sink;
}

void WriteText(LogLevel level, std::string_view package, std::string_view text) {
  const std::string line = Escaped(text, kMaxText);
  Sink().log(spdlog::details::log_msg(spdlog::string_view_t(package.data(), package.size()),
                                      ToSpdlog(level),
                                      spdlog::string_view_t(line.data(), line.size())));
}

std::uint64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

Result<void> SetFile(const char* path) {
  const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0640);
  if (fd < 0) return SysError("open log file");
  Sink().Use(Fd(fd));
  return {};
}

void Write(LogLevel level, std::string_view package, fmt::string_view format,
           fmt::format_args args) {
  if (level == LogLevel::kOff) return;
  fmt::memory_buffer text;
  fmt::vformat_to(fmt::appender(text), format, args);
  WriteText(level, package, std::string_view(text.data(), text.size()));
}

bool RateLimiter::Admit(std::uint64_t& suppressed) {
  return AdmitAt(NowNs(), suppressed);
}

bool RateLimiter::AdmitAt(std::uint64_t now_ns, std::uint64_t& suppressed) {
  // Approximate when threads race at the edge of a window: a few lines more or less, never an
  // unbounded number.
  std::uint64_t end = window_end_ns_.load(std::memory_order_relaxed);
  if (now_ns >= end &&
      window_end_ns_.compare_exchange_strong(end, now_ns + kWindowNs, std::memory_order_relaxed)) {
    in_window_.store(0, std::memory_order_relaxed);
  }
  // The load keeps a storm from wrapping the count.
  if (in_window_.load(std::memory_order_relaxed) >= kLinesPerWindow ||
      in_window_.fetch_add(1, std::memory_order_relaxed) >= kLinesPerWindow) {
    suppressed_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  suppressed = suppressed_.exchange(0, std::memory_order_relaxed);
  return true;
}

void WriteGuest(RateLimiter& limiter, std::string_view package, fmt::string_view format,
                fmt::format_args args) {
  if (!Enabled(LogLevel::kWarn)) return;
  std::uint64_t suppressed = 0;
  if (!limiter.Admit(suppressed)) return;
  fmt::memory_buffer text;
  fmt::vformat_to(fmt::appender(text), format, args);
  if (suppressed != 0) fmt::format_to(fmt::appender(text), " ({} like this held back)", suppressed);
  WriteText(LogLevel::kWarn, package, std::string_view(text.data(), text.size()));
}

}  // namespace postern::log
