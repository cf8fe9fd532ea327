#include "devices/virtio/transport.h"

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "devices/virtio/transport_rig.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DriverQueue;
using testing::EchoDevice;
using testing::MmioRig;
using testing::PciRig;

constexpr std::uint64_t kPlain = kFeatureVersion1;
const std::vector<std::byte> kAnswer0(4, std::byte{1});
const std::vector<std::byte> kAnswer1(4, std::byte{2});

// VIRTIO 1.2, 2.1 and 3.1.1, written down a second time: as sets.
StatusStep Model(unsigned status, unsigned written) {
  constexpr unsigned kDriverBits = 0x0f;
  if (written == 0) return StatusStep::kReset;
  if (written == status) return StatusStep::kNothing;
  if ((status & 0x80) != 0 || (written & 0x30) != 0) return StatusStep::kIllegal;
  if (written >= 0x80) return StatusStep::kFail;
  const bool takes_back = (status & kDriverBits) != (status & written & kDriverBits);
  const bool forges = (written & 0x40) != 0 && (status & 0x40) == 0;
  if (takes_back || forges) return StatusStep::kIllegal;
  if ((written & kDriverBits) == (status & kDriverBits) && (status & 0xb0) == 0)
    return StatusStep::kNothing;
  constexpr std::array<std::array<unsigned, 2>, 5> kSteps{
      {{0, 1}, {0, 3}, {1, 3}, {3, 11}, {11, 15}}};
  for (const auto& [from, to] : kSteps) {
    if (status == from && written == to) return StatusStep::kAdvance;
  }
  return StatusStep::kIllegal;
}

TEST_CASE("status: every transition of 256 x 256 is as the specification has it") {
  int legal = 0;
  for (unsigned status = 0; status < 256; ++status) {
    if ((status & 0x30) != 0) continue;  // never a status of ours
    for (unsigned written = 0; written < 256; ++written) {
      CAPTURE(status);
      CAPTURE(written);
      const StatusStep step =
          Classify(static_cast<std::uint8_t>(status), static_cast<std::uint8_t>(written));
      CHECK(step == Model(status, written));
      if (step == StatusStep::kAdvance) ++legal;
    }
  }
  CHECK(legal == 5);
}

TEST_CASE_TEMPLATE("transport: a driver brings the device up, is served, and resets it", Rig,
                   PciRig, MmioRig) {
  Rig rig;
  CHECK(rig.ReadStatus() == 0);
  CHECK(rig.ReadFeatures() == (EchoDevice::kFeatures | kFeatureVersion1 | kFeatureRingReset |
                               kFeatureIndirectDesc | kFeatureEventIdx));
  DriverQueue queue0 = rig.MakeQueue(0);
  DriverQueue queue1 = rig.MakeQueue(1, 64);
  for (int round = 1; round <= 2; ++round) {
    queue0.Restart();
    queue1.Restart();
    rig.Start(kPlain | 1, {{0, &queue0}, {1, &queue1}});
    CHECK(rig.ReadStatus() == 0xf);
    CHECK(rig.device.activations == round);
    CHECK(rig.device.negotiated_features == (kPlain | 1));
    CHECK(rig.Request(0, queue0) == kAnswer0);
    CHECK(rig.WaitInterrupts(1) == 1);
    CHECK(rig.Request(1, queue1, true) == kAnswer1);
    CHECK(rig.WaitInterrupts(1) == 1);
    rig.WriteStatus(0);
    CHECK(rig.ReadStatus() == 0);
    CHECK(rig.device.deactivations == round);
    rig.SelectQueue(0);
    CHECK(rig.QueueEnabled() == 0);
    CHECK(rig.QueueMax() == 256);
  }
  CHECK(rig.Refused() == 0);
  CHECK(rig.Counter("virtio_activations") == 2);
  CHECK(rig.Counter("virtio_kicks_trapped") == 2);
}

