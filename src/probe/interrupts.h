// Interrupts: the IDT, the local APIC in either of its faces, vectors, the timer, I/O APIC pins,
// and waiting with a limit.
#pragma once

#include <cstdint>

#include "src/probe/clock.h"
#include "src/probe/x86.h"

namespace postern::probe {

inline constexpr uint8_t kFirstDeviceVector = 0x30;
inline constexpr uint8_t kLastDeviceVector = 0xef;
inline constexpr uint8_t kTimerVector = 0xf0;
inline constexpr uint8_t kIpiVector = 0xf1;
inline constexpr uint8_t kSpuriousVector = 0xff;

// Once, on the boot processor. `lapic_address` is the MADT's, used if there is no x2APIC.
void InitInterrupts(uint64_t lapic_address);
// On every other processor.
void InitApInterrupts();

bool HasX2Apic();
uint32_t LocalApicId();
// Distinguishes an exception in the program from an interrupt nobody asked for: counts every
// vector, on any processor.
uint32_t InterruptCount(uint8_t vector);

// Runs in the interrupt, before its end is signalled.
using InterruptHook = void (*)(void* context);
void SetInterruptHook(uint8_t vector, InterruptHook hook, void* context);

// Vectors are handed out in order and given back by returning to a mark; the last one is shared
// when they run out.
uint8_t AllocateVector();
uint8_t VectorMark();
void ReleaseVectors(uint8_t mark);
// Opens every device vector: for the hostile mode, whose devices send what they like.
void OpenAllVectors();

struct MsiMessage {
  uint64_t address;
  uint32_t data;
};
MsiMessage MessageFor(uint8_t vector);  // to the boot processor, fixed delivery, edge

void SendIpi(uint32_t apic_id, uint8_t vector);
void SendInit(uint32_t apic_id);
void SendStartup(uint32_t apic_id, uint8_t page);

// An I/O APIC pin to `vector` on the boot processor; false if no I/O APIC has the GSI.
bool RouteGsi(uint32_t gsi, uint8_t vector, bool level, bool active_low);
void MaskGsi(uint32_t gsi);

bool HasTscDeadline();
// One interrupt on kTimerVector when the TSC has reached `deadline`.
void ArmTimer(uint64_t deadline);
void StopTimer();

// Sleeps until `done()` or until the time is over; returns what `done()` said last. Wakes every so
// often, so that a lost interrupt shows as a missing count rather than as a lost test.
template <typename Done>
bool WaitFor(uint64_t micros, Done done, uint64_t tick_micros = 10000) {
  const uint64_t deadline = ReadTsc() + CyclesOf(micros);
  const uint64_t tick = CyclesOf(tick_micros);
  bool result = false;
  DisableInterrupts();
  while (!(result = done())) {
    const uint64_t now = ReadTsc();
    if (now >= deadline) break;
    ArmTimer(deadline - now < tick ? deadline : now + tick);
    SleepUntilInterrupt();
  }
  EnableInterrupts();
  return result;
}

}  // namespace postern::probe
