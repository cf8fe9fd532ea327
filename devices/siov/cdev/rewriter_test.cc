#include "devices/siov/cdev/rewriter.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "src/memory/guest_memory.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

// RAM at 0 and, next to it for the guest but not for us, at 64 KiB; then a hole.
constexpr std::uint64_t kSecond = 0x10000, kEnd = 0x20000;
constexpr std::uint64_t kRecord = 0x100;
constexpr std::uint32_t kSize = 0x100;

// Nothing looks there.
constexpr std::uint64_t Shadow() {
  return 0x7f00'0000'0040;
}

struct Fields {
  Opcode opcode = Opcode::kMove;
  std::uint32_t flags = Flag::kRecordValid | Flag::kRequestRecord;
  std::uint64_t record = kRecord;
  std::uint64_t source = 0x1000;
  std::uint64_t destination = 0x2000;
  std::uint32_t size = kSize;
  std::uint16_t handle = 0;
  std::array<std::uint64_t, 3> specific{};
};

siov::Descriptor Make(const Fields& f) {
  WorkDescriptor words{};
  words.submitter = le32(0x80012345);
  words.flags_and_opcode = le32(static_cast<std::uint32_t>(f.opcode) << 24 | f.flags);
  words.record = le64(f.record);
  words.source = le64(f.source);
  words.destination = le64(f.destination);
  words.size = le32(f.size);
  words.handle = le16(f.handle);
  words.specific = std::bit_cast<std::array<std::byte, 24>>(f.specific);
  return std::bit_cast<siov::Descriptor>(words);
}

struct Guest {
  memory::GuestMemoryPtr memory =
      testing::MakeMemory({{0, kSecond}, {kSecond, kEnd - kSecond}, {0x100000, 0x1000}});
  [[nodiscard]] tl::expected<Rewritten, Refusal> Rewrite(const Fields& fields) const {
    return Rewriter::Rewrite(*memory, Make(fields), Shadow());
  }
  [[nodiscard]] Completion Status(const Fields& fields) const {
    const auto r = Rewrite(fields);
    return r ? Completion::kSuccess : r.error().status;
  }
  [[nodiscard]] std::uint64_t Host(std::uint64_t gpa) const {
    for (const auto& region : memory->regions()) {
      if (region->Contains(memory::Gpa(gpa)))
        return region->host_address() + gpa - region->base().value;
    }
    return 0;
  }
  [[nodiscard]] CompletionRecord Record() const {
    CompletionRecord record;
    const auto bytes = testing::Load(memory, kRecord, sizeof(record));
    std::memcpy(&record, bytes.data(), sizeof(record));
    return record;
  }
};

std::uint64_t Word(const siov::Descriptor& descriptor, std::size_t at) {
  std::uint64_t word = 0;
  std::memcpy(&word, descriptor.data() + at, sizeof(word));
  return word;
}

}  // namespace

TEST_CASE("cdev rewriter: a move has our addresses, our record, and no interrupt of the guest's") {
  const Guest guest;
  Fields fields;
  fields.flags |= Flag::kRequestInterrupt | Flag::kBlockOnFault | Flag::kCacheControl1;
  fields.handle = 3;
  const auto r = guest.Rewrite(fields);
  REQUIRE(r.has_value());
  const auto words = std::bit_cast<WorkDescriptor>(r->descriptor);
  CHECK(words.submitter.get() == 0);
  CHECK(words.opcode() == Opcode::kMove);
  CHECK(words.flags() == (Flag::kRecordValid | Flag::kRequestRecord | Flag::kCacheControl1));
  CHECK(words.record.get() == Shadow());
  CHECK(words.source.get() == guest.Host(0x1000));
  CHECK(words.destination.get() == guest.Host(0x2000));
  CHECK(words.size.get() == kSize);
  CHECK(words.handle.get() == 0);
  CHECK(r->interrupt);
  CHECK(r->handle == 3);
}

TEST_CASE("cdev rewriter: every address of every operation is rewritten, and nothing else") {
  const Guest guest;
  struct Case {
    Opcode opcode;
    std::set<std::size_t> at;
    std::uint32_t flags = 0;
  };
  const std::vector<Case> cases = {
      {Opcode::kNoop, {}},
      {Opcode::kMove, {16, 24}},
      {Opcode::kFill, {24}},
      {Opcode::kCompare, {16, 24}},
      {Opcode::kComparePattern, {16}},
      {Opcode::kCreateDelta, {16, 24, 40}},
      {Opcode::kApplyDelta, {16, 24}},
      {Opcode::kDualcast, {16, 24, 40}},
      {Opcode::kCrc, {16}},
      {Opcode::kCrc, {16, 48}, Flag::kReadSeed},
      {Opcode::kCopyCrc, {16, 24, 48}, Flag::kReadSeed},
      {Opcode::kCacheFlush, {24}},
  };
  for (const Case& c : cases) {
    CAPTURE(static_cast<unsigned>(c.opcode));
    CHECK((kRewritable[0] >> static_cast<unsigned>(c.opcode) & 1) == 1);
    Fields fields;
    fields.opcode = c.opcode;
    fields.flags |= c.flags;
    // Addresses, or sizes of as much: what is not an address must stay as it is.
    fields.specific = {0x3000, 0x4000, 0x5000};
    const siov::Descriptor before = Make(fields);
    const auto r = guest.Rewrite(fields);
    REQUIRE(r.has_value());
    for (std::size_t at = 16; at < 64; at += 8) {
      CAPTURE(at);
      if (at == 32) continue;
      const std::uint64_t was = Word(before, at);
      CHECK(Word(r->descriptor, at) == (c.at.contains(at) ? guest.Host(was) : was));
    }
  }
}

