#pragma once

// HostDevice: a device that lives elsewhere (in hardware behind the kernel's VFIO, or in another
// process behind a vfio-user socket), as the VFIO interface shows it: regions, interrupts, reset.
// VfioFunction makes a PCI function of the guest from one, and does not know which kind it has.
//
//   const RegionInfo& bar0 = device.info().regions[0];
//   std::array<std::byte, 4> word{};
//   if (!device.ReadRegion(kConfigRegion, 0, word)) ...
//   TRY(device.SetVectors(kMsixIrq, 3, std::array{event.fd()}));
//
// Everything it answers is hostile: sizes, offsets and counts are checked before they reach this
// interface (see each field), register contents are not.
//
// Ownership: whoever opened it; mappings it handed out are gone before it is. Threads: any; calls
// are serialised by the implementation. After the device has vanished every call fails with ENODEV
// (kSystem), and none blocks. Source: Linux include/uapi/linux/vfio.h; vfio-user specification
// (QEMU docs/interop/vfio-user.rst).

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "iommu/address_space.h"
#include "src/base/event_fd.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::vfio {

// VFIO_PCI_*_REGION_INDEX and VFIO_PCI_*_IRQ_INDEX.
constexpr std::uint32_t kRomRegion = 6;
constexpr std::uint32_t kConfigRegion = 7;
constexpr std::size_t kRegionCount = 9;
constexpr std::uint32_t kIntxIrq = 0;
constexpr std::uint32_t kMsiIrq = 1;
constexpr std::uint32_t kMsixIrq = 2;
constexpr std::uint32_t kErrorIrq = 3;
constexpr std::uint32_t kRequestIrq = 4;
constexpr std::size_t kIrqCount = 5;

// A part of a region that can be mapped: page aligned, inside the region, not empty; areas of one
// region ascend and do not overlap.
struct MapArea {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  friend bool operator==(const MapArea&, const MapArea&) = default;
};

struct RegionInfo {
  std::uint64_t size = 0;  // 0: the device does not have it; at most 2^62
  bool readable = false;
  bool writable = false;
  std::vector<MapArea> areas;  // empty: every access is a ReadRegion or WriteRegion
};

struct IrqInfo {
  std::uint32_t count = 0;  // vectors; INTx, error, request: 0 or 1; MSI-X at most 2048, MSI 32
  bool eventfd = false;
  bool maskable = false;
  bool automasked = false;
  bool noresize = false;  // the number of vectors in use changes only by disabling all
};

struct DeviceInfo {
  std::string name;  // "0000:3b:00.0", or the socket's path
  bool can_reset = false;
  std::array<RegionInfo, kRegionCount> regions;
  std::array<IrqInfo, kIrqCount> irqs;
};

// Pages of a region in this process; unmapped when destroyed. Never read or written by Postern
// itself: the kernel takes the pages away while memory decoding is off (SIGBUS).
class RegionMapping {
 public:
  virtual ~RegionMapping() = default;
  [[nodiscard]] virtual const bus::HostPages& pages() const = 0;
};

class HostDevice {
 public:
  virtual ~HostDevice() = default;

  [[nodiscard]] virtual const DeviceInfo& info() const = 0;
  // Where its DMA goes.
  [[nodiscard]] virtual iommu::AddressSpace& address_space() = 0;

  // All of `data` or an error: kInvalidArgument outside the region or the wrong direction, EIO
  // where the device does not answer (memory decoding off, low power).
  [[nodiscard]] virtual Result<void> ReadRegion(std::uint32_t region, std::uint64_t offset,
                                                std::span<std::byte> data) = 0;
  [[nodiscard]] virtual Result<void> WriteRegion(std::uint32_t region, std::uint64_t offset,
                                                 std::span<const std::byte> data) = 0;
  // `area` is one of the region's areas or a page-aligned part of one.
  [[nodiscard]] virtual Result<std::unique_ptr<RegionMapping>> MapRegion(std::uint32_t region,
                                                                         const MapArea& area) = 0;

  // Vector start + i signals events[i] (an eventfd) from now on; -1: nobody. The first call of an
  // index enables it in the device; MSI and MSI-X may be enabled with no eventfd at all. At most
  // one of INTx, MSI and MSI-X is enabled at a time.
  [[nodiscard]] virtual Result<void> SetVectors(std::uint32_t irq, std::uint32_t start,
                                                std::span<const int> events) = 0;
  // Disables all vectors of the index; no signal of it comes afterwards.
  [[nodiscard]] virtual Result<void> DisableIrq(std::uint32_t irq) = 0;
  // INTx: masked until unmasked here or by a signal of `unmask` (an eventfd; -1 detaches).
  [[nodiscard]] virtual Result<void> MaskIntx(bool masked) = 0;
  [[nodiscard]] virtual Result<void> SetIntxUnmask(int unmask) = 0;

  // A function-level (or larger) reset. kUnsupported without can_reset.
  [[nodiscard]] virtual Result<void> Reset() = 0;
};

}  // namespace postern::vfio
