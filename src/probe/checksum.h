// The checksums an accelerator computes, bit by bit, to compare with. Pure; tested on the host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace postern::probe {

// CRC-32C (RFC 3720 appendix B.4), reflected: begins with ~0, and its complement is the sum.
constexpr uint32_t Crc32c(uint32_t state, const uint8_t* data, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ ((state & 1) != 0 ? 0x82f63b78 : 0);
  }
  return state;
}

// The guard of T10 protection information (SBC-3 4.22.4): begins with 0.
constexpr uint16_t Crc16T10(uint16_t state, const uint8_t* data, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    state = static_cast<uint16_t>(state ^ data[i] << 8);
    for (int bit = 0; bit < 8; ++bit)
      state = static_cast<uint16_t>(state << 1 ^ ((state & 0x8000) != 0 ? 0x8bb7 : 0));
  }
  return state;
}

}  // namespace postern::probe
