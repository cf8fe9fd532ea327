#pragma once

// The structures of vfio-user as they lie on the socket, and their bits; no logic. Private to
// protocol.cc, and to tests that write wrong ones. The specification says host byte order: that of
// the machines Postern runs on is little-endian. Source: QEMU docs/interop/vfio-user.rst, and
// Linux include/uapi/linux/vfio.h.

#include <cstdint>

#include "src/base/endian.h"

namespace postern::vfio {

struct WireHeader {
  le16 id;
  le16 command;
  le32 size;
  le32 flags;
  le32 error;
};
static_assert(sizeof(WireHeader) == 16);
constexpr std::uint32_t kWireTypeMask = 0xf;
constexpr std::uint32_t kWireTypeReply = 1;
constexpr std::uint32_t kWireNoReply = 1 << 4;
constexpr std::uint32_t kWireError = 1 << 5;

struct WireVersion {
  le16 major;
  le16 minor;
};
static_assert(sizeof(WireVersion) == 4);

struct WireDmaMap {
  le32 argsz;
  le32 flags;
  le64 offset;
  le64 address;
  le64 size;
};
static_assert(sizeof(WireDmaMap) == 32);
constexpr std::uint32_t kWireDmaRead = 1 << 0;
constexpr std::uint32_t kWireDmaWrite = 1 << 1;

constexpr std::uint32_t kWireUnmapAll = 1 << 1;  // VFIO_DMA_UNMAP_FLAG_ALL

struct WireDmaUnmap {
  le32 argsz;
  le32 flags;
  le64 address;
  le64 size;
};
static_assert(sizeof(WireDmaUnmap) == 24);

struct WireDeviceInfo {
  le32 argsz;
  le32 flags;
  le32 regions;
  le32 irqs;
};
static_assert(sizeof(WireDeviceInfo) == 16);
constexpr std::uint32_t kWireDeviceReset = 1 << 0;
constexpr std::uint32_t kWireDevicePci = 1 << 1;

struct WireRegionInfo {
  le32 argsz;
  le32 flags;
  le32 index;
  le32 cap_offset;
  le64 size;
  le64 offset;
};
static_assert(sizeof(WireRegionInfo) == 32);
constexpr std::uint32_t kWireRegionRead = 1 << 0;
constexpr std::uint32_t kWireRegionWrite = 1 << 1;
constexpr std::uint32_t kWireRegionMap = 1 << 2;
constexpr std::uint32_t kWireRegionCaps = 1 << 3;

struct WireCapability {
  le16 id;
  le16 version;
  le32 next;  // from the start of WireRegionInfo; 0 ends the chain
};
static_assert(sizeof(WireCapability) == 8);
constexpr std::uint16_t kWireCapabilitySparse = 1;  // VFIO_REGION_INFO_CAP_SPARSE_MMAP

struct WireSparse {
  le32 count;
  le32 reserved;
};
static_assert(sizeof(WireSparse) == 8);

struct WireArea {
  le64 offset;
  le64 size;
};
static_assert(sizeof(WireArea) == 16);

struct WireIrqInfo {
  le32 argsz;
  le32 flags;
  le32 index;
  le32 count;
};
static_assert(sizeof(WireIrqInfo) == 16);
constexpr std::uint32_t kWireIrqEventFd = 1 << 0;
constexpr std::uint32_t kWireIrqMaskable = 1 << 1;
constexpr std::uint32_t kWireIrqAutomasked = 1 << 2;
constexpr std::uint32_t kWireIrqNoResize = 1 << 3;

struct WireIrqSet {
  le32 argsz;
  le32 flags;
  le32 index;
  le32 start;
  le32 count;
};
static_assert(sizeof(WireIrqSet) == 20);
constexpr std::uint32_t kWireIrqDataMask = 0x7;
constexpr std::uint32_t kWireIrqActionMask = 0x38;

struct WireRegionAccess {
  le64 offset;
  le32 region;
  le32 count;
};
static_assert(sizeof(WireRegionAccess) == 16);

struct WireDmaAccess {
  le64 address;
  le64 count;
};
static_assert(sizeof(WireDmaAccess) == 16);

}  // namespace postern::vfio
