#include "devices/siov/engine/checks.h"

#include <array>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "devices/siov/engine/dif.h"

namespace postern::dsa::internal {
namespace {

// Bits first..last.
constexpr std::uint64_t Bytes(unsigned first, unsigned last) {
  return (~std::uint64_t{0} >> (63 - (last - first))) << first;
}
constexpr std::uint64_t Byte(unsigned index) {
  return Bytes(index, index);
}

constexpr std::uint32_t kCommon =
    Flag::kRecordValid | Flag::kRequestRecord | Flag::kRequestInterrupt | Flag::kRecordClass;
constexpr std::uint32_t kClass1 = Flag::kAddress1Class;
constexpr std::uint32_t kClass2 = Flag::kAddress2Class;
constexpr std::uint32_t kClass3 = Flag::kAddress3Class;
constexpr std::uint32_t kWrites = Flag::kCacheControl1 | Flag::kStrictOrder;
constexpr std::uint32_t kCrcFlags =
    Flag::kReadSeed | Flag::kBypassInversion | Flag::kBypassDataReflection | kClass3;
constexpr std::uint32_t kNeedsRecord = Flag::kRecordValid | Flag::kRequestRecord;

struct Rule {
  Opcode opcode;
  bool has_size;
  std::uint32_t allowed;   // flags besides kCommon
  std::uint32_t required;  // flags
  std::uint64_t reserved;  // bit n: byte n
};

// DSA 5.5, tables 5-3 and 5-5.
constexpr std::array<Rule, 17> kRules{{
    {Opcode::kNoop, false, 0, 0, Bytes(16, 35) | Bytes(38, 63)},
    {Opcode::kBatch, false, kClass1, 0, Bytes(24, 31) | Bytes(38, 63)},
    // Without readback (GENCAP bit 9) its addresses are reserved too.
    {Opcode::kDrain, false, Flag::kSuppressReadbackA | Flag::kSuppressReadbackB, 0,
     Bytes(16, 35) | Bytes(38, 63)},
    {Opcode::kMove, true, kWrites | kClass1 | kClass2, 0, Bytes(38, 63)},
    {Opcode::kFill, true, kWrites | kClass2, 0, Bytes(38, 63)},
    {Opcode::kCompare, true, Flag::kCheckResult | kClass1 | kClass2, kNeedsRecord,
     Bytes(38, 39) | Bytes(41, 63)},
    {Opcode::kComparePattern, true, Flag::kCheckResult | kClass1, kNeedsRecord,
     Bytes(38, 39) | Bytes(41, 63)},
    {Opcode::kCreateDelta, true, Flag::kCheckResult | kWrites | kClass1 | kClass2 | kClass3,
     kNeedsRecord, Bytes(38, 39) | Bytes(52, 55) | Bytes(57, 63)},
    {Opcode::kApplyDelta, true, kWrites | kClass1 | kClass2, 0, Bytes(38, 39) | Bytes(44, 63)},
    {Opcode::kDualcast, true, kWrites | kClass1 | kClass2 | kClass3, 0,
     Bytes(38, 39) | Bytes(48, 63)},
    {Opcode::kCrc, true, kClass1 | kCrcFlags, kNeedsRecord,
     Bytes(24, 31) | Bytes(38, 39) | Bytes(44, 63)},
    {Opcode::kCopyCrc, true, kWrites | kClass1 | kClass2 | kCrcFlags, kNeedsRecord,
     Bytes(38, 39) | Bytes(44, 63)},
    {Opcode::kDifCheck, true, kClass1, kNeedsRecord,
     Bytes(24, 31) | Bytes(38, 39) | Byte(41) | Bytes(43, 47) | Bytes(56, 63)},
    {Opcode::kDifInsert, true, kWrites | kClass1 | kClass2, 0, Bytes(38, 40) | Bytes(43, 55)},
    {Opcode::kDifStrip, true, kWrites | kClass1 | kClass2, 0,
     Bytes(38, 39) | Byte(41) | Bytes(43, 47) | Bytes(56, 63)},
    {Opcode::kDifUpdate, true, kWrites | kClass1 | kClass2, 0, Bytes(38, 39) | Bytes(43, 47)},
    {Opcode::kCacheFlush, true, kWrites | kClass2, 0, Bytes(16, 23) | Bytes(38, 63)},
}};

// Where an operation's rule is; kRules.size() for what is none.
constexpr std::array<std::uint8_t, 0x21> RuleIndex() {
  std::array<std::uint8_t, 0x21> index{};
  index.fill(kRules.size());
  for (std::size_t i = 0; i < kRules.size(); ++i) {
    index[static_cast<std::uint8_t>(kRules[i].opcode)] = static_cast<std::uint8_t>(i);
  }
  return index;
}

const Rule* FindRule(std::uint8_t opcode) {
  static constexpr auto kIndex = RuleIndex();
  if (opcode >= kIndex.size() || kIndex[opcode] == kRules.size()) return nullptr;
  return &kRules[kIndex[opcode]];
}

bool IsCrc(Opcode opcode) {
  return opcode == Opcode::kCrc || opcode == Opcode::kCopyCrc;
}

const Rule* AllowedRule(const CheckContext& context, Opcode opcode, bool in_batch) {
  const auto code = static_cast<std::uint8_t>(opcode);
  if (!siov::IsIn(context.caps.operations, code) || !siov::IsIn(context.limits.operations, code)) {
    return nullptr;
  }
  // DSA 8.3.2, 8.3.3: neither may be in a batch.
  if (in_batch && (opcode == Opcode::kBatch || opcode == Opcode::kDrain)) return nullptr;
  return FindRule(code);
}

std::uint32_t InvalidFlags(const CheckContext& context, const Rule& rule, std::uint32_t flags,
                           bool in_batch) {
  std::uint32_t allowed = rule.allowed | kCommon;
  if (!context.caps.cache_control) allowed &= ~Flag::kCacheControl1;
  // DSA 5.5, table 5-4.
  if (in_batch) allowed |= Flag::kFence;
  if ((flags & Flag::kRecordValid) == 0) allowed &= ~(Flag::kRequestRecord | Flag::kRecordClass);
  if (IsCrc(rule.opcode) && (flags & Flag::kReadSeed) == 0) allowed &= ~kClass3;
  std::uint32_t invalid = (flags & ~allowed) | (rule.required & ~flags);
  constexpr std::uint32_t kNotice = Flag::kRequestRecord | Flag::kRequestInterrupt;
  if (rule.opcode == Opcode::kDrain && (flags & kNotice) == 0) invalid |= kNotice;
  return invalid;
}

#if defined(__x86_64__)
// Bit n: byte n of the 16 at `part` is 0.
std::uint64_t ZeroBytes(const __m128i* part) {
  const __m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128(part), _mm_setzero_si128());
  return static_cast<std::uint16_t>(_mm_movemask_epi8(equal));
}
#endif

// Bit n: byte n is not 0.
std::uint64_t NonZeroBytes(const WorkDescriptor& descriptor) {
#if defined(__x86_64__)
  const auto* parts = static_cast<const __m128i*>(static_cast<const void*>(&descriptor));
  return ~(ZeroBytes(parts) | ZeroBytes(parts + 1) << 16 | ZeroBytes(parts + 2) << 32 |
           ZeroBytes(parts + 3) << 48);
#else
  const auto bytes = std::bit_cast<std::array<std::uint8_t, sizeof(descriptor)>>(descriptor);
  std::uint64_t not_zero = 0;
  for (unsigned i = 0; i < bytes.size(); ++i) not_zero |= std::uint64_t{bytes[i] != 0} << i;
  return not_zero;
#endif
}

bool ReservedNotZero(const Rule& rule, const WorkDescriptor& descriptor) {
  std::uint64_t reserved = rule.reserved;
  if (!descriptor.Has(Flag::kRecordValid)) reserved |= Bytes(8, 15);
  if (!descriptor.Has(Flag::kRequestInterrupt)) reserved |= Bytes(36, 37);
  if (IsCrc(rule.opcode) && descriptor.Has(Flag::kReadSeed)) {
    reserved = (reserved & ~Bytes(48, 55)) | Bytes(40, 43);
  }
  if ((NonZeroBytes(descriptor) & reserved) != 0) return true;
  if (!IsDif(rule.opcode)) return false;
  const auto fields = descriptor.As<DifFields>();
  return (fields.flags & DifFlag::kReserved) != 0 ||
         (fields.destination_flags & DifFlag::kDestinationReserved) != 0;
}

Completion CheckSizes(const CheckContext& context, const WorkDescriptor& descriptor) {
  const std::uint64_t size = descriptor.size.get();
  const std::uint64_t max = context.limits.max_transfer;
  if (size == 0 || size > max) return Completion::kBadSize;
  const Opcode opcode = descriptor.opcode();
  if (IsDif(opcode)) {
    return size % DifLayout(descriptor).source_step == 0 ? Completion::kSuccess
                                                         : Completion::kBadSize;
  }
  if (opcode != Opcode::kCreateDelta && opcode != Opcode::kApplyDelta) return Completion::kSuccess;
  if (size > kMaxDeltaTransfer) return Completion::kBadSize;
  if (opcode == Opcode::kCreateDelta) {
    const std::uint32_t room = descriptor.As<CreateDeltaFields>().max_size.get();
    return room < kMinDeltaRecord || room > max ? Completion::kBadValue : Completion::kSuccess;
  }
  const std::uint32_t record = descriptor.As<ApplyDeltaFields>().size.get();
  return record == 0 || record > max || record % kDeltaSize != 0 ? Completion::kBadValue
                                                                 : Completion::kSuccess;
}

Completion CheckAlignment(const WorkDescriptor& descriptor) {
  const std::uint64_t size = descriptor.size.get();
  const std::uint64_t source = descriptor.source.get();
  const std::uint64_t destination = descriptor.destination.get();
  std::uint64_t bits = 0;
  switch (descriptor.opcode()) {
    case Opcode::kCreateDelta:
      bits = (source | destination | size) & 7;
      break;
    case Opcode::kApplyDelta:
      bits = (destination | size) & 7;
      break;
    case Opcode::kCrc:
    case Opcode::kCopyCrc:
      bits =
          descriptor.Has(Flag::kReadSeed) ? descriptor.As<CrcFields>().seed_address.get() & 3 : 0;
      break;
    case Opcode::kDualcast: {
      const std::uint64_t second = descriptor.As<DualcastFields>().destination2.get();
      if (((destination ^ second) & 0xfff) != 0) return Completion::kDualcastMisaligned;
      break;
    }
    default:
      break;
  }
  return bits == 0 ? Completion::kSuccess : Completion::kMisaligned;
}

// Sums wrap on purpose: so do the ranges.
bool Overlap(std::uint64_t a, std::uint64_t a_size, std::uint64_t b, std::uint64_t b_size) {
  return b - a < a_size || a - b < b_size;
}

bool BuffersOverlap(const CheckContext& context, const WorkDescriptor& descriptor) {
  const std::uint64_t size = descriptor.size.get();
  const std::uint64_t source = descriptor.source.get();
  const std::uint64_t destination = descriptor.destination.get();
  switch (descriptor.opcode()) {
    case Opcode::kMove:
      return !context.caps.overlapping_copy && Overlap(source, size, destination, size);
    case Opcode::kCopyCrc:
      return Overlap(source, size, destination, size);
    case Opcode::kDualcast: {
      const std::uint64_t second = descriptor.As<DualcastFields>().destination2.get();
      return Overlap(source, size, destination, size) || Overlap(source, size, second, size) ||
             Overlap(destination, size, second, size);
    }
    case Opcode::kCreateDelta: {
      const auto delta = descriptor.As<CreateDeltaFields>();
      return Overlap(source, size, delta.record.get(), delta.max_size.get()) ||
             Overlap(destination, size, delta.record.get(), delta.max_size.get());
    }
    case Opcode::kApplyDelta:
      return Overlap(source, descriptor.As<ApplyDeltaFields>().size.get(), destination, size);
    case Opcode::kDifInsert:
    case Opcode::kDifStrip:
    case Opcode::kDifUpdate: {
      const DifSteps steps = DifLayout(descriptor);
      return Overlap(source, size, destination, size / steps.source_step * steps.destination_step);
    }
    default:
      return false;
  }
}

Completion CheckBatch(const CheckContext& context, const WorkDescriptor& descriptor) {
  // DSA 8.3.2: one descriptor is too few without Batch1 (GENCAP bit 52).
  const std::uint32_t count = descriptor.size.get();
  if (count < 2 || count > context.limits.max_batch) return Completion::kBadCount;
  if (descriptor.source.get() % siov::kDescriptorSize != 0) return Completion::kListMisaligned;
  return Completion::kSuccess;
}

}  // namespace

Completion CheckDescriptor(const CheckContext& context, const WorkDescriptor& descriptor,
                           bool in_batch, std::uint32_t& invalid_flags) {
  const Rule* rule = AllowedRule(context, descriptor.opcode(), in_batch);
  if (rule == nullptr) return Completion::kBadOpcode;
  invalid_flags = InvalidFlags(context, *rule, descriptor.flags(), in_batch);
  if (invalid_flags != 0) return Completion::kBadFlags;
  if (ReservedNotZero(*rule, descriptor)) return Completion::kReservedNotZero;
  if (descriptor.Has(Flag::kRequestInterrupt) &&
      !context.environment.IsHandle(descriptor.handle.get())) {
    return Completion::kBadHandle;
  }
  if (rule->opcode == Opcode::kBatch) return CheckBatch(context, descriptor);
  if (!rule->has_size) return Completion::kSuccess;
  if (const Completion sizes = CheckSizes(context, descriptor); sizes != Completion::kSuccess) {
    return sizes;
  }
  if (const Completion at = CheckAlignment(descriptor); at != Completion::kSuccess) return at;
  return BuffersOverlap(context, descriptor) ? Completion::kOverlap : Completion::kSuccess;
}

}  // namespace postern::dsa::internal
