#pragma once

// Registers of a PCI Express root port: the type 1 header and the PCI Express capability. Source:
// PCI-to-PCI Bridge Architecture 1.2, chapter 3; PCI Express Base 3.0, 7.8.

#include <cstdint>

#include "src/base/bits.h"

namespace postern::pci {

// clang-format off
// Type 1 header, where it differs from type 0 (Bridge 1.2, figure 3-2).
constexpr std::uint8_t  kHeaderTypeBridge    = 0x01;
constexpr std::uint32_t kPrimaryBus          = 0x18;
constexpr std::uint32_t kSecondaryBus        = 0x19;
constexpr std::uint32_t kSubordinateBus      = 0x1a;
constexpr std::uint32_t kIoBase              = 0x1c;
constexpr std::uint32_t kIoLimit             = 0x1d;
constexpr std::uint32_t kSecondaryStatus     = 0x1e;
constexpr std::uint32_t kMemoryBase          = 0x20;
constexpr std::uint32_t kMemoryLimit         = 0x22;
constexpr std::uint32_t kPrefetchableBase    = 0x24;
constexpr std::uint32_t kPrefetchableLimit   = 0x26;
constexpr std::uint32_t kPrefetchableBaseUpper  = 0x28;
constexpr std::uint32_t kPrefetchableLimitUpper = 0x2c;
constexpr std::uint32_t kBridgeControl       = 0x3e;

// 3.2.5.8: bits 15:4 are address bits 31:20; the low four say what the window can address.
constexpr std::uint16_t kWindowAddressBits   = 0xfff0;
constexpr std::uint16_t kWindow64            = 0x0001;
constexpr std::uint64_t kWindowGranule       = 1 << 20;
// 3.2.5.6: bits 7:4 are address bits 15:12; the low four are 0: 16-bit addresses.
constexpr std::uint8_t  kIoWindowAddressBits = 0xf0;
constexpr std::uint64_t kIoWindowGranule     = 1 << 12;

// 3.2.5.18
struct BRIDGE_CONTROL : Bits<std::uint16_t> {
  using SecondaryBusReset = Bit<6>;
  using SerrEnable        = Bit<1>;
  using ParityError       = Bit<0>;
};

// PCI Express capability, version 2; offsets within it (7.8, figure 7-13).
constexpr std::uint8_t  kCapPciExpress       = 0x10;
constexpr std::uint32_t kExpCapabilities     = 0x02;
constexpr std::uint32_t kExpDeviceCap        = 0x04;
constexpr std::uint32_t kExpDeviceControl    = 0x08;
constexpr std::uint32_t kExpDeviceStatus     = 0x0a;
constexpr std::uint32_t kExpLinkCap          = 0x0c;
constexpr std::uint32_t kExpLinkControl      = 0x10;
constexpr std::uint32_t kExpLinkStatus       = 0x12;
constexpr std::uint32_t kExpSlotCap          = 0x14;
constexpr std::uint32_t kExpSlotControl      = 0x18;
constexpr std::uint32_t kExpSlotStatus       = 0x1a;
constexpr std::uint32_t kExpRootControl      = 0x1c;
constexpr std::uint32_t kExpRootStatus       = 0x20;
constexpr std::uint32_t kExpLinkCap2         = 0x2c;
constexpr std::uint32_t kExpLinkControl2     = 0x30;
constexpr std::uint32_t kExpSize             = 0x3c;

// 7.8.2
struct EXP_CAPABILITIES : Bits<std::uint16_t> {
  using InterruptMessage = Field<13, 9, std::uint16_t>;
  using SlotImplemented  = Bit<8>;
  using PortType         = Field<7, 4, std::uint16_t>;
  using Version          = Field<3, 0, std::uint16_t>;
};
constexpr std::uint16_t kExpRootPort         = 4;

// 7.8.3: mandatory since revision 1.1.
constexpr std::uint32_t kRoleBasedErrors     = 1 << 15;
// 7.8.4: the four error reporting enables, relaxed ordering, no snoop, the read request size.
constexpr std::uint16_t kDeviceControlWritable = 0x781f;
constexpr std::uint16_t kDeviceControlReset    = 0x2810;
constexpr std::uint16_t kDeviceStatusErrors    = 0x000f;

// 7.8.6
struct LINK_CAP : Bits<std::uint32_t> {
  using PortNumber          = Field<31, 24, std::uint32_t>;
  using ActiveReporting     = Bit<20>;
  using MaxWidth            = Field<9, 4, std::uint32_t>;
  using MaxSpeed            = Field<3, 0, std::uint32_t>;
};
// 7.8.7: ASPM, common clock, extended synch. Link Disable and Retrain Link read 0 and do nothing.
constexpr std::uint16_t kLinkControlWritable = 0x00c3;
// 7.8.8
struct LINK_STATUS : Bits<std::uint16_t> {
  using Active   = Bit<13>;
  using Width    = Field<9, 4, std::uint16_t>;
  using Speed    = Field<3, 0, std::uint16_t>;
};
constexpr std::uint16_t kLinkSpeed16GT       = 4;
constexpr std::uint16_t kLinkWidth           = 16;
constexpr std::uint32_t kLinkSpeedsTo16GT    = 0x1e;  // 7.8.18: 2.5, 5, 8 and 16 GT/s

// 7.8.9
struct SLOT_CAP : Bits<std::uint32_t> {
  using SlotNumber         = Field<31, 19, std::uint32_t>;
  using NoCommandCompleted = Bit<18>;
  using PowerLimit         = Field<14, 7, std::uint32_t>;  // watts
  using HotPlugCapable     = Bit<6>;
  using HotPlugSurprise    = Bit<5>;
  using PowerIndicator     = Bit<4>;
  using AttentionIndicator = Bit<3>;
  using AttentionButton    = Bit<0>;
};
constexpr std::uint16_t kMaxSlotNumber       = 0x1fff;

// 7.8.10
struct SLOT_CONTROL : Bits<std::uint16_t> {
  using LinkChangedEnable     = Bit<12>;
  using PowerIndicator        = Field<9, 8, std::uint16_t>;
  using AttentionIndicator    = Field<7, 6, std::uint16_t>;
  using InterruptEnable       = Bit<5>;
  using PresenceChangedEnable = Bit<3>;
  using ButtonEnable          = Bit<0>;
};
constexpr std::uint16_t kSlotControlWritable = 0x13ff;
constexpr std::uint16_t kSlotControlReset    = 0x03c0;  // both indicators off
// 7.8.10: values of an indicator.
constexpr std::uint16_t kIndicatorOn         = 1;
constexpr std::uint16_t kIndicatorBlink      = 2;
constexpr std::uint16_t kIndicatorOff        = 3;

// 7.8.11
struct SLOT_STATUS : Bits<std::uint16_t> {
  using LinkChanged     = Bit<8>;
  using PresenceState   = Bit<6>;
  using PresenceChanged = Bit<3>;
  using ButtonPressed   = Bit<0>;
};
constexpr std::uint16_t kSlotStatusEvents    = 0x011f;  // write 1 to clear

constexpr std::uint16_t kRootControlWritable = 0x000f;  // 7.8.12
constexpr std::uint32_t kRootStatusPme       = 1 << 16;  // 7.8.14, write 1 to clear
constexpr std::uint16_t kLinkControl2Writable = 0x000f;  // 7.8.19: the target speed

constexpr std::uint32_t kClassPciBridge      = 0x060400;
// clang-format on

}  // namespace postern::pci
