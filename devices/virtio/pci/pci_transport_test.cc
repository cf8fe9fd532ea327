#include "devices/virtio/pci/pci_transport.h"

#include <array>
#include <random>
#include <vector>

#include "devices/virtio/pci/pci_regs.h"
#include "devices/virtio/transport_rig.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::PciRig;

constexpr std::uint64_t kBase = PciRig::kBase;

TEST_CASE("virtio-pci: identifies itself as a modern device") {
  PciRig rig;
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, pci::kVendorId) == 0x10421af4);
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, pci::kRevisionId) == 0x01800001);
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, pci::kSubsystemVendorId) == 0x00421af4);
  CHECK(rig.bridge.Config<std::uint8_t>(rig.at, pci::kInterruptPin) == 0);
}

TEST_CASE("virtio-pci: capabilities lead to every part of the BAR") {
  PciRig rig;
  struct Row {
    std::uint8_t type;
    std::uint8_t length;
    std::uint32_t offset;
    std::uint32_t size;
  };
  const std::array rows{Row{kCapCommon, 16, kCommonOffset, 0x3c},
                        Row{kCapNotify, 20, kNotifyOffset, 12}, Row{kCapIsr, 16, kIsrOffset, 1},
                        Row{kCapDevice, 16, kDeviceOffset, 24}, Row{kCapPciCfg, 20, 0, 0}};
  for (const Row& row : rows) {
    CAPTURE(row.type);
    const std::uint32_t cap = rig.FindCapability(pci::kCapVendor, row.type);
    CHECK(cap != 0);
    CHECK(rig.bridge.Config<std::uint8_t>(rig.at, cap + kCapLength) == row.length);
    CHECK(rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapBar) == 0);  // bar, id, padding
    CHECK(rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapOffset) == row.offset);
    CHECK(rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapRangeLength) == row.size);
    if (row.type == kCapPciCfg) continue;
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapOffset, 0xffffffff);
    CHECK(rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapOffset) == row.offset);
  }
  const std::uint32_t notify = rig.FindCapability(pci::kCapVendor, kCapNotify);
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, notify + kCapNotifyMultiplier) == 4);
  CHECK(rig.bridge.Config<std::uint16_t>(rig.at, rig.msix + 2) == 0x8003);  // 3 queues + 1 - 1
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, rig.msix + 4) == kTableOffset);
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, rig.msix + 8) == kPbaOffset);
}

