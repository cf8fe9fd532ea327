#pragma once

// FuzzInput: a fuzzer's bytes as numbers, little-endian; zeroes once they are used up.
//
//   FuzzInput input(data, size);
//   while (input.left()) { const std::uint64_t choice = input.Take(1); ... }
//
// Ownership: borrows the bytes. Threads: one.

#include <cstddef>
#include <cstdint>

namespace postern::testing {

class FuzzInput {
 public:
  FuzzInput(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  [[nodiscard]] bool left() const { return size_ != 0; }
  // `bytes`: at most 8.
  std::uint64_t Take(std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes && size_ != 0; ++i, ++data_, --size_)
      value |= std::uint64_t{*data_} << (8 * i);
    return value;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace postern::testing
