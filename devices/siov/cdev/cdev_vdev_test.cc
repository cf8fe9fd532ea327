// The whole way in memory: a guest's driver, its Vdev, the back end, a queue of the host's driver,
// and back: record and interrupt.

#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "devices/siov/cdev/cdev_rig.h"
#include "devices/siov/dsa/guest_driver.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using Command = dsa_regs::Command;

// Goes after the device that uses them.
struct QueueAndMemory {
  memory::MemoryMap memory{SharedMemory({{0, kRigMemory}})};
  std::unique_ptr<FakeIdxdQueue> own_queue = std::make_unique<FakeIdxdQueue>(memory.Snapshot());
  FakeIdxdQueue* queue = own_queue.get();
};

struct GuestOfQueue : QueueAndMemory, GuestDriver {
  GuestOfQueue()
      : GuestDriver(CdevBackend::Create({.look_after = std::chrono::milliseconds(1)}, memory,
                                        std::move(own_queue))
                        .value(),
                    {.wqs = 1, .wq_size = 16}, siov::PortalMode::kTrapped) {}

  void Submit(const siov::Descriptor& descriptor) { SubmitTrapped(0, descriptor); }
  std::uint8_t Status(std::uint32_t place) {
    return std::to_integer<std::uint8_t>(
        testing::Load(memory.Snapshot(), kRigRecords + place * kRecordSize, 1)[0]);
  }
  std::uint64_t Delivered(std::uint32_t data) {
    for (const bus::MsiMessage& message : bridge.platform.interrupts.TakeDelivered())
      delivered += message.data == data ? 1 : 0;
    return delivered;
  }

  std::uint64_t delivered = 0;
};

}  // namespace

TEST_CASE("cdev vdev: a guest's descriptors go through, complete and interrupt it") {
  GuestOfQueue guest;
  // Neither batches nor DIF operations.
  CHECK(guest.Read<std::uint64_t>(dsa_regs::kOpcap) == kRewritable[0]);
  REQUIRE(guest.Enable(0) == 0);
  testing::Store(guest.memory.Snapshot(), kRigFrom, testing::Pattern(std::size_t{8} * kRigSize));
  for (std::uint32_t i = 0; i < 8; ++i) {
    guest.Submit(Move(i));
    CHECK(WaitFor([&] { return guest.Delivered(0x41) == i + 1; }));
    CHECK(guest.Status(i) == 1);
  }
  CHECK(testing::Load(guest.memory.Snapshot(), kRigTo, std::size_t{8} * kRigSize) ==
        testing::Pattern(std::size_t{8} * kRigSize));
  CHECK(guest.Command(Command::kDrainWq, 1) == 0);
  CHECK(guest.Command(Command::kDisableWq, 1) == 0);
  CHECK(guest.Command(Command::kDisableDevice) == 0);
}

TEST_CASE("cdev vdev: what a hostile guest names is its own or nothing") {
  GuestOfQueue guest;
  REQUIRE(guest.Enable(0) == 0);
  // This process's own memory, by the address it has here.
  std::uint64_t secret = 0x5345435245543031;
  const auto ours = std::bit_cast<std::uint64_t>(&secret) & ~std::uint64_t{7};
  guest.Submit(Make({.source = ours, .size = 8}));
  guest.Submit(Make({.place = 1, .destination = ours, .size = 8}));
  CHECK(WaitFor([&] { return guest.Delivered(0x41) == 2; }));
  CHECK(guest.Status(0) == 0x03);
  CHECK(guest.Status(1) == 0x83);
  CHECK(secret == 0x5345435245543031);
  CHECK(guest.queue->written().empty());
  // A record there is the device's error.
  guest.Submit(Make({.record = ours & ~std::uint64_t{31}}));
  CHECK(WaitFor([&] {
    guest.loop->RunOnce(0);
    return (guest.Read<std::uint64_t>(dsa_regs::kSwerror) & 1) != 0;
  }));
  CHECK((guest.Read<std::uint64_t>(dsa_regs::kSwerror) >> 8 & 0xff) == 0x1a);
}

TEST_CASE("cdev vdev: a function reset leaves the host's queue as it is") {
  GuestOfQueue guest;
  REQUIRE(guest.Enable(0) == 0);
  for (std::uint32_t i = 0; i < 8; ++i) guest.Submit(Move(i));
  guest.FunctionLevelReset();
  CHECK(guest.vdev->backend().Occupancy(0) == 0);
  CHECK_FALSE(guest.queue->closed());
  (void)guest.Delivered(0x41);
  guest.delivered = 0;
  guest.Start();
  REQUIRE(guest.Enable(0) == 0);
  guest.Submit(Move(9));
  CHECK(WaitFor([&] { return guest.Delivered(0x41) == 1; }));
  CHECK(guest.Status(9) == 1);
}

TEST_CASE("cdev vdev: a queue that vanishes halts the device, and the guest can see it") {
  GuestOfQueue guest;
  REQUIRE(guest.Enable(0) == 0);
  guest.queue->Hold(true);
  guest.Submit(Move(0));
  CHECK(WaitFor([&] { return guest.queue->held() == 1; }));
  guest.queue->Vanish();
  CHECK(WaitFor([&] {
    guest.loop->RunOnce(0);
    return (guest.Read<std::uint32_t>(dsa_regs::kGensts) & 3) == 3;
  }));
}

}  // namespace postern::dsa
