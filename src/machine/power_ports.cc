#include "src/machine/power_ports.h"

#include <algorithm>

#include "src/arch/x86_64/layout.h"

namespace postern {

void PowerPorts::Read(std::uint64_t, std::span<std::byte> data) {
  // Sleep control reads back without SLP_EN, sleep status without WAK_STS, and the reset register
  // is write-only: all zero.
  std::fill(data.begin(), data.end(), std::byte{0});
}

void PowerPorts::Write(std::uint64_t offset, std::span<const std::byte> data) {
  if (data.size() == 1) {
    const auto value = std::to_integer<std::uint8_t>(data[0]);
    if (offset == x86_64::kSleepControlPort - x86_64::kPowerPorts) {
      const bool enable = (value & x86_64::kSleepEnable) != 0;
      const int type = (value >> x86_64::kSleepTypeShift) & x86_64::kSleepTypeMask;
      if (enable && type == x86_64::kSleepTypeS5) return end_(ExitReport::Reason::kPowerOff);
    } else if (offset == x86_64::kSleepStatusPort - x86_64::kPowerPorts) {
      return;  // write-1-to-clear of WAK_STS, which is never set
    } else if (offset == x86_64::kResetPort - x86_64::kPowerPorts && value == x86_64::kResetValue) {
      return end_(ExitReport::Reason::kReset);
    }
  }
  ignored_.Add();
}

}  // namespace postern
