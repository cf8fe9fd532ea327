// DsaHost: its queues, and what the device says by itself.

#include "devices/siov/host/dsa_host.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "devices/pci/pci_regs.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/host/rendezvous.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::Command;
using regs::CommandError;

constexpr const char* kLog = "siov";
constexpr std::uint16_t kBusMaster = 0x4;
constexpr std::uint32_t kDefaultSize = 32;
constexpr std::uint32_t kMaxPasid = 0xfffff;
// A device that takes handles back as fast as it gives them holds nobody up.
constexpr int kHandleTries = 3;
// A command names queues of one group of 16.
constexpr std::uint32_t kQueuesPerCommand = 16;
constexpr siov::QueueSet kOneGroup = 0xffff;

Unexpected Gone() {
  return SysError("the host's DSA", ENODEV);
}

template <typename F>
void ForEach(siov::QueueSet queues, F&& f) {
  for (; queues != 0; queues &= queues - 1) f(static_cast<std::uint32_t>(std::countr_zero(queues)));
}

Command CodeOf(QueueHalt kind) {
  switch (kind) {
    case QueueHalt::kDisable:
      return Command::kDisableWq;
    case QueueHalt::kAbort:
      return Command::kAbortWq;
    case QueueHalt::kDrain:
      break;
  }
  return Command::kDrainWq;
}

}  // namespace

// --- leases ---

Result<HostLease> DsaHost::Reserve(const HostRequest& request, QueueOwner& owner) {
  Result<HostLease> lease = Err(Errc::kBadState, "");
  loop_->RunSync([&] { lease = Plan(request, owner); });
  return lease;
}

Result<HostLease> DsaHost::Plan(const HostRequest& request, QueueOwner& owner) {
  if (lost()) return Gone();
  if (request.pasid && (!options_.pasids || *request.pasid == 0 || *request.pasid > kMaxPasid))
    return Err(Errc::kUnsupported, "PASID of a queue");
  if (request.queues == 0) return Err(Errc::kInvalidArgument, "number of queues");
  const bool fixed = phase_ != Phase::kPlanning || !caps_.configurable;
  HostLease lease;
  std::uint32_t used = 0;
  for (const Queue& queue : queues_) used += queue.size;
  lease.size = request.size;
  if (request.size == 0 && !fixed)
    lease.size = std::min(kDefaultSize, (caps_.entries - used) / request.queues);
  if (!fixed && (lease.size == 0 || lease.size > caps_.entries ||
                 std::uint64_t{lease.size} * request.queues > caps_.entries - used))
    return Err(Errc::kExhausted, "entries of the host's DSA");
  for (std::uint32_t i = 0; i < queues_.size() && lease.queues.size() < request.queues; ++i) {
    const Queue& queue = queues_[i];
    if (queue.owner != nullptr || (fixed && (queue.size == 0 || queue.size < request.size)))
      continue;
    lease.queues.push_back(i);
  }
  if (lease.queues.size() < request.queues)
    return Err(Errc::kExhausted, "queues of the host's DSA");
  for (std::uint32_t i = 0; i < lease.queues.size(); ++i) {
    Queue& queue = queues_[lease.queues[i]];
    if (!fixed) queue.size = lease.size;
    queue.owner = &owner;
    queue.owners_number = i;
    queue.pasid = request.pasid;
    if (fixed) lease.size = i == 0 ? queue.size : std::min(lease.size, queue.size);
  }
  if (request.size != 0) lease.size = request.size;
  return lease;
}

void DsaHost::Release(const HostLease& lease) {
  siov::QueueSet queues = 0;
  for (const std::uint32_t queue : lease.queues) queues |= siov::QueueSet{1} << queue;
  Reset(queues);
  loop_->RunSync([&] {
    ForEach(queues, [&](std::uint32_t i) {
      queues_[i].owner = nullptr;
      queues_[i].pasid.reset();
      // Until the device runs, what was planned for it is free again.
      if (phase_ == Phase::kPlanning && caps_.configurable) queues_[i].size = 0;
      if (!handles_[i + 1]) return;
      const std::uint16_t vector = static_cast<std::uint16_t>(i + 1);
      handles_[vector].reset();
      commands_->Push({.code = Command::kReleaseHandle,
                       .queues = 0,
                       .operand = [vector] { return std::optional<std::uint32_t>(vector); },
                       .done = [](const CommandAnswer&) {}});
    });
  });
}

// --- the device ---

Result<void> DsaHost::Start() {
  Rendezvous<Result<void>> answer;
  loop_->Post([&] { DoStart([&answer](const Result<void>& done) { answer.Give(done); }); });
  return answer.Wait();
}

