#pragma once

// Sizes as people write them: "4096", "512M", "4GiB". All units are powers of 1024.

#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/result.h"

namespace postern {

// Decimal digits, then nothing, or K, M, G, T (either case), alone or followed by "iB".
// kInvalidArgument for anything else (sign, space, fraction, empty) and for what does not fit 64
// bits. "0" is a size.
[[nodiscard]] Result<std::uint64_t> ParseSize(std::string_view text);

// The shortest exact form, which ParseSize reads back: 536870912 -> "512M", 4097 -> "4097".
[[nodiscard]] std::string FormatSize(std::uint64_t bytes);

}  // namespace postern
