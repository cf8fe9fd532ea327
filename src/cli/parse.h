#pragma once

// ParseOptions: one verb's arguments against its table (getopt_long underneath): in order, with
// unknown and incomplete flags answered by name. Threads: the main thread (getopt keeps state).

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "src/base/log.h"
#include "src/cli/options.h"

namespace postern::cli {

struct Given {
  const Option* option;
  std::string value;  // empty for a switch
};

// `arguments` without the program's and the verb's names. `positional`: gets what is no flag, in
// order, wherever it stands; null: the verb has flags alone.
[[nodiscard]] Outcome<std::vector<Given>> ParseOptions(
    std::span<const Option> options, std::string_view verb,
    const std::vector<std::string>& arguments, std::vector<std::string>* positional = nullptr);
// The value of --log-level.
[[nodiscard]] Outcome<LogLevel> ParseLevel(const std::string& text);
// The table as help text.
[[nodiscard]] std::string FormatOptions(std::span<const Option> options);

}  // namespace postern::cli
