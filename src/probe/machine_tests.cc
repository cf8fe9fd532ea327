// The machine without its devices: processors, tables, timer, PCI, MSI-X.
#include <span>

#include "src/probe/acpi.h"
#include "src/probe/acpi_parse.h"
#include "src/probe/interrupts.h"
#include "src/probe/main.h"
#include "src/probe/paging.h"
#include "src/probe/tests.h"
#include "src/probe/x86.h"

extern "C" {
extern const uint8_t kApTrampoline[];
extern const uint8_t kApTrampolineEnd[];
// Read by entry.S.
extern uint64_t g_ap_stack_top;
extern uint32_t g_ap_index;
uint64_t g_ap_stack_top;
uint32_t g_ap_index;
[[noreturn]] void ApMain(uint32_t index);
}

namespace postern::probe {

// ------------------------------------------------------------------------------------------------ cpu

bool TestCpu(Row& row) {
  const CpuidRegisters base = Cpuid(0);
  const CpuidRegisters features = Cpuid(1);
  // Leaf 0x0b (Intel SDM volume 2, CPUID): the x2APIC ID must be the local APIC's own.
  if (base.eax >= 0x0b && Cpuid(0x0b).ebx != 0 && Cpuid(0x0b).edx != LocalApicId()) {
    row.Fail("CPUID 0x0b: x2APIC ID", Cpuid(0x0b).edx);
  }
  if (features.ebx >> 24 != (LocalApicId() & 0xff)) row.Fail("CPUID 1: initial APIC ID", features.ebx >> 24);
  uint64_t last = ReadTsc();
  for (int i = 0; i < 16; ++i) {
    const uint64_t now = ReadTsc();
    if (now < last) row.Fail("the TSC runs backwards");
    last = now;
  }
  row.tested().Add("CPUID topology, APIC ID, TSC");
  Line& out = row.figures();
  out.Add(HasX2Apic() ? "x2APIC" : "xAPIC").Add(HasTscDeadline() ? ", TSC deadline" : ", counting timer");
  if (features.ecx >> 31 != 0) {
    const CpuidRegisters hypervisor = Cpuid(0x40000000);
    out.Add(", ");
    for (uint32_t word : {hypervisor.ebx, hypervisor.ecx, hypervisor.edx}) {
      for (int i = 0; i < 4; ++i) {
        const char c = static_cast<char>(word >> (8 * i));
        if (c >= ' ' && c <= '~') out.Add(c);
      }
    }
  }
  return true;
}

// ------------------------------------------------------------------------------------------------ acpi

bool TestAcpi(Row& row) {
  const Acpi& acpi = AcpiInfo();
  if (acpi.rsdp == 0) return false;
  row.address().Hex(acpi.rsdp, 8);
  const auto bytes = [](uint64_t address, size_t size) {
    return std::span<const uint8_t>(reinterpret_cast<const uint8_t*>(address), size);
  };
  // ACPI 6.5 5.2.5.3: the first 20 bytes sum to zero by themselves, from revision 2 on all 36 do as well.
  if (!HasZeroSum(bytes(acpi.rsdp, 20))) row.Fail("RSDP checksum");
  if (Read8(acpi.rsdp + 15) >= 2 && !HasZeroSum(bytes(acpi.rsdp, 36))) row.Fail("RSDP extended checksum");
  size_t total = 0;
  Line names;
  const auto check = [&](uint64_t table) {
    const uint32_t length = Read32(table + 4);
    total += length;
    Line name;
    for (size_t i = 0; i < 4; ++i) name.Add(static_cast<char>(Read8(table + i)));
    names.Add(' ').Add(name.view());
    if (!HasZeroSum(bytes(table, length))) row.Fail(name.Add(" checksum").view());
  };
  check(acpi.xsdt);
  for (size_t i = 0; i < acpi.table_count; ++i) check(acpi.tables[i]);
  if (acpi.dsdt == 0) {
    row.Fail("no DSDT");
  } else {
    check(acpi.dsdt);
  }
  if (acpi.fadt == 0) row.Fail("no FADT");
  if (acpi.processor_count == 0) row.Fail("no processor in the MADT");
  if (acpi.hardware_reduced && acpi.sleep_control.address == 0) row.Fail("hardware-reduced, yet no sleep control register");
  row.tested().Add("checksums:").Add(names.view());
  row.figures().Dec(total).Add(" bytes").Add(acpi.hardware_reduced ? ", hardware-reduced" : "");
  return true;
}

// ------------------------------------------------------------------------------------------------ timer

bool TestTimer(Row& row) {
  constexpr int kShots = 5;
  constexpr uint64_t kDelay = 1000;
  uint64_t late_total = 0;
  for (int i = 0; i < kShots && !row.failed(); ++i) {
    const uint32_t before = InterruptCount(kTimerVector);
    const uint64_t begin = ReadTsc();
    const uint64_t deadline = begin + CyclesOf(kDelay);
    const uint64_t limit = begin + CyclesOf(2'000'000);
    DisableInterrupts();
    ArmTimer(deadline);
    EnableInterrupts();
    // Not asleep: a timer that never fires must end in a failed row rather than in silence.
    while (InterruptCount(kTimerVector) == before && ReadTsc() < limit) Pause();
    const uint64_t now = ReadTsc();
    if (InterruptCount(kTimerVector) == before) {
      row.Fail("no timer interrupt within 2 s");
    } else if (HasTscDeadline() && now < deadline) {
      row.Fail("the timer fired early, us:", MicrosOf(deadline - now));
    } else {
      late_total += now > deadline ? now - deadline : 0;
    }
  }
  StopTimer();
  row.tested().Add(HasTscDeadline() ? "TSC deadline interrupts" : "local APIC timer interrupts");
  row.figures().Dec(kShots).Add(" shots of ").Dec(kDelay).Add(" us, late by ").Dec(MicrosOf(late_total) / kShots).Add(" us");
  return true;
}

// ------------------------------------------------------------------------------------------------ vcpus

namespace {

constexpr size_t kApStackSize = 2048;
constexpr uint32_t kAdditions = 500;
alignas(16) uint8_t g_ap_stacks[Acpi::kMaxProcessors][kApStackSize];
volatile uint8_t g_ap_online[Acpi::kMaxProcessors];
volatile uint8_t g_ap_called[Acpi::kMaxProcessors];
uint32_t g_wrong_id;  // processors whose APIC ID was not the MADT's
uint32_t g_shared_sum;
uint32_t g_answers;
uint32_t g_boot_apic_id;

void AtomicAdd(uint32_t& value, uint32_t amount) { __atomic_fetch_add(&value, amount, __ATOMIC_SEQ_CST); }
uint32_t AtomicLoad(const uint32_t& value) { return __atomic_load_n(&value, __ATOMIC_SEQ_CST); }

void OnIpi(void*) {
  const uint32_t id = LocalApicId();
  if (id == g_boot_apic_id) {
    AtomicAdd(g_answers, 1);
    return;
  }
  const Acpi& acpi = AcpiInfo();
  for (size_t i = 0; i < acpi.processor_count; ++i) {
    if (acpi.apic_ids[i] == id) g_ap_called[i] = 1;
  }
}

void AddMany() {
  for (uint32_t i = 0; i < kAdditions; ++i) AtomicAdd(g_shared_sum, 1);
}

// A page of RAM below 1 MiB for the start-up code. The loader's own structures there have been read by now.
uint64_t FindTrampolinePage() {
  for (uint64_t page = 0x8000; page < 0x90000; page += 0x1000) {
    if (Boot().IsRam(page, 0x1000)) return page;
  }
  return 0;
}

// INIT, then start-up IPIs (Intel SDM volume 3, 9.4.4); the second only if the first did nothing.
bool StartProcessor(size_t index, uint64_t page) {
  const uint32_t apic_id = AcpiInfo().apic_ids[index];
  g_ap_stack_top = reinterpret_cast<uint64_t>(g_ap_stacks[index] + kApStackSize);
  g_ap_index = static_cast<uint32_t>(index);
  FullBarrier();
  SendInit(apic_id);
  SpinMicros(200);
  const auto online = [index] { return g_ap_online[index] != 0; };
  SendStartup(apic_id, static_cast<uint8_t>(page >> 12));
  if (WaitFor(200'000, online)) return true;
  SendStartup(apic_id, static_cast<uint8_t>(page >> 12));
  return WaitFor(2'000'000, online);
}

}  // namespace

bool TestProcessors(Row& row) {
  const Acpi& acpi = AcpiInfo();
  if (acpi.processor_count < 2) return false;
  g_boot_apic_id = LocalApicId();
  row.address().Dec(acpi.processor_count).Add(" vCPUs");
  const uint64_t page = FindTrampolinePage();
  if (page == 0) {
    row.Fail("no RAM below 1 MiB for the start-up code");
    return true;
  }
  for (const uint8_t* p = kApTrampoline; p < kApTrampolineEnd; ++p) Write8(page + static_cast<uint64_t>(p - kApTrampoline), *p);
  SetInterruptHook(kIpiVector, OnIpi, nullptr);

  uint32_t started = 0;
  const uint64_t begin = ReadTsc();
  for (size_t i = 0; i < acpi.processor_count; ++i) {
    if (acpi.apic_ids[i] == g_boot_apic_id) continue;
    if (!StartProcessor(i, page)) {
      row.Fail("did not start: APIC ID", acpi.apic_ids[i]);
      return true;
    }
    ++started;
  }
  const uint64_t start_cycles = ReadTsc() - begin;
  AddMany();
  const uint32_t expected = kAdditions * (started + 1);
  if (!WaitFor(10'000'000, [expected] { return AtomicLoad(g_shared_sum) >= expected; })) row.Fail("shared counter stops at", AtomicLoad(g_shared_sum));

  const uint64_t call_begin = ReadTsc();
  for (size_t i = 0; i < acpi.processor_count; ++i) {
    if (acpi.apic_ids[i] != g_boot_apic_id) SendIpi(acpi.apic_ids[i], kIpiVector);
  }
  if (!WaitFor(10'000'000, [started] { return AtomicLoad(g_answers) >= started; })) row.Fail("IPIs answered:", AtomicLoad(g_answers));
  const uint64_t call_cycles = ReadTsc() - call_begin;
  if (AtomicLoad(g_shared_sum) != expected) row.Fail("shared counter is", AtomicLoad(g_shared_sum));
  if (AtomicLoad(g_wrong_id) != 0) row.Fail("processors with another APIC ID than the MADT's:", AtomicLoad(g_wrong_id));
  row.tested().Add("INIT/SIPI, atomics on one counter, IPI and answer");
  row.figures().Dec(started).Add(" started, ").Dec(MicrosOf(start_cycles) / started).Add(" us each; IPI round ");
  row.figures().Dec(MicrosOf(call_cycles) / started).Add(" us each");
  return true;
}

// ------------------------------------------------------------------------------------------------ pci

namespace {

// All widths of the same bytes agree, what is read-only stays, and what is not there reads as ones.
bool CheckConfigAccess(const PciFunction& function, Row& row) {
  for (uint64_t offset = 0; offset < 0x40; offset += 4) {
    const uint64_t at = function.config + offset;
    const uint32_t whole = Read32(at);
    const uint32_t halves = Read16(at) | uint32_t{Read16(at + 2)} << 16;
    uint32_t bytes = 0;
    for (unsigned i = 0; i < 4; ++i) bytes |= uint32_t{Read8(at + i)} << (8 * i);
    if (whole != halves || whole != bytes) return row.Fail("config widths disagree at offset", offset);
  }
  // Vendor and device ID: read-only, whatever the width.
  const uint32_t id = Read32(function.config);
  Write8(function.config, 0x55);
  Write16(function.config + 2, 0x5555);
  Write32(function.config, 0x55555555);
  if (Read32(function.config) != id) return row.Fail("a write changed the vendor or device ID");
  // The interrupt line is scratch space for software (PCI 3.0 6.2.4) and a byte write may not touch its neighbours.
  const uint32_t line = Read32(function.config + 0x3c);
  Write8(function.config + 0x3c, 0xa5);
  const uint32_t changed = Read32(function.config + 0x3c);
  Write8(function.config + 0x3c, static_cast<uint8_t>(line));
  if (changed != ((line & 0xffffff00) | 0xa5)) return row.Fail("interrupt line: byte write gave", changed);
  // Accesses across a register's end must be survived; what they read is not defined.
  static_cast<void>(Read32(function.config + 0x0e + 1));
  static_cast<void>(Read16(function.config + 0x03));
  static_cast<void>(Read64(function.config));
  return true;
}

bool CheckAbsentFunction(Row& row) {
  // The last slot of the first bus that nothing uses.
  const Acpi& acpi = AcpiInfo();
  for (uint64_t slot = 31; slot > 0; --slot) {
    const uint64_t config = acpi.ecam + (slot << 15);
    if (Read32(config) != 0xffffffff) continue;
    Write32(config + 4, 0xffffffff);
    if (Read16(config) != 0xffff || Read8(config + 0x0e) != 0xff || Read32(config + 0x10) != 0xffffffff) {
      return row.Fail("an absent function does not read as ones, slot", slot);
    }
    return true;
  }
  return true;
}

// The BAR of a virtio function that holds its common configuration, whose registers tell one device from another.
struct CommonPlace {
  unsigned bar = 6;
  uint64_t offset = 0;
};
CommonPlace FindCommon(const PciFunction& function) {
  constexpr uint8_t kCommonConfig = 1;
  for (uint8_t at = FindCapability(function, kCapabilityVendor); at != 0;
       at = FindCapability(function, kCapabilityVendor, at)) {
    const uint64_t cap = function.config + at;
    if (Read8(cap + 3) == kCommonConfig) return {Read8(cap + 4), Read32(cap + 8)};
  }
  return {};
}

void SetDecoding(const PciFunction& function, bool on) {
  const uint64_t command = function.config + kPciCommand;
  const uint16_t value = Read16(command);
  Write16(command, static_cast<uint16_t>(on ? value | kPciCommandMemory : value & ~kPciCommandMemory));
}

// What a virtio device says at this address of its common configuration (VIRTIO 1.2 4.1.4.3): its features and queue count.
struct Identity {
  uint64_t features;
  uint16_t queues;
  bool operator==(const Identity&) const = default;
};
Identity IdentifyAt(uint64_t common) {
  Write32(common, 0);
  const uint64_t low = Read32(common + 4);
  Write32(common, 1);
  return {low | uint64_t{Read32(common + 4)} << 32, Read16(common + 0x12)};
}

struct Movable {
  PciFunction* function;
  CommonPlace place;
  [[nodiscard]] PciBar& bar() const { return function->bars[place.bar]; }
};

// Two functions exchange the places of their BARs with decoding off: whatever window holds both still does.
bool Exchange(const Movable& a, const Movable& b, Row& row) {
  const uint64_t address_a = a.bar().address;
  const uint64_t address_b = b.bar().address;
  SetDecoding(*a.function, false);
  SetDecoding(*b.function, false);
  // All ones on PCI, but monitors differ: anything, only not the device's feature word.
  const uint32_t silence = Read32(address_a + a.place.offset + 4);
  SetBarAddress(*a.function, a.place.bar, address_b);
  SetBarAddress(*b.function, b.place.bar, address_a);
  const bool moved =
      BarAddress(*a.function, a.place.bar) == address_b && BarAddress(*b.function, b.place.bar) == address_a;
  SetDecoding(*a.function, true);
  SetDecoding(*b.function, true);
  if (silence != 0xffffffff && silence != 0) row.Fail("a BAR answers with decoding off, address", address_a);
  return moved || row.Fail("a BAR did not take the address", address_b);
}

void MoveThereAndBack(const Movable& a, const Movable& b, Row& row) {
  const uint64_t at_a = a.bar().address;
  const uint64_t at_b = b.bar().address;
  MapPhysical(at_a, a.bar().size, Caching::kDevice);
  MapPhysical(at_b, b.bar().size, Caching::kDevice);
  const Identity identity_a = IdentifyAt(at_a + a.place.offset);
  const Identity identity_b = IdentifyAt(at_b + b.place.offset);
  if (!Exchange(a, b, row)) return;
  if (!(IdentifyAt(at_b + a.place.offset) == identity_a) || !(IdentifyAt(at_a + b.place.offset) == identity_b)) {
    row.Fail("a moved BAR does not answer as its device at", at_b);
  }
  if (!Exchange(a, b, row)) return;
  if (!(IdentifyAt(at_a + a.place.offset) == identity_a) || !(IdentifyAt(at_b + b.place.offset) == identity_b)) {
    row.Fail("a BAR moved back does not answer as its device at", at_a);
  }
}

// Finds two functions that can exchange BARs, other than the one behind the output. False if there are none.
bool MoveBars(Row& row) {
  const Transport* const output = FindVirtio(kVirtioConsole);
  Movable candidates[32];
  size_t count = 0;
  for (size_t i = 0; i < VirtioCount(); ++i) {
    Transport& transport = VirtioAt(i);
    if (&transport == output || transport.msix() == nullptr) continue;
    for (size_t f = 0; f < PciFunctionCount() && count < 32; ++f) {
      PciFunction& function = PciFunctionAt(f);
      if (function.config != transport.WindowAt(0).address) continue;
      const CommonPlace place = FindCommon(function);
      if (place.bar < 6 && function.bars[place.bar].address != 0) candidates[count++] = {&function, place};
    }
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t k = i + 1; k < count; ++k) {
      const PciBar& a = candidates[i].bar();
      const PciBar& b = candidates[k].bar();
      if (a.size != b.size || a.is_64 != b.is_64) continue;
      MoveThereAndBack(candidates[i], candidates[k], row);
      return true;
    }
  }
  return false;
}

}  // namespace

bool TestPci(Row& row) {
  if (PciFunctionCount() == 0) return false;
  row.address().Hex(AcpiInfo().ecam, 8);
  unsigned bars = 0;
  unsigned capabilities = 0;
  for (size_t i = 0; i < PciFunctionCount() && !row.failed(); ++i) {
    const PciFunction& function = PciFunctionAt(i);
    if (function.header_type != 0) continue;
    CheckConfigAccess(function, row);
    for (unsigned b = 0; b < 6; ++b) {
      const PciBar& bar = function.bars[b];
      if (bar.size == 0) continue;
      ++bars;
      if ((bar.size & (bar.size - 1)) != 0) row.Fail("BAR size", bar.size);
      if ((bar.address & (bar.size - 1)) != 0) row.Fail("BAR not aligned to its size:", bar.address);
    }
    for (unsigned id = 1; id < 0x20; ++id) {
      if (FindCapability(function, static_cast<uint8_t>(id)) != 0) ++capabilities;
    }
  }
  CheckAbsentFunction(row);
  const bool moved = !row.failed() && MoveBars(row);
  row.tested().Add("config widths, BAR sizing").Add(moved ? ", BAR moved and back" : "").Add(", capabilities");
  row.figures().Dec(PciFunctionCount()).Add(" functions, ").Dec(bars).Add(" BARs, ").Dec(capabilities).Add(" capabilities");
  return true;
}

// ------------------------------------------------------------------------------------------------ msix

namespace {

// A request any device of the kind answers at once, without changing anything.
struct Poke {
  uint16_t queue;
  Segment readable[1];
  Segment writable[2];
  size_t readable_count;
  size_t writable_count;
};

bool MakePoke(uint16_t device_id, Poke& poke) {
  auto* memory = static_cast<uint8_t*>(Allocate(256));
  for (int i = 0; i < 64; ++i) memory[i] = 0;
  switch (device_id) {
    case kVirtioRng:
      poke = {0, {}, {{memory, 8}}, 0, 1};
      return true;
    case kVirtioBlk:
      memory[0] = 8;  // VIRTIO_BLK_T_GET_ID
      poke = {0, {{memory, 16}}, {{memory + 64, 20}, {memory + 128, 1}}, 1, 2};
      return true;
    default:
      return false;
  }
}

struct MsixTest {
  VirtioDevice& device;
  Queue& queue;
  Poke& poke;
  Row& row;

