#include "devices/siov/host/host_caps.h"

#include <algorithm>

#include "devices/siov/dsa/dsa_regs.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;

constexpr std::uint32_t kMaxEngines = 64;
constexpr std::uint32_t kMaxGroups = 64;
constexpr std::uint32_t kMaxConfigShift = 5;  // 2^(5+5): 1 KiB a queue
constexpr std::uint64_t kPagesPerQueue = 4, kPage = 4096;
// 9.2.14: without CMDCAP, and all that is needed here of one that has it.
constexpr std::uint32_t kNeededCommands =
    1U << static_cast<unsigned>(regs::Command::kEnableDevice) |
    1U << static_cast<unsigned>(regs::Command::kResetDevice) |
    1U << static_cast<unsigned>(regs::Command::kEnableWq) |
    1U << static_cast<unsigned>(regs::Command::kDisableWq) |
    1U << static_cast<unsigned>(regs::Command::kDrainWq) |
    1U << static_cast<unsigned>(regs::Command::kAbortWq) |
    1U << static_cast<unsigned>(regs::Command::kResetWq);
constexpr std::uint32_t kHandlesBit = 1U << static_cast<unsigned>(regs::Command::kRequestHandle);

Result<void> ReadGeneral(const DeviceRegisters& registers, HostCaps& caps) {
  caps.version = TRY(registers.Read32(regs::kVersion));
  const std::uint32_t major = caps.version >> 8 & 0xff;
  if (major < 1 || major > 3) return Err(Errc::kUnsupported, "VERSION of the DSA");
  const regs::GENCAP general{{TRY(registers.Read64(regs::kGencap))}};
  caps.configurable = general.Get<regs::GENCAP::ConfigurationSupport>();
  caps.transfer_shift = static_cast<std::uint32_t>(general.Get<regs::GENCAP::MaxTransfer>());
  caps.batch_shift = static_cast<std::uint32_t>(general.Get<regs::GENCAP::MaxBatch>());
  caps.commands = static_cast<std::uint32_t>(regs::kBasicCommands);
  if (general.Get<regs::GENCAP::CommandCapabilities>())
    caps.commands = TRY(registers.Read32(regs::kCmdcap));
  if ((caps.commands & kNeededCommands) != kNeededCommands)
    return Err(Errc::kUnsupported, "CMDCAP lacks a command of queues");
  caps.handles = (caps.commands & kHandlesBit) != 0;
  for (std::uint32_t i = 0; i < caps.operations.size(); ++i)
    caps.operations[i] = TRY(registers.ReadRaw64(regs::kOpcap + 8 * i));
  return {};
}

Result<void> ReadCounts(const DeviceRegisters& registers, HostCaps& caps) {
  const regs::WQCAP queues{{TRY(registers.Read64(regs::kWqcap))}};
  caps.queues = static_cast<std::uint32_t>(queues.Get<regs::WQCAP::Queues>());
  caps.entries = static_cast<std::uint32_t>(queues.Get<regs::WQCAP::TotalSize>());
  caps.priority = queues.Get<regs::WQCAP::Priority>();
  const auto shift = static_cast<std::uint32_t>(queues.Get<regs::WQCAP::ConfigSize>());
  if (shift > kMaxConfigShift) return Err(Errc::kBadFormat, "WQCAP: size of a queue's entry");
  caps.wqcfg_bytes = 32U << shift;
  caps.operations_config = queues.Get<regs::WQCAP::OperationsConfig>() && shift != 0;
  if (caps.queues == 0 || caps.entries == 0) return Err(Errc::kBadFormat, "WQCAP: no queue");
  if (!queues.Get<regs::WQCAP::Dedicated>())
    return Err(Errc::kUnsupported, "WQCAP: no dedicated queues");
  caps.groups = TRY(registers.Read32(regs::kGrpcap)) & 0xff;
  caps.engines = TRY(registers.Read32(regs::kEngcap)) & 0xff;
  if (caps.groups == 0 || caps.engines == 0)
    return Err(Errc::kBadFormat, "GRPCAP, ENGCAP: no group or no engine");
  caps.groups = std::min(caps.groups, kMaxGroups);
  caps.engines = std::min(caps.engines, kMaxEngines);
  return {};
}

// The tables lie in BAR 0 whole, the portals in BAR 2, and each queue has a vector.
Result<void> PlaceTables(const DeviceRegisters& registers, HostCaps& caps) {
  const vfio::DeviceInfo& info = registers.device().info();
  const regs::OFFSETS offsets{{TRY(registers.Read64(regs::kOffsets))}};
  const auto at = [](std::uint64_t units) {
    return static_cast<std::uint32_t>(units * regs::kOffsetUnit);
  };
  caps.grpcfg = at(offsets.Get<regs::OFFSETS::Grpcfg>());
  caps.wqcfg = at(offsets.Get<regs::OFFSETS::Wqcfg>());
  caps.msixperm = at(offsets.Get<regs::OFFSETS::Msixperm>());
  const std::uint32_t vectors = info.irqs[vfio::kMsixIrq].count;
  if (vectors < 2) return Err(Errc::kUnsupported, "MSI-X: no vector for a queue");
  caps.queues = std::min({caps.queues, siov::kMaxQueues, vectors - 1});
  const std::uint64_t registers_end = info.regions[DeviceRegisters::kRegisterRegion].size;
  const auto fits = [&](std::uint64_t begin, std::uint64_t bytes) {
    return begin >= regs::kFixedRows.back().offset && begin + bytes <= registers_end;
  };
  if (!fits(caps.grpcfg, std::uint64_t{caps.groups} * regs::kGrpcfgStride) ||
      !fits(caps.wqcfg, std::uint64_t{caps.queues} * caps.wqcfg_bytes) ||
      !fits(caps.msixperm, std::uint64_t{caps.queues + 1} * regs::kMsixpermStride)) {
    return Err(Errc::kBadFormat, "OFFSETS: a table beyond BAR 0");
  }
  if (info.regions[DeviceRegisters::kPortalRegion].size < caps.queues * kPagesPerQueue * kPage)
    return Err(Errc::kBadFormat, "BAR 2: no room for the portals");
  return {};
}

}  // namespace

HostKind KindOf(std::uint16_t vendor, std::uint16_t device) {
  if (vendor != regs::kVendor) return HostKind::kOther;
  switch (device) {
    case regs::kDevice:  // Sapphire Rapids
    case 0x11fb:         // Granite Rapids D
    case 0x1212:         // Diamond Rapids
      return HostKind::kDsa;
    case 0x0cfe:
    case 0x1216:
      return HostKind::kAnalytics;
    default:
      return HostKind::kOther;
  }
}

Result<HostCaps> ReadHostCaps(const DeviceRegisters& registers) {
  HostCaps caps;
  TRY(ReadGeneral(registers, caps));
  TRY(ReadCounts(registers, caps));
  TRY(PlaceTables(registers, caps));
  return caps;
}

}  // namespace postern::dsa
