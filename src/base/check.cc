#include "src/base/check.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace postern::internal {

void CheckFailed(const char* expression, const char* file, int line) {
  // One write(2) of a buffer on the stack: the heap or stdio may be what is broken.
  char text[512];
  const int length =
      std::snprintf(text, sizeof(text), "CHECK failed: %s (%s:%d)\n", expression, file, line);
  if (length > 0) {
    const auto wanted = static_cast<std::size_t>(length);
    const std::size_t size = wanted < sizeof(text) ? wanted : sizeof(text) - 1;
    if (write(STDERR_FILENO, text, size) < 0) std::abort();  // nowhere left to say it
  }
  std::abort();
}

}  // namespace postern::internal