  [[nodiscard]] bool Submit() const {
    const std::span<const Segment> readable(poke.readable, poke.readable_count);
    const std::span<const Segment> writable(poke.writable, poke.writable_count);
    uint32_t length = 0;
    return queue.Run(readable, writable, length) || row.Fail("a request was not completed");
  }

  // A request while the vector is masked in one way or the other: pending, and delivered by unmasking.
  template <typename SetMasked>
  bool CheckMask(const char* what, SetMasked set_masked) {
    Msix& msix = *device.transport().msix();
    const unsigned entry = device.transport().QueueMsixEntry(queue.index());
    const uint32_t before = device.Interrupts(queue);
    Line reason;
    reason.Add(what);
    set_masked(true);
    if (!Submit()) return false;
    if (device.Interrupts(queue) != before) return row.Fail(reason.Add(": an interrupt came through").view());
    if (!WaitFor(1'000'000, [&] { return msix.Pending(entry); })) return row.Fail(reason.Add(": the pending bit is not set").view());
    set_masked(false);
    if (!WaitFor(1'000'000, [&] { return device.Interrupts(queue) != before; })) {
      return row.Fail(reason.Add(": unmasking did not deliver the pending interrupt").view());
    }
    return !msix.Pending(entry) || row.Fail(reason.Add(": still pending after delivery").view());
  }