void DsaHost::DoStart(Started started) {
  if (lost()) return started(Gone());
  if (phase_ == Phase::kStarted) return started({});
  waiting_for_start_.push_back(std::move(started));
  if (phase_ == Phase::kStarting) return;
  phase_ = Phase::kStarting;
  PlanTheRest();
  if (const Result<void> configured = Configure(); !configured) {
    Lose("its configuration cannot be written");
    OnStarted({.lost = true});
    return;
  }
  commands_->Push({.code = Command::kEnableDevice,
                   .queues = 0,
                   .operand = [] { return std::optional<std::uint32_t>(0); },
                   .done = [this](const CommandAnswer& answer) { OnStarted(answer); }});
}

void DsaHost::OnStarted(const CommandAnswer& answer) {
  phase_ = answer.good() ? Phase::kStarted : Phase::kPlanning;
  Result<void> result;
  if (answer.lost) {
    result = Gone();
  } else if (!answer.good()) {
    LOG_ERROR(kLog, "{}: enabling the device ends with error {:#04x}", device_->info().name,
              static_cast<unsigned>(answer.error));
    result = SysError("enabling the host's DSA", EIO);
  }
  for (const Started& started : std::exchange(waiting_for_start_, {})) started(result);
}

// --- queues ---

Result<void> DsaHost::EnableQueue(std::uint32_t queue, const siov::QueueConfig& config) {
  if (queue >= caps_.queues) return Err(Errc::kInvalidArgument, "queue of the host's DSA");
  Rendezvous<Result<void>> answer;
  loop_->Post(
      [&] { DoEnable(queue, config, [&answer](const Result<void>& done) { answer.Give(done); }); });
  return answer.Wait();
}

void DsaHost::DoEnable(std::uint32_t queue, const siov::QueueConfig& config, Started enabled) {
  if (lost()) return enabled(Gone());
  if (phase_ != Phase::kStarted || queues_[queue].enabled)
    return enabled(Err(Errc::kBadState, "enabling a queue of the host's DSA"));
  if (config.size == 0 || config.size > queues_[queue].size)
    return enabled(Err(Errc::kInvalidArgument, "size of a queue of the host's DSA"));
  if (const Result<void> written = ConfigureQueue(queue, config); !written) {
    Lose("its configuration cannot be written");
    return enabled(Gone());
  }
  commands_->Push({.code = Command::kEnableWq,
                   .queues = siov::QueueSet{1} << queue,
                   .operand = [queue] { return std::optional(queue); },
                   .done =
                       [this, queue, enabled = std::move(enabled)](const CommandAnswer& answer) {
                         queues_[queue].enabled =
                             answer.good() || answer.error == CommandError::kQueueNotDisabled;
                         if (answer.good()) return enabled({});
                         if (answer.lost) return enabled(Gone());
                         LOG_WARN(kLog, "{}: enabling queue {} ends with error {:#04x}",
                                  device_->info().name, queue, static_cast<unsigned>(answer.error));
                         enabled(SysError("enabling a queue of the host's DSA", EIO));
                       }});
}

siov::QueueSet DsaHost::enabled_queues() const {
  siov::QueueSet enabled = 0;
  for (std::uint32_t i = 0; i < queues_.size(); ++i)
    enabled |= queues_[i].enabled ? siov::QueueSet{1} << i : 0;
  return enabled;
}

// Those of the queues, all of one group of 16, that are enabled when the command's turn comes: the
// device refuses the whole command for one that is not (9.2.13, error 0x32).
HostCommand DsaHost::QueueCommand(Command code, siov::QueueSet queues) const {
  HostCommand command;
  command.code = code;
  command.queues = queues;
  command.operand = [this, queues]() -> std::optional<std::uint32_t> {
    const siov::QueueSet now = queues & enabled_queues();
    if (now == 0) return std::nullopt;
    const auto group = static_cast<std::uint32_t>(std::countr_zero(queues)) / kQueuesPerCommand;
    return static_cast<std::uint32_t>(now >> (group * kQueuesPerCommand)) | group << 16;
  };
  return command;
}

void DsaHost::Halt(QueueHalt kind, siov::QueueSet queues, siov::Done done) {
  loop_->Post([this, kind, queues, done = std::move(done)]() mutable {
    DoHalt(kind, queues, std::move(done));
  });
}

