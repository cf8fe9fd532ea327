#pragma once

// What the command line says to people.

#include <cstdio>
#include <string_view>

#include "src/base/failure.h"

namespace postern::cli {

void Print(std::FILE* to, std::string_view text);
// "postern: CAUSE\n  NEXT STEP" on standard error; returns the exit code of that kind of failure.
[[nodiscard]] int PrintFailure(const Failure& failure);

}  // namespace postern::cli
