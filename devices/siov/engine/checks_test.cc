// What the executor refuses, and with which status.

#include <algorithm>
#include <map>

#include "devices/siov/engine/executor_rig.h"

namespace postern::dsa {

std::vector<std::pair<Opcode, Describe>> GoodDescriptors() {
  std::vector<std::pair<Opcode, Describe>> good;
  const auto add = [&good](Opcode opcode) -> Describe& {
    good.emplace_back(opcode, Describe(opcode));
    return good.back().second;
  };
  // Blocks of zeros with tags of zeros are right: the CRC of zeros is 0.
  const DifFields any_tags{.source_flags = 0x80, .destination_flags = 0x80};
  DifFields source = any_tags;
  source.destination_flags = 0;
  DifFields destination = any_tags;
  destination.source_flags = 0;
  add(Opcode::kNoop);
  add(Opcode::kBatch).From(0x4000).Size(2);
  add(Opcode::kDrain);
  add(Opcode::kMove).From(0x1000).To(0x2000).Size(64);
  add(Opcode::kFill).From(0).To(0x2000).Size(64);
  add(Opcode::kCompare).From(0x1000).To(0x2000).Size(64);
  add(Opcode::kComparePattern).From(0x1000).To(0).Size(64);
  add(Opcode::kCreateDelta)
      .From(0x1000)
      .To(0x2000)
      .Size(64)
      .With(CreateDeltaFields{.record = le64(0x3000), .max_size = le32(80)});
  add(Opcode::kApplyDelta)
      .From(0x3000)
      .To(0x2000)
      .Size(64)
      .With(ApplyDeltaFields{.size = le32(10)});
  add(Opcode::kDualcast)
      .From(0x1000)
      .To(0x2000)
      .Size(64)
      .With(DualcastFields{.destination2 = le64(0x3000)});
  add(Opcode::kCrc).From(0x1000).Size(64);
  add(Opcode::kCopyCrc).From(0x1000).To(0x2000).Size(64);
  add(Opcode::kDifCheck).From(0x1000).Size(520).With(source);
  add(Opcode::kDifInsert).From(0x1000).To(0x2000).Size(512).With(destination);
  add(Opcode::kDifStrip).From(0x1000).To(0x2000).Size(520).With(source);
  add(Opcode::kDifUpdate).From(0x1000).To(0x2000).Size(520).With(any_tags);
  add(Opcode::kCacheFlush).To(0x1000).Size(64);
  return good;
}

namespace {

struct Rules {
  std::vector<std::pair<unsigned, unsigned>> reserved;  // bytes, DSA table 5-3
  std::uint32_t allowed;                                // flags that change nothing
};

// Written down a third time, for the facts alone: bytes reserved and flags allowed of each
// operation beside 2, 3, 4 and 12, on a device with cache control and without what GENCAP does not
// advertise.
const std::map<Opcode, Rules>& Table() {
  static const std::map<Opcode, Rules> table{
      {Opcode::kNoop, {{{16, 35}, {38, 63}}, 0}},
      {Opcode::kBatch, {{{24, 31}, {38, 63}}, 1 << 9}},
      {Opcode::kDrain, {{{16, 35}, {38, 63}}, 3 << 18}},
      {Opcode::kMove, {{{38, 63}}, 1 << 8 | 3 << 9 | 1 << 13}},
      {Opcode::kFill, {{{38, 63}}, 1 << 8 | 1 << 10 | 1 << 13}},
      {Opcode::kCompare, {{{38, 39}, {41, 63}}, 1 << 7 | 3 << 9}},
      {Opcode::kComparePattern, {{{38, 39}, {41, 63}}, 1 << 7 | 1 << 9}},
      {Opcode::kCreateDelta, {{{38, 39}, {52, 55}, {57, 63}}, 1 << 7 | 1 << 8 | 7 << 9 | 1 << 13}},
      {Opcode::kApplyDelta, {{{38, 39}, {44, 63}}, 1 << 8 | 3 << 9 | 1 << 13}},
      {Opcode::kDualcast, {{{38, 39}, {48, 63}}, 1 << 8 | 7 << 9 | 1 << 13}},
      {Opcode::kCrc, {{{24, 31}, {38, 39}, {44, 63}}, 1 << 9 | 7 << 16}},
      {Opcode::kCopyCrc, {{{38, 39}, {44, 63}}, 1 << 8 | 3 << 9 | 1 << 13 | 7 << 16}},
      {Opcode::kDifCheck, {{{24, 31}, {38, 39}, {41, 41}, {43, 47}, {56, 63}}, 1 << 9}},
      {Opcode::kDifInsert, {{{38, 40}, {43, 55}}, 1 << 8 | 3 << 9 | 1 << 13}},
      {Opcode::kDifStrip, {{{38, 39}, {41, 41}, {43, 47}, {56, 63}}, 1 << 8 | 3 << 9 | 1 << 13}},
      {Opcode::kDifUpdate, {{{38, 39}, {43, 47}}, 1 << 8 | 3 << 9 | 1 << 13}},
      {Opcode::kCacheFlush, {{{16, 23}, {38, 63}}, 1 << 8 | 1 << 10 | 1 << 13}},
  };
  return table;
}

ExecutorCaps WithCacheControl() {
  return {.operations = kAllOperations, .overlapping_copy = true, .cache_control = true};
}

TEST_CASE("descriptor: one of each kind succeeds") {
  for (const auto& good : GoodDescriptors()) {
    const Opcode opcode = good.first;
    const Describe& descriptor = good.second;
    ExecutorRig rig;
    CAPTURE(static_cast<int>(opcode));
    // The batch's two descriptors are no-ops of zeros.
    const Ran ran = rig.Run(descriptor);
    CHECK(ran.record.status == 1);
    CHECK(ran.executed.status == 1);
    CHECK(ran.executed.operation == static_cast<std::uint8_t>(opcode));
    CHECK(ran.executed.descriptors == (opcode == Opcode::kBatch ? 3 : 1));
    CHECK(ran.errors.empty());
  }
  CHECK(GoodDescriptors().size() == Table().size());
}

TEST_CASE("descriptor: every reserved bit of every operation is refused") {
  for (const auto& good : GoodDescriptors()) {
    const Opcode opcode = good.first;
    const Describe& descriptor = good.second;
    ExecutorRig rig;
    CAPTURE(static_cast<int>(opcode));
    std::array<bool, 64> reserved{};
    for (const auto& [first, last] : Table().at(opcode).reserved) {
      for (unsigned i = first; i <= last; ++i) reserved[i] = true;
    }
    // No interrupt is asked for.
    reserved[36] = reserved[37] = true;
    for (unsigned byte = 8; byte < 64; ++byte) {
      if (!reserved[byte]) continue;
      for (int bit = 0; bit < 8; ++bit) {
        CAPTURE(byte);
        CAPTURE(bit);
        siov::Descriptor bad = descriptor.bytes();
        bad[byte] ^= static_cast<std::byte>(1 << bit);
        REQUIRE(rig.Status(bad) == 0x12);
      }
    }
    // Who submitted is not looked at.
    siov::Descriptor other = descriptor.bytes();
    other[0] = other[1] = other[2] = other[3] = std::byte{0xff};
    CHECK(rig.Status(other) == 1);
  }
}

TEST_CASE("descriptor: every flag of every operation is allowed or named as invalid") {
  for (const auto& good : GoodDescriptors()) {
    const Opcode opcode = good.first;
    const Describe& descriptor = good.second;
    ExecutorRig rig(WithCacheControl());
    CAPTURE(static_cast<int>(opcode));
    for (unsigned flag = 0; flag < 24; ++flag) {
      // What only other fields make good has tests of its own.
      if (flag >= 2 && flag <= 4) continue;
      CAPTURE(flag);
      siov::Descriptor bytes = descriptor.bytes();
      bytes[4 + flag / 8] ^= static_cast<std::byte>(1 << flag % 8);
      const Ran ran = rig.Run(bytes);
      const bool allowed = flag == 12 || (Table().at(opcode).allowed >> flag & 1) != 0;
      if (allowed) {
        const bool predicate = flag == 7 && opcode == Opcode::kCreateDelta;
        CHECK(ran.record.status == (predicate ? 2 : 1));
        continue;
      }
      CHECK(ran.record.status == 0x11);
      CHECK(ran.record.specific[0].get() == 1U << flag);
    }
  }
}

TEST_CASE("descriptor: all invalid flags are named at once, and required ones that are missing") {
  ExecutorRig rig;
  CHECK(rig.Run(Describe(Opcode::kNoop, 1 | 1 << 6 | 1 << 15 | 1 << 23)).record.specific[0].get() ==
        (1 | 1 << 6 | 1 << 15 | 1 << 23));
  for (const Opcode opcode : {Opcode::kCompare, Opcode::kComparePattern, Opcode::kCreateDelta,
                              Opcode::kCrc, Opcode::kCopyCrc, Opcode::kDifCheck}) {
    CAPTURE(static_cast<int>(opcode));
    const auto good = GoodDescriptors();
    Describe descriptor = std::find_if(good.begin(), good.end(), [&](auto& row) {
                            return row.first == opcode;
                          })->second;
    const Ran ran = rig.Run(descriptor.Flags(Flag::kRecordValid));
    CHECK(ran.record.status == 0x11);
    CHECK(ran.record.specific[0].get() == Flag::kRequestRecord);
    const Ran silent = rig.Run(descriptor.Flags(0).Record(0));
    REQUIRE(silent.errors.size() == 1);
    CHECK((silent.errors[0].words[1] >> 32) == kWithRecord);
  }
  // A record asked for and no address for it.
  const Ran ran = rig.Run(Describe(Opcode::kNoop).Flags(Flag::kRequestRecord | 1 << 12).Record(0));
  REQUIRE(ran.errors.size() == 1);
  CHECK((ran.errors[0].words[1] >> 32) == (Flag::kRequestRecord | 1 << 12));
  // A drain nobody hears of.
  const Ran drain = rig.Run(Describe(Opcode::kDrain).Flags(Flag::kRecordValid));
  CHECK(drain.record.specific[0].get() == (Flag::kRequestRecord | Flag::kRequestInterrupt));
  CHECK(rig.pair().environment().drains == 0);
}

TEST_CASE("descriptor: cache control needs a device that has it") {
  const Describe move = Describe(Opcode::kMove, 1 << 8).From(0x1000).To(0x2000).Size(8);
  CHECK(ExecutorRig(WithCacheControl()).Status(move) == 1);
  ExecutorCaps caps = WithCacheControl();
  caps.cache_control = false;
  CHECK(ExecutorRig(caps).Status(move) == 0x11);
}

TEST_CASE("descriptor: an operation is refused where device or queue does not have it") {
  ExecutorCaps caps{.operations = kAllOperations};
  caps.operations[0] &= ~(1ULL << 4);
  const Describe fill = Describe(Opcode::kFill).To(0x2000).Size(8);
  CHECK(ExecutorRig(caps).Status(fill) == 0x10);
  ExecutorRig rig;
  CHECK(rig.Status(fill) == 1);
  rig.limits.operations[0] &= ~(1ULL << 4);
  CHECK(rig.Status(fill) == 0x10);
  // No operation at all, even if everything is said to be one.
  rig.limits.operations = {~0ULL, ~0ULL, ~0ULL, ~0ULL};
  ExecutorRig all({.operations = {~0ULL, ~0ULL, ~0ULL, ~0ULL}});
  all.limits.operations = rig.limits.operations;
  for (unsigned opcode = 0; opcode < 256; ++opcode) {
    if (opcode < 64 && (kAllOperations[0] >> opcode & 1) != 0) continue;
    CAPTURE(opcode);
    CHECK(all.Status(Describe(static_cast<Opcode>(opcode))) == 0x10);
  }
}

TEST_CASE("descriptor: sizes of 0, 1, the queue's largest and one more") {
  for (const auto& row : GoodDescriptors()) {
    const Opcode opcode = row.first;
    const Describe& good = row.second;
    if (opcode == Opcode::kNoop || opcode == Opcode::kBatch || opcode == Opcode::kDrain) continue;
    ExecutorRig rig;
    CAPTURE(static_cast<int>(opcode));
    const bool dif = opcode >= Opcode::kDifCheck && opcode <= Opcode::kDifUpdate;
    const bool delta = opcode == Opcode::kCreateDelta || opcode == Opcode::kApplyDelta;
    Describe descriptor = good;
    CHECK(rig.Status(descriptor.Size(0)) == 0x13);
    CHECK(rig.Status(descriptor.Size(0xffffffff)) == 0x13);
    CHECK(rig.Status(descriptor.Size(1)) == (dif ? 0x13 : delta ? 0x1c : 1));
    // So far apart that nothing overlaps.
    descriptor.From(0x200).To(ExecutorRig::kAfterHole);
    if (opcode == Opcode::kCacheFlush) descriptor.From(0);
    if (opcode == Opcode::kComparePattern || opcode == Opcode::kCrc) descriptor.To(0);
    if (opcode == Opcode::kDifCheck) descriptor.To(0);
    if (opcode == Opcode::kDualcast) {
      descriptor.With(DualcastFields{.destination2 = le64(ExecutorRig::kSeam)});
    }
    if (opcode == Opcode::kCreateDelta) {
      descriptor.With(CreateDeltaFields{.record = le64(0x28000), .max_size = le32(80)});
    }
    if (opcode == Opcode::kApplyDelta) descriptor.From(0x28000);
    // The record last, on zeros that nobody looks at afterwards.
    const std::uint32_t max = dif ? 520 * 63 : 0x8000;
    rig.limits.max_transfer = max;
    if (opcode == Opcode::kDifInsert) descriptor.With(DifFields{.flags = 1});
    descriptor.Record(0x38000);
    const Ran ran = rig.Run(descriptor.Size(max).bytes(), 0x38000);
    CHECK(ran.record.status == 1);
    CHECK(ran.executed.bytes == (opcode == Opcode::kApplyDelta ? 10 : max));
    CHECK(rig.Run(descriptor.Size(max + 1).bytes(), 0x38000).record.status == 0x13);
  }
}

struct Sized {
  std::uint32_t size;
  unsigned status;
};

TEST_CASE("descriptor: sizes of delta records and what they must be multiples of") {
  ExecutorRig rig;
  rig.limits.max_transfer = 0x100000;
  const auto create = [](std::uint32_t size, std::uint32_t max, std::uint64_t from = 0x1000,
                         std::uint64_t to = 0x2000) {
    return Describe(Opcode::kCreateDelta)
        .From(from)
        .To(to)
        .Size(size)
        .With(CreateDeltaFields{.record = le64(0x30000), .max_size = le32(max)});
  };
  for (const Sized row : std::initializer_list<Sized>{
           {0, 0x15}, {79, 0x15}, {80, 1}, {81, 1}, {0x100000, 1}, {0x100001, 0x15}}) {
    const std::uint32_t max = row.size;
    const unsigned status = row.status;
    CAPTURE(max);
    CHECK(rig.Status(create(64, max)) == status);
  }
  CHECK(rig.Status(create(0x80008, 80)) == 0x13);
  // As large as can be: not refused, but there is not so much memory.
  CHECK(rig.Status(create(0x80000, 80)
                       .With(CreateDeltaFields{.record = le64(0x200000), .max_size = le32(80)})) ==
        0x03);
  CHECK(rig.Status(create(65, 80)) == 0x1c);
  CHECK(rig.Status(create(64, 80, 0x1004)) == 0x1c);
  CHECK(rig.Status(create(64, 80, 0x1000, 0x2001)) == 0x1c);
  const auto apply = [](std::uint32_t size, std::uint32_t record, std::uint64_t to = 0x2000) {
    return Describe(Opcode::kApplyDelta)
        .From(0x3001)
        .To(to)
        .Size(size)
        .With(ApplyDeltaFields{.size = le32(record)});
  };
  for (const Sized row : std::initializer_list<Sized>{
           {0, 0x15}, {9, 0x15}, {10, 1}, {11, 0x15}, {20, 0x07}, {0x10000a, 0x15}}) {
    const std::uint32_t record = row.size;
    const unsigned status = row.status;
    CAPTURE(record);
    CHECK(rig.Status(apply(64, record)) == status);
  }
  CHECK(rig.Status(apply(0x80008, 10)) == 0x13);
  CHECK(rig.Status(apply(60, 10)) == 0x1c);
  CHECK(rig.Status(apply(64, 10, 0x2004)) == 0x1c);
}

TEST_CASE("descriptor: buffers that overlap are refused where they must not") {
  const auto dif = [](Opcode opcode, std::uint8_t source, std::uint8_t destination) {
    return Describe(opcode).With(
        DifFields{.source_flags = source, .destination_flags = destination});
  };
  // First and last place of the destination that touch 520 or 512 bytes at 0x4000.
  struct Row {
    const char* name;
    Describe descriptor;
    std::uint32_t size;
    std::uint64_t first;
    std::uint64_t last;
  };
  const std::vector<Row> rows{
      {"copy with CRC", Describe(Opcode::kCopyCrc), 64, 0x4000 - 63, 0x4000 + 63},
      {"DIF insert", dif(Opcode::kDifInsert, 0, 0x80), 512, 0x4000 - 519, 0x4000 + 511},
      {"DIF strip", dif(Opcode::kDifStrip, 0x80, 0), 520, 0x4000 - 511, 0x4000 + 519},
      {"DIF update", dif(Opcode::kDifUpdate, 0x80, 0x80), 520, 0x4000 - 519, 0x4000 + 519},
      {"apply delta", Describe(Opcode::kApplyDelta).With(ApplyDeltaFields{.size = le32(10)}), 64,
       0x4000 - 56, 0x4000 + 8},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    ExecutorRig rig;
    Describe descriptor = row.descriptor;
    descriptor.From(0x4000).Size(row.size);
    const std::uint64_t step = std::string(row.name) == "apply delta" ? 8 : 1;
    CHECK(rig.Status(descriptor.To(row.first)) == 0x16);
    CHECK(rig.Status(descriptor.To(0x4000)) == 0x16);
    CHECK(rig.Status(descriptor.To(row.last)) == 0x16);
    CHECK(rig.Status(descriptor.To(row.first - step)) == 1);
    CHECK(rig.Status(descriptor.To(row.last + step)) == 1);
  }
  ExecutorRig rig;
  const auto dualcast = [](std::uint64_t to, std::uint64_t to2) {
    return Describe(Opcode::kDualcast)
        .From(0x4000)
        .To(to)
        .Size(0x1400)
        .With(DualcastFields{.destination2 = le64(to2)});
  };
  CHECK(rig.Status(dualcast(0x8000, 0xa000)) == 1);
  CHECK(rig.Status(dualcast(0x8000, 0x9000)) == 0x16);
  CHECK(rig.Status(dualcast(0x9000, 0x8000)) == 0x16);
  CHECK(rig.Status(dualcast(0x5000, 0xa000)) == 0x16);
  CHECK(rig.Status(dualcast(0xa000, 0x3000)) == 0x16);
  CHECK(rig.Status(dualcast(0x8000, 0xa001)) == 0x17);
  CHECK(rig.Status(dualcast(0x8000, 0xa800)) == 0x17);
  // The largest delta record counts, not what comes to be in it.
  const auto delta = [](std::uint64_t record) {
    return Describe(Opcode::kCreateDelta)
        .From(0x4000)
        .To(0x5000)
        .Size(64)
        .With(CreateDeltaFields{.record = le64(record), .max_size = le32(100)});
  };
  CHECK(rig.Status(delta(0x4000 - 100)) == 1);
  CHECK(rig.Status(delta(0x4000 - 99)) == 0x16);
  CHECK(rig.Status(delta(0x4000 + 63)) == 0x16);
  CHECK(rig.Status(delta(0x5000 - 99)) == 0x16);
  CHECK(rig.Status(delta(0x5000 + 64)) == 1);
  // A move may, if the device can.
  const Describe move = Describe(Opcode::kMove).From(0x4000).To(0x4001).Size(64);
  CHECK(rig.Status(move) == 1);
  ExecutorRig without({.operations = kAllOperations, .overlapping_copy = false});
  CHECK(without.Status(move) == 0x16);
  CHECK(without.Status(Describe(Opcode::kMove).From(0x4000).To(0x4040).Size(64)) == 1);
}

TEST_CASE(
    "descriptor: a DIF transfer is a whole number of blocks, and its flags' reserved bits 0") {
  ExecutorRig rig;
  const std::array<std::uint32_t, 4> blocks{512, 520, 4096, 4104};
  for (std::uint8_t size = 0; size < 4; ++size) {
    CAPTURE(blocks[size]);
    const auto with = [size](Opcode opcode) {
      return Describe(opcode).From(0x4000).To(0x8000).With(DifFields{.flags = size});
    };
    CHECK(rig.Status(with(Opcode::kDifInsert).Size(blocks[size] + 8)) == 0x13);
    CHECK(rig.Status(with(Opcode::kDifInsert).Size(blocks[size] - 1)) == 0x13);
    CHECK(rig.Status(with(Opcode::kDifInsert).Size(blocks[size])) == 1);
    CHECK(rig.Status(with(Opcode::kDifStrip).Size(blocks[size])) == 0x13);
    CHECK(rig.Status(with(Opcode::kDifStrip).Size(blocks[size] + 8)) == 1);
  }
  for (int bit = 0; bit < 8; ++bit) {
    const auto flags = static_cast<std::uint8_t>(1 << bit);
    CAPTURE(bit);
    const Describe update = Describe(Opcode::kDifUpdate).From(0x4000).To(0x8000).Size(520);
    CHECK(rig.Status(Describe(update).With(DifFields{.destination_flags = flags})) ==
          (bit < 3 ? 0x12 : 1));
    if (bit >= 2) {
      const unsigned status =
          rig.Status(Describe(update).With(DifFields{.source_flags = 0x20, .flags = flags}));
      CHECK(status == (bit >= 4 ? 0x12 : 1));
    }
  }
}

TEST_CASE("descriptor: the interrupt handle is looked at when an interrupt is asked for") {
  ExecutorRig rig;
  const Ran good = rig.Run(Describe(Opcode::kNoop, Flag::kRequestInterrupt).Handle(5));
  CHECK(good.record.status == 1);
  CHECK(good.signals == std::vector<std::uint32_t>{5});
  for (const std::uint32_t number : {1U, 4U, 6U, 0xffffU}) {
    const auto handle = static_cast<std::uint16_t>(number);
    CAPTURE(handle);
    const Ran bad = rig.Run(Describe(Opcode::kNoop, Flag::kRequestInterrupt).Handle(handle));
    CHECK(bad.record.status == 0x19);
    CHECK(bad.signals.empty());
    // In the record and in the error register.
    REQUIRE(bad.errors.size() == 1);
    CHECK((bad.errors[0].words[0] >> 8 & 0xff) == 0x19);
    CHECK((bad.errors[0].words[1] >> 32) == handle);
  }
  // Other errors raise the interrupt all the same.
  const Ran flags = rig.Run(Describe(Opcode::kNoop, Flag::kRequestInterrupt | 1 << 6).Handle(5));
  CHECK(flags.record.status == 0x11);
  CHECK(flags.signals == std::vector<std::uint32_t>{5});
  const Ran both = rig.Run(Describe(Opcode::kNoop, Flag::kRequestInterrupt | 1 << 6).Handle(9));
  CHECK(both.record.status == 0x11);
  CHECK(both.signals.empty());
}

TEST_CASE("descriptor: the order of checks") {
  ExecutorRig rig;
  siov::Descriptor all = Describe(Opcode::kDualcast, Flag::kRequestInterrupt | 1 << 6)
                             .From(0x4000)
                             .To(0x4001)
                             .Size(0)
                             .Handle(77)
                             .With(DualcastFields{.destination2 = le64(0x4002)})
                             .bytes();
  all[63] = std::byte{1};
  all[7] = std::byte{0x0a};
  CHECK(rig.Status(all) == 0x10);
  all[7] = std::byte{0x09};
  CHECK(rig.Status(all) == 0x11);
  all[4] &= ~std::byte{1 << 6};
  CHECK(rig.Status(all) == 0x12);
  all[63] = std::byte{0};
  CHECK(rig.Status(all) == 0x19);
  all[36] = std::byte{5};
  CHECK(rig.Status(all) == 0x13);
  all[32] = std::byte{64};
  CHECK(rig.Status(all) == 0x17);
  all[40] = std::byte{1};
  CHECK(rig.Status(all) == 0x16);
  all[41] = std::byte{0x60};
  all[25] = std::byte{0x80};
  CHECK(rig.Status(all) == 1);
}

}  // namespace
}  // namespace postern::dsa
