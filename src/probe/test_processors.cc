// The other processors: started, counted, called.
#include "src/probe/acpi.h"
#include "src/probe/interrupts.h"
#include "src/probe/main.h"
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

void AtomicAdd(uint32_t& value, uint32_t amount) {
  __atomic_fetch_add(&value, amount, __ATOMIC_SEQ_CST);
}
uint32_t AtomicLoad(const uint32_t& value) {
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}

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

// A page of RAM below 1 MiB for the start-up code. The loader's own structures there have been read
// by now.
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
  row.address().Put(acpi.processor_count, " vCPUs");
  const uint64_t page = FindTrampolinePage();
  if (page == 0) {
    row.Fail("no RAM below 1 MiB for the start-up code");
    return true;
  }
  for (const uint8_t* p = kApTrampoline; p < kApTrampolineEnd; ++p)
    Write8(page + static_cast<uint64_t>(p - kApTrampoline), *p);
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
  if (started == 0) {
    row.Fail("every MADT entry has the APIC ID", g_boot_apic_id);
    return true;
  }
  const uint64_t start_cycles = ReadTsc() - begin;
  AddMany();
  const uint32_t expected = kAdditions * (started + 1);
  if (!WaitFor(10'000'000, [expected] { return AtomicLoad(g_shared_sum) >= expected; }))
    row.Fail("shared counter stops at", AtomicLoad(g_shared_sum));

  // One by one: interrupts of one vector that wait together are delivered as one.
  const uint64_t call_begin = ReadTsc();
  for (size_t i = 0; i < acpi.processor_count && !row.failed(); ++i) {
    if (acpi.apic_ids[i] == g_boot_apic_id) continue;
    const uint32_t before = AtomicLoad(g_answers);
    SendIpi(acpi.apic_ids[i], kIpiVector);
    if (!WaitFor(10'000'000, [before] { return AtomicLoad(g_answers) != before; })) {
      row.Fail("no answer to an IPI: APIC ID", acpi.apic_ids[i]);
    }
  }
  const uint64_t call_cycles = ReadTsc() - call_begin;
  if (AtomicLoad(g_shared_sum) != expected) row.Fail("shared counter is", AtomicLoad(g_shared_sum));
  if (AtomicLoad(g_wrong_id) != 0)
    row.Fail("processors with another APIC ID than the MADT's:", AtomicLoad(g_wrong_id));
  row.tested().Add("INIT/SIPI, atomics on one counter, IPI and answer");
  row.figures().Put(started, " started, ", MicrosOf(start_cycles) / started,
                    " us each; IPI round ");
  row.figures().Put(MicrosOf(call_cycles) / started, " us each");
  return true;
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
