// Every operation a DSA advertises, each with its result compared with what is computed here.
#include <cstring>

#include "src/probe/checksum.h"
#include "src/probe/dsa.h"
#include "src/probe/tests.h"
#include "src/probe/virtio.h"

namespace postern::probe {
namespace {

// No multiple of 8, so that each operation has an odd end.
constexpr uint32_t kSize = 1021;
constexpr uint32_t kGuard = 8;
constexpr uint32_t kBlock = 512;
constexpr uint32_t kTags = 8;
constexpr uint32_t kBlocks = 2;
constexpr uint32_t kDelta = 10;  // two bytes of offset, eight of data

// Tags as a descriptor has them: the reference tag, the mask of the application tag, and that.
constexpr uint64_t Tags(uint32_t ref, uint16_t mask, uint16_t app) {
  return ref | uint64_t{mask} << 32 | uint64_t{app} << 48;
}

class Operations {
 public:
  Operations(DsaDevice& device, Row& row) : device_(device), queue_(device.queue(0)), row_(row) {}

  void RunAll() {
    a_ = static_cast<uint8_t*>(Allocate(4096, 4096));
    b_ = static_cast<uint8_t*>(Allocate(4096, 4096));
    c_ = static_cast<uint8_t*>(Allocate(4096, 4096));
    if (a_ == nullptr || b_ == nullptr || c_ == nullptr) {
      row_.Fail("no memory");
      return;
    }
    // In the order of their numbers; each begins with buffers of its own making.
    static constexpr struct {
      DsaOpcode opcode;
      std::string_view name;
      bool (Operations::*check)();
    } kAll[] = {
        {DsaOpcode::kNoop, "noop", &Operations::Noop},
        {DsaOpcode::kBatch, "batch", &Operations::Batch},
        {DsaOpcode::kDrain, "drain", &Operations::Drain},
        {DsaOpcode::kMove, "move", &Operations::Move},
        {DsaOpcode::kFill, "fill", &Operations::Fill},
        {DsaOpcode::kCompare, "compare", &Operations::Compare},
        {DsaOpcode::kComparePattern, "pattern", &Operations::ComparePattern},
        {DsaOpcode::kCreateDelta, "delta", &Operations::Delta},
        {DsaOpcode::kDualcast, "dualcast", &Operations::Dualcast},
        {DsaOpcode::kCrc, "CRC", &Operations::Crc},
        {DsaOpcode::kCopyCrc, "copy+CRC", &Operations::CopyCrc},
        {DsaOpcode::kDifInsert, "DIF", &Operations::Dif},
        {DsaOpcode::kCacheFlush, "flush", &Operations::Flush},
    };
    for (const auto& one : kAll) {
      if (!device_.Has(one.opcode)) continue;
      row_.tested().Put(row_.tested().empty() ? "" : " ", one.name);
      if (!(this->*one.check)()) return;
    }
  }

  [[nodiscard]] unsigned operations() const { return operations_; }
  [[nodiscard]] unsigned descriptors() const { return descriptors_; }

 private:
  [[nodiscard]] const DsaRecord& record() const { return queue_.record(); }

  // `a` and `b` differ everywhere, `c` is neither.
  void Prepare() {
    uint64_t value = 0x0123456789abcdef;
    for (unsigned i = 0; i < 4096 / 8; ++i) {
      value = value * 6364136223846793005 + 1442695040888963407;
      const uint64_t words[] = {value, ~value, 0x5a5a5a5a5a5a5a5a};
      std::memcpy(a_ + size_t{8} * i, &words[0], 8);
      std::memcpy(b_ + size_t{8} * i, &words[1], 8);
      std::memcpy(c_ + size_t{8} * i, &words[2], 8);
    }
  }

