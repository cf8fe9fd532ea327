#include "src/probe/text.h"

#include <cstring>

namespace postern::probe {

Line& Line::Add(std::string_view text) {
  const size_t room = kCapacity - size_;
  const size_t size = text.size() < room ? text.size() : room;
  if (size != 0) std::memcpy(data_ + size_, text.data(), size);
  size_ += size;
  return *this;
}

Line& Line::Add(char c) {
  if (size_ < kCapacity) data_[size_++] = c;
  return *this;
}

Line& Line::Dec(uint64_t value) {
  char digits[20];
  size_t n = 0;
  do {
    digits[n++] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (n != 0) Add(digits[--n]);
  return *this;
}

Line& Line::Hex(uint64_t value, unsigned digits) {
  unsigned n = 16;
  while (n > 1 && n > digits && (value >> (4 * (n - 1))) == 0) --n;
  while (n != 0) Add("0123456789abcdef"[(value >> (4 * --n)) & 0xf]);
  return *this;
}

Line& Line::Tenths(uint64_t tenths) {
  return Dec(tenths / 10).Add('.').Dec(tenths % 10);
}

Line& Line::PadTo(size_t column) {
  if (size_ != 0 && size_ >= column) Add(' ');
  while (size_ < column && size_ < kCapacity) Add(' ');
  return *this;
}

bool ParseNumber(std::string_view text, uint64_t& value) {
  uint64_t base = 10;
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
    base = 16;
    text.remove_prefix(2);
  }
  if (text.empty()) return false;
  uint64_t result = 0;
  for (char c : text) {
    uint64_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<uint64_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<uint64_t>(c - 'a') + 10;
    } else if (c >= 'A' && c <= 'F') {
      digit = static_cast<uint64_t>(c - 'A') + 10;
    } else {
      return false;
    }
    if (digit >= base) return false;
    if (__builtin_mul_overflow(result, base, &result) ||
        __builtin_add_overflow(result, digit, &result))
      return false;
  }
  value = result;
  return true;
}

bool ParseIpv4(std::string_view text, uint32_t& address) {
  uint32_t result = 0;
  for (int part = 0; part < 4; ++part) {
    const size_t dot = text.find('.');
    if ((dot == std::string_view::npos) != (part == 3)) return false;
    uint64_t octet = 0;
    const std::string_view digits = part == 3 ? text : std::string_view(text.data(), dot);
    if (digits.size() > 3 || !ParseNumber(digits, octet) || octet > 255) return false;
    result = (result << 8) | static_cast<uint32_t>(octet);
    if (part < 3) text.remove_prefix(dot + 1);
  }
  address = result;
  return true;
}

}  // namespace postern::probe
