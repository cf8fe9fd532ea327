#pragma once

// Offsets and fields of PCI configuration space. Source: PCI Local Bus 3.0, 6.1, 6.2, 6.7
// and 6.8.2; PCI Express Base 3.0, 7.5 and 7.9.

#include <cstdint>

#include "src/base/bits.h"

namespace postern::pci {

// clang-format off
// Type 0 header, PCI 3.0 figure 6-1.
constexpr std::uint32_t kVendorId           = 0x00;
constexpr std::uint32_t kDeviceId           = 0x02;
constexpr std::uint32_t kCommand            = 0x04;
constexpr std::uint32_t kStatus             = 0x06;
constexpr std::uint32_t kRevisionId         = 0x08;
constexpr std::uint32_t kClassCode          = 0x09;  // 3 bytes
constexpr std::uint32_t kCacheLineSize      = 0x0c;
constexpr std::uint32_t kHeaderType         = 0x0e;
constexpr std::uint32_t kBar0               = 0x10;
constexpr std::uint32_t kBarEnd             = 0x28;
constexpr std::uint32_t kSubsystemVendorId  = 0x2c;
constexpr std::uint32_t kSubsystemId        = 0x2e;
constexpr std::uint32_t kCapabilitiesPointer = 0x34;
constexpr std::uint32_t kInterruptLine      = 0x3c;
constexpr std::uint32_t kInterruptPin       = 0x3d;
constexpr std::uint32_t kHeaderEnd          = 0x40;
constexpr std::uint32_t kConventionalEnd    = 0x100;
constexpr std::uint32_t kConfigEnd          = 0x1000;
constexpr std::uint32_t kRomBase            = 0x30;
constexpr unsigned      kBarCount           = 6;
constexpr std::size_t   kRomIndex           = 6;  // of the expansion ROM among a function's ranges

// PCI 3.0 6.2.2, table 6-1.
struct COMMAND : Bits<std::uint16_t> {
  using InterruptDisable = Bit<10>;
  using Serr             = Bit<8>;
  using ParityError      = Bit<6>;
  using BusMaster        = Bit<2>;
  using MemorySpace      = Bit<1>;
  using IoSpace          = Bit<0>;
};

// PCI 3.0 6.2.3, table 6-2.
struct STATUS : Bits<std::uint16_t> {
  using CapabilitiesList = Bit<4>;
  using InterruptStatus  = Bit<3>;
};
constexpr std::uint16_t kStatusErrorBits = 0xf900;  // parity, SERR, master abort, target aborts: write 1 to clear

// PCI 3.0 6.2.5.1: the read-only low bits of a base address register.
constexpr std::uint32_t kBarIo           = 0x1;
constexpr std::uint32_t kBarMem64        = 0x4;
constexpr std::uint32_t kBarPrefetchable = 0x8;
constexpr std::uint32_t kBarTypeMask     = 0x6;
constexpr std::uint32_t kRomEnable       = 0x1;  // 6.2.5.2
constexpr std::uint8_t  kMultifunction   = 0x80;  // in kHeaderType, 6.2.1

// Capability IDs: PCI 3.0 appendix H.
constexpr std::uint8_t  kCapPower   = 0x01;
constexpr std::uint8_t  kCapVpd     = 0x03;
constexpr std::uint8_t  kCapMsi     = 0x05;
constexpr std::uint8_t  kCapPcix    = 0x07;
constexpr std::uint8_t  kCapVendor  = 0x09;
constexpr std::uint8_t  kCapExpress = 0x10;
constexpr std::uint8_t  kCapMsix    = 0x11;
constexpr std::uint8_t  kCapSata    = 0x12;
constexpr std::uint8_t  kCapAf      = 0x13;

// Extended capability IDs: PCI Express 3.0 7.10 and following.
constexpr std::uint16_t kExtCapSerial         = 0x0003;
constexpr std::uint16_t kExtCapVendor         = 0x000b;
constexpr std::uint16_t kExtCapTph            = 0x0017;
constexpr std::uint16_t kExtCapLatency        = 0x0018;
constexpr std::uint16_t kExtCapDesignatedVendor = 0x0023;

// Power management capability, PCI Power Management 1.2, 3.2; offsets within the capability.
constexpr std::uint32_t kPowerCapabilities = 0x02;
constexpr std::uint32_t kPowerControl      = 0x04;
constexpr std::uint32_t kPowerCapSize      = 0x08;
struct POWER_CONTROL : Bits<std::uint16_t> {
  using PmeStatus  = Bit<15>;
  using PmeEnable  = Bit<8>;
  using PowerState = Field<1, 0, std::uint16_t>;
};
constexpr std::uint16_t kPowerPmeSupport = 0xf9c0;  // of the capabilities: PME from D0..D3cold, auxiliary current

// MSI capability, PCI 3.0 6.8.1; offsets within the capability.
constexpr std::uint32_t kMsiControl    = 0x02;
constexpr std::uint32_t kMsiAddressLow = 0x04;
struct MSI_CONTROL : Bits<std::uint16_t> {
  using PerVectorMasking = Bit<8>;
  using Address64        = Bit<7>;
  using EnabledVectors   = Field<6, 4, std::uint16_t>;  // log2
  using CapableVectors   = Field<3, 1, std::uint16_t>;  // log2
  using Enable           = Bit<0>;
};
constexpr unsigned      kMsiMaxVectors = 32;

// PCI Express capability, PCI Express 3.0 7.8; offsets within the capability.
constexpr std::uint32_t kExpressFlags          = 0x02;
constexpr std::uint32_t kExpressDevice         = 0x04;  // DEVCAP
constexpr std::uint32_t kExpressDeviceControl  = 0x08;
constexpr std::uint32_t kExpressLink           = 0x0c;  // LNKCAP, LNKCTL, LNKSTA, then slot and root: up to
constexpr std::uint32_t kExpressDevice2        = 0x24;  // DEVCAP2
constexpr std::uint32_t kExpressLink2          = 0x2c;
constexpr std::uint32_t kExpressSizeV1         = 0x14;
constexpr std::uint32_t kExpressSizeV2         = 0x3c;
struct EXPRESS_FLAGS : Bits<std::uint16_t> {
  using Type    = Field<7, 4, std::uint16_t>;
  using Version = Field<3, 0, std::uint16_t>;
};
constexpr std::uint16_t kExpressEndpoint       = 0x0;
constexpr std::uint16_t kExpressRootIntegrated = 0x9;
constexpr std::uint32_t kExpressFlrCapable     = 0x10000000;  // of DEVCAP
constexpr std::uint16_t kExpressFlr            = 0x8000;      // of the device control

// Advanced features capability (AF ECN); offsets within the capability.
constexpr std::uint32_t kAfCapabilities = 0x03;
constexpr std::uint32_t kAfControl      = 0x04;
constexpr std::uint32_t kAfCapSize      = 0x06;
constexpr std::uint8_t  kAfFlrCapable   = 0x02;
constexpr std::uint8_t  kAfFlr          = 0x01;

// MSI-X capability, PCI 3.0 6.8.2; offsets within the capability.
constexpr std::uint32_t kMsixControl     = 0x02;
constexpr std::uint32_t kMsixTable       = 0x04;
constexpr std::uint32_t kMsixPba         = 0x08;
constexpr std::uint32_t kMsixCapSize     = 0x0c;
struct MSIX_CONTROL : Bits<std::uint16_t> {
  using Enable       = Bit<15>;
  using FunctionMask = Bit<14>;
  using TableSize    = Field<10, 0, std::uint16_t>;  // entries - 1
};
constexpr std::uint16_t kMsixMaxVectors  = 2048;

// MSI-X table entry, PCI 3.0 6.8.2.6 to 6.8.2.9.
constexpr std::uint32_t kMsixEntrySize     = 16;
constexpr std::uint32_t kMsixAddressLow    = 0x0;
constexpr std::uint32_t kMsixAddressHigh   = 0x4;
constexpr std::uint32_t kMsixData          = 0x8;
constexpr std::uint32_t kMsixVectorControl = 0xc;
struct MSIX_VECTOR_CONTROL : Bits<std::uint32_t> {
  using Mask = Bit<0>;
};
constexpr std::uint32_t kMsixAddressLowMask = 0xfffffffc;  // 6.8.2.7: the low two bits are read-only zero

// Class codes, PCI 3.0 appendix D.
constexpr std::uint32_t kClassHostBridge = 0x060000;
// clang-format on

}  // namespace postern::pci
