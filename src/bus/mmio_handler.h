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

// What a direct store (MOVDIR64B) stores, at an offset that is a multiple of it.
constexpr std::size_t kBlockSize = 64;
using Block = std::span<const std::byte, kBlockSize>;

class MmioHandler {
 public:
  virtual ~MmioHandler() = default;
  virtual void Read(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void Write(std::uint64_t offset, std::span<const std::byte> data) = 0;
  // Eight writes of 8 bytes, for a device that does not know better.
  virtual void WriteBlock(std::uint64_t offset, Block data) {
    constexpr std::size_t kPiece = 8;
    for (std::size_t at = 0; at < kBlockSize; at += kPiece)
      Write(offset + at, data.subspan(at, kPiece));
  }
};

}  // namespace postern::bus
