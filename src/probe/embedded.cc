#include "src/probe/embedded.h"

// From embedded_image.S.
extern "C" {
extern const std::byte postern_probe_image[];
extern const std::byte postern_probe_image_end[];
}

namespace postern::probe {

std::span<const std::byte> ProbeImage() { return {postern_probe_image, postern_probe_image_end}; }

}  // namespace postern::probe
