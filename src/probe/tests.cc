#include "src/probe/tests.h"

#include "src/probe/dsa.h"
#include "src/probe/main.h"

namespace postern::probe {
namespace {

constexpr Test kTests[] = {
    {.name = "cpu", .machine = TestCpu},
    {.name = "acpi", .machine = TestAcpi},
    {.name = "timer", .machine = TestTimer},
    {.name = "vcpus", .machine = TestProcessors},
    {.name = "pci", .machine = TestPci},
    {.name = "msix", .machine = TestMsix},
    {.name = "console", .virtio = TestConsole, .virtio_id = kVirtioConsole},
    {.name = "blk", .virtio = TestBlk, .virtio_id = kVirtioBlk},
    {.name = "net", .virtio = TestNet, .virtio_id = kVirtioNet},
    {.name = "rng", .virtio = TestRng, .virtio_id = kVirtioRng},
    {.name = "vsock", .virtio = TestVsock, .virtio_id = kVirtioVsock},
    {.name = "dsa", .pci = TestDsa, .pci_id = kDsaPciId},
    {.name = "dsa-ops", .pci = TestDsaOperations, .pci_id = kDsaPciId, .further = true},
    {.name = "dsa-err", .pci = TestDsaErrors, .pci_id = kDsaPciId, .further = true},
    {.name = "dsa-run", .pci = TestDsaMany, .pci_id = kDsaPciId, .further = true},
};

// Runs `test` on everything it is for; returns how many that were.
unsigned Run(const Test& test) {
  unsigned found = 0;
  if (test.machine != nullptr) {
    Row row(test.name);
    if (test.machine(row)) {
      row.Finish();
      ++found;
    }
  } else if (test.virtio != nullptr) {
    while (Transport* transport = FindVirtio(test.virtio_id, found)) {
      Row row(test.name);
      transport->AddAddress(row.address());
      test.virtio(*transport, row);
      row.Finish();
      ++found;
    }
  } else {
    for (size_t i = 0; i < PciFunctionCount(); ++i) {
      PciFunction& function = PciFunctionAt(i);
      if ((uint32_t{function.vendor} << 16 | function.device) != test.pci_id) continue;
      Row row(test.name);
      AddBdf(row.address(), function.bdf);
      test.pci(function, row);
      row.Finish();
      ++found;
    }
  }
  return found;
}

}  // namespace

void RunTests() {
  PrintTableHead();
  bool wanted = true;
  for (const Test& test : kTests) {
    if (!test.further) wanted = ProbeOptions().Wants(test.name);
    if (wanted && Run(test) == 0 && !test.further)
      ReportAbsent(test.name, ProbeOptions().Requires(test.name));
  }
}

}  // namespace postern::probe
