// What is tested, in the order of the table. To add a device: one file with its driver, one line in
// kTests (tests.cc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/probe/pci.h"
#include "src/probe/report.h"
#include "src/probe/virtio.h"

namespace postern::probe {

// A part of the machine itself; false if it is not there.
using MachineTest = bool (*)(Row& row);
// One virtio device, wherever it is attached.
using VirtioTest = void (*)(Transport& transport, Row& row);
// One PCI function that is not virtio.
using PciTest = void (*)(PciFunction& function, Row& row);

struct Test {
  std::string_view name;
  MachineTest machine = nullptr;
  VirtioTest virtio = nullptr;
  uint16_t virtio_id = 0;
  PciTest pci = nullptr;
  uint32_t pci_id = 0;   // vendor << 16 | device
  bool further = false;  // one more row of the device before, which alone tells that it is absent
};

void RunTests();

bool TestCpu(Row& row);
bool TestAcpi(Row& row);
bool TestTimer(Row& row);
bool TestProcessors(Row& row);
bool TestPci(Row& row);
bool TestMsix(Row& row);

// One driver per file.
void TestConsole(Transport& transport, Row& row);
void TestBlk(Transport& transport, Row& row);
void TestNet(Transport& transport, Row& row);
void TestRng(Transport& transport, Row& row);
void TestVsock(Transport& transport, Row& row);

// One device, four rows.
void TestDsa(PciFunction& function, Row& row);
void TestDsaOperations(PciFunction& function, Row& row);
void TestDsaErrors(PciFunction& function, Row& row);
void TestDsaMany(PciFunction& function, Row& row);

// Opens the first virtio console for output; nullptr if there is none that works. Its row comes
// with TestConsole.
ConsoleWriter OpenConsole();
// Gives the console back to the device's reset state; output is kept until OpenOutput is called
// again.
void CloseConsole();

// The other modes; each prints its own lines. False: the device it needs is missing or failed.
bool BlkBench();
bool NetBench();
bool PioLoop();
bool MmioLoop();
bool Hostile();

}  // namespace postern::probe
