#pragma once

// UserConnection: the client's end of a vfio-user connection: commands with their replies, one at a
// time, and the server's requests for DMA in between.
//
//   const UserConnection::Turn turn(connection);         // nobody else speaks meanwhile
//   UserMessage reply = TRY(turn.Call(UserCommand::kReset, {}));
//
// While a call waits for its reply it serves the requests that arrive: a server that asks for
// memory before it answers would wait for ever otherwise. Requests that come when no call is in
// progress are served on the event loop, not by a thread of the device's own: they are a device's
// data path, which is what the loops are for, the loop costs nothing while the server is silent,
// and a call need not wake another thread to get its reply. The loop looks at the socket only while
// nobody has the turn, so it neither spins nor is woken for replies.
//
// A server that does not answer within `timeout_ms`, breaks a rule, or goes, has vanished: the
// socket is closed, reason() says why, the eventfd of SetVanishEvent is signalled, and every call
// fails with ENODEV at once.
//
// Ownership: borrows table, loop and counters. Threads: any; a Turn waits for the one before it,
// which ends within the time limit. Destroyed where the loop may be waited for.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/event_loop.h"
#include "src/base/mutex.h"
#include "vfio/user/channel.h"
#include "vfio/user/dma_table.h"

namespace postern::vfio {

struct UserCounters {
  Counter calls;
  Counter call_errors;  // commands the server answered with an error
  Counter dma_reads;
  Counter dma_read_bytes;
  Counter dma_writes;
  Counter dma_write_bytes;
  Counter dma_faults;        // requests outside of what is mapped
  Counter unknown_requests;  // commands no client knows
  Counter vanished;          // 0 or 1
  void Report(CounterSink& sink) const;
};

class UserConnection final : private EventHandler {
 public:
  [[nodiscard]] static Result<std::unique_ptr<UserConnection>> Create(Fd socket, std::string name,
                                                                      std::uint32_t timeout_ms,
                                                                      DmaTable& dma,
                                                                      EventLoop& loop,
                                                                      UserCounters& counters);
  ~UserConnection() override;

  // From now on requests are served when no call is in progress, too.
  [[nodiscard]] Result<void> Serve();

  [[nodiscard]] bool vanished() const { return vanished_.load(std::memory_order_acquire); }

  class Turn {
   public:
    explicit Turn(UserConnection& connection) : connection_(connection) { connection.Take(); }
    ~Turn() { connection_.Give(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    struct Options {
      std::span<const int> fds = {};
      std::size_t reply_fds = 0;   // how many the reply may bring
      std::uint64_t deadline = 0;  // 0: the time limit from now on
    };
    // A reply of this command. kSystem with the server's errno where it refused.
    [[nodiscard]] Result<UserMessage> Call(UserCommand command, std::span<const std::byte> payload,
                                           const Options& options) const;
    [[nodiscard]] Result<UserMessage> Call(UserCommand command,
                                           std::span<const std::byte> payload) const {
      return Call(command, payload, Options());
    }
    // A command the server does not answer.
    [[nodiscard]] Result<void> Post(UserCommand command, std::span<const std::byte> payload) const;
    // The server broke a rule in what it answered: it has vanished.
    [[nodiscard]] Unexpected Refuse(const Error& reason) const;
    // Why it has vanished.
    [[nodiscard]] const std::optional<Error>& reason() const {
      return connection_.channel_.closed();
    }
    // A signal of `fd` (an eventfd, duplicated; -1: nobody's) posts `payload` as SET_IRQS.
    [[nodiscard]] Result<void> WatchUnmask(int fd, std::vector<std::byte> payload) const;
    // Signalled once, when the server vanishes or if it has; -1: nobody.
    [[nodiscard]] Result<void> SetVanishEvent(int fd) const;

   private:
    UserConnection& connection_;
  };

 private:
  UserConnection(Fd socket, std::string name, std::uint32_t timeout_ms, DmaTable& dma,
                 EventLoop& loop, UserCounters& counters);
  void OnEvent(int fd, std::uint32_t events) override;

  void Take();
  [[nodiscard]] bool TryTake();
  void Give();
  // What the loop is to look at; with the turn.
  void Arm(bool on);

  // All below: with the turn.
  [[nodiscard]] Result<UserMessage> Exchange(UserCommand command,
                                             std::span<const std::byte> payload,
                                             const Turn::Options& options);
  // Serves what is there; the reply that came, or nothing when nothing more is there.
  [[nodiscard]] Result<std::optional<UserMessage>> Step();
  [[nodiscard]] Result<void> Proceed(std::uint64_t deadline);
  [[nodiscard]] Result<void> Drain(std::uint64_t deadline);
  void ServeSome();
  void SendUnmask();
  [[nodiscard]] Result<void> ServeRequest(const UserMessage& message);
  [[nodiscard]] Result<void> ServeRead(const UserHeader& header, const UserDmaAccess& access);
  [[nodiscard]] Result<void> ServeWrite(const UserHeader& header, const UserDmaAccess& access);
  [[nodiscard]] Result<void> Answer(const UserHeader& to, std::span<const std::byte> payload,
                                    std::uint32_t error = 0);
  Unexpected Close(const Error& reason);
  void NoteVanished();

  const std::string name_;
  const std::uint32_t timeout_ms_;
  DmaTable& dma_;
  EventLoop& loop_;
  UserCounters& counters_;

  // The turn.
  Mutex mutex_;
  bool taken_ GUARDED_BY(mutex_) = false;
  std::condition_variable_any given_;

  // Whoever has the turn.
  UserChannel channel_;
  std::uint16_t next_id_ = 0;
  std::optional<EventFd> unmask_;
  std::vector<std::byte> unmask_payload_;
  std::optional<EventFd> vanish_event_;
  std::uint32_t armed_for_ = 0;  // events of the socket in sources_

  std::atomic<bool> vanished_{false};
  bool watched_ = false;  // set once, before others know of this
  Fd sources_;            // epoll: the socket and unmask_
  Fd gate_;               // epoll: sources_, while nobody has the turn; the loop watches this
};

// "REGION_READ", for errors and logs.
[[nodiscard]] const char* NameOf(UserCommand command);

}  // namespace postern::vfio
