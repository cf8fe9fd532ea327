// The command register: DsaPersonality's commands, their checks and how they end.

#include "devices/siov/dsa/checks.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "src/base/check.h"
#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::CMD;
using regs::Command;
using regs::DeviceState;
using regs::QueueState;

Command CodeOf(CMD command) {
  return static_cast<Command>(command.Get<CMD::Code>());
}

// Commands that work on the queues of a bitmap.
bool IsOfQueues(Command code) {
  return code == Command::kDisableWq || code == Command::kDrainWq || code == Command::kAbortWq ||
         code == Command::kResetWq;
}

// The queues the bitmap names; checked before.
siov::QueueSet NamedQueues(CMD command) {
  return command.Get<CMD::QueueBitmap>();
}

}  // namespace

bool DsaPersonality::command_active() const {
  return registers().Get<regs::CMDSTATUS>(regs::kCmdstatus).Get<regs::CMDSTATUS::Active>();
}

CMD DsaPersonality::current_command() const {
  return registers().Get<CMD>(regs::kCmd);
}

void DsaPersonality::OnCommand(std::uint32_t written) {
  // 9.2.12: written while active, it is discarded.
  if (command_active()) {
    RecordError(regs::SoftwareError::kCommandWhileActive, std::nullopt);
    return;
  }
  ++epoch_;
  registers().file().Set(regs::kCmd, written);
  const CMD command{{written}};
  commands_[command.Get<CMD::Code>()].Add();
  const MaybeAnswer answer = Begin(command);
  if (answer.has_value()) Complete(*answer);
}

DsaPersonality::CommandError DsaPersonality::CheckCommand(CMD command) const {
  const std::uint64_t code = command.Get<CMD::Code>();
  const std::uint64_t supported =
      regs::kBasicCommands | (shape_.handles ? regs::kHandleCommands : 0);
  if ((supported >> code & 1) == 0) return CommandError::kUnsupported;
  if (command.Get<CMD::Reserved>() != 0) return CommandError::kReserved;
  if (const CommandError error = CheckOperand(command); error != CommandError::kNone) return error;
  if (lost_) return CommandError::kHardware;
  const auto status = registers().Get<regs::GENSTS>(regs::kGensts);
  if (status.Get<regs::GENSTS::State>() != DeviceState::kHalted) return CommandError::kNone;
  // 9.2.10: Reset Device recovers where a software reset is enough.
  const bool recovers = CodeOf(command) == Command::kResetDevice &&
                        status.Get<regs::GENSTS::ResetRequired>() == regs::ResetType::kSoftware;
  return recovers ? CommandError::kNone : CommandError::kHalted;
}

// 9.2.12 leaves checking reserved operands to the implementation. Those of commands without an
// operand are not checked: DPDK leaves its queue's number in them.
DsaPersonality::CommandError DsaPersonality::CheckOperand(CMD command) const {
  const Command code = CodeOf(command);
  if (code == Command::kEnableWq) {
    if (command.Get<CMD::QueueReserved>() != 0) return CommandError::kReserved;
    return command.Get<CMD::Queue>() < shape_.wqs ? CommandError::kNone : CommandError::kBadQueue;
  }
  if (IsOfQueues(code)) {
    const bool beyond =
        command.Get<CMD::QueueGroup>() != 0 || command.Get<CMD::QueueBitmap>() >> shape_.wqs != 0;
    return beyond ? CommandError::kBadQueue : CommandError::kNone;
  }
  if (code == Command::kRequestHandle || code == Command::kReleaseHandle)
    return command.Get<CMD::HandleReserved>() != 0 ? CommandError::kReserved : CommandError::kNone;
  return CommandError::kNone;
}

DsaPersonality::MaybeAnswer DsaPersonality::Begin(CMD command) {
  if (const CommandError error = CheckCommand(command); error != CommandError::kNone)
    return Answer{error};
  const DsaRegisters device = registers();
  switch (CodeOf(command)) {
    case Command::kEnableDevice:
      return EnableDevice();
    case Command::kEnableWq:
      return EnableQueue(static_cast<std::uint32_t>(command.Get<CMD::Queue>()));
    case Command::kRequestHandle:
      return RequestHandle(command);
    case Command::kReleaseHandle:
      return ReleaseHandle(command);
    case Command::kDisableDevice:
      if (device.device_state() != DeviceState::kEnabled) return Answer{CommandError::kNotEnabled};
      break;
    case Command::kDisableWq:
    case Command::kDrainWq:
    case Command::kAbortWq:
      if ((NamedQueues(command) & ~device.QueuesIn(QueueState::kEnabled)) != 0)
        return Answer{CommandError::kQueueNotEnabled};
      break;
    default:
      break;  // the others always proceed
  }
  Proceed();
  return std::nullopt;
}

DsaPersonality::Answer DsaPersonality::EnableDevice() {
  DsaRegisters device = registers();
  if (device.device_state() != DeviceState::kDisabled) return {CommandError::kDeviceNotDisabled};
  if (!port_->bus_master()) return {CommandError::kBusMaster};
  if (const CommandError error = CheckDevice(device); error != CommandError::kNone) return {error};
  if (const auto started = port_->backend().Start(DeviceConfigOf(device)); !started.has_value()) {
    GUEST_LOG("dsa", "cannot start the back end: {}", Describe(started.error()));
    return {started.error().code == Errc::kUnsupported ? CommandError::kConfiguration
                                                       : CommandError::kHardware};
  }
  device.SetDeviceState(DeviceState::kEnabled);
  // 5.1: an enabled event log begins anew.
  if (device.Get<regs::GENCFG>(regs::kGencfg).Get<regs::GENCFG::EventLogEnable>())
    device.file().Set(regs::kEvlstatus, 0);
  return {};
}