  bool Run(std::string_view what, DsaDescriptor descriptor,
           DsaStatus wanted = DsaStatus::kSuccess) {
    ++descriptors_;
    if (!queue_.Run(descriptor)) return Fail(what, "does not complete", 0);
    return record().Is(wanted) || Fail(what, "status", record().status);
  }
  bool Fail(std::string_view what, std::string_view how, uint64_t number) {
    Line reason;
    return row_.Fail(reason.Put(what, ": ", how).view(), number);
  }
  // What `size` bytes at `left` should be.
  bool Same(std::string_view what, const void* left, const void* right, size_t size) {
    return std::memcmp(left, right, size) == 0 || Fail(what, "wrong bytes at", DsaAt(left));
  }
  // Nothing was stored around [at, at + size) of `c`.
  bool Untouched(std::string_view what, const uint8_t* at, uint32_t size) {
    static constexpr uint8_t kWas[] = {0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a, 0x5a};
    return Same(what, at - kGuard, kWas, kGuard) && Same(what, at + size, kWas, kGuard);
  }
  void Count(unsigned operations = 1) { operations_ += operations; }

  bool Noop() {
    Count();
    return Run("no-op", {.flags_and_opcode = DsaOp(DsaOpcode::kNoop)});
  }

  // A list of a move, a comparison behind a fence and a fill; then one whose fence stops the rest.
  bool Batch() {
    Prepare();
    Count();
    auto* list = static_cast<DsaDescriptor*>(Allocate(4 * sizeof(DsaDescriptor), 64));
    auto* records = static_cast<DsaRecord*>(Allocate(4 * sizeof(DsaRecord), 32));
    if (list == nullptr || records == nullptr) return row_.Fail("no memory");
    const auto of_list = [&](unsigned i, DsaOpcode opcode, uint32_t flags) {
      records[i] = {};
      list[i] = {.flags_and_opcode = DsaOp(opcode, flags | kDsaWithRecord),
                 .record = DsaAt(&records[i])};
      return &list[i];
    };
    DsaDescriptor* const move = of_list(0, DsaOpcode::kMove, 0);
    move->source = DsaAt(a_);
    move->destination = DsaAt(b_);
    move->size = kSize;
    DsaDescriptor* const compare = of_list(1, DsaOpcode::kCompare, DsaFlag::kFence);
    compare->source = DsaAt(a_);
    compare->destination = DsaAt(b_);
    compare->size = kSize;
    DsaDescriptor* const fill = of_list(2, DsaOpcode::kFill, 0);
    fill->source = 0x1122334455667788;
    fill->destination = DsaAt(c_);
    fill->size = 64;
    const DsaDescriptor batch{
        .flags_and_opcode = DsaOp(DsaOpcode::kBatch), .source = DsaAt(list), .size = 3};
    if (!Run("batch", batch)) return false;
    if (record().bytes_completed != 3) return Fail("batch", "done", record().bytes_completed);
    for (unsigned i = 0; i < 3; ++i) {
      if (!records[i].Is(DsaStatus::kSuccess))
        return Fail("batch", "status inside", records[i].status);
    }
    if (records[1].result != 0) return Fail("batch", "what the fence waits for is not there", 0);
    if (!Same("batch", a_, b_, kSize) || !Same("batch", c_, &fill->source, 8)) return false;
    // The first fails, the second goes on, the third is behind a fence.
    of_list(0, DsaOpcode::kDrain, 0);
    of_list(1, DsaOpcode::kNoop, 0);
    of_list(2, DsaOpcode::kNoop, DsaFlag::kFence);
    if (!Run("batch with an error", batch, DsaStatus::kBatchHadErrors)) return false;
    const bool stopped = records[0].Is(DsaStatus::kBadOpcode) &&
                         records[1].Is(DsaStatus::kSuccess) && records[2].Is(DsaStatus::kNone);
    return (stopped && record().bytes_completed == 2) ||
           Fail("batch with an error", "done", record().bytes_completed);
  }

  // When a drain is complete, so is what was submitted before it.
  bool Drain() {
    Prepare();
    Count();
    DsaRecord* const before = static_cast<DsaRecord*>(Allocate(sizeof(DsaRecord), 32));
    if (before == nullptr) return row_.Fail("no memory");
    *before = {};
    const DsaDescriptor move{.flags_and_opcode = DsaOp(DsaOpcode::kMove, kDsaWithRecord),
                             .record = DsaAt(before),
                             .source = DsaAt(a_),
                             .destination = DsaAt(b_),
                             .size = 4096};
    queue_.Submit(move);
    ++descriptors_;
    if (!Run("drain", {.flags_and_opcode = DsaOp(DsaOpcode::kDrain)})) return false;
    if (!before->Is(DsaStatus::kSuccess)) return Fail("drain", "before it: status", before->status);
    return Same("drain", a_, b_, 4096);
  }

