// The whole way: a guest's driver, its Vdev, the back end, the host's driver, a device that is a
// Vdev itself, and its engine.

#include "devices/siov/host/vfio_backend.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "devices/siov/host/host_rig.h"
#include "src/base/direct_store.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using siov::PortalMode;
using Command = dsa_regs::Command;

constexpr std::uint64_t kRecords = 0x1000;
constexpr std::uint64_t kFrom = 0x100000;
constexpr std::uint64_t kTo = 0x200000;
constexpr std::uint32_t kSize = 0x1000;
constexpr DsaOptions kOneQueue{.wqs = 1, .wq_size = 16};

siov::Descriptor Move(std::uint32_t place, std::uint32_t handle) {
  WorkDescriptor words{};
  words.flags_and_opcode =
      le32(static_cast<std::uint32_t>(Opcode::kMove) << 24 | Flag::kRecordValid |
           Flag::kRequestRecord | Flag::kRequestInterrupt);
  words.record = le64(kRecords + place * kRecordSize);
  words.source = le64(kFrom + std::uint64_t{place} * kSize);
  words.destination = le64(kTo + std::uint64_t{place} * kSize);
  words.size = le32(kSize);
  words.handle = le16(static_cast<std::uint16_t>(handle));
  siov::Descriptor descriptor;
  std::memcpy(descriptor.data(), &words, sizeof(words));
  return descriptor;
}

std::uint8_t Status(HostRig& rig, std::uint32_t place) {
  return std::to_integer<std::uint8_t>(
      testing::Load(rig.memory.Snapshot(), kRecords + place * kRecordSize, 1)[0]);
}

std::uint64_t Delivered(GuestDsa& guest, std::uint32_t data) {
  std::uint64_t count = 0;
  for (const bus::MsiMessage& message : guest.bridge.platform.interrupts.TakeDelivered())
    count += message.data == data ? 1 : 0;
  return count;
}

TEST_CASE("vfio back end: a guest's descriptors go through, complete and interrupt it") {
  for (const bool direct : {false, true}) {
    for (const bool named : {false, true}) {
      CAPTURE(direct);
      CAPTURE(named);
      HostRig rig(
          {.portal = direct ? PortalMode::kPolled : PortalMode::kTrapped, .named_handles = named});
      REQUIRE(rig.Open() == "");
      GuestDsa guest(rig, {.queues = 1, .size = 16}, kOneQueue,
                     direct ? PortalMode::kDirect : PortalMode::kTrapped);
      CHECK(guest.vdev->backend().caps().direct == direct);
      CHECK(guest.vdev->backend().caps().named_handles == named);
      REQUIRE(guest.Enable(0) == 0);
      const std::uint32_t handle = guest.Handle(1);
      CHECK((handle != 1) == named);
      const std::vector<std::byte> data = testing::Pattern(std::size_t{8} * kSize);
      testing::Store(rig.memory.Snapshot(), kFrom, data);
      (void)Delivered(guest, 0);
      for (std::uint32_t i = 0; i < 8; ++i) {
        if (direct) {
          guest.StoreDirect(0, Move(i, handle));
        } else {
          guest.SubmitTrapped(0, Move(i, handle));
        }
      }
      for (std::uint32_t i = 0; i < 8; ++i) CHECK(WaitFor([&] { return Status(rig, i) == 1; }));
      CHECK(testing::Load(rig.memory.Snapshot(), kTo, std::size_t{8} * kSize) == data);
      std::uint64_t interrupts = 0;
      CHECK(WaitFor([&] { return (interrupts += Delivered(guest, 0x41)) >= 1; }));
      CHECK(guest.Counter("queue0_submitted") == (direct ? 0 : 8));
      CHECK(guest.Counter("queue0_portal_exits") == (direct ? 0 : 8));
      CHECK(guest.Command(Command::kDrainWq, 1) == 0);
      CHECK(guest.Command(Command::kDisableWq, 1) == 0);
      CHECK(guest.Command(Command::kDisableDevice) == 0);
    }
  }
}

