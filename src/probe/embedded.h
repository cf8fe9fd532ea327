// The built-in guest as bytes of this program: an ELF64 image with a PVH note and a 64-bit Linux
// entry (README.md), to be loaded like any other kernel. Lives as long as the process; any thread.
#pragma once

#include <cstddef>
#include <span>

namespace postern::probe {

std::span<const std::byte> ProbeImage();

}  // namespace postern::probe
