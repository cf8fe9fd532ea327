#include "devices/virtio/mmio/mmio_transport.h"

#include <array>
#include <random>
#include <vector>

#include "devices/virtio/mmio/mmio_regs.h"
#include "devices/virtio/transport_rig.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::MmioRig;

namespace regs = mmio_regs;

constexpr std::uint64_t kBase = MmioRig::kBase;

TEST_CASE("virtio-mmio: every register after reset, read-only ones, write-only ones, and gaps") {
  enum Kind { kRead, kWriteOnly, kReadWrite };
  struct Row {
    const char* name;
    std::uint32_t offset;
    Kind kind;
    std::uint32_t reset;
  };
  // VIRTIO 1.2, table 4.1.
  const std::array rows{
      Row{"MagicValue", 0x000, kRead, 0x74726976},
      Row{"Version", 0x004, kRead, 2},
      Row{"DeviceID", 0x008, kRead, 2},
      Row{"VendorID", 0x00c, kRead, 0x1af4},
      Row{"DeviceFeatures", 0x010, kRead, 0xb0000021},
      Row{"DeviceFeaturesSel", 0x014, kWriteOnly, 0},
      Row{"DriverFeatures", 0x020, kWriteOnly, 0},
      Row{"DriverFeaturesSel", 0x024, kWriteOnly, 0},
      Row{"QueueSel", 0x030, kWriteOnly, 0},
      Row{"QueueNumMax", 0x034, kRead, 256},
      Row{"QueueNum", 0x038, kWriteOnly, 0},
      Row{"QueueReady", 0x044, kReadWrite, 0},
      Row{"QueueNotify", 0x050, kWriteOnly, 0},
      Row{"InterruptStatus", 0x060, kRead, 0},
      Row{"InterruptACK", 0x064, kWriteOnly, 0},
      Row{"Status", 0x070, kReadWrite, 0},
      Row{"QueueDescLow", 0x080, kWriteOnly, 0},
      Row{"QueueDescHigh", 0x084, kWriteOnly, 0},
      Row{"QueueDriverLow", 0x090, kWriteOnly, 0},
      Row{"QueueDriverHigh", 0x094, kWriteOnly, 0},
      Row{"QueueDeviceLow", 0x0a0, kWriteOnly, 0},
      Row{"QueueDeviceHigh", 0x0a4, kWriteOnly, 0},
      Row{"SHMSel", 0x0ac, kWriteOnly, 0},
      Row{"SHMLenLow", 0x0b0, kRead, 0xffffffff},
      Row{"SHMLenHigh", 0x0b4, kRead, 0xffffffff},
      Row{"SHMBaseLow", 0x0b8, kRead, 0xffffffff},
      Row{"SHMBaseHigh", 0x0bc, kRead, 0xffffffff},
      Row{"QueueReset", 0x0c0, kReadWrite, 0},
      Row{"ConfigGeneration", 0x0fc, kRead, 0},
  };
  CHECK(rows.size() == regs::kRegisters.size());
  MmioRig rig;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    CAPTURE(row.name);
    CHECK(regs::kRegisters[i].name == row.name);
    CHECK(regs::kRegisters[i].offset == row.offset);
    CHECK(rig.Get(row.offset) == row.reset);
    rig.Set(row.offset, 0xffffffff);
    // Ones are no legal queue, status or reset: reading gives what was there.
    const std::uint32_t expected =
        row.offset == regs::kDeviceFeatures ? rig.Get(row.offset) : row.reset;
    CHECK(rig.Get(row.offset) == expected);
    rig.WriteStatus(0);
    CHECK(rig.Get(row.offset) == row.reset);
  }
  // Offsets of no register.
  std::size_t next = 0;
  for (std::uint32_t offset = 0; offset < 0x100; offset += 4) {
    if (next < rows.size() && rows[next].offset == offset) {
      ++next;
      continue;
    }
    CAPTURE(offset);
    const std::uint64_t refused = rig.Counter("mmio_refused_accesses");
    rig.Set(offset, 0xffffffff);
    CHECK(rig.Get(offset) == 0);
    CHECK(rig.Counter("mmio_refused_accesses") == refused + 2);
  }
}

