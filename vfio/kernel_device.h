#pragma once

// KernelDevice: a device behind the kernel's VFIO: a HostDevice over its descriptor.
//
//   auto device = TRY(KernelDevice::Create(calls, std::move(fd), "0000:3b:00.0",
//                                          std::move(attachment)));
//   TRY(device->ReadRegion(kConfigRegion, 0, bytes));
//
// Is not: how a device is found and attached to an address space (KernelHost). Once the kernel has
// answered ENODEV the device is gone: nothing is asked of it again, every call answers ENODEV.
//
// Ownership: of the descriptor, and of the Attachment, through which it leaves: interrupts first,
// then whatever order the kernel wants; mappings are gone before. Threads: any; the kernel
// serialises the calls of one device. Destroyed on the control thread; never fails.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::vfio {

// A device's hold on its address space, and on the group it came from.
class Attachment {
 public:
  virtual ~Attachment() = default;
  [[nodiscard]] virtual iommu::AddressSpace& address_space() = 0;
  // Once, at the end: takes the device off its address space and closes it, in the kernel's order.
  virtual void Release(Fd device) = 0;
};

class KernelDevice final : public HostDevice {
 public:
  // Asks the device what it has. kBadFormat: its answers contradict themselves; kUnsupported: not
  // PCI. `device` is released through `attachment` in any case.
  [[nodiscard]] static Result<std::unique_ptr<KernelDevice>> Create(
      KernelCalls& calls, Fd device, std::string name, std::unique_ptr<Attachment> attachment);
  ~KernelDevice() override;

  [[nodiscard]] const DeviceInfo& info() const override { return info_; }
  [[nodiscard]] iommu::AddressSpace& address_space() override {
    return attachment_->address_space();
  }
  [[nodiscard]] Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) override;
  [[nodiscard]] Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) override;
  [[nodiscard]] Result<std::unique_ptr<RegionMapping>> MapRegion(std::uint32_t region,
                                                                 const MapArea& area) override;
  // INTx must be enabled (SetVectors) before it can be masked or given an unmask event.
  [[nodiscard]] Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) override;
  [[nodiscard]] Result<void> DisableIrq(std::uint32_t irq) override;
  [[nodiscard]] Result<void> MaskIntx(bool masked) override;
  [[nodiscard]] Result<void> SetIntxUnmask(int unmask) override;
  // Waits a quarter of a second at most for a device that is being reset by another.
  [[nodiscard]] Result<void> Reset() override;

 private:
  KernelDevice(KernelCalls& calls, Fd device, std::unique_ptr<Attachment> attachment)
      : calls_(calls), device_(std::move(device)), attachment_(std::move(attachment)) {}
  [[nodiscard]] Result<void> Survey(std::string name);
  [[nodiscard]] Result<void> Present() const;
  // The result as it is, remembering ENODEV.
  template <typename T>
  [[nodiscard]] Result<T> Noted(Result<T> result);

  KernelCalls& calls_;
  Fd device_;
  std::unique_ptr<Attachment> attachment_;
  DeviceInfo info_;                                     // constant after Create
  std::array<std::uint64_t, kRegionCount> offsets_{};   // in the device's file; constant likewise
  std::array<std::atomic<bool>, kIrqCount> enabled_{};  // by SetVectors
  std::atomic<bool> gone_ = false;
};

[[nodiscard]] std::uint64_t PageSize();

// False when it has waited long enough.
[[nodiscard]] bool WaitForBusyDevice(unsigned tries);

// Calls `attempt` again, a few times and ever later, while it answers EAGAIN: another function of
// the same device is being reset.
template <typename Attempt>
[[nodiscard]] auto RetryWhileBusy(Attempt&& attempt) -> decltype(attempt()) {
  for (unsigned tries = 0;; ++tries) {
    auto result = attempt();
    if (result || result.error().code != Errc::kSystem || result.error().sys_errno != EAGAIN ||
        !WaitForBusyDevice(tries)) {
      return result;
    }
  }
}

}  // namespace postern::vfio
