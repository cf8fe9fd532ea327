// Intel's Data Streaming Accelerator: its commands and resets, what it says of bad descriptors, and
// many descriptors at once. The driver is dsa.h, the operations are driver_dsa_ops.cc.
#include <span>

#include "src/probe/clock.h"
#include "src/probe/dsa.h"
#include "src/probe/interrupts.h"
#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

uint64_t At(const void* memory) {
  return reinterpret_cast<uint64_t>(memory);
}

bool FailAt(std::string_view what, std::string_view how, uint64_t number, Row& row) {
  Line reason;
  return row.Fail(reason.Put(what, ": ", how).view(), number);
}

// ------------------------------------------------------------------------------------------------
// commands

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

bool Noop(std::string_view when, DsaDevice& device, Row& row) {
  for (unsigned i = 0; i < device.queues(); ++i) {
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop)};
    DsaQueue& queue = device.queue(i);
    if (!queue.Run(noop)) return FailAt(when, "no completion in queue", i, row);
    if (!queue.record().Is(DsaStatus::kSuccess))
      return FailAt(when, "status", queue.record().status, row);
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
                           .record = At(&record)};
  device.queue(0).SubmitDisabled(noop);
  if (!device.Expect("enabling a queue again: error", DsaCommand::kEnableQueue, 0, 0, row) ||
      !Noop("a queue enabled again", device, row)) {
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
  return Noop("a reset queue", device, row);
}

bool CommandDevice(DsaDevice& device, Row& row) {
  if (!device.Expect("disabling the device: error", DsaCommand::kDisableDevice, 0, 0, row))
    return false;
  if (device.State() != 0 || device.QueueState(0) != 0)
    return row.Fail("a disabled device or its queue does not say so");
  if (!device.Expect("enabling the device again: error", DsaCommand::kEnableDevice, 0, 0, row) ||
      !device.EnableQueues(row) || !Noop("the device enabled again", device, row)) {
    return false;
  }
  if (!device.Expect("resetting the device: error", DsaCommand::kResetDevice, 0, 0, row))
    return false;
  if (device.State() != 0) return row.Fail("a reset device is not disabled");
  // Its interrupts are of PCI's MSI-X table and stay.
  return device.Start(row) && Noop("after a reset of the device", device, row) &&
         device.ResetFunction(row) && device.Start(row) &&
         Noop("after a reset of the function", device, row) && OneInterrupt(device, row);
}

// ------------------------------------------------------------------------------------------------
// errors

// The end of the highest RAM: what lies there is no memory.
uint64_t EndOfRam() {
  uint64_t end = 0;
  for (size_t i = 0; i < Boot().range_count; ++i) {
    const MemoryRange& range = Boot().ranges[i];
    if (range.type == 1 && range.address + range.size > end) end = range.address + range.size;
  }
  return end;
}

class Errors {
 public:
  Errors(DsaDevice& device, Row& row) : device_(device), queue_(device.queue(0)), row_(row) {}

  bool Run() {
    memory_ = static_cast<uint8_t*>(Allocate(4096, 4096));
    if (memory_ == nullptr) return row_.Fail("no memory");
    return Refused() && Faults() && InErrorRegister();
  }
  [[nodiscard]] unsigned descriptors() const { return descriptors_; }

 private:
  [[nodiscard]] const DsaRecord& record() const { return queue_.record(); }

  bool Expect(std::string_view what, DsaDescriptor descriptor, DsaStatus status) {
    ++descriptors_;
    if (!queue_.Run(descriptor)) return FailAt(what, "does not complete", 0, row_);
    return record().Is(status) || FailAt(what, "status", record().status, row_);
  }

  [[nodiscard]] DsaDescriptor Fill(uint64_t size) const {
    return {.flags_and_opcode = DsaOp(DsaOpcode::kFill),
            .destination = At(memory_),
            .size = static_cast<uint32_t>(size)};
  }

