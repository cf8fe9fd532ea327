// Completion: records, interrupts, error records, faults, batches, aborts.

#include "devices/siov/engine/executor.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "devices/siov/engine/executor_rig.h"
#include "src/base/thread.h"

namespace postern::dsa {
namespace {

using postern::testing::Pattern;

TEST_CASE("completion: a record is written when asked for, and always for an error") {
  ExecutorRig rig;
  const Ran asked = rig.Run(Describe(Opcode::kNoop));
  CHECK(asked.record.status == 1);
  CHECK(asked.bytes_completed() == 0);
  const Ran quiet = rig.Run(Describe(Opcode::kNoop).Flags(Flag::kRecordValid));
  CHECK(quiet.record.status == 0);
  CHECK(quiet.executed.status == 1);
  const Ran error = rig.Run(Describe(Opcode::kNoop).Flags(Flag::kRecordValid | 1 << 6));
  CHECK(error.record.status == 0x11);
  // A batch with errors counts as a success here: DSA 8.1.3.
  std::array<siov::Descriptor, 2> list{Describe(Opcode::kNoop).Silent().bytes(),
                                       Describe(Opcode::kNoop, 1 << 6).Record(0x200).bytes()};
  for (std::size_t i = 0; i < 2; ++i) rig.Store(0x4000 + 64 * i, list[i]);
  const Ran batch =
      rig.Run(Describe(Opcode::kBatch).From(0x4000).Size(2).Flags(Flag::kRecordValid));
  CHECK(batch.executed.status == 5);
  CHECK(batch.record.status == 0);
  CHECK(batch.errors.empty());
}

TEST_CASE("completion: all 32 bytes of the record are written and nothing beside them") {
  ExecutorRig rig;
  rig.Store(0x1e0, std::vector<std::byte>(0x60, std::byte{0xee}));
  static_cast<void>(rig.Run(Describe(Opcode::kNoop).Record(0x200).bytes(), 0x300));
  std::vector<std::byte> expected(0x60, std::byte{0xee});
  for (std::size_t i = 0; i < 32; ++i) expected[0x20 + i] = i == 0 ? std::byte{1} : std::byte{0};
  CHECK(rig.Load(0x1e0, 0x60) == expected);
}

TEST_CASE("completion: without a record's address errors go to the error register") {
  ExecutorRig rig;
  rig.limits.privileged = true;
  const Ran good = rig.Run(Describe(Opcode::kNoop).Silent());
  CHECK(good.errors.empty());
  const Ran flags =
      rig.Run(Describe(Opcode::kMove, 1 << 6).From(0x1000).To(0x2000).Size(8).Silent());
  REQUIRE(flags.errors.size() == 1);
  CHECK(flags.errors[0].queue == 2);
  // Valid, descriptor valid, queue valid, privileged, information valid; 0x11, queue 2, opcode 3.
  CHECK(flags.errors[0].words[0] == 0x3'0002'11cd);
  CHECK(flags.errors[0].words[1] == std::uint64_t{1 << 6} << 32);
  CHECK(flags.errors[0].words[2] == 0);
  rig.limits.privileged = false;
  const Ran read =
      rig.Run(Describe(Opcode::kMove).From(ExecutorRig::kHole).To(0x2000).Size(8).Silent());
  REQUIRE(read.errors.size() == 1);
  CHECK(read.errors[0].words[0] == 0x3'0002'030d);
  CHECK(read.errors[0].words[2] == ExecutorRig::kHole);
  const Ran write =
      rig.Run(Describe(Opcode::kMove).From(0x2000).To(ExecutorRig::kHole).Size(8).Silent());
  REQUIRE(write.errors.size() == 1);
  CHECK(write.errors[0].words[0] == 0x3'0002'032d);
  // Statuses 1, 2 and 5 are no errors.
  std::array<siov::Descriptor, 2> list{Describe(Opcode::kNoop).Silent().bytes(),
                                       Describe(Opcode::kNoop, 1 << 6).Record(0x200).bytes()};
  for (std::size_t i = 0; i < 2; ++i) rig.Store(0x4000 + 64 * i, list[i]);
  CHECK(rig.Run(Describe(Opcode::kBatch).From(0x4000).Size(2).Silent()).errors.empty());
}

TEST_CASE("completion: a descriptor whose record cannot be written is discarded") {
  for (const auto& row : GoodDescriptors()) {
    const Opcode opcode = row.first;
    const Describe& good = row.second;
    ExecutorRig rig;
    CAPTURE(static_cast<int>(opcode));
    const std::vector<std::byte> before = rig.Load(0x1000, 0xf000);
    Describe descriptor = good;
    for (const std::uint64_t address : {0x101U, 0x110U, 0x11fU}) {
      const Ran ran = rig.Run(descriptor.Record(address));
      CHECK(ran.executed.status == 0x1b);
      REQUIRE(ran.errors.size() == 1);
      CHECK((ran.errors[0].words[0] >> 8 & 0xff) == 0x1b);
      CHECK((ran.errors[0].words[0] >> 32) == static_cast<std::uint64_t>(opcode));
    }
    for (const std::uint64_t address :
         {ExecutorRig::kHole, ExecutorRig::kEnd, ~std::uint64_t{31}}) {
      const Ran ran = rig.Run(descriptor.Record(address));
      CHECK(ran.executed.status == 0x1a);
      REQUIRE(ran.errors.size() == 1);
      CHECK((ran.errors[0].words[0] & 0xffff) == 0x1a2d);
      CHECK(ran.errors[0].words[2] == address);
    }
    CHECK(rig.Load(0x1000, 0xf000) == before);
    CHECK(rig.pair().environment().drains == 0);
  }
  // Nor is anyone told by an interrupt.
  ExecutorRig rig;
  const Ran ran = rig.Run(Describe(Opcode::kNoop, Flag::kRequestInterrupt).Handle(5).Record(0x101));
  CHECK(ran.signals.empty());
}

TEST_CASE("completion: a record on top of the data is written last") {
  ExecutorRig rig;
  rig.Store(0x1000, Pattern(0x100));
  const Ran target = rig.Run(
      Describe(Opcode::kMove).From(0x1000).To(0x2000).Size(0x100).Record(0x2040).bytes(), 0x2040);
  CHECK(target.record.status == 1);
  const Ran source = rig.Run(
      Describe(Opcode::kMove).From(0x1000).To(0x3000).Size(0x100).Record(0x1020).bytes(), 0x1020);
  CHECK(source.record.status == 1);
  // On the batch's own list.
  rig.Store(0x4000, Describe(Opcode::kFill).From(7).To(0x5000).Size(8).Record(0x4060).bytes());
  rig.Store(0x4040, Describe(Opcode::kNoop).Record(0x200).bytes());
  // The second descriptor's bytes 32..63 are gone when it is read: a size where there may be none.
  const Ran batch = rig.Run(Describe(Opcode::kBatch).From(0x4000).Size(2));
  CHECK(batch.record.status == 5);
  CHECK(rig.RecordAt(0x200).status == 0x12);
}

TEST_CASE("fault: a move says how far it came, where it stopped and what it did there") {
  ExecutorRig rig;
  rig.Store(ExecutorRig::kHole - 0x800, Pattern(0x800));
  const Ran read =
      rig.Run(Describe(Opcode::kMove).From(ExecutorRig::kHole - 0x777).To(0x4001).Size(0x1000));
  CHECK(read.record.status == 0x03);
  CHECK(read.record.result == 0);
  CHECK(read.bytes_completed() == 0x777);
  CHECK(read.fault_address() == ExecutorRig::kHole);
  CHECK(rig.Load(0x4001, 0x777) == rig.Load(ExecutorRig::kHole - 0x777, 0x777));
  CHECK(rig.Load(0x4001 + 0x777, 1)[0] == std::byte{0});
  const Ran write =
      rig.Run(Describe(Opcode::kMove).From(0x4001).To(ExecutorRig::kHole - 1).Size(0x1000));
  CHECK(write.record.status == 0x83);
  CHECK(write.bytes_completed() == 1);
  CHECK(write.fault_address() == ExecutorRig::kHole);
  const Ran at_once =
      rig.Run(Describe(Opcode::kMove).From(ExecutorRig::kHole + 5).To(ExecutorRig::kHole).Size(1));
  CHECK(at_once.record.status == 0x03);
  CHECK(at_once.bytes_completed() == 0);
  CHECK(at_once.fault_address() == ExecutorRig::kHole + 5);
  // Two regions that touch are one buffer.
  CHECK(rig.Status(Describe(Opcode::kMove).From(ExecutorRig::kSeam - 100).To(0x4000).Size(200)) ==
        1);
}

TEST_CASE("fault: a move that goes downwards counts from the end") {
  ExecutorRig rig;
  rig.Store(ExecutorRig::kAfterHole, Pattern(0x1000));
  // The destination begins 16 bytes into the source: it goes down, and meets the hole at the end.
  const Ran ran = rig.Run(Describe(Opcode::kMove)
                              .From(ExecutorRig::kAfterHole - 16)
                              .To(ExecutorRig::kAfterHole)
                              .Size(0x100));
  CHECK(ran.record.status == 0x03);
  CHECK(ran.record.result == 1);
  CHECK(ran.bytes_completed() == 0x100 - 16);
  CHECK(ran.fault_address() == ExecutorRig::kAfterHole - 1);
}

TEST_CASE("fault: addresses at the end of the address space and beyond") {
  constexpr std::uint64_t kTop = 0 - 0x1000ULL;
  ExecutorPair pair({{0, 0x2000}, {kTop, 0x1000}}, {.operations = kAllOperations});
  const QueueLimits limits{.max_transfer = 0x8000, .max_batch = 8, .operations = kAllOperations};
  pair.Store(kTop, Pattern(0x1000));
  const auto run = [&](const Describe& descriptor) {
    CHECK(pair.Run(limits, descriptor.bytes()) == "");
    return pair.last().status;
  };
  CHECK(run(Describe(Opcode::kMove).From(kTop).To(0x1000).Size(0x1000)) == 1);
  // What comes after the last byte is not the first one.
  CHECK(run(Describe(Opcode::kMove).From(kTop + 0xff0).To(0x1000).Size(0x11)) == 3);
  CHECK(run(Describe(Opcode::kMove).From(0x1000).To(~0ULL).Size(2)) == 3);
  CHECK(run(Describe(Opcode::kFill).To(~0ULL).Size(1)) == 1);
  CHECK(run(Describe(Opcode::kFill).To(~0ULL).Size(0x8000)) == 3);
  CHECK(run(Describe(Opcode::kBatch).From(0 - 64ULL).Size(2)) == 6);
  CHECK(run(Describe(Opcode::kCrc, Flag::kReadSeed)
                .From(kTop)
                .Size(4)
                .With(CrcFields{.seed_address = le64(0 - 4ULL)})) == 1);
  // Ranges that wrap overlap where they would go on.
  CHECK(run(Describe(Opcode::kCopyCrc).From(0 - 8ULL).To(4).Size(64)) == 0x16);
}

class BatchRig {
 public:
  void Add(const Describe& descriptor) { list_.push_back(descriptor.bytes()); }
  Ran Run(std::uint64_t at = 0x4000) {
    for (std::size_t i = 0; i < list_.size(); ++i) rig.Store(at + 64 * i, list_[i]);
    return rig.Run(
        Describe(Opcode::kBatch).From(at).Size(static_cast<std::uint32_t>(list_.size())));
  }
  ExecutorRig rig;

