#include "src/base/text.h"

#include <cstdint>

namespace postern {
namespace {

std::uint8_t ByteAt(std::string_view text, std::size_t i) {
  return static_cast<std::uint8_t>(text[i]);
}

// Length of the well-formed UTF-8 sequence at `i` (Unicode 15, table 3-7), or 0.
std::size_t Utf8Length(std::string_view text, std::size_t i) {
  const std::uint8_t lead = ByteAt(text, i);
  std::size_t length = 0;
  std::uint8_t low = 0x80;  // bounds of the second byte
  std::uint8_t high = 0xbf;
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  if (text.size() - i < length) return 0;
  if (ByteAt(text, i + 1) < low || ByteAt(text, i + 1) > high) return 0;
  for (std::size_t k = 2; k < length; ++k) {
    if ((ByteAt(text, i + k) & 0xc0) != 0x80) return 0;
  }
  return length;
}

bool IsPrintable(std::string_view character) {
  const std::uint8_t lead = ByteAt(character, 0);
  if (character.size() == 1) return lead >= 0x20 && lead != 0x7f;
  if (character.size() == 2 && lead == 0xc2)
    return ByteAt(character, 1) >= 0xa0;                              // U+0080..U+009F: C1
  return character != "\xe2\x80\xa8" && character != "\xe2\x80\xa9";  // U+2028, U+2029
}

void AppendHex(std::string_view bytes, std::string& out) {
  constexpr char kDigits[] = "0123456789abcdef";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    out += "\\x";
    out += kDigits[ByteAt(bytes, i) >> 4];
    out += kDigits[ByteAt(bytes, i) & 15];
  }
}

}  // namespace

std::string Escaped(std::string_view text, std::size_t limit) {
  const bool cut = text.size() > limit;
  text = text.substr(0, limit);
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = Utf8Length(text, i);
    const std::string_view character = text.substr(i, length == 0 ? 1 : length);
    if (length != 0 && IsPrintable(character)) {
      out += character;
    } else {
      AppendHex(character, out);
    }
    i += character.size();
  }
  if (cut) out += "...";
  return out;
}

}  // namespace postern
