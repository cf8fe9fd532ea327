#pragma once

// Registers of an Intel DSA: BAR 0's rows, their fields, command and error codes. The rows are
// those of the largest device; register_table.h makes a device's own table of them. Source: Intel
// DSA Architecture Specification 3.0, chapters 5 and 9; the numbers are also in Linux
// drivers/dma/idxd/registers.h. Rows are named as there, entries of a table by their index:
// "WQCFG3.2" is dword 2 of queue 3.

#include <array>
#include <cstdint>

#include "src/base/bits.h"
#include "src/bus/register_map.h"

namespace postern::dsa::dsa_regs {

// clang-format off
constexpr std::uint16_t kVendor = 0x8086, kDevice = 0x0b25;
constexpr std::uint32_t kClass = 0x088000;  // a system peripheral of no class of its own

// ---- offsets ----
constexpr std::uint32_t kVersion = 0x00, kGencap = 0x10, kWqcap = 0x20, kGrpcap = 0x30, kEngcap = 0x38;
constexpr std::uint32_t kOpcap = 0x40, kOffsets = 0x60, kGencfg = 0x80, kGenctrl = 0x88, kGensts = 0x90;
constexpr std::uint32_t kIntcause = 0x98, kCmd = 0xa0, kCmdstatus = 0xa8, kCmdcap = 0xb0;
constexpr std::uint32_t kSwerror = 0xc0, kEvlcfg = 0xe0, kEvlstatus = 0xf0;
// Tables, where the specification's example has them; OFFSETS says so in units of 0x100.
constexpr std::uint32_t kMsixperm = 0x400, kMsixpermStride = 8;
constexpr std::uint32_t kGrpcfg = 0x600, kGrpcfgStride = 64, kGrpEngines = 32, kGrpFlags = 40;
constexpr std::uint32_t kWqcfg = 0x800;
constexpr std::uint32_t kMsixTable = 0x4000, kMsixPba = 0x5000, kRegisterBytes = 0x10000;
constexpr std::uint32_t kOffsetUnit = 0x100;
// Dwords of WQCFG by index, and its operations (four qwords) where WQCAP has them.
constexpr std::uint32_t kWqSize = 0, kWqThreshold = 4, kWqMode = 8, kWqLimits = 12, kWqOccupancyInterrupt = 16;
constexpr std::uint32_t kWqOccupancyLimit = 20, kWqStatus = 24, kWqReserved = 28, kWqOperations = 32;

// ---- fields ----
struct GENCAP : Bits<std::uint64_t> {
  using ConfigurationSupport = Bit<31>;
  using MaxBatch             = Field<24, 21>;  // log2
  using MaxTransfer          = Field<20, 16>;  // log2
  using EventLog             = Field<14, 13>;
  using CommandCapabilities  = Bit<4>;
  using CacheControl         = Bit<2>;
  using OverlappingCopy      = Bit<1>;
};
struct WQCAP : Bits<std::uint64_t> {
  using OperationsConfig = Bit<54>;
  using Priority         = Bit<51>;
  using Dedicated        = Bit<49>;
  using ConfigSize       = Field<27, 24>;  // a queue's WQCFG has 2^(5 + this) bytes
  using Queues           = Field<23, 16>;
  using TotalSize        = Field<15, 0>;
};
struct OFFSETS : Bits<std::uint64_t> {
  using Msixperm = Field<47, 32>;
  using Wqcfg    = Field<31, 16>;
  using Grpcfg   = Field<15, 0>;
};
struct GENCFG : Bits<std::uint32_t> {
  using EventLogEnable       = Bit<13>;
  using UserInterruptsEnable = Bit<12>;
};
struct GENCTRL : Bits<std::uint32_t> {
  using EventLogInterrupt = Bit<2>;
  using HaltInterrupt     = Bit<1>;
  using SwErrorInterrupt  = Bit<0>;
};
enum class DeviceState : std::uint8_t { kDisabled, kEnabled, kDraining, kHalted };
enum class ResetType : std::uint8_t { kSoftware, kFunction, kWarm, kCold };
struct GENSTS : Bits<std::uint32_t> {
  using ResetRequired = Field<3, 2, ResetType>;
  using State         = Field<1, 0, DeviceState>;
};
struct INTCAUSE : Bits<std::uint32_t> {
  using HandlesRevoked = Bit<31>;
  using EventLog       = Bit<5>;
  using Halt           = Bit<4>;
  using Command        = Bit<1>;
  using SwError        = Bit<0>;
};
struct CMD : Bits<std::uint32_t> {
  using Interrupt = Bit<31>;
  using Reserved  = Field<30, 25>;
  using Code      = Field<24, 20>;
  using Operand   = Field<19, 0>;
  // Enable WQ.
  using QueueReserved = Field<19, 8>;
  using Queue         = Field<7, 0>;
  // The other queue commands.
  using QueueGroup  = Field<19, 16>;
  using QueueBitmap = Field<15, 0>;
  // Interrupt handles.
  using HandleReserved = Field<19, 17>;
  using HandleIms      = Bit<16>;
  using HandleIndex    = Field<15, 0>;
};
struct CMDSTATUS : Bits<std::uint32_t> {
  using Active = Bit<31>;
  using Result = Field<23, 8>;
  using Error  = Field<7, 0>;
};
struct SWERROR0 : Bits<std::uint64_t> {
  using Unused          = Field<63, 60>;
  using Pasid           = Field<59, 40>;
  using Operation       = Field<39, 32>;
  using Unused2         = Field<31, 24>;
  using Queue           = Field<23, 16>;
  using Code            = Field<15, 8>;
  using QueueValid      = Bit<3>;
  using DescriptorValid = Bit<2>;
  using Overflow        = Bit<1>;
  using Valid           = Bit<0>;
};
struct EVLCFG0 : Bits<std::uint64_t> {
  using Base        = Field<63, 12>;
  using Privileged  = Bit<1>;
  using PasidEnable = Bit<0>;
};
struct EVLCFG1 : Bits<std::uint64_t> {
  using Pasid = Field<35, 16>;
  using Size  = Field<15, 0>;  // entries
};
struct GRPFLAGS : Bits<std::uint64_t> {
  using WriteBandwidthLimit = Field<47, 44>;
  using ReadBandwidthLimit  = Field<43, 40>;
  using BatchProgressLimit  = Field<37, 36>;
  using WorkProgressLimit   = Field<33, 32>;
  using UseGlobalLimit      = Bit<7>;
  using TrafficClasses      = Field<5, 0>;
};
struct WQMODE : Bits<std::uint32_t> {
  using Privileged   = Bit<29>;
  using PasidEnable  = Bit<28>;
  using Pasid        = Field<27, 8>;
  using Priority     = Field<7, 4>;
  using PrsDisable   = Bit<3>;
  using AtsDisable   = Bit<2>;
  using BlockOnFault = Bit<1>;
  using Dedicated    = Bit<0>;
};
struct WQLIMITS : Bits<std::uint32_t> {
  using MaxBatch    = Field<8, 5>;  // log2
  using MaxTransfer = Field<4, 0>;  // log2
};
enum class QueueState : std::uint8_t { kDisabled, kEnabled, kDraining };
struct WQSTATUS : Bits<std::uint32_t> {
  using State       = Field<31, 30, QueueState>;
  using ModeSupport = Bit<29>;
  using Occupancy   = Field<15, 0>;
};

// ---- codes ----
enum class Command : std::uint8_t {
  kNone, kEnableDevice, kDisableDevice, kDrainAll, kAbortAll, kResetDevice, kEnableWq, kDisableWq, kDrainWq,
  kAbortWq, kResetWq, kDrainPasid, kAbortPasid, kRequestHandle, kReleaseHandle,
};
constexpr std::uint32_t kCommands = 32;  // codes there could be
constexpr std::uint64_t kBasicCommands = 0x1ffe, kHandleCommands = 0x6000;

// 5.8.3, table 5-8, and 9.2.13.
enum class CommandError : std::uint8_t {
  kNone = 0, kUnsupported = 0x01, kBadQueue = 0x02, kHardware = 0x03, kReserved = 0x04, kHalted = 0x05,
  kDeviceNotDisabled = 0x10, kConfiguration = 0x11, kBusMaster = 0x12, kTotalSize = 0x14, kGroupHalfEmpty = 0x15,
  kGroupQueues = 0x16, kGroupEngines = 0x17, kBandwidth = 0x18, kEventLog = 0x19, kPasid = 0x1b,
  kDeviceNotEnabled = 0x20, kQueueNotDisabled = 0x21, kQueueSize = 0x22, kPriority = 0x23, kMode = 0x24,
  kBlockOnFault = 0x25, kPasidEnable = 0x26, kMaxBatch = 0x27, kMaxTransfer = 0x28, kPrivileged = 0x2a,
  kOccupancyInterrupt = 0x2b, kAtsDisable = 0x2c, kOperations = 0x2d, kPrsDisable = 0x2e,
  kNotEnabled = 0x31, kQueueNotEnabled = 0x32, kHandleIndex = 0x41, kNoHandle = 0x42,
};
// 5.8.2, table 5-7: errors that are of no descriptor.
enum class SoftwareError : std::uint8_t { kConfigChanged = 0x51, kCommandWhileActive = 0x52, kQueueOverflow = 0x53 };

// 5.1: of the event log.
constexpr std::uint32_t kEventLogMinimum = 64, kEventLogEntryBytes = 64;

// ---- rows ----
constexpr std::uint64_t kAll = ~std::uint64_t{0};
// Reset values of capability rows are filled in by the table.
constexpr auto kFixedRows = std::to_array<bus::RegisterRow>({
  // offset           width name         writable              w1c          reset  on access
  {kVersion,          4,    "VERSION",   0,                    0,           0x100, bus::kNone},
  {kGencap,           8,    "GENCAP",    0,                    0,           0,     bus::kNone},
  {kWqcap,            8,    "WQCAP",     0,                    0,           0,     bus::kNone},
  {kGrpcap,           8,    "GRPCAP",    0,                    0,           0,     bus::kNone},
  {kEngcap,           8,    "ENGCAP",    0,                    0,           0,     bus::kNone},
  {kOpcap,            8,    "OPCAP0",    0,                    0,           0,     bus::kNone},
  {kOpcap + 8,        8,    "OPCAP1",    0,                    0,           0,     bus::kNone},
  {kOpcap + 16,       8,    "OPCAP2",    0,                    0,           0,     bus::kNone},
  {kOpcap + 24,       8,    "OPCAP3",    0,                    0,           0,     bus::kNone},
  {kOffsets,          8,    "OFFSETS0",  0,                    0,           0,     bus::kNone},
  {kOffsets + 8,      8,    "OFFSETS1",  0,                    0,           0,     bus::kNone},
  {kGencfg,           4,    "GENCFG",    0x3000,               0,           0,     bus::kOnWrite},
  {kGenctrl,          4,    "GENCTRL",   0x7,                  0,           0,     bus::kNone},
  {kGensts,           4,    "GENSTS",    0,                    0,           0,     bus::kNone},
  {kIntcause,         4,    "INTCAUSE",  0,                    0x8000'003f, 0,     bus::kOnWrite},
  {kCmd,              4,    "CMD",       0,                    0,           0,     bus::kOnWrite},
  {kCmdstatus,        4,    "CMDSTATUS", 0,                    0,           0,     bus::kNone},
  {kCmdcap,           8,    "CMDCAP",    0,                    0,           0,     bus::kNone},
  {kSwerror,          8,    "SWERROR0",  0,                    0x3,         0,     bus::kOnWrite},
  {kSwerror + 8,      8,    "SWERROR1",  0,                    0,           0,     bus::kNone},
  {kSwerror + 16,     8,    "SWERROR2",  0,                    0,           0,     bus::kNone},
  {kSwerror + 24,     8,    "SWERROR3",  0,                    0,           0,     bus::kNone},
  {kEvlcfg,           8,    "EVLCFG0",   0xffff'ffff'ffff'f003, 0,          0,     bus::kOnWrite},
  {kEvlcfg + 8,       8,    "EVLCFG1",   0xf'ffff'ffff,        0,           0,     bus::kOnWrite},
  {kEvlstatus,        8,    "EVLSTATUS", 0xffff,               1ULL << 62,  0,     bus::kNone},
  {0x100,             8,    "IDCAP",     0,                    0,           0,     bus::kNone},
  {0x108,             4,    "IDBR",      0,                    0,           0,     bus::kNone},
  {0x180,             8,    "DSACAP0",   0,                    0,           0,     bus::kNone},
  {0x188,             8,    "DSACAP1",   0,                    0,           0,     bus::kNone},
  {0x190,             8,    "DSACAP2",   0,                    0,           0,     bus::kNone},
});
static_assert(bus::IsWellFormed(kFixedRows));

// One entry of each table; offsets from the entry's, names after the entry's index.
constexpr auto kMsixpermRows = std::to_array<bus::RegisterRow>({
  {0,                     4, "",         0xffff'f00c,           0, 0, bus::kNone},
});
constexpr auto kGrpcfgRows = std::to_array<bus::RegisterRow>({
  {0,                     8, ".WQS0",    kAll,                  0, 0, bus::kOnWrite},
  {8,                     8, ".WQS1",    kAll,                  0, 0, bus::kOnWrite},
  {16,                    8, ".WQS2",    kAll,                  0, 0, bus::kOnWrite},
  {24,                    8, ".WQS3",    kAll,                  0, 0, bus::kOnWrite},
  {kGrpEngines,           8, ".ENGINES", kAll,                  0, 0, bus::kOnWrite},
  // Read buffers: GRPCAP has no control of them, so those fields are read-only.
  {kGrpFlags,             8, ".FLAGS",   0xff33'0000'00bf,      0, 0, bus::kOnWrite},
});
constexpr auto kWqcfgRows = std::to_array<bus::RegisterRow>({
  {kWqSize,               4, ".0",       0xffff,                0, 0, bus::kOnWrite},
  {kWqThreshold,          4, ".1",       0xffff,                0, 0, bus::kNone},
  {kWqMode,               4, ".2",       0x3fff'ffff,           0, 0, bus::kOnWrite},
  {kWqLimits,             4, ".3",       0x1ff,                 0, 0, bus::kOnWrite},
  {kWqOccupancyInterrupt, 4, ".4",       0x1'ffff,              0, 0, bus::kOnWrite},
  {kWqOccupancyLimit,     4, ".5",       0,                     0, 0, bus::kNone},
  {kWqStatus,             4, ".6",       0,                     0, 0, bus::kOnRead},
  {kWqReserved,           4, ".7",       0,                     0, 0, bus::kNone},
});
constexpr auto kWqOperationsRows = std::to_array<bus::RegisterRow>({
  {kWqOperations,         8, ".OPCFG0",  kAll,                  0, 0, bus::kOnWrite},
  {kWqOperations + 8,     8, ".OPCFG1",  kAll,                  0, 0, bus::kOnWrite},
  {kWqOperations + 16,    8, ".OPCFG2",  kAll,                  0, 0, bus::kOnWrite},
  {kWqOperations + 24,    8, ".OPCFG3",  kAll,                  0, 0, bus::kOnWrite},
});
// clang-format on
static_assert(bus::IsWellFormed(kGrpcfgRows) && bus::IsWellFormed(kWqcfgRows) &&
              bus::IsWellFormed(kWqOperationsRows) && bus::IsWellFormed(kMsixpermRows));

}  // namespace postern::dsa::dsa_regs
