#pragma once

// Plain values of x86-64 processor state that the boot code computes and src/kvm hands to KVM:
// CPUID entries, MSRs, registers. Names and meanings are the Intel SDM's; layouts are ours. Values;
// any thread.

#include <cstdint>

namespace postern::x86_64 {

struct CpuidEntry {
  std::uint32_t function = 0;
  std::uint32_t index = 0;
  std::uint32_t flags = 0;  // kIndexSignificant, as KVM_CPUID_FLAG_SIGNIFCANT_INDEX
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  friend bool operator==(const CpuidEntry&, const CpuidEntry&) = default;
};
constexpr std::uint32_t kIndexSignificant = 1;

struct Msr {
  std::uint32_t index;
  std::uint64_t value;
  bool required;  // false: a KVM that refuses it can still run the guest
};

// Mirrors the processor's hidden descriptor part (SDM vol. 3A 3.4.5).
struct Segment {
  std::uint64_t base = 0;
  std::uint32_t limit = 0;
  std::uint16_t selector = 0;
  std::uint8_t type = 0;
  std::uint8_t present = 0;
  std::uint8_t dpl = 0;
  std::uint8_t db = 0;
  std::uint8_t s = 0;
  std::uint8_t l = 0;
  std::uint8_t g = 0;
  std::uint8_t avl = 0;
  std::uint8_t unusable = 0;
};

struct DescriptorTable {
  std::uint64_t base = 0;
  std::uint16_t limit = 0;
};

// General registers; those not named are zero.
struct Regs {
  std::uint64_t rax = 0, rbx = 0, rcx = 0, rdx = 0, rsi = 0, rdi = 0, rsp = 0, rbp = 0;
  std::uint64_t r8 = 0, r9 = 0, r10 = 0, r11 = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0;
  std::uint64_t rip = 0, rflags = 0;
};

// System registers. What is not here (apic_base, the interrupt bitmap, cr8) keeps the value KVM
// gave it.
struct Sregs {
  Segment cs, ds, es, fs, gs, ss, tr, ldt;
  DescriptorTable gdt, idt;
  std::uint64_t cr0 = 0, cr3 = 0, cr4 = 0, efer = 0;
};

}  // namespace postern::x86_64
