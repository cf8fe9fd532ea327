// Intel's Data Streaming Accelerator: its commands, what it refuses, and its resets. The driver is
// dsa.h; the operations, errors and the many are in files of their own.
#include <span>

#include "src/probe/clock.h"
#include "src/probe/dsa.h"
#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr uint32_t kFirstQueue = 1;  // as a bitmap

struct Step {
  std::string_view what;
  DsaCommand command;
  uint32_t operand;
  uint32_t error;  // the specification's code, table 5-8
};

bool RunSteps(std::span<const Step> steps, DsaDevice& device, Row& row) {
  for (const Step& step : steps) {
    Line what;
    what.Put(step.what, ": error");
    if (!device.Expect(what.view(), step.command, step.operand, step.error, row)) return false;
  }
  return true;
}

// One descriptor, one interrupt, of the queue's vector.
bool OneInterrupt(DsaDevice& device, Row& row) {
  for (unsigned i = 0; i < device.queues(); ++i) {
    DsaQueue& queue = device.queue(i);
    const uint32_t before = queue.interrupts();
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop, DsaFlag::kRequestInterrupt),
                       .handle = queue.handle()};
    if (!queue.Run(noop)) return row.Fail("no completion beside an interrupt, queue", i);
    if (!WaitFor(kInterruptMicros, [&] { return queue.interrupts() != before; }))
      return row.Fail("no interrupt of a completion, queue", i);
    if (queue.interrupts() != before + 1) return row.Fail("several interrupts, queue", i);
  }
  return true;
}

// Both portal pages of a queue are ways into it.
bool UnlimitedPortal(DsaDevice& device, Row& row) {
  for (unsigned i = 0; i < device.queues(); ++i) {
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop)};
    if (!device.queue(i).RunUnlimited(noop) || !device.queue(i).record().Is(DsaStatus::kSuccess)) {
      return row.Fail("no completion by the unlimited portal of queue", i);
    }
  }
  return DsaNoop("after the unlimited portals", device, row);
}

bool RefuseWhileDisabled(DsaDevice& device, PciFunction& function, Row& row) {
  const Step steps[] = {
      {"a command nobody knows", DsaCommand::kUnknown, 0, 0x01},
      {"enabling a queue of a disabled device", DsaCommand::kEnableQueue, 0, 0x20},
      {"enabling a queue that is not there", DsaCommand::kEnableQueue, device.queues(), 0x02},
      {"disabling a disabled device", DsaCommand::kDisableDevice, 0, 0x31},
      {"draining a disabled queue", DsaCommand::kDrainQueue, kFirstQueue, 0x32},
  };
  if (!RunSteps(steps, device, row)) return false;
  if (device.configurable()) {
    // A group that has a queue but no engine.
    device.Set64(device.GroupWord(0, 0), kFirstQueue);
    if (!device.Expect("enabling half a group: error", DsaCommand::kEnableDevice, 0, 0x15, row))
      return false;
  }
  if (!device.Configure(row)) return false;
  const uint64_t command = function.config + kPciCommand;
  const uint16_t before = Read16(command);
  Write16(command, static_cast<uint16_t>(before & ~kPciCommandMaster));
  const bool refused = device.Expect("enabling without bus mastering: error",
                                     DsaCommand::kEnableDevice, 0, 0x12, row);
  Write16(command, before);
  return refused;
}

// What is configured cannot be changed under way; a write to it is ignored.
bool StaysLocked(DsaDevice& device, Row& row) {
  const uint32_t at = device.QueueWord(0, 0);
  const uint32_t size = device.Get32(at);
  device.Set32(at, size + 1);
  return device.Get32(at) == size || row.Fail("the size of a queue changed under way");
}

