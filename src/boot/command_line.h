#pragma once

// CommandLine: the kernel's command line: the user's text and the parts the machine generates,
// joined.
//
// Generated parts go before a " -- " of the user's text: what follows it belongs to init, not to
// the kernel.
//
//   CommandLine line("root=/dev/vda rw -- single");
//   line.Add("console=hvc0");
//   Outcome<std::string> text = line.Build(kernel.command_line_limit);
//   // "root=/dev/vda rw console=hvc0 -- single"
//
// Threads: a value.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"

namespace postern::boot {

class CommandLine {
 public:
  explicit CommandLine(std::string user_text) : user_(std::move(user_text)) {}

  void Add(std::string parameter) { generated_.push_back(std::move(parameter)); }
  // True if the user's kernel part has this parameter, as "name" or "name=...".
  [[nodiscard]] bool UserSets(std::string_view name) const;
  // `limit`: longest text without the NUL. Refuses NUL and line breaks (they would end or forge a
  // line in /proc/cmdline).
  [[nodiscard]] Outcome<std::string> Build(std::size_t limit) const;

 private:
  std::string user_;
  std::vector<std::string> generated_;
};

}  // namespace postern::boot