 private:
  std::vector<siov::Descriptor> list_;
};

TEST_CASE("batch: its descriptors run in order, each with its own record and interrupt") {
  BatchRig batch;
  batch.Add(Describe(Opcode::kFill, Flag::kRequestInterrupt)
                .From(0x1111111111111111)
                .To(0x5000)
                .Size(16)
                .Handle(5)
                .Record(0x200));
  batch.Add(Describe(Opcode::kMove, Flag::kFence).From(0x5000).To(0x6000).Size(16).Record(0x220));
  batch.Add(Describe(Opcode::kNoop).Silent());
  const Ran ran = batch.Run();
  CHECK(ran.record.status == 1);
  CHECK(ran.bytes_completed() == 3);
  CHECK(ran.executed.descriptors == 4);
  CHECK(ran.executed.bytes == 32);
  CHECK(ran.signals == std::vector<std::uint32_t>{5});
  CHECK(batch.rig.RecordAt(0x200).status == 1);
  CHECK(batch.rig.RecordAt(0x220).status == 1);
  CHECK(batch.rig.Load(0x6000, 16) == std::vector<std::byte>(16, std::byte{0x11}));
}

TEST_CASE("batch: what fails makes it 05, and a fence after it ends it") {
  for (const bool fence : {false, true}) {
    BatchRig batch;
    batch.Add(Describe(Opcode::kNoop, 1 << 6).Record(0x200));
    batch.Add(Describe(Opcode::kFill, fence ? Flag::kFence : 0)
                  .From(0x22)
                  .To(0x5000)
                  .Size(1)
                  .Record(0x220));
    batch.Add(Describe(Opcode::kNoop).Record(0x240));
    const Ran ran = batch.Run();
    CHECK(ran.record.status == 5);
    CHECK(ran.bytes_completed() == (fence ? 1 : 3));
    CHECK(ran.executed.descriptors == (fence ? 2 : 4));
    CHECK(batch.rig.RecordAt(0x220).status == (fence ? 0 : 1));
    CHECK(batch.rig.RecordAt(0x240).status == (fence ? 0 : 1));
    CHECK(batch.rig.Load(0x5000, 1)[0] == (fence ? std::byte{0} : std::byte{0x22}));
  }
  // A false predicate is not success either: that is how a batch goes on or not.
  BatchRig batch;
  batch.Add(Describe(Opcode::kCompare, Flag::kCheckResult)
                .From(0x5000)
                .To(0x6000)
                .Size(8)
                .Record(0x200)
                .With(CompareFields{.expected = 1}));
  batch.Add(Describe(Opcode::kNoop, Flag::kFence).Record(0x220));
  const Ran ran = batch.Run();
  CHECK(batch.rig.RecordAt(0x200).status == 2);
  CHECK(ran.record.status == 5);
  CHECK(ran.bytes_completed() == 1);
}

TEST_CASE("batch: a discarded descriptor fails it and is told of with its place") {
  BatchRig batch;
  batch.Add(Describe(Opcode::kNoop).Silent());
  batch.Add(Describe(Opcode::kNoop).Record(ExecutorRig::kHole));
  const Ran ran = batch.Run();
  CHECK(ran.record.status == 5);
  CHECK(ran.bytes_completed() == 2);
  REQUIRE(ran.errors.size() == 1);
  CHECK((ran.errors[0].words[0] & 1 << 4) != 0);
  CHECK(ran.errors[0].words[1] == 1);
}

TEST_CASE("batch: batches and drains in it are unknown operations, so it cannot nest or loop") {
  BatchRig batch;
  batch.Add(Describe(Opcode::kBatch).From(0x4000).Size(2).Record(0x200));
  batch.Add(Describe(Opcode::kDrain).Record(0x220));
  const Ran ran = batch.Run();
  CHECK(ran.record.status == 5);
  CHECK(ran.bytes_completed() == 2);
  CHECK(batch.rig.RecordAt(0x200).status == 0x10);
  CHECK(batch.rig.RecordAt(0x220).status == 0x10);
  CHECK(batch.rig.pair().environment().drains == 0);
}

TEST_CASE("batch: number of descriptors and alignment of the list") {
  ExecutorRig rig;
  const auto status = [&rig](std::uint32_t count, std::uint64_t at) {
    return rig.Status(Describe(Opcode::kBatch).From(at).Size(count));
  };
  CHECK(status(0, 0x4000) == 0x14);
  CHECK(status(1, 0x4000) == 0x14);
  CHECK(status(2, 0x4000) == 1);
  CHECK(status(8, 0x4000) == 1);
  CHECK(status(9, 0x4000) == 0x14);
  CHECK(status(0xffffffff, 0x4000) == 0x14);
  CHECK(status(2, 0x4020) == 0x18);
  CHECK(status(2, 0x4001) == 0x18);
  rig.limits.max_batch = 0;
  CHECK(status(2, 0x4000) == 0x14);
}

TEST_CASE("batch: a list that leaves RAM ends it with 06 and the number done") {
  ExecutorRig rig;
  const Ran ran = rig.Run(Describe(Opcode::kBatch).From(ExecutorRig::kHole - 128).Size(3));
  CHECK(ran.record.status == 0x06);
  CHECK(ran.bytes_completed() == 2);
  CHECK(ran.fault_address() == ExecutorRig::kHole);
  CHECK(ran.executed.descriptors == 3);
  const Ran first = rig.Run(Describe(Opcode::kBatch).From(ExecutorRig::kHole).Size(3).Silent());
  REQUIRE(first.errors.size() == 1);
  CHECK((first.errors[0].words[0] >> 8 & 0xff) == 0x06);
  CHECK(first.errors[0].words[2] == ExecutorRig::kHole);
}

TEST_CASE("drain: it waits for what came before and then completes") {
  ExecutorRig rig;
  const Ran ran = rig.Run(Describe(Opcode::kDrain, Flag::kRequestInterrupt | 3 << 18).Handle(5));
  CHECK(ran.record.status == 1);
  CHECK(ran.signals == std::vector<std::uint32_t>{5});
  CHECK(rig.pair().environment().drains == 1);
  // Readback is not advertised.
  CHECK(rig.Status(Describe(Opcode::kDrain, 1 << 16)) == 0x11);
  CHECK(rig.Status(Describe(Opcode::kDrain).From(0x1000)) == 0x12);
}

// An executor alone, with as much memory as long transfers need.
class LongRig {
 public:
  static constexpr std::uint64_t kSize = 48 << 20;
  LongRig() : memory(postern::testing::MakeMemory(kSize)), map(memory) {}
  Executed Run(const Describe& descriptor) { return executor.Execute(limits, descriptor.bytes()); }

