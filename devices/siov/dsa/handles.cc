// Interrupt handles: DsaPersonality's Request and Release Interrupt Handle, and their end.

#include <algorithm>

#include "devices/siov/dsa/dsa_personality.h"

namespace postern::dsa {

namespace regs = dsa_regs;
using regs::CMD;

DsaPersonality::Answer DsaPersonality::RequestHandle(CMD command) {
  const std::uint64_t vector = command.Get<CMD::HandleIndex>();
  // There is no interrupt message storage whose entry it could be.
  if (command.Get<CMD::HandleIms>() || vector >= handles_.size())
    return {CommandError::kHandleIndex};
  std::optional<std::uint32_t>& handle = handles_[vector];
  if (!handle.has_value()) {
    const auto opened = port_->OpenHandle(static_cast<std::uint16_t>(vector));
    if (!opened.has_value()) {
      return {opened.error().code == Errc::kInvalidArgument ? CommandError::kHandleIndex
                                                            : CommandError::kNoHandle};
    }
    // CMDSTATUS has 16 bits for it.
    if (*opened > 0xffff) {
      static_cast<void>(port_->CloseHandle(*opened));
      return {CommandError::kNoHandle};
    }
    handle = *opened;
  }
  return {CommandError::kNone, static_cast<std::uint16_t>(*handle)};
}

// The specification's operand is the table's index, Linux passes the handle. A number that is both
// is taken for the handle.
DsaPersonality::Answer DsaPersonality::ReleaseHandle(CMD command) {
  if (command.Get<CMD::HandleIms>()) return {CommandError::kHandleIndex};
  const auto operand = static_cast<std::uint32_t>(command.Get<CMD::HandleIndex>());
  auto found = std::find(handles_.begin(), handles_.end(), std::optional(operand));
  if (found == handles_.end() && operand < handles_.size()) found = handles_.begin() + operand;
  if (found == handles_.end() || !found->has_value()) return {CommandError::kHandleIndex};
  static_cast<void>(port_->CloseHandle(**found));
  found->reset();
  return {};
}

bool DsaPersonality::DropHandles() {
  bool any = handles_void_;
  for (std::optional<std::uint32_t>& handle : handles_) {
    if (!handle.has_value()) continue;
    any = true;
    static_cast<void>(port_->CloseHandle(*handle));  // unless it went by itself
    handle.reset();
  }
  handles_void_ = false;
  return any;
}

// 3.7: this cause only occurs where handles were asked for.
void DsaPersonality::OnHandlesRevoked() {
  if (DropHandles()) RaiseCause(regs::INTCAUSE::HandlesRevoked::kMask);
}

}  // namespace postern::dsa