  bool Move() {
    Prepare();
    Count();
    uint8_t* const to = c_ + 8 + 5;
    if (!Run("move", {.flags_and_opcode = DsaOp(DsaOpcode::kMove),
                      .source = DsaAt(a_ + 3),
                      .destination = DsaAt(to),
                      .size = kSize})) {
      return false;
    }
    if (!Same("move", to, a_ + 3, kSize) || !Untouched("move", to, kSize)) return false;
    if (!device_.overlapping_copy()) return true;
    // Onto itself, 7 bytes further.
    std::memcpy(c_, a_, kSize);
    return Run("overlapping move", {.flags_and_opcode = DsaOp(DsaOpcode::kMove),
                                    .source = DsaAt(a_),
                                    .destination = DsaAt(a_ + 7),
                                    .size = kSize}) &&
           Same("overlapping move", a_ + 7, c_, kSize);
  }

  bool Fill() {
    Prepare();
    Count();
    constexpr uint64_t kPattern = 0x8877665544332211;
    uint8_t* const to = c_ + 8 + 1;
    if (!Run("fill", {.flags_and_opcode = DsaOp(DsaOpcode::kFill),
                      .source = kPattern,
                      .destination = DsaAt(to),
                      .size = kSize})) {
      return false;
    }
    for (uint32_t i = 0; i < kSize; ++i) {
      if (to[i] != static_cast<uint8_t>(kPattern >> i % 8 * 8))
        return Fail("fill", "wrong byte at offset", i);
    }
    return Untouched("fill", to, kSize);
  }

  // Equal, different at one place, and different where the opposite was expected.
  bool CompareWith(std::string_view what, DsaDescriptor descriptor, uint8_t* changed,
                   uint32_t offset) {
    Count();
    if (!Run(what, descriptor)) return false;
    if (record().result != 0) return Fail(what, "equal bytes: result", record().result);
    changed[offset] ^= 1;
    if (!Run(what, descriptor)) return false;
    if (record().result != 1) return Fail(what, "different bytes: result", record().result);
    // The pattern's may be any offset up to the difference.
    const bool exact = descriptor.flags_and_opcode >> 24 == uint32_t{0x05};
    if (exact ? record().bytes_completed != offset : record().bytes_completed > offset)
      return Fail(what, "difference at", record().bytes_completed);
    descriptor.flags_and_opcode |= DsaFlag::kCheckResult;
    return Run(what, descriptor, DsaStatus::kFalsePredicate);
  }
  bool Compare() {
    Prepare();
    std::memcpy(b_, a_, kSize);
    return CompareWith("compare",
                       {.flags_and_opcode = DsaOp(DsaOpcode::kCompare),
                        .source = DsaAt(a_),
                        .destination = DsaAt(b_),
                        .size = kSize},
                       b_, 777);
  }
  bool ComparePattern() {
    Prepare();
    return CompareWith("compare pattern",
                       {.flags_and_opcode = DsaOp(DsaOpcode::kComparePattern),
                        .source = DsaAt(c_),
                        .destination = 0x5a5a5a5a5a5a5a5a,
                        .size = kSize},
                       c_, 555);
  }

