#pragma once

// EmulateDirectStore: carries out the MOVDIR64B that a guest executed on memory nobody has mapped
// (a trapped portal): KVM's own emulator does not know the instruction and gives up. Where KVM
// interprets all of a guest, the destination may as well be RAM or a mapped page.
//
//   if (EmulateDirectStore(bytes, regs, sregs, host) == DirectStoreEnd::kDone) { set regs; go on; }
//
// An ENQCMD or ENQCMDS is answered as a device answers that has no room: ZF = 1, "try again"; no
// guest is told that it has them. Is not a processor: an instruction that the processor refuses
// before it touches memory (a misaligned destination, no privilege) never exits.
//
// Threads: the vCPU's, with no lock held. Source: Intel SDM vol. 2, MOVDIR64B and ENQCMD.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "src/arch/x86_64/state.h"
#include "src/base/result.h"
#include "src/bus/bus.h"
#include "src/memory/guest_memory.h"

namespace postern {

struct DirectStoreHost {
  // Guest-physical, by the page tables the vCPU has now.
  std::function<Result<std::uint64_t>(std::uint64_t linear)> translate;
  const memory::MemoryMap& memory;
  // Stores to pages that are mapped and no RAM; false where there are none.
  std::function<bool(memory::Gpa gpa, bus::Block block)> store_to_pages;
  bus::Bus& mmio;
};

enum class DirectStoreEnd : std::uint8_t {
  kDone,   // and `regs` are those after the instruction
  kOther,  // another instruction, or one whose source is not RAM; nothing has happened
};

// Up to 15 bytes, the longest an x86 instruction can be, from `linear` on: fewer where what follows
// cannot be read.
[[nodiscard]] std::vector<std::byte> ReadInstruction(std::uint64_t linear,
                                                     const DirectStoreHost& host);

[[nodiscard]] DirectStoreEnd EmulateDirectStore(std::span<const std::byte> bytes,
                                                x86_64::Regs& regs, const x86_64::Sregs& sregs,
                                                const DirectStoreHost& host);

}  // namespace postern
