#pragma once

// The answers of VFIO's *_GET_INFO calls that end in a chain of capabilities: how to read one whole
// (argsz) and how to walk its chain. One format for containers, devices and regions.
//
//   const std::vector<std::byte> info = TRY(ReadVfioInfo(
//       calls, container, VFIO_IOMMU_GET_INFO, AsBytes(vfio_iommu_type1_info{}), "GET_INFO"));
//   TRY(WalkVfioCapabilities(info, cap_offset, sizeof(vfio_iommu_type1_info),
//                            [&](const VfioCapability& cap) -> Result<void> { ... }));
//
// What is read is hostile: a chain that leads outside, backwards or to itself is an error (kSystem,
// EPROTO), and so is an answer above kMaxVfioInfo. Threads: no state. Source: Linux
// include/uapi/linux/vfio.h, struct vfio_info_cap_header; drivers/vfio/vfio_main.c.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "src/base/kernel_calls.h"
#include "src/base/result.h"

namespace postern::iommu {

constexpr std::size_t kMaxVfioInfo = std::size_t{1} << 20;  // bytes

struct VfioCapability {
  std::uint16_t id = 0;
  std::uint16_t version = 0;
  std::span<const std::byte> bytes;  // from its header to the end of the answer
};

// `request` holds the struct with its inputs filled in, argsz (its first 4 bytes) excepted; at
// least 4 bytes. The answer is never shorter than `request`, nor than the kernel said it is.
[[nodiscard]] Result<std::vector<std::byte>> ReadVfioInfo(KernelCalls& calls, int fd,
                                                          unsigned long number,
                                                          std::span<const std::byte> request,
                                                          const char* op);

// Calls `each` for every capability of the chain that starts at `first` (0: there is none) and lies
// behind the `fixed` bytes of the struct. Stops at the first error, which is then the answer.
[[nodiscard]] Result<void> WalkVfioCapabilities(
    std::span<const std::byte> info, std::uint32_t first, std::size_t fixed,
    const std::function<Result<void>(const VfioCapability&)>& each);

}  // namespace postern::iommu
