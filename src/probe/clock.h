// Time by the TSC. Its frequency is read, not measured, wherever the machine tells it.
#pragma once

#include <cstdint>

#include "src/probe/x86.h"

namespace postern::probe {

struct TscFrequency {
  uint64_t khz;
  const char* source;
  bool assumed;  // nothing told it: figures in time units are then only a guess
};

// `pm_timer_port`: the ACPI power-management timer's port, or 0.
void InitClock(uint16_t pm_timer_port);
const TscFrequency& Tsc();

inline uint64_t CyclesOf(uint64_t micros) {
  return micros * Tsc().khz / 1000;
}
inline uint64_t MicrosOf(uint64_t cycles) {
  return cycles * 1000 / Tsc().khz;
}
void SpinMicros(uint64_t micros);

}  // namespace postern::probe
