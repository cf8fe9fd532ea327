#pragma once

// DeviceRegisters: BAR 0 of a physical DSA as its driver reads and writes it: whole registers, and
// an answer of all ones told apart where that means a device which is no longer there.
//
//   DeviceRegisters registers(device);
//   const std::uint32_t status = TRY(registers.Read32(dsa_regs::kCmdstatus));
//
// Is not: a rule about when what may be written. Accesses go through HostDevice's calls and never
// through a mapping of the registers: a device that vanished answers with an error there, and not
// with a signal.
//
// Errors: of HostDevice; kSystem with ENODEV for all ones from a register of which some bits are
// always zero. Ownership: borrows the device. Threads: as HostDevice.

#include <cstdint>

#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::dsa {

class DeviceRegisters {
 public:
  static constexpr std::uint32_t kRegisterRegion = 0;
  static constexpr std::uint32_t kPortalRegion = 2;

  explicit DeviceRegisters(vfio::HostDevice& device) : device_(device) {}

  // For registers that cannot be all ones: ENODEV if they are.
  [[nodiscard]] Result<std::uint32_t> Read32(std::uint64_t offset) const;
  [[nodiscard]] Result<std::uint64_t> Read64(std::uint64_t offset) const;
  // OPCAP could be.
  [[nodiscard]] Result<std::uint64_t> ReadRaw64(std::uint64_t offset) const;
  [[nodiscard]] Result<void> Write32(std::uint64_t offset, std::uint32_t value) const;
  [[nodiscard]] Result<void> Write64(std::uint64_t offset, std::uint64_t value) const;
  [[nodiscard]] Result<std::uint16_t> Config16(std::uint32_t offset) const;
  [[nodiscard]] Result<void> SetConfig16(std::uint32_t offset, std::uint16_t value) const;

  [[nodiscard]] vfio::HostDevice& device() const { return device_; }

 private:
  vfio::HostDevice& device_;
};

}  // namespace postern::dsa