  // What makes `b` of a copy of `a`, by the device and by hand; then applied.
  bool Delta() {
    Prepare();
    Count();
    constexpr uint32_t kWhole = 1024;
    constexpr uint16_t kUnits[] = {0, 17, 127};
    std::memcpy(b_, a_, kWhole);
    uint8_t expected[sizeof(kUnits) / 2 * kDelta];
    for (size_t i = 0; i < sizeof(kUnits) / 2; ++i) {
      b_[size_t{8} * kUnits[i] + i] ^= 0x80;
      std::memcpy(expected + kDelta * i, &kUnits[i], 2);
      std::memcpy(expected + kDelta * i + 2, b_ + size_t{8} * kUnits[i], 8);
    }
    DsaDescriptor create{.flags_and_opcode = DsaOp(DsaOpcode::kCreateDelta),
                         .source = DsaAt(a_),
                         .destination = DsaAt(b_),
                         .size = kWhole,
                         .specific = {DsaAt(c_), 80, 0}};
    if (!Run("create delta", create)) return false;
    if (record().result != 1) return Fail("create delta", "result", record().result);
    if (static_cast<uint32_t>(record().specific[0]) != sizeof(expected))
      return Fail("create delta", "size", record().specific[0]);
    if (!Same("create delta", c_, expected, sizeof(expected))) return false;
    if (device_.Has(DsaOpcode::kApplyDelta)) {
      Count();
      if (!Run("apply delta", {.flags_and_opcode = DsaOp(DsaOpcode::kApplyDelta),
                               .source = DsaAt(c_),
                               .destination = DsaAt(a_),
                               .size = kWhole,
                               .specific = {sizeof(expected), 0, 0}}) ||
          !Same("apply delta", a_, b_, kWhole)) {
        return false;
      }
      row_.tested().Add("+apply");
    }
    // Nine differences, room for eight.
    for (unsigned i = 0; i < 9; ++i) a_[size_t{8} * i] ^= 1;
    if (!Run("create delta without room", create)) return false;
    if (record().result != 2 || record().bytes_completed != 64)
      return Fail("create delta without room", "result", record().result);
    return true;
  }

  bool Dualcast() {
    Prepare();
    Count();
    return Run("dualcast", {.flags_and_opcode = DsaOp(DsaOpcode::kDualcast),
                            .source = DsaAt(a_),
                            .destination = DsaAt(b_ + 64),
                            .size = kSize,
                            .specific = {DsaAt(c_ + 64), 0, 0}}) &&
           Same("dualcast", b_ + 64, a_, kSize) && Same("dualcast", c_ + 64, a_, kSize) &&
           Untouched("dualcast", c_ + 64, kSize);
  }

  [[nodiscard]] uint32_t SumOfA() const { return ~Crc32c(~uint32_t{0}, a_, kSize); }
  bool Crc() {
    Prepare();
    Count();
    DsaDescriptor crc{
        .flags_and_opcode = DsaOp(DsaOpcode::kCrc), .source = DsaAt(a_), .size = kSize};
    const uint32_t expected = SumOfA();
    if (!Run("CRC", crc)) return false;
    if (static_cast<uint32_t>(record().specific[0]) != expected)
      return Fail("CRC", "wrong sum", record().specific[0]);
    // In two parts, the second with the first one's sum read from memory.
    crc.size = 400;
    if (!Run("CRC", crc)) return false;
    const auto first = static_cast<uint32_t>(record().specific[0]);
    std::memcpy(c_, &first, 4);
    crc.flags_and_opcode |= DsaFlag::kReadSeed;
    crc.source = DsaAt(a_ + 400);
    crc.size = kSize - 400;
    crc.specific[1] = DsaAt(c_);
    if (!Run("CRC with a seed", crc)) return false;
    return static_cast<uint32_t>(record().specific[0]) == expected ||
           Fail("CRC with a seed", "wrong sum", record().specific[0]);
  }
  bool CopyCrc() {
    Prepare();
    Count();
    uint8_t* const to = c_ + 8 + 3;
    if (!Run("copy with CRC", {.flags_and_opcode = DsaOp(DsaOpcode::kCopyCrc),
                               .source = DsaAt(a_),
                               .destination = DsaAt(to),
                               .size = kSize})) {
      return false;
    }
    if (static_cast<uint32_t>(record().specific[0]) != SumOfA())
      return Fail("copy with CRC", "wrong sum", record().specific[0]);
    return Same("copy with CRC", to, a_, kSize) && Untouched("copy with CRC", to, kSize);
  }

  // The blocks of `a` with protection information, as it has to be.
  static void Protect(const uint8_t* from, uint8_t* to, uint32_t ref, uint16_t app) {
    for (uint32_t i = 0; i < kBlocks; ++i) {
      uint8_t* const block = to + size_t{i} * (kBlock + kTags);
      std::memcpy(block, from + size_t{i} * kBlock, kBlock);
      const uint64_t tags =
          uint64_t{Crc16T10(0, block, kBlock)} << 48 | uint64_t{app} << 32 | (ref + i);
      const uint64_t big_endian = __builtin_bswap64(tags);
      std::memcpy(block + kBlock, &big_endian, kTags);
    }
  }

