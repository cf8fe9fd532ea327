// What a DSA says of bad descriptors: the status in the record, or the error register.
#include "src/probe/clock.h"
#include "src/probe/dsa.h"
#include "src/probe/main.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"

namespace postern::probe {
namespace {

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
    if (!queue_.Run(descriptor)) return DsaFailAt(what, "does not complete", 0, row_);
    return record().Is(status) || DsaFailAt(what, "status", record().status, row_);
  }

  [[nodiscard]] DsaDescriptor Fill(uint64_t size) const {
    return {.flags_and_opcode = DsaOp(DsaOpcode::kFill),
            .destination = DsaAt(memory_),
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
           Expect("the largest size and 1", Fill(too_much), DsaStatus::kBadSize) && Largest() &&
           RefusedOps();
  }
  // Of memory as it is, which is only read.
  bool Largest() {
    constexpr uint64_t kFrom = 1 << 20;
    if (!device_.Has(DsaOpcode::kCrc) || device_.max_transfer() > EndOfRam() - kFrom) return true;
    const DsaDescriptor crc{.flags_and_opcode = DsaOp(DsaOpcode::kCrc),
                            .source = kFrom,
                            .size = static_cast<uint32_t>(device_.max_transfer())};
    return Expect("the largest size", crc, DsaStatus::kSuccess);
  }
  // The same of operations that the device may not have.
  bool RefusedOps() {
    if (device_.Has(DsaOpcode::kBatch)) {
      DsaDescriptor batch{
          .flags_and_opcode = DsaOp(DsaOpcode::kBatch), .source = DsaAt(memory_), .size = 1};
      if (!Expect("a batch of 1", batch, DsaStatus::kBadCount)) return false;
      batch.size = device_.max_batch() + 1;
      if (!Expect("the largest batch and 1", batch, DsaStatus::kBadCount)) return false;
      batch.size = 2;
      batch.source += 32;
      if (!Expect("a misaligned list", batch, DsaStatus::kListMisaligned)) return false;
    }
    if (device_.Has(DsaOpcode::kCreateDelta)) {
      DsaDescriptor delta{.flags_and_opcode = DsaOp(DsaOpcode::kCreateDelta),
                          .source = DsaAt(memory_),
                          .destination = DsaAt(memory_ + 1024),
                          .size = 64,
                          .specific = {DsaAt(memory_ + 2048), 79, 0}};
      if (!Expect("a delta without room", delta, DsaStatus::kBadValue)) return false;
      delta.specific[1] = 80;
      delta.source += 1;
      if (!Expect("a misaligned delta", delta, DsaStatus::kMisaligned)) return false;
    }
    if (!device_.Has(DsaOpcode::kDualcast)) return true;
    DsaDescriptor dualcast{.flags_and_opcode = DsaOp(DsaOpcode::kDualcast),
                           .source = DsaAt(memory_),
                           .destination = DsaAt(memory_ + 1024),
                           .size = 64,
                           .specific = {DsaAt(memory_ + 1088), 0, 0}};
    if (!Expect("a misaligned dualcast", dualcast, DsaStatus::kDualcastMisaligned)) return false;
    dualcast.source += 1020;
    dualcast.specific[0] = dualcast.destination;
    return Expect("an overlap", dualcast, DsaStatus::kOverlap);
  }

  bool Fault(std::string_view what, DsaDescriptor descriptor, DsaStatus status, uint64_t address,
             uint32_t done) {
    if (!Expect(what, descriptor, status)) return false;
    if (record().fault_address != address)
      return DsaFailAt(what, "address", record().fault_address, row_);
    return record().bytes_completed == done ||
           DsaFailAt(what, "bytes", record().bytes_completed, row_);
  }
  // Addresses where there is no memory, from the first byte on or from the middle.
  bool Faults() {
    const uint64_t end = EndOfRam();
    DsaDescriptor move{.flags_and_opcode = DsaOp(DsaOpcode::kMove),
                       .source = end,
                       .destination = DsaAt(memory_),
                       .size = 128};
    if (!Fault("a source that is no memory", move, DsaStatus::kPageFault, end, 0)) return false;
    move.source = end - 64;
    if (!Fault("a source that ends in no memory", move, DsaStatus::kPageFault, end, 64))
      return false;
    move.source = DsaAt(memory_);
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
    if (!device_.TakeError(words)) return DsaFailAt(what, "is not told", words[0], row_);
    if ((words[0] & 0x0f) != kValid || (words[0] >> 8 & 0xff) != static_cast<uint8_t>(code) ||
        (words[0] >> 32 & 0xff) != descriptor.flags_and_opcode >> 24) {
      return DsaFailAt(what, "SWERROR", words[0], row_);
    }
    return words[2] == address || DsaFailAt(what, "address", words[2], row_);
  }
  // Errors that no record can tell.
  bool InErrorRegister() {
    DsaDescriptor noop{.flags_and_opcode = DsaOp(DsaOpcode::kNoop, kDsaWithRecord),
                       .record = DsaAt(memory_ + 8)};
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
    return Overflow() && DsaNoop("after the errors", device_, row_);
  }

  // Two at once: one of them is told, and that there was another.
  bool Overflow() {
    const DsaDescriptor bad{.flags_and_opcode = 0x3f000000};
    descriptors_ += 2;
    queue_.Submit(bad);
    queue_.Submit(bad);
    uint64_t words[4];
    if (!device_.TakeOverflow(words)) return row_.Fail("no overflow of SWERROR", words[0]);
    // Cleared, it tells of the next one.
    return Told("an error after an overflow", bad, DsaStatus::kBadOpcode, 0);
  }

  DsaDevice& device_;
  DsaQueue& queue_;
  Row& row_;
  uint8_t* memory_ = nullptr;
  unsigned descriptors_ = 0;
};

}  // namespace

void TestDsaErrors(PciFunction& function, Row& row) {
  const size_t mark = AllocationMark();
  DsaDevice device;
  if (device.Open(function, row) && device.Start(row)) {
    Errors errors(device, row);
    errors.Run();
    row.tested().Add("operation flags fields sizes faults SWERROR");
    row.figures().Put(errors.descriptors(), " descriptors");
  }
  device.Close();
  ReleaseAllocations(mark);
}

}  // namespace postern::probe
