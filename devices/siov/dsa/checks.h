#pragma once

// What the device checks when the guest enables it or a queue, and what the back end is told then.
//
//   if (const auto error = CheckDevice(registers); error != CommandError::kNone) return error;
//   backend.Start(DeviceConfigOf(registers));
//
// Is not: whether a command fits the device's state. Threads: as the register file.
// Source: Intel DSA Architecture Specification 3.0, 5.1, 5.2 and table 5-8. Not reachable here:
// 0x13 (there is no PRS capability) and 0x1a (no ATS capability).

#include <cstdint>

#include "devices/siov/core/backend.h"
#include "devices/siov/dsa/registers.h"

namespace postern::dsa {

// Bus mastering and the device's state are not looked at.
[[nodiscard]] dsa_regs::CommandError CheckDevice(const DsaRegisters& registers);
// The state of device and queue are not looked at.
[[nodiscard]] dsa_regs::CommandError CheckQueue(const DsaRegisters& registers, std::uint32_t queue);

// Of settings that passed the checks.
[[nodiscard]] siov::DeviceConfig DeviceConfigOf(const DsaRegisters& registers);
[[nodiscard]] siov::QueueConfig QueueConfigOf(const DsaRegisters& registers, std::uint32_t queue);

}  // namespace postern::dsa
