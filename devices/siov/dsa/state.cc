// DsaPersonality's saved state. Nearly all of it is in the registers; the words are causes that are
// held back, whether handles became void, and the handle of each vector.

#include <algorithm>

#include "devices/siov/dsa/checks.h"
#include "devices/siov/dsa/dsa_personality.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::CMD;
using regs::Command;
using regs::DeviceState;
using regs::QueueState;

constexpr std::uint64_t kHandleOpen = std::uint64_t{1} << 16;
constexpr std::uint64_t kHandleMask = 0xffff;
constexpr std::size_t kWordsBefore = 2;
constexpr std::uint64_t kHoldable =
    regs::INTCAUSE::Halt::kMask | regs::INTCAUSE::Command::kMask | regs::INTCAUSE::SwError::kMask;

// Bits of a row that can differ from its reset value without a guest having written them.
std::uint64_t SetByDevice(std::uint32_t offset, const DsaShape& shape) {
  switch (offset) {
    case regs::kGensts:
      return regs::GENSTS::State::kMask | regs::GENSTS::ResetRequired::kMask;
    case regs::kCmd:
      return 0xffff'ffff;
    case regs::kCmdstatus:
      return regs::CMDSTATUS::Active::kMask | regs::CMDSTATUS::Result::kMask |
             regs::CMDSTATUS::Error::kMask;
    case regs::kSwerror:
      return ~(regs::SWERROR0::Unused::kMask | regs::SWERROR0::Unused2::kMask);
    case regs::kSwerror + 8:
    case regs::kSwerror + 16:
    case regs::kSwerror + 24:
      return regs::kAll;
    default:
      break;
  }
  const bool status =
      offset >= regs::kWqcfg && (offset - regs::kWqcfg) % shape.wqcfg_bytes() == regs::kWqStatus;
  return status ? regs::WQSTATUS::State::kMask : 0;
}

Result<void> Bad(const char* what) {
  return Err(Errc::kBadFormat, what);
}

}  // namespace

siov::PersonalityState DsaPersonality::Save() const {
  siov::PersonalityState state;
  state.words = {held_causes_, handles_void_ ? 1U : 0U};
  for (const std::optional<std::uint32_t>& handle : handles_)
    state.words.push_back(handle.has_value() ? kHandleOpen | *handle : 0);
  return state;
}

// A capability of another device, or a bit that no guest could set.
Result<void> DsaPersonality::CheckRows() const {
  const DsaRegisters device = registers();
  for (const bus::RegisterRow& row : table_.rows()) {
    const std::uint64_t free = row.writable | row.w1c | SetByDevice(row.offset, shape_);
    if (((device.file().Get(row.offset) ^ row.reset) & ~free) != 0)
      return Bad("dsa state: a read-only register differs");
  }
  const auto error = device.Get<regs::SWERROR0>(regs::kSwerror);
  if (error.Get<regs::SWERROR0::Queue>() >= shape_.wqs) return Bad("dsa state: SWERROR's queue");
  return {};
}

// That device, queues and command fit each other, and that what is enabled passed its checks.
Result<void> DsaPersonality::CheckStates() const {
  const DsaRegisters device = registers();
  const auto status = device.Get<regs::GENSTS>(regs::kGensts);
  const DeviceState state = device.device_state();
  const bool running = state == DeviceState::kEnabled || state == DeviceState::kDraining;
  if (state != DeviceState::kHalted &&
      status.Get<regs::GENSTS::ResetRequired>() != regs::ResetType::kSoftware)
    return Bad("dsa state: GENSTS");
  if (running && (!port_->bus_master() || CheckDevice(device) != CommandError::kNone))
    return Bad("dsa state: an enabled device that could not be");
  const siov::QueueSet active = device.active_queues();
  if ((active | device.QueuesIn(QueueState::kDisabled)) != (siov::QueueSet{1} << shape_.wqs) - 1)
    return Bad("dsa state: a queue's state");
  for (std::uint32_t queue = 0; queue < shape_.wqs; ++queue) {
    if ((active >> queue & 1) == 0) continue;
    if (!running || CheckQueue(device, queue) != CommandError::kNone)
      return Bad("dsa state: an enabled queue that could not be");
  }
  return CheckActiveCommand();
}

Result<void> DsaPersonality::CheckActiveCommand() const {
  const DsaRegisters device = registers();
  const siov::QueueSet draining = device.QueuesIn(QueueState::kDraining);
  const CMD command = current_command();
  const auto code = static_cast<Command>(command.Get<CMD::Code>());
  if (!command_active()) {
    return draining == 0 && device.device_state() != DeviceState::kDraining
               ? Result<void>()
               : Bad("dsa state: draining without a command");
  }
  const bool of_device = code == Command::kDisableDevice || code == Command::kResetDevice;
  const bool of_queues = code == Command::kDisableWq || code == Command::kResetWq;
  if (!CommandWaits(command) || CheckCommand(command) != CommandError::kNone)
    return Bad("dsa state: a command that cannot be under way");
  if (of_device != (device.device_state() == DeviceState::kDraining))
    return Bad("dsa state: GENSTS does not fit the command");
  const siov::QueueSet expected = of_device || of_queues ? AffectedQueues(command) : 0;
  return draining == expected ? Result<void>() : Bad("dsa state: queues do not fit the command");
}

Result<void> DsaPersonality::Restore(const siov::PersonalityState& state) {
  if (state.version != 1 || state.words.size() != kWordsBefore + handles_.size())
    return Bad("dsa state: version or length");
  if ((state.words[0] & ~kHoldable) != 0 || state.words[1] > 1)
    return Bad("dsa state: held causes");
  std::vector<std::optional<std::uint32_t>> handles(handles_.size());
  for (std::size_t vector = 0; vector < handles.size(); ++vector) {
    const std::uint64_t word = state.words[kWordsBefore + vector];
    if (word == 0) continue;
    if (!shape_.handles || (word & ~(kHandleOpen | kHandleMask)) != 0 || (word & kHandleOpen) == 0)
      return Bad("dsa state: an interrupt handle");
    const auto handle = static_cast<std::uint32_t>(word & kHandleMask);
    if (std::find(handles.begin(), handles.end(), std::optional(handle)) != handles.end())
      return Bad("dsa state: an interrupt handle twice");
    handles[vector] = handle;
  }
  TRY(CheckRows());
  TRY(CheckStates());
  ++epoch_;
  lost_ = false;
  handles_ = std::move(handles);
  handles_void_ = state.words[1] != 0;
  held_causes_ = static_cast<std::uint32_t>(state.words[0]);
  if (command_active()) Proceed();
  return {};
}

}  // namespace postern::dsa
