#pragma once

// The layouts of a DSA work descriptor and of its completion record, and their numbers. No logic.
//
//   const auto descriptor = std::bit_cast<WorkDescriptor>(bytes);
//   if (descriptor.opcode() == Opcode::kFill) ... descriptor.flags() & Flag::kRequestRecord ...
//
// Source of the numbers: Linux include/uapi/linux/idxd.h and the Intel DSA Architecture
// Specification 3.0, chapter 8.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "devices/siov/core/backend.h"
#include "src/base/endian.h"

namespace postern::dsa {

enum class Opcode : std::uint8_t {
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

// All of the above, as OPCAP has them.
constexpr siov::OperationSet kAllOperations{0x1003f03ff, 0, 0, 0};

// DSA 8.1.3. Of the descriptor's flags, 24 bits.
struct Flag {
  static constexpr std::uint32_t kFence = 1U << 0;
  static constexpr std::uint32_t kBlockOnFault = 1U << 1;
  static constexpr std::uint32_t kRecordValid = 1U << 2;
  static constexpr std::uint32_t kRequestRecord = 1U << 3;
  static constexpr std::uint32_t kRequestInterrupt = 1U << 4;
  static constexpr std::uint32_t kCacheControl3 = 1U << 5;
  static constexpr std::uint32_t kCheckResult = 1U << 7;
  static constexpr std::uint32_t kCacheControl1 = 1U << 8;
  static constexpr std::uint32_t kAddress1Class = 1U << 9;
  static constexpr std::uint32_t kAddress2Class = 1U << 10;
  static constexpr std::uint32_t kAddress3Class = 1U << 11;
  static constexpr std::uint32_t kRecordClass = 1U << 12;
  static constexpr std::uint32_t kStrictOrder = 1U << 13;
  static constexpr std::uint32_t kCacheControl2 = 1U << 14;
  // Operation-specific.
  static constexpr std::uint32_t kSuppressReadbackA = 1U << 18;  // drain
  static constexpr std::uint32_t kSuppressReadbackB = 1U << 19;
  static constexpr std::uint32_t kReadSeed = 1U << 16;  // CRC
  static constexpr std::uint32_t kBypassInversion = 1U << 17;
  static constexpr std::uint32_t kBypassDataReflection = 1U << 18;
};

// DSA 5.8.1.
enum class Completion : std::uint8_t {
  kNone = 0x00,  // never written: of a descriptor that was aborted
  kSuccess = 0x01,
  kFalsePredicate = 0x02,
  kPageFault = 0x03,
  kBatchHadErrors = 0x05,
  kBatchListFault = 0x06,
  kDeltaNotIncreasing = 0x07,
  kDeltaOutOfRange = 0x08,
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
};
// Beside the status of a page fault: the access that faulted was a write.
constexpr std::uint8_t kFaultOnWrite = 0x80;

// DSA 8.3.17. Flags of the DIF operations, in bytes of their own.
struct DifFlag {
  static constexpr std::uint8_t kBlockSize = 3;  // of DIF flags: 512, 520, 4096, 4104
  static constexpr std::uint8_t kInvertSeed = 1 << 2;
  static constexpr std::uint8_t kInvertResult = 1 << 3;
  static constexpr std::uint8_t kReserved = 0xf0;
  // Source flags.
  static constexpr std::uint8_t kAllFError = 1 << 0;
  static constexpr std::uint8_t kAllFDetect = 1 << 1;
  static constexpr std::uint8_t kAppFDetect = 1 << 2;
  static constexpr std::uint8_t kAppRefFDetect = 1 << 3;
  static constexpr std::uint8_t kNoGuardCheck = 1 << 5;
  static constexpr std::uint8_t kNoRefCheck = 1 << 6;
  // Source and destination flags.
  static constexpr std::uint8_t kAppIncrements = 1 << 4;
  static constexpr std::uint8_t kRefFixed = 1 << 7;
  // Destination flags.
  static constexpr std::uint8_t kAppPassThrough = 1 << 3;
  static constexpr std::uint8_t kGuardPassThrough = 1 << 5;
  static constexpr std::uint8_t kRefPassThrough = 1 << 6;
  static constexpr std::uint8_t kDestinationReserved = 0x07;
  // DIF status: bits of the record's result.
  static constexpr std::uint8_t kGuardMismatch = 1;
  static constexpr std::uint8_t kAppMismatch = 2;
  static constexpr std::uint8_t kRefMismatch = 4;
  static constexpr std::uint8_t kAllF = 8;
};

struct DifTags {
  le32 ref;
  le16 app_mask;  // its 1 bits are forced to 0 in the tag
  le16 app;
};

// What bytes 40..63 are, by operation.
struct CompareFields {
  std::uint8_t expected;
  std::array<std::uint8_t, 23> reserved;
};
struct CreateDeltaFields {
  le64 record;
  le32 max_size;
  le32 reserved;
  std::uint8_t expected_mask;
  std::array<std::uint8_t, 7> reserved2;
};
struct ApplyDeltaFields {
  le32 size;  // of the delta record; its address is `source`
  le32 reserved;
  std::array<le64, 2> reserved2;
};
struct DualcastFields {
  le64 destination2;
  std::array<le64, 2> reserved;
};
struct CrcFields {
  le32 seed;
  le32 reserved;
  le64 seed_address;
  le64 reserved2;
};
struct DifFields {
  std::uint8_t source_flags;
  std::uint8_t destination_flags;
  std::uint8_t flags;
  std::array<std::uint8_t, 5> reserved;
  DifTags source;
  DifTags destination;
};

struct WorkDescriptor {
  le32 submitter;  // PASID and privilege: of a dedicated queue's descriptor both are ignored
  le32 flags_and_opcode;
  le64 record;
  le64 source;       // or the pattern, the batch's list, the delta record
  le64 destination;  // or the second source, the pattern to compare with
  le32 size;         // or the number of descriptors in the batch
  le16 handle;
  le16 reserved;
  std::array<std::byte, 24> specific;

