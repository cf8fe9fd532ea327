// DIF check, insert, strip and update: 8 bytes after each block of data: a CRC-16, an application
// tag and a reference tag, big-endian. DSA 8.3.14 to 8.3.17 and appendix B. A block is fetched once
// into a copy of ours; it is done as a whole or not at all.

#include "devices/siov/engine/dif.h"

#include <cstring>

#include "devices/siov/engine/operations.h"

namespace postern::dsa::internal {

using memory::Access;

namespace {

constexpr std::uint32_t kTagsSize = 8;
constexpr std::uint32_t kLargestBlock = 4104;

// The tags of one block, as numbers.
struct Tags {
  std::uint16_t guard;
  std::uint16_t app;
  std::uint32_t ref;
};

Tags ParseTags(const std::byte* from) {
  std::uint64_t raw = 0;
  std::memcpy(&raw, from, sizeof(raw));
  const std::uint64_t value = __builtin_bswap64(le64(raw).get());
  return {static_cast<std::uint16_t>(value >> 48), static_cast<std::uint16_t>(value >> 32),
          static_cast<std::uint32_t>(value)};
}

void StoreTags(const Tags& tags, std::byte* to) {
  const std::uint64_t value =
      std::uint64_t{tags.guard} << 48 | std::uint64_t{tags.app} << 32 | tags.ref;
  const le64 raw(__builtin_bswap64(value));
  std::memcpy(to, &raw, sizeof(raw));
}

// The tags expected in the source or written to the destination, block after block.
class TagCounter {
 public:
  TagCounter(const DifTags& seed, std::uint8_t flags)
      : ref_(seed.ref.get()), mask_(seed.app_mask.get()), app_(seed.app.get()), flags_(flags) {}

  [[nodiscard]] std::uint32_t ref() const { return ref_; }
  // DSA appendix B: the mask is applied to what is used, not to what is counted.
  [[nodiscard]] std::uint16_t app() const { return static_cast<std::uint16_t>(app_ & ~mask_); }
  [[nodiscard]] bool checks_app() const { return mask_ != 0xffff; }
  void Next() {
    if ((flags_ & DifFlag::kRefFixed) == 0) ++ref_;
    if ((flags_ & DifFlag::kAppIncrements) != 0) ++app_;
  }
  // As in the record, and as a descriptor that goes on would have it.
  [[nodiscard]] std::uint64_t packed() const {
    return ref_ | std::uint64_t{mask_} << 32 | std::uint64_t{app_} << 48;
  }

 private:
  std::uint32_t ref_;
  std::uint16_t mask_;
  std::uint16_t app_;
  std::uint8_t flags_;
};

// DSA 8.3.17.4: what is wrong with a block's tags.
std::uint8_t Mismatch(const Tags& found, std::uint16_t guard, const TagCounter& expected,
                      std::uint8_t flags) {
  const bool app_f = found.app == 0xffff;
  const bool app_ref_f = app_f && found.ref == 0xffffffff;
  const bool all_f = app_ref_f && found.guard == 0xffff;
  if (all_f && (flags & DifFlag::kAllFDetect) != 0) {
    return (flags & DifFlag::kAllFError) != 0 ? DifFlag::kAllF : std::uint8_t{0};
  }
  if (app_f && (flags & DifFlag::kAppFDetect) != 0) return 0;
  if (app_ref_f && (flags & DifFlag::kAppRefFDetect) != 0) return 0;
  std::uint8_t mismatch = 0;
  if ((flags & DifFlag::kNoGuardCheck) == 0 && guard != found.guard)
    mismatch |= DifFlag::kGuardMismatch;
  if (expected.checks_app() && expected.app() != found.app) mismatch |= DifFlag::kAppMismatch;
  if ((flags & DifFlag::kNoRefCheck) == 0 && expected.ref() != found.ref) {
    mismatch |= DifFlag::kRefMismatch;
  }
  return mismatch;
}

class DifRun {
 public:
  DifRun(const OperationContext& context, const WorkDescriptor& descriptor)
      : context_(context),
        descriptor_(descriptor),
        opcode_(descriptor.opcode()),
        steps_(DifLayout(descriptor)),
        fields_(descriptor.As<DifFields>()),
        source_tags_(fields_.source, fields_.source_flags),
        destination_tags_(fields_.destination, fields_.destination_flags) {}

  OperationOutcome Run() {
    OperationOutcome outcome = Blocks();
    if (has_source_tags()) outcome.specific[0] = source_tags_.packed();
    if (has_destination_tags()) outcome.specific[1] = destination_tags_.packed();
    return outcome;
  }

