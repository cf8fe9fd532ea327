#include "src/memory/shared_bytes.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace postern::memory::internal {
namespace {

unsigned char LoadByte(const std::byte* at) {
  return __atomic_load_n(reinterpret_cast<const unsigned char*>(at), __ATOMIC_RELAXED);
}
[[maybe_unused]] void StoreByte(std::byte* at, unsigned char value) {
  __atomic_store_n(reinterpret_cast<unsigned char*>(at), value, __ATOMIC_RELAXED);
}
unsigned char PatternByte(std::uint64_t pattern, std::size_t index) {
  return static_cast<unsigned char>(pattern >> (index % 8 * 8));
}

#if defined(__x86_64__) && !defined(POSTERN_TSAN)

constexpr std::size_t kVector = sizeof(__m128i);
constexpr std::size_t kLine = 64;

__m128i Load(const std::byte* at) {
  return _mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(at)));
}
// Bit i: byte i is the same.
unsigned SameBytes(__m128i a, __m128i b) {
  return static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b)));
}
constexpr unsigned kAllSame = 0xffff;

// `to` is aligned to a line; whole lines. The wide form writes a line by one store, and is up to
// twice as fast.
void StreamLines(std::byte* to, const std::byte* from, std::size_t size) {
  auto* target = static_cast<__m128i*>(static_cast<void*>(to));
  for (const std::byte* end = from + size; from != end; from += kLine, target += 4) {
    const __m128i a = Load(from);
    const __m128i b = Load(from + kVector);
    const __m128i c = Load(from + 2 * kVector);
    const __m128i d = Load(from + 3 * kVector);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
}
[[gnu::target("avx512f")]] void StreamLinesWide(std::byte* to, const std::byte* from,
                                                std::size_t size) {
  auto* target = static_cast<__m512i*>(static_cast<void*>(to));
  const std::byte* end = from + size;
  for (; end - from >= 4 * static_cast<std::ptrdiff_t>(kLine); from += 4 * kLine, target += 4) {
    const __m512i a = _mm512_loadu_si512(from);
    const __m512i b = _mm512_loadu_si512(from + kLine);
    const __m512i c = _mm512_loadu_si512(from + 2 * kLine);
    const __m512i d = _mm512_loadu_si512(from + 3 * kLine);
    _mm512_stream_si512(target, a);
    _mm512_stream_si512(target + 1, b);
    _mm512_stream_si512(target + 2, c);
    _mm512_stream_si512(target + 3, d);
  }
  for (; from != end; from += kLine, ++target) {
    _mm512_stream_si512(target, _mm512_loadu_si512(from));
  }
}

// The two do not overlap.
void StreamShared(std::byte* to, const std::byte* from, std::size_t size) {
  static const bool wide = __builtin_cpu_supports("avx512f") != 0;
  const std::size_t head =
      std::min<std::size_t>(size, (0 - reinterpret_cast<std::uintptr_t>(to)) % kLine);
  const std::size_t lines = (size - head) / kLine * kLine;
  CopyShared(to, from, head);
  if (wide) {
    StreamLinesWide(to + head, from + head, lines);
  } else {
    StreamLines(to + head, from + head, lines);
  }
  // Such stores are ordered by nothing else, not even by a release.
  _mm_sfence();
  CopyShared(to + head + lines, from + head + lines, size - head - lines);
}
#endif

}  // namespace

void MoveShared(std::byte* to, const std::byte* from, std::size_t size, Stores stores) {
  const auto ahead = reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
#if defined(POSTERN_TSAN)
  static_cast<void>(stores);
  if (ahead < size) {
    for (std::size_t i = size; i > 0; --i) StoreByte(to + i - 1, LoadByte(from + i - 1));
  } else {
    CopyShared(to, from, size);
  }
#else
#if defined(__x86_64__)
  if (stores == Stores::kStreamed && ahead >= size && 0 - ahead >= size) {
    StreamShared(to, from, size);
    return;
  }
#else
  static_cast<void>(stores);
  static_cast<void>(ahead);
#endif
  std::memmove(to, from, size);
  asm volatile("" : : : "memory");
#endif
}

