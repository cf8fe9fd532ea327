#pragma once

// The command line of each verb as data: help, parsing and shell completion all read these tables.
// Threads: constants.

#include <span>
#include <string_view>

namespace postern::cli {

struct Option {
  std::string_view name;      // without dashes
  std::string_view argument;  // empty: a switch
  std::string_view help;      // may have several lines
  bool config;                // a field of the configuration: goes to api::ApplyFlag
  bool repeatable = false;
  bool file = false;    // completes to file names
  bool device = false;  // completes to PCI addresses of the host
};

[[nodiscard]] std::span<const Option> RunOptions();
[[nodiscard]] std::span<const Option> VdevServeOptions();
[[nodiscard]] std::span<const Option> DoctorOptions();
// These two verbs also take PCI addresses.
[[nodiscard]] std::span<const Option> BindOptions();
[[nodiscard]] std::span<const Option> UnbindOptions();
[[nodiscard]] std::span<const Option> CtlOptions();
// The commands of postern ctl, for completion: separated by spaces.
[[nodiscard]] std::string_view CtlCommands();

}  // namespace postern::cli
