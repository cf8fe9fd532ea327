#include "devices/siov/cdev/rewriter.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <optional>
#include <span>

#include "src/base/check.h"

namespace postern::dsa {
namespace {

using memory::Gpa;

constexpr std::uint64_t kSeedBytes = 4, kLongSeedBytes = 8;
constexpr std::uint32_t kLongCrc = 1U << 19;
constexpr std::uint32_t kSpecificFlags = 0xff0000;
// Fields of a descriptor, from its start.
constexpr std::size_t kSource = 16, kDestination = 24, kSpecific = 40;

// One address of a descriptor.
struct Address {
  std::size_t at = 0;  // where it stands
  std::uint64_t length = 0;
  bool write = false;
};

// All of a descriptor's: the record's apart.
class Addresses {
 public:
  void Add(std::size_t at, std::uint64_t length, bool write) {
    list_[count_++] = {.at = at, .length = length, .write = write};
  }
  [[nodiscard]] const Address* begin() const { return list_.data(); }
  [[nodiscard]] const Address* end() const { return list_.data() + count_; }

 private:
  std::array<Address, 3> list_;
  std::size_t count_ = 0;
};

void AddCrc(const WorkDescriptor& d, Addresses& to) {
  to.Add(kSource, d.size.get(), false);
  if (d.opcode() == Opcode::kCopyCrc) to.Add(kDestination, d.size.get(), true);
  if (d.Has(Flag::kReadSeed))
    to.Add(kSpecific + offsetof(CrcFields, seed_address),
           d.Has(kLongCrc) ? kLongSeedBytes : kSeedBytes, false);
}

// DSA 8.3, operation by operation. Nothing: not one of kRewritable.
std::optional<Addresses> AddressesOf(const WorkDescriptor& d) {
  const std::uint64_t size = d.size.get();
  Addresses of;
  switch (d.opcode()) {
    case Opcode::kNoop:
      break;
    case Opcode::kMove:
      of.Add(kSource, size, false);
      of.Add(kDestination, size, true);
      break;
    case Opcode::kFill:
    case Opcode::kCacheFlush:
      of.Add(kDestination, size, true);
      break;
    case Opcode::kCompare:
      of.Add(kSource, size, false);
      of.Add(kDestination, size, false);
      break;
    case Opcode::kComparePattern:
      of.Add(kSource, size, false);
      break;
    case Opcode::kCreateDelta:
      of.Add(kSource, size, false);
      of.Add(kDestination, size, false);
      of.Add(kSpecific, d.As<CreateDeltaFields>().max_size.get(), true);
      break;
    case Opcode::kApplyDelta:
      of.Add(kSource, d.As<ApplyDeltaFields>().size.get(), false);
      of.Add(kDestination, size, true);
      break;
    case Opcode::kDualcast:
      of.Add(kSource, size, false);
      of.Add(kDestination, size, true);
      of.Add(kSpecific, size, true);
      break;
    case Opcode::kCrc:
    case Opcode::kCopyCrc:
      AddCrc(d, of);
      break;
    default:
      return std::nullopt;
  }
  return of;
}

// Operation-specific flags whose meaning is known here: of others it is not known that they name no
// address.
std::uint32_t KnownFlags(Opcode opcode) {
  constexpr std::uint32_t kLongPattern = 1U << 18;  // of a fill: 16 bytes
  switch (opcode) {
    case Opcode::kFill:
      return kLongPattern;
    case Opcode::kCrc:
    case Opcode::kCopyCrc:
      return Flag::kReadSeed | Flag::kBypassInversion | Flag::kBypassDataReflection | kLongCrc;
    default:
      return 0;
  }
}

// Of [gpa, gpa + length), in one region; nothing if it is not.
std::optional<std::uint64_t> HostAddress(const memory::GuestMemory& memory, std::uint64_t gpa,
                                         std::uint64_t length) {
  for (const memory::RegionPtr& region : memory.regions()) {
    if (!region->Contains(Gpa(gpa))) continue;
    const std::uint64_t offset = gpa - region->base().value;
    if (length > region->size() - offset) return std::nullopt;
    return region->host_address() + offset;
  }
  return std::nullopt;
}

tl::unexpected<Refusal> Refuse(Completion status) {
  return tl::unexpected<Refusal>(Refusal{.status = status});
}

std::uint64_t Get(const siov::Descriptor& from, std::size_t at) {
  le64 value;
  std::memcpy(&value, from.data() + at, sizeof(value));
  return value.get();
}

void Put(siov::Descriptor& to, std::size_t at, std::uint64_t value) {
  const le64 little(value);
  std::memcpy(to.data() + at, &little, sizeof(little));
}

bool IsFault(std::uint8_t status) {
  const auto code = static_cast<Completion>(status & ~kFaultOnWrite);
  return code == Completion::kPageFault || code == Completion::kBatchListFault;
}

}  // namespace

void Rewritten::Add(const Span& span) {
  CHECK(count_ < spans_.size());
  spans_[count_++] = span;
}

// 0 for what the guest never named: it is nobody's business but ours.
std::uint64_t Rewritten::GuestAddress(std::uint64_t host) const {
  for (std::size_t i = 0; i < count_; ++i) {
    // The device names the page, which may begin before the range.
    const Span& span = spans_[i];
    constexpr std::uint64_t kInPage = 4095;
    const std::uint64_t begin = span.host & ~kInPage;
    if (host >= begin && host - begin < span.length + (span.host - begin))
      return span.guest - (span.host - begin) + (host - begin);
  }
  return 0;
}

std::uint64_t Rewritten::FaultAddress(const CompletionRecord& shadow) const {
  return IsFault(shadow.status) ? GuestAddress(shadow.fault_address.get()) : 0;
}

void WriteGuestRecord(const memory::GuestMemory& memory, std::uint64_t address,
                      const CompletionRecord& record) {
  std::array<std::byte, sizeof(record)> bytes{};
  std::memcpy(bytes.data(), &record, sizeof(record));
  constexpr std::size_t kFirst = 8;
  const std::span<const std::byte> rest = std::span<const std::byte>(bytes).subspan(kFirst);
  const Result<memory::GuestView> view =
      memory.View(Gpa(address), sizeof(record), memory::Access::kWrite);
  if (!view || !memory.CopyIn(Gpa(address + kFirst), rest)) return;
  std::uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof(first));
  // Pairs with the guest's reading of the status: it then sees the data and the rest of the record.
  view->StoreRelease64(0, first);
}