TEST_CASE(
    "virtio-pci: every row of common configuration after reset, read-only and reserved bits, odd "
    "widths") {
  struct Row {
    const char* name;
    std::uint32_t offset;
    std::uint32_t width;
    std::uint64_t reset;
    std::uint64_t after_ones;  // after a write of ones, with the transport reset
  };
  const std::array rows{
      Row{"device_feature_select", 0x00, 4, 0, 0xffffffff},
      Row{"device_feature", 0x04, 4, 0xb0000021, 0xb0000021},
      Row{"driver_feature_select", 0x08, 4, 0, 0xffffffff},
      Row{"driver_feature", 0x0c, 4, 0, 0},
      Row{"config_msix_vector", 0x10, 2, 0xffff, 0xffff},
      Row{"num_queues", 0x12, 2, 3, 3},
      Row{"device_status", 0x14, 1, 0, 0},  // ones: unknown bits, ignored
      Row{"config_generation", 0x15, 1, 0, 0},
      Row{"queue_select", 0x16, 2, 0, 0xffff},
      Row{"queue_size", 0x18, 2, 256, 256},
      Row{"queue_msix_vector", 0x1a, 2, 0xffff, 0xffff},
      Row{"queue_enable", 0x1c, 2, 0, 0},
      Row{"queue_notify_off", 0x1e, 2, 0, 0},
      Row{"queue_desc", 0x20, 8, 0, 0},
      Row{"queue_driver", 0x28, 8, 0, 0},
      Row{"queue_device", 0x30, 8, 0, 0},
      Row{"queue_notify_data", 0x38, 2, 0, 0},
      Row{"queue_reset", 0x3a, 2, 0, 0},
  };
  CHECK(rows.size() == kCommonCfg.size());
  PciRig rig;
  const auto read = [&](std::uint32_t offset, std::size_t width) {
    std::array<std::byte, 8> bytes{};
    rig.bridge.mmio.Read(kBase + offset, std::span(bytes).first(width));
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data(), 8);
    return value;
  };
  const auto write = [&](std::uint32_t offset, std::size_t width, std::uint64_t value) {
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, 8);
    rig.bridge.mmio.Write(kBase + offset, std::span<const std::byte>(bytes).first(width));
  };
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Row& row = rows[i];
    CAPTURE(row.name);
    CHECK(kCommonCfg[i].name == row.name);
    CHECK(kCommonCfg[i].offset == row.offset);
    CHECK(kCommonCfg[i].width == row.width);
    CHECK(read(row.offset, row.width) == row.reset);
  }
  for (const Row& row : rows) {
    CAPTURE(row.name);
    write(row.offset, row.width, ~std::uint64_t{0});
    CHECK(read(row.offset, row.width) == row.after_ones);
    rig.WriteStatus(0);
    CHECK(read(row.offset, row.width) == row.reset);
  }
  // Wider than the row, across rows, misaligned, beyond the end: 0, ignored, counted.
  std::uint64_t refused = rig.Counter("virtio_common_refused_accesses");
  const auto refuses = [&](std::uint32_t offset, std::size_t width) {
    CAPTURE(offset);
    CAPTURE(width);
    CHECK(read(offset, width) == 0);
    write(offset, width, ~std::uint64_t{0});
    refused += 2;
    CHECK(rig.Counter("virtio_common_refused_accesses") == refused);
  };
  for (const Row& row : rows) {
    if (row.width < 4) refuses(row.offset & ~3U, 4);
    if (row.width == 1) refuses(row.offset & ~1U, 2);
    if (row.width > 1) refuses(row.offset + 1, row.width);
  }
  refuses(0x10, 8);
  refuses(0x1c, 8);
  refuses(0x3c, 4);
  refuses(0x38, 8);
  refuses(0xffc, 4);
  refuses(0x800, 1);
  CHECK(rig.ReadStatus() == 0);
  // A 64-bit row by halves and whole; a pair of 32-bit rows by 8 bytes.
  rig.Negotiate(kFeatureVersion1);
  rig.SelectQueue(2);
  write(0x20, 8, 0x11223344'55667780);
  CHECK(read(0x20, 4) == 0x55667780);
  CHECK(read(0x24, 4) == 0x11223344);
  write(0x24, 4, 0x99);
  CHECK(read(0x20, 8) == 0x99'55667780);
  // Another queue's half does not leak into this one.
  rig.SelectQueue(1);
  CHECK(read(0x20, 8) == 0);
  write(0x20, 4, 0x1000);
  CHECK(rig.transport().Selected()->desc_table == 0x1000);
  CHECK(read(0x00, 8) == 0xb000002100000000);
}

TEST_CASE("virtio-pci: vectors that do not exist read back as NO_VECTOR") {
  PciRig rig;
  rig.Negotiate(kFeatureVersion1);
  for (const std::uint16_t vector : {std::uint16_t{4}, std::uint16_t{5}, std::uint16_t{256},
                                     std::uint16_t{0xfffe}, std::uint16_t{0xffff}}) {
    CAPTURE(vector);
    rig.Common<std::uint16_t>(kConfigMsixVector, 0);
    CHECK(rig.Common<std::uint16_t>(kConfigMsixVector) == 0);
    rig.Common<std::uint16_t>(kConfigMsixVector, vector);
    CHECK(rig.Common<std::uint16_t>(kConfigMsixVector) == kNoVector);
    rig.SelectQueue(2);
    rig.Common<std::uint16_t>(kQueueMsixVector, 3);
    CHECK(rig.Common<std::uint16_t>(kQueueMsixVector) == 3);
    rig.Common<std::uint16_t>(kQueueMsixVector, vector);
    CHECK(rig.Common<std::uint16_t>(kQueueMsixVector) == kNoVector);
  }
  // Queues that do not exist have no vector (CH #7917, #7918).
  for (const std::uint16_t queue : {std::uint16_t{3}, std::uint16_t{0xffff}}) {
    rig.SelectQueue(queue);
    rig.Common<std::uint16_t>(kQueueMsixVector, 1);
    CHECK(rig.Common<std::uint16_t>(kQueueMsixVector) == kNoVector);
    CHECK(rig.Common<std::uint16_t>(kQueueNotifyOff) == 0);
  }
  rig.WriteStatus(0);
  rig.SelectQueue(2);
  CHECK(rig.Common<std::uint16_t>(kConfigMsixVector) == kNoVector);
}

TEST_CASE("virtio-pci: each interrupt goes to its vector") {
  PciRig rig;
  DriverQueue queue0 = rig.MakeQueue(0);
  DriverQueue queue2 = rig.MakeQueue(2);
  rig.Start(kFeatureVersion1, {{0, &queue0}, {2, &queue2}});
  auto& interrupts = rig.bridge.platform.interrupts;
  using Messages = std::vector<bus::MsiMessage>;
  CHECK(rig.Request(0, queue0).size() == 4);
  rig.Settle();
  CHECK(interrupts.TakeDelivered() == Messages{{0xfee00000, 1}});
  CHECK(rig.Request(2, queue2).size() == 4);
  rig.Settle();
  CHECK(interrupts.TakeDelivered() == Messages{{0xfee00000, 3}});
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Config(); });
  CHECK(interrupts.TakeDelivered() == Messages{{0xfee00000, 0}});
  rig.SelectQueue(0);
  rig.Common<std::uint16_t>(kQueueMsixVector, kNoVector);
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Queue(0); });
  CHECK(interrupts.TakeDelivered().empty());
  rig.Common<std::uint16_t>(kQueueMsixVector, 3);  // shared with queue 2
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Queue(0); });
  CHECK(interrupts.TakeDelivered() == Messages{{0xfee00000, 3}});
}

