#pragma once

// Registers and capabilities of virtio over PCI. Source: VIRTIO 1.2, 4.1.2 to 4.1.4.

#include <array>
#include <cstdint>

#include "src/bus/register_map.h"

namespace postern::virtio {

// clang-format off
constexpr std::uint16_t kPciVendor          = 0x1af4;  // 4.1.2
constexpr std::uint16_t kPciDeviceBase      = 0x1040;
constexpr std::uint16_t kPciSubsystemBase   = 0x0040;
constexpr std::uint16_t kNoVector           = 0xffff;  // 4.1.5.1.2

// struct virtio_pci_cap, 4.1.4: offsets in the capability.
constexpr std::uint32_t kCapLength          = 0x02;
constexpr std::uint32_t kCapType            = 0x03;
constexpr std::uint32_t kCapBar             = 0x04;
constexpr std::uint32_t kCapOffset          = 0x08;
constexpr std::uint32_t kCapRangeLength     = 0x0c;
constexpr std::uint32_t kCapSize            = 0x10;
constexpr std::uint32_t kCapNotifyMultiplier = 0x10;   // VIRTIO_PCI_CAP_NOTIFY_CFG alone
constexpr std::uint32_t kCapPciCfgData      = 0x10;    // VIRTIO_PCI_CAP_PCI_CFG alone
constexpr std::uint32_t kCapLongSize        = 0x14;

// cfg_type, 4.1.4.
constexpr std::uint8_t kCapCommon = 1;
constexpr std::uint8_t kCapNotify = 2;
constexpr std::uint8_t kCapIsr    = 3;
constexpr std::uint8_t kCapDevice = 4;
constexpr std::uint8_t kCapPciCfg = 5;

// The parts of BAR 0, in whole pages.
constexpr std::uint32_t kCommonOffset  = 0x0000;
constexpr std::uint32_t kIsrOffset     = 0x1000;
constexpr std::uint32_t kDeviceOffset  = 0x2000;
constexpr std::uint32_t kTableOffset   = 0x3000;
constexpr std::uint32_t kPbaOffset     = 0x4000;
constexpr std::uint32_t kNotifyOffset  = 0x5000;
constexpr std::uint32_t kBarSize       = 0x8000;
constexpr std::uint32_t kPartSize      = 0x1000;
constexpr std::uint32_t kNotifyMultiplier = 4;

// struct virtio_pci_common_cfg, 4.1.4.3.
constexpr std::uint32_t kDeviceFeatureSelect = 0x00;
constexpr std::uint32_t kDeviceFeature       = 0x04;
constexpr std::uint32_t kDriverFeatureSelect = 0x08;
constexpr std::uint32_t kDriverFeature       = 0x0c;
constexpr std::uint32_t kConfigMsixVector    = 0x10;
constexpr std::uint32_t kNumQueues           = 0x12;
constexpr std::uint32_t kDeviceStatus        = 0x14;
constexpr std::uint32_t kConfigGeneration    = 0x15;
constexpr std::uint32_t kQueueSelect         = 0x16;
constexpr std::uint32_t kQueueSize           = 0x18;
constexpr std::uint32_t kQueueMsixVector     = 0x1a;
constexpr std::uint32_t kQueueEnable         = 0x1c;
constexpr std::uint32_t kQueueNotifyOff      = 0x1e;
constexpr std::uint32_t kQueueDesc           = 0x20;
constexpr std::uint32_t kQueueDriver         = 0x28;
constexpr std::uint32_t kQueueDevice         = 0x30;
constexpr std::uint32_t kQueueNotifyData     = 0x38;
constexpr std::uint32_t kQueueReset          = 0x3a;
constexpr std::uint32_t kCommonSize          = 0x3c;

constexpr auto kCommonCfg = std::to_array<bus::RegisterRow>({
  // offset              width name                     writable     w1c reset   on access
  {kDeviceFeatureSelect, 4,    "device_feature_select", 0xffffffff,  0,  0,      bus::kOnWrite},
  {kDeviceFeature,       4,    "device_feature",        0,           0,  0,      bus::kNone},
  {kDriverFeatureSelect, 4,    "driver_feature_select", 0xffffffff,  0,  0,      bus::kOnWrite},
  {kDriverFeature,       4,    "driver_feature",        0xffffffff,  0,  0,      bus::kOnWrite},
  {kConfigMsixVector,    2,    "config_msix_vector",    0xffff,      0,  0xffff, bus::kOnWrite},
  {kNumQueues,           2,    "num_queues",            0,           0,  0,      bus::kNone},
  {kDeviceStatus,        1,    "device_status",         0xff,        0,  0,      bus::kOnBoth},
  {kConfigGeneration,    1,    "config_generation",     0,           0,  0,      bus::kOnRead},
  {kQueueSelect,         2,    "queue_select",          0xffff,      0,  0,      bus::kOnWrite},
  {kQueueSize,           2,    "queue_size",            0xffff,      0,  0,      bus::kOnWrite},
  {kQueueMsixVector,     2,    "queue_msix_vector",     0xffff,      0,  0xffff, bus::kOnWrite},
  {kQueueEnable,         2,    "queue_enable",          0xffff,      0,  0,      bus::kOnWrite},
  {kQueueNotifyOff,      2,    "queue_notify_off",      0,           0,  0,      bus::kNone},
  {kQueueDesc,           8,    "queue_desc",            ~std::uint64_t{0}, 0, 0, bus::kOnWrite},
  {kQueueDriver,         8,    "queue_driver",          ~std::uint64_t{0}, 0, 0, bus::kOnWrite},
  {kQueueDevice,         8,    "queue_device",          ~std::uint64_t{0}, 0, 0, bus::kOnWrite},
  {kQueueNotifyData,     2,    "queue_notify_data",     0,           0,  0,      bus::kNone},
  {kQueueReset,          2,    "queue_reset",           0xffff,      0,  0,      bus::kOnWrite},
});
static_assert(bus::IsWellFormed(kCommonCfg));
static_assert(kCommonCfg.back().offset + kCommonCfg.back().width == kCommonSize);
// clang-format on

}  // namespace postern::virtio
