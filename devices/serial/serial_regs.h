#pragma once

// The registers of a 16550A. Source: TI PC16550D data sheet (SNLS378), section 8; one row per row
// of its table 3. RBR/THR, IIR/FCR share an address: one is read, the other written. With LCR.DLAB
// set, offsets 0 and 1 are the divisor latch.

#include <array>
#include <cstdint>

#include "src/base/bits.h"
#include "src/bus/register_map.h"

namespace postern::serial {

struct IER : Bits<std::uint8_t> {
  using LineStatus = Bit<2>;
  using TransmitterEmpty = Bit<1>;
  using DataAvailable = Bit<0>;
};

struct IIR : Bits<std::uint8_t> {
  using FifosEnabled = Field<7, 6>;
  using Identification = Field<3, 0>;
};
// IIR.Identification, highest priority first.
constexpr std::uint8_t kIirLineStatus = 0x6;
constexpr std::uint8_t kIirDataAvailable = 0x4;
constexpr std::uint8_t kIirTransmitterEmpty = 0x2;
constexpr std::uint8_t kIirNone = 0x1;
constexpr std::uint8_t kIirFifosOn = 0x3;

struct FCR : Bits<std::uint8_t> {
  using ClearReceiver = Bit<1>;
  using Enable = Bit<0>;
};

struct LCR : Bits<std::uint8_t> {
  using DivisorLatchAccess = Bit<7>;
};

struct MCR : Bits<std::uint8_t> {
  using Loopback = Bit<4>;
  using Out2 = Bit<3>;
  using Out1 = Bit<2>;
  using RequestToSend = Bit<1>;
  using DataTerminalReady = Bit<0>;
};

struct LSR : Bits<std::uint8_t> {
  using TransmitterIdle = Bit<6>;
  using TransmitterHoldingEmpty = Bit<5>;
  using Overrun = Bit<1>;
  using DataReady = Bit<0>;
};

struct MSR : Bits<std::uint8_t> {
  using CarrierDetect = Bit<7>;
  using RingIndicator = Bit<6>;
  using DataSetReady = Bit<5>;
  using ClearToSend = Bit<4>;
};

constexpr std::uint32_t kRbrThr = 0;
constexpr std::uint32_t kIer = 1;
constexpr std::uint32_t kIirFcr = 2;
constexpr std::uint32_t kLcr = 3;
constexpr std::uint32_t kMcr = 4;
constexpr std::uint32_t kLsr = 5;
constexpr std::uint32_t kMsr = 6;
constexpr std::uint32_t kScr = 7;
constexpr std::uint32_t kDll = 0;
constexpr std::uint32_t kDlm = 1;

// 8 data bits, no parity, one stop bit; a terminal that is there and ready; 9600 baud from 1.8432
// MHz.
constexpr std::uint8_t kLcrReset = 0x03;
constexpr std::uint8_t kMcrReset = 0x08;
constexpr std::uint8_t kMsrReset = 0xb0;
constexpr std::uint8_t kDllReset = 0x0c;

// clang-format off
constexpr auto kRegisters = std::to_array<bus::RegisterRow>({
    // offset  width name       writable w1c reset      on access
    {kRbrThr,  1,    "RBR/THR", 0,       0,  0,         bus::kOnBoth },
    {kIer,     1,    "IER",     0x0f,    0,  0,         bus::kOnWrite},
    {kIirFcr,  1,    "IIR/FCR", 0,       0,  0,         bus::kOnBoth },
    {kLcr,     1,    "LCR",     0xff,    0,  kLcrReset, bus::kNone   },
    {kMcr,     1,    "MCR",     0x1f,    0,  kMcrReset, bus::kOnWrite},
    {kLsr,     1,    "LSR",     0,       0,  0,         bus::kOnRead },
    {kMsr,     1,    "MSR",     0,       0,  kMsrReset, bus::kOnRead },
    {kScr,     1,    "SCR",     0xff,    0,  0,         bus::kNone   },
});
constexpr auto kDivisorRegisters = std::to_array<bus::RegisterRow>({
    {kDll,     1,    "DLL",     0xff,    0,  kDllReset, bus::kNone   },
    {kDlm,     1,    "DLM",     0xff,    0,  0,         bus::kNone   },
});
// clang-format on
static_assert(bus::IsWellFormed(kRegisters) && bus::IsWellFormed(kDivisorRegisters));

}  // namespace postern::serial
