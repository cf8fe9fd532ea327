// CRC-32C by the crc32 instruction in three interleaved runs, and by folding with carry-less
// multiplication, 256 bytes a step; T10's CRC-16 by folding 64 bytes a step.
//
// A message is a polynomial over GF(2). Folding replaces its first bits A, which lie d bits before
// others B, by A * (x^d mod P), added to B: the remainder modulo P stays the same. The functions
// have their own instruction sets; VectorChecksums gives out only those the processor has.

#include "devices/siov/engine/checksum.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <cstring>

namespace postern::dsa::internal {
namespace {

// x^n mod P of CRC-32C, reflected: bit 31 is x^0.
constexpr std::uint64_t Power32(unsigned n) {
  std::uint32_t value = 0x80000000;
  for (unsigned i = 0; i < n; ++i) value = value >> 1 ^ ((value & 1) != 0 ? 0x82f63b78 : 0);
  return value;
}
// Two reflected 64-bit polynomials multiply to one that is x times too large, seen as 128 bits:
// hence one less in the exponents.
template <unsigned kBits>
constexpr std::uint64_t kFoldFirst = Power32(kBits + 63) << 32;
template <unsigned kBits>
constexpr std::uint64_t kFoldSecond = Power32(kBits - 1) << 32;

// x^n mod P of T10, bit 0 is x^0.
constexpr std::uint64_t PowerOfT10(unsigned n) {
  std::uint32_t value = 1;
  for (unsigned i = 0; i < n; ++i) {
    value <<= 1;
    if ((value & 0x10000) != 0) value ^= 0x18bb7;
  }
  return value;
}
template <unsigned kExponent>
constexpr std::uint64_t kPower16 = PowerOfT10(kExponent);
// x^64 / P of T10.
constexpr std::uint64_t QuotientOfT10() {
  std::uint64_t quotient = 0;
  std::uint32_t rest = 1;
  for (int i = 0; i < 64; ++i) {
    rest <<= 1;
    quotient <<= 1;
    if ((rest & 0x10000) != 0) {
      rest ^= 0x18bb7;
      quotient |= 1;
    }
  }
  return quotient;
}
constexpr std::uint64_t kQuotient16 = QuotientOfT10();

__m128i Load(const std::byte* at) {
  return _mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(at)));
}
std::uint64_t LoadWord(const std::byte* at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof(word));
  return word;
}
__m128i Pair(std::uint64_t high, std::uint64_t low) {
  return _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
}

// `state` moved over the zero bytes that `factor` stands for, Power32(8 * bytes - 33), as a product
// that the crc32 instruction reduces.
[[gnu::target("sse4.2,pclmul")]] std::uint64_t Advanced(std::uint64_t state, std::uint64_t factor) {
  return static_cast<std::uint64_t>(
      _mm_cvtsi128_si64(_mm_clmulepi64_si128(Pair(0, state), Pair(0, factor), 0)));
}

// The instruction takes three cycles and can be begun in each: three runs keep it busy.
template <std::size_t kRun>
[[gnu::target("sse4.2,pclmul")]] std::uint64_t ThreeRuns(std::uint64_t state,
                                                         const std::byte*& data,
                                                         std::size_t& size) {
  constexpr std::uint64_t kOneRun = Power32(8 * kRun - 33);
  constexpr std::uint64_t kTwoRuns = Power32(16 * kRun - 33);
  while (size >= 3 * kRun) {
    std::uint64_t second = 0;
    std::uint64_t third = 0;
    for (const std::byte* end = data + kRun; data != end; data += 8) {
      state = _mm_crc32_u64(state, LoadWord(data));
      second = _mm_crc32_u64(second, LoadWord(data + kRun));
      third = _mm_crc32_u64(third, LoadWord(data + 2 * kRun));
    }
    state = third ^ _mm_crc32_u64(0, Advanced(state, kTwoRuns) ^ Advanced(second, kOneRun));
    data += 2 * kRun;
    size -= 3 * kRun;
  }
  return state;
}