TEST_CASE_TEMPLATE("transport: features are negotiated once and checked", Rig, PciRig, MmioRig) {
  Rig rig;
  SUBCASE("without VERSION_1") {
    rig.Negotiate(1);
    CHECK(rig.ReadStatus() == 3);
    CHECK(rig.Refused() == 1);
    rig.WriteStatus(7);  // DRIVER_OK without FEATURES_OK
    CHECK(rig.ReadStatus() == 3);
    rig.WriteFeatures(kPlain);  // a driver may try again
    rig.WriteStatus(0xb);
    CHECK(rig.ReadStatus() == 0xb);
  }
  SUBCASE("bits that were not offered") {
    for (const unsigned bit : {1U, 27U, 34U, 63U}) {
      rig.Negotiate(kPlain | std::uint64_t{1} << bit);
      CHECK(rig.ReadStatus() == 3);
    }
  }
  SUBCASE("before DRIVER and after FEATURES_OK") {
    rig.WriteFeatures(kPlain);
    CHECK(rig.transport().driver_features() == 0);
    CHECK(rig.Refused() == 2);
    rig.Negotiate(kPlain);
    rig.WriteFeatures(kPlain | 1);
    CHECK(rig.transport().driver_features() == kPlain);
    CHECK(rig.Refused() == 4);
  }
  SUBCASE("selectors beyond 64 bits") {
    rig.WriteStatus(3);
    for (const std::uint32_t select : {2U, 3U, 32U, 0x80000000U, 0xffffffffU}) {
      rig.transport().SelectDeviceFeatures(select);
      rig.transport().SelectDriverFeatures(select);
      CHECK(rig.transport().DeviceFeatures() == 0);
      CHECK(rig.transport().DriverFeatures() == 0);
      const std::uint64_t before = rig.Refused();
      rig.transport().WriteDriverFeatures(0);
      CHECK(rig.Refused() == before);
      rig.transport().WriteDriverFeatures(1);
      CHECK(rig.Refused() == before + 1);
      CHECK(rig.transport().driver_features() == 0);
    }
  }
}

TEST_CASE_TEMPLATE("transport: illegal status writes change nothing and are counted", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  for (const std::uint32_t bad : {2U, 4U, 8U, 0xbU, 0xfU, 0x11U, 0x20U, 0x40U})
    rig.WriteStatus(bad);
  CHECK(rig.ReadStatus() == 0);
  CHECK(rig.Refused() == 8);
  rig.Negotiate(kPlain);
  rig.WriteStatus(3);  // a bit taken back
  rig.WriteStatus(0xb);
  CHECK(rig.ReadStatus() == 0xb);
  CHECK(rig.Refused() == 9);
  rig.WriteStatus(0x80);
  CHECK(rig.ReadStatus() == 0x8b);
  rig.WriteStatus(0x8f);
  CHECK(rig.ReadStatus() == 0x8b);
  CHECK(rig.device.activations == 0);
  rig.WriteStatus(0);
  CHECK(rig.ReadStatus() == 0);
}