TEST_CASE("virtio-pci: ISR bits with MSI-X and without") {
  PciRig rig;
  const auto isr = [&] { return rig.bridge.Read<std::uint8_t>(kBase + kIsrOffset); };
  const auto interrupt_status = [&] {
    return (rig.bridge.Config<std::uint16_t>(rig.at, pci::kStatus) & 0x8) != 0;
  };
  rig.Start(kFeatureVersion1, {});
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Queue(0); });
  CHECK(isr() == 0);
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Config(); });
  CHECK(!interrupt_status());
  CHECK(isr() == kInterruptConfig);
  CHECK(isr() == 0);  // reading takes it

  rig.bridge.Config<std::uint16_t>(rig.at, rig.msix + 2, 0);
  rig.device.OnLoop([](Interrupt& interrupt) {
    interrupt.Queue(1);
    interrupt.Config();
  });
  CHECK(interrupt_status());
  CHECK((rig.bridge.Config<std::uint32_t>(rig.at, pci::kCommand) >> 16 & 0x8) != 0);
  CHECK((rig.bridge.Config<std::uint8_t>(rig.at, pci::kStatus) & 0x8) != 0);
  CHECK(rig.bridge.Read<std::uint16_t>(kBase + kIsrOffset) ==
        0);  // not a byte: refused, nothing is taken
  CHECK(rig.bridge.Read<std::uint8_t>(kBase + kIsrOffset + 1) == 0);
  rig.bridge.Write<std::uint8_t>(kBase + kIsrOffset, 0xff);
  CHECK(isr() == (kInterruptQueue | kInterruptConfig));
  CHECK(!interrupt_status());
  CHECK(rig.bridge.platform.interrupts.TakeDelivered().size() == 2);  // those before MSI-X went off
  rig.WriteStatus(0);
  CHECK(isr() == 0);
}

