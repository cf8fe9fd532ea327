#pragma once

// PowerPorts: the three one-byte registers of a hardware-reduced ACPI machine through which a guest
// ends itself: sleep control, sleep status, reset (ACPI 6.5, 4.8.3.6 and 4.8.3.7), at the ports of
// src/arch/x86_64/layout.h. Threads: vCPU threads under the bus's lock; `end` is called there and
// must not block.

#include <functional>

#include "src/base/counters.h"
#include "src/bus/mmio_handler.h"
#include "src/machine/exit_report.h"

namespace postern {

class PowerPorts final : public bus::MmioHandler {
 public:
  explicit PowerPorts(std::function<void(ExitReport::Reason)> end) : end_(std::move(end)) {}

  void Read(std::uint64_t offset, std::span<std::byte> data) override;
  void Write(std::uint64_t offset, std::span<const std::byte> data) override;
  // Writes that ask for nothing this machine knows.
  [[nodiscard]] std::uint64_t ignored() const { return ignored_.Get(); }

 private:
  std::function<void(ExitReport::Reason)> end_;
  Counter ignored_;
};

}  // namespace postern
