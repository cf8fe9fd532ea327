#include "src/base/fd.h"

#include <fcntl.h>
#include <unistd.h>

namespace postern {

void Fd::Close() {
  // Linux frees the number even when close(2) reports an error, EINTR included: never retried.
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

Result<Fd> Fd::Duplicate() const {
  const int copy = fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return SysError("fcntl(F_DUPFD_CLOEXEC)");
  return Fd(copy);
}

}  // namespace postern
