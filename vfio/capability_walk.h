#pragma once

// Capability walk: the two capability chains of a config space that was read from a device, as
// lists of what can be shown to a guest. Pure; the bytes are hostile: chains that loop, point into
// the header, overlap or end in all ones.
//
//   Capabilities found = WalkCapabilities(bytes);
//   for (const Capability& capability : found.conventional) ...
//
// Kept are capabilities that mean something on a root bus without a nested IOMMU: power management,
// VPD, MSI, PCI-X, vendor, Express, MSI-X, SATA, AF; of the extended ones serial number, vendor,
// designated vendor, TPH and latency tolerance. SR-IOV, ARI, Resizable BAR, ATS, PRI, PASID, ACS,
// AER (its messages go to a root port, which there is none) and all unknown ones are dropped.
//
// Source: PCI 3.0, 6.7; PCI Express Base 3.0, 7.9.

#include <cstdint>
#include <span>
#include <vector>

namespace postern::vfio {

struct Capability {
  std::uint16_t id = 0;
  std::uint8_t version = 0;  // of extended ones
  std::uint32_t at = 0;
  std::uint32_t size = 0;  // with its header; at + size lies inside the space
};

struct Range {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

struct Capabilities {
  std::vector<Capability> conventional;  // in the order of the chain
  std::vector<Capability> extended;
  std::vector<Range> hidden;  // what dropped capabilities (may) occupy, less what kept ones do
  unsigned dropped = 0;       // kinds we do not show
  unsigned refused = 0;       // malformed links, overlaps, second ones of a kind
};

// `config`: 256 or 4096 bytes.
[[nodiscard]] Capabilities WalkCapabilities(std::span<const std::uint8_t> config);

}  // namespace postern::vfio