  memory::GuestMemoryPtr memory;
  memory::MemoryMap map;
  RecordingEnvironment environment;
  Executor executor{map, {.operations = kAllOperations}, environment};
  QueueLimits limits{.max_transfer = 1U << 31, .max_batch = 8, .operations = kAllOperations};
};

TEST_CASE("abort: a long transfer ends between two pieces and leaves no record") {
  constexpr std::uint32_t kLong = 5 << 20;
  const std::vector<Describe> all{
      Describe(Opcode::kMove).From(0x1000).To(0x1000000).Size(kLong),
      Describe(Opcode::kMove).From(0x1000).To(0x2000).Size(kLong),
      Describe(Opcode::kFill).To(0x1000).Size(kLong),
      Describe(Opcode::kCompare).From(0x1000).To(0x1000000).Size(kLong),
      Describe(Opcode::kComparePattern).From(0x1000).Size(kLong),
      Describe(Opcode::kDualcast)
          .From(0x1000)
          .To(0x1000000)
          .Size(kLong)
          .With(DualcastFields{.destination2 = le64(0x2000000)}),
      Describe(Opcode::kCrc).From(0x1000).Size(kLong),
      Describe(Opcode::kCopyCrc).From(0x1000).To(0x1000000).Size(kLong),
      Describe(Opcode::kDifInsert).From(0x1000).To(0x1000000).Size(kLong),
      Describe(Opcode::kCacheFlush).To(0x1000).Size(kLong)};
  for (const Describe& descriptor : all) {
    LongRig rig;
    const auto opcode = std::bit_cast<WorkDescriptor>(descriptor.bytes()).opcode();
    CAPTURE(static_cast<int>(opcode));
    rig.environment.abort_after = 1;
    Describe told = descriptor;
    const Executed executed = rig.Run(told);
    CHECK(executed.status == 0);
    // Asked before each whole MiB; of DIF, before the block that would exceed it.
    CHECK(executed.bytes > (2 << 20) - 4096);
    CHECK(executed.bytes <= 2 << 20);
    CHECK(rig.environment.asked == 2);
    CHECK(postern::testing::Load(rig.memory, kRecordAt, 32) == std::vector<std::byte>(32));
    CHECK(rig.environment.errors.empty());
    rig.environment.abort_after = ~std::uint64_t{0};
    CHECK(rig.Run(told).status == 1);
  }
}

TEST_CASE("abort: a batch ends between two descriptors, and so does an aborted drain") {
  LongRig rig;
  for (std::uint64_t i = 0; i < 4; ++i) {
    postern::testing::Store(
        rig.memory, 0x4000 + 64 * i,
        Describe(Opcode::kFill).From(1).To(0x5000 + i).Size(1).Record(0x200).bytes());
  }
  rig.environment.abort_after = 1;
  const Executed executed = rig.Run(Describe(Opcode::kBatch).From(0x4000).Size(4));
  CHECK(executed.status == 0);
  CHECK(executed.descriptors == 3);
  CHECK(postern::testing::Load(rig.memory, 0x5000, 4) ==
        std::vector<std::byte>{std::byte{1}, std::byte{1}, std::byte{0}, std::byte{0}});
  CHECK(postern::testing::Load(rig.memory, kRecordAt, 1)[0] == std::byte{0});
  rig.environment.abort_after = 0;
  rig.environment.asked = 0;
  CHECK(rig.Run(Describe(Opcode::kDrain)).status == 0);
  CHECK(postern::testing::Load(rig.memory, kRecordAt, 1)[0] == std::byte{0});
}

TEST_CASE("executor: long moves are right in pieces, around the caches and onto themselves") {
  LongRig rig;
  constexpr std::uint32_t kLong = (18 << 20) + 77;
  std::vector<std::byte> model = Pattern(LongRig::kSize);
  postern::testing::Store(rig.memory, 0, model);
  struct Row {
    std::uint64_t from;
    std::uint64_t to;
  };
  for (const Row row : {Row{0x1003, 0x1800005}, Row{0x1800000, 0x2000}, Row{0x100007, 0x100000},
                        Row{0x100000, 0x100007}, Row{0x100000, 0x900000}}) {
    CAPTURE(row.from);
    CAPTURE(row.to);
    CHECK(rig.Run(Describe(Opcode::kMove).From(row.from).To(row.to).Size(kLong).Silent()).status ==
          1);
    std::memmove(model.data() + row.to, model.data() + row.from, kLong);
    CHECK(std::memcmp(postern::testing::Load(rig.memory, 0, LongRig::kSize).data(), model.data(),
                      model.size()) == 0);
  }
}

TEST_CASE("executor: it sees memory that comes and goes, and lets go of it when it rests") {
  memory::MemoryMap map(postern::testing::MakeMemory(0x2000));
  RecordingEnvironment environment;
  Executor executor(map, {.operations = kAllOperations}, environment);
  const QueueLimits limits{.max_transfer = 0x8000, .operations = kAllOperations};
  const siov::Descriptor fill = Describe(Opcode::kFill).To(0x10000).Size(8).Silent().bytes();
  CHECK(executor.Execute(limits, fill).status == 3);
  memory::RegionPtr region = memory::Region::Create(memory::Gpa(0x10000), 0x1000, {}).value();
  REQUIRE(map.Add(region));
  CHECK(executor.Execute(limits, fill).status == 1);
  const std::weak_ptr<const memory::Region> plugged = region;
  region.reset();
  REQUIRE(map.Remove(memory::Gpa(0x10000)));
  CHECK_FALSE(plugged.expired());
  executor.Rest();
  CHECK(plugged.expired());
  CHECK(executor.Execute(limits, fill).status == 3);
}

// For ThreadSanitizer: a guest that polls the record sees the data that belongs to it.
TEST_CASE("executor: whoever sees the status sees the data") {
  memory::MemoryMap map(postern::testing::MakeMemory(0x8000));
  const memory::GuestMemoryPtr memory = map.Snapshot();
  RecordingEnvironment environment;
  Executor executor(map, {.operations = kAllOperations}, environment);
  const QueueLimits limits{.max_transfer = 0x8000, .operations = kAllOperations};
  constexpr int kRounds = 200;
  std::atomic<int> round{0};
  Result<Thread> engine = Thread::Start("engine", [&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load() != i) std::this_thread::yield();
      const std::uint64_t pattern = static_cast<std::uint64_t>(i) * 0x0101010101010101;
      executor.Execute(limits,
                       Describe(Opcode::kFill).From(pattern).To(0x1000).Size(0x1000).bytes());
    }
  });
  REQUIRE(engine);
  const memory::GuestView record =
      memory->View(memory::Gpa(kRecordAt), 32, memory::Access::kReadWrite).value();
  for (int i = 1; i <= kRounds; ++i) {
    REQUIRE(record.Fill(0, 32, std::byte{0}));
    round = i;
    while ((record.LoadAcquire16(0) & 0xff) == 0) std::this_thread::yield();
    const std::uint64_t pattern = static_cast<std::uint64_t>(i) * 0x0101010101010101;
    CHECK(memory->Read<le64>(memory::Gpa(0x1000)).value().get() == pattern);
    CHECK(memory->Read<le64>(memory::Gpa(0x1ff8)).value().get() == pattern);
  }
}

}  // namespace
}  // namespace postern::dsa
