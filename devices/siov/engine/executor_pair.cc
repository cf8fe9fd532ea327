#include "devices/siov/engine/executor_pair.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "src/base/check.h"

namespace postern::dsa {
namespace {

constexpr std::uint64_t kPage = 4096;

std::string Text(const char* what, std::uint64_t real, std::uint64_t plain) {
  return std::string(what) + ": " + std::to_string(real) + ", plain: " + std::to_string(plain);
}

}  // namespace

ExecutorPair::ExecutorPair(const std::vector<postern::testing::RegionSpec>& regions,
                           const ExecutorCaps& caps, const std::set<std::uint32_t>& handles)
    : memory_(postern::testing::MakeMemory(regions, true)),
      map_(memory_),
      executor_(map_, caps, environment_),
      plain_(plain_memory_, caps) {
  environment_.handles = handles;
  plain_.handles = handles;
  for (const postern::testing::RegionSpec& region : regions) {
    plain_memory_.ranges.push_back({region.base, std::vector<std::uint8_t>(region.size)});
  }
}

void ExecutorPair::Store(std::uint64_t gpa, std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::uint8_t* byte = plain_memory_.Find(gpa + i);
    if (byte == nullptr) return;
    *byte = static_cast<std::uint8_t>(bytes[i]);
    CHECK(memory_->CopyIn(memory::Gpa(gpa + i), bytes.subspan(i, 1)).has_value());
  }
}

std::string ExecutorPair::Run(const QueueLimits& limits, const siov::Descriptor& descriptor) {
  before_.clear();
  for (const PlainMemory::Range& range : plain_memory_.ranges) before_.push_back(range.bytes);
  for (const memory::RegionPtr& region : memory_->regions()) {
    static_cast<void>(region->dirty()->Take());
  }
  last_ = executor_.Execute(limits, descriptor);
  const Executed plain = plain_.Execute(limits, descriptor);
  if (last_.operation != plain.operation) return Text("opcode", last_.operation, plain.operation);
  if (last_.status != plain.status) return Text("status", last_.status, plain.status);
  if (last_.descriptors != plain.descriptors) {
    return Text("descriptors", last_.descriptors, plain.descriptors);
  }
  if (environment_.signals != plain_.signals) {
    return Text("signals", environment_.signals.size(), plain_.signals.size());
  }
  if (environment_.drains != plain_.drains)
    return Text("drains", environment_.drains, plain_.drains);
  if (environment_.errors.size() != plain_.errors.size()) {
    return Text("errors", environment_.errors.size(), plain_.errors.size());
  }
  for (std::size_t i = 0; i < plain_.errors.size(); ++i) {
    if (environment_.errors[i].queue != plain_.errors[i].queue) return "the queue of an error";
    for (std::size_t word = 0; word < 4; ++word) {
      if (environment_.errors[i].words[word] == plain_.errors[i].words[word]) continue;
      return Text("word of an error", environment_.errors[i].words[word],
                  plain_.errors[i].words[word]);
    }
  }
  return CompareMemory();
}

std::string ExecutorPair::CompareMemory() {
  for (std::size_t r = 0; r < plain_memory_.ranges.size(); ++r) {
    const PlainMemory::Range& range = plain_memory_.ranges[r];
    const std::vector<std::byte> now =
        postern::testing::Load(memory_, range.base, range.bytes.size());
    if (std::memcmp(now.data(), range.bytes.data(), now.size()) != 0) {
      std::size_t at = 0;
      while (static_cast<std::uint8_t>(now[at]) == range.bytes[at]) ++at;
      return Text("byte", static_cast<std::uint8_t>(now[at]), range.bytes[at]) + " at " +
             std::to_string(range.base + at);
    }
    for (std::size_t page = 0; page < range.bytes.size(); page += kPage) {
      const bool changed = std::memcmp(&before_[r][page], &range.bytes[page], kPage) != 0;
      if (changed && !postern::testing::IsDirty(memory_, range.base + page)) {
        return "a page that changed is not marked: " + std::to_string(range.base + page);
      }
    }
  }
  return {};
}

// Adjacent regions, holes, and the end of the address space.
std::vector<postern::testing::RegionSpec> Sequence::Regions() {
  return {{0, 2 * kPage}, {2 * kPage, kPage}, {8 * kPage, 3 * kPage}, {0 - 2 * kPage, 2 * kPage}};
}

