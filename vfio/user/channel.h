#pragma once

// UserChannel: whole vfio-user messages over a UNIX stream socket, with their descriptors; either
// side of a connection.
//
//   UserChannel channel(std::move(socket), {});
//   TRY(channel.Send({.id = 1, .command = UserCommand::kReset}, {}));
//   while (true) {
//     std::optional<UserMessage> message = TRY(channel.Receive());
//     if (message) ...
//     if (!TRY(channel.Wait(deadline))) ...            // nothing came in time
//   }
//
// Never blocks but in Wait. What the socket does not take waits here, in order, so that a side
// that has much to send can read meanwhile: two that only wrote would wait for each other for ever.
//
// A peer that breaks the framing (a size below 16 or above the limit, too many descriptors, an end
// in the middle) closes the channel: closed() says why, the socket is gone, and every call from
// then on fails with ENODEV. So does Close. Threads: one at a time.

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "src/base/fd.h"
#include "src/base/result.h"
#include "vfio/user/protocol.h"

namespace postern::vfio {

struct UserMessage {
  UserHeader header;
  std::vector<std::byte> payload;
  std::vector<Fd> fds;
};

// CLOCK_MONOTONIC, `ms` from now, in nanoseconds.
[[nodiscard]] std::uint64_t DeadlineIn(std::uint64_t ms);

class UserChannel {
 public:
  struct Limits {
    std::size_t max_payload = kUserMaxPayload;  // of a message received
    std::size_t max_fds = kUserMaxFds;          // with a message received
  };
  // `socket`: connected and non-blocking.
  UserChannel(Fd socket, const Limits& limits) : socket_(std::move(socket)), limits_(limits) {}

  // Queues a message (header.size is filled in) and sends what the socket takes. `fds` are
  // duplicated where they have to wait.
  [[nodiscard]] Result<void> Send(UserHeader header, std::span<const std::byte> payload,
                                  std::span<const int> fds = {});
  // Sends more of what waits.
  [[nodiscard]] Result<void> Flush();
  // The next message, if all of it is there.
  [[nodiscard]] Result<std::optional<UserMessage>> Receive();
  // Until something can be read (unless `!reading`), or some of what waits can be sent. False: not
  // before `deadline`.
  [[nodiscard]] Result<bool> Wait(std::uint64_t deadline, bool reading = true);

  // Bytes that wait to be sent.
  [[nodiscard]] std::size_t backlog() const { return backlog_; }
  // -1 when closed.
  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] const std::optional<Error>& closed() const { return closed_; }
  // The first reason stays.
  void Close(const Error& reason);

 private:
  struct Waiting {
    std::vector<std::byte> bytes;
    std::size_t sent = 0;
    std::vector<Fd> fds;  // not sent yet
  };
  [[nodiscard]] Unexpected Gone() const;
  Unexpected Fail(const Error& reason);
  // False: the socket takes no more now.
  [[nodiscard]] Result<bool> SendSome(Waiting& waiting, std::span<const int> fds);
  // False: nothing more is there now.
  [[nodiscard]] Result<bool> ReceiveInto(std::span<std::byte> bytes, std::size_t& have);
  [[nodiscard]] Result<void> BeginMessage();

  Fd socket_;
  Limits limits_;
  std::optional<Error> closed_;
  std::deque<Waiting> outbox_;
  std::size_t backlog_ = 0;
  // The message that is being received.
  std::array<std::byte, kUserHeaderSize> header_{};
  std::size_t header_have_ = 0;
  std::size_t payload_have_ = 0;
  UserMessage incoming_;
};

}  // namespace postern::vfio
