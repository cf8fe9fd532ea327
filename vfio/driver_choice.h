#pragma once

// DriverChoice: which VFIO driver fits a PCI device best.
//
// Linux 5.16 (commit cc6711b0bf36) split vfio-pci into a library, vfio-pci-core, and drivers on top
// of it: the generic one and variants of vendors that can do more with their device (migration, for
// one). Several of them match the same device, none is ever bound by itself (their ID entries are
// "override only"), and the kernel does not choose: it publishes "vfio_pci:" aliases and leaves the
// choice to user space. This is that choice, by the rule the kernel's authors named:
//
//   take the device's modalias "pci:v0000...", read it as "vfio_pci:v0000...", match it with all
//   vfio_pci: aliases of modules and of what is built in, take the one with the fewest wildcards
//   (the most specific); the generic driver matches everything with seven.
//
//   DriverChoice choice = ChooseDriver(device.modalias, HostRoots{});
//   // {.module = "mlx5_vfio_pci", .driver = "mlx5_vfio_pci", .wildcards = 5}
//
// Is not: a judgement whether the device works with it. Both files are untrusted text: a line that
// makes no sense is skipped. Ownership: values. Threads: any. Source: Linux
// scripts/mod/file2alias.c, kernel/module Kbuild (modules.builtin.modinfo); modules.alias(5) of
// kmod.

#include <string>
#include <string_view>
#include <vector>

#include "vfio/sysfs.h"

namespace postern::vfio {

// Shell pattern as aliases use it: '*', '?', '[a-f]', '[!a-f]', '\c'. All of `text` has to match;
// a pattern that ends inside brackets matches nothing.
// Time: at most pattern.size() * text.size() steps, whatever they contain.
[[nodiscard]] bool MatchesAlias(std::string_view pattern, std::string_view text);

struct AliasMatch {
  std::string module;  // IsDriverName
  std::string alias;   // with "vfio_pci:"
  unsigned wildcards = 0;
  bool built_in = false;
};

// The lines "alias PATTERN MODULE" of modules.alias that match `modalias` ("pci:...") as vfio_pci.
[[nodiscard]] std::vector<AliasMatch> MatchModulesAlias(std::string_view text,
                                                        std::string_view modalias);
// The same for the NUL-separated "MODULE.alias=PATTERN" of modules.builtin.modinfo.
[[nodiscard]] std::vector<AliasMatch> MatchBuiltinModinfo(std::string_view text,
                                                          std::string_view modalias);

struct DriverChoice {
  std::string module = "vfio_pci";
  // As the PCI bus and driver_override call it, which the module's name does not tell ("vfio_pci"
  // is "vfio-pci", "mlx5_vfio_pci" is itself). `confirmed`: the kernel shows it, because the driver
  // is there; else it is a guess that is looked up again after loading.
  std::string driver = "vfio-pci";
  bool confirmed = false;
  bool built_in = false;
  std::string alias;  // empty: nothing matched, the generic driver is the fallback
  unsigned wildcards = 0;
  std::vector<AliasMatch> others;  // the rest, best first
};

[[nodiscard]] DriverChoice ChooseDriver(std::string_view modalias, const HostRoots& roots);

// The PCI driver that `module` brought (or brings), and whether it is there.
struct PciDriverName {
  std::string name;
  bool present = false;
};
[[nodiscard]] PciDriverName DriverOfModule(const std::string& module,
                                           const std::string& sysfs_root);

}  // namespace postern::vfio
