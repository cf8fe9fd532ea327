#pragma once

// The state of a vCPU at the kernel's first instruction, as plain structs; src/kvm translates them
// for KVM.
//
//   TRY(WriteGdt(memory));
//   TRY(WritePageTables(memory, HasGigabytePages(cpuid) ? PageSize::k1GiB : PageSize::k2MiB));
//   InitialState state = Linux64State(entry, kZeroPage);
//
// Only the boot processor has an initial state: the others wait for INIT/SIPI in the in-kernel
// local APIC. MSRs are the same on all. Is not: a register file for saving a running vCPU. Threads:
// pure functions. Sources: Linux Documentation/arch/x86/boot.rst (64-bit boot protocol), Xen
// docs/misc/pvh.pandoc, Intel SDM vol. 3A 3.4.5, 4.5.

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/arch/x86_64/state.h"
#include "src/base/result.h"
#include "src/memory/guest_memory.h"

namespace postern::x86_64 {

struct InitialState {
  Regs regs;
  Sregs sregs;
};

// Long mode with the identity map, %rsi = boot_params. Needs WriteGdt and WritePageTables.
[[nodiscard]] InitialState Linux64State(std::uint64_t entry, std::uint64_t boot_params);
// 32-bit protected mode, flat segments, paging off, %ebx = start info. Needs WriteGdt.
[[nodiscard]] InitialState PvhState(std::uint64_t entry, std::uint64_t start_info);

enum class PageSize : std::uint8_t { k2MiB, k1GiB };
// The descriptors both states above point at, at kGdt.
[[nodiscard]] Result<void> WriteGdt(const memory::GuestMemory& memory);
// Page tables from kPml4 on that map the first 4 GiB to themselves; Linux64State alone needs them.
// k1GiB touches two pages where k2MiB touches six; it needs HasGigabytePages (cpuid.h).
[[nodiscard]] Result<void> WritePageTables(const memory::GuestMemory& memory, PageSize size);

// A processor that has executed nothing since its reset: at the reset vector, in real mode.
[[nodiscard]] bool IsAtReset(const Regs& regs, const Sregs& sregs);

// Of the next instruction: RIP, with the base of CS outside 64-bit mode.
[[nodiscard]] std::uint64_t LinearRip(const Regs& regs, const Sregs& sregs);
// The current privilege level: 0 is the kernel's.
[[nodiscard]] unsigned PrivilegeLevel(const Sregs& sregs);

// For every vCPU, before its first run.
[[nodiscard]] std::span<const Msr> InitialMsrs();

// Sets LVT0 to ExtINT (the boot processor alone) and LVT1 to NMI in a local APIC register page as
// KVM_GET_LAPIC gives it. kInvalidArgument if `page` is shorter than 1 KiB.
[[nodiscard]] Result<void> SetLocalApicLvt(std::span<std::byte> page, bool boot_processor);

}  // namespace postern::x86_64
