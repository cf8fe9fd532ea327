#pragma once

// DecodeDirectStore: what a MOVDIR64B, ENQCMD or ENQCMDS is about to do, from its bytes and the
// registers: for a portal that is not mapped, since KVM knows none of the three.
//
//   auto store = DecodeDirectStore(bytes, DecodeInputOf(regs, sregs));
//   if (store && store->kind == DirectStoreKind::kMovdir64b) {
//     ... translate store->destination and store->source, copy 64 bytes, rip += store->length
//   }
//
// Is not an emulation: it touches no memory, checks no segment limit, privilege, canonical form or
// alignment (a destination that is not 64-byte aligned is a general protection fault, for the
// caller to raise). The answer to an ENQCMD that a device does not take is ZF = 1.
//
// Threads: a pure function. Source: Intel SDM vol. 2, chapter 2 and the three instructions' pages.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "src/arch/x86_64/state.h"

namespace postern::x86_64 {

// The default operand and address size of the code segment.
enum class CodeMode : std::uint8_t { k16, k32, k64 };

// Bases; in 64-bit mode those of FS and GS alone count.
struct SegmentBases {
  std::uint64_t es = 0, cs = 0, ss = 0, ds = 0, fs = 0, gs = 0;
};

struct DecodeInput {
  // In the order of their encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t rip = 0;  // of the instruction's first byte
  CodeMode mode = CodeMode::k64;
  SegmentBases bases;
};

// SDM vol. 3A 5.2.1: the mode by EFER.LMA, CS.L and CS.D.
[[nodiscard]] DecodeInput DecodeInputOf(const Regs& regs, const Sregs& sregs);

enum class DirectStoreKind : std::uint8_t { kMovdir64b, kEnqcmd, kEnqcmds };

struct DirectStore {
  DirectStoreKind kind = DirectStoreKind::kMovdir64b;
  std::uint64_t destination = 0;  // linear addresses of 64 bytes
  std::uint64_t source = 0;
  std::uint8_t length = 0;  // of the instruction
};

// `bytes` from RIP on, of which the first 15 count. Empty for every other instruction, for one that
// is longer than `bytes` or than 15, and where the processor raises #UD (LOCK, a register source).
[[nodiscard]] std::optional<DirectStore> DecodeDirectStore(std::span<const std::byte> bytes,
                                                           const DecodeInput& input);

}  // namespace postern::x86_64