  bool Run() {
    Msix& msix = *device.transport().msix();
    const unsigned entry = device.transport().QueueMsixEntry(queue.index());
    const uint8_t vector = device.transport().QueueVector(queue.index());
    if (!Submit()) return false;
    if (device.Interrupts(queue) == 0) return row.Fail("no interrupt arrived");

    // The entry rewritten to another vector: that one and no other.
    const uint8_t other = AllocateVector();
    const uint32_t before = InterruptCount(vector);
    const uint32_t other_before = InterruptCount(other);
    msix.Set(entry, other);
    if (!Submit()) return false;
    if (InterruptCount(other) == other_before || InterruptCount(vector) != before) return row.Fail("a rewritten entry is not used");
    msix.Set(entry, vector);

    return CheckMask("vector mask", [&](bool masked) { msix.Mask(entry, masked); }) &&
           CheckMask("function mask", [&](bool masked) { msix.MaskAll(masked); });
  }
};

}  // namespace

bool TestMsix(Row& row) {
  for (uint16_t id : {kVirtioRng, kVirtioBlk}) {
    Transport* transport = nullptr;
    for (size_t n = 0; (transport = FindVirtio(id, n)) != nullptr && transport->msix() == nullptr; ++n) {
    }
    if (transport == nullptr) continue;
    transport->AddAddress(row.address());
    VirtioDevice device(*transport);
    if (!device.Begin(0, 1, row)) return true;
    Poke poke{};
    Queue* queue = device.AddQueue(0, 8, row);
    if (queue == nullptr || !MakePoke(id, poke) || !device.DriverOk(row)) return true;
    MsixTest{device, *queue, poke, row}.Run();
    row.tested().Add("delivery, entry rewritten, masks, pending bit, unmask");
    row.figures().Dec(transport->msix()->size()).Add(" vectors, ").Dec(device.Interrupts(*queue)).Add(" interrupts");
    device.End(row);
    return true;
  }
  return false;
}

}  // namespace postern::probe

void ApMain(uint32_t index) {
  using namespace postern::probe;
  InitApInterrupts();
  const uint32_t apic_id = LocalApicId();
  if (apic_id != AcpiInfo().apic_ids[index]) AtomicAdd(g_wrong_id, 1);
  g_ap_online[index] = 1;
  AddMany();
  while (g_ap_called[index] == 0) SleepUntilInterrupt();
  SendIpi(g_boot_apic_id, kIpiVector);
  HaltForever();
}