TEST_CASE("virtio-mmio: control registers take aligned 32-bit accesses alone") {
  MmioRig rig;
  std::uint64_t refused = 0;
  for (const std::size_t width : {std::size_t{1}, std::size_t{2}, std::size_t{8}}) {
    for (std::uint32_t offset = 0; offset + width <= 0x100;
         offset += static_cast<std::uint32_t>(width)) {
      std::array<std::byte, 8> bytes{};
      bytes.fill(std::byte{1});
      rig.bridge.mmio.Write(kBase + offset, std::span<const std::byte>(bytes).first(width));
      rig.bridge.mmio.Read(kBase + offset, std::span(bytes).first(width));
      refused += 2;
      CHECK(bytes[0] == std::byte{0});
      CHECK(bytes[width - 1] == std::byte{0});
    }
  }
  CHECK(rig.Refused() == refused);
  CHECK(rig.ReadStatus() == 0);
  rig.Set(0x071, 1);
  CHECK(rig.ReadStatus() == 0);
  CHECK(rig.Get(0x002) == 0);
}

TEST_CASE("virtio-mmio: 32-bit selectors, sizes and statuses are not truncated") {
  MmioRig rig;
  rig.Set(regs::kStatus, 0x101);
  CHECK(rig.ReadStatus() == 0);
  rig.Set(regs::kStatus, 0x100);
  CHECK(rig.ReadStatus() == 0);
  rig.Negotiate(kFeatureVersion1);
  for (const std::uint32_t select : {0x10000U, 0x10001U, 0x80000000U, 0xffffffffU}) {
    rig.SelectQueue(select);
    CHECK(rig.QueueMax() == 0);
    rig.SetQueueSize(8);
    rig.EnableQueue();
  }
  rig.SelectQueue(0);
  CHECK(rig.QueueEnabled() == 0);
  rig.SetQueueSize(0x10008);
  CHECK(rig.transport().Selected()->size == 256);
  rig.EnableQueue();
  rig.WriteQueueEnable(0x10000);
  rig.WriteQueueEnable(2);
  CHECK(rig.QueueEnabled() == 1);
  const std::uint64_t refused = rig.Refused();
  for (const std::uint32_t queue : {3U, 0x10000U, 0xffffffffU}) rig.Set(regs::kQueueNotify, queue);
  CHECK(rig.Refused() == refused + 3);
  for (std::uint16_t queue = 0; queue < 3; ++queue) CHECK(!rig.transport().kick(queue).Pending());
  rig.Set(regs::kQueueNotify, 2);
  CHECK(rig.transport().kick(2).Consume() == 1);
}

TEST_CASE("virtio-mmio: QueueReady may be taken back before DRIVER_OK, not after") {
  MmioRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Negotiate(kFeatureVersion1);
  rig.StartQueue(0, queue);
  CHECK(rig.QueueEnabled() == 1);
  rig.WriteQueueEnable(0);
  CHECK(rig.QueueEnabled() == 0);
  rig.SetQueueSize(16);
  CHECK(rig.transport().Selected()->size == 16);
  rig.SetQueueSize(8);
  rig.EnableQueue();
  rig.WriteStatus(0xf);
  CHECK(rig.Refused() == 0);
  rig.WriteQueueEnable(0);
  CHECK(rig.QueueEnabled() == 1);
  CHECK(rig.Refused() == 1);
  CHECK(rig.Request(0, queue).size() == 4);
  // As Linux does when it takes its queues down: after the reset.
  rig.WriteStatus(0);
  rig.WriteQueueEnable(0);
  CHECK(rig.QueueEnabled() == 0);
  CHECK(rig.Refused() == 1);
}

