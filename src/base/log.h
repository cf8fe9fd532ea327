#pragma once

// Logging: a level, a package name, a format string. spdlog is behind it, in log.cc alone, so that
// including this costs little.
//
//   LOG_INFO("machine", "started {} vCPUs", n);
//   GUEST_LOG("virtio", "head {:#x} out of range", head);   // what a guest or a peer can trigger
//
// Levels: error = the operator must act; warn = degraded; info = lifecycle; debug = configuration;
// trace = per access. GUEST_LOG writes at warn level, at most 10 lines per 5 s from one place, and
// says how many it held back. Threads: any. Never logs guest memory contents; lines are escaped so
// that no peer can forge one.

#include <atomic>
#include <cstdint>
#include <string_view>

#include <fmt/core.h>

#include "src/base/result.h"

namespace postern {

enum class LogLevel : std::uint8_t { kTrace, kDebug, kInfo, kWarn, kError, kOff };

namespace log {

namespace internal {
inline std::atomic<LogLevel> g_level{LogLevel::kWarn};
}

// Lines below this level are not formatted. Default kWarn. kOff: nothing is written.
inline void SetLevel(LogLevel level) {
  internal::g_level.store(level, std::memory_order_relaxed);
}
[[nodiscard]] inline bool Enabled(LogLevel level) {
  return level >= internal::g_level.load(std::memory_order_relaxed);
}
// Appends to `path` instead of stderr; on failure lines go on to where they went.
[[nodiscard]] Result<void> SetFile(const char* path);
// One line: "2026-01-02T03:04:05.678Z warn [package] text", at most 4096 bytes of text.
void Write(LogLevel level, std::string_view package, fmt::string_view format,
           fmt::format_args args);

// One per GUEST_LOG call site.
class RateLimiter {
 public:
  static constexpr std::uint64_t kWindowNs = 5'000'000'000;
  static constexpr std::uint32_t kLinesPerWindow = 10;

  // True if a line may be written now; `suppressed` is then how many were held back before it.
  [[nodiscard]] bool Admit(std::uint64_t& suppressed);
  // The same at a given CLOCK_MONOTONIC time.
  [[nodiscard]] bool AdmitAt(std::uint64_t now_ns, std::uint64_t& suppressed);

 private:
  std::atomic<std::uint64_t> window_end_ns_{0};
  std::atomic<std::uint32_t> in_window_{0};
  std::atomic<std::uint64_t> suppressed_{0};
};

void WriteGuest(RateLimiter& limiter, std::string_view package, fmt::string_view format,
                fmt::format_args args);

template <typename... Args>
void Line(LogLevel level, std::string_view package, fmt::format_string<Args...> format,
          Args&&... args) {
  Write(level, package, format, fmt::make_format_args(args...));
}
template <typename... Args>
void GuestLine(RateLimiter& limiter, std::string_view package, fmt::format_string<Args...> format,
               Args&&... args) {
  WriteGuest(limiter, package, format, fmt::make_format_args(args...));
}

}  // namespace log
}  // namespace postern

#define POSTERN_LOG(level, package, ...)                                                   \
  do {                                                                                     \
    if (::postern::log::Enabled(level)) ::postern::log::Line(level, package, __VA_ARGS__); \
  } while (false)
#define LOG_TRACE(package, ...) POSTERN_LOG(::postern::LogLevel::kTrace, package, __VA_ARGS__)
#define LOG_DEBUG(package, ...) POSTERN_LOG(::postern::LogLevel::kDebug, package, __VA_ARGS__)
#define LOG_INFO(package, ...) POSTERN_LOG(::postern::LogLevel::kInfo, package, __VA_ARGS__)
#define LOG_WARN(package, ...) POSTERN_LOG(::postern::LogLevel::kWarn, package, __VA_ARGS__)
#define LOG_ERROR(package, ...) POSTERN_LOG(::postern::LogLevel::kError, package, __VA_ARGS__)
#define GUEST_LOG(package, ...)                                                 \
  do {                                                                          \
    static ::postern::log::RateLimiter postern_guest_log_limiter;               \
    ::postern::log::GuestLine(postern_guest_log_limiter, package, __VA_ARGS__); \
  } while (false)
