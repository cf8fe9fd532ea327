// The probe: a guest that drives every device of the machine it runs on and says what it found. See
// README.md.
#include "src/probe/main.h"

#include "src/probe/acpi.h"
#include "src/probe/clock.h"
#include "src/probe/interrupts.h"
#include "src/probe/pci.h"
#include "src/probe/report.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constinit Options g_options;
constinit BootInfo g_boot;

void PrintBanner() {
  Line line;
  line.Put("postern probe, started by ",
           g_boot.protocol == BootProtocol::kPvh ? "PVH" : "the 64-bit Linux protocol");
  line.Put(", ", g_boot.RamBytes() >> 20, " MiB of RAM, ", AcpiInfo().processor_count,
           " vCPUs, TSC ");
  line.Tenths(Tsc().khz / 100).Put(" MHz (", Tsc().source, ')');
  Print(line);
}

// True if everything that was asked for went well.
bool RunMode() {
  switch (g_options.mode) {
    case Mode::kBlkBench:
      return BlkBench();
    case Mode::kNetBench:
      return NetBench();
    case Mode::kPio:
      return PioLoop();
    case Mode::kMmio:
      return MmioLoop();
    case Mode::kHostile:
      return Hostile();
    case Mode::kTable:
    case Mode::kExit:
      break;
  }
  PrintBanner();
  RunTests();
  const Tally& results = Results();
  Line line;
  line.Put("probe: ", results.passed, " passed, ", results.failed, " failed, ", results.absent);
  Print(line.Add(" absent"));
  return results.failed == 0;
}

[[noreturn]] void Leave(bool success) {
  if (success) PowerOff();
  // Also when the machine cannot power itself off: a monitor that only knows reset then at least
  // ends.
  ResetMachine();
  Print("probe: neither power-off nor reset works; halting");
  HaltForever();
}

void Start(BootProtocol protocol, uint64_t info) {
  ReadBootInfo(protocol, info, g_boot);
  ParseCommandLine(g_boot.command_line, g_options);
  InitAcpi(g_boot.rsdp);
  if (g_options.mode == Mode::kExit) {
    PowerOff();
    ResetMachine();
    HaltForever();
  }
  InitClock(AcpiInfo().pm_timer);
  InitInterrupts(AcpiInfo().lapic);
  InitPci();
  InitVirtio();
  OpenOutput(OpenConsole());
  if (!g_boot.valid) {
    Print("probe: the boot information has no valid signature");
    Leave(false);
  }
  if (!g_options.unknown.empty()) {
    Line line;
    Print(line.Put("probe: cannot make sense of '", g_options.unknown, "'"));
    Leave(false);
  }
  Leave(RunMode());
}

}  // namespace

const Options& ProbeOptions() {
  return g_options;
}
const BootInfo& Boot() {
  return g_boot;
}

}  // namespace postern::probe

extern "C" void ProbeMain(uint32_t protocol, uint64_t info) {
  postern::probe::Start(static_cast<postern::probe::BootProtocol>(protocol), info);
}