TEST_CASE_TEMPLATE(
    "transport: queue registers open with FEATURES_OK and freeze with DRIVER_OK (CVE-2026-5747)",
    Rig, PciRig, MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  const auto write_all = [&] {
    rig.SelectQueue(0);
    rig.SetQueueSize(16);
    for (int ring = 0; ring < 3; ++ring) rig.SetRing(ring, 0x123000);
    rig.EnableQueue();
    rig.ResetQueue();
  };
  const auto untouched = [&] {
    const QueueState& state = *rig.transport().Selected();
    return state.size == 256 && state.desc_table == 0 && state.avail_ring == 0 &&
           state.used_ring == 0 && !state.ready;
  };
  rig.WriteStatus(1);
  write_all();
  CHECK(untouched());
  rig.WriteStatus(3);
  write_all();
  CHECK(untouched());
  CHECK(rig.Refused() == 2 * 9);  // size, three rings in halves, enable, reset

  rig.Start(kPlain, {{0, &queue}});
  const QueueState before = *rig.transport().Selected();
  std::uint64_t refused = rig.Refused();
  write_all();
  const QueueState& after = *rig.transport().Selected();
  CHECK(after.size == 8);
  CHECK(after.desc_table == before.desc_table);
  CHECK(after.avail_ring == before.avail_ring);
  CHECK(after.used_ring == before.used_ring);
  CHECK(rig.Refused() == refused + 9);
  // Neither are queues that were left out taken in later.
  rig.SelectQueue(1);
  rig.SetQueueSize(8);
  rig.EnableQueue();
  CHECK(rig.QueueEnabled() == 0);
  CHECK(rig.Request(0, queue) == kAnswer0);
  // Enabled queues freeze before DRIVER_OK already.
  rig.Negotiate(kPlain);
  rig.StartQueue(0, queue);
  refused = rig.Refused();
  rig.SetQueueSize(16);
  rig.SetRing(0, 0x5000);
  rig.EnableQueue();
  CHECK(rig.Refused() == refused + 4);
  CHECK(rig.transport().Selected()->size == 8);
  // A driver that gave up configures nothing.
  rig.WriteStatus(0x8b);
  rig.SelectQueue(1);
  rig.EnableQueue();
  CHECK(rig.QueueEnabled() == 0);
}

