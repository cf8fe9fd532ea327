#include "src/probe/report.h"

#include <cstddef>

#include "src/probe/acpi.h"
#include "src/probe/clock.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint16_t kCom1 = 0x3f8;
constexpr uint16_t kBochsPort = 0xe9;

constexpr size_t kAddressColumn = 9;
constexpr size_t kResultColumn = 25;
constexpr size_t kTestedColumn = 33;
constexpr size_t kFiguresColumn = 84;

enum class Sink : uint8_t { kPending, kConsole, kSerial, kDebugPort, kNone };

Sink g_sink = Sink::kPending;
ConsoleWriter g_writer;
char g_pending[2048];
size_t g_pending_size;
Tally g_tally;

Sink FindPortSink() {
  // A 16550 keeps what is written to its scratch register; nothing reads back as all ones.
  Out8(kCom1 + 7, 0x5a);
  if (In8(kCom1 + 7) == 0x5a) {
    Out8(kCom1 + 3, 0x03);  // 8N1
    return Sink::kSerial;
  }
  // Bochs's debug port reads as its own number.
  return In8(kBochsPort) == kBochsPort ? Sink::kDebugPort : Sink::kNone;
}

void Emit(std::string_view bytes) {
  if (g_sink == Sink::kConsole) {
    if (g_writer(bytes)) return;
    g_sink = FindPortSink();
  }
  if (g_sink == Sink::kSerial) {
    for (char c : bytes) {
      for (int i = 0; i < 1000 && (In8(kCom1 + 5) & 0x20) == 0; ++i)
        Pause();  // transmitter holding register empty
      Out8(kCom1, static_cast<uint8_t>(c));
    }
  } else if (g_sink == Sink::kDebugPort) {
    for (char c : bytes) Out8(kBochsPort, static_cast<uint8_t>(c));
  } else if (g_sink == Sink::kPending) {
    for (char c : bytes) {
      if (g_pending_size < sizeof(g_pending)) g_pending[g_pending_size++] = c;
    }
  }
}

}  // namespace

void OpenOutput(ConsoleWriter writer) {
  g_writer = writer;
  g_sink = writer != nullptr ? Sink::kConsole : FindPortSink();
  const size_t size = g_pending_size;
  g_pending_size = 0;
  if (size != 0) Emit({g_pending, size});
}

void SuspendOutput() {
  g_sink = Sink::kPending;
}

void Print(std::string_view line) {
  Line out;
  // The far end may be a terminal in raw mode, which does not add the carriage return.
  out.Put(line, "\r\n");
  Emit(out.view());
}

bool Row::Fail(std::string_view reason) {
  if (!failed()) reason_.Add(reason);
  return false;
}

bool Row::Fail(std::string_view reason, uint64_t number) {
  if (failed()) return false;
  reason_.Put(reason, ' ');
  if (number < 100000) {
    reason_.Dec(number);
  } else {
    reason_.Add("0x").Hex(number);
  }
  return false;
}

void Row::Finish() {
  Line line;
  line.Add(name_)
      .PadTo(kAddressColumn)
      .Add(address_.empty() ? "-" : address_.view())
      .PadTo(kResultColumn);
  if (failed()) {
    ++g_tally.failed;
    line.Add("FAILED").PadTo(kTestedColumn).Add(reason_.view());
  } else {
    ++g_tally.passed;
    line.Add("ok").PadTo(kTestedColumn).Add(tested_.view());
    if (!figures_.empty()) line.PadTo(kFiguresColumn).Add(figures_.view());
  }
  Print(line);
}

void PrintTableHead() {
  Line line;
  line.Add("device")
      .PadTo(kAddressColumn)
      .Add("address")
      .PadTo(kResultColumn)
      .Add("result")
      .PadTo(kTestedColumn);
  line.Add("what was tested").PadTo(kFiguresColumn).Add("figures");
  Print(line);
}

void ReportAbsent(std::string_view name, bool required) {
  Line line;
  line.Add(name).PadTo(kAddressColumn).Add('-').PadTo(kResultColumn);
  if (required) {
    ++g_tally.failed;
    line.Add("FAILED").PadTo(kTestedColumn).Add("absent, and probe.require names it");
  } else {
    ++g_tally.absent;
    line.Add("absent");
  }
  Print(line);
}

const Tally& Results() {
  return g_tally;
}

void ReportException(uint8_t vector, uint64_t error, uint64_t rip, uint64_t address) {
  if (g_sink == Sink::kPending) OpenOutput(nullptr);
  Line line;
  line.Put("probe: exception ", vector, " at 0x").Hex(rip).Add(", error 0x").Hex(error);
  if (vector == 14) line.Add(", address 0x").Hex(address);
  Print(line);
  ResetMachine();
  HaltForever();
}

void AddRate(Line& line, uint64_t bytes, uint64_t cycles) {
  const uint64_t micros = MicrosOf(cycles);
  // Bytes per microsecond are megabytes per second.
  line.Tenths(micros == 0 ? 0 : bytes * 10 / micros).Add(" MB/s");
}

}  // namespace postern::probe
