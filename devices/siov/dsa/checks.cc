#include "devices/siov/dsa/checks.h"

#include <bit>

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::CommandError;

// The first `n` of 64 bits, n from 1 to 64.
std::uint64_t FirstBits(std::uint32_t n) {
  return regs::kAll >> (64 - n);
}

CommandError CheckSizes(const DsaRegisters& registers) {
  const DsaShape& shape = registers.shape();
  std::uint64_t total = 0;
  for (std::uint32_t queue = 0; queue < shape.wqs; ++queue) total += registers.queue_size(queue);
  // 5.1: the sum of the sizes is not greater than Total WQ Size.
  if (total > shape.entries) return CommandError::kTotalSize;
  // Ours: a portal that is memory holds no more; "unspecified error in configuration".
  for (std::uint32_t queue = 0; queue < shape.wqs; ++queue) {
    if (registers.queue_size(queue) > shape.wq_size) return CommandError::kConfiguration;
  }
  return CommandError::kNone;
}

// Queues and engines of the groups so far.
struct Members {
  std::uint64_t queues = 0;
  std::uint64_t engines = 0;
};

CommandError CheckGroup(const DsaRegisters& registers, std::uint32_t group, Members& seen) {
  const DsaShape& shape = registers.shape();
  const std::uint64_t queues = registers.group_queues(group);
  const std::uint64_t engines = registers.group_engines(group);
  std::uint64_t beyond = queues & ~FirstBits(shape.wqs);
  for (std::uint32_t row = 8; row < regs::kGrpEngines; row += 8)
    beyond |= registers.file().Get(DsaRegisters::OfGroup(group, row));
  if (beyond != 0) return CommandError::kGroupQueues;
  if ((engines & ~FirstBits(shape.engines)) != 0) return CommandError::kGroupEngines;
  // 5.1: queues and engines are both zero or both not.
  if ((queues == 0) != (engines == 0)) return CommandError::kGroupHalfEmpty;
  if ((queues & seen.queues) != 0) return CommandError::kGroupQueues;
  if ((engines & seen.engines) != 0) return CommandError::kGroupEngines;
  seen.queues |= queues;
  seen.engines |= engines;
  return CommandError::kNone;
}

// GRPCAP offers none of what these fields control.
CommandError CheckFlags(regs::GRPFLAGS flags) {
  if (flags.Get<regs::GRPFLAGS::UseGlobalLimit>() ||
      flags.Get<regs::GRPFLAGS::ReadBandwidthLimit>() != 0 ||
      flags.Get<regs::GRPFLAGS::WriteBandwidthLimit>() != 0)
    return CommandError::kBandwidth;
  // 5.1: reserved bits in the flags are 0, for which table 5-8 has no code of its own.
  if (flags.Get<regs::GRPFLAGS::BatchProgressLimit>() != 0 ||
      flags.Get<regs::GRPFLAGS::WorkProgressLimit>() != 0)
    return CommandError::kConfiguration;
  return CommandError::kNone;
}

CommandError CheckGroups(const DsaRegisters& registers) {
  const DsaShape& shape = registers.shape();
  Members seen;
  for (std::uint32_t group = 0; group < shape.groups; ++group) {
    if (const CommandError error = CheckGroup(registers, group, seen); error != CommandError::kNone)
      return error;
    if (const CommandError error = CheckFlags(registers.group_flags(group));
        error != CommandError::kNone)
      return error;
  }
  // 5.1: a queue of a size is in exactly one group, one without in none.
  for (std::uint32_t queue = 0; queue < shape.wqs; ++queue) {
    const bool member = (seen.queues >> queue & 1) != 0;
    if (member != (registers.queue_size(queue) != 0)) return CommandError::kGroupQueues;
  }
  return CommandError::kNone;
}

CommandError CheckEventLog(const DsaRegisters& registers) {
  const auto low = registers.Get<regs::EVLCFG0>(regs::kEvlcfg);
  const auto high = registers.Get<regs::EVLCFG1>(regs::kEvlcfg + 8);
  if (registers.Get<regs::GENCFG>(regs::kGencfg).Get<regs::GENCFG::EventLogEnable>()) {
    const std::uint64_t size = high.Get<regs::EVLCFG1::Size>();
    if (!registers.shape().event_log || size < regs::kEventLogMinimum)
      return CommandError::kEventLog;
    // 5.1: base + size x entry size <= 2^64. The size is not 0, so the last byte has an address.
    const std::uint64_t base = low.raw & regs::EVLCFG0::Base::kMask;
    if (base > regs::kAll - (size * regs::kEventLogEntryBytes - 1)) return CommandError::kEventLog;
  }
  // 5.1: no PASID capability, so neither may be set.
  if (low.Get<regs::EVLCFG0::PasidEnable>() || low.Get<regs::EVLCFG0::Privileged>())
    return CommandError::kPasid;
  return CommandError::kNone;
}