TEST_CASE_TEMPLATE("transport: sizes and addresses that 2.7 forbids are refused", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  rig.Negotiate(kPlain);
  rig.SelectQueue(1);
  for (const std::uint32_t size : {0U, 3U, 65U, 128U, 256U, 32768U, 65535U}) {
    CAPTURE(size);
    rig.SetQueueSize(size);
    CHECK(rig.transport().Selected()->size == 64);
  }
  CHECK(rig.Refused() == 7);
  for (const std::uint32_t size : {1U, 2U, 64U}) {
    rig.SetQueueSize(size);
    CHECK(rig.transport().Selected()->size == size);
  }
  const std::array<std::uint64_t, 3> aligns{16, 2, 4};
  for (int ring = 0; ring < 3; ++ring) {
    const std::uint64_t align = aligns[static_cast<std::size_t>(ring)];
    const std::uint64_t before = rig.Refused();
    rig.SetRing(ring, 0x10000 + align / 2);
    CHECK(rig.Refused() == before + 1);
    rig.SetRing(ring, 0x10000 + align);
    CHECK(rig.Refused() == before + 1);
    rig.SetRing(ring, 0xfedcba98'76543210 & ~(align - 1));
  }
  CHECK(rig.transport().Selected()->desc_table == 0xfedcba9876543210);
  CHECK(rig.transport().Selected()->avail_ring == 0xfedcba9876543210);
  CHECK(rig.transport().Selected()->used_ring == 0xfedcba9876543210);
}

TEST_CASE_TEMPLATE("transport: a selector out of range selects nothing", Rig, PciRig, MmioRig) {
  Rig rig;
  rig.Negotiate(kPlain);
  for (const std::uint32_t select : {3U, 4U, 0xffffU}) {
    rig.SelectQueue(select);
    const std::uint64_t refused = rig.Refused();
    CHECK(rig.QueueMax() == 0);
    CHECK(rig.QueueEnabled() == 0);
    rig.SetQueueSize(8);
    for (int ring = 0; ring < 3; ++ring) rig.SetRing(ring, 0x1000);
    rig.EnableQueue();
    rig.ResetQueue();
    CHECK(rig.QueueEnabled() == 0);
    CHECK(rig.Refused() == refused + 9);
  }
  for (std::uint16_t queue = 0; queue < 3; ++queue) {
    rig.SelectQueue(queue);
    CHECK(rig.transport().Selected()->desc_table == 0);
    CHECK(rig.transport().Selected()->size == EchoDevice::kQueueSizes[queue]);
  }
}

TEST_CASE_TEMPLATE("transport: an activation that fails asks for a reset", Rig, PciRig, MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  const auto start = [&](int ring, std::uint64_t address) {
    rig.Negotiate(kPlain);
    rig.SelectQueue(0);
    rig.SetQueueSize(8);
    rig.SetRing(0, queue.desc_table());
    rig.SetRing(1, queue.avail_ring());
    rig.SetRing(2, queue.used_ring());
    rig.SetRing(ring, address);
    rig.EnableQueue();
    (void)rig.TakeInterrupts();
    rig.WriteStatus(0xf);
  };
  int failures = 0;
  for (int ring = 0; ring < 3; ++ring) {
    // Beyond RAM, across its end, at the end of the address space.
    for (const std::uint64_t address : {testing::TransportRig::kOutside,
                                        testing::TransportRig::kOutside - 16, ~std::uint64_t{15}}) {
      CAPTURE(ring);
      CAPTURE(address);
      start(ring, address);
      CHECK(rig.ReadStatus() == (0xf | kStatusNeedsReset));
      CHECK(rig.TakeInterrupts() == 1);  // 2.1.2: the driver is told
      CHECK(rig.Counter("virtio_activation_failures") == static_cast<std::uint64_t>(++failures));
      CHECK(rig.device.activations == 0);
    }
  }
  rig.Kick(0);
  rig.WriteStatus(0x4f);
  rig.WriteStatus(0);
  rig.Start(kPlain, {{0, &queue}});
  CHECK(rig.ReadStatus() == 0xf);
  CHECK(rig.Request(0, queue) == kAnswer0);
}

TEST_CASE_TEMPLATE("transport: a device may start with no queue enabled", Rig, PciRig, MmioRig) {
  Rig rig;
  rig.Start(kPlain, {});
  CHECK(rig.ReadStatus() == 0xf);
  CHECK(rig.device.activations == 1);
  rig.Kick(0);
  rig.Kick(2, true);
  rig.Settle();
  rig.WriteStatus(0);
  CHECK(rig.device.deactivations == 1);
}

TEST_CASE_TEMPLATE("transport: a broken ring asks for a reset and stops the device", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Start(kPlain, {{0, &queue}});
  queue.PublishHead(77);
  rig.Kick(0);
  CHECK(rig.WaitInterrupts(1) == 1);
  CHECK(rig.ReadStatus() == 0x4f);
  CHECK(rig.Counter("virtio_needs_reset") == 1);
  queue.Restart();
  rig.Start(kPlain, {{0, &queue}});
  CHECK(rig.Request(0, queue) == kAnswer0);
}

TEST_CASE_TEMPLATE("transport: RING_RESET takes one queue back and hands it out anew", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  DriverQueue queue0 = rig.MakeQueue(0);
  DriverQueue queue1 = rig.MakeQueue(1);
  rig.Start(kPlain | kFeatureRingReset, {{0, &queue0}, {1, &queue1}});
  CHECK(rig.Request(0, queue0) == kAnswer0);
  rig.SelectQueue(0);
  rig.WriteQueueReset(0);
  rig.WriteQueueReset(2);
  CHECK(rig.QueueEnabled() == 1);
  CHECK(rig.Refused() == 2);
  rig.ResetQueue();
  CHECK(rig.device.queue_resets == 1);
  CHECK(rig.QueueEnabled() == 0);
  CHECK(rig.transport().Selected()->size == 256);
  CHECK(rig.transport().Selected()->desc_table == 0);
  rig.ResetQueue();  // not enabled any more
  CHECK(rig.Refused() == 3);
  CHECK(rig.Request(1, queue1) == kAnswer1);  // the other is not concerned
  rig.Kick(0);
  rig.Settle();

  DriverQueue elsewhere(rig.guest, {.base = 0x400000, .size = 32});
  if constexpr (std::is_same_v<Rig, PciRig>) {
    rig.SelectQueue(0);
    CHECK(rig.template Common<std::uint16_t>(kQueueMsixVector) == kNoVector);
    rig.template Common<std::uint16_t>(kQueueMsixVector, 1);
  }
  rig.StartQueue(0, elsewhere);
  CHECK(rig.QueueEnabled() == 1);
  (void)rig.TakeInterrupts();
  CHECK(rig.Request(0, elsewhere) == kAnswer0);
  CHECK(rig.WaitInterrupts(1) == 1);
  // Configured wrongly after a reset: as an activation that fails.
  rig.SelectQueue(0);
  rig.ResetQueue();
  rig.SetRing(0, testing::TransportRig::kOutside);
  rig.EnableQueue();
  CHECK(rig.ReadStatus() == 0x4f);
  CHECK(rig.Request(1, queue1) == kAnswer1);
  // Not while DRIVER_OK alone is there: not negotiated.
  queue0.Restart();
  rig.Start(kPlain, {{0, &queue0}});
  rig.SelectQueue(0);
  rig.ResetQueue();
  CHECK(rig.QueueEnabled() == 1);
  CHECK(rig.Request(0, queue0) == kAnswer0);
}

TEST_CASE_TEMPLATE("transport: configuration changes step the generation and interrupt", Rig,
                   PciRig, MmioRig) {
  Rig rig;
  rig.Start(kPlain, {});
  const std::uint32_t before = rig.ReadGeneration();
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Config(); });
  CHECK(rig.ReadGeneration() == before + 1);
  CHECK(rig.TakeInterrupts() == 1);
  CHECK((rig.transport().interrupt_status() & kInterruptConfig) != 0);
  CHECK(rig.Counter("virtio_config_changes") == 1);
}