TEST_CASE("cdev rewriter: what is not in one region of memory does not leave") {
  const Guest guest;
  const auto fault = [&](const Fields& fields) {
    const auto r = guest.Rewrite(fields);
    REQUIRE_FALSE(r.has_value());
    CHECK(r.error().status == Completion::kPageFault);
    return r.error();
  };
  Fields fields;
  fields.source = kEnd;
  CHECK(fault(fields).fault_address == kEnd);
  CHECK_FALSE(fault(fields).fault_on_write);
  fields.source = kEnd - kSize;
  CHECK(guest.Status(fields) == Completion::kSuccess);
  fields.source = kEnd - kSize + 1;
  (void)fault(fields);
  fields.source = ~std::uint64_t{0};
  (void)fault(fields);
  fields.source = 0x1000;
  // Neighbours for the guest.
  fields.destination = kSecond - 1;
  CHECK(fault(fields).fault_on_write);
  fields.destination = 0x2000;
  fields.size = 0xffffffff;
  (void)fault(fields);
  fields.size = 0;
  CHECK(guest.Status(fields) == Completion::kBadSize);
  // The addresses of some operations alone.
  fields = {};
  fields.opcode = Opcode::kDualcast;
  fields.specific[0] = kEnd;
  CHECK(fault(fields).fault_address == kEnd);
  fields.opcode = Opcode::kCreateDelta;
  fields.specific = {kEnd - 8, 80, 0};
  (void)fault(fields);
  fields.opcode = Opcode::kCrc;
  fields.flags |= Flag::kReadSeed;
  fields.specific = {0, kEnd - 3, 0};
  (void)fault(fields);
  fields.specific = {0, kEnd - 4, 0};
  CHECK(guest.Status(fields) == Completion::kSuccess);
  fields.flags |= 1U << 19;
  (void)fault(fields);
}

TEST_CASE("cdev rewriter: the record must be one, and operations those of OPCAP") {
  const Guest guest;
  Fields fields;
  fields.record = kRecord + 16;
  CHECK(guest.Status(fields) == Completion::kRecordMisaligned);
  fields.record = kEnd;
  CHECK(guest.Status(fields) == Completion::kRecordFault);
  fields.record = ~std::uint64_t{31};
  CHECK(guest.Status(fields) == Completion::kRecordFault);
  // Not looked at without its flag.
  fields.flags = 0;
  CHECK(guest.Status(fields) == Completion::kSuccess);
  for (unsigned bit = 16; bit < 24; ++bit) {
    CAPTURE(bit);
    fields = {};
    fields.flags |= 1U << bit;
    CHECK(guest.Status(fields) == Completion::kBadFlags);
    fields.opcode = Opcode::kFill;
    CHECK((guest.Status(fields) == Completion::kSuccess) == (bit == 18));
    fields.opcode = Opcode::kCrc;
    fields.specific = {0, 0x3000, 0};
    CHECK((guest.Status(fields) == Completion::kSuccess) == (bit < 20));
  }
  fields = {};
  for (unsigned code = 0; code < 256; ++code) {
    CAPTURE(code);
    const bool allowed = (kRewritable[code / 64] >> (code % 64) & 1) != 0;
    fields.opcode = static_cast<Opcode>(code);
    fields.specific = {0x3000, 0x4000, 0x5000};
    CHECK((guest.Status(fields) != Completion::kBadOpcode) == allowed);
  }
}

TEST_CASE("cdev rewriter: the guest's record has no address of ours") {
  const Guest guest;
  Fields fields;
  fields.source = 0x1010;
  const auto r = guest.Rewrite(fields);
  REQUIRE(r.has_value());
  CompletionRecord shadow;
  shadow.status = static_cast<std::uint8_t>(Completion::kPageFault);
  shadow.bytes_completed = le32(0x40);
  shadow.fault_address = le64(guest.Host(0x1000));
  shadow.specific[0] = le64(0x0807060504030201);
  CHECK_FALSE(r->Finish(*guest.memory, shadow));
  CHECK(guest.Record().status == 3);
  CHECK(guest.Record().bytes_completed.get() == 0x40);
  CHECK(guest.Record().fault_address.get() == 0x1000);
  CHECK(guest.Record().specific[0].get() == 0x0807060504030201);
  // Of a range that was never named, and with a status that has none.
  shadow.fault_address = le64(guest.Host(0x3000));
  (void)r->Finish(*guest.memory, shadow);
  CHECK(guest.Record().fault_address.get() == 0);
  shadow.status = static_cast<std::uint8_t>(Completion::kSuccess);
  shadow.fault_address = le64(guest.Host(0x1010));
  (void)r->Finish(*guest.memory, shadow);
  CHECK(guest.Record().status == 1);
  CHECK(guest.Record().fault_address.get() == 0);
}

TEST_CASE("cdev rewriter: a record that was not asked for is written for errors alone") {
  const Guest guest;
  Fields fields;
  fields.flags = Flag::kRecordValid | Flag::kRequestInterrupt;
  const auto r = guest.Rewrite(fields);
  REQUIRE(r.has_value());
  CompletionRecord shadow;
  shadow.status = static_cast<std::uint8_t>(Completion::kSuccess);
  CHECK(r->Finish(*guest.memory, shadow));
  CHECK(guest.Record().status == 0);
  shadow.status = static_cast<std::uint8_t>(Completion::kOverlap);
  CHECK(r->Finish(*guest.memory, shadow));
  CHECK(guest.Record().status == 0x16);
}

}  // namespace postern::dsa
