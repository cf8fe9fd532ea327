#include "devices/siov/dsa/register_table.h"

#include <fmt/format.h>

#include "devices/siov/dsa/dsa_regs.h"
#include "src/base/check.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;

// 9.2.24, table 9-7: what a guest may still write where the configuration is fixed.
constexpr std::uint64_t kModeSupportMask =
    regs::WQMODE::Privileged::kMask | regs::WQMODE::PasidEnable::kMask |
    regs::WQMODE::Pasid::kMask | regs::WQMODE::Dedicated::kMask;
constexpr std::uint32_t kFixedPriority = 10;

std::uint64_t Gencap(const DsaShape& shape) {
  regs::GENCAP value;
  value.Set<regs::GENCAP::ConfigurationSupport>(shape.configurable);
  value.Set<regs::GENCAP::MaxBatch>(shape.batch_shift);
  value.Set<regs::GENCAP::MaxTransfer>(shape.transfer_shift);
  value.Set<regs::GENCAP::EventLog>(shape.event_log ? 1 : 0);  // 1: entries of 64 bytes
  value.Set<regs::GENCAP::CommandCapabilities>(!shape.configurable || shape.handles);
  value.Set<regs::GENCAP::CacheControl>(true);
  value.Set<regs::GENCAP::OverlappingCopy>(true);
  return value.raw;
}

std::uint64_t Wqcap(const DsaShape& shape) {
  regs::WQCAP value;
  value.Set<regs::WQCAP::OperationsConfig>(shape.operations_config);
  value.Set<regs::WQCAP::Priority>(true);
  value.Set<regs::WQCAP::Dedicated>(true);
  value.Set<regs::WQCAP::ConfigSize>(shape.operations_config ? 1 : 0);
  value.Set<regs::WQCAP::Queues>(shape.wqs);
  value.Set<regs::WQCAP::TotalSize>(shape.entries);
  return value.raw;
}

std::uint64_t Offsets() {
  regs::OFFSETS value;
  value.Set<regs::OFFSETS::Msixperm>(regs::kMsixperm / regs::kOffsetUnit);
  value.Set<regs::OFFSETS::Wqcfg>(regs::kWqcfg / regs::kOffsetUnit);
  value.Set<regs::OFFSETS::Grpcfg>(regs::kGrpcfg / regs::kOffsetUnit);
  return value.raw;
}

// Of the fixed rows. GENCAP says whether CMDCAP is there at all.
std::uint64_t ResetOf(const bus::RegisterRow& row, const DsaShape& shape) {
  switch (row.offset) {
    case regs::kGencap:
      return Gencap(shape);
    case regs::kWqcap:
      return Wqcap(shape);
    case regs::kGrpcap:
      return shape.groups;
    case regs::kEngcap:
      return shape.engines;
    case regs::kOpcap:
    case regs::kOpcap + 8:
    case regs::kOpcap + 16:
    case regs::kOpcap + 24:
      return shape.operations[(row.offset - regs::kOpcap) / 8];
    case regs::kOffsets:
      return Offsets();
    case regs::kCmdcap:
      if (shape.handles) return regs::kBasicCommands | regs::kHandleCommands;
      return shape.configurable ? 0 : regs::kBasicCommands;
    default:
      return row.reset;
  }
}

// 9.2.8: what is not supported is reserved, and what is fixed is read-only.
void Restrict(bus::RegisterRow& row, const DsaShape& shape) {
  if (row.offset == regs::kGencfg) {
    if (!shape.event_log) row.writable &= ~regs::GENCFG::EventLogEnable::kMask;
    if (!shape.configurable) row.writable &= ~regs::GENCFG::UserInterruptsEnable::kMask;
  }
  const bool of_log = row.offset == regs::kEvlcfg || row.offset == regs::kEvlcfg + 8 ||
                      row.offset == regs::kEvlstatus;
  if (of_log && !shape.event_log) row.writable = row.w1c = 0;
}

