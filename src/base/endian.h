#pragma once

// le16, le32, le64: little-endian integers of wire and guest-memory structures. An unconverted
// field does not compile as a number. Alignment is that of the integer; layouts are the
// specification's and are checked by static_assert beside each structure.

#include <bit>
#include <concepts>
#include <cstdint>

namespace postern {

template <std::unsigned_integral U>
class LittleEndian {
 public:
  LittleEndian() = default;
  constexpr explicit LittleEndian(U value) : raw_(Swap(value)) {}
  constexpr LittleEndian& operator=(U value) {
    raw_ = Swap(value);
    return *this;
  }
  [[nodiscard]] constexpr U get() const { return Swap(raw_); }
  friend constexpr bool operator==(LittleEndian, LittleEndian) = default;

 private:
  static constexpr U Swap(U value) {
    if constexpr (std::endian::native == std::endian::little || sizeof(U) == 1) {
      return value;
    } else if constexpr (sizeof(U) == 2) {
      return __builtin_bswap16(value);
    } else if constexpr (sizeof(U) == 4) {
      return __builtin_bswap32(value);
    } else {
      return __builtin_bswap64(value);
    }
  }
  U raw_;
};

using le16 = LittleEndian<std::uint16_t>;
using le32 = LittleEndian<std::uint32_t>;
using le64 = LittleEndian<std::uint64_t>;

}  // namespace postern
