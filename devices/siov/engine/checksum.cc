#include "devices/siov/engine/checksum.h"

#include <algorithm>
#include <array>

namespace postern::dsa {
namespace {

// Reflected: bit 31 is x^0.
constexpr std::uint32_t kCrc32cPolynomial = 0x82f63b78;
constexpr std::uint16_t kT10Polynomial = 0x8bb7;

constexpr std::array<std::uint32_t, 256> Crc32cTable() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = value >> 1 ^ ((value & 1) != 0 ? kCrc32cPolynomial : 0);
    }
    table[i] = value;
  }
  return table;
}

constexpr std::array<std::uint16_t, 256> Crc16Table() {
  std::array<std::uint16_t, 256> table{};
  for (std::size_t i = 0; i < table.size(); ++i) {
    auto value = static_cast<std::uint16_t>(i << 8);
    for (int bit = 0; bit < 8; ++bit) {
      value = static_cast<std::uint16_t>(value << 1 ^ ((value >> 15) != 0 ? kT10Polynomial : 0));
    }
    table[i] = value;
  }
  return table;
}

std::uint32_t PortableCrc32c(std::uint32_t state, const std::byte* data, std::size_t size) {
  static constexpr std::array<std::uint32_t, 256> kTable = Crc32cTable();
  for (const std::byte* end = data + size; data != end; ++data) {
    state = state >> 8 ^ kTable[(state ^ static_cast<std::uint8_t>(*data)) & 0xff];
  }
  return state;
}

constexpr std::size_t kMaxVariants = 4;
struct Variants {
  std::array<Checksums, kMaxVariants> all{};
  std::size_t count = 0;
};

Variants FindVariants() {
  Variants variants;
  for (const Checksums& vector : internal::VectorChecksums()) {
    variants.all[variants.count++] = vector;
  }
  variants.all[variants.count++] = {"portable", PortableCrc32c, internal::PortableCrc16};
  return variants;
}

}  // namespace

std::uint16_t internal::PortableCrc16(std::uint16_t state, const std::byte* data,
                                      std::size_t size) {
  static constexpr std::array<std::uint16_t, 256> kTable = Crc16Table();
  for (const std::byte* end = data + size; data != end; ++data) {
    state = static_cast<std::uint16_t>(state << 8 ^
                                       kTable[(state >> 8) ^ static_cast<std::uint8_t>(*data)]);
  }
  return state;
}

std::span<const Checksums> AllChecksums() {
  static const Variants variants = FindVariants();
  return std::span(variants.all).first(variants.count);
}

}  // namespace postern::dsa