// What GENCAP's Configuration Support and the queue's Mode Support leave writable.
std::uint64_t WritableOf(const bus::RegisterRow& row, const DsaShape& shape) {
  if (shape.configurable) return row.writable;
  if (!shape.mode_support) return 0;
  switch (row.offset) {
    case regs::kWqThreshold:
    case regs::kWqOccupancyInterrupt:
      return row.writable;
    case regs::kWqMode:
      return kModeSupportMask;
    default:
      return 0;
  }
}

std::uint64_t QueueResetOf(const bus::RegisterRow& row, const DsaShape& shape) {
  if (row.offset >= regs::kWqOperations)
    return shape.operations[(row.offset - regs::kWqOperations) / 8];
  if (shape.configurable) return 0;
  regs::WQMODE mode;
  mode.Set<regs::WQMODE::Priority>(kFixedPriority);
  mode.Set<regs::WQMODE::Dedicated>(true);
  regs::WQLIMITS limits;
  limits.Set<regs::WQLIMITS::MaxBatch>(shape.batch_shift);
  limits.Set<regs::WQLIMITS::MaxTransfer>(shape.transfer_shift);
  regs::WQSTATUS status;
  status.Set<regs::WQSTATUS::ModeSupport>(shape.mode_support);
  switch (row.offset) {
    case regs::kWqSize:
      return shape.wq_size;
    case regs::kWqMode:
      return mode.raw;
    case regs::kWqLimits:
      return limits.raw;
    case regs::kWqStatus:
      return status.raw;
    default:
      return 0;
  }
}

// Of a read-only device: one group has all.
std::uint64_t GroupResetOf(const bus::RegisterRow& row, const DsaShape& shape) {
  if (shape.configurable) return 0;
  if (row.offset == 0) return (std::uint64_t{1} << shape.wqs) - 1;
  if (row.offset == regs::kGrpEngines) return regs::kAll >> (64 - shape.engines);
  return 0;
}

}  // namespace

DsaRegisterTable::DsaRegisterTable(const DsaShape& shape) {
  AddFixed(shape);
  for (std::uint32_t vector = 0; vector < shape.vectors(); ++vector) {
    for (const bus::RegisterRow& row : regs::kMsixpermRows)
      Add(row, regs::kMsixperm + vector * regs::kMsixpermStride, "MSIXPERM", vector);
  }
  for (std::uint32_t group = 0; group < shape.groups; ++group) AddGroup(shape, group);
  for (std::uint32_t queue = 0; queue < shape.wqs; ++queue) AddQueue(shape, queue);
  CHECK(bus::IsWellFormed(rows_));
}

void DsaRegisterTable::AddFixed(const DsaShape& shape) {
  for (bus::RegisterRow row : regs::kFixedRows) {
    row.reset = ResetOf(row, shape);
    Restrict(row, shape);
    rows_.push_back(row);
  }
}

void DsaRegisterTable::AddGroup(const DsaShape& shape, std::uint32_t group) {
  for (bus::RegisterRow row : regs::kGrpcfgRows) {
    row.reset = GroupResetOf(row, shape);
    if (!shape.configurable) row.writable = 0;
    Add(row, regs::kGrpcfg + group * regs::kGrpcfgStride, "GRPCFG", group);
  }
}

void DsaRegisterTable::AddQueue(const DsaShape& shape, std::uint32_t queue) {
  const std::uint32_t base = regs::kWqcfg + queue * shape.wqcfg_bytes();
  const auto add = [&](bus::RegisterRow row) {
    row.reset = QueueResetOf(row, shape);
    row.writable = WritableOf(row, shape);
    Add(row, base, "WQCFG", queue);
  };
  for (const bus::RegisterRow& row : regs::kWqcfgRows) add(row);
  if (!shape.operations_config) return;
  for (const bus::RegisterRow& row : regs::kWqOperationsRows) add(row);
}

void DsaRegisterTable::Add(bus::RegisterRow row, std::uint32_t base, std::string_view table,
                           std::uint32_t index) {
  row.offset += base;
  row.name = names_.emplace_back(fmt::format("{}{}{}", table, index, row.name));
  rows_.push_back(row);
}

}  // namespace postern::dsa