QueueLimits Sequence::Limits() {
  return {.queue = 3,
          .max_transfer = 3 * kPage,
          .max_batch = 8,
          .operations = kAllOperations,
          .privileged = true};
}

std::uint8_t Sequence::Byte() {
  if (bytes_.empty()) return 0;
  const std::uint8_t byte = bytes_.front();
  bytes_ = bytes_.subspan(1);
  return byte;
}

std::uint64_t Sequence::Number(int bytes) {
  std::uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | Byte();
  return value;
}

// Mostly in RAM, now and then near its ends or anywhere.
std::uint64_t Sequence::Address(std::uint64_t alignment) {
  struct Place {
    std::uint64_t base;
    std::uint64_t size;
  };
  static constexpr std::array<Place, 3> kPlaces{
      {{0, 3 * kPage}, {8 * kPage, 3 * kPage}, {0 - 2 * kPage, 2 * kPage}}};
  const std::uint8_t how = Byte();
  const Place& place = kPlaces[how % 8 < 4 ? 0 : how % 8 < 7 ? 1 : 2];
  std::uint64_t address = place.base + Number(2) % place.size;
  if (how >= 0xd0) address = place.base + (how % 2) * place.size + Byte() % 128U - 64;
  if (how >= 0xfc) address = Number(8);
  return how % 32 == 31 ? address : address / alignment * alignment;
}

std::uint32_t Sequence::Size() {
  const std::uint8_t how = Byte();
  if (how < 120) return Byte();
  if (how < 230) return static_cast<std::uint32_t>(Number(2) % (2 * kPage));
  if (how < 250) return static_cast<std::uint32_t>(Limits().max_transfer) + how % 3 - 1;
  return static_cast<std::uint32_t>(Number(4));
}

void Sequence::Scribble() {
  std::array<std::byte, 24> bytes{};
  const std::uint64_t at = Address(1);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(Byte());
  pair_.Store(at, std::span(bytes).first(Byte() % bytes.size()));
}

std::uint32_t Sequence::Flags(Opcode opcode, bool in_batch) {
  std::uint32_t flags = 0;
  if (!OneIn(24)) flags |= Flag::kRecordValid | Flag::kRequestRecord;
  if (OneIn(12)) flags ^= Flag::kRequestRecord;
  if (OneIn(6)) flags |= Flag::kRequestInterrupt;
  if (in_batch && OneIn(6)) flags |= Flag::kFence;
  switch (opcode) {
    case Opcode::kCompare:
    case Opcode::kComparePattern:
    case Opcode::kCreateDelta:
      if (OneIn(2)) flags |= Flag::kCheckResult;
      break;
    case Opcode::kCrc:
    case Opcode::kCopyCrc:
      flags |= std::uint32_t{Byte()} % 8 << 16;
      break;
    case Opcode::kMove:
    case Opcode::kCacheFlush:
      if (OneIn(2)) flags |= Flag::kCacheControl1;
      break;
    case Opcode::kDrain:
      flags |= std::uint32_t{Byte()} % 4 << 18;
      break;
    default:
      break;
  }
  if (OneIn(24)) flags ^= 1U << (Byte() % 24);
  return flags;
}

void Sequence::DifOperands(WorkDescriptor& descriptor) {
  auto fields = std::bit_cast<DifFields>(descriptor.specific);
  const auto opcode = descriptor.opcode();
  fields = {};
  fields.flags = Byte() & (OneIn(24) ? 0xff : 0x0f);
  // Blocks of 4096 take most of the memory: one of them, or several small ones.
  if (!OneIn(3)) fields.flags &= 0xfd;
  const DifTags tags{
      .ref = le32(static_cast<std::uint32_t>(Number(4))),
      .app_mask = le16(OneIn(2) ? std::uint16_t{0} : static_cast<std::uint16_t>(Number(2))),
      .app = le16(static_cast<std::uint16_t>(Number(2)))};
  if (opcode != Opcode::kDifInsert) {
    fields.source_flags = Byte();
    fields.source = tags;
  }
  if (opcode == Opcode::kDifInsert || opcode == Opcode::kDifUpdate) {
    fields.destination_flags = Byte() & (OneIn(24) ? 0xff : 0xf8);
    fields.destination = tags;
    if (OneIn(2)) fields.destination.ref = le32(0xffffffff);
  }
  static constexpr std::array<std::uint32_t, 4> kBlocks{512, 520, 4096, 4104};
  const std::uint32_t step = kBlocks[fields.flags & 3] + (opcode == Opcode::kDifInsert ? 0 : 8);
  descriptor.size = step * (1 + Byte() % 5) + (OneIn(24) ? 1 : 0);
  descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
}

