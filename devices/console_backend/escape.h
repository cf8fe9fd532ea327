#pragma once

// EscapeFilter: finds the monitor's own key sequences in what is typed at the console. All start
// with Ctrl-A:
//   Ctrl-A x        leave
//   Ctrl-A Ctrl-A   send one Ctrl-A (also: Ctrl-A a)
//   Ctrl-A h        help
// Any other second key is passed on together with its Ctrl-A. Pure; keeps only whether a Ctrl-A is
// pending.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace postern::console {

class EscapeFilter {
 public:
  enum class Command : std::uint8_t { kNone, kQuit, kHelp };
  // Appends what the guest shall see of `typed` to `out` and returns the last command in it;
  // nothing after a kQuit is looked at.
  Command Filter(std::span<const std::byte> typed, std::vector<std::byte>& out);

 private:
  bool pending_ = false;
};

}  // namespace postern::console
