#pragma once

// StrongAddress: an address of one address space (guest-physical, I/O virtual, ...) that does not
// mix with another's, and whose arithmetic cannot wrap unseen.

#include <compare>
#include <cstdint>
#include <optional>

namespace postern {

template <typename Tag>
struct StrongAddress {
  std::uint64_t value = 0;

  constexpr StrongAddress() = default;
  constexpr explicit StrongAddress(std::uint64_t v) : value(v) {}
  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy takes the 0 of a comparison for a pointer
  friend constexpr auto operator<=>(StrongAddress, StrongAddress) = default;

  // Address + n, or nothing if that wraps.
  [[nodiscard]] constexpr std::optional<StrongAddress> CheckedAdd(std::uint64_t n) const {
    std::uint64_t sum = 0;
    if (__builtin_add_overflow(value, n, &sum)) return std::nullopt;
    return StrongAddress(sum);
  }
  // Bytes from `base` up to here, or nothing if `base` is above.
  [[nodiscard]] constexpr std::optional<std::uint64_t> OffsetFrom(StrongAddress base) const {
    if (base.value > value) return std::nullopt;
    return value - base.value;
  }
};

// a + b, or nothing if that wraps.
[[nodiscard]] constexpr std::optional<std::uint64_t> CheckedAdd(std::uint64_t a, std::uint64_t b) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

}  // namespace postern
