#include "src/boot/command_line.h"

#include <utility>

namespace postern::boot {
namespace {

// Where the kernel's part of `text` ends: at a "--" that stands alone
// (Documentation/admin-guide/kernel-parameters.rst). Quoted text hides it, as it does from the
// kernel's own parser (lib/cmdline.c, next_arg).
std::size_t KernelPartEnd(std::string_view text) {
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') quoted = !quoted;
    if (quoted || text.substr(i, 2) != "--") continue;
    const bool starts = i == 0 || text[i - 1] == ' ' || text[i - 1] == '\t';
    const bool ends = i + 2 == text.size() || text[i + 2] == ' ' || text[i + 2] == '\t';
    if (starts && ends) return i;
  }
  return text.size();
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

void Join(std::string& line, std::string_view part) {
  part = Trim(part);
  if (part.empty()) return;
  if (!line.empty()) line += ' ';
  line += part;
}

}  // namespace

bool CommandLine::UserSets(std::string_view name) const {
  const std::string_view kernel_part = std::string_view(user_).substr(0, KernelPartEnd(user_));
  bool quoted = false;
  std::size_t start = 0;
  for (std::size_t i = 0; i <= kernel_part.size(); ++i) {
    const bool at_end = i == kernel_part.size();
    if (!at_end && kernel_part[i] == '"') quoted = !quoted;
    if (!at_end && (quoted || (kernel_part[i] != ' ' && kernel_part[i] != '\t'))) continue;
    const std::string_view word = kernel_part.substr(start, i - start);
    if (word.starts_with(name) && (word.size() == name.size() || word[name.size()] == '='))
      return true;
    start = i + 1;
  }
  return false;
}

Outcome<std::string> CommandLine::Build(std::size_t limit) const {
  const std::string_view user(user_);
  const std::size_t split = KernelPartEnd(user);
  std::string line;
  Join(line, user.substr(0, split));
  for (const std::string& parameter : generated_) Join(line, parameter);
  Join(line, user.substr(split));
  for (const char c : line) {
    if (c == '\0' || c == '\n' || c == '\r') {
      return ConfigFailure("the kernel command line contains a line break or a NUL byte",
                           "write it on one line, parameters separated by blanks");
    }
  }
  if (line.size() > limit) {
    return ConfigFailure("the kernel command line has " + std::to_string(line.size()) +
                             " bytes; this kernel takes " + std::to_string(limit),
                         "shorten it by " + std::to_string(line.size() - limit) + " bytes");
  }
  return line;
}

}  // namespace postern::boot
