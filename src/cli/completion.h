#pragma once

// Shell completion scripts, made from the flag tables.

#include <string>
#include <string_view>

#include "src/base/failure.h"

namespace postern::cli {

// `shell`: bash, zsh or fish.
[[nodiscard]] Outcome<std::string> CompletionScript(std::string_view shell);

}  // namespace postern::cli
