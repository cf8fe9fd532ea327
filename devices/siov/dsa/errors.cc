// DsaPersonality's error register, halt state and interrupt causes.

#include "devices/siov/dsa/dsa_personality.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::DeviceState;
using regs::SWERROR0;

constexpr auto kHaltCause = static_cast<std::uint32_t>(regs::INTCAUSE::Halt::kMask);
constexpr auto kCommandCause = static_cast<std::uint32_t>(regs::INTCAUSE::Command::kMask);

SWERROR0 ErrorOf(regs::SoftwareError code) {
  SWERROR0 record;
  record.Set<SWERROR0::Valid>(true);
  record.Set<SWERROR0::Code>(static_cast<std::uint64_t>(code));
  return record;
}

}  // namespace

// 9.2.11. Linux, told of a halt, looks at no other cause it read together with it: a command's
// would be lost and its thread wait for ever. So a halt and the end of a command are never shown at
// once; the second waits until the guest has cleared the first.
void DsaPersonality::RaiseCause(std::uint32_t cause) {
  bus::RegisterFile& file = port_->registers();
  const auto shown = static_cast<std::uint32_t>(file.Get(regs::kIntcause));
  const bool waits = ((cause & kHaltCause) != 0 && (shown & kCommandCause) != 0) ||
                     ((cause & kCommandCause) != 0 && (shown & kHaltCause) != 0);
  if (waits) {
    held_causes_ |= cause;
    return;
  }
  file.Set(regs::kIntcause, shown | cause);
  port_->Trigger(0);
}

void DsaPersonality::OnCauseWritten(std::uint32_t now) {
  if (held_causes_ == 0 || (now & (kHaltCause | kCommandCause)) != 0) return;
  const std::uint32_t cause = held_causes_;
  held_causes_ = 0;
  RaiseCause(cause);
}

// 9.2.15: one error at a time; those after it leave only Overflow.
std::uint32_t DsaPersonality::StoreError(const std::array<std::uint64_t, 4>& words) {
  DsaRegisters device = registers();
  const SWERROR0 record{{words[0]}};
  software_errors_[record.Get<SWERROR0::Code>()].Add();
  GUEST_LOG("dsa", "software error {:#04x}: {:#x} {:#x} {:#x}", record.Get<SWERROR0::Code>(),
            words[0], words[1], words[2]);
  auto stored = device.Get<SWERROR0>(regs::kSwerror);
  if (stored.Get<SWERROR0::Valid>()) {
    stored.Set<SWERROR0::Overflow>(true);
    device.file().Set(regs::kSwerror, stored.raw);
    error_overflows_.Add();
    return 0;
  }
  if (record.Get<SWERROR0::Overflow>()) error_overflows_.Add();
  // An overflow the guest has not cleared yet stays.
  device.file().Set(regs::kSwerror, words[0] | (stored.raw & SWERROR0::Overflow::kMask));
  for (std::uint32_t i = 1; i < words.size(); ++i)
    device.file().Set(regs::kSwerror + 8 * i, words[i]);
  return device.Get<regs::GENCTRL>(regs::kGenctrl).Get<regs::GENCTRL::SwErrorInterrupt>()
             ? static_cast<std::uint32_t>(regs::INTCAUSE::SwError::kMask)
             : 0;
}

void DsaPersonality::RecordError(const std::array<std::uint64_t, 4>& words) {
  if (const std::uint32_t cause = StoreError(words); cause != 0) RaiseCause(cause);
}

void DsaPersonality::RecordError(regs::SoftwareError code, std::optional<std::uint32_t> queue) {
  SWERROR0 record = ErrorOf(code);
  if (queue.has_value() && *queue < shape_.wqs) {
    record.Set<SWERROR0::QueueValid>(true);
    record.Set<SWERROR0::Queue>(*queue);
  }
  RecordError({record.raw, 0, 0, 0});
}

// The words are SWERROR's, from whoever ran the descriptor, with Overflow where a host's device had
// no room for more. The queue is ours: Linux looks it up in a table without a check.
void DsaPersonality::OnError(const siov::ErrorRecord& error) {
  SWERROR0 record{{error.words[0] & ~(SWERROR0::Unused::kMask | SWERROR0::Unused2::kMask)}};
  const bool known = error.queue < shape_.wqs;
  record.Set<SWERROR0::Valid>(true);
  record.Set<SWERROR0::QueueValid>(known);
  record.Set<SWERROR0::Queue>(known ? error.queue : 0);
  RecordError({record.raw, error.words[1], error.words[2], error.words[3]});
}

// 5.3, 5.8.2: a full dedicated queue is an error, a disabled one is silent.
void DsaPersonality::OnRefused(std::uint32_t queue, siov::SubmitResult why) {
  switch (why) {
    case siov::SubmitResult::kAccepted:
      return;
    case siov::SubmitResult::kDisabled:
      refused_disabled_.Add();
      return;
    case siov::SubmitResult::kFull:
      refused_full_.Add();
      RecordError(regs::SoftwareError::kQueueOverflow, queue);
  }
}

// 5.7, table 5-7: an unsupported change of configuration while the device is not disabled.
void DsaPersonality::OnBusMaster(bool on) {
  const DeviceState state = registers().device_state();
  if (on || (state != DeviceState::kEnabled && state != DeviceState::kDraining)) return;
  ++epoch_;
  handles_void_ = DropHandles();
  // Nothing of ours reaches memory from here on.
  port_->backend().Reset();
  const SWERROR0 record = ErrorOf(regs::SoftwareError::kConfigChanged);
  Halt(regs::ResetType::kSoftware, StoreError({record.raw, 0, 0, 0}));
}

void DsaPersonality::OnLost() {
  if (lost_) return;
  lost_ = true;
  ++epoch_;
  handles_void_ = DropHandles();
  Halt(regs::ResetType::kCold, 0);
}

void DsaPersonality::Halt(regs::ResetType required, std::uint32_t cause) {
  DsaRegisters device = registers();
  halts_.Add();
  GUEST_LOG("dsa", "halted: reset type {} needed", static_cast<unsigned>(required));
  device.SetQueueStates(device.active_queues(), regs::QueueState::kDisabled);
  device.SetDeviceState(DeviceState::kHalted, required);
  if (command_active()) Complete({CommandError::kHardware});
  // 5.7: the interrupt, if enabled.
  if (device.Get<regs::GENCTRL>(regs::kGenctrl).Get<regs::GENCTRL::HaltInterrupt>())
    cause |= kHaltCause;
  if (cause != 0) RaiseCause(cause);
}

}  // namespace postern::dsa
