#pragma once

// MmioHandler: what a trapped address range calls. Infallible: an access the device does not define
// reads as its specification says (mostly zero) and ignores writes, and is counted by the device.
// `offset` is relative to the start of the registered range; data.size() is 1, 2, 4 or 8, and the
// whole access lies inside the range. Threads: called on the vCPU thread with the lock given at
// registration held: one access at a time, never blocking.

#include <cstddef>
#include <cstdint>
#include <span>

namespace postern::bus {

class MmioHandler {
 public:
  virtual ~MmioHandler() = default;
  virtual void Read(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void Write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

}  // namespace postern::bus
