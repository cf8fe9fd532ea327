// What the compiler may call without being asked, even freestanding.
#include <cstddef>
#include <cstdint>

#include "src/probe/x86.h"

// The names are the compiler's.
// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier)
extern "C" {

// Words first: where the guest is interpreted, every step of a string instruction costs the same.
void* memcpy(void* to, const void* from, size_t size) {
  void* const result = to;
  size_t words = size / 8;
  size_t rest = size % 8;
  asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words)::"memory");
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest)::"memory");
  return result;
}

void* memset(void* to, int value, size_t size) {
  void* const result = to;
  const uint64_t pattern = 0x0101010101010101 * static_cast<unsigned char>(value);
  size_t words = size / 8;
  size_t rest = size % 8;
  asm volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(pattern) : "memory");
  asm volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(pattern) : "memory");
  return result;
}

int memcmp(const void* left, const void* right, size_t size) {
  size_t words = size / 8;
  size_t rest = size % 8;
  // Leaves both behind the first word that differs, or behind the last; without any, "equal" has to
  // be made first.
  bool equal = true;
  asm volatile("cmpq %%rax, %%rax; repe cmpsq"
               : "+S"(left), "+D"(right), "+c"(words), "=@cce"(equal)::"memory");
  const auto* a = static_cast<const unsigned char*>(left);
  const auto* b = static_cast<const unsigned char*>(right);
  if (!equal) {
    a -= 8;
    b -= 8;
    rest = 8;
  }
  for (size_t i = 0; i < rest; ++i) {
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  }
  return 0;
}

void* memchr(const void* where, int value, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(where);
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] == static_cast<unsigned char>(value)) return const_cast<unsigned char*>(bytes + i);
  }
  return nullptr;
}

size_t strlen(const char* text) {
  size_t size = 0;
  while (text[size] != 0) ++size;
  return size;
}

void __cxa_pure_virtual() {
  postern::probe::HaltForever();
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