void DsaHost::DoHalt(QueueHalt kind, siov::QueueSet queues, siov::Done done) {
  queues &= caps_.queues == siov::kMaxQueues ? ~siov::QueueSet{0}
                                             : (siov::QueueSet{1} << caps_.queues) - 1;
  if (queues == 0) return done(lost() ? siov::HaltResult::kLost : siov::HaltResult::kDone);
  // The group after the first waits for it: `done` runs after the last.
  const auto group = static_cast<std::uint32_t>(std::countr_zero(queues)) / kQueuesPerCommand;
  const siov::QueueSet first = queues & kOneGroup << (group * kQueuesPerCommand);
  HostCommand command = QueueCommand(CodeOf(kind), first);
  command.done = [this, kind, first, rest = queues & ~first,
                  done = std::move(done)](const CommandAnswer& answer) {
    if (answer.lost) return done(siov::HaltResult::kLost);
    // Already disabled counts as drained; anything else is a queue that nobody can stop.
    if (!answer.good() && answer.error != CommandError::kQueueNotEnabled) {
      Lose("it does not stop a queue");
      return done(siov::HaltResult::kLost);
    }
    if (kind == QueueHalt::kDisable)
      ForEach(first, [this](std::uint32_t i) { queues_[i].enabled = false; });
    if (rest == 0) return done(siov::HaltResult::kDone);
    DoHalt(kind, rest, done);
  };
  commands_->Push(std::move(command));
}

siov::HaltResult DsaHost::DrainNow(siov::QueueSet queues) {
  Rendezvous<siov::HaltResult> answer;
  Halt(QueueHalt::kDrain, queues, [&answer](siov::HaltResult result) { answer.Give(result); });
  return answer.Wait();
}

void DsaHost::Reset(siov::QueueSet queues) {
  Rendezvous<bool> answer;
  loop_->Post([&] {
    commands_->Drop(queues);
    DoReset(queues, [&answer] { answer.Give(true); });
  });
  (void)answer.Wait();
}

// Before all that waits: it is what ends a guest's hold on the device.
void DsaHost::DoReset(siov::QueueSet queues, std::function<void()> done) {
  if (queues == 0) return done();
  const auto group = static_cast<std::uint32_t>(std::countr_zero(queues)) / kQueuesPerCommand;
  const siov::QueueSet first = queues & kOneGroup << (group * kQueuesPerCommand);
  HostCommand reset = QueueCommand(Command::kResetWq, first);
  reset.done = [this, first, rest = queues & ~first,
                done = std::move(done)](const CommandAnswer& answer) {
    if (!answer.good() && !answer.lost) Lose("it does not reset a queue");
    ForEach(first, [this](std::uint32_t i) { queues_[i].enabled = false; });
    DoReset(rest, done);
  };
  HostCommand abort = QueueCommand(Command::kAbortWq, first);
  // Whatever becomes of it: what matters is the reset.
  abort.done = [this, reset = std::move(reset)](const CommandAnswer&) {
    commands_->PushFront(reset);
  };
  resets_.Add();
  commands_->PushFront(std::move(abort));
}

// --- interrupts ---

Result<std::uint32_t> DsaHost::Handle(std::uint16_t vector) {
  if (vector == 0 || vector > caps_.queues)
    return Err(Errc::kInvalidArgument, "vector of the host's DSA");
  if (!caps_.handles) return vector;
  Rendezvous<Result<std::uint32_t>> answer;
  loop_->Post([&] {
    DoHandle(vector, kHandleTries,
             [&answer](const Result<std::uint32_t>& handle) { answer.Give(handle); });
  });
  return answer.Wait();
}

void DsaHost::DoHandle(std::uint16_t vector, int tries,
                       std::function<void(const Result<std::uint32_t>&)> done) {
  if (lost()) return done(Gone());
  if (handles_[vector]) return done(*handles_[vector]);
  commands_->Push({.code = Command::kRequestHandle,
                   .queues = 0,
                   .operand = [vector] { return std::optional<std::uint32_t>(vector); },
                   .done =
                       [this, vector, tries, age = handles_age_,
                        done = std::move(done)](const CommandAnswer& answer) {
                         if (answer.lost) return done(Gone());
                         // Taken back while it was asked for: nobody knows which came first.
                         const bool stale = age != handles_age_;
                         if (answer.good() && stale && tries > 1)
                           return DoHandle(vector, tries - 1, done);
                         if (!answer.good() || stale)
                           return done(Err(Errc::kExhausted, "interrupt handle of the host's DSA"));
                         handles_[vector] = answer.result;
                         done(answer.result);
                       }});
}

Result<void> DsaHost::SetVector(std::uint16_t vector, int event) {
  if (vector == 0 || vector > caps_.queues)
    return Err(Errc::kInvalidArgument, "vector of the host's DSA");
  return device_->SetVectors(vfio::kMsixIrq, vector, std::span<const int>(&event, 1));
}

std::uint32_t DsaHost::Occupancy(std::uint32_t queue) const {
  if (queue >= caps_.queues || lost()) return 0;
  const Result<std::uint32_t> status = registers_.Read32(caps_.OfQueue(queue, regs::kWqStatus));
  if (!status) return 0;
  return static_cast<std::uint32_t>(regs::WQSTATUS{{*status}}.Get<regs::WQSTATUS::Occupancy>());
}