TEST_CASE_TEMPLATE(
    "transport: device configuration reads any time and at any width, writes from DRIVER on", Rig,
    PciRig, MmioRig) {
  Rig rig;
  CHECK(rig.ReadConfig(0, 8) == 0x0807060504030201);
  CHECK(rig.ReadConfig(1, 4) == 0x05040302);
  CHECK(rig.ReadConfig(3, 2) == 0x0504);
  CHECK(rig.ReadConfig(23, 1) == 0x18);
  CHECK(rig.ReadConfig(20, 8) == 0x18171615);
  CHECK(rig.ReadConfig(24, 8) == 0);
  CHECK(rig.ReadConfig(0xef8, 8) == 0);
  rig.WriteConfig(0, 1, 0xaa);
  CHECK(rig.ReadConfig(0, 1) == 1);
  CHECK(rig.Refused() == 1);
  rig.Negotiate(kPlain);
  rig.WriteConfig(0, 1, 0xaa);
  rig.WriteConfig(20, 8, 0x8877665544332211);
  CHECK(rig.ReadConfig(0, 1) == 0xaa);
  CHECK(rig.ReadConfig(20, 4) == 0x44332211);
  rig.WriteStatus(0x80);
  rig.WriteConfig(0, 1, 0xbb);
  CHECK(rig.ReadConfig(0, 1) == 0xaa);
}

