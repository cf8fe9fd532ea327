#pragma once

// Random bytes from the kernel's generator, for keys, identifiers and virtio-rng.

#include <cstddef>
#include <span>

#include "src/base/result.h"

namespace postern {

// Fills all of `to` (getrandom(2), urandom source). Fails only where the system call itself is
// refused. Threads: any.
[[nodiscard]] Result<void> FillRandom(std::span<std::byte> to);

}  // namespace postern