  [[nodiscard]] Opcode opcode() const { return static_cast<Opcode>(flags_and_opcode.get() >> 24); }
  [[nodiscard]] std::uint32_t flags() const { return flags_and_opcode.get() & 0xffffff; }
  [[nodiscard]] bool Has(std::uint32_t any_of) const { return (flags() & any_of) != 0; }
  template <typename T>
  [[nodiscard]] T As() const {
    static_assert(sizeof(T) == sizeof(specific));
    return std::bit_cast<T>(specific);
  }
};
static_assert(sizeof(WorkDescriptor) == siov::kDescriptorSize);
static_assert(offsetof(WorkDescriptor, size) == 32 && offsetof(WorkDescriptor, handle) == 36 &&
              offsetof(WorkDescriptor, specific) == 40);
static_assert(offsetof(CreateDeltaFields, expected_mask) == 16 &&
              offsetof(CrcFields, seed_address) == 8 && offsetof(DifFields, source) == 8 &&
              offsetof(DifFields, destination) == 16);

// DSA 8.2. The first eight bytes are written last, and at once.
struct CompletionRecord {
  std::uint8_t status = 0;
  std::uint8_t result = 0;  // or the DIF status
  std::uint8_t fault_info = 0;
  std::uint8_t reserved = 0;
  le32 bytes_completed{0};  // or the batch's descriptors
  le64 fault_address{0};
  // Invalid flags, delta record size, CRC, tags.
  std::array<le64, 2> specific{le64(0), le64(0)};
};
static_assert(sizeof(CompletionRecord) == 32);
constexpr std::uint64_t kRecordSize = sizeof(CompletionRecord);

// DSA 8.3.8: an offset in units of 8 bytes and the 8 bytes there.
constexpr std::uint32_t kDeltaSize = 10;
constexpr std::uint32_t kMinDeltaRecord = 80;
constexpr std::uint32_t kMaxDeltaTransfer = 0x80000;

}  // namespace postern::dsa