TEST_CASE("virtio-pci: notifications at any width, by doorbell and by trap") {
  PciRig rig;
  rig.Start(kFeatureVersion1, {});
  auto& doorbells = rig.bridge.platform.doorbells;
  CHECK(doorbells.size() == 3);
  for (const std::uint32_t width : {1U, 2U, 4U, 8U}) {
    CHECK(doorbells.Write(memory::Gpa(kBase + kNotifyOffset + 4), width, 1));
  }
  CHECK(rig.transport().kick(1).Consume() == 4);
  CHECK(!doorbells.Write(memory::Gpa(kBase + kNotifyOffset + 12), 2, 3));
  const std::uint64_t refused = rig.Refused();
  rig.bridge.Write<std::uint16_t>(kBase + kNotifyOffset + 8, 2);
  CHECK(rig.transport().kick(2).Consume() == 1);
  rig.bridge.Write<std::uint16_t>(kBase + kNotifyOffset + 12, 3);
  rig.bridge.Write<std::uint16_t>(kBase + kNotifyOffset + 2, 0);
  rig.bridge.Write<std::uint64_t>(kBase + kBarSize - 8, ~std::uint64_t{0});
  CHECK(rig.Refused() == refused + 3);
  CHECK(rig.bridge.Read<std::uint32_t>(kBase + kNotifyOffset) == 0);
  // Doorbells follow the BAR.
  rig.bridge.Config<std::uint16_t>(rig.at, pci::kCommand, 0);
  CHECK(doorbells.size() == 0);
  rig.bridge.Config<std::uint32_t>(rig.at, pci::kBar0 + 4, 0x41);
  rig.bridge.Config<std::uint16_t>(rig.at, pci::kCommand, 2);
  CHECK(doorbells.Write(memory::Gpa(0x4100000000 + kNotifyOffset), 2, 0));
  CHECK(rig.transport().kick(0).Consume() == 1);
}

TEST_CASE(
    "virtio-pci: the configuration window reaches the BAR by 1, 2 and 4 bytes, whatever COMMAND "
    "says") {
  PciRig rig;
  const std::uint32_t cap = rig.FindCapability(pci::kCapVendor, kCapPciCfg);
  const auto point = [&](std::uint32_t bar, std::uint32_t offset, std::uint32_t length) {
    rig.bridge.Config<std::uint8_t>(rig.at, cap + kCapBar, static_cast<std::uint8_t>(bar));
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapOffset, offset);
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapRangeLength, length);
  };
  const auto data = [&] { return rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapPciCfgData); };
  const auto set_data = [&](std::uint32_t value) {
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapPciCfgData, value);
  };
  rig.bridge.Config<std::uint16_t>(rig.at, pci::kCommand, 0);
  point(0, kCommonOffset + kDeviceStatus, 1);
  set_data(0xffffff01);
  CHECK(rig.transport().status() == 1);
  set_data(3);
  CHECK(data() == 3);
  point(0, kCommonOffset + kNumQueues, 2);
  CHECK(data() == 3);
  CHECK(rig.bridge.Config<std::uint8_t>(rig.at, cap + kCapPciCfgData) == 3);
  point(0, kDeviceOffset + 4, 4);
  CHECK(data() == 0x08070605);
  CHECK(rig.bridge.Config<std::uint16_t>(rig.at, cap + kCapPciCfgData + 2) == 0x0807);
  point(0, kNotifyOffset + 4, 2);
  set_data(1);
  CHECK(rig.transport().kick(1).Consume() == 1);
  // Half of the data written: the rest is what was there.
  point(0, kCommonOffset + kDriverFeatureSelect, 4);
  set_data(0x11223344);
  CHECK(rig.Common<std::uint32_t>(kDriverFeatureSelect) ==
        0xffffffff);  // decoding is off for the bus
  CHECK(rig.transport().driver_features_select() == 0x11223344);
  rig.bridge.Config<std::uint16_t>(rig.at, cap + kCapPciCfgData, 0x5566);
  CHECK(rig.transport().driver_features_select() == 0x11225566);

  const std::uint64_t refused = rig.Refused();
  std::uint64_t expected = refused;
  struct Range {
    std::uint32_t bar;
    std::uint32_t offset;
    std::uint32_t length;
  };
  const Range ranges[] = {{0, 0, 0},   {0, 0, 3},   {0, 0, 5},         {0, 0, 8},
                          {0, 0, ~0U}, {0, 2, 4},   {0, 1, 2},         {1, 0, 4},
                          {5, 0, 4},   {255, 0, 4}, {0, 0xfffffffd, 4}};
  for (const Range& range : ranges) {
    CAPTURE(range.bar);
    CAPTURE(range.offset);
    CAPTURE(range.length);
    point(range.bar, range.offset, range.length);
    set_data(0x04030201);
    CHECK(data() == 0x04030201);  // plain storage
    expected += 2;
    CHECK(rig.Refused() == expected);
  }
  // Outside the BAR.
  for (const std::uint32_t offset : {kBarSize, kBarSize + 0x1000, 0xfffffffcU, 0x80000000U}) {
    point(0, offset, 4);
    set_data(0);
    (void)data();
    expected += 2;
    CHECK(rig.Refused() == expected);
  }
  CHECK(rig.ReadStatus() == 0xff);  // decoding is still off
  CHECK(rig.transport().status() == 3);
}