DsaPersonality::Answer DsaPersonality::EnableQueue(std::uint32_t queue) {
  DsaRegisters device = registers();
  if (device.device_state() != DeviceState::kEnabled) return {CommandError::kDeviceNotEnabled};
  if (device.queue_state(queue) != QueueState::kDisabled) return {CommandError::kQueueNotDisabled};
  if (const CommandError error = CheckQueue(device, queue); error != CommandError::kNone)
    return {error};
  const auto enabled = port_->backend().Enable(queue, QueueConfigOf(device, queue));
  if (!enabled.has_value()) {
    GUEST_LOG("dsa", "cannot enable queue {}: {}", queue, Describe(enabled.error()));
    return {CommandError::kHardware};
  }
  device.SetQueueStates(siov::QueueSet{1} << queue, QueueState::kEnabled);
  return {};
}

bool DsaPersonality::CommandWaits(CMD command) {
  const Command code = CodeOf(command);
  return IsOfQueues(code) || code == Command::kDisableDevice || code == Command::kDrainAll ||
         code == Command::kAbortAll || code == Command::kResetDevice ||
         code == Command::kDrainPasid || code == Command::kAbortPasid;
}

// Those of the command's queues that the back end has enabled.
siov::QueueSet DsaPersonality::AffectedQueues(CMD command) const {
  const siov::QueueSet active = registers().active_queues();
  return IsOfQueues(CodeOf(command)) ? active & NamedQueues(command) : active;
}

void DsaPersonality::MarkDraining(CMD command, siov::QueueSet queues) {
  DsaRegisters device = registers();
  const Command code = CodeOf(command);
  const bool of_device = code == Command::kDisableDevice || code == Command::kResetDevice;
  if (!of_device && code != Command::kDisableWq && code != Command::kResetWq) return;
  // 9.2.10, 9.2.24: state 2 while disabling or resetting.
  device.SetQueueStates(queues, QueueState::kDraining);
  if (of_device && device.device_state() == DeviceState::kEnabled)
    device.SetDeviceState(DeviceState::kDraining);
}

void DsaPersonality::Proceed() {
  const CMD command = current_command();
  const siov::QueueSet queues = AffectedQueues(command);
  regs::CMDSTATUS status;
  status.Set<regs::CMDSTATUS::Active>(true);
  registers().file().Set(regs::kCmdstatus, status.raw);
  MarkDraining(command, queues);
  if (queues == 0) {
    Finish();
    return;
  }
  siov::Backend& backend = port_->backend();
  const auto finish = [this] { Finish(); };
  switch (CodeOf(command)) {
    case Command::kDisableDevice:
    case Command::kDisableWq:
      backend.Disable(queues, Then(finish));
      return;
    case Command::kAbortAll:
    case Command::kAbortWq:
      backend.Abort(queues, Then(finish));
      return;
    case Command::kResetDevice:
    case Command::kResetWq:
      // 3.15: abandon what is queued, wait for what is in flight, take nothing any more.
      backend.Abort(
          queues, Then([this, queues, finish] { port_->backend().Disable(queues, Then(finish)); }));
      return;
    default:
      // Drains. Those of a PASID too: a drain may wait for other descriptors as well, and an abort
      // may complete what it could abandon.
      backend.Drain(queues, Then(finish));
  }
}

siov::Done DsaPersonality::Then(std::function<void()> next) {
  return port_->Later([this, epoch = epoch_, next = std::move(next)](siov::HaltResult result) {
    if (epoch != epoch_) return;
    if (result == siov::HaltResult::kLost) {
      OnLost();
    } else {
      next();
    }
  });
}

void DsaPersonality::Finish() {
  DsaRegisters device = registers();
  const CMD command = current_command();
  switch (CodeOf(command)) {
    case Command::kDisableWq:
      device.SetQueueStates(NamedQueues(command), QueueState::kDisabled);
      break;
    case Command::kResetWq:
      for (std::uint32_t queue = 0; queue < shape_.wqs; ++queue) {
        if ((NamedQueues(command) >> queue & 1) != 0) device.ResetQueue(queue);
      }
      break;
    case Command::kDisableDevice:
      device.SetQueueStates(device.active_queues(), QueueState::kDisabled);
      port_->backend().Stop();
      device.SetDeviceState(DeviceState::kDisabled);
      break;
    case Command::kResetDevice:
      FinishResetDevice();
      return;
    default:
      break;
  }
  Complete({});
}

void DsaPersonality::FinishResetDevice() {
  DsaRegisters device = registers();
  // A halted device was stopped when it halted.
  if (device.device_state() == DeviceState::kDraining) port_->backend().Stop();
  device.ResetDevice();
  held_causes_ = 0;
  const bool had_handles = DropHandles();
  Complete({});
  if (had_handles) RaiseCause(regs::INTCAUSE::HandlesRevoked::kMask);
}

void DsaPersonality::Complete(Answer answer) {
  // Linux compares the whole register with 0.
  regs::CMDSTATUS status;
  status.Set<regs::CMDSTATUS::Error>(static_cast<std::uint64_t>(answer.error));
  status.Set<regs::CMDSTATUS::Result>(answer.result);
  registers().file().Set(regs::kCmdstatus, status.raw);
  const CMD command = current_command();
  if (answer.error != CommandError::kNone) {
    command_errors_[static_cast<std::size_t>(answer.error)].Add();
    GUEST_LOG("dsa", "command {:#x} ends with error {:#04x}", command.raw,
              static_cast<unsigned>(answer.error));
  }
  // Only for commands that ask: Linux follows a null pointer for any other.
  if (command.Get<CMD::Interrupt>()) RaiseCause(regs::INTCAUSE::Command::kMask);
}

}  // namespace postern::dsa
