// What an exit costs: the same access over and over.
#include "src/probe/acpi.h"
#include "src/probe/clock.h"
#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

// The port PCs use for power-on codes: written by everybody, read by nobody.
constexpr uint16_t kScratchPort = 0x80;

void PrintLoop(std::string_view name, uint64_t ops, uint64_t cycles) {
  Line line;
  line.Put(name, " ops=", ops, " cycles=", cycles, " us=", MicrosOf(cycles));
  Print(line.Put(" ns_per_op=", MicrosOf(cycles * 1000) / (ops == 0 ? 1 : ops)));
}

}  // namespace

bool PioLoop() {
  const uint64_t ops = ProbeOptions().ops;
  const uint64_t begin = ReadTsc();
  for (uint64_t i = 0; i < ops; ++i) Out8(kScratchPort, static_cast<uint8_t>(i));
  PrintLoop("pio", ops, ReadTsc() - begin);
  return true;
}

bool MmioLoop() {
  const uint64_t ops = ProbeOptions().ops;
  uint64_t begin = 0;
  if (VirtioCount() != 0) {
    // The status register of a device: a read with no effect.
    Transport& transport = VirtioAt(0);
    begin = ReadTsc();
    for (uint64_t i = 0; i < ops; ++i) static_cast<void>(transport.Status());
  } else if (AcpiInfo().ecam != 0) {
    begin = ReadTsc();
    for (uint64_t i = 0; i < ops; ++i) static_cast<void>(Read32(AcpiInfo().ecam));
  } else {
    Print("mmio: nothing to read");
    return false;
  }
  PrintLoop("mmio", ops, ReadTsc() - begin);
  return true;
}

}  // namespace postern::probe