// A descriptor stored to the portal of a disabled queue: no completion, also not later.
bool IgnoresDisabled(DsaDevice& device, Row& row) {
  DsaRecord record;
  const DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop, kDsaWithRecord),
                           .record = DsaAt(&record)};
  device.queue(0).SubmitDisabled(noop);
  if (!device.Expect("enabling a queue again: error", DsaCommand::kEnableQueue, 0, 0, row) ||
      !DsaNoop("a queue enabled again", device, row)) {
    return false;
  }
  return !DsaFinished(record) || row.Fail("a disabled queue took a descriptor");
}

bool CommandQueues(DsaDevice& device, Row& row) {
  const Step enabled[] = {
      {"enabling an enabled device", DsaCommand::kEnableDevice, 0, 0x10},
      {"enabling an enabled queue", DsaCommand::kEnableQueue, 0, 0x21},
      {"draining a queue", DsaCommand::kDrainQueue, kFirstQueue, 0},
      {"draining all", DsaCommand::kDrainAll, 0, 0},
      {"aborting a queue", DsaCommand::kAbortQueue, kFirstQueue, 0},
      {"aborting all", DsaCommand::kAbortAll, 0, 0},
      {"disabling a queue", DsaCommand::kDisableQueue, kFirstQueue, 0},
      {"disabling a disabled queue", DsaCommand::kDisableQueue, kFirstQueue, 0x32},
  };
  if (!RunSteps(enabled, device, row)) return false;
  if (device.QueueState(0) != 0) return row.Fail("a disabled queue does not say so");
  if (!IgnoresDisabled(device, row)) return false;
  if (!device.Expect("resetting a queue: error", DsaCommand::kResetQueue, kFirstQueue, 0, row))
    return false;
  // Its mode went; its size is the device's and stays.
  const bool bare = device.Get32(device.QueueWord(0, 2)) == 0;
  if (bare != device.configurable()) return row.Fail("a reset queue's mode");
  if (!device.Configure(row) ||
      !device.Expect("enabling a reset queue: error", DsaCommand::kEnableQueue, 0, 0, row)) {
    return false;
  }
  return DsaNoop("a reset queue", device, row);
}

bool CommandDevice(DsaDevice& device, Row& row) {
  if (!device.Expect("disabling the device: error", DsaCommand::kDisableDevice, 0, 0, row))
    return false;
  if (device.State() != 0 || device.QueueState(0) != 0)
    return row.Fail("a disabled device or its queue does not say so");
  if (!device.Expect("enabling the device again: error", DsaCommand::kEnableDevice, 0, 0, row) ||
      !device.EnableQueues(row) || !DsaNoop("the device enabled again", device, row)) {
    return false;
  }
  if (!device.Expect("resetting the device: error", DsaCommand::kResetDevice, 0, 0, row))
    return false;
  if (device.State() != 0) return row.Fail("a reset device is not disabled");
  // Its interrupts are of PCI's MSI-X table and stay.
  return device.Start(row) && DsaNoop("after a reset of the device", device, row) &&
         device.ResetFunction(row) && device.Start(row) &&
         DsaNoop("after a reset of the function", device, row) && OneInterrupt(device, row);
}

}  // namespace

void TestDsa(PciFunction& function, Row& row) {
  DsaDevice device;
  if (device.Open(function, row) && RefuseWhileDisabled(device, function, row) &&
      device.Expect("enabling the device: error", DsaCommand::kEnableDevice, 0, 0, row) &&
      device.EnableQueues(row) && StaysLocked(device, row) &&
      DsaNoop("a new device", device, row) && UnlimitedPortal(device, row) &&
      OneInterrupt(device, row) && CommandQueues(device, row)) {
    CommandDevice(device, row);
  }
  row.tested().Add("commands, refusals, portals, interrupts, resets");
  row.figures().Put(device.configurable() ? "configured by the guest" : "configured by the host",
                    ", ", device.queues(), device.queues() == 1 ? " queue of " : " queues of ",
                    device.queue(0).size());
  row.figures().Put(", stores of ", DsaStoresWhole() ? 64U : 8U, " bytes");
  device.Close();
}

}  // namespace postern::probe
