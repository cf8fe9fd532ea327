#pragma once

// UserSession: one client of a vfio-user server: its commands in, checked, and the answers of a
// UserServed out.
//
//   UserSession session(std::move(socket), device, counters, "dsa.sock");
//   if (!session.Work()) ... session.reason() ...
//
// The client is hostile. What breaks the framing, a command before VERSION, a second major version,
// a reply to nothing, and descriptors with a command that takes none end the connection; a command
// that is merely wrong is answered with its errno, and counted. A client that does not read its
// answers is not read from. Nothing waits: a client is served kCommandsARound commands at a time.
// Is not: the listening socket, nor a client after this one (server.h). Migration, DMA by message,
// multiple writes and I/O descriptors are not offered. Ownership: borrows device and counters.
// Threads: one.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/result.h"
#include "vfio/user/channel.h"
#include "vfio/user/protocol.h"
#include "vfio/user/served.h"

namespace postern::vfio {

// What the server offers. QEMU takes more than 16 descriptors a message for malformed.
constexpr std::size_t kServedMaxFds = 8;
constexpr std::size_t kServedMaxDmaMaps = 1024;

struct ServerCounters {
  Counter clients;           // connections that were accepted
  Counter clients_refused;   // that came while another was there
  Counter clients_dropped;   // that were closed because of what they sent, or did not send
  Counter commands;          // of them
  Counter commands_refused;  // answered with an error
  Counter commands_unknown;  // of those
  Counter resets;            // DEVICE_RESET
  void Report(CounterSink& sink) const;
};

class UserSession {
 public:
  static constexpr unsigned kCommandsARound = 64;

  UserSession(Fd socket, UserServed& device, ServerCounters& counters, std::string name)
      : device_(device),
        counters_(counters),
        name_(std::move(name)),
        channel_(std::move(socket), {.max_payload = kUserMaxPayload, .max_fds = kServedMaxFds}) {}

  // Handles what is there. False: the connection is at its end.
  [[nodiscard]] bool Work();
  // What to watch fd() for.
  [[nodiscard]] std::uint32_t events() const;
  [[nodiscard]] int fd() const { return channel_.fd(); }
  // It has said VERSION.
  [[nodiscard]] bool greeted() const { return greeted_; }
  // Why it ended; `broke_rules` unless it just closed.
  [[nodiscard]] const std::optional<Error>& reason() const { return channel_.closed(); }
  [[nodiscard]] bool broke_rules() const;
  void Close(const Error& why) { channel_.Close(why); }

 private:
  using Payload = std::span<const std::byte>;

  [[nodiscard]] Result<void> Handle(UserMessage& message);
  [[nodiscard]] Result<void> Dispatch(UserMessage& message);
  [[nodiscard]] Result<void> Version(const UserMessage& message);
  [[nodiscard]] Result<void> Query(const UserMessage& message);
  [[nodiscard]] Result<void> RegionInfo(const UserHeader& header, const UserQuery& query);
  [[nodiscard]] Result<void> Map(UserMessage& message);
  [[nodiscard]] Result<void> Unmap(const UserMessage& message);
  [[nodiscard]] Result<void> SetIrqs(UserMessage& message);
  [[nodiscard]] Result<void> SetVectors(const UserSetIrqs& set, std::vector<Fd> fds);
  [[nodiscard]] Result<void> Access(const UserMessage& message);

  [[nodiscard]] Result<void> Answer(const UserHeader& to, Payload payload,
                                    std::span<const int> fds = {});
  // Counted, and logged.
  [[nodiscard]] Result<void> Refuse(const UserHeader& to, const Error& why);
  [[nodiscard]] Result<void> RefuseQuietly(const UserHeader& to, const Error& why);
  [[nodiscard]] Unexpected End(const char* why);

  UserServed& device_;
  ServerCounters& counters_;
  const std::string name_;
  UserChannel channel_;
  bool greeted_ = false;
};

}  // namespace postern::vfio
