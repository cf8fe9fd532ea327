#include "devices/siov/host/command_queue.h"

#include <algorithm>
#include <utility>

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;

constexpr int kLooksAtOnce = 16;
constexpr std::uint64_t kFirstDelayMs = 1;
constexpr std::uint64_t kMaxDelayMs = 16;

}  // namespace

CommandQueue::CommandQueue(const DeviceRegisters& registers, EventLoop& loop,
                           std::chrono::milliseconds limit,
                           std::function<void(const char*)> on_dead)
    : registers_(registers), loop_(loop), limit_(limit), on_dead_(std::move(on_dead)) {}

CommandQueue::~CommandQueue() {
  if (timer_) loop_.Cancel(*timer_);
}

void CommandQueue::Push(HostCommand command) {
  waiting_.push_back(std::move(command));
  Advance();
}

void CommandQueue::PushFront(HostCommand command) {
  waiting_.push_front(std::move(command));
  Advance();
}

void CommandQueue::Drop(siov::QueueSet queues) {
  const auto only_these = [queues](const HostCommand& command) {
    return command.queues != 0 && (command.queues & ~queues) == 0;
  };
  std::erase_if(waiting_, only_these);
  if (current_ && only_these(*current_)) current_->done = [](const CommandAnswer&) {};
}

void CommandQueue::Check() {
  if (!current_) return;
  if (Look()) Advance();
}

void CommandQueue::Fail() {
  dead_ = true;
  if (timer_) loop_.Cancel(*std::exchange(timer_, std::nullopt));
  if (current_) Answer({.lost = true});
  Advance();
}

// Until one has to be waited for. A `done` that pushes comes back here: the outer call goes on.
void CommandQueue::Advance() {
  if (std::exchange(advancing_, true)) return;
  while (!current_ && !waiting_.empty()) {
    HostCommand next = std::move(waiting_.front());
    waiting_.pop_front();
    if (dead_) {
      next.done({.lost = true});
      continue;
    }
    const std::optional<std::uint32_t> operand = next.operand();
    if (!operand) {
      next.done({});
      continue;
    }
    Issue(std::move(next), *operand);
  }
  advancing_ = false;
}

void CommandQueue::Issue(HostCommand command, std::uint32_t operand) {
  regs::CMD word;
  word.Set<regs::CMD::Interrupt>(true);
  word.Set<regs::CMD::Code>(static_cast<std::uint64_t>(command.code));
  word.raw |= operand & static_cast<std::uint32_t>(regs::CMD::Operand::kMask);
  issued_.Add();
  current_ = std::move(command);
  deadline_ = Clock::now() + limit_;
  delay_ms_ = kFirstDelayMs;
  if (!registers_.Write32(regs::kCmd, word.raw)) {
    Dead("its command register cannot be written");
    return;
  }
  for (int i = 0; i < kLooksAtOnce; ++i) {
    if (Look()) return;
  }
  LookAgain();
}

bool CommandQueue::Look() {
  const Result<std::uint32_t> read = registers_.Read32(regs::kCmdstatus);
  if (!read) {
    Dead("its command status cannot be read");
    return true;
  }
  const regs::CMDSTATUS status{{*read}};
  if (status.Get<regs::CMDSTATUS::Active>()) {
    if (Clock::now() < deadline_) return false;
    Dead("it does not complete a command");
    return true;
  }
  const auto error = static_cast<regs::CommandError>(status.Get<regs::CMDSTATUS::Error>());
  if (error != regs::CommandError::kNone) failed_.Add();
  Answer({.error = error,
          .result = static_cast<std::uint16_t>(status.Get<regs::CMDSTATUS::Result>())});
  return true;
}

void CommandQueue::Answer(const CommandAnswer& answer) {
  if (timer_) loop_.Cancel(*std::exchange(timer_, std::nullopt));
  const HostCommand over = std::move(*current_);
  current_.reset();
  over.done(answer);
}

void CommandQueue::LookAgain() {
  timer_ = loop_.After(delay_ms_, [this] {
    timer_.reset();
    if (!current_) return;
    if (Look()) {
      Advance();
    } else {
      LookAgain();
    }
  });
  delay_ms_ = std::min(delay_ms_ * 2, kMaxDelayMs);
}

void CommandQueue::Dead(const char* why) {
  if (!std::exchange(dead_, true)) on_dead_(why);
  if (current_) Answer({.lost = true});
}

}  // namespace postern::dsa
