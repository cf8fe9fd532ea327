#pragma once

// HostCaps: what a physical DSA says it is and can do, checked: every count is one that its tables
// and pages have room for.
//
//   const HostCaps caps = TRY(ReadHostCaps(registers));
//
// Is not: what a guest is told (a Vdev's shape follows from BackendCaps). What a device claims
// beyond what Postern uses is cut down (64 queues, 64 engines); what makes no sense is refused.
//
// Threads: values. Source: Intel DSA Architecture Specification 3.0, chapter 9.

#include <array>
#include <cstdint>

#include "devices/siov/core/backend.h"
#include "devices/siov/host/device_registers.h"
#include "src/base/result.h"

namespace postern::dsa {

struct HostCaps {
  std::uint32_t version = 0;  // 0x100, 0x200, ...
  bool configurable = false;  // groups and queues may be changed; else they are as they are
  bool priority = false;
  bool operations_config = false;  // a queue's operations can be restricted
  bool handles = false;            // interrupt handles must be asked for
  std::uint32_t commands = 0;      // bit n: command n
  std::uint32_t queues = 0;        // 1 to siov::kMaxQueues
  std::uint32_t entries = 0;       // of all queues together
  std::uint32_t groups = 0;
  std::uint32_t engines = 0;  // 1 to 64
  std::uint32_t transfer_shift = 0;
  std::uint32_t batch_shift = 0;
  siov::OperationSet operations{};
  // Where the tables begin in BAR 0.
  std::uint32_t grpcfg = 0;
  std::uint32_t wqcfg = 0;
  std::uint32_t wqcfg_bytes = 0;  // of one queue
  std::uint32_t msixperm = 0;

  // Of a dword of a queue's WQCFG, as dsa_regs.h counts them.
  [[nodiscard]] std::uint32_t OfQueue(std::uint32_t queue, std::uint32_t row) const {
    return wqcfg + queue * wqcfg_bytes + row;
  }
};

// What the ids of a PCI function say.
enum class HostKind : std::uint8_t { kDsa, kAnalytics, kOther };
[[nodiscard]] HostKind KindOf(std::uint16_t vendor, std::uint16_t device);

// kBadFormat: contradicts itself, `op` saying how; kUnsupported: nothing Postern can drive; kSystem
// of the device.
[[nodiscard]] Result<HostCaps> ReadHostCaps(const DeviceRegisters& registers);

}  // namespace postern::dsa
