#include "vfio/kernel_device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "src/base/log.h"
#include "src/base/mmap.h"
#include "vfio/ioctls.h"

namespace postern::vfio {
namespace {

class Pages final : public RegionMapping {
 public:
  explicit Pages(Mmap mapping) : mapping_(std::move(mapping)) {
    // No fd: whoever holds the device's descriptor can do more than map these pages.
    pages_.address = mapping_.data();
    pages_.length = mapping_.size();
  }
  [[nodiscard]] const bus::HostPages& pages() const override { return pages_; }

 private:
  Mmap mapping_;
  bus::HostPages pages_;
};

bool Within(std::uint64_t size, std::uint64_t offset, std::uint64_t length) {
  return offset <= size && length <= size - offset;
}

bool IsMsi(std::uint32_t irq) {
  return irq == kMsiIrq || irq == kMsixIrq;
}

}  // namespace

std::uint64_t PageSize() {
  return static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

bool WaitForBusyDevice(unsigned tries) {
  constexpr unsigned kTries = 8;  // 1 + 2 + ... + 128 ms
  if (tries >= kTries) return false;
  timespec pause{.tv_sec = 0, .tv_nsec = 1'000'000L << tries};
  // A signal only makes the next attempt come earlier.
  (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr);
  return true;
}

Result<std::unique_ptr<KernelDevice>> KernelDevice::Create(KernelCalls& calls, Fd device,
                                                           std::string name,
                                                           std::unique_ptr<Attachment> attachment) {
  std::unique_ptr<KernelDevice> made(
      new KernelDevice(calls, std::move(device), std::move(attachment)));
  TRY(made->Survey(std::move(name)));
  return made;
}

KernelDevice::~KernelDevice() {
  for (std::uint32_t irq = 0; irq < kIrqCount; ++irq) {
    const Result<void> disabled = DisableIrq(irq);
    if (!disabled && disabled.error().sys_errno != ENODEV) {
      LOG_WARN("vfio", "{}: interrupt index {} stays enabled until the device is closed: errno {}",
               info_.name, irq, disabled.error().sys_errno);
    }
  }
  attachment_->Release(std::move(device_));
}

Result<void> KernelDevice::Survey(std::string name) {
  info_.name = std::move(name);
  const DeviceCounts counts = TRY(GetDeviceCounts(calls_, device_.get()));
  info_.can_reset = counts.can_reset;
  const std::uint64_t page_size = PageSize();
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(counts.regions, kRegionCount); ++i) {
    KernelRegion region = TRY(GetRegion(calls_, device_.get(), i, page_size));
    if (region.dropped_areas != 0) {
      LOG_WARN("vfio", "{}: region {}: {} areas that make no sense are not mapped", info_.name, i,
               region.dropped_areas);
    }
    offsets_[i] = region.offset;
    info_.regions[i] = std::move(region.info);
  }
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(counts.irqs, kIrqCount); ++i) {
    info_.irqs[i] = TRY(GetIrq(calls_, device_.get(), i));
  }
  // PCI 3.0 6.1: the header is 64 bytes; without it there is no function.
  constexpr std::uint64_t kHeader = 64;
  const RegionInfo& config = info_.regions[kConfigRegion];
  if (config.size < kHeader || !config.readable || !config.writable) {
    return Err(Errc::kBadFormat, "device without a configuration space");
  }
  return {};
}

Result<void> KernelDevice::Present() const {
  if (gone_.load(std::memory_order_relaxed)) return SysError("device is gone", ENODEV);
  return {};
}

template <typename T>
Result<T> KernelDevice::Noted(Result<T> result) {
  if (!result && result.error().code == Errc::kSystem && result.error().sys_errno == ENODEV &&
      !gone_.exchange(true, std::memory_order_relaxed)) {
    LOG_WARN("vfio", "{}: the device is gone", info_.name);
  }
  return result;
}

Result<void> KernelDevice::ReadRegion(std::uint32_t region, std::uint64_t offset,
                                      std::span<std::byte> data) {
  TRY(Present());
  if (region >= kRegionCount || !info_.regions[region].readable ||
      !Within(info_.regions[region].size, offset, data.size())) {
    return Err(Errc::kInvalidArgument, "read outside the region");
  }
  std::uint64_t at = offsets_[region] + offset;
  while (!data.empty()) {
    const std::size_t done = TRY(Noted(calls_.Read(device_.get(), data, at, "read VFIO region")));
    if (done == 0 || done > data.size()) return SysError("read VFIO region", EIO);
    data = data.subspan(done);
    at += done;
  }
  return {};
}

