#include "vfio/bind.h"

#include <utility>

#include <fmt/format.h>

#include "src/base/text.h"
#include "vfio/bind_internal.h"
#include "vfio/driver_choice.h"
#include "vfio/host_pci.h"
#include "vfio/in_use.h"

namespace postern::vfio {
namespace {

using internal::Hands;
using internal::StateFolder;

struct Target {
  std::string driver;
  std::string module;
  bool present = false;
};

std::string DriverFolder(const HostRoots& roots, const std::string& driver) {
  return fmt::format("{}/bus/pci/drivers/{}", roots.sysfs, driver);
}

std::string CurrentDriver(const HostPciDevice& device) {
  return LinkName(device.folder + "/driver");
}

Outcome<Target> ChooseTarget(const HostPciDevice& device, const BindOptions& options,
                             const HostRoots& roots) {
  if (options.driver.empty()) {
    DriverChoice choice = ChooseDriver(device.modalias, roots);
    return Target{std::move(choice.driver), std::move(choice.module), choice.confirmed};
  }
  const std::string& name = options.driver;
  if (!IsDriverName(name) || name.find("vfio") == std::string::npos) {
    return ConfigFailure(fmt::format("'{}' is no VFIO driver", Escaped(name, 64)),
                         fmt::format("leave --driver out to take what fits best; postern doctor "
                                     "--device {} names it",
                                     device.name));
  }
  if (Exists(DriverFolder(roots, name))) return Target{name, name, true};
  PciDriverName driver = DriverOfModule(name, roots.sysfs);
  return Target{std::move(driver.name), name, driver.present};
}

// Why the device must stay with the host.
Outcome<void> MayTake(const HostPciDevice& device, const BindOptions& options,
                      const HostRoots& roots) {
  if (IsBridgeClass(device.class_code)) {
    return HostFailure(
        fmt::format("{} is a bridge: the host needs it to reach other devices", device.name),
        "bind the devices behind it");
  }
  std::string uses;
  for (const HostUse& use : FindHostUses(device.name, roots)) {
    if (use.root) {
      return HostFailure(fmt::format("{} holds the host's root: {}", device.name, use.what),
                         "a device the host runs from cannot be given away");
    }
    uses += fmt::format("{}{}", uses.empty() ? "" : ", ", use.what);
  }
  if (device.num_vfs.value_or(0) != 0) {
    uses += fmt::format("{}{} virtual functions of it are enabled and would vanish",
                        uses.empty() ? "" : ", ", *device.num_vfs);
  }
  if (options.force) return {};
  if (!uses.empty()) {
    return HostFailure(fmt::format("the host uses {}: {}", device.name, uses),
                       "stop that (umount, swapoff, ip link set down), or take the device away "
                       "with --force");
  }
  if (!device.group) {
    return HostFailure(
        fmt::format("{} is in no IOMMU group: no VFIO driver would take it", device.name),
        fmt::format("postern doctor --device {} says more", device.name));
  }
  return {};
}

// Back to `record`. What it finds done already it leaves alone.
Outcome<void> Restore(const HostPciDevice& device, const BindRecord& record, const HostRoots& roots,
                      Hands& hands) {
  const std::string& override = record.driver_override;
  if (Outcome<void> r =
          hands.Write(device.folder + "/driver_override", override.empty() ? "\n" : override);
      !r) {
    return r;
  }
  const std::string current = CurrentDriver(device);
  if (current == record.driver) return {};
  if (!current.empty()) {
    if (Outcome<void> r = hands.Write(DriverFolder(roots, current) + "/unbind", device.name); !r)
      return r;
  }
  if (record.driver.empty()) return {};
  const std::string folder = DriverFolder(roots, record.driver);
  if (!Exists(folder) && IsDriverName(record.module)) {
    if (Outcome<void> r = hands.Load(record.module); !r) return r;
  }
  // A driver that was just loaded has looked for its devices itself.
  const auto done = [&] { return CurrentDriver(device) == record.driver; };
  Outcome<void> result;
  if (!done()) result = hands.Write(folder + "/bind", device.name);
  if (hands.dry_run() || done()) return {};
  // Bound by another rule than the driver's own table: let the kernel find it again.
  if (Outcome<void> r = hands.Write(roots.sysfs + "/bus/pci/drivers_probe", device.name); !r)
    return r;
  if (done()) return {};
  if (!result) return result;
  return HostFailure(
      fmt::format("driver '{}' did not take {} back", Escaped(record.driver, 64), device.name),
      "the kernel's log (dmesg) may say why");
}

Outcome<void> Take(const HostPciDevice& device, const Target& target, const HostRoots& roots,
                   Hands& hands) {
  if (Outcome<void> r = hands.Write(device.folder + "/driver_override", target.driver); !r)
    return r;
  if (!device.driver.empty()) {
    if (Outcome<void> r = hands.Write(DriverFolder(roots, device.driver) + "/unbind", device.name);
        !r) {
      return r;
    }
  }
  if (Outcome<void> r = hands.Write(roots.sysfs + "/bus/pci/drivers_probe", device.name); !r)
    return r;
  if (hands.dry_run() || CurrentDriver(device) == target.driver) return {};
  return HostFailure(fmt::format("'{}' did not take {}", target.driver, device.name),
                     "the kernel's log (dmesg) says why; vfio-pci refuses devices on its denylist "
                     "and those without an IOMMU group");
}

// What was read before the lock was ours still holds.
Outcome<void> StillAsRead(const HostPciDevice& device) {
  if (CurrentDriver(device) == device.driver) return {};
  return HostFailure(fmt::format("the driver of {} has just been changed", device.name),
                     "look again, then repeat the command");
}

// Loads the target's module if its driver is not there, and then knows the driver's real name.
Outcome<void> Provide(Target& target, const HostRoots& roots, Hands& hands) {
  if (target.present) return {};
  if (Outcome<void> r = hands.Load(target.module); !r) return r;
  if (hands.dry_run()) return {};
  PciDriverName driver = DriverOfModule(target.module, roots.sysfs);
  if (!driver.present) {
    return HostFailure(fmt::format("module '{}' is loaded but brings no PCI driver", target.module),
                       "give the driver's name with --driver");
  }
  target.driver = std::move(driver.name);
  target.present = true;
  return {};
}

// What Unbind will go back to: the present, or what an earlier Bind found if it still holds it.
BindRecord RecordFor(const HostPciDevice& device, const Target& target,
                     const std::optional<BindRecord>& earlier) {
  if (earlier && device.driver == earlier->bound) {
    BindRecord record = *earlier;
    record.bound = target.driver;
    return record;
  }
  return {device.driver, device.driver_module, device.driver_override, target.driver};
}

Outcome<void> TakeOrGoBack(const HostPciDevice& device, const Target& target,
                           const HostRoots& roots, Hands& hands) {
  Outcome<void> taken = Take(device, target, roots, hands);
  if (taken || !hands.wrote()) return taken;
  const BindRecord before{device.driver, device.driver_module, device.driver_override, {}};
  Failure failure = taken.error();
  if (Outcome<void> back = Restore(device, before, roots, hands); !back) {
    failure.cause += fmt::format("; and it could not be put back: {}", back.error().cause);
    failure.next_step = back.error().next_step;
  } else {
    failure.cause += device.driver.empty()
                         ? std::string("; it has no driver again")
                         : fmt::format("; it is back with '{}'", Escaped(device.driver, 64));
  }
  return tl::unexpected(std::move(failure));
}

Outcome<void> BindUnderLock(const HostPciDevice& device, Target& target, const HostRoots& roots,
                            Hands& hands) {
  Outcome<StateFolder> state = StateFolder::Open(roots);
  if (!state) return tl::unexpected(state.error());
  if (Outcome<void> r = StillAsRead(device); !r) return r;
  if (Outcome<void> r = Provide(target, roots, hands); !r) return r;
  // A file that is malformed tells nothing and is replaced.
  const std::optional<BindRecord> earlier =
      internal::LoadRecord(roots, device.name).value_or(std::nullopt);
  if (Outcome<void> r = state->Store(device.name, RecordFor(device, target, earlier)); !r) return r;
  Outcome<void> taken = TakeOrGoBack(device, target, roots, hands);
  if (taken) return {};
  // The device is where it was; so is what is known about it. The first failure is the one to tell.
  if (CurrentDriver(device) == device.driver) {
    (void)(earlier ? state->Store(device.name, *earlier) : state->Remove(device.name));
  }
  return taken;
}

std::string BetterDriver(const HostPciDevice& device, const Target& target) {
  if (target.driver == device.driver) return {};
  return fmt::format("'{}' fits this device better: postern bind {} --driver {}", target.driver,
                     device.name, target.module);
}

Outcome<void> UnbindRecorded(const HostPciDevice& device, const BindRecord& record,
                             const HostRoots& roots, Hands& hands, BindReport& report) {
  report.driver = record.driver;
  if (device.use == DriverUse::kVfio || device.driver.empty()) {
    report.changed = true;
    return Restore(device, record, roots, hands);
  }
  // Somebody has rebound it in the meantime: theirs is the last word, but for our override.
  report.driver = device.driver;
  report.note = "it was bound anew since; its driver is left as it is";
  if (device.driver_override != record.bound) return {};
  report.changed = true;
  return hands.Write(device.folder + "/driver_override",
                     record.driver_override.empty() ? "\n" : record.driver_override);
}

Outcome<void> NotOurs(const HostPciDevice& device, const HostRoots& roots, BindReport& report) {
  report.driver = device.driver;
  report.note = "postern bind did not bind it; nothing to undo";
  if (device.use != DriverUse::kVfio) return {};
  return HostFailure(
      fmt::format("{} is bound to '{}', but not by postern bind: what it had before is not known",
                  device.name, Escaped(device.driver, 64)),
      fmt::format("echo > {0}/driver_override; echo {1} > {0}/driver/unbind; echo {1} > "
                  "{2}/bus/pci/drivers_probe gives it to the host's own driver",
                  device.folder, device.name, roots.sysfs));
}

}  // namespace

Outcome<BindReport> Bind(std::string_view bdf, const BindOptions& options, const HostRoots& roots,
                         SysfsWriter& writer) {
  Outcome<HostPciDevice> device = ReadHostPci(bdf, roots.sysfs);
  if (!device) return tl::unexpected(device.error());
  Outcome<Target> target = ChooseTarget(*device, options, roots);
  if (!target) return tl::unexpected(target.error());
  BindReport report{.name = device->name, .driver = device->driver};
  if (device->use == DriverUse::kVfio &&
      (options.driver.empty() || device->driver == target->driver)) {
    report.note = BetterDriver(*device, *target);
    return report;
  }
  if (Outcome<void> r = MayTake(*device, options, roots); !r) return tl::unexpected(r.error());
  Hands hands(writer, options.dry_run, report.steps);
  Outcome<void> done;
  if (options.dry_run) {
    done = Provide(*target, roots, hands);
    if (done) done = Take(*device, *target, roots, hands);
  } else {
    done = BindUnderLock(*device, *target, roots, hands);
  }
  if (!done) return tl::unexpected(done.error());
  report.driver = target->driver;
  report.changed = !options.dry_run;
  if (!target->present && target->module != "vfio_pci") {
    report.note = fmt::format("the name '{}' is a guess until module {} is loaded", target->driver,
                              target->module);
  }
  return report;
}

Outcome<BindReport> Unbind(std::string_view bdf, const BindOptions& options, const HostRoots& roots,
                           SysfsWriter& writer) {
  Outcome<HostPciDevice> device = ReadHostPci(bdf, roots.sysfs);
  if (!device) return tl::unexpected(device.error());
  BindReport report{.name = device->name};
  const Outcome<std::optional<BindRecord>> record = internal::LoadRecord(roots, device->name);
  if (!record) return tl::unexpected(record.error());
  if (!*record) {
    if (Outcome<void> r = NotOurs(*device, roots, report); !r) return tl::unexpected(r.error());
    return report;
  }
  Hands hands(writer, options.dry_run, report.steps);
  if (options.dry_run) {
    Outcome<void> r = UnbindRecorded(*device, **record, roots, hands, report);
    if (!r) return tl::unexpected(r.error());
    report.changed = false;
    return report;
  }
  Outcome<StateFolder> state = StateFolder::Open(roots);
  if (!state) return tl::unexpected(state.error());
  Outcome<void> done = StillAsRead(*device);
  if (done) done = UnbindRecorded(*device, **record, roots, hands, report);
  if (done) done = state->Remove(device->name);
  if (!done) return tl::unexpected(done.error());
  return report;
}

}  // namespace postern::vfio
