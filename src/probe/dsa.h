// A driver for Intel's Data Streaming Accelerator (8086:0b25): the function with its registers and
// commands, and a queue's portal. Numbers: Intel DSA Architecture Specification 3.0, chapters 8 and
// 9; they are also in Linux drivers/dma/idxd/registers.h and include/uapi/linux/idxd.h.
//
//   DsaDevice device;
//   if (!device.Open(function, row) || !device.Start(row)) return;
//   DsaDescriptor move = {.flags_and_opcode = DsaOp(DsaOpcode::kMove), .source = from, ...};
//   if (!device.queue(0).Run(move)) row.Fail("lost");
//
// Names nothing of the device that the host configured (GENCAP bit 31 clear): it enables what it
// finds. Otherwise it configures groups, engines and queues itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/probe/pci.h"
#include "src/probe/report.h"

namespace postern::probe {

inline constexpr uint32_t kDsaPciId = 0x80860b25;

enum class DsaOpcode : uint8_t {
  kNoop = 0x00,
  kBatch = 0x01,
  kDrain = 0x02,
  kMove = 0x03,
  kFill = 0x04,
  kCompare = 0x05,
  kComparePattern = 0x06,
  kCreateDelta = 0x07,
  kApplyDelta = 0x08,
  kDualcast = 0x09,
  kCrc = 0x10,
  kCopyCrc = 0x11,
  kDifCheck = 0x12,
  kDifInsert = 0x13,
  kDifStrip = 0x14,
  kDifUpdate = 0x15,
  kCacheFlush = 0x20,
};

struct DsaFlag {
  static constexpr uint32_t kFence = 1U << 0;
  static constexpr uint32_t kRecordValid = 1U << 2;
  static constexpr uint32_t kRequestRecord = 1U << 3;
  static constexpr uint32_t kRequestInterrupt = 1U << 4;
  static constexpr uint32_t kReserved = 1U << 6;
  static constexpr uint32_t kCheckResult = 1U << 7;
  static constexpr uint32_t kReadSeed = 1U << 16;
};

enum class DsaStatus : uint8_t {
  kNone = 0x00,
  kSuccess = 0x01,
  kFalsePredicate = 0x02,
  kPageFault = 0x03,
  kBatchHadErrors = 0x05,
  kDifError = 0x09,
  kBadOpcode = 0x10,
  kBadFlags = 0x11,
  kReservedNotZero = 0x12,
  kBadSize = 0x13,
  kBadCount = 0x14,
  kBadValue = 0x15,
  kOverlap = 0x16,
  kDualcastMisaligned = 0x17,
  kListMisaligned = 0x18,
  kBadHandle = 0x19,
  kRecordFault = 0x1a,
  kRecordMisaligned = 0x1b,
  kMisaligned = 0x1c,
  kWriteFault = 0x83,  // a page fault, and the access was a write
};

constexpr uint32_t DsaOp(DsaOpcode opcode, uint32_t flags = 0) {
  return uint32_t{static_cast<uint8_t>(opcode)} << 24 | flags;
}
constexpr uint32_t kDsaWithRecord = DsaFlag::kRecordValid | DsaFlag::kRequestRecord;

struct DsaDescriptor {
  uint32_t submitter = 0;
  uint32_t flags_and_opcode = 0;
  uint64_t record = 0;
  uint64_t source = 0;       // or a pattern, a batch's list, a delta record
  uint64_t destination = 0;  // or the second source, the pattern to compare with
  uint32_t size = 0;         // or the number of a batch's descriptors
  uint16_t handle = 0;
  uint16_t reserved = 0;
  uint64_t specific[3] = {};  // bytes 40 to 63
};
static_assert(sizeof(DsaDescriptor) == 64 && offsetof(DsaDescriptor, specific) == 40);

// Written by the device: nothing of it is looked at before DsaFinished said so.
struct alignas(32) DsaRecord {
  uint8_t status = 0;
  uint8_t result = 0;
  uint8_t fault_info = 0;
  uint8_t reserved = 0;
  uint32_t bytes_completed = 0;
  uint64_t fault_address = 0;
  uint64_t specific[2] = {};

  [[nodiscard]] bool Is(DsaStatus wanted) const { return status == static_cast<uint8_t>(wanted); }
};
static_assert(sizeof(DsaRecord) == 32);

// Whether the device has written the record.
bool DsaFinished(const DsaRecord& record);
// Waits for that, without an interrupt; false if that takes longer than any request may.
bool DsaAwait(const DsaRecord& record);

// What this program did with all devices of the kind, for whoever counts the same from outside.
struct DsaTotals {
  uint64_t submitted;      // descriptors stored to a portal of an enabled queue
  uint64_t ignored;        // and of a disabled one
  uint64_t register_uses;  // reads and writes of BAR 0 outside the MSI-X table
};
const DsaTotals& DsaUsed();
// Whether descriptors are stored by MOVDIR64B.
bool DsaStoresWhole();

// A work queue as its driver sees it: the limited portal, whose 64 slots are used in turn, as Linux
// does.
class DsaQueue {
 public:
  void Open(uint64_t portal, unsigned size, uint16_t handle, uint8_t vector);
  // How many may be under way is the caller's business: `size()`.
  void Submit(const DsaDescriptor& descriptor);
  void SubmitDisabled(const DsaDescriptor& descriptor);  // to a queue that ignores it
  // Submits it with record() and waits; false if nothing came.
  bool Run(DsaDescriptor& descriptor);
  // The same by the queue's unlimited portal, which is the page below.
  bool RunUnlimited(DsaDescriptor& descriptor);
  [[nodiscard]] const DsaRecord& record() const { return record_; }

