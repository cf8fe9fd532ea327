// virtio-console (VIRTIO 1.2 section 5.3), the first port only: what the probe says goes through
// it.
#include <new>

#include "src/probe/tests.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint64_t kFeatureSize = uint64_t{1} << 0;
constexpr uint32_t kConfigColumns = 0;
constexpr uint32_t kConfigRows = 2;
constexpr uint16_t kReceive = 0;
constexpr uint16_t kTransmit = 1;
constexpr uint16_t kQueueSize = 16;
constexpr uint32_t kBufferSize = 512;

// One opened console. The first one stays open to the end.
struct Console {
  explicit Console(Transport& transport) : device(transport) {}
  VirtioDevice device;
  Queue* receive = nullptr;
  Queue* transmit = nullptr;
  uint64_t bytes = 0;
  uint64_t cycles = 0;
};

Console* g_output;
Transport* g_output_transport;

bool Open(Console& console, Row& row) {
  if (!console.device.Begin(kFeatureSize, 2, row)) return false;
  console.receive = console.device.AddQueue(kReceive, kQueueSize, row);
  console.transmit = console.device.AddQueue(kTransmit, kQueueSize, row);
  if (console.receive == nullptr || console.transmit == nullptr) return false;
  auto* input = static_cast<char*>(Allocate(kBufferSize));
  if (input == nullptr) return row.Fail("no memory");
  if (!console.device.DriverOk(row)) return false;
  // Input is not read, but a device with a receive buffer takes another way than one without.
  const Segment writable[] = {{input, kBufferSize}};
  if (!console.receive->Add({}, writable, 0)) return row.Fail("no room on the receive queue");
  console.receive->Kick();
  return true;
}

bool Send(Console& console, std::string_view bytes) {
  const uint64_t begin = ReadTsc();
  while (!bytes.empty()) {
    // From where it is: the request is over before the caller goes on.
    const size_t size = bytes.size() < kBufferSize ? bytes.size() : kBufferSize;
    // Two pieces, so that every line also exercises chains.
    const auto half = static_cast<uint32_t>(size / 2);
    const Segment readable[] = {{bytes.data(), half},
                                {bytes.data() + half, static_cast<uint32_t>(size) - half}};
    uint32_t length = 0;
    const std::span<const Segment> all(readable);
    if (!console.transmit->Run(half == 0 ? all.subspan(1) : all, {}, length)) return false;
    bytes.remove_prefix(size);
    console.bytes += size;
  }
  console.cycles += ReadTsc() - begin;
  return true;
}

bool SendToOutput(std::string_view bytes) {
  return Send(*g_output, bytes);
}

// What can be said of an open console after some lines went through it.
void Judge(Console& console, Row& row) {
  row.tested().Add("transmit in chains, receive buffer posted");
  row.figures().Put(console.bytes, " bytes, ", console.transmit->completions(), " requests, ");
  if (console.transmit->completions() != 0) {
    row.figures().Put(MicrosOf(console.cycles) / console.transmit->completions(), " us each, ");
  }
  row.figures().Put(console.device.Interrupts(*console.transmit), " interrupts");
  if (console.device.Has(kFeatureSize)) {
    Transport& transport = console.device.transport();
    const uint16_t columns = transport.ReadConfig16(kConfigColumns);
    // 0: the far end is no terminal.
    if (columns != 0) row.figures().Put(", ", columns, 'x', transport.ReadConfig16(kConfigRows));
  }
  if (console.bytes == 0) row.Fail("nothing could be sent");
  if (!console.device.InterruptsExceed(*console.transmit, 0)) row.Fail("no interrupt arrived");
}

}  // namespace

ConsoleWriter OpenConsole() {
  g_output_transport = FindVirtio(kVirtioConsole);
  if (g_output_transport == nullptr) return nullptr;
  void* memory = Allocate(sizeof(Console), alignof(Console));
  if (memory == nullptr) return nullptr;
  Row row("console");
  auto* console = new (memory) Console(*g_output_transport);
  // A console that does not open is judged, and shown as failed, when its turn in the table comes.
  if (!Open(*console, row)) return nullptr;
  g_output = console;
  return &SendToOutput;
}

void CloseConsole() {
  SuspendOutput();
  if (g_output == nullptr) return;
  Row row("console");
  g_output->device.End(row);
  g_output = nullptr;
}

void TestConsole(Transport& transport, Row& row) {
  if (&transport == g_output_transport && g_output != nullptr) {
    Judge(*g_output, row);
    return;
  }
  Console console(transport);
  if (Open(console, row)) {
    if (!Send(console, "postern probe: this is another console of the same machine\r\n"))
      row.Fail("no answer to a transmit request");
    Judge(console, row);
  }
  console.device.End(row);
}

}  // namespace postern::probe