TEST_CASE("virtio-pci: a driver that uses nothing but the configuration window gets through") {
  PciRig rig;
  const std::uint32_t cap = rig.FindCapability(pci::kCapVendor, kCapPciCfg);
  rig.bridge.Config<std::uint16_t>(rig.at, pci::kCommand, 0);
  const auto write = [&](std::uint32_t offset, std::uint32_t length, std::uint32_t value) {
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapOffset, offset);
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapRangeLength, length);
    rig.bridge.Config<std::uint32_t>(rig.at, cap + kCapPciCfgData, value);
  };
  DriverQueue queue = rig.MakeQueue(0);
  write(kDeviceStatus, 1, 3);
  write(kDriverFeatureSelect, 4, 1);
  write(kDriverFeature, 4, 1);
  write(kDeviceStatus, 1, 0xb);
  write(kQueueSize, 2, 8);
  write(kQueueDesc, 4, static_cast<std::uint32_t>(queue.desc_table()));
  write(kQueueDriver, 4, static_cast<std::uint32_t>(queue.avail_ring()));
  write(kQueueDevice, 4, static_cast<std::uint32_t>(queue.used_ring()));
  write(kQueueEnable, 2, 1);
  write(kDeviceStatus, 1, 0xf);
  queue.Build().Writable(4).Publish();
  write(kNotifyOffset, 2, 0);
  const auto used = testing::TransportRig::WaitUsed(queue);
  CHECK(used.has_value());
}

TEST_CASE("virtio-pci: function reset stops the device") {
  PciRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Start(kFeatureVersion1, {{0, &queue}});
  {
    const MutexLock lock(rig.function->lock());
    rig.function->Reset();
  }
  CHECK(rig.device.deactivations == 1);
  CHECK(rig.transport().status() == 0);
  CHECK(rig.bridge.Read<std::uint32_t>(kBase) == 0xffffffff);
  CHECK(rig.bridge.Config<std::uint32_t>(rig.at, pci::kBar0 + 4) ==
        0x40);  // as the monitor placed it
  rig.Enable();
  queue.Restart();
  rig.Start(kFeatureVersion1, {{0, &queue}});
  CHECK(rig.Request(0, queue).size() == 4);
}

