#pragma once

// ConsoleBackend: where the bytes of a guest's console come from and go to on the host: the
// terminal, a pty, a file, a UNIX socket, or nowhere. Knows neither virtio nor the 16550; both are
// a ConsoleClient to it.
//
//   auto backend = console::CreateBackend({.kind = Kind::kStdio, .quit = [&] { ... }}, loop);   //
//   Outcome
//   (*backend)->Attach(client);
//   std::size_t taken = (*backend)->Write(iovecs);   // fewer than given: wait for OnWritable
//   std::size_t got = (*backend)->Read(bytes);       // 0: wait for OnInput
//
// No call blocks. Input nobody reads waits in a buffer of kInputBuffer bytes, and beyond that in
// the kernel. Output to a peer that is slow is refused until it caught up; output while no peer is
// connected (pty, socket) is kept in a buffer of kReplayBuffer bytes for the next one, oldest bytes
// dropped.
//
// Ownership: the client and the loop outlive the backend, or Detach comes first. Threads: the
// loop's thread, or before it runs.

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "src/base/counters.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"

namespace postern::console {

constexpr std::size_t kInputBuffer = 4096;
constexpr std::size_t kReplayBuffer = 65536;

struct WindowSize {
  std::uint16_t cols = 0;  // 0: unknown
  std::uint16_t rows = 0;
  friend bool operator==(const WindowSize&, const WindowSize&) = default;
};

class ConsoleClient {
 public:
  virtual ~ConsoleClient() = default;
  // Read has something.
  virtual void OnInput() = 0;
  // After a Write that took less than it was given: try again.
  virtual void OnWritable() = 0;
  virtual void OnResize(WindowSize size) { (void)size; }
};

struct BackendCounters {
  Counter input_bytes, output_bytes;
  Counter input_dropped;   // bytes typed at a guest that does not read
  Counter output_dropped;  // bytes nobody could be given
  Counter connections, refused_connections;
};

class ConsoleBackend {
 public:
  virtual ~ConsoleBackend() = default;
  // Input is delivered from now on; what came earlier is announced on the loop. At most one client
  // at a time.
  virtual void Attach(ConsoleClient& client) = 0;
  virtual void Detach() = 0;
  // Takes as many bytes as it can now, from the front, and says how many.
  virtual std::size_t Write(std::span<const iovec> from) = 0;
  virtual std::size_t Read(std::span<std::byte> to) = 0;
  [[nodiscard]] virtual bool has_input() const = 0;
  [[nodiscard]] virtual WindowSize window_size() const { return {}; }
  // For people: "/dev/pts/3", "standard input and output".
  [[nodiscard]] virtual std::string description() const = 0;
  virtual void ReportCounters(CounterSink& sink) const = 0;
};

struct BackendOptions {
  enum class Kind : std::uint8_t { kNull, kStdio, kPty, kFile, kSocket };
  Kind kind = Kind::kNull;
  std::string path;     // kFile, kSocket
  bool append = false;  // kFile: keep what is there
  // kStdio on a terminal: Ctrl-A x was typed. Called on the loop's thread; must not destroy the
  // backend.
  std::function<void()> quit;
  // kPty: told the path of the slave once, from CreateBackend. If empty the path is written to
  // stderr.
  std::function<void(std::string_view)> announce;
};

// A second kStdio while one exists is refused.
[[nodiscard]] Outcome<std::unique_ptr<ConsoleBackend>> CreateBackend(const BackendOptions& options,
                                                                     EventLoop& loop);

}  // namespace postern::console
