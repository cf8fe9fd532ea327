#include "devices/siov/cdev/cdev_backend.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/siov/cdev/cdev_rig.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::HaltResult;
using siov::SubmitResult;
using std::chrono::milliseconds;

CdevOptions Hasty() {
  return {.look_after = milliseconds(1)};
}

// Answers of halting calls.
struct Answers {
  siov::Done Next() {
    return [this](HaltResult result) { (result == HaltResult::kDone ? done : lost).fetch_add(1); };
  }
  std::atomic<int> done{0}, lost{0};
};

void Fill(CdevRig& rig, std::uint32_t places) {
  testing::Store(rig.memory.Snapshot(), kRigFrom, testing::Pattern(std::size_t{places} * kRigSize));
}

IdxdQueueInfo Queue(std::uint32_t size, bool shared) {
  IdxdQueueInfo info = FakeIdxdQueue::DefaultInfo();
  info.size = size;
  info.shared = shared;
  return info;
}

}  // namespace

TEST_CASE("cdev: a guest's descriptors are done by the host's queue, and it is told") {
  for (const bool shared : {false, true}) {
    CdevRig rig(Queue(16, shared), {}, true);
    CHECK(rig.backend->Describe() ==
          (shared ? "cdev: /dev/dsa/wq0.0 (shared)" : "cdev: /dev/dsa/wq0.0 (dedicated)"));
    CHECK(rig.Submit(Move(0)) == SubmitResult::kDisabled);
    REQUIRE(rig.Enable() == "");
    Fill(rig, 16);
    for (std::uint32_t i = 0; i < 16; ++i) {
      while (rig.Submit(Move(i)) != SubmitResult::kAccepted) CHECK(rig.Count("losses") == 0);
    }
    CHECK(WaitFor([&] { return rig.events.signals.load() == 16; }));
    for (std::uint32_t i = 0; i < 16; ++i) CHECK(rig.Status(i) == 1);
    CHECK(testing::Load(rig.memory.Snapshot(), kRigTo, std::size_t{16} * kRigSize) ==
          testing::Pattern(std::size_t{16} * kRigSize));
    CHECK(testing::IsDirty(rig.memory.Snapshot(), kRigTo));
    CHECK_FALSE(testing::IsDirty(rig.memory.Snapshot(), kRigTo + std::size_t{16} * kRigSize));
    CHECK(rig.events.last_handle.load() == 1);
    CHECK(WaitFor([&] { return rig.backend->Occupancy(0) == 0; }));
    CHECK(rig.Count("queue0_submitted") == 16);
    CHECK(rig.Count("queue0_completed") == 16);
    CHECK(rig.Count("queue0_status_01") == 16);
    CHECK(rig.Count("queue0_bytes") == std::size_t{16} * kRigSize);
    CHECK(rig.Count("queue0_refused_disabled") == 1);
    CHECK(rig.events.errors.load() == 0);
    CHECK(rig.queue->refused() == 0);
  }
}

TEST_CASE("cdev: caps are the queue's, without what cannot be rewritten") {
  IdxdQueueInfo info = Queue(8, false);
  info.max_transfer = (1 << 20) + 1;
  const CdevRig rig(info);
  const siov::BackendCaps& caps = rig.backend->caps();
  CHECK(caps.queues == 1);
  CHECK(caps.entries == 8);
  CHECK(caps.max_batch == 0);
  CHECK(caps.max_transfer == 1 << 20);
  CHECK(caps.operations == kRewritable);
  CHECK_FALSE((caps.direct || caps.polled));
  for (const siov::PortalMode mode : {siov::PortalMode::kDirect, siov::PortalMode::kPolled})
    CHECK(rig.backend->OpenPortal(0, 0, mode).error().code == Errc::kUnsupported);
  // Batches, DIF, and nothing else.
  info.operations = {0x3c0002, 0, 0, 0};
  memory::MemoryMap memory(SharedMemory({{0, kRigMemory}}));
  auto queue = std::make_unique<FakeIdxdQueue>(memory.Snapshot(), info);
  CHECK(CdevBackend::Create({}, memory, std::move(queue)).error().code == Errc::kUnsupported);
}