CommandError CheckMode(regs::WQMODE mode) {
  if (mode.Get<regs::WQMODE::Priority>() == 0) return CommandError::kPriority;
  // WQCAP: dedicated only.
  if (!mode.Get<regs::WQMODE::Dedicated>()) return CommandError::kMode;
  if (mode.Get<regs::WQMODE::BlockOnFault>()) return CommandError::kBlockOnFault;
  if (mode.Get<regs::WQMODE::PasidEnable>()) {
    return mode.Get<regs::WQMODE::Privileged>() ? CommandError::kPrivileged
                                                : CommandError::kPasidEnable;
  }
  if (mode.Get<regs::WQMODE::AtsDisable>()) return CommandError::kAtsDisable;
  if (mode.Get<regs::WQMODE::PrsDisable>()) return CommandError::kPrsDisable;
  return CommandError::kNone;
}

}  // namespace

CommandError CheckDevice(const DsaRegisters& registers) {
  if (const CommandError error = CheckSizes(registers); error != CommandError::kNone) return error;
  if (const CommandError error = CheckGroups(registers); error != CommandError::kNone) return error;
  return CheckEventLog(registers);
}

CommandError CheckQueue(const DsaRegisters& registers, std::uint32_t queue) {
  const DsaShape& shape = registers.shape();
  if (registers.queue_size(queue) == 0) return CommandError::kQueueSize;
  if (const CommandError error = CheckMode(registers.queue_mode(queue));
      error != CommandError::kNone)
    return error;
  const regs::WQLIMITS limits = registers.queue_limits(queue);
  const std::uint64_t batch = limits.Get<regs::WQLIMITS::MaxBatch>();
  // 9.2.24: the field is reserved where there are no batches; Linux fills it in all the same.
  if (shape.batch_shift != 0 && (batch == 0 || batch > shape.batch_shift))
    return CommandError::kMaxBatch;
  if (limits.Get<regs::WQLIMITS::MaxTransfer>() > shape.transfer_shift)
    return CommandError::kMaxTransfer;
  // Reserved where WQCAP has no occupancy interrupt.
  if (registers.file().Get(registers.OfQueue(queue, regs::kWqOccupancyInterrupt)) != 0)
    return CommandError::kOccupancyInterrupt;
  const siov::OperationSet operations = registers.queue_operations(queue);
  for (std::size_t i = 0; i < operations.size(); ++i) {
    if ((operations[i] & ~shape.operations[i]) != 0) return CommandError::kOperations;
  }
  return CommandError::kNone;
}

siov::DeviceConfig DeviceConfigOf(const DsaRegisters& registers) {
  siov::DeviceConfig config;
  for (std::uint32_t group = 0; group < registers.shape().groups; ++group) {
    const auto engines = static_cast<std::uint32_t>(std::popcount(registers.group_engines(group)));
    if (engines != 0)
      config.groups.push_back({.queues = registers.group_queues(group), .engines = engines});
  }
  return config;
}

siov::QueueConfig QueueConfigOf(const DsaRegisters& registers, std::uint32_t queue) {
  const DsaShape& shape = registers.shape();
  const regs::WQMODE mode = registers.queue_mode(queue);
  const regs::WQLIMITS limits = registers.queue_limits(queue);
  siov::QueueConfig config;
  config.size = registers.queue_size(queue);
  config.priority = static_cast<std::uint8_t>(mode.Get<regs::WQMODE::Priority>());
  config.privileged = mode.Get<regs::WQMODE::Privileged>();
  config.max_transfer = std::uint64_t{1} << limits.Get<regs::WQLIMITS::MaxTransfer>();
  if (shape.batch_shift != 0)
    config.max_batch = std::uint32_t{1} << limits.Get<regs::WQLIMITS::MaxBatch>();
  config.operations = registers.queue_operations(queue);
  return config;
}

}  // namespace postern::dsa
