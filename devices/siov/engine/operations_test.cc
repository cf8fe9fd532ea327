// What the operations do to memory and what they answer.

#include <array>
#include <string>
#include <vector>

#include "devices/siov/engine/checksum.h"
#include "devices/siov/engine/executor_rig.h"

namespace postern::dsa {
namespace {

using postern::testing::Pattern;

std::vector<std::byte> Bytes(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

// Moves with a record and nothing strange go a short way of their own. Whether they do or not, the
// plain executor comes to the same: here on both sides of each condition.
TEST_CASE("move: both sides of each edge of a plain one") {
  constexpr std::uint32_t kMax = 0x4000;
  constexpr std::uint64_t kMiddle = ExecutorRig::kSeam - 0x800;  // half before a seam of regions
  for (const bool all : {true, false}) {
    CAPTURE(all);
    ExecutorRig rig({.operations = kAllOperations,  //
                     .overlapping_copy = all,
                     .cache_control = all});
    rig.limits.max_transfer = kMax;
    rig.Store(0x1000, Pattern(0x4000));
    rig.Store(ExecutorRig::kAfterHole, Pattern(0x8000, 1));
    std::uint64_t moved = 0;
    const auto run = [&](const Describe& move) {
      moved += rig.Run(move).executed.status == 1 ? 1 : 0;
    };
    for (const std::uint32_t size : {0U, 1U, 63U, 0x1000U, kMax - 1, kMax, kMax + 1}) {
      const auto move = [size](std::uint32_t flags = 0) {
        return Describe(Opcode::kMove, flags).Size(size);
      };
      for (const std::uint64_t from :
           {std::uint64_t{0x1000}, ExecutorRig::kHole - size, ExecutorRig::kHole - size + 1,
            kMiddle, ExecutorRig::kEnd - size, ExecutorRig::kEnd - size + 1, ~std::uint64_t{0}}) {
        for (const std::uint64_t to :
             {from, from + size, from - size, from + size - 1, from - size + 1,
              std::uint64_t{0x8000}, kMiddle, ExecutorRig::kHole, ~std::uint64_t{0} - size + 1}) {
          run(move().From(from).To(to));
        }
      }
      for (const std::uint32_t flags : {Flag::kCacheControl1, Flag::kStrictOrder, 1U << 6})
        run(move(flags).From(0x1000).To(0x8000));
      for (const std::uint16_t handle : std::to_array<std::uint16_t>({0, 1, 5, 6, 0xffff})) {
        run(move(Flag::kRequestInterrupt).From(0x1000).To(0x8000).Handle(handle));
        run(move().From(0x1000).To(0x8000).Handle(handle));
      }
      // The record on top of what is moved, at the end of memory, where there is none, misaligned.
      for (const std::uint64_t record :
           {std::uint64_t{0x1000}, std::uint64_t{0x8000}, ExecutorRig::kEnd - 32, ExecutorRig::kEnd,
            ExecutorRig::kEnd - 16, std::uint64_t{0x110}}) {
        run(move().From(0x1000).To(0x8000).Record(record));
      }
    }
    for (unsigned byte = 38; byte < 64; ++byte) {
      siov::Descriptor reserved = Describe(Opcode::kMove).From(0x1000).To(0x8000).Size(64).bytes();
      reserved[byte] = std::byte{0x80};
      CHECK(rig.Status(reserved) == 0x12);
    }
    rig.limits.operations[0] &= ~(std::uint64_t{1} << 3);
    CHECK(rig.Status(Describe(Opcode::kMove).From(0x1000).To(0x8000).Size(64)) == 0x10);
    CHECK(moved > 90);
  }
}

TEST_CASE("move: any overlap comes out as if there had been a copy between") {
  for (int distance = -70; distance <= 70; ++distance) {
    ExecutorRig rig;
    CAPTURE(distance);
    std::vector<std::byte> model = Pattern(0x400);
    rig.Store(0x3f00, model);
    const auto to = std::uint64_t{0x4000} + static_cast<std::uint64_t>(distance);
    CHECK(rig.Status(Describe(Opcode::kMove).From(0x4000).To(to).Size(64)) == 1);
    std::memmove(model.data() + (to - 0x3f00), model.data() + 0x100, 64);
    CHECK(rig.Load(0x3f00, 0x400) == model);
  }
}

TEST_CASE("fill: the pattern goes on across regions") {
  ExecutorRig rig;
  const Ran ran = rig.Run(
      Describe(Opcode::kFill).From(0x0807060504030201).To(ExecutorRig::kSeam - 11).Size(30));
  CHECK(ran.record.status == 1);
  std::vector<std::byte> expected;
  for (std::size_t i = 0; i < 30; ++i) expected.push_back(static_cast<std::byte>(i % 8 + 1));
  CHECK(rig.Load(ExecutorRig::kSeam - 11, 30) == expected);
  CHECK(rig.Load(ExecutorRig::kSeam + 19, 1)[0] == std::byte{0});
  const Ran fault = rig.Run(Describe(Opcode::kFill).From(1).To(ExecutorRig::kHole - 3).Size(30));
  CHECK(fault.record.status == 0x83);
  CHECK(fault.bytes_completed() == 3);
  CHECK(fault.fault_address() == ExecutorRig::kHole);
}

TEST_CASE("compare: result, first difference and predicate") {
  ExecutorRig rig;
  rig.Store(0x4000, Pattern(1000));
  rig.Store(0x6001, Pattern(1000));
  const auto compare = [](std::uint32_t size, std::uint8_t expected, std::uint32_t flags) {
    return Describe(Opcode::kCompare, flags)
        .From(0x4000)
        .To(0x6001)
        .Size(size)
        .With(CompareFields{.expected = expected});
  };
  const Ran same = rig.Run(compare(1000, 0, 0));
  CHECK(same.record.status == 1);
  CHECK(same.record.result == 0);
  CHECK(same.bytes_completed() == 0);
  rig.Store(0x6001 + 777, Bytes({0xff}));
  const Ran differ = rig.Run(compare(1000, 0, 0));
  CHECK(differ.record.status == 1);
  CHECK(differ.record.result == 1);
  CHECK(differ.bytes_completed() == 777);
  // Expected and found: DSA table 8-17; only bit 0 is looked at.
  CHECK(rig.Status(compare(777, 0, Flag::kCheckResult)) == 1);
  CHECK(rig.Status(compare(778, 0, Flag::kCheckResult)) == 2);
  CHECK(rig.Status(compare(777, 1, Flag::kCheckResult)) == 2);
  CHECK(rig.Status(compare(778, 1, Flag::kCheckResult)) == 1);
  CHECK(rig.Status(compare(777, 0xfe, Flag::kCheckResult)) == 1);
  CHECK(rig.Status(compare(777, 1, 0)) == 1);
  // A difference before the fault is what counts.
  const Ran early =
      rig.Run(Describe(Opcode::kCompare).From(ExecutorRig::kHole - 100).To(0x4000).Size(0x1000));
  CHECK(early.record.status == 1);
  CHECK(early.record.result == 1);
  const Ran fault =
      rig.Run(Describe(Opcode::kCompare).From(ExecutorRig::kHole - 100).To(0x8000).Size(0x1000));
  CHECK(fault.record.status == 0x03);
  CHECK(fault.record.result == 0);
  CHECK(fault.bytes_completed() == 100);
}

TEST_CASE("compare pattern: result, first difference and predicate") {
  ExecutorRig rig;
  CHECK(rig.Status(Describe(Opcode::kFill).From(0x8877665544332211).To(0x4003).Size(333)) == 1);
  const auto compare = [](std::uint32_t size, std::uint8_t expected) {
    return Describe(Opcode::kComparePattern, Flag::kCheckResult)
        .From(0x4003)
        .To(0x8877665544332211)
        .Size(size)
        .With(CompareFields{.expected = expected});
  };
  CHECK(rig.Run(compare(333, 0)).record.status == 1);
  const Ran longer = rig.Run(compare(334, 0));
  CHECK(longer.record.status == 2);
  CHECK(longer.record.result == 1);
  CHECK(longer.bytes_completed() == 333);
  CHECK(rig.Run(compare(334, 1)).record.status == 1);
}

TEST_CASE("delta: created, applied, and the buffers are alike") {
  ExecutorRig rig;
  rig.Store(0x4000, Pattern(0x2000, 1));
  rig.Store(0x8000, Pattern(0x2000, 1));
  for (const std::uint64_t at : {0x8000U, 0x8007U, 0x8100U, 0x8ff8U, 0x9fffU}) {
    rig.Store(at, Bytes({0x5a}));
  }
  const Ran created =
      rig.Run(Describe(Opcode::kCreateDelta)
                  .From(0x4000)
                  .To(0x8000)
                  .Size(0x2000)
                  .With(CreateDeltaFields{.record = le64(0xc001), .max_size = le32(80)}));
  CHECK(created.record.status == 1);
  CHECK(created.record.result == 1);
  CHECK(created.bytes_completed() == 0);
  CHECK(created.record.specific[0].get() == 40);
  // The second delta: 0x20 units of 8 bytes.
  CHECK(rig.Load(0xc001 + 10, 2) == Bytes({0x20, 0x00}));
  CHECK(rig.Load(0xc001 + 12, 8) == rig.Load(0x8100, 8));
  const Ran applied = rig.Run(Describe(Opcode::kApplyDelta)
                                  .From(0xc001)
                                  .To(0x4000)
                                  .Size(0x2000)
                                  .With(ApplyDeltaFields{.size = le32(40)}));
  CHECK(applied.record.status == 1);
  CHECK(rig.Load(0x4000, 0x2000) == rig.Load(0x8000, 0x2000));
  const Ran none =
      rig.Run(Describe(Opcode::kCreateDelta)
                  .From(0x4000)
                  .To(0x8000)
                  .Size(0x2000)
                  .With(CreateDeltaFields{.record = le64(0xc001), .max_size = le32(80)}));
  CHECK(none.record.result == 0);
  CHECK(none.record.specific[0].get() == 0);
}

TEST_CASE("delta: a record that is too small, and the mask of expected results") {
  ExecutorRig rig;
  rig.Store(0x8000, std::vector<std::byte>(0x1000, std::byte{1}));
  const auto create = [](std::uint32_t size, std::uint32_t room, std::uint8_t mask) {
    return Describe(Opcode::kCreateDelta, Flag::kCheckResult)
        .From(0x4000)
        .To(0x8000)
        .Size(size)
        .With(CreateDeltaFields{
            .record = le64(0xc000), .max_size = le32(room), .expected_mask = mask});
  };
  // Room for nine deltas, and for a part of a tenth.
  const Ran full = rig.Run(create(0x1000, 99, 4));
  CHECK(full.record.status == 1);
  CHECK(full.record.result == 2);
  CHECK(full.bytes_completed() == 72);
  CHECK(full.record.specific[0].get() == 90);
  CHECK(rig.Status(create(0x1000, 99, 3)) == 2);
  CHECK(rig.Status(create(64, 80, 2)) == 1);
  CHECK(rig.Status(create(64, 80, 5)) == 2);
  CHECK(rig.Status(create(64, 80, 7)) == 1);
  CHECK(rig.Status(create(64, 80, 0)) == 2);
  rig.Store(0x8000, std::vector<std::byte>(64));
  CHECK(rig.Status(create(64, 80, 1)) == 1);
  CHECK(rig.Status(create(64, 80, 0xfe)) == 2);
}

TEST_CASE("delta: faults in sources, record and target say where to go on") {
  ExecutorRig rig;
  rig.Store(ExecutorRig::kHole - 64, std::vector<std::byte>(64, std::byte{1}));
  const auto create = [](std::uint64_t to, std::uint64_t record) {
    return Describe(Opcode::kCreateDelta)
        .From(0x4000)
        .To(to)
        .Size(128)
        .With(CreateDeltaFields{.record = le64(record), .max_size = le32(200)});
  };
  const Ran source = rig.Run(create(ExecutorRig::kHole - 64, 0xc000));
  CHECK(source.record.status == 0x03);
  CHECK(source.record.result == 1);
  CHECK(source.bytes_completed() == 64);
  CHECK(source.fault_address() == ExecutorRig::kHole);
  CHECK(source.record.specific[0].get() == 80);
  // The third delta straddles the end of memory: it is not written at all.
  rig.Store(0x8000, std::vector<std::byte>(128, std::byte{1}));
  const Ran record = rig.Run(create(0x8000, ExecutorRig::kHole - 25));
  CHECK(record.record.status == 0x83);
  CHECK(record.record.result == 1);
  CHECK(record.bytes_completed() == 16);
  CHECK(record.fault_address() == ExecutorRig::kHole);
  CHECK(record.record.specific[0].get() == 20);
  CHECK(rig.Load(ExecutorRig::kHole - 5, 5) == std::vector<std::byte>(5, std::byte{1}));
  const Ran first = rig.Run(create(0x8000, ExecutorRig::kHole));
  CHECK(first.record.result == 0);
  CHECK(first.bytes_completed() == 0);
  // A target that ends: the delta before was applied.
  rig.Store(0xc000, Bytes({0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 3, 0, 2, 2, 2, 2, 2, 2, 2, 2}));
  const Ran target = rig.Run(Describe(Opcode::kApplyDelta)
                                 .From(0xc000)
                                 .To(ExecutorRig::kHole - 24)
                                 .Size(64)
                                 .With(ApplyDeltaFields{.size = le32(20)}));
  CHECK(target.record.status == 0x83);
  CHECK(target.bytes_completed() == 10);
  CHECK(target.fault_address() == ExecutorRig::kHole);
}

TEST_CASE("delta: offsets that do not rise or go too far end it") {
  ExecutorRig rig;
  const auto apply = [&rig](std::initializer_list<int> units) {
    std::vector<std::byte> record;
    for (const int unit : units) {
      const std::vector<std::byte> delta = Bytes({unit & 0xff, unit >> 8, 9, 9, 9, 9, 9, 9, 9, 9});
      record.insert(record.end(), delta.begin(), delta.end());
    }
    rig.Store(0xc000, record);
    return rig.Run(
        Describe(Opcode::kApplyDelta)
            .From(0xc000)
            .To(0x4000)
            .Size(64)
            .With(ApplyDeltaFields{.size = le32(static_cast<std::uint32_t>(record.size()))}));
  };
  CHECK(apply({0, 1, 7}).record.status == 1);
  const Ran equal = apply({0, 3, 3});
  CHECK(equal.record.status == 0x07);
  CHECK(equal.bytes_completed() == 20);
  CHECK(apply({4, 3}).record.status == 0x07);
  const Ran far = apply({1, 8});
  CHECK(far.record.status == 0x08);
  CHECK(far.bytes_completed() == 10);
  CHECK(apply({0xffff}).record.status == 0x08);
}

TEST_CASE("dualcast: both copies are the same, as far as both have memory") {
  ExecutorRig rig;
  rig.Store(0x4000, Pattern(0x1800));
  const auto dualcast = [](std::uint64_t to, std::uint64_t to2) {
    return Describe(Opcode::kDualcast)
        .From(0x4000)
        .To(to)
        .Size(0x1800)
        .With(DualcastFields{.destination2 = le64(to2)});
  };
  CHECK(rig.Status(dualcast(0x8123, ExecutorRig::kSeam - 0x1000 + 0x123)) == 1);
  CHECK(rig.Load(0x8123, 0x1800) == rig.Load(0x4000, 0x1800));
  CHECK(rig.Load(ExecutorRig::kSeam - 0x1000 + 0x123, 0x1800) == rig.Load(0x4000, 0x1800));
  const Ran fault = rig.Run(dualcast(0xb000, ExecutorRig::kHole - 0x1000));
  CHECK(fault.record.status == 0x83);
  CHECK(fault.bytes_completed() == 0x1000);
  CHECK(fault.fault_address() == ExecutorRig::kHole);
  CHECK(rig.Load(0xb000 + 0x1000, 0x800) == std::vector<std::byte>(0x800));
}

TEST_CASE("crc: the standard's values, seeds, continuation and other bit orders") {
  ExecutorRig rig;
  std::vector<std::byte> digits;
  for (const char c : std::string("123456789")) digits.push_back(static_cast<std::byte>(c));
  rig.Store(0x4001, digits);
  const auto crc = [](std::uint32_t size, std::uint32_t seed, std::uint32_t flags = 0,
                      std::uint64_t from = 0x4001) {
    return Describe(Opcode::kCrc, flags).From(from).Size(size).With(CrcFields{.seed = le32(seed)});
  };
  CHECK(rig.Run(crc(9, 0)).record.specific[0].get() == 0xe3069283);
  const Ran part = rig.Run(crc(4, 0));
  const auto middle = static_cast<std::uint32_t>(part.record.specific[0].get());
  CHECK(rig.Run(crc(5, middle, 0, 0x4005)).record.specific[0].get() == 0xe3069283);
  // The seed from memory.
  const le32 seed(middle);
  std::array<std::byte, 4> seed_bytes{};
  std::memcpy(seed_bytes.data(), &seed, 4);
  rig.Store(0x5004, seed_bytes);
  const auto from_memory = [](std::uint64_t at) {
    return Describe(Opcode::kCrc, Flag::kReadSeed)
        .From(0x4005)
        .Size(5)
        .With(CrcFields{.seed_address = le64(at)});
  };
  CHECK(rig.Run(from_memory(0x5004)).record.specific[0].get() == 0xe3069283);
  CHECK(rig.Status(from_memory(0x5006)) == 0x1c);
  const Ran fault = rig.Run(from_memory(ExecutorRig::kHole));
  CHECK(fault.record.status == 0x03);
  CHECK(fault.fault_address() == ExecutorRig::kHole);
  CHECK(fault.bytes_completed() == 0);
  // Neither inverted nor mirrored, highest bit of each byte first: the bare remainder of 1 is the
  // polynomial's after 32 zero bits.
  constexpr std::uint32_t kBare = Flag::kBypassInversion | Flag::kBypassDataReflection;
  rig.Store(0x6000, Bytes({1}));
  CHECK(rig.Run(crc(1, 0, kBare, 0x6000)).record.specific[0].get() == 0x1edc6f41);
  CHECK(rig.Run(crc(1, 0x01000000, kBare, 0x7000)).record.specific[0].get() == 0x1edc6f41);
  // The catalogue's CRC-32 of this polynomial that is not mirrored and not inverted.
  CHECK(rig.Run(crc(9, 0xffffffff, kBare)).record.specific[0].get() != 0xe3069283);
}

TEST_CASE("crc: with a copy, and what is known when it stops in the middle") {
  ExecutorRig rig;
  const std::vector<std::byte> data = Pattern(0x3000);
  rig.Store(0x4000, data);
  const auto expected = [&data](std::size_t size) {
    return ~AllChecksums().back().crc32c(~0U, data.data(), size);
  };
  const Ran whole =
      rig.Run(Describe(Opcode::kCopyCrc).From(0x4000).To(ExecutorRig::kSeam - 0x1001).Size(0x3000));
  CHECK(whole.record.status == 1);
  CHECK(whole.record.specific[0].get() == expected(0x3000));
  CHECK(rig.Load(ExecutorRig::kSeam - 0x1001, 0x3000) == data);
  const Ran fault =
      rig.Run(Describe(Opcode::kCopyCrc).From(0x4000).To(ExecutorRig::kHole - 0x1234).Size(0x3000));
  CHECK(fault.record.status == 0x83);
  CHECK(fault.bytes_completed() == 0x1234);
  CHECK(fault.record.specific[0].get() == expected(0x1234));
}

TEST_CASE("cache flush: of memory it succeeds, of none it faults") {
  ExecutorRig rig;
  rig.Store(0x4000, Pattern(100));
  CHECK(rig.Status(Describe(Opcode::kCacheFlush).To(0x4001).Size(99)) == 1);
  CHECK(rig.Status(Describe(Opcode::kCacheFlush, Flag::kCacheControl1).To(0x4001).Size(99)) == 1);
  CHECK(rig.Load(0x4000, 100) == Pattern(100));
  const Ran fault = rig.Run(Describe(Opcode::kCacheFlush).To(ExecutorRig::kHole - 5).Size(9));
  CHECK(fault.record.status == 0x03);
  CHECK(fault.bytes_completed() == 5);
}

}  // namespace
}  // namespace postern::dsa