bool Rewritten::Finish(const memory::GuestMemory& memory, const CompletionRecord& shadow) const {
  const auto code = static_cast<Completion>(shadow.status & ~kFaultOnWrite);
  const bool plain = code == Completion::kSuccess || code == Completion::kFalsePredicate;
  if (record_ == 0 || (plain && !always_)) return interrupt;
  CompletionRecord record = shadow;
  record.fault_address = le64(FaultAddress(shadow));
  WriteGuestRecord(memory, record_, record);
  return interrupt;
}

tl::expected<Rewritten, Refusal> Rewriter::Rewrite(const memory::GuestMemory& memory,
                                                   const siov::Descriptor& descriptor,
                                                   std::uint64_t shadow) {
  CHECK(shadow % kRecordSize == 0 && shadow != 0);
  WorkDescriptor words = std::bit_cast<WorkDescriptor>(descriptor);
  Rewritten out;
  const bool has_record = words.Has(Flag::kRecordValid);
  if (has_record) {
    out.record_ = words.record.get();
    out.always_ = words.Has(Flag::kRequestRecord);
    if (out.record_ % kRecordSize != 0) return Refuse(Completion::kRecordMisaligned);
    if (!HostAddress(memory, out.record_, kRecordSize) || out.record_ == 0)
      return Refuse(Completion::kRecordFault);
  }
  const std::optional<Addresses> addresses = AddressesOf(words);
  if (!addresses) return Refuse(Completion::kBadOpcode);
  if ((words.flags() & kSpecificFlags & ~KnownFlags(words.opcode())) != 0)
    return Refuse(Completion::kBadFlags);
  out.interrupt = words.Has(Flag::kRequestInterrupt);
  out.handle = words.handle.get();
  // The record is ours, the interrupt too; faults are not waited for; who submits is the host's.
  const std::uint32_t flags = (words.flags() & ~(Flag::kRequestInterrupt | Flag::kBlockOnFault)) |
                              Flag::kRecordValid | Flag::kRequestRecord;
  words.flags_and_opcode = le32(static_cast<std::uint32_t>(words.opcode()) << 24 | flags);
  words.record = le64(shadow);
  words.handle = le16(0);
  words.submitter = le32(0);
  out.descriptor = std::bit_cast<siov::Descriptor>(words);
  for (const Address& address : *addresses) {
    const std::uint64_t guest = Get(descriptor, address.at);
    if (address.length == 0) return Refuse(Completion::kBadSize);
    const std::optional<std::uint64_t> host = HostAddress(memory, guest, address.length);
    if (!host) {
      return tl::unexpected<Refusal>(Refusal{.status = Completion::kPageFault,
                                             .fault_address = guest,
                                             .fault_on_write = address.write});
    }
    Put(out.descriptor, address.at, *host);
    out.Add({.guest = guest, .host = *host, .length = address.length, .write = address.write});
  }
  return out;
}

}  // namespace postern::dsa
