// The whole way in memory: a guest's driver, its Vdev, the back end, a queue of the host's driver,
// and back: record and interrupt.

#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>

#include "devices/pci/fake_function.h"
#include "devices/siov/cdev/cdev_rig.h"
#include "devices/siov/core/vdev.h"
#include "devices/siov/dsa/dsa_personality.h"
#include "src/base/event_loop.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

using Command = dsa_regs::Command;

struct GuestOfQueue {
  static constexpr std::uint64_t kRegisters = 0xc0100000, kPortals = 0x4000100000;
  static constexpr std::uint32_t kExpress = 0x40;

  GuestOfQueue() {
    auto own_queue = std::make_unique<FakeIdxdQueue>(memory.Snapshot());
    queue = own_queue.get();
    auto backend = CdevBackend::Create({.look_after = std::chrono::milliseconds(1)}, memory,
                                       std::move(own_queue))
                       .value();
    auto personality = DsaPersonality::Create({.wqs = 1, .wq_size = 16}, backend->caps()).value();
    vdev = siov::Vdev::Create({.name = "guest", .portal = siov::PortalMode::kTrapped},
                              std::move(personality), std::move(backend),
                              {bridge.platform.interrupts, *loop})
               .value();
    where = bridge.root->Add(*vdev).value();
    Start();
  }
  ~GuestOfQueue() { static_cast<void>(bridge.root->Remove(*vdev)); }
  GuestOfQueue(const GuestOfQueue&) = delete;
  GuestOfQueue& operator=(const GuestOfQueue&) = delete;

  void Start() {
    bridge.Config<std::uint32_t>(where, pci::kBar0, kRegisters);
    bridge.Config<std::uint32_t>(where, pci::kBar0 + 8, kPortals & 0xffff'ffff);
    bridge.Config<std::uint32_t>(where, pci::kBar0 + 12, kPortals >> 32);
    bridge.Config<std::uint16_t>(where, pci::kCommand, 0x6);
  }
  template <typename U>
  U Read(std::uint64_t offset) {
    return bridge.Read<U>(kRegisters + offset);
  }
  template <typename U>
  void Write(std::uint64_t offset, U value) {
    bridge.Write<U>(kRegisters + offset, value);
  }
  std::uint32_t Do(Command code, std::uint32_t operand = 0) {
    Write<std::uint32_t>(dsa_regs::kCmd, static_cast<std::uint32_t>(code) << 20 | operand);
    CHECK(WaitFor([this] {
      loop->RunOnce(0);
      return (Read<std::uint32_t>(dsa_regs::kCmdstatus) >> 31) == 0;
    }));
    return Read<std::uint32_t>(dsa_regs::kCmdstatus);
  }
  // As Linux does.
  void Enable() {
    for (std::uint32_t v = 0; v < 2; ++v) {
      const std::uint64_t entry = dsa_regs::kMsixTable + 16 * v;
      Write<std::uint64_t>(entry, 0xfee00000);
      Write<std::uint32_t>(entry + 8, 0x40 + v);
      Write<std::uint32_t>(entry + 12, 0);
    }
    bridge.Config<std::uint16_t>(where, kExpress + pci::kExpressSizeV2 + pci::kMsixControl, 0x8000);
    Write<std::uint32_t>(dsa_regs::kGenctrl, 3);
    CHECK(Do(Command::kEnableDevice) == 0);
    CHECK(Do(Command::kEnableWq) == 0);
  }
  void Submit(const siov::Descriptor& descriptor) {
    const MutexLock lock(vdev->lock());
    vdev->SubmitAt(0x1000, descriptor);
  }
  std::uint8_t Status(std::uint32_t place) {
    return std::to_integer<std::uint8_t>(
        testing::Load(memory.Snapshot(), kRigRecords + place * kRecordSize, 1)[0]);
  }
  std::uint64_t Delivered(std::uint32_t data) {
    for (const bus::MsiMessage& message : bridge.platform.interrupts.TakeDelivered())
      delivered += message.data == data ? 1 : 0;
    return delivered;
  }

  memory::MemoryMap memory{SharedMemory({{0, kRigMemory}})};
  pci::FakeBridge bridge;
  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  FakeIdxdQueue* queue = nullptr;
  std::unique_ptr<siov::Vdev> vdev;
  pci::Bdf where;
  std::uint64_t delivered = 0;
};

}  // namespace

TEST_CASE("cdev vdev: a guest's descriptors go through, complete and interrupt it") {
  GuestOfQueue guest;
  // Neither batches nor DIF operations.
  CHECK(guest.Read<std::uint64_t>(dsa_regs::kOpcap) == kRewritable[0]);
  guest.Enable();
  testing::Store(guest.memory.Snapshot(), kRigFrom, testing::Pattern(std::size_t{8} * kRigSize));
  for (std::uint32_t i = 0; i < 8; ++i) {
    guest.Submit(Move(i));
    CHECK(WaitFor([&] { return guest.Delivered(0x41) == i + 1; }));
    CHECK(guest.Status(i) == 1);
  }
  CHECK(testing::Load(guest.memory.Snapshot(), kRigTo, std::size_t{8} * kRigSize) ==
        testing::Pattern(std::size_t{8} * kRigSize));
  CHECK(guest.Do(Command::kDrainWq, 1) == 0);
  CHECK(guest.Do(Command::kDisableWq, 1) == 0);
  CHECK(guest.Do(Command::kDisableDevice) == 0);
}

TEST_CASE("cdev vdev: what a hostile guest names is its own or nothing") {
  GuestOfQueue guest;
  guest.Enable();
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
  guest.Enable();
  for (std::uint32_t i = 0; i < 8; ++i) guest.Submit(Move(i));
  guest.bridge.Config<std::uint16_t>(
      guest.where, GuestOfQueue::kExpress + pci::kExpressDeviceControl, pci::kExpressFlr);
  CHECK(guest.vdev->backend().Occupancy(0) == 0);
  CHECK_FALSE(guest.queue->closed());
  (void)guest.Delivered(0x41);
  guest.delivered = 0;
  guest.Start();
  guest.Enable();
  guest.Submit(Move(9));
  CHECK(WaitFor([&] { return guest.Delivered(0x41) == 1; }));
  CHECK(guest.Status(9) == 1);
}

TEST_CASE("cdev vdev: a queue that vanishes halts the device, and the guest can see it") {
  GuestOfQueue guest;
  guest.Enable();
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