TEST_CASE("virtio-pci: saved state moves to another function of the same kind") {
  PciRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Start(kFeatureVersion1, {{0, &queue}});
  CHECK(rig.Request(0, queue).size() == 4);
  rig.SelectQueue(2);
  const auto save = [](PciRig& from) {
    const MutexLock lock(from.function->lock());
    return from.function->Save();
  };
  const auto restore = [](PciRig& to, const PciTransportState& state) {
    const MutexLock lock(to.function->lock());
    return to.function->Restore(state);
  };
  const PciTransportState state = save(rig);
  CHECK(state.version == 1);
  CHECK(state.config_vector == 0);
  CHECK(state.queue_vectors == std::vector<std::uint16_t>{1, 2, 3});

  PciRig other;
  // The rings as the guest's memory has them.
  testing::Store(other.guest, testing::TransportRig::kRings,
                 testing::Load(rig.guest, testing::TransportRig::kRings, 0x80000));
  CHECK(restore(other, state).has_value());
  CHECK(other.ReadStatus() == 0xf);
  CHECK(other.Common<std::uint16_t>(kQueueSelect) == 2);
  CHECK(other.Common<std::uint16_t>(kQueueMsixVector) == 3);
  other.Settle();
  (void)other.TakeInterrupts();
  other.device.OnLoop([](Interrupt& interrupt) { interrupt.Queue(0); });
  CHECK(other.bridge.platform.interrupts.TakeDelivered() ==
        std::vector<bus::MsiMessage>{{0xfee00000, 1}});
  CHECK(save(other).transport.queues[0].next_used == 1);

  PciTransportState bad = state;
  SUBCASE("version") {
    bad.version = 2;
  }
  SUBCASE("config vector") {
    bad.config_vector = 4;
  }
  SUBCASE("queue vector") {
    bad.queue_vectors[2] = 0x100;
  }
  SUBCASE("vector count") {
    bad.queue_vectors.pop_back();
  }
  SUBCASE("function") {
    bad.function.config.registers.clear();
  }
  SUBCASE("transport") {
    bad.transport.device_status = 0xff;
  }
  CHECK(restore(other, bad).error().code == Errc::kBadFormat);
  CHECK(other.transport().status() == 0);
  CHECK(!other.function->bars()[0]->mapped());
}

TEST_CASE("virtio-pci: random accesses to the BAR and config space leave a working device") {
  PciRig rig;
  DriverQueue queue = rig.MakeQueue(0);
  std::mt19937_64 random(20260102);  // NOLINT: the same sequence each run
  for (int step = 0; step < 20000; ++step) {
    const std::array<std::size_t, 4> widths{1, 2, 4, 8};
    const std::size_t width = widths[random() % 4];
    std::array<std::byte, 8> bytes{};
    std::uint64_t value = random();
    if (random() % 2 == 0) value &= 0xf;
    if (random() % 4 == 0) value = 0x10000 * (random() % 32);
    std::memcpy(bytes.data(), &value, 8);
    const std::span<std::byte> data = std::span(bytes).first(width);
    const bool common = random() % 2 == 0;
    const bool config = random() % 8 == 0;
    const std::uint64_t address = config ? pci::FakeBridge::ConfigAddress(
                                               rig.at, static_cast<std::uint32_t>(random() % 0x110))
                                         : kBase + (common ? random() % 0x40 : random() % kBarSize);
    if (random() % 3 == 0) {
      rig.bridge.mmio.Read(address, data);
    } else {
      rig.bridge.mmio.Write(address, data);
    }
    if (step % 512 == 0) rig.Enable();
    // Now and then as a driver means it, so that the walk also meets a device at DRIVER_OK.
    if (step % 1000 == 999) {
      queue.Restart();
      rig.Enable();
      rig.bridge.Config<std::uint32_t>(rig.at, pci::kBar0, 0);
      rig.bridge.Config<std::uint32_t>(rig.at, pci::kBar0 + 4, 0x40);
      rig.Start(kFeatureVersion1 | kFeatureRingReset, {{0, &queue}});
      CHECK(rig.ReadStatus() == 0xf);
      CHECK(rig.Request(0, queue).size() == 4);
    }
  }
}

}  // namespace
}  // namespace postern::virtio
