// Register accesses of a driver, decoded from the input, on one of the two transports: any offset
// and width, mixed with the steps of a driver that means it. Afterwards the device must come up for
// a correct driver.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include "devices/virtio/transport_rig.h"
#include "src/base/check.h"
#include "src/base/log.h"
#include "tests/support/fuzz_input.h"

using postern::testing::DriverQueue;
using postern::testing::FuzzInput;
using postern::testing::MmioRig;
using postern::testing::PciRig;
using postern::testing::TransportRig;

namespace virtio = postern::virtio;

namespace {

// A step of a plausible driver.
void DriverStep(TransportRig& rig, DriverQueue& queue, FuzzInput& input) {
  switch (input.Take(1) % 10) {
    case 0:
      return rig.WriteStatus(static_cast<std::uint32_t>(input.Take(1)));
    case 1:
      return rig.Negotiate(virtio::kFeatureVersion1 | virtio::kFeatureRingReset | input.Take(1));
    case 2:
      return rig.StartQueue(static_cast<std::uint16_t>(input.Take(1) % 4), queue);
    case 3:
      return rig.WriteStatus(0xf);
    case 4:
      rig.SelectQueue(static_cast<std::uint32_t>(input.Take(4)));
      return rig.ResetQueue();
    case 5:
      rig.SelectQueue(static_cast<std::uint32_t>(input.Take(1) % 4));
      return rig.SetRing(static_cast<int>(input.Take(1) % 3), input.Take(3) * 16);
    case 6:
      return rig.Kick(static_cast<std::uint32_t>(input.Take(1) % 4), input.Take(1) % 2 == 0);
    case 7:
      queue.PublishHead(static_cast<std::uint16_t>(input.Take(1)));
      return;
    case 8: {
      const postern::MutexLock lock(rig.lock());
      virtio::TransportState state = rig.transport().Save();
      // Possibly bent: then it must be refused or harmless.
      if (const std::uint64_t bend = input.Take(1); bend % 2 == 0) {
        virtio::QueueState& bent = state.queues[bend % state.queues.size()];
        bent.size = static_cast<std::uint16_t>(input.Take(2));
        bent.next_avail = static_cast<std::uint16_t>(input.Take(2));
        bent.desc_table ^= input.Take(1);
        state.device_status ^= static_cast<std::uint8_t>(input.Take(1));
      }
      (void)rig.transport().Restore(state);
      return;
    }
    default:
      return rig.device.OnLoop([](virtio::Interrupt& interrupt) { interrupt.Config(); });
  }
}

template <typename Rig>
void Run(FuzzInput& input, std::uint64_t base, std::uint64_t size) {
  Rig rig;
  DriverQueue queue = rig.MakeQueue(0);
  for (int step = 0; step < 256 && input.left(); ++step) {
    const auto control = static_cast<std::uint8_t>(input.Take(1));
    if ((control & 0x30) == 0x30) {
      DriverStep(rig, queue, input);
      continue;
    }
    const std::size_t width = std::size_t{1} << (control & 3);
    // The first 256 bytes hold most registers.
    const std::uint64_t offset = (control & 8) != 0 ? input.Take(2) % size : input.Take(1);
    std::uint64_t value = input.Take((control & 0x40) != 0 ? width : 1);
    std::array<std::byte, 8> bytes{};
    std::memcpy(bytes.data(), &value, sizeof(value));
    if ((control & 4) != 0) {
      rig.bridge.mmio.Write(base + offset, std::span<const std::byte>(bytes).first(width));
    } else {
      rig.bridge.mmio.Read(base + offset, std::span(bytes).first(width));
    }
    if constexpr (std::is_same_v<Rig, PciRig>) {
      if ((control & 0x80) == 0) continue;
      const auto config = static_cast<std::uint32_t>(input.Take(1));
      rig.bridge.mmio.Write(postern::pci::FakeBridge::ConfigAddress(rig.at, config & ~7U),
                            std::span<const std::byte>(bytes).first(width));
    }
  }
  if constexpr (std::is_same_v<Rig, PciRig>) {
    rig.template Common<std::uint8_t>(virtio::kDeviceStatus, 0);
    const postern::MutexLock lock(rig.function->lock());
    rig.function->Reset();
  }
  if constexpr (std::is_same_v<Rig, PciRig>) rig.Enable();
  queue.Restart();
  rig.Start(virtio::kFeatureVersion1, {{0, &queue}});
  CHECK(rig.ReadStatus() == 0xf);
  CHECK(rig.Request(0, queue) == std::vector<std::byte>(4, std::byte{1}));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  postern::log::SetLevel(postern::LogLevel::kOff);
  FuzzInput input(data, size);
  if (input.Take(1) % 2 == 0) {
    Run<PciRig>(input, PciRig::kBase, virtio::kBarSize);
  } else {
    Run<MmioRig>(input, MmioRig::kBase, virtio::MmioTransport::kSize);
  }
  return 0;
}