TEST_CASE("vfio back end: handles the device takes back are the guest's to ask for again") {
  HostRig rig({.named_handles = true});
  REQUIRE(rig.Open() == "");
  GuestDsa guest(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  REQUIRE(guest.Enable(0) == 0);
  testing::Store(rig.memory.Snapshot(), kFrom, testing::Pattern(kSize));
  const std::uint32_t handle = guest.Handle(1);
  guest.SubmitTrapped(0, Move(0, handle));
  CHECK(WaitFor([&] { return Status(rig, 0) == 1; }));
  rig.device->RevokeHandles();
  // By its interrupt cause, as Linux would hear of it.
  CHECK(WaitFor([&] {
    guest.loop->RunOnce(0);
    return (guest.Read<std::uint32_t>(dsa_regs::kIntcause) >> 31) == 1;
  }));
  guest.Write<std::uint32_t>(dsa_regs::kIntcause, 1U << 31);
  CHECK(guest.Counter("handles_revoked") == 1);
  CHECK(guest.Counter("host_handles_revoked") == 1);
  // Bad handle: the device does not know it any more, nor does anything in between.
  guest.SubmitTrapped(0, Move(1, handle));
  CHECK(WaitFor([&] { return Status(rig, 1) == 0x19; }));
  const std::uint32_t another = guest.Handle(1);
  CHECK(another != handle);
  (void)Delivered(guest, 0);
  guest.SubmitTrapped(0, Move(2, another));
  CHECK(WaitFor([&] { return Status(rig, 2) == 1; }));
  CHECK(WaitFor([&] { return Delivered(guest, 0x41) >= 1; }));
}

TEST_CASE("vfio back end: trapped in front of pages that a device process reads") {
  HostRig rig({.portal = PortalMode::kPolled});
  REQUIRE(rig.Open() == "");
  GuestDsa guest(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  REQUIRE(guest.Enable(0) == 0);
  constexpr std::uint32_t kCount = 200;
  const std::vector<std::byte> data = testing::Pattern(std::size_t{kCount} * kSize);
  testing::Store(rig.memory.Snapshot(), kFrom, data);
  // Three times around the slots, at most as many under way as the queue holds.
  for (std::uint32_t i = 0; i < kCount; ++i) {
    guest.SubmitTrapped(0, Move(i, 1));
    if (i % 16 == 15) CHECK(WaitFor([&] { return Status(rig, i) == 1; }));
  }
  for (std::uint32_t i = 0; i < kCount; ++i) CHECK(WaitFor([&] { return Status(rig, i) == 1; }));
  CHECK(guest.Counter("queue0_submitted") == kCount);
}

TEST_CASE("vfio back end: a page of hardware takes MOVDIR64B or nothing") {
  HostRig polled({.portal = PortalMode::kPolled, .host = {.name = "loopback"}});
  REQUIRE(polled.Open() == "");
  auto mapped = VfioBackend::Create(*polled.host, {.queues = 1, .size = 16}).value();
  const Result<void> submits = mapped->CanSubmit();
  CHECK(submits.has_value() == HasMovdir64b());
  if (!submits) CHECK(submits.error().code == Errc::kUnsupported);
  HostRig trapped({.host = {.name = "loopback"}});
  REQUIRE(trapped.Open() == "");
  auto unmapped = VfioBackend::Create(*trapped.host, {.queues = 1, .size = 16}).value();
  CHECK(unmapped->CanSubmit().error().code == Errc::kUnsupported);
}

TEST_CASE("vfio back end: two guests: one resets as it likes, the other goes on") {
  HostRig rig({.portal = PortalMode::kPolled});
  REQUIRE(rig.Open() == "");
  GuestDsa one(rig, {.queues = 2, .size = 16}, {.wqs = 2, .wq_size = 16}, PortalMode::kDirect);
  GuestDsa two(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kDirect);
  CHECK(one.backend.lease().queues == std::vector<std::uint32_t>{0, 1});
  CHECK(two.backend.lease().queues == std::vector<std::uint32_t>{2});
  // Its vector is the device's third, whose name the guest has to ask for.
  CHECK(two.vdev->backend().caps().named_handles);
  REQUIRE(one.Enable(0) == 0);
  REQUIRE(one.Enable(1) == 0);
  REQUIRE(two.Enable(0) == 0);
  const std::uint32_t handle = two.Handle(1);
  CHECK(handle == 3);
  const int resets = rig.device->resets;
  testing::Store(rig.memory.Snapshot(), kFrom, testing::Pattern(std::size_t{32} * kSize));
  for (std::uint32_t round = 0; round < 8; ++round) {
    CAPTURE(round);
    two.StoreDirect(0, Move(round, handle));
    switch (round % 4) {
      case 0:
        CHECK(one.Command(Command::kResetWq, 3) == 0);
        CHECK(one.Command(Command::kEnableWq, 0) == 0);
        break;
      case 1:
        CHECK(one.Command(Command::kResetDevice) == 0);
        CHECK(one.Enable(1) == 0);
        break;
      case 2:
        one.FunctionLevelReset();
        one.Start();
        CHECK(one.Enable(0) == 0);
        break;
      default:
        CHECK(one.Command(Command::kAbortAll) == 0);
    }
    CHECK(WaitFor([&] { return Status(rig, round) == 1; }));
  }
  CHECK(rig.device->resets == resets);
  CHECK(two.Read<std::uint32_t>(dsa_regs::kGensts) == 1);
  CHECK(two.Counter("host_losses") == 0);
  // The first guest's, too.
  one.StoreDirect(0, Move(20, 0));
  CHECK(WaitFor([&] { return Status(rig, 20) != 0; }));
}

TEST_CASE("vfio back end: an error goes to the guest whose queue had it") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  GuestDsa one(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  GuestDsa two(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  REQUIRE(one.Enable(0) == 0);
  REQUIRE(two.Enable(0) == 0);
  // An unknown operation and no completion record: SWERROR (2.6 of the facts).
  siov::Descriptor bad{};
  bad[7] = std::byte{0xf0};
  two.SubmitTrapped(0, bad);
  CHECK(WaitFor([&] {
    two.loop->RunOnce(0);
    return (two.Read<std::uint64_t>(dsa_regs::kSwerror) & 1) != 0;
  }));
  one.loop->RunOnce(0);
  CHECK(one.Read<std::uint64_t>(dsa_regs::kSwerror) == 0);
  const dsa_regs::SWERROR0 record{{two.Read<std::uint64_t>(dsa_regs::kSwerror)}};
  CHECK(record.Get<dsa_regs::SWERROR0::Code>() == 0x10);
  // By its own number, although it is the device's second queue.
  CHECK(record.Get<dsa_regs::SWERROR0::Queue>() == 0);
  CHECK(two.Counter("queue0_errors") == 1);
  CHECK(two.Counter("host_errors_routed") == 1);
  CHECK(one.Counter("queue0_errors") == 0);
}

TEST_CASE("vfio back end: a device that vanishes halts every guest's Vdev") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  GuestDsa one(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  GuestDsa two(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  REQUIRE(one.Enable(0) == 0);
  CHECK(rig.device->Signal(vfio::kRequestIrq, 0));
  CHECK(WaitFor([&] { return rig.host->lost(); }));
  for (GuestDsa* guest : {&one, &two}) {
    CHECK(WaitFor([&] {
      guest->loop->RunOnce(0);
      return (guest->Read<std::uint32_t>(dsa_regs::kGensts) & 3) == 3;
    }));
    CHECK(guest->Counter("host_losses") == 1);
  }
  one.SubmitTrapped(0, Move(0, 1));
  // Nothing waits for it any more, resets included.
  one.FunctionLevelReset();
  one.Start();
  CHECK(one.Command(Command::kEnableDevice) == 3);
  CHECK(two.Command(Command::kDrainAll) == 3);
}

TEST_CASE("vfio back end: quiesced, submissions wait, and the state carries them") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  testing::Store(rig.memory.Snapshot(), kFrom, testing::Pattern(std::size_t{4} * kSize));
  GuestDsa from(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  REQUIRE(from.Enable(0) == 0);
  siov::VdevState state;
  {
    const MutexLock lock(from.vdev->lock());
    from.vdev->Quiesce();
  }
  from.SubmitTrapped(0, Move(0, 1));
  CHECK(Status(rig, 0) == 0);
  CHECK(from.Counter("queue0_waited") == 1);
  {
    const MutexLock lock(from.vdev->lock());
    state = from.vdev->Save().value();
  }
  REQUIRE(state.backend.queues.size() == 1);
  CHECK(state.backend.queues[0].waiting.size() == 1);
  // In another Vdev of the same kind, of other queues of the device.
  GuestDsa to(rig, {.queues = 1, .size = 16}, kOneQueue, PortalMode::kTrapped);
  {
    const MutexLock lock(to.vdev->lock());
    to.vdev->Quiesce();
    siov::BackendState wrong = state.backend;
    wrong.queues[0].config.size = 17;
    CHECK(to.backend.Restore(wrong).error().code == Errc::kBadFormat);
    wrong.queues.clear();
    CHECK(to.backend.Restore(wrong).error().code == Errc::kBadFormat);
    REQUIRE(to.backend.Restore(state.backend).has_value());
    CHECK(Status(rig, 0) == 0);
    to.vdev->Resume();
  }
  CHECK(WaitFor([&] { return Status(rig, 0) != 0; }));
}

TEST_CASE("vfio back end: what is asked of it is checked") {
  HostRig rig;
  REQUIRE(rig.Open() == "");
  auto backend = VfioBackend::Create(*rig.host, {.queues = 2, .size = 16}).value();
  CHECK(backend->Describe() == "vfio: loopback, its queues 0, 1");
  CHECK(backend->caps().entries == 32);
  CHECK(backend->caps().engines == 4);
  const siov::QueueConfig good{.size = 16,
                               .priority = 1,
                               .max_transfer = kSize,
                               .max_batch = 2,
                               .operations = backend->caps().operations};
  CHECK(backend->Enable(0, good).error().code == Errc::kBadState);
  CHECK(backend->Start({.groups = {{.queues = 4, .engines = 1}}}).error().code ==
        Errc::kInvalidArgument);
  CHECK(backend->Start({.groups = {{.queues = 1, .engines = 0}}}).error().code ==
        Errc::kInvalidArgument);
  CHECK(backend->Start({.groups = {{.queues = 1, .engines = 5}}}).error().code ==
        Errc::kInvalidArgument);
  REQUIRE(backend->Start({.groups = {{.queues = 3, .engines = 1}}}));
  CHECK(backend->Start({}).error().code == Errc::kBadState);
  const auto with = [&](auto change) {
    siov::QueueConfig config = good;
    change(config);
    return backend->Enable(0, config).error().code;
  };
  CHECK(with([](auto& c) { c.size = 0; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.size = 17; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.max_transfer = 0; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.max_transfer = std::uint64_t{1} << 40; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.max_batch = 1 << 16; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.operations[3] = 1; }) == Errc::kInvalidArgument);
  CHECK(with([](auto& c) { c.operations[0] = 1; }) == Errc::kUnsupported);
  CHECK(backend->Enable(2, good).error().code == Errc::kInvalidArgument);
  CHECK(backend->Submit(0, {}) == siov::SubmitResult::kDisabled);
  CHECK(backend->Submit(2, {}) == siov::SubmitResult::kDisabled);
  REQUIRE(backend->Enable(0, good));
  CHECK(backend->Enable(0, good).error().code == Errc::kBadState);
  // No portal was opened for it.
  CHECK(backend->Submit(0, {}) == siov::SubmitResult::kDisabled);
  CHECK(backend->OpenPortal(0, 0, PortalMode::kDirect).error().code == Errc::kUnsupported);
  CHECK(backend->OpenHandle(0).error().code == Errc::kInvalidArgument);
  CHECK(backend->OpenHandle(1).value() == 1);
  CHECK(backend->OpenHandle(3).error().code == Errc::kInvalidArgument);
  CHECK(backend->Save().error().code == Errc::kBadState);
  CHECK(backend->Occupancy(0) == 0);
  CHECK(backend->Occupancy(7) == 0);
}

}  // namespace
}  // namespace postern::dsa