 private:
  [[nodiscard]] bool has_source_tags() const { return opcode_ != Opcode::kDifInsert; }
  [[nodiscard]] bool has_destination_tags() const {
    return opcode_ == Opcode::kDifInsert || opcode_ == Opcode::kDifUpdate;
  }

  OperationOutcome Blocks() {
    const std::uint32_t size = descriptor_.size.get();
    std::uint64_t written = 0;
    for (std::uint32_t done = 0; done < size; done += steps_.source_step) {
      if (done / kPiece != (done + steps_.source_step) / kPiece && context_.environment.aborted()) {
        return Aborted(done);
      }
      if (const auto failed = Block(done, written)) return *failed;
      written += steps_.destination_step;
      source_tags_.Next();
      destination_tags_.Next();
    }
    return {.bytes = size};
  }

  std::optional<OperationOutcome> Block(std::uint32_t done, std::uint64_t written) {
    const Buffer source{descriptor_.source.get(), Access::kRead};
    const std::optional<memory::Gpa> from = At(source, done);
    if (!from) return Fault(source, source.address + done, done);
    if (const auto hole =
            Fetch(context_, from->value, std::span(data_).first(steps_.source_step))) {
      return Fault(source, *hole, done);
    }
    if (const std::uint8_t wrong = Transform(); wrong != 0) {
      return OperationOutcome{
          .status = Completion::kDifError, .result = wrong, .bytes_completed = done, .bytes = done};
    }
    if (opcode_ == Opcode::kDifCheck) return std::nullopt;
    const Buffer destination{descriptor_.destination.get(), Access::kWrite};
    const std::optional<memory::Gpa> to = At(destination, written);
    if (!to) return Fault(destination, destination.address + written, done);
    if (const auto hole =
            Put(context_, to->value, std::span(data_).first(steps_.destination_step))) {
      return Fault(destination, *hole, done);
    }
    return std::nullopt;
  }

  // Checks the block in data_ and gives it the tags of the destination: a DIF status.
  std::uint8_t Transform() {
    const std::uint16_t guard = Guard();
    Tags tags{};
    if (has_source_tags()) {
      tags = ParseTags(data_.data() + steps_.block);
      const std::uint8_t wrong = Mismatch(tags, guard, source_tags_, fields_.source_flags);
      if (wrong != 0) return wrong;
    }
    if (!has_destination_tags()) return 0;
    // An insertion has nothing to pass through.
    const std::uint8_t pass =
        opcode_ == Opcode::kDifUpdate ? fields_.destination_flags : std::uint8_t{0};
    if ((pass & DifFlag::kGuardPassThrough) == 0) tags.guard = guard;
    if ((pass & DifFlag::kAppPassThrough) == 0) tags.app = destination_tags_.app();
    if ((pass & DifFlag::kRefPassThrough) == 0) tags.ref = destination_tags_.ref();
    StoreTags(tags, data_.data() + steps_.block);
    return 0;
  }

  [[nodiscard]] std::uint16_t Guard() const {
    const std::uint16_t seed = (fields_.flags & DifFlag::kInvertSeed) != 0 ? 0xffff : 0;
    const std::uint16_t crc = context_.checksums.crc16_t10(seed, data_.data(), steps_.block);
    return (fields_.flags & DifFlag::kInvertResult) != 0 ? static_cast<std::uint16_t>(~crc) : crc;
  }

  const OperationContext& context_;
  const WorkDescriptor& descriptor_;
  Opcode opcode_;
  DifSteps steps_;
  DifFields fields_;
  TagCounter source_tags_;
  TagCounter destination_tags_;
  std::array<std::byte, kLargestBlock + kTagsSize> data_{};
};

}  // namespace

DifSteps DifLayout(const WorkDescriptor& descriptor) {
  static constexpr std::array<std::uint16_t, 4> kBlocks{512, 520, 4096, kLargestBlock};
  const std::uint32_t block = kBlocks[descriptor.As<DifFields>().flags & DifFlag::kBlockSize];
  switch (descriptor.opcode()) {
    case Opcode::kDifInsert:
      return {block, block, block + kTagsSize};
    case Opcode::kDifStrip:
      return {block, block + kTagsSize, block};
    default:
      return {block, block + kTagsSize, block + kTagsSize};
  }
}

OperationOutcome Dif(const OperationContext& context, const WorkDescriptor& descriptor) {
  return DifRun(context, descriptor).Run();
}

}  // namespace postern::dsa::internal