  // Descriptors that are wrong in themselves.
  bool Refused() {
    const uint64_t too_much = device_.max_transfer() + 1;
    const DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop)};
    DsaDescriptor flag = noop;
    flag.flags_and_opcode |= DsaFlag::kReserved;
    DsaDescriptor reserved = noop;
    reserved.specific[2] = uint64_t{1} << 63;
    return Expect("a bad operation", {.flags_and_opcode = 0x3f000000}, DsaStatus::kBadOpcode) &&
           Expect("a reserved flag", flag, DsaStatus::kBadFlags) &&
           (static_cast<uint32_t>(record().specific[0]) == DsaFlag::kReserved ||
            row_.Fail("a reserved flag is told as", record().specific[0])) &&
           Expect("a reserved bit", reserved, DsaStatus::kReservedNotZero) &&
           Expect("size 0", Fill(0), DsaStatus::kBadSize) &&
           Expect("size 1", Fill(1), DsaStatus::kSuccess) &&
           Expect("the largest size and 1", Fill(too_much), DsaStatus::kBadSize) && RefusedOps();
  }
  // The same of operations that the device may not have.
  bool RefusedOps() {
    if (device_.Has(DsaOpcode::kBatch)) {
      DsaDescriptor batch{
          .flags_and_opcode = DsaOp(DsaOpcode::kBatch), .source = At(memory_), .size = 1};
      if (!Expect("a batch of 1", batch, DsaStatus::kBadCount)) return false;
      batch.size = device_.max_batch() + 1;
      if (!Expect("the largest batch and 1", batch, DsaStatus::kBadCount)) return false;
      batch.size = 2;
      batch.source += 32;
      if (!Expect("a misaligned list", batch, DsaStatus::kListMisaligned)) return false;
    }
    if (device_.Has(DsaOpcode::kCreateDelta)) {
      DsaDescriptor delta{.flags_and_opcode = DsaOp(DsaOpcode::kCreateDelta),
                          .source = At(memory_),
                          .destination = At(memory_ + 1024),
                          .size = 64,
                          .specific = {At(memory_ + 2048), 79, 0}};
      if (!Expect("a delta without room", delta, DsaStatus::kBadValue)) return false;
      delta.specific[1] = 80;
      delta.source += 1;
      if (!Expect("a misaligned delta", delta, DsaStatus::kMisaligned)) return false;
    }
    if (!device_.Has(DsaOpcode::kDualcast)) return true;
    DsaDescriptor dualcast{.flags_and_opcode = DsaOp(DsaOpcode::kDualcast),
                           .source = At(memory_),
                           .destination = At(memory_ + 1024),
                           .size = 64,
                           .specific = {At(memory_ + 1088), 0, 0}};
    if (!Expect("a misaligned dualcast", dualcast, DsaStatus::kDualcastMisaligned)) return false;
    dualcast.source += 1020;
    dualcast.specific[0] = dualcast.destination;
    return Expect("an overlap", dualcast, DsaStatus::kOverlap);
  }

  bool Fault(std::string_view what, DsaDescriptor descriptor, DsaStatus status, uint64_t address,
             uint32_t done) {
    if (!Expect(what, descriptor, status)) return false;
    if (record().fault_address != address)
      return FailAt(what, "address", record().fault_address, row_);
    return record().bytes_completed == done ||
           FailAt(what, "bytes", record().bytes_completed, row_);
  }
  // Addresses where there is no memory, from the first byte on or from the middle.
  bool Faults() {
    const uint64_t end = EndOfRam();
    DsaDescriptor move{.flags_and_opcode = DsaOp(DsaOpcode::kMove),
                       .source = end,
                       .destination = At(memory_),
                       .size = 128};
    if (!Fault("a source that is no memory", move, DsaStatus::kPageFault, end, 0)) return false;
    move.source = end - 64;
    if (!Fault("a source that ends in no memory", move, DsaStatus::kPageFault, end, 64))
      return false;
    move.source = At(memory_);
    move.destination = end;
    if (!Fault("a destination that is no memory", move, DsaStatus::kWriteFault, end, 0))
      return false;
    move.destination = ~uint64_t{63};
    return Fault("a destination at the end of addresses", move, DsaStatus::kWriteFault,
                 ~uint64_t{63}, 0);
  }

  bool Told(std::string_view what, const DsaDescriptor& descriptor, DsaStatus code,
            uint64_t address) {
    constexpr uint64_t kValid = 0xd;  // the record, the descriptor's and the queue's fields
    ++descriptors_;
    queue_.Submit(descriptor);
    uint64_t words[4];
    if (!device_.TakeError(words)) return FailAt(what, "is not told", words[0], row_);
    if ((words[0] & 0x0f) != kValid || (words[0] >> 8 & 0xff) != static_cast<uint8_t>(code) ||
        (words[0] >> 32 & 0xff) != descriptor.flags_and_opcode >> 24) {
      return FailAt(what, "SWERROR", words[0], row_);
    }
    return words[2] == address || FailAt(what, "address", words[2], row_);
  }
  // Errors that no record can tell.
  bool InErrorRegister() {
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop, kDsaWithRecord),
                       .record = At(memory_ + 8)};
    if (!Told("a misaligned record", noop, DsaStatus::kRecordMisaligned, 0)) return false;
    noop.record = EndOfRam();
    if (!Told("a record that is no memory", noop, DsaStatus::kRecordFault, noop.record))
      return false;
    const DsaDescriptor bad{.flags_and_opcode = 0x3f000000};
    if (!Told("an error without a record", bad, DsaStatus::kBadOpcode, 0)) return false;
    // Told in the record and in the register.
    DsaDescriptor handle{.flags_and_opcode = DsaOp(DsaOpcode::kNoop, DsaFlag::kRequestInterrupt),
                         .handle = 0xffff};
    if (!Expect("a handle nobody gave", handle, DsaStatus::kBadHandle)) return false;
    uint64_t words[4];
    if (!device_.TakeError(words) || (words[1] >> 32) != 0xffff)
      return row_.Fail("a handle nobody gave: SWERROR", words[1]);
    return Noop("after the errors", device_, row_);
  }

  DsaDevice& device_;
  DsaQueue& queue_;
  Row& row_;
  uint8_t* memory_ = nullptr;
  unsigned descriptors_ = 0;
};

