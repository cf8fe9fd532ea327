#pragma once

// Registers of virtio over MMIO. Source: VIRTIO 1.2, 4.2.2, table 4.1. Registers the table marks W
// read 0.

#include <array>
#include <cstdint>

#include "src/bus/register_map.h"

namespace postern::virtio::mmio_regs {

// clang-format off
constexpr std::uint32_t kMagic   = 0x74726976;  // "virt"
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kVendor  = 0x1af4;

constexpr std::uint32_t kMagicValue        = 0x000;
constexpr std::uint32_t kVersionRegister   = 0x004;
constexpr std::uint32_t kDeviceIdRegister  = 0x008;
constexpr std::uint32_t kVendorId          = 0x00c;
constexpr std::uint32_t kDeviceFeatures    = 0x010;
constexpr std::uint32_t kDeviceFeaturesSel = 0x014;
constexpr std::uint32_t kDriverFeatures    = 0x020;
constexpr std::uint32_t kDriverFeaturesSel = 0x024;
constexpr std::uint32_t kQueueSel          = 0x030;
constexpr std::uint32_t kQueueNumMax       = 0x034;
constexpr std::uint32_t kQueueNum          = 0x038;
constexpr std::uint32_t kQueueReady        = 0x044;
constexpr std::uint32_t kQueueNotify       = 0x050;
constexpr std::uint32_t kInterruptStatus   = 0x060;
constexpr std::uint32_t kInterruptAck      = 0x064;
constexpr std::uint32_t kStatus            = 0x070;
constexpr std::uint32_t kQueueDescLow      = 0x080;
constexpr std::uint32_t kQueueDescHigh     = 0x084;
constexpr std::uint32_t kQueueDriverLow    = 0x090;
constexpr std::uint32_t kQueueDriverHigh   = 0x094;
constexpr std::uint32_t kQueueDeviceLow    = 0x0a0;
constexpr std::uint32_t kQueueDeviceHigh   = 0x0a4;
constexpr std::uint32_t kShmSel            = 0x0ac;
constexpr std::uint32_t kShmLenLow         = 0x0b0;
constexpr std::uint32_t kShmLenHigh        = 0x0b4;
constexpr std::uint32_t kShmBaseLow        = 0x0b8;
constexpr std::uint32_t kShmBaseHigh       = 0x0bc;
constexpr std::uint32_t kQueueReset        = 0x0c0;
constexpr std::uint32_t kConfigGeneration  = 0x0fc;
constexpr std::uint32_t kConfig            = 0x100;

constexpr std::uint64_t kAll = 0xffffffff;

constexpr auto kRegisters = std::to_array<bus::RegisterRow>({
  // offset            width name                 writable w1c reset     on access
  {kMagicValue,        4,    "MagicValue",        0,       0,  kMagic,   bus::kNone},
  {kVersionRegister,   4,    "Version",           0,       0,  kVersion, bus::kNone},
  {kDeviceIdRegister,  4,    "DeviceID",          0,       0,  0,        bus::kOnRead},
  {kVendorId,          4,    "VendorID",          0,       0,  kVendor,  bus::kNone},
  {kDeviceFeatures,    4,    "DeviceFeatures",    0,       0,  0,        bus::kOnRead},
  {kDeviceFeaturesSel, 4,    "DeviceFeaturesSel", kAll,    0,  0,        bus::kOnBoth},
  {kDriverFeatures,    4,    "DriverFeatures",    kAll,    0,  0,        bus::kOnBoth},
  {kDriverFeaturesSel, 4,    "DriverFeaturesSel", kAll,    0,  0,        bus::kOnBoth},
  {kQueueSel,          4,    "QueueSel",          kAll,    0,  0,        bus::kOnBoth},
  {kQueueNumMax,       4,    "QueueNumMax",       0,       0,  0,        bus::kOnRead},
  {kQueueNum,          4,    "QueueNum",          kAll,    0,  0,        bus::kOnBoth},
  {kQueueReady,        4,    "QueueReady",        kAll,    0,  0,        bus::kOnBoth},
  {kQueueNotify,       4,    "QueueNotify",       kAll,    0,  0,        bus::kOnBoth},
  {kInterruptStatus,   4,    "InterruptStatus",   0,       0,  0,        bus::kOnRead},
  {kInterruptAck,      4,    "InterruptACK",      kAll,    0,  0,        bus::kOnBoth},
  {kStatus,            4,    "Status",            kAll,    0,  0,        bus::kOnBoth},
  {kQueueDescLow,      4,    "QueueDescLow",      kAll,    0,  0,        bus::kOnBoth},
  {kQueueDescHigh,     4,    "QueueDescHigh",     kAll,    0,  0,        bus::kOnBoth},
  {kQueueDriverLow,    4,    "QueueDriverLow",    kAll,    0,  0,        bus::kOnBoth},
  {kQueueDriverHigh,   4,    "QueueDriverHigh",   kAll,    0,  0,        bus::kOnBoth},
  {kQueueDeviceLow,    4,    "QueueDeviceLow",    kAll,    0,  0,        bus::kOnBoth},
  {kQueueDeviceHigh,   4,    "QueueDeviceHigh",   kAll,    0,  0,        bus::kOnBoth},
  {kShmSel,            4,    "SHMSel",            kAll,    0,  0,        bus::kOnBoth},
  // 4.2.2: a region that does not exist has length and base ~0; no device has one.
  {kShmLenLow,         4,    "SHMLenLow",         0,       0,  kAll,     bus::kNone},
  {kShmLenHigh,        4,    "SHMLenHigh",        0,       0,  kAll,     bus::kNone},
  {kShmBaseLow,        4,    "SHMBaseLow",        0,       0,  kAll,     bus::kNone},
  {kShmBaseHigh,       4,    "SHMBaseHigh",       0,       0,  kAll,     bus::kNone},
  {kQueueReset,        4,    "QueueReset",        kAll,    0,  0,        bus::kOnBoth},
  {kConfigGeneration,  4,    "ConfigGeneration",  0,       0,  0,        bus::kOnRead},
});
static_assert(bus::IsWellFormed(kRegisters));
// clang-format on

}  // namespace postern::virtio::mmio_regs