[[gnu::target("sse4.2,pclmul")]] std::uint32_t Crc32cRuns(std::uint32_t state,
                                                          const std::byte* data, std::size_t size) {
  std::uint64_t crc = ThreeRuns<1024>(state, data, size);
  crc = ThreeRuns<128>(crc, data, size);
  for (; size >= 8; size -= 8, data += 8) crc = _mm_crc32_u64(crc, LoadWord(data));
  auto rest = static_cast<std::uint32_t>(crc);
  for (; size > 0; --size, ++data) rest = _mm_crc32_u8(rest, static_cast<std::uint8_t>(*data));
  return rest;
}

[[gnu::target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")]] __m512i LoadWide(const std::byte* at) {
  return _mm512_loadu_si512(at);
}
[[gnu::target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")]] __m512i FoldConstant(
    unsigned long long first, unsigned long long second) {
  return _mm512_maskz_broadcast_i32x4(0xffff, Pair(second, first));
}
// g++ 12 warns of its own header where the forms without a mask are.
//
// Each quarter of `value` folded onto the same quarter of `onto`.
[[gnu::target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")]] __m512i FoldWide(__m512i value,
                                                                              __m512i constant,
                                                                              __m512i onto) {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(value, constant, 0x00),
                                   _mm512_clmulepi64_epi128(value, constant, 0x11), onto, 0x96);
}
[[gnu::target("sse4.2,pclmul")]] __m128i Fold(__m128i value, __m128i constant, __m128i onto) {
  return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(value, constant, 0x00),
                                     _mm_clmulepi64_si128(value, constant, 0x11)),
                       onto);
}