TEST_CASE("transport: devices it cannot carry are refused") {
  class Odd final : public SingleLoopDevice {
   public:
    Odd(EventLoop& loop, std::vector<std::uint16_t> sizes, std::uint32_t config)
        : SingleLoopDevice(loop, "odd"), sizes_(std::move(sizes)), config_(config) {}
    [[nodiscard]] DeviceId id() const override { return DeviceId::kEntropy; }
    [[nodiscard]] std::uint64_t features() const override { return 0; }
    [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override { return sizes_; }
    [[nodiscard]] std::uint32_t config_size() const override { return config_; }
    void ReadConfig(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) override {}
    void WriteConfig(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}

   private:
    void OnChain(std::uint16_t /*queue*/, Chain chain) override { chain.Complete(0); }
    std::vector<std::uint16_t> sizes_;
    std::uint32_t config_;
  };
  auto loop = EventLoop::Create().value();
  const memory::MemoryMap memory(testing::MakeMemory(0x1000));
  pci::FakeBridge bridge;
  const auto refused = [&](std::vector<std::uint16_t> sizes, std::uint32_t config = 0) {
    Odd device(*loop, std::move(sizes), config);
    auto pci = PciTransport::Create(device, memory, bridge.platform.interrupts, "odd");
    auto mmio = MmioTransport::Create(device, memory, bridge.platform.Get(), bridge.mmio,
                                      memory::Gpa(0xd0000000), 5, "odd");
    return std::pair(!pci, !mmio);
  };
  using Both = std::pair<bool, bool>;
  CHECK(refused({}) == Both(true, true));
  CHECK(refused({0}) == Both(true, true));
  CHECK(refused({8, 12}) == Both(true, true));
  CHECK(refused({32768}) == Both(false, false));
  CHECK(refused({33000}) == Both(true, true));
  CHECK(refused(std::vector<std::uint16_t>(255, 8)) == Both(false, false));
  CHECK(refused(std::vector<std::uint16_t>(256, 8)) == Both(true, false));
  CHECK(refused(std::vector<std::uint16_t>(1025, 8)) == Both(true, true));
  CHECK(refused({8}, 0xf00) == Both(false, false));
  CHECK(refused({8}, 0x1000) == Both(false, true));
  CHECK(refused({8}, 0x1001) == Both(true, true));
}

template <typename Rig>
TransportState SaveOf(Rig& rig) {
  const MutexLock lock(rig.lock());
  return rig.transport().Save();
}
template <typename Rig>
Result<void> RestoreTo(Rig& rig, const TransportState& state) {
  const MutexLock lock(rig.lock());
  return rig.transport().Restore(state);
}

TEST_CASE_TEMPLATE("transport: a restored device goes on where the saved one stopped", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(1);
  rig.Start(kPlain | kFeatureEventIdx | 1, {{1, &queue}});
  for (int i = 0; i < 11; ++i) CHECK(rig.Request(1, queue) == kAnswer1);
  rig.SelectQueue(1);
  rig.device.OnLoop([](Interrupt& interrupt) { interrupt.Config(); });
  const TransportState state = SaveOf(rig);
  CHECK(state.device_id == 2);
  CHECK(state.device_status == 0xf);
  CHECK(state.driver_features == (kPlain | kFeatureEventIdx | 1));
  CHECK(state.activated);
  CHECK(state.queue_select == 1);
  CHECK(state.config_generation == 1);
  CHECK(state.queues[1].next_avail == 11);
  CHECK(state.queues[1].next_used == 11);
  CHECK(state.queues[1].size == 8);

  // The same device behind the same memory: here it is stopped, its state is put back, and the
  // driver goes on.
  CHECK(RestoreTo(rig, state).has_value());
  CHECK(rig.device.activations == 2);
  CHECK(rig.ReadStatus() == 0xf);
  CHECK(rig.Request(1, queue) == kAnswer1);
  CHECK(SaveOf(rig).queues[1].next_used == 12);

  SUBCASE("idle states") {
    rig.WriteStatus(0);
    CHECK(RestoreTo(rig, SaveOf(rig)).has_value());
    rig.Negotiate(kPlain);
    rig.StartQueue(0, queue);
    const TransportState configured = SaveOf(rig);
    rig.WriteStatus(0);
    CHECK(RestoreTo(rig, configured).has_value());
    CHECK(rig.ReadStatus() == 0xb);
    CHECK(rig.transport().Selected()->ready);
    CHECK(SaveOf(rig).queues[0].desc_table == queue.desc_table());
  }
  SUBCASE("a device that waits for its reset") {
    queue.PublishHead(1000);
    rig.Kick(1);
    (void)rig.WaitInterrupts(1);
    rig.Settle();
    const TransportState broken = SaveOf(rig);
    CHECK(broken.device_status == 0x4f);
    CHECK(RestoreTo(rig, broken).has_value());
    CHECK(rig.ReadStatus() == 0x4f);
    CHECK(rig.device.activations == 2);  // it waits idle
    CHECK(RestoreTo(rig, SaveOf(rig)).has_value());
    rig.WriteStatus(0);
    CHECK(rig.ReadStatus() == 0);
  }
}

TEST_CASE_TEMPLATE("transport: states no driver could have reached are refused", Rig, PciRig,
                   MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.Start(kPlain, {{0, &queue}});
  const TransportState good = SaveOf(rig);
  TransportState bad = good;
  SUBCASE("another device") {
    bad.device_id = 1;
  }
  SUBCASE("fewer queues") {
    bad.queues.pop_back();
  }
  SUBCASE("more queues") {
    bad.queues.emplace_back();
  }
  SUBCASE("no queues") {
    bad.queues.clear();
  }
  SUBCASE("unknown status bits") {
    bad.device_status |= 0x10;
  }
  SUBCASE("a status out of order") {
    bad.device_status = 0x7;
  }
  SUBCASE("NEEDS_RESET before DRIVER_OK") {
    bad.device_status = 0x4b;
  }
  SUBCASE("interrupt bits") {
    bad.interrupt_status = 4;
  }
  SUBCASE("features not offered") {
    bad.driver_features |= 2;
  }
  SUBCASE("no VERSION_1") {
    bad.driver_features = 0;
  }
  SUBCASE("features before DRIVER") {
    bad.device_status = 1;
  }
  SUBCASE("active before DRIVER_OK") {
    bad.device_status = 0xb;
  }
  SUBCASE("not active after DRIVER_OK") {
    bad.activated = false;
  }
  SUBCASE("queue maximum") {
    bad.queues[0].max_size = 512;
  }
  SUBCASE("queue size 0") {
    bad.queues[0].size = 0;
  }
  SUBCASE("queue size above the maximum") {
    bad.queues[2].size = 16;
  }
  SUBCASE("queue size no power of two") {
    bad.queues[0].size = 9;
  }
  SUBCASE("misaligned ring") {
    bad.queues[0].desc_table += 8;
  }
  SUBCASE("ring outside RAM") {
    bad.queues[0].used_ring = testing::TransportRig::kOutside;
  }
  SUBCASE("a position on a queue that is not enabled") {
    bad.queues[1].next_avail = 1;
  }
  SUBCASE("a queue configured before FEATURES_OK") {
    bad.device_status = 3;
    bad.activated = false;
  }
  CHECK(RestoreTo(rig, bad).error().code == Errc::kBadFormat);
  CHECK(rig.ReadStatus() == 0);
  CHECK(SaveOf(rig).queues[0].desc_table == 0);
  // And the transport still works.
  queue.Restart();
  rig.Start(kPlain, {{0, &queue}});
  CHECK(rig.Request(0, queue) == kAnswer0);
}

// The device interrupts, reports changes and breaks on its thread while vCPUs activate and reset
// it: nothing waits for the lock that a vCPU holds in RunSync. A dead-lock hangs here; TSan watches
// the rest.
TEST_CASE_TEMPLATE("transport: the device may interrupt while a vCPU waits for its thread", Rig,
                   PciRig, MmioRig) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  rig.device.noisy = true;
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop.load()) {
      (void)rig.ReadGeneration();
      (void)rig.ReadStatus();
      rig.Kick(0);
    }
  });
  for (int i = 0; i < 100; ++i) {
    queue.Restart();
    rig.Start(kPlain, {{0, &queue}});
    CHECK((rig.ReadStatus() & kStatusNeedsReset) != 0);
    rig.WriteStatus(0);
    CHECK(rig.ReadStatus() == 0);
  }
  stop.store(true);
  reader.join();
  CHECK(rig.device.activations == 100);
  CHECK(rig.device.deactivations == 100);
}

}  // namespace
}  // namespace postern::virtio
