#pragma once

// ConfigPlan: what a guest sees of a device's config space: which bits come from our shadow, which
// from the device, and which writes the device gets. Made once, from bytes read once; pure, and the
// bytes are hostile.
//
//   ConfigPlan plan = TRY(PlanConfig(bytes, info, ShapeBars(bytes, info)));
//   value = (device & ~plan.emulated[i]) | (shadow & plan.emulated[i]);
//
// From the shadow: identity, COMMAND, BARs, ROM, capability links, MSI and MSI-X whole, and what is
// made to fit a root bus: an Express endpoint becomes a root complex integrated endpoint without
// link registers (any other Express type is not shown), PME is gone, the function-level reset bits
// read 0, the multifunction bit is cleared. From the device: the rest, which is what a driver
// negotiates with it.
//
// Source: PCI 3.0 chapter 6; PCI Express Base 3.0 chapter 7.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "devices/pci/config_space.h"
#include "devices/pci/function.h"
#include "devices/pci/msi.h"
#include "src/base/result.h"
#include "vfio/bar_plan.h"
#include "vfio/capability_walk.h"
#include "vfio/host_device.h"

namespace postern::vfio {

struct MsiPlan {
  std::uint32_t at = 0;
  pci::MsiCapability::Options options;
};

struct MsixPlan {
  std::uint32_t at = 0;
  std::uint16_t vectors = 0;         // shown to the guest
  std::uint16_t device_vectors = 0;  // in the device's table: at least as many
  pci::MsixPlace place;
};

struct ConfigPlan {
  pci::ConfigImage image;               // the shadow; 0 where a bit is the device's
  std::vector<std::uint8_t> emulated;   // as long: bits that come from the shadow
  std::vector<std::uint8_t> forwarded;  // bits the device gets when they are written
  std::optional<MsiPlan> msi;
  std::optional<MsixPlan> msix;
  // Offsets of the capabilities; 0: there is none.
  std::uint32_t power = 0;
  std::uint32_t express_flr = 0;  // the high byte of device control, where the device can FLR
  std::uint32_t af_flr = 0;       // AF control, likewise
  bool interrupt_pin = false;     // the device has one
  unsigned dropped = 0;           // capabilities not shown, by kind
  unsigned refused = 0;           // capabilities refused: they contradict themselves or others
};

// `config`: 256 or 4096 bytes (kInvalidArgument), those beyond the device's own being 0. kNotFound:
// the device answers all ones. kUnsupported: not a type 0 header (a bridge).
[[nodiscard]] Result<ConfigPlan> PlanConfig(std::span<const std::uint8_t> config,
                                            const DeviceInfo& info, const BarShapes& shapes);

}  // namespace postern::vfio
