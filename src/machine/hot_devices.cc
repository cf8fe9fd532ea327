// The part of DeviceSet that changes a running machine: hot-plug ports, and the devices that come
// and go in them.

#include <algorithm>
#include <bit>
#include <utility>

#include <fmt/format.h>

#include "devices/virtio/blk/blk.h"
#include "src/arch/x86_64/layout.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/base/units.h"
#include "src/machine/device_options.h"
#include "src/machine/device_set.h"

namespace postern {
namespace {

constexpr const char* kLog = "machine";
// How long the guest has to release a device that the host wants back.
constexpr std::uint64_t kGiveBackMs = 10'000;

// Ports share half of the 32-bit window and a quarter of the 64-bit one. The largest are enough for
// what devices there are: 32 MiB of registers and 64 GiB of memory.
std::uint64_t ShareOf(std::uint64_t bytes, std::size_t ports, std::uint64_t most) {
  const std::uint64_t share = std::min(std::bit_floor(bytes / ports), most);
  return share < pci::kWindowGranule ? 0 : share;
}

// How many ports get an I/O window: those of the lowest numbers, as long as bus 0 keeps one's
// worth.
std::uint64_t IoWindows(std::uint64_t ports) {
  const std::uint64_t windows = ports / pci::kIoWindowGranule;
  return windows == 0 ? 0 : windows - 1;
}

}  // namespace

Outcome<void> DeviceSet::AddPorts() {
  for (std::uint32_t i = 1; i <= config_.hotplug_ports; ++i) {
    Result<std::unique_ptr<pci::RootPort>> port = pci::RootPort::Create(
        fmt::format("port{}", i), host_.platform.interrupts, host_.control,
        {.slot = static_cast<std::uint16_t>(i),
         .window32 =
             ShareOf(host_.windows.memory32.size / 2, config_.hotplug_ports, 32 * x86_64::kMiB),
         .window64 =
             ShareOf(host_.windows.memory64.size / 4, config_.hotplug_ports, 64 * x86_64::kGiB),
         .window_io = i <= IoWindows(host_.windows.io.size) ? pci::kIoWindowGranule : 0});
    if (!port) return HostFailure("hot-plug port", port.error());
    if (Result<pci::Bdf> where = root_->Add(**port); !where)
      return HostFailure("hot-plug port", where.error());
    ports_.push_back(std::move(*port));
  }
  return {};
}

pci::RootPort* DeviceSet::FreePort() const {
  const auto free =
      std::ranges::find_if(ports_, [](const auto& port) { return port->function() == nullptr; });
  return free == ports_.end() ? nullptr : free->get();
}

std::size_t DeviceSet::free_slots() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(ports_, [](const auto& port) { return port->function() == nullptr; }));
}

bool DeviceSet::IsTaken(std::string_view id) const {
  // The names of metrics that are no device's are taken, too.
  return id == "serial0" || id == "hotplug" ||
         std::ranges::any_of(ports_, [&](const auto& port) { return port->name() == id; }) ||
         std::ranges::any_of(entries_, [&](const Entry& entry) { return entry.id == id; });
}

Outcome<std::string> DeviceSet::NewId(const std::string& wanted, std::string_view kind) const {
  if (!wanted.empty()) {
    if (!IsTaken(wanted)) return wanted;
    return ConfigFailure(fmt::format("the id '{}' is taken", wanted), "choose another id");
  }
  std::size_t number = 0;
  while (IsTaken(fmt::format("{}{}", kind, number))) ++number;
  return fmt::format("{}{}", kind, number);
}

Outcome<DeviceSet::Entry> DeviceSet::MakeDisk(const DiskConfig& disk, const std::string& id) {
  Outcome<std::unique_ptr<virtio::Blk>> blk =
      virtio::Blk::Create(OptionsOf(disk, id), loop_pointers_);
  if (!blk) return tl::unexpected(blk.error());
  Entry entry{.id = id,
              .device = std::move(*blk),
              .pci = nullptr,
              .mmio = nullptr,
              .detail = disk.path + (disk.readonly ? ", read-only" : "")};
  Result<std::unique_ptr<virtio::PciTransport>> transport = virtio::PciTransport::Create(
      *entry.device, host_.memory, host_.platform.interrupts, entry.id);
  if (!transport) return HostFailure(fmt::format("device '{}'", id), transport.error());
  entry.pci = std::move(*transport);
  return entry;
}

Outcome<DeviceSet::Entry> DeviceSet::MakeAssigned(const AssignedConfig& device,
                                                  const std::string& id) {
  Outcome<pci::PciFunction*> function = assigned().Open(device, id);
  if (!function) return tl::unexpected(function.error());
  Entry entry;
  entry.id = id;
  entry.detail = assigned_->Detail(id);
  entry.assigned = *function;
  return entry;
}

Outcome<void> DeviceSet::CheckRoom(const Entry& entry, const pci::RootPort& port) {
  const pci::PciFunction& function = entry.assigned != nullptr ? *entry.assigned : *entry.pci;
  const std::optional<std::size_t> bar = port.Misfit(function);
  if (!bar) return {};
  return ConfigFailure(
      fmt::format(
          "device '{}': no room for its BAR {} of {} in a hot-plug slot ({} below 4 GiB, {} "
          "above)",
          entry.id, *bar, FormatSize(function.bars()[*bar]->size()),
          FormatSize(port.options().window32), FormatSize(port.options().window64)),
      "give it to the machine from the start, or start with fewer --hotplug-ports: they share the "
      "room");
}

