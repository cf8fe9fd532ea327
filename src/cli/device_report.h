#pragma once

// What `postern doctor --device` says about PCI devices of the host, as a table or as JSON.

#include <string>
#include <vector>

#include "vfio/driver_choice.h"
#include "vfio/host_pci.h"

namespace postern::cli {

struct DeviceReport {
  vfio::HostPciDevice device;
  vfio::DriverChoice choice;
  std::vector<vfio::Finding> findings;
  // Nothing is in the way.
  [[nodiscard]] bool assignable() const;
};

[[nodiscard]] Outcome<DeviceReport> ReportDevice(std::string_view bdf,
                                                 const vfio::HostRoots& roots);
// Ends with a line that is the verdict. `locked_limit`: RLIMIT_MEMLOCK in bytes, all ones: none.
[[nodiscard]] std::string DeviceTable(const DeviceReport& report, std::uint64_t locked_limit);
// {"devices": [...]}.
[[nodiscard]] std::string DevicesJson(const std::vector<DeviceReport>& reports,
                                      std::uint64_t locked_limit);

// `postern doctor --device` as a whole: 0 when all can be assigned as they are, 1 when something is
// in the way of one, 2 for an address that is none of a device.
[[nodiscard]] int DoctorDevices(const std::vector<std::string>& bdfs, bool json);

}  // namespace postern::cli
