#pragma once

// Bdf: the bus, device and function number by which PCI addresses a function.

#include <compare>
#include <cstdint>
#include <string>

#include <fmt/core.h>

namespace postern::pci {

struct Bdf {
  std::uint8_t bus = 0;
  std::uint8_t device = 0;    // 0..31
  std::uint8_t function = 0;  // 0..7

  // As a requester ID and in ECAM addresses: bus 15:8, device 7:3, function 2:0.
  [[nodiscard]] constexpr std::uint16_t value() const {
    return static_cast<std::uint16_t>((bus << 8) | ((device & 0x1f) << 3) | (function & 0x7));
  }
  friend constexpr auto operator<=>(const Bdf&, const Bdf&) = default;
};

// "00:03.0", as lspci writes it.
[[nodiscard]] inline std::string ToString(Bdf bdf) {
  return fmt::format("{:02x}:{:02x}.{}", bdf.bus, bdf.device, bdf.function);
}

}  // namespace postern::pci
