#include "src/cli/metrics_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "src/base/log.h"

namespace postern::cli {

Outcome<Fd> OpenMetrics(const std::string& path) {
  Fd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!fd.valid()) {
    return ConfigFailure(
        fmt::format("cannot write metrics to '{}': {}", path, strerrordesc_np(errno)),
        "check the path");
  }
  return fd;
}

void AppendMetrics(const Fd& file, const std::string& line) {
  // One write: lines of several processes that append to one file do not mix.
  if (write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    LOG_ERROR("cli", "metrics could not be written: {}", strerrordesc_np(errno));
  }
}

}  // namespace postern::cli
