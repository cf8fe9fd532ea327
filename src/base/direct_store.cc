#include "src/base/direct_store.h"

#include <array>
#include <cstdint>
#include <cstring>

#include "src/base/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace postern {
namespace {

using Words = std::array<std::uint64_t, 8>;

void StoreWords(std::byte* to, const Words& words) {
  auto* target = reinterpret_cast<std::uint64_t*>(to);
  for (std::size_t i = 1; i < words.size(); ++i)
    __atomic_store_n(target + i, words[i], __ATOMIC_RELAXED);
  __atomic_store_n(target, words[0], __ATOMIC_RELEASE);
}

}  // namespace

bool HasMovdir64b() {
#if defined(__x86_64__)
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kLeaf = 7;
  constexpr unsigned kMovdir64b = 28;  // of ECX
  return __get_cpuid_count(kLeaf, 0, &a, &b, &c, &d) != 0 && (c >> kMovdir64b & 1) != 0;
#else
  return false;
#endif
}

void StoreBlock(std::byte* to, std::span<const std::byte, 64> from) {
  CHECK(reinterpret_cast<std::uintptr_t>(to) % 64 == 0);
#if defined(__x86_64__)
  static const bool direct = HasMovdir64b();
  if (direct) {
    // MOVDIR64B (%rdx), %rax.
    asm volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02" : : "a"(to), "d"(from.data()) : "memory");
    return;
  }
#endif
  Words words{};
  std::memcpy(words.data(), from.data(), sizeof(words));
  StoreWords(to, words);
}

}  // namespace postern
