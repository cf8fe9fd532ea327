#include "src/base/units.h"

#include <charconv>

namespace postern {
namespace {

constexpr std::string_view kUnits = "KMGT";

char Upper(char c) {
  return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}

}  // namespace

Result<std::uint64_t> ParseSize(std::string_view text) {
  std::uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{}) return Err(Errc::kInvalidArgument, "size");
  if (rest == end) return number;
  const std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  const std::size_t unit = kUnits.find(Upper(suffix[0]));
  if (unit == std::string_view::npos) return Err(Errc::kInvalidArgument, "size unit");
  if (suffix.size() != 1 && suffix.substr(1) != "iB")
    return Err(Errc::kInvalidArgument, "size unit");
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(number, std::uint64_t{1} << (10 * (unit + 1)), &bytes)) {
    return Err(Errc::kInvalidArgument, "size beyond 64 bits");
  }
  return bytes;
}

std::string FormatSize(std::uint64_t bytes) {
  std::size_t unit = 0;
  while (bytes != 0 && unit < kUnits.size() && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  std::string text = std::to_string(bytes);
  if (unit != 0) text += kUnits[unit - 1];
  return text;
}

}  // namespace postern