Outcome<std::string> DeviceSet::AddDevice(const DeviceConfig& device) {
  const auto* const disk = std::get_if<DiskConfig>(&device);
  const auto* const foreign = std::get_if<AssignedConfig>(&device);
  const char* const kind = disk != nullptr ? "disk" : "device";
  if (Outcome<void> r = Validate(device, kind); !r) return tl::unexpected(r.error());
  if (ports_.empty())
    return ConfigFailure("the machine has no hot-plug slots", "start it with --hotplug-ports N");
  pci::RootPort* const port = FreePort();
  if (port == nullptr) {
    return ConfigFailure(fmt::format("all {} hot-plug slots are in use", ports_.size()),
                         "remove a device, or start the machine with more --hotplug-ports");
  }
  Outcome<std::string> id = NewId(disk != nullptr ? disk->id : foreign->id, kind);
  if (!id) return id;
  Outcome<Entry> made = disk != nullptr ? MakeDisk(*disk, *id) : MakeAssigned(*foreign, *id);
  if (!made) return tl::unexpected(made.error());
  if (Outcome<void> fits = CheckRoom(*made, *port); !fits) {
    if (made->assigned != nullptr) assigned_->Close(*id);
    return tl::unexpected(fits.error());
  }
  made->port = port;
  ++added_;
  entries_.push_back(std::move(*made));
  Entry& entry = entries_.back();
  if (Result<void> r = port->Plug(entry.assigned != nullptr ? *entry.assigned : *entry.pci); !r) {
    Discard(*id);
    return HostFailure(fmt::format("device '{}'", *id), r.error());
  }
  LOG_INFO(kLog, "device '{}' added in slot {}", *id, port->options().slot);
  return id;
}

Outcome<DeviceSet::Entry*> DeviceSet::FindAdded(const std::string& id) {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.id == id; });
  if (found == entries_.end()) {
    return ConfigFailure(fmt::format("there is no device '{}'", Escaped(id, 80)),
                         "'list' shows the devices");
  }
  if (found->port == nullptr) {
    return ConfigFailure(fmt::format("device '{}' was there from the start", id),
                         "only devices that were added can be removed");
  }
  return &*found;
}

Outcome<void> DeviceSet::RemoveDevice(const std::string& id, std::function<void()> done) {
  const Outcome<Entry*> found = FindAdded(id);
  if (!found) return tl::unexpected(found.error());
  pci::RootPort& port = *(*found)->port;
  if (port.unplug_pending()) {
    return HostFailure(fmt::format("the guest was asked to release '{}' and has not yet", id),
                       "wait for it; a guest without a PCIe hot-plug driver never does");
  }
  const Result<void> asked = port.RequestUnplug([this, id, told = std::move(done)] {
    Discard(id);
    told();
  });
  if (!asked) return HostFailure(fmt::format("device '{}'", id), asked.error());
  return {};
}

Outcome<void> DeviceSet::PullDevice(const std::string& id) {
  const Outcome<Entry*> found = FindAdded(id);
  if (!found) return tl::unexpected(found.error());
  if (Result<void> r = (*found)->port->Pull(); !r)
    return HostFailure(fmt::format("device '{}'", id), r.error());
  Discard(id);
  return {};
}

// The function is in no slot any more. The transport resets the device, which waits for I/O in
// flight.
void DeviceSet::Discard(const std::string& id) {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.id == id; });
  if (found == entries_.end()) return;
  if (found->assigned != nullptr) assigned_->Close(id);
  found->pci.reset();
  found->device.reset();
  entries_.erase(found);
  ++removed_;
  LOG_INFO(kLog, "device '{}' removed", id);
}

void DeviceSet::GiveBack(const std::string& id) {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.id == id; });
  if (found == entries_.end()) return;
  LOG_WARN(kLog, "device '{}' is wanted back by the host, or gone: taking it from the guest", id);
  if (found->port == nullptr) {
    // In a fixed slot there is no way to ask: for the guest it is a device that vanished.
    (void)root_->Remove(*found->assigned);
    Discard(id);
    return;
  }
  if (!found->port->unplug_pending()) (void)RemoveDevice(id, [] {});
  // The same port with the same device: another may be in it by then.
  pci::RootPort* const port = found->port;
  const pci::PciFunction* const function = found->assigned;
  host_.control.After(kGiveBackMs, [this, id, port, function] {
    if (port->function() == function) (void)PullDevice(id);
  });
}

std::vector<DeviceInfo> DeviceSet::Devices() const {
  std::vector<DeviceInfo> devices;
  for (const Entry& entry : entries_) {
    const pci::RootPort* port = entry.port;
    devices.push_back({.id = entry.id,
                       .detail = entry.detail,
                       .slot = port != nullptr ? port->options().slot : std::uint16_t{0},
                       .leaving = port != nullptr && port->unplug_pending()});
  }
  return devices;
}

}  // namespace postern
