#pragma once

// The ioctls of VFIO devices and groups, typed: each call fills `argsz` with the last field it
// uses, follows the kernel's answer where capabilities do not fit, and hands out values that have
// been checked: what a driver says of its regions and interrupts is treated as hostile.
//
//   const DeviceCounts counts = TRY(GetDeviceCounts(calls, device.get()));
//   const KernelRegion bar0 = TRY(GetRegion(calls, device.get(), 0, PageSize()));
//   TRY(SetIrqs(calls, device.get(), IrqAction::kTrigger, kMsixIrq, 3, std::array{event.fd()}));
//
// Is not: containers and IOASes, whose ioctls are iommu/'s; nor a policy. Errors: kSystem with
// errno (EPROTO: a chain of capabilities that leads astray); kBadFormat where the answer
// contradicts itself, `op` saying how.
// Threads: any. Source: Linux include/uapi/linux/vfio.h.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "src/base/fd.h"
#include "src/base/kernel_calls.h"
#include "src/base/result.h"
#include "vfio/host_device.h"

namespace postern::vfio {

constexpr std::uint64_t kMaxRegionSize = std::uint64_t{1} << 62;
constexpr std::uint32_t kMaxMsiVectors = 32;
constexpr std::uint32_t kMaxMsixVectors = 2048;

// --- groups ---

// Whether every device of the group is bound to a VFIO driver, or to none.
[[nodiscard]] Result<bool> GroupIsViable(KernelCalls& calls, int group);
// `name` as the kernel calls the device ("0000:3b:00.0", an mdev's UUID).
[[nodiscard]] Result<Fd> GroupGetDevice(KernelCalls& calls, int group, const std::string& name);

// --- device files (cdev) ---

// Claims the device for `iommufd`; every other ioctl of the device fails before.
[[nodiscard]] Result<void> BindIommufd(KernelCalls& calls, int device, int iommufd);
[[nodiscard]] Result<void> AttachIoas(KernelCalls& calls, int device, std::uint32_t ioas);
[[nodiscard]] Result<void> DetachIoas(KernelCalls& calls, int device);

// What a descriptor is, found by asking it; it is left as it was.
enum class FileKind : std::uint8_t {
  kContainer,  // or an iommufd
  kGroup,
  kUnboundDevice,  // a cdev before BindIommufd
  kOpenDevice,     // from a group, or bound
  kOther,
};
[[nodiscard]] FileKind ProbeFile(KernelCalls& calls, int fd);

// --- devices ---

struct DeviceCounts {
  bool can_reset = false;
  std::uint32_t regions = 0;
  std::uint32_t irqs = 0;
};
// kUnsupported: not a PCI device.
[[nodiscard]] Result<DeviceCounts> GetDeviceCounts(KernelCalls& calls, int device);

struct KernelRegion {
  RegionInfo info;
  std::uint64_t offset = 0;    // in the device's file; offset + size fits off_t
  bool msix_mappable = false;  // the MSI-X table's pages may be mapped as well
  std::uint32_t type = 0;      // of a device-specific region; 0: none
  std::uint32_t subtype = 0;
  std::uint32_t dropped_areas = 0;  // areas that made no sense
};
// A region the device does not have (EINVAL) is one of size 0.
[[nodiscard]] Result<KernelRegion> GetRegion(KernelCalls& calls, int device, std::uint32_t index,
                                             std::uint64_t page_size);
// The kernel's answer: a vfio_region_info and what follows it.
[[nodiscard]] Result<KernelRegion> ParseRegion(std::span<const std::byte> answer,
                                               std::uint64_t page_size);

// Counts over what PCI allows are cut down. An index the device does not have has count 0.
[[nodiscard]] Result<IrqInfo> GetIrq(KernelCalls& calls, int device, std::uint32_t index);
// The kernel's answer: a vfio_irq_info.
[[nodiscard]] Result<IrqInfo> ParseIrq(std::uint32_t index, std::span<const std::byte> answer);

enum class IrqAction : std::uint8_t { kMask, kUnmask, kTrigger };
// Sets the eventfds of vectors start, start + 1, ...; -1 takes one away. Answers 0, or how many
// vectors there are where there are too few (nothing is enabled then).
[[nodiscard]] Result<int> SetIrqs(KernelCalls& calls, int device, IrqAction action,
                                  std::uint32_t index, std::uint32_t start,
                                  std::span<const int> events);
// Carries out the action on `count` vectors; kTrigger with count 0 disables the whole index.
[[nodiscard]] Result<void> DoIrqs(KernelCalls& calls, int device, IrqAction action,
                                  std::uint32_t index, std::uint32_t count);

[[nodiscard]] Result<void> ResetDevice(KernelCalls& calls, int device);

}  // namespace postern::vfio
