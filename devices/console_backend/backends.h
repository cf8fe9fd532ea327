#pragma once

// The back ends of backend.h, one Create each. Internal to this package; users call CreateBackend.

#include "devices/console_backend/backend.h"

namespace postern::console {

[[nodiscard]] std::unique_ptr<ConsoleBackend> CreateNull();
[[nodiscard]] Outcome<std::unique_ptr<ConsoleBackend>> CreateStdio(std::function<void()> quit,
                                                                   EventLoop& loop);
[[nodiscard]] Outcome<std::unique_ptr<ConsoleBackend>> CreatePty(
    const std::function<void(std::string_view)>& announce, EventLoop& loop);
[[nodiscard]] Outcome<std::unique_ptr<ConsoleBackend>> CreateFile(const std::string& path,
                                                                  bool append, EventLoop& loop);
[[nodiscard]] Outcome<std::unique_ptr<ConsoleBackend>> CreateSocket(const std::string& path,
                                                                    EventLoop& loop);

}  // namespace postern::console