// The state after 64 bytes that began with none.
[[gnu::target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")]] std::uint32_t ReduceWide(
    __m512i value) {
  const __m128i constant = Pair(kFoldSecond<128>, kFoldFirst<128>);
  __m128i sum = _mm512_maskz_extracti32x4_epi32(0xf, value, 0);
  sum = Fold(sum, constant, _mm512_maskz_extracti32x4_epi32(0xf, value, 1));
  sum = Fold(sum, constant, _mm512_maskz_extracti32x4_epi32(0xf, value, 2));
  sum = Fold(sum, constant, _mm512_maskz_extracti32x4_epi32(0xf, value, 3));
  const std::uint64_t low = _mm_crc32_u64(0, static_cast<std::uint64_t>(_mm_extract_epi64(sum, 0)));
  return static_cast<std::uint32_t>(
      _mm_crc32_u64(low, static_cast<std::uint64_t>(_mm_extract_epi64(sum, 1))));
}

[[gnu::target("sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq")]] std::uint32_t Crc32cFold(
    std::uint32_t state, const std::byte* data, std::size_t size) {
  if (size < 512) return Crc32cRuns(state, data, size);
  const __m512i begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
  __m512i a = _mm512_xor_si512(LoadWide(data), begin);
  __m512i b = LoadWide(data + 64);
  __m512i c = LoadWide(data + 128);
  __m512i d = LoadWide(data + 192);
  data += 256;
  size -= 256;
  const __m512i four_lines = FoldConstant(kFoldFirst<2048>, kFoldSecond<2048>);
  for (; size >= 256; size -= 256, data += 256) {
    a = FoldWide(a, four_lines, LoadWide(data));
    b = FoldWide(b, four_lines, LoadWide(data + 64));
    c = FoldWide(c, four_lines, LoadWide(data + 128));
    d = FoldWide(d, four_lines, LoadWide(data + 192));
  }
  const __m512i line = FoldConstant(kFoldFirst<512>, kFoldSecond<512>);
  d = FoldWide(FoldWide(FoldWide(a, line, b), line, c), line, d);
  for (; size >= 64; size -= 64, data += 64) d = FoldWide(d, line, LoadWide(data));
  return Crc32cRuns(ReduceWide(d), data, size);
}

// T10: the first byte is the highest. A block as a 128-bit number.
[[gnu::target("sse4.2,pclmul")]] __m128i LoadSwapped(const std::byte* at) {
  return _mm_shuffle_epi8(Load(at),
                          _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

// value * x^16 mod P.
[[gnu::target("sse4.2,pclmul")]] std::uint16_t Reduce16(__m128i value) {
  const __m128i high = _mm_clmulepi64_si128(value, Pair(0, kPower16<80>), 0x01);
  const __m128i low = _mm_clmulepi64_si128(value, Pair(0, 0x10000), 0x00);
  __m128i sum = _mm_xor_si128(high, low);  // 80 bits
  sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(sum, Pair(0, kPower16<64>), 0x01));
  const auto rest = static_cast<std::uint64_t>(_mm_cvtsi128_si64(sum));
  // Barrett: rest / P is (rest / x^16) * (x^64 / P) / x^48.
  __m128i quotient = _mm_clmulepi64_si128(Pair(0, rest >> 16), Pair(0, kQuotient16), 0x00);
  quotient = _mm_srli_si128(quotient, 6);
  const __m128i product = _mm_clmulepi64_si128(quotient, Pair(0, 0x18bb7), 0x00);
  return static_cast<std::uint16_t>(rest ^ static_cast<std::uint64_t>(_mm_cvtsi128_si64(product)));
}

// The first bytes of a message whose size is not a multiple of 16, with zeros before them, which
// change nothing in a remainder; the state is added to its first two.
[[gnu::target("sse4.2,pclmul")]] __m128i Head(std::uint16_t state, const std::byte* data,
                                              std::size_t size) {
  std::array<std::byte, 16> padded{};
  std::byte* first = padded.data() + (padded.size() - size);
  std::memcpy(first, data, size);
  first[0] ^= static_cast<std::byte>(state >> 8);
  first[1] ^= static_cast<std::byte>(state & 0xff);
  return LoadSwapped(padded.data());
}

[[gnu::target("sse4.2,pclmul")]] std::uint16_t Crc16Fold(std::uint16_t state, const std::byte* data,
                                                         std::size_t size) {
  if (size < 32) return PortableCrc16(state, data, size);
  if (size % 16 == 1) {
    state = PortableCrc16(state, data++, 1);
    --size;
  }
  const std::size_t head = size % 16 == 0 ? 16 : size % 16;
  __m128i sum = Head(state, data, head);
  data += head;
  size -= head;
  const __m128i block = Pair(kPower16<128 + 64>, kPower16<128>);
  if (size >= 48 + 64) {
    const __m128i four = Pair(kPower16<512 + 64>, kPower16<512>);
    __m128i b = LoadSwapped(data);
    __m128i c = LoadSwapped(data + 16);
    __m128i d = LoadSwapped(data + 32);
    data += 48;
    size -= 48;
    for (; size >= 64; size -= 64, data += 64) {
      sum = Fold(sum, four, LoadSwapped(data));
      b = Fold(b, four, LoadSwapped(data + 16));
      c = Fold(c, four, LoadSwapped(data + 32));
      d = Fold(d, four, LoadSwapped(data + 48));
    }
    sum = Fold(Fold(Fold(sum, block, b), block, c), block, d);
  }
  for (; size > 0; size -= 16, data += 16) sum = Fold(sum, block, LoadSwapped(data));
  return Reduce16(sum);
}

}  // namespace

std::span<const Checksums> VectorChecksums() {
  static constexpr std::array<Checksums, 2> kAll{{
      {"vpclmulqdq", Crc32cFold, Crc16Fold},
      {"sse4.2", Crc32cRuns, Crc16Fold},
  }};
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul")) return {};
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("vpclmulqdq");
  return std::span(kAll).subspan(wide ? 0 : 1);
}

}  // namespace postern::dsa::internal

#else

namespace postern::dsa::internal {
std::span<const Checksums> VectorChecksums() {
  return {};
}
}  // namespace postern::dsa::internal

#endif
