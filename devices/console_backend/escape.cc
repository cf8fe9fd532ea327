#include "devices/console_backend/escape.h"

#include <utility>

namespace postern::console {
namespace {
constexpr std::byte kCtrlA{0x01};
}

EscapeFilter::Command EscapeFilter::Filter(std::span<const std::byte> typed,
                                           std::vector<std::byte>& out) {
  Command command = Command::kNone;
  for (const std::byte key : typed) {
    if (!std::exchange(pending_, false)) {
      if (key == kCtrlA) {
        pending_ = true;
      } else {
        out.push_back(key);
      }
      continue;
    }
    switch (static_cast<char>(key)) {
      case 'x':
        return Command::kQuit;
      case 'h':
        command = Command::kHelp;
        break;
      case 'a':
      case '\x01':
        out.push_back(kCtrlA);
        break;
      default:
        out.push_back(kCtrlA);
        out.push_back(key);
    }
  }
  return command;
}

}  // namespace postern::console