TEST_CASE("cdev: what must not leave is answered here") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  struct Case {
    RigDescriptor descriptor;
    std::uint8_t status;
    std::uint64_t fault = 0;
  };
  constexpr std::uint64_t kMax = ~std::uint64_t{0};
  const std::vector<Case> cases = {
      {{.source = kRigMemory}, 0x03, kRigMemory},
      {{.source = kRigMemory - 1}, 0x03, kRigMemory - 1},
      {{.source = kMax}, 0x03, kMax},
      {{.source = kMax - kRigSize + 1}, 0x03, kMax - kRigSize + 1},
      {{.destination = kRigMemory}, 0x83, kRigMemory},
      {{.size = 0xffffffff}, 0x03, kRigFrom},
      {{.size = 0}, 0x13},
      {{.opcode = Opcode::kBatch}, 0x10},
      {{.opcode = Opcode::kDrain}, 0x10},
      {{.opcode = Opcode::kDifCheck}, 0x10},
      {{.opcode = static_cast<Opcode>(0xff)}, 0x10},
  };
  std::uint64_t signals = 0;
  for (const Case& c : cases) {
    CAPTURE(static_cast<unsigned>(c.descriptor.opcode));
    testing::Store(rig.memory.Snapshot(), kRigRecords, std::vector<std::byte>(kRecordSize));
    REQUIRE(rig.Submit(Make(c.descriptor)) == SubmitResult::kAccepted);
    ++signals;
    CHECK(WaitFor([&] { return rig.events.signals.load() == signals; }));
    CHECK(rig.Record().status == c.status);
    CHECK(rig.Record().fault_address.get() == c.fault);
  }
  CHECK(rig.queue->written().empty());
  CHECK(rig.Count("queue0_refused_descriptors") == cases.size());
  CHECK(rig.events.errors.load() == 0);
}

TEST_CASE("cdev: the queue's limits are kept, although the host's allows more") {
  CdevRig rig;
  REQUIRE(rig.backend->Start({.groups = {{.queues = 1, .engines = 1}}}));
  siov::QueueConfig config = rig.Config();
  config.max_transfer = kRigSize;
  config.operations = {1U << 3, 0, 0, 0};
  REQUIRE(rig.backend->Enable(0, config));
  REQUIRE(rig.Submit(Make({.size = kRigSize + 1})) == SubmitResult::kAccepted);
  REQUIRE(rig.Submit(Make({.opcode = Opcode::kFill, .place = 1})) == SubmitResult::kAccepted);
  REQUIRE(rig.Submit(Make({.place = 2})) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 3; }));
  CHECK(rig.Status(0) == 0x13);
  CHECK(rig.Status(1) == 0x10);
  CHECK(rig.Status(2) == 0x01);
}

TEST_CASE("cdev: without a record that can be written an error is the device's") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  const auto error = [&](const RigDescriptor& descriptor) {
    const std::uint64_t before = rig.events.errors.load();
    REQUIRE(rig.Submit(Make(descriptor)) == SubmitResult::kAccepted);
    CHECK(WaitFor([&] { return rig.events.errors.load() == before + 1; }));
    return rig.events.last_error.load() >> 8 & 0xff;
  };
  CHECK(error({.record = kRigRecords + 16}) == 0x1b);
  CHECK(error({.record = kRigMemory}) == 0x1a);
  CHECK(error({.record = ~std::uint64_t{31}}) == 0x1a);
  CHECK(error({.flags = 0, .source = kRigMemory}) == 0x03);
  CHECK(error({.handle = 100}) == 0x19);
  CHECK(rig.Status(0) == 0x19);
  CHECK(rig.events.signals.load() == 0);
  // Of the host's making.
  CompletionRecord record;
  record.status = 0x16;
  rig.queue->Script(record);
  CHECK(error({.flags = 0, .handle = 0}) == 0x16);
}

TEST_CASE("cdev: a record on top of its own data is written after the data") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  Fill(rig, 1);
  REQUIRE(rig.Submit(Make({.record = kRigTo})) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 1; }));
  CHECK(rig.Record(kRigTo).status == 1);
  const std::vector<std::byte> all = testing::Pattern(kRigSize);
  CHECK(testing::Load(rig.memory.Snapshot(), kRigTo + kRecordSize, kRigSize - kRecordSize) ==
        std::vector<std::byte>(all.begin() + kRecordSize, all.end()));
}