void DsaHost::OnInterrupt() {
  if (lost()) return;
  interrupts_.Add();
  const Result<std::uint32_t> read = registers_.Read32(regs::kIntcause);
  if (!read) return Lose("its interrupt cause cannot be read");
  const regs::INTCAUSE cause{{*read}};
  if (cause.raw == 0) {
    // A guest can name this vector in a descriptor.
    spurious_.Add();
    return commands_->Check();
  }
  if (!registers_.Write32(regs::kIntcause, cause.raw))
    return Lose("its interrupt cause cannot be written");
  if (cause.Get<regs::INTCAUSE::SwError>()) OnError();
  if (cause.Get<regs::INTCAUSE::HandlesRevoked>()) {
    handles_revoked_.Add();
    GUEST_LOG(kLog, "{}: it took its interrupt handles back", device_->info().name);
    ++handles_age_;
    std::ranges::fill(handles_, std::nullopt);
    ForEachOwner(&QueueOwner::OnHandlesRevoked);
  }
  if (cause.Get<regs::INTCAUSE::Halt>()) return Lose("it halted");
  commands_->Check();
}

// 9.2.15: to the owner of the queue it names. The PASID is the host's business.
void DsaHost::OnError() {
  std::array<std::uint64_t, 4> words{};
  for (std::uint32_t i = 0; i < words.size(); ++i) {
    const Result<std::uint64_t> word = registers_.ReadRaw64(regs::kSwerror + 8 * i);
    if (!word) return Lose("its error register cannot be read");
    words[i] = *word;
  }
  regs::SWERROR0 record{{words[0]}};
  if (!record.Get<regs::SWERROR0::Valid>()) return;
  constexpr std::uint64_t kOverflow = regs::SWERROR0::Overflow::kMask;
  constexpr std::uint64_t kClear = regs::SWERROR0::Valid::kMask | kOverflow;
  if (!registers_.Write64(regs::kSwerror, words[0] & kClear))
    return Lose("its error register cannot be written");
  // One that came between the reading and the clearing has left this bit, and no interrupt.
  const Result<std::uint64_t> after = registers_.ReadRaw64(regs::kSwerror);
  if (!after) return Lose("its error register cannot be read");
  if ((*after & kClear) == kOverflow) {
    (void)registers_.Write64(regs::kSwerror, kOverflow);
    record.Set<regs::SWERROR0::Overflow>(true);
  }
  if (record.Get<regs::SWERROR0::Overflow>()) error_overflows_.Add();
  const auto queue = static_cast<std::uint32_t>(record.Get<regs::SWERROR0::Queue>());
  QueueOwner* const owner = record.Get<regs::SWERROR0::QueueValid>() && queue < queues_.size()
                                ? queues_[queue].owner
                                : nullptr;
  if (owner == nullptr) {
    errors_of_nobody_.Add();
    GUEST_LOG(kLog, "{}: software error {:#04x} of no queue in use", device_->info().name,
              record.Get<regs::SWERROR0::Code>());
    return;
  }
  errors_routed_.Add();
  record.Set<regs::SWERROR0::Pasid>(0);
  words[0] = record.raw;
  owner->OnQueueError(queues_[queue].owners_number, words);
}

// Each once, however many queues it has.
void DsaHost::ForEachOwner(void (QueueOwner::*tell)()) {
  std::vector<QueueOwner*> told;
  for (const Queue& queue : queues_) {
    if (queue.owner == nullptr || std::ranges::find(told, queue.owner) != told.end()) continue;
    told.push_back(queue.owner);
    (queue.owner->*tell)();
  }
}

void DsaHost::Lose(const char* why) {
  if (lost_.exchange(true, std::memory_order_acq_rel)) return;
  losses_.Add();
  LOG_ERROR(kLog, "{}: the DSA is lost: {}", device_->info().name, why);
  // Whatever it may still have in flight reaches nobody's memory.
  if (const Result<std::uint16_t> command = registers_.Config16(pci::kCommand);
      command && *command != 0xffff) {
    (void)registers_.SetConfig16(pci::kCommand, static_cast<std::uint16_t>(*command & ~kBusMaster));
  }
  ForEachOwner(&QueueOwner::OnHostLost);
  commands_->Fail();
}

void DsaHost::ReportCounters(CounterSink& sink) const {
  sink.Add("host_commands", commands_->issued());
  sink.Add("host_command_errors", commands_->failed());
  sink.Add("host_interrupts", interrupts_.Get());
  sink.Add("host_interrupts_spurious", spurious_.Get());
  sink.Add("host_errors_routed", errors_routed_.Get());
  sink.Add("host_errors_of_nobody", errors_of_nobody_.Get());
  sink.Add("host_error_overflows", error_overflows_.Get());
  sink.Add("host_handles_revoked", handles_revoked_.Get());
  sink.Add("host_queue_resets", resets_.Get());
  sink.Add("host_losses", losses_.Get());
}

}  // namespace postern::dsa