void Sequence::DeltaOperands(WorkDescriptor& descriptor) {
  const std::uint32_t size = descriptor.size.get();
  if (!OneIn(16)) descriptor.size = size / 8 * 8;
  if (descriptor.opcode() == Opcode::kApplyDelta) {
    ApplyDeltaFields fields{};
    fields.size = OneIn(16) ? Size() : 10 * (1 + Byte() % 20U);
    descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
    return;
  }
  CreateDeltaFields fields{};
  fields.record = Address(1);
  fields.max_size = OneIn(16) ? Size() : 80 + Byte();
  fields.expected_mask = Byte() % 16;
  descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
}

void Sequence::Operands(WorkDescriptor& descriptor) {
  const Opcode opcode = descriptor.opcode();
  const bool delta = opcode == Opcode::kCreateDelta || opcode == Opcode::kApplyDelta;
  descriptor.source = Address(opcode == Opcode::kCreateDelta ? 8 : 1);
  descriptor.destination = Address(delta ? 8 : 1);
  descriptor.size = Size();
  switch (opcode) {
    case Opcode::kFill:
      descriptor.source = Number(8);
      break;
    case Opcode::kCompare:
    case Opcode::kComparePattern:
      descriptor.specific[0] = static_cast<std::byte>(Byte() % 4);
      if (opcode == Opcode::kComparePattern) descriptor.destination = OneIn(2) ? 0 : Number(8);
      break;
    case Opcode::kDualcast: {
      const std::uint64_t second = Address(kPage) + descriptor.destination.get() % kPage;
      const DualcastFields fields{le64(OneIn(16) ? Address(1) : second), {}};
      descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
      break;
    }
    default:
      break;
  }
  if (delta) DeltaOperands(descriptor);
  if (opcode == Opcode::kCrc || opcode == Opcode::kCopyCrc) CrcOperands(descriptor);
  if (opcode >= Opcode::kDifCheck && opcode <= Opcode::kDifUpdate) DifOperands(descriptor);
  // What has no such operand.
  constexpr std::uint64_t kNoSource = 1ULL << 0x00 | 1ULL << 0x02 | 1ULL << 0x20;
  constexpr std::uint64_t kNoDestination = 7 | 1ULL << 0x10 | 1ULL << 0x12;
  constexpr std::uint64_t kNoSize = 1ULL << 0x00 | 1ULL << 0x02;
  const auto bit = std::uint64_t{1} << (static_cast<std::uint8_t>(opcode) % 64);
  if ((bit & kNoSource) != 0) descriptor.source = 0;
  if ((bit & kNoDestination) != 0) descriptor.destination = 0;
  if ((bit & kNoSize) != 0) descriptor.size = 0;
}

void Sequence::CrcOperands(WorkDescriptor& descriptor) {
  CrcFields fields{};
  if (descriptor.Has(Flag::kReadSeed)) {
    fields.seed_address = Address(4);
  } else {
    fields.seed = static_cast<std::uint32_t>(Number(4));
  }
  descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
}

