// Text without a C library: a line that is built piece by piece, and numbers read from the command
// line. Pure; tested on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace postern::probe {

// A line of bounded length: what does not fit is dropped, never written.
class Line {  // NOLINT(cppcoreguidelines-pro-type-member-init): data_, see there
 public:
  static constexpr size_t kCapacity = 248;

  Line& Add(std::string_view text);
  Line& Add(char c);
  Line& Dec(uint64_t value);
  Line& Hex(uint64_t value, unsigned digits = 1);  // lower case, at least `digits`, no prefix
  Line& Tenths(uint64_t tenths);                   // 125 -> "12.5"
  Line& PadTo(size_t column);                      // at least one space if anything precedes
  // Several at once: text as it is, numbers in decimal.
  template <typename... Parts>
  Line& Put(const Parts&... parts) {
    (PutOne(parts), ...);
    return *this;
  }
  void Clear() { size_ = 0; }

  [[nodiscard]] std::string_view view() const { return {data_, size_}; }
  [[nodiscard]] bool empty() const { return size_ == 0; }

 private:
  void PutOne(std::string_view text) { Add(text); }
  void PutOne(char c) { Add(c); }
  void PutOne(uint64_t value) { Dec(value); }
  void PutOne(uint32_t value) { Dec(value); }
  void PutOne(uint16_t value) { Dec(value); }
  void PutOne(uint8_t value) { Dec(value); }

  size_t size_ = 0;
  // Not cleared: every store costs time where the guest is interpreted, and view() shows only what
  // was added.
  char data_[kCapacity];
};

// Decimal or 0x-hexadecimal, the whole of `text`; false if it is anything else or does not fit 64
// bits.
bool ParseNumber(std::string_view text, uint64_t& value);
// "10.0.2.1" -> 0x0a000201.
bool ParseIpv4(std::string_view text, uint32_t& address);

}  // namespace postern::probe