TEST_CASE("cdev: a fault the host reports has the guest's address, or none") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  const std::uint64_t host = rig.memory.Snapshot()->regions()[0]->host_address();
  CompletionRecord record;
  record.status = 0x83;
  record.bytes_completed = le32(0x800);
  record.fault_address = le64(host + kRigTo);
  rig.queue->Script(record);
  record.fault_address = le64(host + kRigTo - 0x1000);
  rig.queue->Script(record);
  REQUIRE(rig.Submit(Make({})) == SubmitResult::kAccepted);
  REQUIRE(rig.Submit(Make({.record = kRigRecords + kRecordSize})) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 2; }));
  CHECK(rig.Record().status == 0x83);
  CHECK(rig.Record().bytes_completed.get() == 0x800);
  CHECK(rig.Record().fault_address.get() == kRigTo);
  CHECK(rig.Record(kRigRecords + kRecordSize).fault_address.get() == 0);
}

TEST_CASE("cdev: no more is under way than the host's queue holds, and none is dropped") {
  for (const bool shared : {false, true}) {
    CdevRig rig(Queue(4, shared));
    CHECK(rig.Enable(5) == "queue size");
    REQUIRE(rig.backend->Enable(0, rig.Config(4)));
    rig.queue->Hold(true);
    for (std::uint32_t i = 0; i < 4; ++i) CHECK(rig.Submit(Move(i)) == SubmitResult::kAccepted);
    CHECK(rig.Submit(Move(4)) == SubmitResult::kFull);
    CHECK(WaitFor([&] { return rig.queue->held() == 4; }));
    CHECK(rig.backend->Occupancy(0) == 4);
    rig.queue->Hold(false);
    CHECK(rig.queue->Run(4) == 4);
    CHECK(WaitFor([&] { return rig.events.signals.load() == 4; }));
    CHECK(WaitFor([&] { return rig.backend->Occupancy(0) == 0; }));
    CHECK(rig.Count("queue0_refused_full") == 1);
    CHECK(rig.queue->dropped() == 0);
    CHECK(rig.queue->most_held() <= 4);
  }
}

TEST_CASE("cdev: a full shared queue is asked again, in order") {
  CdevRig rig(Queue(16, true));
  REQUIRE(rig.Enable() == "");
  rig.queue->Fail(EAGAIN, 300);
  for (std::uint32_t i = 0; i < 3; ++i) CHECK(rig.Submit(Move(i)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 3; }));
  CHECK(rig.Count("queue0_host_full") == 300);
  const std::vector<siov::Descriptor> written = rig.queue->written();
  REQUIRE(written.size() == 3);
  const std::uint64_t host = rig.memory.Snapshot()->regions()[0]->host_address();
  for (std::uint32_t i = 0; i < 3; ++i) {
    CHECK(std::bit_cast<WorkDescriptor>(written[i]).source.get() ==
          host + kRigFrom + std::uint64_t{i} * kRigSize);
  }
}

TEST_CASE("cdev: what the host's driver refuses is refused to the guest") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  rig.queue->Fail(EINVAL, 1);
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(rig.Submit(Move(1)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 2; }));
  CHECK(rig.Status(0) == 0x10);
  CHECK(rig.Status(1) == 1);
  CHECK(rig.Count("queue0_host_refused") == 1);
}

TEST_CASE("cdev: a queue that refuses for good is lost, and everything is answered") {
  for (const int error : {ENODEV, EIO, EPERM, EBADF}) {
    CAPTURE(error);
    CdevRig rig;
    REQUIRE(rig.Enable() == "");
    rig.queue->Hold(true);
    CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
    CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
    Answers answers;
    rig.backend->Drain(1, answers.Next());
    rig.queue->Fail(error, 1);
    CHECK(rig.Submit(Move(1)) == SubmitResult::kAccepted);
    CHECK(WaitFor([&] { return rig.events.lost.load() == 1; }));
    CHECK(WaitFor([&] { return answers.lost.load() == 1; }));
    CHECK(rig.queue->closed());
    CHECK(rig.Submit(Move(2)) == SubmitResult::kDisabled);
    rig.backend->Disable(1, answers.Next());
    CHECK(answers.lost.load() == 2);
    rig.backend->Reset();
    CHECK(rig.Enable() == "enabling a queue that the host has lost");
    CHECK(rig.events.signals.load() == 0);
    CHECK(answers.done.load() == 0);
    CHECK(rig.Count("losses") == 1);
  }
}

