#pragma once

// Bind and Unbind: hand a PCI device of the host to a VFIO driver, and back to what it had. Called
// by a person through `postern bind`; the monitor never rebinds anything.
//
//   Outcome<BindReport> report = Bind("3b:00.0", {}, HostRoots{}, HostSysfs());
//   ... assign it ...
//   report = Unbind("3b:00.0", {}, HostRoots{}, HostSysfs());
//
// What was there before (driver, its module, driver_override) is kept in RUN/bind/BDF, so that
// Unbind restores exactly that. Both are idempotent; a failure in the middle of Bind goes back to
// what was. One lock (flock on RUN/bind) holds several of them apart.
//
// Refused: bridges and the disk the host's root lies on, always; a device the host uses (see
// vfio/in_use.h) or whose virtual functions are enabled, unless forced. Unbinding a device that a
// machine is using waits until that machine has let go: the kernel asks it to.
//
// Ownership: values. Threads: one. Errors: a Failure that names the cause and the next step;
// kConfig for an address that is none and a driver name that is none. Source: Linux
// Documentation/ABI/testing/sysfs-bus-pci.

#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "vfio/sysfs.h"

namespace postern::vfio {

struct BindOptions {
  std::string driver;  // driver or module; empty: what fits best (vfio/driver_choice.h)
  bool force = false;
  bool dry_run = false;  // nothing is changed; `steps` says what would be
};

struct BindReport {
  std::string name;    // "0000:3b:00.0"
  std::string driver;  // bound now, or after a dry run would be; empty: none
  bool changed = false;
  std::vector<std::string> steps;  // as shell commands
  std::string note;                // may be empty
};

[[nodiscard]] Outcome<BindReport> Bind(std::string_view bdf, const BindOptions& options,
                                       const HostRoots& roots, SysfsWriter& writer);
// options.driver has no meaning here.
[[nodiscard]] Outcome<BindReport> Unbind(std::string_view bdf, const BindOptions& options,
                                         const HostRoots& roots, SysfsWriter& writer);

// What a device had before Bind.
struct BindRecord {
  std::string driver;           // empty: none
  std::string module;           // of that driver; empty: none or built in
  std::string driver_override;  // empty: not set
  std::string bound;            // the VFIO driver it was given
  friend bool operator==(const BindRecord&, const BindRecord&) = default;
};
// The state file's text: "key=value" lines. kBadFormat for a value that cannot be a name, a key
// that is unknown, twice there or missing.
[[nodiscard]] std::string FormatBindRecord(const BindRecord& record);
[[nodiscard]] Result<BindRecord> ParseBindRecord(std::string_view text);

}  // namespace postern::vfio