// ------------------------------------------------------------------------------------------------
// many

constexpr uint32_t kBuffer = 1024;
// What is asked to be told by interrupts, of all.
constexpr uint64_t kShareWithInterrupts = 16;

// One descriptor under way and its buffers.
struct Flight {
  DsaRecord record{};
  uint8_t* from = nullptr;
  uint8_t* to = nullptr;
  uint64_t number = 0;
  uint32_t size = 0;
  bool under_way = false;
};

// Moves of many sizes, each with its number at both ends, in all queues in turn.
class Many {
 public:
  Many(DsaDevice& device, Row& row) : device_(device), row_(row) {}

  bool Prepare() {
    depth_ = device_.queue(0).size();
    // Linux has no more under way than the queue has entries; a polled portal has 64 slots.
    if (depth_ > 63) depth_ = 63;
    // What the heap has room for.
    while (depth_ * device_.queues() > 128) depth_ /= 2;
    total_ = depth_ * device_.queues();
    if (total_ == 0) {
      row_.Fail("no queue has an entry");
      return false;
    }
    flights_ = static_cast<Flight*>(Allocate(sizeof(Flight) * total_, 32));
    auto* buffers = static_cast<uint8_t*>(Allocate(size_t{2} * kBuffer * total_, 64));
    if (flights_ == nullptr || buffers == nullptr) return row_.Fail("no memory");
    for (size_t i = 0; i < total_; ++i) {
      flights_[i] = {.from = buffers + size_t{2} * kBuffer * i,
                     .to = buffers + size_t{2} * kBuffer * i + kBuffer};
    }
    return true;
  }

  // Each waits for the one that used its place before.
  bool RunPolled(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      Flight& flight = flights_[next_ % total_];
      if (!Land(flight)) return false;
      Launch(flight, 0);
    }
    return LandAll();
  }

  // As many as fit, each with an interrupt; asleep meanwhile.
  bool RunWithInterrupts(uint64_t count) {
    while (count != 0) {
      const uint64_t round = count < total_ ? count : total_;
      const uint64_t first = next_;
      for (uint64_t i = 0; i < round; ++i)
        Launch(flights_[next_ % total_], DsaFlag::kRequestInterrupt);
      uint64_t seen = first;
      const bool complete = WaitFor(kRequestMicros, [&] {
        while (seen != next_ && DsaFinished(flights_[seen % total_].record)) ++seen;
        return seen == next_;
      });
      if (!complete) return row_.Fail("lost: no completion of descriptor", seen);
      if (!LandAll()) return false;
      count -= round;
    }
    return true;
  }

  [[nodiscard]] uint64_t completed() const { return completed_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  void Launch(Flight& flight, uint32_t flags) {
    // 16 to 1024 bytes.
    flight.number = next_++;
    flight.size = static_cast<uint32_t>(8 * (2 + flight.number * 37 % 127));
    flight.under_way = true;
    flight.record = {};
    Write64(At(flight.from), flight.number);
    Write64(At(flight.from) + flight.size - 8, ~flight.number);
    Write64(At(flight.to), 0);
    Write64(At(flight.to) + flight.size - 8, 0);
    DsaQueue& queue =
        device_.queue(static_cast<unsigned>(flight.number % total_) % device_.queues());
    const DsaDescriptor move{
        .flags_and_opcode = DsaOp(DsaOpcode::kMove, kDsaWithRecord | flags),
        .record = At(&flight.record),
        .source = At(flight.from),
        .destination = At(flight.to),
        .size = flight.size,
        .handle = (flags & DsaFlag::kRequestInterrupt) != 0 ? queue.handle() : uint16_t{0}};
    queue.Submit(move);
  }

  bool Land(Flight& flight) {
    if (!flight.under_way) return true;
    flight.under_way = false;
    if (!DsaAwait(flight.record))
      return row_.Fail("lost: no completion of descriptor", flight.number);
    if (!flight.record.Is(DsaStatus::kSuccess))
      return row_.Fail("a descriptor of many: status", flight.record.status);
    if (Read64(At(flight.to)) != flight.number ||
        Read64(At(flight.to) + flight.size - 8) != ~flight.number) {
      return row_.Fail("wrong bytes of descriptor", flight.number);
    }
    ++completed_;
    bytes_ += flight.size;
    return true;
  }
  bool LandAll() {
    for (size_t i = 0; i < total_; ++i) {
      if (!Land(flights_[i])) return false;
    }
    return true;
  }

  DsaDevice& device_;
  Row& row_;
  Flight* flights_ = nullptr;
  size_t depth_ = 0;  // of a queue
  size_t total_ = 0;  // of all
  uint64_t next_ = 0;
  uint64_t completed_ = 0;
  uint64_t bytes_ = 0;
};

