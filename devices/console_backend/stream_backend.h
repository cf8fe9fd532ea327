#pragma once

// StreamBackend: what the back ends with descriptors have alike: the input buffer, reading no more
// than fits it, writing without blocking, and waiting for a slow peer. Internal to this package.
//
// A derived class says which descriptors to use (SetInput, SetOutput) and what to do when one of
// them is at its end.

#include "devices/console_backend/backend.h"
#include "src/base/byte_ring.h"
#include "src/base/fd.h"

namespace postern::console {

class StreamBackend : public ConsoleBackend, protected EventHandler {
 public:
  explicit StreamBackend(EventLoop& loop) : loop_(loop) {}
  ~StreamBackend() override;

  void Attach(ConsoleClient& client) final;
  void Detach() final { client_ = nullptr; }
  std::size_t Write(std::span<const iovec> from) override;
  std::size_t Read(std::span<std::byte> to) final;
  [[nodiscard]] bool has_input() const final { return !input_.empty(); }
  void ReportCounters(CounterSink& sink) const final;

 protected:
  // The descriptors stay the derived class's; -1 means none: no input, and output is dropped (or
  // kept, see replay_). Both may be the same. Descriptors epoll cannot watch (regular files,
  // /dev/null) are always ready.
  void SetInput(int fd);
  void SetOutput(int fd);
  [[nodiscard]] int input_fd() const { return input_fd_; }
  [[nodiscard]] int output_fd() const { return output_fd_; }

  // The peer went away (`fd` is no longer watched or used), with errno or 0 for an end of file.
  virtual void OnInputEnd(int error) = 0;
  virtual void OnOutputEnd(int error) = 0;
  // Bytes that were read, at most kInputBuffer. Takes them over with Deliver, perhaps changed.
  virtual void OnBytes(std::span<const std::byte> bytes) { Deliver(bytes); }
  // Events of descriptors other than the two.
  virtual void OnOtherEvent(int fd, std::uint32_t events) { (void)fd, (void)events; }
  // Whether input goes on being read, and dropped, when the buffer is full: so that an escape
  // sequence is always seen.
  [[nodiscard]] virtual bool ReadsWhenFull() const { return false; }
  // Whether reading must wait (a terminal in the background).
  [[nodiscard]] virtual bool InputPaused() { return false; }

  void Deliver(std::span<const std::byte> bytes);
  // Watches and calls nothing any more. Every derived destructor calls it first.
  void Stop();
  // Watches what is needed now. Call after whatever InputPaused depends on changed.
  void UpdateWatches();
  // Output without a peer: into `replay_`, for whoever comes.
  void KeepOutputWithoutPeer() { keep_without_peer_ = true; }
  [[nodiscard]] EventLoop& loop() { return loop_; }
  [[nodiscard]] ConsoleClient* client() const { return client_; }
  BackendCounters counters_;

 private:
  enum class OutputKind : std::uint8_t { kOther, kSocket, kPipe };
  struct Watched {
    int fd = -1;
    std::uint32_t events = 0;
  };
  void OnEvent(int fd, std::uint32_t events) final;
  void ReadInput();
  void ScheduleInput();
  void ScheduleWritable();
  void FlushReplay();
  void EndInput(int error);
  void EndOutput(int error);
  void SetWatch(Watched& watched, int fd, std::uint32_t events);
  // To output_fd_, as writev: bytes written, or -errno.
  [[nodiscard]] long WriteSome(std::span<const iovec> from);

  EventLoop& loop_;
  ConsoleClient* client_ = nullptr;
  int input_fd_ = -1;
  int output_fd_ = -1;
  Watched input_watch_;
  Watched output_watch_;                // unused while both descriptors are the same
  EventLoop::TimerId input_timer_ = 0;  // 0 is no timer's
  EventLoop::TimerId writable_timer_ = 0;
  OutputKind output_kind_ = OutputKind::kOther;
  bool input_pollable_ = true;
  bool output_blocked_ = false;  // something was refused: OnWritable is owed
  bool stopped_ = false;
  bool keep_without_peer_ = false;
  ByteRing input_{kInputBuffer};
  ByteRing replay_{kReplayBuffer};
};

}  // namespace postern::console
