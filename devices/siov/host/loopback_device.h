#pragma once

// LoopbackDevice: a Vdev of this process as a HostDevice: what a driver of the host's side would
// find if the Vdev were a physical function. For tests of such a driver on any machine.
//
//   LoopbackDevice device(std::make_unique<...Personality>, std::make_unique<Engine>);
//   auto host = DsaHost::Create(std::make_unique<LoopbackDevice>(...), {...});
//
// Like the kernel's VFIO: BARs answer with EIO while memory decoding is off, Reset is a function
// level reset, MSI-X vectors signal the eventfds given. Polled portal pages can be mapped. DMA is
// the engine's own business; address_space() only writes down what is mapped.
//
// Faults on demand: `read` may change what a read answers, `fail` may fail a call; `Signal` signals
// an interrupt of any index.
//
// Ownership: of the Vdev and of a thread that runs its loop. Threads: any.

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "devices/pci/fake_function.h"
#include "devices/siov/core/vdev.h"
#include "src/base/event_loop.h"
#include "src/base/fd.h"
#include "src/base/mutex.h"
#include "src/base/thread.h"
#include "vfio/fake_host_device.h"
#include "vfio/host_device.h"

namespace postern::dsa {

class LoopbackDevice final : public vfio::HostDevice {
 public:
  struct Access {
    std::uint32_t region = 0;
    std::uint64_t offset = 0;
    bool write = false;
    std::uint64_t value = 0;  // of a write of up to 8 bytes
  };

  LoopbackDevice(std::unique_ptr<siov::Personality> personality,
                 std::unique_ptr<siov::Backend> backend, siov::PortalMode portal);
  ~LoopbackDevice() override;

  [[nodiscard]] siov::Vdev& vdev() { return *vdev_; }
  // As a device that is about to work elsewhere would.
  void RevokeHandles();
  // False: nobody listens.
  bool Signal(std::uint32_t irq, std::uint32_t vector) EXCLUDES(mutex_);
  // Writes so far to a region, by their offset.
  [[nodiscard]] std::vector<Access> Writes(std::uint32_t region) EXCLUDES(mutex_);
  // An errno for an access; 0: go on. And what a read answers. Set before the device is used, or
  // safe to call from any thread.
  std::function<int(const Access&)> fail;
  std::function<void(const Access&, std::span<std::byte>)> read;
  std::atomic<int> resets{0};

  [[nodiscard]] const vfio::DeviceInfo& info() const override { return info_; }
  [[nodiscard]] iommu::AddressSpace& address_space() override { return space_; }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override;
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override;
  [[nodiscard]] Result<std::unique_ptr<vfio::RegionMapping>> MapRegion(
      std::uint32_t region, const vfio::MapArea& area) override;
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) override;
  [[nodiscard]] Result<void> DisableIrq(std::uint32_t irq) override;
  [[nodiscard]] Result<void> MaskIntx(bool masked) override;
  [[nodiscard]] Result<void> SetIntxUnmask(int unmask) override;
  [[nodiscard]] Result<void> Reset() override;

 private:
  // Vectors in the order in which they are asked for: 0, 1, ...
  class Routes final : public bus::InterruptSource {
   public:
    explicit Routes(LoopbackDevice& owner) : owner_(owner) {}
    [[nodiscard]] Result<std::unique_ptr<bus::MsiRoute>> NewMsi() override;
    [[nodiscard]] Result<std::unique_ptr<bus::IrqLine>> NewLine(std::uint32_t gsi,
                                                                const EventFd* resample) override;

   private:
    LoopbackDevice& owner_;
    std::uint32_t next_ = 0;
  };
  class Route;
  class Page;

  void OpenVectors();
  [[nodiscard]] Result<void> Enter(const Access& access) EXCLUDES(mutex_);
  [[nodiscard]] bool Decodes();
  // 1, 2, 4 or 8 bytes of a BAR.
  void Touch(std::uint32_t bar, std::uint64_t offset, std::span<std::byte> read,
             std::span<const std::byte> write);

  pci::FakeBridge bridge_;
  std::unique_ptr<EventLoop> loop_ = EventLoop::Create().value();
  Routes routes_{*this};
  siov::Personality* personality_ = nullptr;
  std::unique_ptr<siov::Vdev> vdev_;
  vfio::DeviceInfo info_;
  vfio::FakeAddressSpace space_;
  Mutex mutex_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Fd> events_ GUARDED_BY(mutex_);
  std::vector<Access> writes_ GUARDED_BY(mutex_);
  Thread thread_;
};

}  // namespace postern::dsa
