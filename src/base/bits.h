#pragma once

// Field, Bit and Bits: named bit fields of a register value. A Bits value is a snapshot: read the
// register, edit the copy, write it back; it never points into MMIO or guest memory.
//
//   struct GENCTRL : Bits<std::uint32_t> {
//     using HaltIntEnable = Bit<1>;
//     using SwErrIntEnable = Bit<0>;
//   };
//   GENCTRL reg{{value}};
//   if (reg.Get<GENCTRL::HaltIntEnable>()) ...
//
// Fields are declared from the high bit to the low one, as the manuals print them.

#include <concepts>
#include <cstdint>
#include <limits>

#include "src/base/check.h"

namespace postern {

template <unsigned Hi, unsigned Lo, typename V = std::uint64_t>
struct Field {
  static_assert(Lo <= Hi && Hi < 64);
  using Value = V;
  static constexpr unsigned kShift = Lo;
  static constexpr std::uint64_t kMask = (~std::uint64_t{0} >> (63 - (Hi - Lo))) << Lo;
};

template <unsigned B>
using Bit = Field<B, B, bool>;

template <std::unsigned_integral U>
struct Bits {
  U raw = 0;

  template <typename F>
  [[nodiscard]] constexpr typename F::Value Get() const {
    static_assert(F::kMask <= std::numeric_limits<U>::max());
    return static_cast<typename F::Value>((raw & F::kMask) >> F::kShift);
  }
  // The value must fit the field: passing more is our bug, never the guest's.
  template <typename F>
  constexpr void Set(typename F::Value value) {
    static_assert(F::kMask <= std::numeric_limits<U>::max());
    const std::uint64_t shifted = static_cast<std::uint64_t>(value) << F::kShift;
    CHECK((shifted & ~F::kMask) == 0 &&
          (shifted >> F::kShift) == static_cast<std::uint64_t>(value));
    raw = static_cast<U>((raw & ~F::kMask) | shifted);
  }
};

}  // namespace postern