TEST_CASE("cdev: a queue that vanishes under its work is noticed, without a write") {
  CdevRig rig(FakeIdxdQueue::DefaultInfo(), Hasty());
  REQUIRE(rig.Enable() == "");
  rig.queue->Hold(true);
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  rig.queue->Vanish();
  CHECK(WaitFor([&] { return rig.events.lost.load() == 1; }));
  CHECK(WaitFor([&] { return rig.backend->Occupancy(0) == 0; }));
  CHECK(rig.Status(0) == 0);
  // Who comes later hears it, too.
  FakeBackendEvents late;
  rig.backend->Attach(late);
  CHECK(late.lost.load() == 1);
  rig.backend->Attach(rig.events);
}

TEST_CASE("cdev: drain waits for what was submitted before, and for no more") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  Answers answers;
  rig.backend->Drain(1, answers.Next());
  rig.backend->Drain(0, answers.Next());
  rig.backend->Drain(~siov::QueueSet{1}, answers.Next());
  CHECK(answers.done.load() == 3);
  rig.queue->Hold(true);
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  rig.backend->Drain(1, answers.Next());
  CHECK(rig.Submit(Move(1)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 2; }));
  CHECK(answers.done.load() == 3);
  CHECK(rig.queue->Run(1) == 1);
  CHECK(WaitFor([&] { return answers.done.load() == 4; }));
  CHECK(rig.events.signals.load() == 1);
  CHECK(rig.backend->Occupancy(0) == 1);
  CHECK(rig.queue->Run(1) == 1);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 2; }));
}