void FillShared(std::byte* to, std::size_t size, std::uint64_t pattern) {
#if defined(POSTERN_TSAN)
  for (std::size_t i = 0; i < size; ++i) StoreByte(to + i, PatternByte(pattern, i));
#else
  if (pattern == (pattern & 0xff) * 0x0101010101010101) {
    std::memset(to, static_cast<int>(pattern & 0xff), size);
  } else {
    std::array<unsigned char, 64> block{};
    for (std::size_t i = 0; i < block.size(); ++i) block[i] = PatternByte(pattern, i);
    for (; size >= block.size(); size -= block.size(), to += block.size()) {
      std::memcpy(to, block.data(), block.size());
    }
    std::memcpy(to, block.data(), size);
  }
  asm volatile("" : : : "memory");
#endif
}

std::size_t SameShared(const std::byte* a, const std::byte* b, std::size_t size) {
  std::size_t i = 0;
#if defined(__x86_64__) && !defined(POSTERN_TSAN)
  for (; i + 4 * kVector <= size; i += 4 * kVector) {
    std::array<unsigned, 4> same{};
    for (std::size_t v = 0; v < 4; ++v) {
      same[v] = SameBytes(Load(a + i + v * kVector), Load(b + i + v * kVector));
    }
    if ((same[0] & same[1] & same[2] & same[3]) == kAllSame) continue;
    for (std::size_t v = 0; v < 4; ++v) {
      if (same[v] != kAllSame) {
        return i + v * kVector + static_cast<std::size_t>(__builtin_ctz(~same[v]));
      }
    }
  }
#endif
  for (; i < size; ++i) {
    if (LoadByte(a + i) != LoadByte(b + i)) break;
  }
  return i;
}

std::size_t SameSharedPattern(const std::byte* from, std::size_t size, std::uint64_t pattern) {
  std::size_t i = 0;
#if defined(__x86_64__) && !defined(POSTERN_TSAN)
  const __m128i want = _mm_set1_epi64x(static_cast<long long>(pattern));
  for (; i + kVector <= size; i += kVector) {
    const unsigned same = SameBytes(Load(from + i), want);
    if (same != kAllSame) return i + static_cast<std::size_t>(__builtin_ctz(~same));
  }
#endif
  for (; i < size; ++i) {
    if (LoadByte(from + i) != PatternByte(pattern, i)) break;
  }
  return i;
}

#if defined(__x86_64__)
namespace {

constexpr std::size_t kFlushLine = 64;

[[gnu::target("clflushopt")]] void FlushUnordered(std::byte* at, const std::byte* end) {
  for (; at < end; at += kFlushLine) _mm_clflushopt(at);
}
[[gnu::target("clwb")]] void WriteBack(std::byte* at, const std::byte* end) {
  for (; at < end; at += kFlushLine) _mm_clwb(at);
}
// Bits of EBX of CPUID leaf 7.
unsigned FlushFeatures() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 ? b : 0;
}

}  // namespace

void FlushShared(std::byte* at, std::size_t size, CacheLines lines) {
  // Asked once: in a guest CPUID is an exit.
  static const unsigned features = FlushFeatures();
  const bool clflushopt = (features >> 23 & 1) != 0;
  const bool clwb = (features >> 24 & 1) != 0;
  const std::byte* end = at + size;
  at -= reinterpret_cast<std::uintptr_t>(at) % kFlushLine;
  if (lines == CacheLines::kKeep && clwb) {
    WriteBack(at, end);
  } else if (clflushopt) {
    FlushUnordered(at, end);
  } else {
    for (; at < end; at += kFlushLine) _mm_clflush(at);
  }
  _mm_sfence();
}
#else
// Caches of other processors are coherent with all that reaches guest memory.
void FlushShared(std::byte*, std::size_t, CacheLines) {}
#endif

}  // namespace postern::memory::internal