WorkDescriptor Sequence::Fresh(bool in_batch) {
  static constexpr std::array<Opcode, 17> kOpcodes{
      Opcode::kNoop,           Opcode::kBatch,       Opcode::kDrain,
      Opcode::kMove,           Opcode::kFill,        Opcode::kCompare,
      Opcode::kComparePattern, Opcode::kCreateDelta, Opcode::kApplyDelta,
      Opcode::kDualcast,       Opcode::kCrc,         Opcode::kCopyCrc,
      Opcode::kDifCheck,       Opcode::kDifInsert,   Opcode::kDifStrip,
      Opcode::kDifUpdate,      Opcode::kCacheFlush};
  const std::uint8_t which = Byte();
  const Opcode opcode =
      which < 250 ? kOpcodes[which % kOpcodes.size()] : static_cast<Opcode>(Byte());
  WorkDescriptor descriptor{};
  descriptor.submitter = OneIn(2) ? 0x80000000 : 0;
  descriptor.flags_and_opcode =
      Flags(opcode, in_batch) | std::uint32_t{static_cast<std::uint8_t>(opcode)} << 24;
  if (descriptor.Has(Flag::kRecordValid)) descriptor.record = Address(kRecordSize);
  if (descriptor.Has(Flag::kRequestInterrupt)) descriptor.handle = OneIn(8) ? Byte() : 7;
  Operands(descriptor);
  if (opcode == Opcode::kBatch && !in_batch) MakeBatch(descriptor);
  return descriptor;
}

// What makes sense after the descriptor before: DIF of what has one now, a delta applied.
WorkDescriptor Sequence::FollowUp() {
  WorkDescriptor descriptor{};
  Opcode opcode = previous_.opcode();
  if (opcode == Opcode::kCreateDelta) {
    opcode = Opcode::kApplyDelta;
    descriptor.source = previous_.As<CreateDeltaFields>().record.get();
    descriptor.destination = previous_.source.get();
    descriptor.size = previous_.size.get();
    ApplyDeltaFields fields{};
    fields.size = 10 * (1 + Byte() % 8U);
    descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
  } else {
    opcode = DifFollowUp(descriptor);
  }
  descriptor.flags_and_opcode = Flag::kRecordValid | Flag::kRequestRecord |
                                std::uint32_t{static_cast<std::uint8_t>(opcode)} << 24;
  descriptor.record = Address(kRecordSize);
  return descriptor;
}

Opcode Sequence::DifFollowUp(WorkDescriptor& descriptor) {
  constexpr std::array<Opcode, 3> kNext{Opcode::kDifCheck, Opcode::kDifStrip, Opcode::kDifUpdate};
  const Opcode opcode = kNext[Byte() % kNext.size()];
  auto fields = previous_.As<DifFields>();
  const std::uint32_t block = (fields.flags & 2U) != 0 ? 4096 : 512;
  const std::uint32_t data = block + (fields.flags & 1U) * 8;
  const std::uint32_t step = previous_.opcode() == Opcode::kDifInsert ? data : data + 8;
  descriptor.size = previous_.size.get() / step * (data + 8);
  descriptor.source = previous_.destination.get();
  if (opcode != Opcode::kDifCheck) descriptor.destination = Address(1);
  fields.source = fields.destination;
  fields.source_flags =
      static_cast<std::uint8_t>((fields.destination_flags & 0x90) | (OneIn(2) ? 0 : Byte() & 0x6f));
  fields.destination_flags &= static_cast<std::uint8_t>(OneIn(2) ? 0x90 : 0xf8);
  if (opcode != Opcode::kDifUpdate) {
    fields.destination_flags = 0;
    fields.destination = {};
  }
  descriptor.specific = std::bit_cast<decltype(descriptor.specific)>(fields);
  return opcode;
}

void Sequence::MakeBatch(WorkDescriptor& descriptor) {
  const std::uint64_t list = Address(siov::kDescriptorSize);
  const std::uint32_t count = OneIn(8) ? Byte() % 10U : 2 + Byte() % 4U;
  descriptor.source = list;
  descriptor.size = count;
  for (std::uint32_t i = 0; i < count; ++i) {
    const siov::Descriptor inner = Make(true);
    pair_.Store(list + i * siov::kDescriptorSize, inner);
  }
}

siov::Descriptor Sequence::Make(bool in_batch) {
  const Opcode before = previous_.opcode();
  const bool follows = before == Opcode::kDifInsert || before == Opcode::kDifUpdate ||
                       before == Opcode::kCreateDelta;
  const WorkDescriptor descriptor = follows && !OneIn(4) ? FollowUp() : Fresh(in_batch);
  previous_ = descriptor;
  auto bytes = std::bit_cast<siov::Descriptor>(descriptor);
  if (OneIn(24)) bytes[Byte() % bytes.size()] ^= static_cast<std::byte>(1U << (Byte() % 8));
  return bytes;
}

}  // namespace postern::dsa