TEST_CASE("virtio-mmio: interrupts pulse the line, and their cause stays until acknowledged") {
  MmioRig rig;
  rig.Start(kFeatureVersion1, {});
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Queue(1); });
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(rig.Get(regs::kInterruptStatus) == kInterruptQueue);
  CHECK(rig.Get(regs::kInterruptStatus) == kInterruptQueue);
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Config(); });
  CHECK(rig.TakeInterrupts() == 1);
  CHECK(rig.Get(regs::kInterruptStatus) == 3);
  rig.Set(regs::kInterruptAck, kInterruptQueue);
  CHECK(rig.Get(regs::kInterruptStatus) == kInterruptConfig);
  rig.Set(regs::kInterruptAck, 0xfffffffc);
  CHECK(rig.Get(regs::kInterruptStatus) == kInterruptConfig);
  rig.Set(regs::kInterruptAck, 0xffffffff);
  CHECK(rig.Get(regs::kInterruptStatus) == 0);
}

TEST_CASE("virtio-mmio: one doorbell per queue at QueueNotify") {
  MmioRig rig;
  auto& doorbells = rig.bridge.platform.doorbells;
  CHECK(doorbells.size() == 3);
  const memory::Gpa notify(kBase + regs::kQueueNotify);
  for (std::uint16_t queue = 0; queue < 3; ++queue) {
    CHECK(doorbells.Write(notify, 4, queue));
    CHECK(rig.transport().kick(queue).Consume() == 1);
  }
  CHECK(!doorbells.Write(notify, 4, 3));
  CHECK(!doorbells.Write(notify, 2, 0));
  rig.mmio.reset();
  CHECK(doorbells.size() == 0);
  CHECK(!rig.bridge.platform.interrupts.Line(MmioRig::kGsi).exists);
  CHECK(rig.bridge.mmio.Ranges().size() == 1);  // ECAM alone
}

TEST_CASE("virtio-mmio: a range or line that is taken is an error, and nothing is left behind") {
  MmioRig rig;
  const auto create = [&](std::uint64_t base, std::uint32_t gsi) {
    return MmioTransport::Create(rig.device, rig.memory, rig.bridge.platform.Get(), rig.bridge.mmio,
                                 memory::Gpa(base), gsi, "second");
  };
  CHECK(create(kBase + 0xfff, 6).error().code == Errc::kOverlap);
  CHECK(!rig.bridge.platform.interrupts.Line(6).exists);
  CHECK(create(kBase + 0x1000, MmioRig::kGsi).error().code == Errc::kOverlap);
  CHECK(create(kBase + 0x1000, 6).has_value());
}

TEST_CASE("virtio-mmio: saved state, good and bad") {
  MmioRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Start(kFeatureVersion1, {{0, &queue}});
  CHECK(rig.Request(0, queue).size() == 4);
  rig.Settle();
  const MutexLock lock(rig.mmio->lock());
  MmioTransportState state = rig.mmio->Save();
  CHECK(state.transport.interrupt_status == kInterruptQueue);
  CHECK(rig.mmio->Restore(state).has_value());
  CHECK(rig.transport().status() == 0xf);
  rig.mmio->Reset();
  CHECK(rig.transport().status() == 0);
  state.version = 7;
  CHECK(rig.mmio->Restore(state).error().code == Errc::kBadFormat);
}

TEST_CASE("virtio-mmio: random accesses leave a working device") {
  MmioRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  std::mt19937_64 random(20260103);  // NOLINT: the same sequence each run
  for (int step = 0; step < 20000; ++step) {
    const std::array<std::size_t, 4> widths{1, 2, 4, 8};
    const std::size_t width = random() % 8 == 0 ? widths[random() % 4] : 4;
    std::uint64_t value = random();
    if (random() % 2 == 0) value &= 0xf;
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, 8);
    const std::span<std::byte> data = std::span(bytes).first(width);
    const std::uint64_t offset =
        random() % 8 == 0 ? random() % MmioTransport::kSize : random() % 0x40 * 4;
    if (random() % 3 == 0) {
      rig.bridge.mmio.Read(kBase + offset, data);
    } else {
      rig.bridge.mmio.Write(kBase + offset, data);
    }
    if (step % 1000 == 999) {
      queue.Restart();
      rig.Start(kFeatureVersion1 | kFeatureRingReset, {{0, &queue}});
      CHECK(rig.ReadStatus() == 0xf);
      CHECK(rig.Request(0, queue).size() == 4);
    }
  }
}

}  // namespace
}  // namespace postern::virtio
