#include "src/base/random.h"

#include <sys/random.h>

#include <cerrno>

namespace postern {

Result<void> FillRandom(std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t n = getrandom(to.data(), to.size(), 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      return SysError("getrandom");
    }
    to = to.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

}  // namespace postern
