#include "src/probe/embedded.h"

// From embedded_image.S.
extern "C" {
extern const std::byte kPosternProbeImage[];
extern const std::byte kPosternProbeImageEnd[];
}

namespace postern::probe {

std::span<const std::byte> ProbeImage() {
  return {kPosternProbeImage, kPosternProbeImageEnd};
}

}  // namespace postern::probe
