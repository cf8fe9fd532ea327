#pragma once

// The file of --metrics: a line of JSON each time.

#include <string>

#include "src/base/failure.h"
#include "src/base/fd.h"

namespace postern::cli {

// To be appended to; made if it is not there.
[[nodiscard]] Outcome<Fd> OpenMetrics(const std::string& path);
// One line, whole; a failure is logged.
void AppendMetrics(const Fd& file, const std::string& line);

}  // namespace postern::cli