uint32_t AllInterrupts(DsaDevice& device) {
  uint32_t sum = 0;
  for (unsigned i = 0; i < device.queues(); ++i) sum += device.queue(i).interrupts();
  return sum;
}

}  // namespace

void TestDsa(PciFunction& function, Row& row) {
  DsaDevice device;
  if (device.Open(function, row) && RefuseWhileDisabled(device, function, row) &&
      device.Expect("enabling the device: error", DsaCommand::kEnableDevice, 0, 0, row) &&
      device.EnableQueues(row) && StaysLocked(device, row) && Noop("a new device", device, row) &&
      OneInterrupt(device, row) && CommandQueues(device, row)) {
    CommandDevice(device, row);
  }
  row.tested().Add("commands, refusals, interrupts, queue/device/FLR resets");
  row.figures().Put(device.configurable() ? "configured by the guest" : "configured by the host",
                    ", ", device.queues(), device.queues() == 1 ? " queue of " : " queues of ",
                    device.queue(0).size());
  row.figures().Put(", stores of ", DsaStoresWhole() ? 64U : 8U, " bytes");
  device.Close();
}

void TestDsaErrors(PciFunction& function, Row& row) {
  const size_t mark = AllocationMark();
  DsaDevice device;
  if (device.Open(function, row) && device.Start(row)) {
    Errors errors(device, row);
    errors.Run();
    row.tested().Add("operation flags fields sizes faults alignment SWERROR");
    row.figures().Put(errors.descriptors(), " descriptors");
  }
  device.Close();
  ReleaseAllocations(mark);
}

void TestDsaMany(PciFunction& function, Row& row) {
  const size_t mark = AllocationMark();
  DsaDevice device;
  const uint64_t count = ProbeOptions().descriptors;
  const uint64_t with_interrupts = count / kShareWithInterrupts;
  if (device.Open(function, row) && device.Start(row)) {
    Many many(device, row);
    const uint32_t before = AllInterrupts(device);
    const uint64_t begin = ReadTsc();
    const bool good = many.Prepare() && many.RunPolled(count - with_interrupts) &&
                      many.RunWithInterrupts(with_interrupts);
    const uint64_t cycles = ReadTsc() - begin;
    const uint32_t interrupts = AllInterrupts(device) - before;
    if (good && with_interrupts != 0 && interrupts == 0) row.Fail("no interrupt came");
    device.Close();
    row.tested().Add("moves, each result checked; none lost");
    // What a monitor that counts the same has to find, apart from these descriptors.
    row.figures().Put(many.completed(), " descriptors, ", many.bytes(), " bytes, ");
    AddRate(row.figures(), many.bytes(), cycles);
    row.figures().Put(", ", interrupts, " interrupts; else ",
                      DsaUsed().submitted - many.completed(), '+', DsaUsed().ignored,
                      " descriptors, ", DsaUsed().register_uses, " register uses");
  } else {
    device.Close();
  }
  ReleaseAllocations(mark);
}

}  // namespace postern::probe
