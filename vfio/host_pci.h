#pragma once

// HostPciDevice: what sysfs says about a PCI function of the host, and whether it can be given to a
// guest: a SysfsDevice and what only PCI has. It reads and changes nothing; vfio/bind.h changes.
//
//   HostPciDevice device = *ReadHostPci("3b:00.0");
//   for (const Finding& f : Examine(device, {})) if (f.blocks) Print(f.cause, f.next_step);
//
// Everything read is untrusted text: what is malformed is absent (nullopt, empty), never a number
// that was guessed. Text fields are Escaped where they are printed, not here.
// Ownership: values. Threads: any. Errors: a Failure that names the cause and the next step;
// kConfig for what is no address, kHost for a device that is not there. Source: Linux
// Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups,
// Documentation/driver-api/vfio.

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "vfio/sysfs.h"
#include "vfio/sysfs_device.h"

namespace postern::vfio {

// Domain, bus, device, function. The domain has up to 32 bits (those behind Intel's VMD use more
// than 16).
struct HostBdf {
  std::uint32_t domain = 0;
  std::uint8_t bus = 0;
  std::uint8_t device = 0;    // < 32
  std::uint8_t function = 0;  // < 8
  friend auto operator<=>(const HostBdf&, const HostBdf&) = default;
};
// "3b:00.0" or "0000:3b:00.0", hexadecimal of either case; nothing else. kConfig.
[[nodiscard]] Outcome<HostBdf> ParseHostBdf(std::string_view text);
// As sysfs spells it: "0000:3b:00.0".
[[nodiscard]] std::string ToString(const HostBdf& bdf);

struct HostBar {
  enum class Kind : std::uint8_t { kIo, kMemory32, kMemory64 };
  unsigned index = 0;  // 0 to 5, or kRomIndex
  Kind kind = Kind::kMemory32;
  bool prefetchable = false;
  bool assigned = true;  // false: the host found no room for it
  std::uint64_t address = 0;
  std::uint64_t size = 0;  // not 0
  friend bool operator==(const HostBar&, const HostBar&) = default;
};
constexpr unsigned kRomIndex = 6;

// The text of a device's `resource` file. Lines that make no sense are left out.
[[nodiscard]] std::vector<HostBar> ParseResource(std::string_view text);

// A modalias of the form "pci:v00008086d...": printable, without wildcards, at most 256 bytes.
[[nodiscard]] bool IsPciModalias(std::string_view text);

// The host's IOMMU and what it allows.
struct HostIommu {
  enum class Remapping : std::uint8_t { kUnknown, kOff, kOn };
  std::vector<std::string> units;  // "dmar0", "ivhd0", ...
  std::size_t groups = 0;
  Remapping remapping = Remapping::kUnknown;  // of interrupts
  // The allow_unsafe_interrupts parameters; nullopt: the module is not loaded.
  std::optional<bool> type1_allows_unsafe;
  std::optional<bool> iommufd_allows_unsafe;
  [[nodiscard]] bool present() const { return !units.empty() || groups != 0; }
};
[[nodiscard]] HostIommu ReadHostIommu(const std::string& sysfs_root = "/sys");

struct HostPciDevice : SysfsDevice {
  HostBdf bdf;
  std::string folder;  // "/sys/bus/pci/devices/0000:3b:00.0"
  std::optional<std::uint64_t> vendor, device, subsystem_vendor, subsystem_device, revision;
  std::optional<std::uint64_t> class_code;  // 24 bits
  std::string driver_module;                // empty: none or built in
  std::string driver_override;              // empty: not set
  std::string modalias;                     // empty: unknown

  std::vector<HostBar> bars;
  std::optional<std::vector<std::string>> reset_methods;  // nullopt: the kernel does not say
  bool can_reset = false;
  std::optional<std::uint64_t> numa_node;  // nullopt: none or unknown
  std::optional<std::uint64_t> total_vfs, num_vfs;
  std::string physical_function;  // of a VF

  HostIommu iommu;
};

[[nodiscard]] Outcome<HostPciDevice> ReadHostPci(std::string_view bdf,
                                                 const std::string& sysfs_root = "/sys");

// Devices bound to a VFIO driver, by name, with the driver.
struct BoundDevice {
  std::string name;
  std::string driver;
};
[[nodiscard]] std::vector<BoundDevice> ListVfioBound(const std::string& sysfs_root = "/sys");

// What stands between a device and a guest, or is worth knowing.
struct Finding {
  bool blocks = true;  // false: a remark
  std::string cause;
  std::string next_step;  // may be empty
};
// All findings, the ones to settle first in front.
[[nodiscard]] std::vector<Finding> Examine(const HostPciDevice& device, const HostRoots& roots);

}  // namespace postern::vfio
