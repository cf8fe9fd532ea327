#pragma once

// From what the user configured to what each device takes. Pure functions; the Config was
// validated.

#include <functional>
#include <string>

#include "devices/console_backend/backend.h"
#include "devices/virtio/blk/blk.h"
#include "devices/virtio/net/device.h"
#include "src/machine/config.h"

namespace postern {

[[nodiscard]] virtio::BlkOptions OptionsOf(const DiskConfig& disk, const std::string& id);
[[nodiscard]] virtio::NetOptions OptionsOf(const NetConfig& net);
// `quit` is what the escape sequence of a terminal does.
[[nodiscard]] console::BackendOptions OptionsOf(const ConsoleConfig& console,
                                                std::function<void()> quit);

}  // namespace postern
