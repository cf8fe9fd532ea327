#pragma once

// CommandQueue: the one command register of a physical DSA, for several users: commands one after
// the other, each with its answer, none waiting longer than a limit.
//
//   CommandQueue commands(registers, loop, std::chrono::seconds(10), [&](const char* why) { ... });
//   commands.Push({.code = Command::kDrainWq, .queues = set, .operand = [&] { return operand; },
//                  .done = [](const CommandAnswer& answer) { ... }});
//   commands.Check();                // after an interrupt; also looks by itself, ever less often
//
// A command is looked at a few times at once (most are done within a microsecond), then by a timer
// from 1 ms to 16 ms and whenever Check is called. One that is still active after the limit, and a
// register that is all ones or cannot be read, is the end: `on_dead` is told, once, and its owner
// calls Fail.
//
// Is not: what a command means for queues (DsaHost). Ownership: borrows registers and loop.
// Threads: the loop's alone. `done` runs inside Push, Check, Fail or a timer, and may push. Source:
// Intel DSA Architecture Specification 3.0, 9.2.12 and 9.2.13.

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>

#include "devices/siov/core/backend.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/host/device_registers.h"
#include "src/base/counters.h"
#include "src/base/event_loop.h"

namespace postern::dsa {

struct CommandAnswer {
  bool lost = false;  // the device is gone: nothing is known
  dsa_regs::CommandError error = dsa_regs::CommandError::kNone;
  std::uint16_t result = 0;

  [[nodiscard]] bool good() const { return !lost && error == dsa_regs::CommandError::kNone; }
};

struct HostCommand {
  dsa_regs::Command code = dsa_regs::Command::kNone;
  siov::QueueSet queues = 0;  // on whose behalf: Drop
  // Asked for when its turn comes. Nothing: there is nothing to do any more, and that is success.
  std::function<std::optional<std::uint32_t>()> operand;
  std::function<void(const CommandAnswer&)> done;
};

class CommandQueue {
 public:
  CommandQueue(const DeviceRegisters& registers, EventLoop& loop, std::chrono::milliseconds limit,
               std::function<void(const char*)> on_dead);
  ~CommandQueue();
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  // Behind all others, or before all that have not begun.
  void Push(HostCommand command);
  void PushFront(HostCommand command);
  // Commands for these queues and no others: those that have not begun go; of one that has, the
  // answer is not told.
  void Drop(siov::QueueSet queues);
  void Check();
  // Everything is answered with `lost`, now and from now on.
  void Fail();

  [[nodiscard]] bool idle() const { return !current_.has_value() && waiting_.empty(); }
  [[nodiscard]] std::uint64_t issued() const { return issued_.Get(); }
  [[nodiscard]] std::uint64_t failed() const { return failed_.Get(); }

 private:
  using Clock = std::chrono::steady_clock;
  void Advance();
  void Issue(HostCommand command, std::uint32_t operand);
  // True: it is over.
  [[nodiscard]] bool Look();
  void Answer(const CommandAnswer& answer);
  void LookAgain();
  void Dead(const char* why);

  const DeviceRegisters registers_;
  EventLoop& loop_;
  const std::chrono::milliseconds limit_;
  const std::function<void(const char*)> on_dead_;
  std::deque<HostCommand> waiting_;
  std::optional<HostCommand> current_;
  Clock::time_point deadline_;
  std::uint64_t delay_ms_ = 1;
  std::optional<EventLoop::TimerId> timer_;
  bool advancing_ = false;
  bool dead_ = false;
  Counter issued_, failed_;  // any thread reads them
};

}  // namespace postern::dsa
