// The probe: a guest that drives every device of the machine it runs on and says what it found. See README.md.
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
  line.Add("postern probe, started by ").Add(g_boot.protocol == BootProtocol::kPvh ? "PVH" : "the 64-bit Linux protocol");
  line.Add(", ").Dec(g_boot.RamBytes() >> 20).Add(" MiB of RAM, ").Dec(AcpiInfo().processor_count).Add(" vCPUs, TSC ");
  line.Tenths(Tsc().khz / 100).Add(" MHz (").Add(Tsc().source).Add(')');
  Print(line);
}

// True if everything that was asked for went well.
bool RunMode() {
  switch (g_options.mode) {
    case Mode::kBlkBench: return BlkBench();
    case Mode::kNetBench: return NetBench();
    case Mode::kPio: return PioLoop();
    case Mode::kMmio: return MmioLoop();
    case Mode::kHostile: return Hostile();
    case Mode::kTable:
    case Mode::kExit: break;
  }
  PrintBanner();
  RunTests();
  const Tally& results = Results();
  Line line;
  line.Add("probe: ").Dec(results.passed).Add(" passed, ").Dec(results.failed).Add(" failed, ").Dec(results.absent);
  Print(line.Add(" absent"));
  return results.failed == 0;
}

[[noreturn]] void Leave(bool success) {
  if (success) PowerOff();
  // Also when the machine cannot power itself off: a monitor that only knows reset then at least ends.
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
    Print(line.Add("probe: cannot make sense of '").Add(g_options.unknown).Add("'"));
    Leave(false);
  }
  Leave(RunMode());
}

}  // namespace

const Options& ProbeOptions() { return g_options; }
const BootInfo& Boot() { return g_boot; }

}  // namespace postern::probe

// What the compiler may call without being asked, even freestanding, and what entry.S calls.
extern "C" {

// Words first: where the guest is interpreted, every step of a string instruction costs the same.
void* memcpy(void* to, const void* from, size_t size) {
  void* const result = to;
  size_t words = size / 8;
  size_t rest = size % 8;
  asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest)::"memory");
  return result;
}

void* memset(void* to, int value, size_t size) {
  void* const result = to;
  const uint64_t pattern = 0x0101010101010101 * static_cast<unsigned char>(value);
  size_t words = size / 8;
  size_t rest = size % 8;
  asm volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(pattern) : "memory");
  asm volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(pattern) : "memory");
  return result;
}

int memcmp(const void* left, const void* right, size_t size) {
  size_t words = size / 8;
  size_t rest = size % 8;
  // Leaves both behind the first word that differs, or behind the last; without any, "equal" has to be made first.
  bool equal = true;
  asm volatile("cmpq %%rax, %%rax; repe cmpsq" : "+S"(left), "+D"(right), "+c"(words), "=@cce"(equal)::"memory");
  const auto* a = static_cast<const unsigned char*>(left);
  const auto* b = static_cast<const unsigned char*>(right);
  if (!equal) {
    a -= 8;
    b -= 8;
    rest = 8;
  }
  for (size_t i = 0; i < rest; ++i) {
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  }
  return 0;
}

void* memchr(const void* where, int value, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(where);
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] == static_cast<unsigned char>(value)) return const_cast<unsigned char*>(bytes + i);
  }
  return nullptr;
}

size_t strlen(const char* text) {
  size_t size = 0;
  while (text[size] != 0) ++size;
  return size;
}

void __cxa_pure_virtual() { postern::probe::HaltForever(); }

void ProbeMain(uint32_t protocol, uint64_t info) {
  postern::probe::Start(static_cast<postern::probe::BootProtocol>(protocol), info);
}

}  // extern "C"