TEST_CASE("cdev: disable takes nothing any more, abort discards what waits") {
  CdevRig rig(Queue(8, true));
  REQUIRE(rig.Enable(8) == "");
  rig.queue->Hold(true);
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  rig.queue->Fail(EAGAIN, ~0U);
  CHECK(rig.Submit(Move(1)) == SubmitResult::kAccepted);
  CHECK(rig.Submit(Move(2)) == SubmitResult::kAccepted);
  Answers answers;
  rig.backend->Abort(1, answers.Next());
  CHECK(answers.done.load() == 0);
  CHECK(rig.queue->Run(1) == 1);
  CHECK(WaitFor([&] { return answers.done.load() == 1; }));
  rig.queue->Fail(0, 0);
  CHECK(rig.Status(0) == 1);
  CHECK(rig.Status(1) == 0);
  CHECK(rig.Status(2) == 0);
  CHECK(rig.Count("queue0_aborted") == 2);
  // Still enabled.
  CHECK(rig.Submit(Move(3)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  rig.backend->Disable(1, answers.Next());
  CHECK(rig.Submit(Move(4)) == SubmitResult::kDisabled);
  CHECK(rig.queue->Run(1) == 1);
  CHECK(WaitFor([&] { return answers.done.load() == 2; }));
  CHECK(rig.Status(3) == 1);
  CHECK(rig.events.signals.load() == 2);
  REQUIRE(rig.backend->Enable(0, rig.Config(8)));
  CHECK(rig.backend->Enable(0, rig.Config(8)).error().code == Errc::kBadState);
}

TEST_CASE("cdev: reset waits for the host, or gives its queue up") {
  {
    CdevRig rig;
    REQUIRE(rig.Enable() == "");
    for (std::uint32_t i = 0; i < 8; ++i) CHECK(rig.Submit(Move(i)) == SubmitResult::kAccepted);
    rig.backend->Reset();
    CHECK(rig.backend->Occupancy(0) == 0);
    CHECK(rig.Submit(Move(0)) == SubmitResult::kDisabled);
    REQUIRE(rig.Enable() == "");
    CHECK(rig.Count("queue_resets") == 1);
    CHECK_FALSE(rig.queue->closed());
  }
  CdevRig rig(FakeIdxdQueue::DefaultInfo(), {.patience = milliseconds(2)});
  REQUIRE(rig.Enable() == "");
  rig.queue->Hold(true);
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  Answers answers;
  rig.backend->Drain(1, answers.Next());
  rig.backend->Reset();
  CHECK(rig.queue->closed());
  CHECK(rig.events.lost.load() == 1);
  CHECK(answers.done.load() + answers.lost.load() == 0);
  CHECK(rig.Status(0) == 0);
}

TEST_CASE("cdev: what waits is saved, and done elsewhere") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  CHECK(rig.backend->Save().error().code == Errc::kBadState);
  rig.backend->Quiesce();
  for (std::uint32_t i = 0; i < 3; ++i) CHECK(rig.Submit(Move(i)) == SubmitResult::kAccepted);
  CHECK(rig.queue->written().empty());
  siov::BackendState state = rig.backend->Save().value();
  REQUIRE(state.queues.size() == 1);
  CHECK(state.queues[0].waiting.size() == 3);
  rig.backend->Resume();
  CHECK(WaitFor([&] { return rig.events.signals.load() == 3; }));

  CdevRig other;
  CHECK(other.backend->Restore(state).error().code == Errc::kBadState);
  other.backend->Quiesce();
  siov::BackendState bad = state;
  bad.version = 2;
  CHECK(other.backend->Restore(bad).error().code == Errc::kBadFormat);
  bad = state;
  bad.queues[0].waiting.resize(17);
  CHECK(other.backend->Restore(bad).error().code == Errc::kBadFormat);
  bad = state;
  bad.queues[0].config.max_batch = 2;
  CHECK(other.backend->Restore(bad).error().code == Errc::kBadFormat);
  bad = state;
  bad.started = false;
  CHECK(other.backend->Restore(bad).error().code == Errc::kBadFormat);
  bad = state;
  bad.device.groups[0].queues = 2;
  CHECK(other.backend->Restore(bad).error().code == Errc::kBadFormat);
  REQUIRE(other.backend->Restore(state));
  CHECK(other.backend->Occupancy(0) == 3);
  other.backend->Resume();
  CHECK(WaitFor([&] { return other.events.signals.load() == 3; }));
  for (std::uint32_t i = 0; i < 3; ++i) CHECK(other.Status(i) == 1);
}

TEST_CASE("cdev: memory that is unplugged stays while it is named") {
  CdevRig rig;
  REQUIRE(rig.Enable() == "");
  rig.queue->Hold(true);
  const memory::GuestMemoryPtr before = rig.memory.Snapshot();
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.queue->held() == 1; }));
  const std::weak_ptr<const memory::Region> region = before->regions()[0];
  REQUIRE(rig.memory.Remove(memory::Gpa(0)));
  CHECK_FALSE(region.expired());
  CHECK(rig.queue->Run(1) == 1);
  CHECK(WaitFor([&] { return rig.events.signals.load() == 1; }));
  CHECK(std::to_integer<int>(testing::Load(before, kRigRecords, 1)[0]) == 1);
  // Now there is none, not even for a record.
  CHECK(rig.Submit(Move(0)) == SubmitResult::kAccepted);
  CHECK(WaitFor([&] { return rig.events.errors.load() == 1; }));
  CHECK((rig.events.last_error.load() >> 8 & 0xff) == 0x1a);
}

TEST_CASE("cdev: configurations beyond the queue are refused") {
  CdevRig rig;
  CHECK(rig.backend->Enable(0, rig.Config()).error().code == Errc::kBadState);
  for (const siov::GroupConfig& group :
       {siov::GroupConfig{.queues = 2, .engines = 1}, siov::GroupConfig{.queues = 1, .engines = 0},
        siov::GroupConfig{.queues = 1, .engines = 2}}) {
    CHECK(rig.backend->Start({.groups = {group}}).error().code == Errc::kInvalidArgument);
  }
  CHECK_FALSE(rig.backend->Start({.groups = {{.queues = 1, .engines = 1}, {1, 1}}}));
  REQUIRE(rig.Enable() == "");
  CHECK(rig.backend->Start({}).error().code == Errc::kBadState);
  CHECK(rig.backend->Enable(1, rig.Config()).error().code == Errc::kInvalidArgument);
  CHECK(rig.backend->Submit(1, Move(0)) == SubmitResult::kDisabled);
  CHECK(rig.backend->Occupancy(1) == 0);
  CHECK(rig.backend->OpenHandle(1).value() == 1);
  CHECK_FALSE(rig.backend->OpenHandle(2));
}

}  // namespace postern::dsa
