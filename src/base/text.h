#pragma once

// Text of strangers, made fit to print on one line of a log or a terminal.

#include <cstddef>
#include <string>
#include <string_view>

namespace postern {

// `text` with everything that could end the line or steer a terminal written as \xNN: C0 and C1
// control characters, DEL, the Unicode line and paragraph separators, and bytes that are not
// well-formed UTF-8. Other text, UTF-8 included, stays as it is. Stops after `limit` bytes of input
// and then appends "...".
[[nodiscard]] std::string Escaped(std::string_view text, std::size_t limit = 4096);

}  // namespace postern
