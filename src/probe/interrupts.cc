#include "src/probe/interrupts.h"

#include <cstddef>

#include "src/probe/acpi.h"
#include "src/probe/paging.h"
#include "src/probe/report.h"

extern "C" char g_interrupt_stubs[];
extern "C" char g_sleep_hlt[];

namespace postern::probe {
namespace {

// Local APIC registers by their xAPIC offset; the x2APIC MSR is 0x800 + offset / 16 (Intel SDM
// volume 3, 11.12.1).
constexpr uint32_t kApicId = 0x020;
constexpr uint32_t kTaskPriority = 0x080;
constexpr uint32_t kEndOfInterrupt = 0x0b0;
constexpr uint32_t kSpurious = 0x0f0;
constexpr uint32_t kInterruptCommand = 0x300;
constexpr uint32_t kInterruptCommandHigh = 0x310;
constexpr uint32_t kLvtTimer = 0x320;
constexpr uint32_t kLvtLint0 = 0x350;
constexpr uint32_t kLvtLint1 = 0x360;
constexpr uint32_t kTimerInitialCount = 0x380;
constexpr uint32_t kTimerCurrentCount = 0x390;
constexpr uint32_t kTimerDivide = 0x3e0;

constexpr uint32_t kLvtMasked = 1U << 16;
constexpr uint32_t kLvtTscDeadline = 2U << 17;
constexpr uint32_t kApicEnable = 1U << 8;
constexpr uint32_t kDivideBy16 = 0x3;
constexpr uint32_t kDeliveryInit = 5U << 8;
constexpr uint32_t kDeliveryStartup = 6U << 8;
constexpr uint32_t kLevelAssert = 1U << 14;
constexpr uint32_t kDeliveryPending = 1U << 12;

constexpr uint32_t kMsrApicBase = 0x1b;
constexpr uint64_t kApicBaseEnable = 1U << 11;
constexpr uint64_t kApicBaseX2 = 1U << 10;
constexpr uint32_t kMsrTscDeadline = 0x6e0;
constexpr uint32_t kX2ApicBase = 0x800;

// What InterruptCommon in entry.S leaves on the stack, and below it what the processor pushed:
// {rip, ...}, or for some exceptions {error code, rip, ...}.
struct InterruptFrame {
  uint64_t r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
  uint64_t stub_return;
  uint64_t pushed[2];
};
constexpr uint64_t kStubSize = 8;
constexpr uint32_t kVectorsWithErrorCode =
    1U << 8 | 0x1fU << 10 | 1U << 17 | 1U << 21 | 1U << 29 | 1U << 30;

struct Gate {
  uint64_t low, high;
};
struct [[gnu::packed]] IdtPointer {
  uint16_t limit;
  const Gate* base;
};

alignas(16) Gate g_idt[256];
volatile uint32_t g_counts[256];
struct Hook {
  InterruptHook function;
  void* context;
};
Hook g_hooks[256];

bool g_x2apic;
bool g_tsc_deadline;
uint64_t g_lapic;
uint64_t g_timer_khz;  // of the counting timer, after the divider
uint8_t g_next_vector = kFirstDeviceVector;

uint32_t ReadApic(uint32_t offset) {
  return g_x2apic ? static_cast<uint32_t>(ReadMsr(kX2ApicBase + offset / 16))
                  : Read32(g_lapic + offset);
}

void WriteApic(uint32_t offset, uint32_t value) {
  if (g_x2apic) {
    WriteMsr(kX2ApicBase + offset / 16, value);
  } else {
    Write32(g_lapic + offset, value);
  }
}

void WriteCommand(uint32_t apic_id, uint32_t command) {
  if (g_x2apic) {
    WriteMsr(kX2ApicBase + kInterruptCommand / 16, uint64_t{apic_id} << 32 | command);
    return;
  }
  Write32(g_lapic + kInterruptCommandHigh, apic_id << 24);
  Write32(g_lapic + kInterruptCommand, command);
  for (int i = 0; i < 1000 && (Read32(g_lapic + kInterruptCommand) & kDeliveryPending) != 0; ++i)
    Pause();
}

void OpenGate(uint8_t vector) {
  const uint64_t target =
      reinterpret_cast<uint64_t>(g_interrupt_stubs) + uint64_t{vector} * kStubSize;
  // A present 64-bit interrupt gate to the code segment (Intel SDM volume 3, 6.14.1).
  g_idt[vector].low = (target & 0xffff) | uint64_t{0x08} << 16 | uint64_t{0x8e00} << 32 |
                      (target >> 16 & 0xffff) << 48;
  g_idt[vector].high = target >> 32;
}

void EnableLocalApic() {
  uint64_t base = ReadMsr(kMsrApicBase) | kApicBaseEnable;
  if (g_x2apic) {
    if ((base & kApicBaseX2) == 0) {
      WriteMsr(kMsrApicBase, base);
      WriteMsr(kMsrApicBase, base | kApicBaseX2);
    }
  } else if ((ReadMsr(kMsrApicBase) & kApicBaseEnable) == 0) {
    WriteMsr(kMsrApicBase, base);
  }
  // Firmware may have left the 8259 wired through LINT0: nothing here speaks to it.
  WriteApic(kLvtLint0, kLvtMasked);
  WriteApic(kLvtLint1, kLvtMasked);
  WriteApic(kLvtTimer, kLvtMasked);
  WriteApic(kTaskPriority, 0);
  WriteApic(kSpurious, kApicEnable | kSpuriousVector);
}

void LoadIdt() {
  const IdtPointer pointer{sizeof(g_idt) - 1, g_idt};
  asm volatile("lidt %0" ::"m"(pointer));
}

void InitTimer() {
  g_tsc_deadline = (Cpuid(1).ecx >> 24 & 1) != 0;
  if (g_tsc_deadline) {
    WriteApic(kLvtTimer, kLvtTscDeadline | kTimerVector);
    return;
  }
  WriteApic(kTimerDivide, kDivideBy16);
  WriteApic(kTimerInitialCount, 0xffffffff);
  const uint64_t begin = ReadTsc();
  SpinMicros(1000);
  const uint64_t counted = 0xffffffff - ReadApic(kTimerCurrentCount);
  const uint64_t cycles = ReadTsc() - begin;
  WriteApic(kTimerInitialCount, 0);
  g_timer_khz = counted * Tsc().khz / cycles;
  if (g_timer_khz == 0) g_timer_khz = 1;
  WriteApic(kLvtTimer, kTimerVector);
}

// The I/O APIC: an index register and a data register (82093AA data sheet, 3.1).
void WriteIoApic(uint64_t base, uint32_t index, uint32_t value) {
  Write32(base, index);
  Write32(base + 0x10, value);
}

uint32_t ReadIoApic(uint64_t base, uint32_t index) {
  Write32(base, index);
  return Read32(base + 0x10);
}

// The I/O APIC that has `gsi`, and the first of the pin's two registers.
bool FindPin(uint32_t gsi, uint64_t& base, uint32_t& index) {
  const Acpi& acpi = AcpiInfo();
  for (size_t i = 0; i < acpi.ioapic_count; ++i) {
    const IoApic& io = acpi.ioapics[i];
    if (gsi < io.gsi_base) continue;
    MapPhysical(io.address, 0x20, Caching::kDevice);
    const uint32_t pins = (ReadIoApic(io.address, 1) >> 16 & 0xff) + 1;
    if (gsi - io.gsi_base >= pins) continue;
    base = io.address;
    index = 0x10 + 2 * (gsi - io.gsi_base);
    return true;
  }
  return false;
}

}  // namespace

extern "C" void OnInterrupt(InterruptFrame* frame) {
  const auto vector = static_cast<uint8_t>(
      (frame->stub_return - reinterpret_cast<uint64_t>(g_interrupt_stubs)) / kStubSize);
  if (vector < 32) {
    const bool has_error = (kVectorsWithErrorCode >> vector & 1) != 0;
    ReportException(vector, has_error ? frame->pushed[0] : 0, frame->pushed[has_error ? 1 : 0],
                    ReadCr2());
  }
  // It came before the hlt that waits for it (entry.S): hlt has one byte.
  if (frame->pushed[0] == reinterpret_cast<uint64_t>(g_sleep_hlt)) ++frame->pushed[0];
  g_counts[vector] = g_counts[vector] + 1;
  const Hook& hook = g_hooks[vector];
  if (hook.function != nullptr) hook.function(hook.context);
  // A spurious interrupt has no bit in the in-service register (Intel SDM volume 3, 11.9).
  if (vector != kSpuriousVector) WriteApic(kEndOfInterrupt, 0);
}

void InitInterrupts(uint64_t lapic_address) {
  for (unsigned vector = 0; vector < 32; ++vector) OpenGate(static_cast<uint8_t>(vector));
  OpenGate(kTimerVector);
  OpenGate(kIpiVector);
  OpenGate(kSpuriousVector);
  LoadIdt();
  g_x2apic = (Cpuid(1).ecx >> 21 & 1) != 0;
  g_lapic = lapic_address;
  if (!g_x2apic) MapPhysical(g_lapic, 4096, Caching::kDevice);
  EnableLocalApic();
  InitTimer();
  EnableInterrupts();
}

void InitApInterrupts() {
  LoadIdt();
  EnableLocalApic();
}

bool HasX2Apic() {
  return g_x2apic;
}
uint32_t LocalApicId() {
  return g_x2apic ? ReadApic(kApicId) : ReadApic(kApicId) >> 24;
}
uint32_t InterruptCount(uint8_t vector) {
  return g_counts[vector];
}

void SetInterruptHook(uint8_t vector, InterruptHook hook, void* context) {
  g_hooks[vector].function = nullptr;
  CompilerBarrier();
  g_hooks[vector].context = context;
  CompilerBarrier();
  g_hooks[vector].function = hook;
}

uint8_t AllocateVector() {
  const uint8_t vector = g_next_vector;
  if (g_next_vector < kLastDeviceVector) ++g_next_vector;
  g_hooks[vector] = {};
  OpenGate(vector);
  return vector;
}

uint8_t VectorMark() {
  return g_next_vector;
}
void ReleaseVectors(uint8_t mark) {
  g_next_vector = mark;
}

void OpenAllVectors() {
  for (unsigned vector = 32; vector < 256; ++vector) OpenGate(static_cast<uint8_t>(vector));
}

MsiMessage MessageFor(uint8_t vector) {
  return {0xfee00000 | uint64_t{LocalApicId() & 0xff} << 12, vector};
}

void SendIpi(uint32_t apic_id, uint8_t vector) {
  WriteCommand(apic_id, kLevelAssert | vector);
}
void SendInit(uint32_t apic_id) {
  WriteCommand(apic_id, kLevelAssert | kDeliveryInit);
}
void SendStartup(uint32_t apic_id, uint8_t page) {
  WriteCommand(apic_id, kLevelAssert | kDeliveryStartup | page);
}

bool RouteGsi(uint32_t gsi, uint8_t vector, bool level, bool active_low) {
  uint64_t base = 0;
  uint32_t index = 0;
  if (!FindPin(gsi, base, index)) return false;
  WriteIoApic(base, index, kLvtMasked);
  WriteIoApic(base, index + 1, (LocalApicId() & 0xff) << 24);
  WriteIoApic(base, index, vector | (active_low ? 1U << 13 : 0) | (level ? 1U << 15 : 0));
  return true;
}

void MaskGsi(uint32_t gsi) {
  uint64_t base = 0;
  uint32_t index = 0;
  if (FindPin(gsi, base, index)) WriteIoApic(base, index, kLvtMasked);
}

bool HasTscDeadline() {
  return g_tsc_deadline;
}

void ArmTimer(uint64_t deadline) {
  if (g_tsc_deadline) {
    WriteMsr(kMsrTscDeadline, deadline);
    return;
  }
  const uint64_t now = ReadTsc();
  uint64_t ticks = deadline > now ? (deadline - now) * g_timer_khz / Tsc().khz : 0;
  if (ticks == 0) ticks = 1;  // 0 would stop the timer
  WriteApic(kTimerInitialCount, ticks > 0xffffffff ? 0xffffffff : static_cast<uint32_t>(ticks));
}

void StopTimer() {
  if (g_tsc_deadline) {
    WriteMsr(kMsrTscDeadline, 0);
  } else {
    WriteApic(kTimerInitialCount, 0);
  }
}

}  // namespace postern::probe
