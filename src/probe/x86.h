// The instructions the probe needs that C++ has no word for. Plain integer instructions only: where
// KVM has no hardware virtualisation it interprets the guest, and refuses SSE, VEX forms, int3,
// xsave, cmpxchg16b and the fence instructions.
#pragma once

#include <cstdint>

namespace postern::probe {

inline void Out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline void Out16(uint16_t port, uint16_t value) {
  asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline void Out32(uint16_t port, uint32_t value) {
  asm volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline uint8_t In8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint16_t In16(uint16_t port) {
  uint16_t value;
  asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint32_t In32(uint16_t port) {
  uint32_t value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

// One access of exactly this width: a register's width is part of its meaning.
inline uint8_t Read8(uint64_t address) {
  uint8_t value;
  asm volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
  return value;
}
inline uint16_t Read16(uint64_t address) {
  uint16_t value;
  asm volatile("movw (%1), %0" : "=r"(value) : "r"(address) : "memory");
  return value;
}
inline uint32_t Read32(uint64_t address) {
  uint32_t value;
  asm volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
  return value;
}
inline uint64_t Read64(uint64_t address) {
  uint64_t value;
  asm volatile("movq (%1), %0" : "=r"(value) : "r"(address) : "memory");
  return value;
}
inline void Write8(uint64_t address, uint8_t value) {
  asm volatile("movb %0, (%1)" ::"q"(value), "r"(address) : "memory");
}
inline void Write16(uint64_t address, uint16_t value) {
  asm volatile("movw %0, (%1)" ::"r"(value), "r"(address) : "memory");
}
inline void Write32(uint64_t address, uint32_t value) {
  asm volatile("movl %0, (%1)" ::"r"(value), "r"(address) : "memory");
}
inline void Write64(uint64_t address, uint64_t value) {
  asm volatile("movq %0, (%1)" ::"r"(value), "r"(address) : "memory");
}

struct CpuidRegisters {
  uint32_t eax, ebx, ecx, edx;
};
inline CpuidRegisters Cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  CpuidRegisters r{};
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}
inline uint64_t ReadMsr(uint32_t msr) {
  uint32_t low, high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
  return (uint64_t{high} << 32) | low;
}
inline void WriteMsr(uint32_t msr, uint64_t value) {
  asm volatile("wrmsr" ::"c"(msr), "a"(static_cast<uint32_t>(value)),
               "d"(static_cast<uint32_t>(value >> 32))
               : "memory");
}
inline uint64_t ReadTsc() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
  return (uint64_t{high} << 32) | low;
}

inline void DisableInterrupts() {
  asm volatile("cli" ::: "memory");
}
inline void EnableInterrupts() {
  asm volatile("sti" ::: "memory");
}
extern "C" void SleepUntilInterrupt();  // entry.S
inline void Pause() {
  asm volatile("pause" ::: "memory");
}
[[noreturn]] inline void HaltForever() {
  for (;;) asm volatile("cli; hlt" ::: "memory");
}

// A full barrier without mfence: any locked instruction is one (Intel SDM volume 3, 8.2.2).
inline void FullBarrier() {
  asm volatile("lock; addl $0, (%%rsp)" ::: "memory", "cc");
}
// x86 keeps stores in order with stores and loads with loads: only the compiler has to be told.
inline void CompilerBarrier() {
  asm volatile("" ::: "memory");
}

inline void InvalidatePage(uint64_t address) {
  asm volatile("invlpg (%0)" ::"r"(address) : "memory");
}
inline uint64_t ReadCr2() {
  uint64_t value;
  asm volatile("movq %%cr2, %0" : "=r"(value));
  return value;
}

}  // namespace postern::probe
