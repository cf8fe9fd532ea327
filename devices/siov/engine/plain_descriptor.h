#pragma once

// What the two halves of PlainExecutor share: a descriptor as bytes, what becomes of one, and the
// byte of a range. Threads: values.

#include <array>
#include <cstdint>
#include <utility>

#include "devices/siov/engine/plain_executor.h"

namespace postern::dsa {

struct PlainExecutor::Raw {
  std::array<std::uint8_t, 64> b{};

  [[nodiscard]] std::uint64_t N(unsigned at, unsigned size) const {
    std::uint64_t value = 0;
    for (unsigned i = size; i > 0; --i) value = value << 8 | b[at + i - 1];
    return value;
  }
  [[nodiscard]] unsigned op() const { return b[7]; }
  [[nodiscard]] bool Bit(unsigned flag) const { return (N(4, 3) >> flag & 1) != 0; }
  [[nodiscard]] std::uint64_t src() const { return N(16, 8); }
  [[nodiscard]] std::uint64_t dst() const { return N(24, 8); }
  [[nodiscard]] std::uint64_t size() const { return N(32, 4); }
};

struct PlainExecutor::Answer {
  unsigned status = 1;
  bool write = false;
  unsigned result = 0;
  std::uint64_t completed = 0;
  std::uint64_t address = 0;
  std::uint64_t first = 0;   // record bytes 16..23
  std::uint64_t second = 0;  // record bytes 24..31
  unsigned descriptors = 1;

  static Answer Error(unsigned status) {
    Answer answer;
    answer.status = status;
    return answer;
  }
  static Answer Fault(std::uint64_t address, bool write, std::uint64_t completed) {
    Answer answer;
    answer.status = 3;
    answer.write = write;
    answer.address = address;
    answer.completed = completed;
    return answer;
  }
};

// The byte of a range; beyond the end of the address space there is none.
inline std::uint8_t* PlainByte(PlainMemory& memory, std::uint64_t base, std::uint64_t n) {
  return base + n < base ? nullptr : memory.Find(base + n);
}

inline unsigned PlainBlock(unsigned dif_flags) {
  return std::array<unsigned, 4>{512, 520, 4096, 4104}[dif_flags & 3];
}

// Per source block: bytes read and written.
inline std::pair<unsigned, unsigned> PlainDifSizes(unsigned op, unsigned dif_flags) {
  const unsigned block = PlainBlock(dif_flags);
  if (op == 0x13) return {block, block + 8};
  if (op == 0x14) return {block + 8, block};
  return {block + 8, block + 8};
}

}  // namespace postern::dsa