  bool Dif() {
    Prepare();
    Count();
    constexpr uint32_t kPlain = kBlocks * kBlock;
    constexpr uint32_t kProtected = kBlocks * (kBlock + kTags);
    constexpr uint16_t kMask = 0x00f0;
    constexpr uint16_t kApp = 0x1234;
    // With one application tag for all blocks, and a reference tag that counts, as their flags of 0
    // say.
    uint8_t* const expected = a_ + 2048;
    Protect(a_, expected, 100, kApp & ~kMask);
    if (!Run("DIF insert", {.flags_and_opcode = DsaOp(DsaOpcode::kDifInsert),
                            .source = DsaAt(a_),
                            .destination = DsaAt(c_),
                            .size = kPlain,
                            .specific = {0, 0, Tags(100, kMask, kApp)}}) ||
        !Same("DIF insert", c_, expected, kProtected)) {
      return false;
    }
    if (static_cast<uint32_t>(record().specific[1]) != 100 + kBlocks)
      return Fail("DIF insert", "next reference tag", record().specific[1]);
    return DifCheck(kProtected) && DifStrip(kProtected, kPlain) && DifUpdate(kProtected);
  }
  bool DifCheck(uint32_t size) {
    if (!device_.Has(DsaOpcode::kDifCheck)) return true;
    Count();
    const DsaDescriptor check{.flags_and_opcode = DsaOp(DsaOpcode::kDifCheck),
                              .source = DsaAt(c_),
                              .size = size,
                              .specific = {0, Tags(100, 0x00f0, 0x1234), 0}};
    if (!Run("DIF check", check)) return false;
    // A bit in the second block: its guard is wrong, the first block is good.
    c_[kBlock + kTags + 9] ^= 4;
    if (!Run("DIF check", check, DsaStatus::kDifError)) return false;
    c_[kBlock + kTags + 9] ^= 4;
    if (record().result != 1) return Fail("DIF check", "what is wrong", record().result);
    return record().bytes_completed == kBlock + kTags ||
           Fail("DIF check", "good bytes", record().bytes_completed);
  }
  bool DifStrip(uint32_t size, uint32_t plain) {
    if (!device_.Has(DsaOpcode::kDifStrip)) return true;
    Count();
    return Run("DIF strip", {.flags_and_opcode = DsaOp(DsaOpcode::kDifStrip),
                             .source = DsaAt(c_),
                             .destination = DsaAt(b_),
                             .size = size,
                             .specific = {0, Tags(100, 0x00f0, 0x1234), 0}}) &&
           Same("DIF strip", b_, a_, plain);
  }
  bool DifUpdate(uint32_t size) {
    if (!device_.Has(DsaOpcode::kDifUpdate)) return true;
    Count();
    uint8_t* const expected = a_ + 2048;
    Protect(a_, expected, 70000, 0x4321);
    return Run("DIF update",
               {.flags_and_opcode = DsaOp(DsaOpcode::kDifUpdate),
                .source = DsaAt(c_),
                .destination = DsaAt(b_),
                .size = size,
                .specific = {0, Tags(100, 0x00f0, 0x1234), Tags(70000, 0, 0x4321)}}) &&
           Same("DIF update", b_, expected, size);
  }

  bool Flush() {
    Count();
    return Run("cache flush", {.flags_and_opcode = DsaOp(DsaOpcode::kCacheFlush),
                               .destination = DsaAt(a_),
                               .size = kSize});
  }

  DsaDevice& device_;
  DsaQueue& queue_;
  Row& row_;
  uint8_t* a_ = nullptr;
  uint8_t* b_ = nullptr;
  uint8_t* c_ = nullptr;
  unsigned operations_ = 0;
  unsigned descriptors_ = 0;
};

}  // namespace

void TestDsaOperations(PciFunction& function, Row& row) {
  const size_t mark = AllocationMark();
  DsaDevice device;
  if (device.Open(function, row) && device.Start(row)) {
    Operations operations(device, row);
    operations.RunAll();
    row.figures().Put(operations.operations(), " operations, ", operations.descriptors(),
                      " descriptors");
  }
  device.Close();
  ReleaseAllocations(mark);
}

}  // namespace postern::probe