  [[nodiscard]] unsigned size() const { return size_; }
  [[nodiscard]] uint16_t handle() const { return handle_; }
  [[nodiscard]] uint32_t interrupts() const;  // so far

 private:
  void Prepare(DsaDescriptor& descriptor);
  static void Store(uint64_t portal, uint64_t& slot, const DsaDescriptor& descriptor);
  uint64_t portal_ = 0;
  uint64_t slot_ = 0;
  uint64_t unlimited_slot_ = 0;
  unsigned size_ = 0;
  uint16_t handle_ = 0;
  uint8_t vector_ = 0;
  DsaRecord record_;
};

enum class DsaCommand : uint8_t {
  kEnableDevice = 1,
  kDisableDevice = 2,
  kDrainAll = 3,
  kAbortAll = 4,
  kResetDevice = 5,
  kEnableQueue = 6,
  kDisableQueue = 7,
  kDrainQueue = 8,
  kAbortQueue = 9,
  kResetQueue = 10,
  kRequestHandle = 13,
  kUnknown = 31,
};

class DsaDevice {
 public:
  static constexpr unsigned kMaxQueues = 8;
  static constexpr uint32_t kNoAnswer = 0x100;

  // The function reset and its capabilities read; the device is disabled. False: the row says why.
  bool Open(PciFunction& function, Row& row);
  // Configured, if that is the guest's, and enabled with all its queues.
  bool Start(Row& row);
  bool Configure(Row& row);
  bool EnableQueues(Row& row);
  // A reset by PCI (PCIe 3.0 6.6.2), and what configuration space needs after it.
  bool ResetFunction(Row& row);
  void Close();

  // The error code of the command's end, or kNoAnswer. Ends by interrupt.
  uint32_t Command(DsaCommand command, uint32_t operand = 0);
  bool Expect(std::string_view what, DsaCommand command, uint32_t operand, uint32_t error,
              Row& row);
  // True if the device has reported an error since the last time; its words then.
  bool TakeError(uint64_t (&words)[4]);
  // The same for an error after which there were more (Overflow).
  bool TakeOverflow(uint64_t (&words)[4]);

  [[nodiscard]] unsigned queues() const { return queue_count_; }
  [[nodiscard]] DsaQueue& queue(unsigned index) { return queues_[index]; }
  [[nodiscard]] bool Has(DsaOpcode opcode) const {
    return (opcap_ >> static_cast<uint8_t>(opcode) & 1) != 0;
  }
  [[nodiscard]] bool configurable() const { return (gencap_ >> 31 & 1) != 0; }
  [[nodiscard]] bool overlapping_copy() const { return (gencap_ >> 1 & 1) != 0; }
  [[nodiscard]] unsigned engines() const { return engines_; }
  [[nodiscard]] uint64_t max_transfer() const { return uint64_t{1} << transfer_shift_; }
  [[nodiscard]] uint32_t max_batch() const { return 1U << batch_shift_; }

  uint32_t Get32(uint32_t offset);
  uint64_t Get64(uint32_t offset);
  void Set32(uint32_t offset, uint32_t value);
  void Set64(uint32_t offset, uint64_t value);
  [[nodiscard]] uint32_t State();  // of the device
  [[nodiscard]] uint32_t QueueState(unsigned index);
  // Where the entry's word is.
  [[nodiscard]] uint32_t QueueWord(unsigned index, unsigned word) const {
    return wqcfg_ + index * wqcfg_stride_ + 4 * word;
  }
  [[nodiscard]] uint32_t GroupWord(unsigned index, unsigned word) const {
    return grpcfg_ + index * 64 + 4 * word;
  }

 private:
  bool ReadCapabilities(Row& row);
  bool ConnectInterrupts(Row& row);
  bool OpenQueue(unsigned index, Row& row);
  void CollectCauses();
  void ReadError(uint64_t (&words)[4]);

  PciFunction* function_ = nullptr;
  uint64_t registers_ = 0;
  uint64_t portals_ = 0;
  uint64_t gencap_ = 0;
  uint64_t wqcap_ = 0;
  uint64_t opcap_ = 0;
  uint64_t commands_ = 0;  // those there are, a bit each
  uint32_t grpcfg_ = 0;
  uint32_t wqcfg_ = 0;
  uint32_t wqcfg_stride_ = 0;
  unsigned groups_ = 0;
  unsigned engines_ = 0;
  unsigned transfer_shift_ = 0;
  unsigned batch_shift_ = 0;
  unsigned queue_count_ = 0;
  DsaQueue queues_[kMaxQueues];
  Msix msix_;
  uint8_t vectors_[kMaxQueues + 1] = {};
  uint8_t vector_mark_ = 0;
  uint32_t causes_ = 0;  // seen and not yet taken
};

inline uint64_t DsaAt(const void* memory) {
  return reinterpret_cast<uint64_t>(memory);
}
// The row fails: WHAT: HOW NUMBER.
bool DsaFailAt(std::string_view what, std::string_view how, uint64_t number, Row& row);
// One descriptor that does nothing in each queue completes.
bool DsaNoop(std::string_view when, DsaDevice& device, Row& row);

}  // namespace postern::probe