Result<void> KernelDevice::WriteRegion(std::uint32_t region, std::uint64_t offset,
                                       std::span<const std::byte> data) {
  TRY(Present());
  if (region >= kRegionCount || !info_.regions[region].writable ||
      !Within(info_.regions[region].size, offset, data.size())) {
    return Err(Errc::kInvalidArgument, "write outside the region");
  }
  std::uint64_t at = offsets_[region] + offset;
  while (!data.empty()) {
    const std::size_t done = TRY(Noted(calls_.Write(device_.get(), data, at, "write VFIO region")));
    if (done == 0 || done > data.size()) return SysError("write VFIO region", EIO);
    data = data.subspan(done);
    at += done;
  }
  return {};
}

Result<std::unique_ptr<RegionMapping>> KernelDevice::MapRegion(std::uint32_t region,
                                                               const MapArea& area) {
  TRY(Present());
  if (region >= kRegionCount) return Err(Errc::kInvalidArgument, "map no region");
  const RegionInfo& info = info_.regions[region];
  const std::uint64_t page_size = PageSize();
  const bool inside = std::any_of(info.areas.begin(), info.areas.end(), [&](const MapArea& whole) {
    return area.offset >= whole.offset &&
           Within(whole.length, area.offset - whole.offset, area.length);
  });
  if (area.length == 0 || area.offset % page_size != 0 || area.length % page_size != 0 || !inside) {
    return Err(Errc::kInvalidArgument, "map outside the region's areas");
  }
  const int prot = (info.readable ? PROT_READ : 0) | (info.writable ? PROT_WRITE : 0);
  Mmap pages = TRY(Noted(calls_.Map(device_.get(), offsets_[region] + area.offset, area.length,
                                    prot, "map VFIO region")));
  return std::make_unique<Pages>(std::move(pages));
}

Result<void> KernelDevice::SetVectors(std::uint32_t irq, std::uint32_t start,
                                      std::span<const int> events) {
  TRY(Present());
  if (irq >= kIrqCount || !Within(info_.irqs[irq].count, start, events.size())) {
    return Err(Errc::kInvalidArgument, "no such interrupt vector");
  }
  static constexpr int kNobody[] = {-1};
  if (events.empty()) {
    // Enables the index with no vector in use: that of vector 0 going nowhere.
    if (!IsMsi(irq) || info_.irqs[irq].count == 0) {
      return Err(Errc::kInvalidArgument, "no interrupt vector");
    }
    if (enabled_[irq].load(std::memory_order_relaxed)) return {};
    start = 0;
    events = kNobody;
  }
  const int available =
      TRY(Noted(SetIrqs(calls_, device_.get(), IrqAction::kTrigger, irq, start, events)));
  if (available > 0) {
    LOG_WARN("vfio", "{}: interrupt index {}: vectors {} to {} asked for, the host has {}",
             info_.name, irq, start, start + events.size() - 1, available);
    return Err(Errc::kExhausted, "VFIO_DEVICE_SET_IRQS: host interrupt vectors");
  }
  // Error and request: enabled as long as somebody is told.
  enabled_[irq].store(irq <= kMsixIrq || events[0] >= 0, std::memory_order_relaxed);
  return {};
}

Result<void> KernelDevice::DisableIrq(std::uint32_t irq) {
  if (irq >= kIrqCount) return Err(Errc::kInvalidArgument, "no such interrupt index");
  // The kernel refuses to disable what is not enabled.
  if (!enabled_[irq].load(std::memory_order_relaxed)) return {};
  TRY(Present());
  TRY(Noted(DoIrqs(calls_, device_.get(), IrqAction::kTrigger, irq, 0)));
  enabled_[irq].store(false, std::memory_order_relaxed);
  return {};
}

Result<void> KernelDevice::MaskIntx(bool masked) {
  TRY(Present());
  return Noted(
      DoIrqs(calls_, device_.get(), masked ? IrqAction::kMask : IrqAction::kUnmask, kIntxIrq, 1));
}

Result<void> KernelDevice::SetIntxUnmask(int unmask) {
  TRY(Present());
  TRY(Noted(SetIrqs(calls_, device_.get(), IrqAction::kUnmask, kIntxIrq, 0,
                    std::span<const int>(&unmask, 1))));
  return {};
}

Result<void> KernelDevice::Reset() {
  TRY(Present());
  if (!info_.can_reset) return Err(Errc::kUnsupported, "VFIO_DEVICE_RESET");
  return Noted(RetryWhileBusy([this] { return ResetDevice(calls_, device_.get()); }));
}

}  // namespace postern::vfio
