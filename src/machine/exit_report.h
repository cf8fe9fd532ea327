#pragma once

// ExitReport: how a machine ended, in words and as the process's exit code.

#include <cstdint>
#include <string>

namespace postern {

struct ExitReport {
  enum class Reason : std::uint8_t {
    kPowerOff,  // the guest switched itself off
    kReset,     // the guest asked for a reset, which nobody here handles
    kTripleFault,
    kInternalError,  // KVM cannot go on: emulation failure, failed entry
    kHostError,      // a system call of ours failed while the guest ran
    kStopped,        // Machine::Stop
  };
  Reason reason = Reason::kStopped;
  std::string text;  // one or more lines for the user; empty after a power-off

  // 0 after a power-off or a stop that was asked for, 3 after a reset, 4 when the guest cannot go
  // on, 1 for a host error.
  [[nodiscard]] int exit_code() const;
};

}  // namespace postern
