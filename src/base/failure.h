#pragma once

// Failure: an error as a user reads it: one line of cause and one of what to do next, with the exit
// code it leads to. Made at the edges (configuration, machine creation, command line); inside the
// library Error is used.

#include <cstdint>
#include <string>

#include <tl/expected.hpp>

#include "src/base/result.h"

namespace postern {

struct Failure {
  enum class Kind : std::uint8_t {
    kConfig,  // the user's input: exit code 2
    kHost,    // the host refused: exit code 1
  };
  Kind kind = Kind::kHost;
  std::string cause;      // "cannot open disk 'a.img': No such file or directory"
  std::string next_step;  // "create it, or check the path"; may be empty
};

template <typename T>
using Outcome = tl::expected<T, Failure>;

[[nodiscard]] tl::unexpected<Failure> ConfigFailure(std::string cause, std::string next_step = {});
[[nodiscard]] tl::unexpected<Failure> HostFailure(std::string cause, std::string next_step = {});
// "<what>: <op>: <strerror>" from an Error; kind kHost.
[[nodiscard]] tl::unexpected<Failure> HostFailure(std::string_view what, const Error& error,
                                                  std::string next_step = {});
// "open disk: No such file or directory" or "virtqueue size: invalid argument".
[[nodiscard]] std::string Describe(const Error& error);

}  // namespace postern
