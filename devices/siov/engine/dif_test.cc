// The DIF operations: every block size, every flag.

#include <vector>

#include "devices/siov/engine/checksum.h"
#include "devices/siov/engine/executor_rig.h"

namespace postern::dsa {
namespace {

using postern::testing::Pattern;

constexpr std::array<std::uint32_t, 4> kBlocks{512, 520, 4096, 4104};
constexpr std::uint64_t kPlain = 0x1000;
constexpr std::uint64_t kTagged = 0x20000;
constexpr std::uint64_t kOut = 0x30000;

DifTags Tags(std::uint32_t ref, std::uint16_t mask, std::uint16_t app) {
  return {le32(ref), le16(mask), le16(app)};
}

// Three blocks of data at kPlain, with tags at kTagged.
Ran Insert(ExecutorRig& rig, std::uint8_t dif_flags, std::uint8_t destination_flags,
           const DifTags& tags, std::uint32_t blocks = 3) {
  const std::uint32_t block = kBlocks[dif_flags & 3];
  rig.Store(kPlain, Pattern(std::size_t{block} * blocks));
  return rig.Run(
      Describe(Opcode::kDifInsert)
          .From(kPlain)
          .To(kTagged)
          .Size(block * blocks)
          .With(DifFields{
              .destination_flags = destination_flags, .flags = dif_flags, .destination = tags}));
}

Ran Check(ExecutorRig& rig, std::uint8_t dif_flags, std::uint8_t source_flags, const DifTags& tags,
          std::uint32_t blocks = 3) {
  return rig.Run(
      Describe(Opcode::kDifCheck)
          .From(kTagged)
          .Size((kBlocks[dif_flags & 3] + 8) * blocks)
          .With(DifFields{.source_flags = source_flags, .flags = dif_flags, .source = tags}));
}

// guard, app, ref of block n at `at`.
std::array<std::uint32_t, 3> TagsOf(const ExecutorRig& rig, std::uint64_t at,
                                    std::uint8_t dif_flags, std::uint32_t n) {
  const std::uint32_t block = kBlocks[dif_flags & 3];
  const std::vector<std::byte> raw = rig.Load(at + std::uint64_t{block + 8} * n + block, 8);
  std::array<std::uint32_t, 8> b{};
  for (std::size_t i = 0; i < 8; ++i) b[i] = static_cast<std::uint32_t>(raw[i]);
  return {b[0] << 8 | b[1], b[2] << 8 | b[3], b[4] << 24 | b[5] << 16 | b[6] << 8 | b[7]};
}

TEST_CASE("dif: inserted tags are big-endian, count as asked and can be checked, all block sizes") {
  for (std::uint8_t size = 0; size < 4; ++size) {
    for (const int inverted : {0, 4, 8, 12}) {
      ExecutorRig rig;
      const auto flags = static_cast<std::uint8_t>(size | inverted);
      CAPTURE(kBlocks[size]);
      CAPTURE(inverted);
      const DifTags tags = Tags(0xfffffffe, 0xf000, 0xabcd);
      const Ran inserted = Insert(rig, flags, 0, tags);
      REQUIRE(inserted.record.status == 1);
      // The record has what the next block would have, at bytes 24..31.
      CHECK(inserted.record.specific[0].get() == 0);
      CHECK(inserted.record.specific[1].get() == (0xabcdULL << 48 | 0xf000ULL << 32 | 1));
      const std::vector<std::byte> data = Pattern(std::size_t{kBlocks[size]} * 3);
      for (std::uint32_t n = 0; n < 3; ++n) {
        std::uint16_t guard = AllChecksums().back().crc16_t10(
            (inverted & 4) != 0 ? 0xffff : 0, data.data() + std::size_t{kBlocks[size]} * n,
            kBlocks[size]);
        if ((inverted & 8) != 0) guard = static_cast<std::uint16_t>(~guard);
        CHECK(TagsOf(rig, kTagged, flags, n) ==
              std::array<std::uint32_t, 3>{guard, 0x0bcd, 0xfffffffe + n});
      }
      const Ran checked = Check(rig, flags, 0, tags);
      CHECK(checked.record.status == 1);
      CHECK(checked.record.specific[0].get() == (0xabcdULL << 48 | 0xf000ULL << 32 | 1));
      CHECK(checked.record.specific[1].get() == 0);
      // Another way to compute the guard is a mismatch of the first block.
      const Ran other = Check(rig, static_cast<std::uint8_t>(flags ^ 8), 0, tags);
      CHECK(other.record.status == 0x09);
      CHECK(other.record.result == 1);
      CHECK(other.bytes_completed() == 0);
    }
  }
}

TEST_CASE("dif: tags are fixed or count, in either direction of the two flags") {
  ExecutorRig rig;
  const DifTags tags = Tags(7, 0, 0xffff);
  struct Row {
    std::uint8_t flags;
    std::uint32_t ref;
    std::uint32_t app;
  };
  for (const Row row :
       {Row{0x00, 9, 0xffff}, Row{0x80, 7, 0xffff}, Row{0x10, 9, 1}, Row{0x90, 7, 1}}) {
    CAPTURE(static_cast<int>(row.flags));
    CHECK(Insert(rig, 0, row.flags, tags).record.status == 1);
    CHECK(TagsOf(rig, kTagged, 0, 2)[1] == row.app);
    CHECK(TagsOf(rig, kTagged, 0, 2)[2] == row.ref);
    CHECK(Check(rig, 0, row.flags, tags).record.status == 1);
    // Fixed where it counts, and the other way round: both tags of the second block differ.
    const Ran wrong = Check(rig, 0, static_cast<std::uint8_t>(row.flags ^ 0x90), tags);
    CHECK(wrong.record.status == 0x09);
    CHECK(wrong.record.result == 6);
    CHECK(wrong.bytes_completed() == 520);
  }
  // What the mask hides counts on: 0, 0, 2 of 0, 1, 2.
  CHECK(Insert(rig, 0, 0x10, Tags(7, 1, 0)).record.status == 1);
  CHECK(TagsOf(rig, kTagged, 0, 1)[1] == 0);
  CHECK(TagsOf(rig, kTagged, 0, 2)[1] == 2);
}

TEST_CASE("dif: each check finds its own mismatch and can be turned off") {
  ExecutorRig rig;
  const DifTags tags = Tags(0x01020304, 0, 0x0506);
  CHECK(Insert(rig, 0, 0, tags).record.status == 1);
  // In the second block: guard, application tag, reference tag.
  struct Row {
    std::uint64_t byte;
    std::uint8_t status;
    std::uint8_t off;
  };
  const std::uint64_t second = kTagged + 520 + 512;
  for (const Row row : {Row{second, 1, 0x20}, Row{second + 3, 2, 0}, Row{second + 7, 4, 0x40}}) {
    CAPTURE(static_cast<int>(row.status));
    const std::vector<std::byte> before = rig.Load(row.byte, 1);
    rig.Store(row.byte, std::vector<std::byte>{before[0] ^ std::byte{1}});
    const Ran ran = Check(rig, 0, 0, tags);
    CHECK(ran.record.status == 0x09);
    CHECK(ran.record.result == row.status);
    CHECK(ran.bytes_completed() == 520);
    if (row.off != 0) CHECK(Check(rig, 0, row.off, tags).record.status == 1);
    // A mask of all ones turns the application tag's check off.
    if (row.status == 2) {
      CHECK(Check(rig, 0, 0, Tags(0x01020304, 0xffff, 0)).record.status == 1);
      // With any other mask the tag in the source is compared as it is.
      CHECK(Check(rig, 0, 0, Tags(0x01020304, 0xff00, 0x0506)).record.result == 2);
    }
    rig.Store(row.byte, before);
  }
  // Several at once.
  const std::vector<std::byte> zeros(8);
  const std::vector<std::byte> before = rig.Load(second, 8);
  rig.Store(second, zeros);
  CHECK(Check(rig, 0, 0, tags).record.result == 7);
  rig.Store(second, before);
  // The data too.
  rig.Store(kTagged + 520, std::vector<std::byte>{std::byte{0xff}});
  CHECK(Check(rig, 0, 0, tags).record.result == 1);
}

TEST_CASE("dif: tags of all ones are let through where the flags say so") {
  const DifTags tags = Tags(5, 0, 6);
  struct Row {
    const char* name;
    int guard;
    int app;
    int ref;
    // Source flags and the DIF status with them.
    std::vector<std::pair<std::uint8_t, std::uint8_t>> found;
  };
  // Flags: 1 error, 2 all, 4 application tag, 8 application and reference tag.
  const std::vector<Row> rows{
      {"all", 0xff, 0xff, 0xff, {{0, 7}, {1, 7}, {2, 0}, {3, 8}, {4, 0}, {8, 0}, {5, 0}, {7, 8}}},
      {"tags", 0x11, 0xff, 0xff, {{0, 7}, {2, 7}, {3, 7}, {4, 0}, {8, 0}, {12, 0}}},
      {"application tag", 0x11, 0xff, 0x22, {{0, 7}, {2, 7}, {4, 0}, {8, 7}, {12, 0}}},
      {"reference tag", 0x11, 0x22, 0xff, {{0, 7}, {15, 7}}},
      {"guard", 0xff, 0x22, 0x22, {{15, 7}}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    for (const auto& found : row.found) {
      const std::uint8_t flags = found.first;
      const std::uint8_t status = found.second;
      ExecutorRig rig;
      CAPTURE(static_cast<int>(flags));
      REQUIRE(Insert(rig, 0, 0, tags).record.status == 1);
      std::vector<std::byte> raw(8, static_cast<std::byte>(row.ref));
      raw[0] = raw[1] = static_cast<std::byte>(row.guard);
      raw[2] = raw[3] = static_cast<std::byte>(row.app);
      rig.Store(kTagged + 520 + 512, raw);
      const Ran ran = Check(rig, 0, flags, tags);
      CHECK(ran.record.status == (status == 0 ? 1 : 9));
      CHECK(ran.record.result == status);
    }
  }
}

TEST_CASE("dif: stripped data is the data, and stripping checks first") {
  for (std::uint8_t size = 0; size < 4; ++size) {
    ExecutorRig rig;
    CAPTURE(kBlocks[size]);
    const DifTags tags = Tags(5, 0, 6);
    REQUIRE(Insert(rig, size, 0, tags).record.status == 1);
    const std::uint32_t step = kBlocks[size] + 8;
    const auto strip = [&](std::uint8_t source_flags) {
      return rig.Run(
          Describe(Opcode::kDifStrip)
              .From(kTagged)
              .To(kOut)
              .Size(step * 3)
              .With(DifFields{.source_flags = source_flags, .flags = size, .source = tags}));
    };
    const Ran ran = strip(0);
    CHECK(ran.record.status == 1);
    CHECK(ran.record.specific[0].get() == (6ULL << 48 | 8));
    CHECK(rig.Load(kOut, std::size_t{kBlocks[size]} * 3) ==
          Pattern(std::size_t{kBlocks[size]} * 3));
    CHECK(rig.Load(kOut + std::size_t{kBlocks[size]} * 3, 8) == std::vector<std::byte>(8));
    // The second block is wrong: the first is written, the second is not.
    ExecutorRig again;
    REQUIRE(Insert(again, size, 0, tags).record.status == 1);
    again.Store(kTagged + step, std::vector<std::byte>(4));
    const Ran wrong =
        again.Run(Describe(Opcode::kDifStrip)
                      .From(kTagged)
                      .To(kOut)
                      .Size(step * 3)
                      .With(DifFields{.source_flags = 0, .flags = size, .source = tags}));
    CHECK(wrong.record.status == 0x09);
    CHECK(wrong.bytes_completed() == step);
    CHECK(again.Load(kOut + kBlocks[size], 64) == std::vector<std::byte>(64));
  }
}

TEST_CASE("dif: an update writes new tags or passes the old ones") {
  for (int bit = 0; bit < 8; ++bit) {
    ExecutorRig rig;
    const DifTags old_tags = Tags(5, 0, 6);
    const DifTags new_tags = Tags(0x1000, 0x000f, 0xbbbb);
    REQUIRE(Insert(rig, 0, 0, old_tags).record.status == 1);
    // An old guard that is not right, and is not checked.
    rig.Store(kTagged + 512, std::vector<std::byte>(2, std::byte{0xcc}));
    const auto pass = static_cast<std::uint8_t>((bit & 1) << 3 | (bit & 2) << 4 | (bit & 4) << 4);
    CAPTURE(static_cast<int>(pass));
    const Ran ran = rig.Run(Describe(Opcode::kDifUpdate)
                                .From(kTagged)
                                .To(kOut)
                                .Size(std::size_t{520} * 3)
                                .With(DifFields{.source_flags = 0x20,
                                                .destination_flags = pass,
                                                .flags = 0,
                                                .source = old_tags,
                                                .destination = new_tags}));
    REQUIRE(ran.record.status == 1);
    CHECK(ran.record.specific[0].get() == (6ULL << 48 | 8));
    CHECK(ran.record.specific[1].get() == (0xbbbbULL << 48 | 0xfULL << 32 | 0x1003));
    const std::array<std::uint32_t, 3> got = TagsOf(rig, kOut, 0, 0);
    const std::vector<std::byte> data = Pattern(512);
    CHECK(got[0] ==
          ((bit & 2) != 0 ? 0xcccc : AllChecksums().back().crc16_t10(0, data.data(), 512)));
    CHECK(got[1] == ((bit & 1) != 0 ? 6U : 0xbbb0U));
    CHECK(got[2] == ((bit & 4) != 0 ? 5U : 0x1000U));
    CHECK(rig.Load(kOut, 512) == data);
  }
}

TEST_CASE("dif: a fault leaves whole blocks and the tags to go on with") {
  ExecutorRig rig;
  const DifTags tags = Tags(5, 0, 6);
  REQUIRE(Insert(rig, 0, 0x10, tags).record.status == 1);
  const std::vector<std::byte> tagged = rig.Load(kTagged, std::size_t{520} * 3);
  rig.Store(ExecutorRig::kHole - 600, std::span(tagged).first(600));
  const Ran read = rig.Run(Describe(Opcode::kDifStrip)
                               .From(ExecutorRig::kHole - 600)
                               .To(kOut)
                               .Size(std::size_t{520} * 3)
                               .With(DifFields{.source_flags = 0x10, .source = tags}));
  CHECK(read.record.status == 0x03);
  CHECK(read.bytes_completed() == 520);
  CHECK(read.fault_address() == ExecutorRig::kHole);
  CHECK(read.record.specific[0].get() == (7ULL << 48 | 6));
  CHECK(rig.Load(kOut + 512, 88) == std::vector<std::byte>(88));
  const Ran write = rig.Run(Describe(Opcode::kDifInsert)
                                .From(kPlain)
                                .To(ExecutorRig::kHole - 1000)
                                .Size(512 * 3)
                                .With(DifFields{.destination_flags = 0x10, .destination = tags}));
  CHECK(write.record.status == 0x83);
  CHECK(write.bytes_completed() == 512);
  CHECK(write.fault_address() == ExecutorRig::kHole);
  CHECK(write.record.specific[1].get() == (7ULL << 48 | 6));
}

}  // namespace
}  // namespace postern::dsa
