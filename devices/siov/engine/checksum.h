#pragma once

// The two checksums of DSA: CRC-32C (RFC 3720) and the CRC-16 of T10 DIF (polynomial 0x18bb7), in
// the fastest way the processor has.
//
//   const Checksums& sums = BestChecksums();
//   std::uint32_t state = ~0U;
//   state = sums.crc32c(state, data, size);     // state is not inverted: CRC-32C is ~state
//
// Each byte is read once. Is not for CRC-64 or for other bit orders: callers turn bits around.
// Threads: any.

#include <cstddef>
#include <cstdint>
#include <span>

namespace postern::dsa {

struct Checksums {
  const char* name;
  std::uint32_t (*crc32c)(std::uint32_t state, const std::byte* data, std::size_t size);
  std::uint16_t (*crc16_t10)(std::uint16_t state, const std::byte* data, std::size_t size);
};

// Those this processor can run, the fastest first; the last is the portable one.
[[nodiscard]] std::span<const Checksums> AllChecksums();
[[nodiscard]] inline const Checksums& BestChecksums() {
  return AllChecksums().front();
}

namespace internal {
// checksum_x86.cc
[[nodiscard]] std::span<const Checksums> VectorChecksums();
[[nodiscard]] std::uint16_t PortableCrc16(std::uint16_t state, const std::byte* data,
                                          std::size_t size);
}  // namespace internal

}  // namespace postern::dsa
