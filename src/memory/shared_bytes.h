#pragma once

// Bytes that two sides touch at the same time: how GuestView reads, writes, moves and compares
// guest memory. Whoever reads must treat what it gets as an arbitrary mix of old and new bytes.
//
// Is not for users of guest memory: the pointers here were checked by a GuestView, and only it
// calls these. ThreadSanitizer builds go byte by byte with relaxed atomics, so that it knows the
// race is meant, and only that one. Threads: any.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace postern::memory {

// kStreamed: stores that go around the caches, for much data that nobody reads soon.
enum class Stores : std::uint8_t { kCached, kStreamed };
enum class CacheLines : std::uint8_t { kEvict, kKeep };

namespace internal {

#if defined(__SANITIZE_THREAD__)
#define POSTERN_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define POSTERN_TSAN 1
#endif
#endif

// The two do not overlap.
#if defined(POSTERN_TSAN)
inline void CopyShared(std::byte* to, const std::byte* from, std::size_t size) {
  const auto* source = reinterpret_cast<const unsigned char*>(from);
  auto* target = reinterpret_cast<unsigned char*>(to);
  for (std::size_t i = 0; i < size; ++i) {
    __atomic_store_n(target + i, __atomic_load_n(source + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
  }
}
#else
inline void CopyShared(std::byte* to, const std::byte* from, std::size_t size) {
  std::memcpy(to, from, size);
  // The compiler may neither read the source again in place of the copy nor put the copy off.
  asm volatile("" : : "r"(to) : "memory");
}
#endif

// `size` is not 0 in what follows. The two may overlap.
void MoveShared(std::byte* to, const std::byte* from, std::size_t size, Stores stores);
// The bytes of `pattern`, lowest first, over and over.
void FillShared(std::byte* to, std::size_t size, std::uint64_t pattern);
// How many bytes are the same before the first that is not.
[[nodiscard]] std::size_t SameShared(const std::byte* a, const std::byte* b, std::size_t size);
[[nodiscard]] std::size_t SameSharedPattern(const std::byte* from, std::size_t size,
                                            std::uint64_t pattern);
void FlushShared(std::byte* at, std::size_t size, CacheLines lines);

template <typename F>
void VisitShared(const std::byte* from, std::size_t size, F& consume) {
#if defined(POSTERN_TSAN)
  std::array<std::byte, 4096> copy;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled below
  while (size > 0) {
    const std::size_t n = std::min(size, copy.size());
    CopyShared(copy.data(), from, n);
    consume(std::span<const std::byte>(copy.data(), n));
    from += n;
    size -= n;
  }
#else
  if (size > 0) consume(std::span<const std::byte>(from, size));
  asm volatile("" : : : "memory");
#endif
}

}  // namespace internal
}  // namespace postern::memory
