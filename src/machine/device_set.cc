#include "src/machine/device_set.h"

#include <utility>

#include <fmt/format.h>

#include "devices/virtio/blk/blk.h"
#include "devices/virtio/console/device.h"
#include "devices/virtio/net/device.h"
#include "devices/virtio/rng/rng.h"
#include "devices/virtio/vsock/device.h"
#include "src/arch/x86_64/layout.h"
#include "src/base/units.h"
#include "src/machine/device_options.h"

namespace postern {
namespace {

constexpr pci::IntxInputs kIntx = {x86_64::kPciIntxFirstGsi, x86_64::kPciIntxFirstGsi + 1,
                                   x86_64::kPciIntxFirstGsi + 2, x86_64::kPciIntxFirstGsi + 3};
static_assert(x86_64::kPciIntxGsis == kIntx.size());

// The BARs do not fit: the largest is the one to do without.
tl::unexpected<Failure> NoRoom(pci::PciRoot& root, const pci::Windows& windows,
                               const Error& error) {
  if (error.code != Errc::kExhausted) return HostFailure("PCI addresses", error);
  std::string largest;
  std::uint64_t size = 0;
  for (const pci::FunctionInfo& function : root.Functions()) {
    for (const pci::BarInfo& bar : function.bars) {
      if (bar.kind == pci::BarKind::kIo || bar.size <= size) continue;
      size = bar.size;
      largest = fmt::format("; the largest is BAR {} of '{}' with {}", bar.index, function.name,
                            FormatSize(size));
    }
  }
  return ConfigFailure(
      fmt::format("no room for the devices' BARs and the hot-plug slots' windows: there are {} "
                  "below 4 GiB and {} above the memory{}",
                  FormatSize(windows.memory32.size), FormatSize(windows.memory64.size), largest),
      "leave that device out, start with fewer --hotplug-ports, or with less --memory; what is "
      "above the memory ends where the processor's addresses do");
}

}  // namespace

Outcome<std::unique_ptr<DeviceSet>> DeviceSet::Create(const Config& config, const Host& host) {
  std::unique_ptr<DeviceSet> set(new DeviceSet(config, host));
  for (std::uint32_t i = 0; i < config.io_threads; ++i) {
    Result<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
    if (!loop) return HostFailure("cannot create an I/O loop", loop.error());
    set->loop_pointers_.push_back(loop->get());
    set->loops_.push_back(std::move(*loop));
  }
  if (config.transport == Transport::kPci) {
    Result<std::unique_ptr<pci::PciRoot>> root =
        pci::PciRoot::Create({.ecam = memory::Gpa(x86_64::kEcam),
                              .windows = host.windows,
                              .buses = config.hotplug_ports + 1,
                              .intx = kIntx},
                             host.mmio, &host.ports, host.platform);
    if (!root) return HostFailure("PCI host bridge", root.error());
    set->root_ = std::move(*root);
  }
  if (Outcome<void> r = set->AddAll(); !r) return tl::unexpected(r.error());
  if (Outcome<void> r = set->AddPorts(); !r) return tl::unexpected(r.error());
  if (set->root_ != nullptr) {
    if (Result<void> r = set->root_->AssignAddresses(); !r)
      return NoRoom(*set->root_, host.windows, r.error());
  }
  // Last: while no thread runs the loops, devices are set up on this one.
  if (Outcome<void> r = set->StartLoops(); !r) return tl::unexpected(r.error());
  return set;
}

DeviceSet::~DeviceSet() {
  for (const auto& loop : loops_) loop->Stop();
  threads_.clear();
  // From here on the loops' work is done inline. A transport resets its device, which waits for I/O
  // in flight.
  serial_.reset();
  vdevs_.reset();
  assigned_.reset();
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    if (entry->pci != nullptr && root_ != nullptr) (void)root_->Remove(*entry->pci);
    entry->pci.reset();
    entry->mmio.reset();
    entry->device.reset();
  }
  for (const auto& port : ports_) (void)root_->Remove(*port);
}

Outcome<void> DeviceSet::StartLoops() {
  for (std::size_t i = 0; i < loops_.size(); ++i) {
    EventLoop* loop = loops_[i].get();
    Result<Thread> thread = Thread::Start(fmt::format("io{}", i), [loop] { loop->Run(); });
    if (!thread) return HostFailure("cannot start an I/O thread", thread.error());
    threads_.push_back(std::move(*thread));
  }
  return {};
}

Outcome<void> DeviceSet::AddAll() {
  EventLoop& loop = *loops_.front();
  if (config_.serial.mode != ConsoleConfig::Mode::kOff) {
    Outcome<std::unique_ptr<SerialConsole>> serial = SerialConsole::Create(
        OptionsOf(config_.serial, host_.quit), loop, host_.ports, host_.platform.interrupts);
    if (!serial) return tl::unexpected(serial.error());
    serial_ = std::move(*serial);
  }
  if (config_.console.mode != ConsoleConfig::Mode::kOff) {
    Outcome<std::unique_ptr<virtio::Console>> console =
        virtio::Console::Create({.backend = OptionsOf(config_.console, host_.quit)}, loop);
    if (!console) return tl::unexpected(console.error());
    std::string detail = (*console)->backend().description();
    if (Outcome<void> r = Add("console0", std::move(*console), std::move(detail)); !r) return r;
  }
  for (std::size_t i = 0; i < config_.disks.size(); ++i) {
    const DiskConfig& disk = config_.disks[i];
    const std::string id = disk.id.empty() ? fmt::format("disk{}", i) : disk.id;
    Outcome<std::unique_ptr<virtio::Blk>> blk =
        virtio::Blk::Create(OptionsOf(disk, id), loop_pointers_);
    if (!blk) return tl::unexpected(blk.error());
    if (Outcome<void> r =
            Add(id, std::move(*blk), disk.path + (disk.readonly ? ", read-only" : ""));
        !r)
      return r;
  }
  for (std::size_t i = 0; i < config_.nets.size(); ++i) {
    const NetConfig& net = config_.nets[i];
    const std::string id = net.id.empty() ? fmt::format("net{}", i) : net.id;
    Outcome<std::unique_ptr<virtio::Net>> device =
        virtio::Net::Create(OptionsOf(net), loop_pointers_);
    if (!device) return tl::unexpected(device.error());
    std::string detail =
        net.tap.empty() ? fmt::format("TAP descriptor {}", net.fd) : "TAP " + net.tap;
    if (Outcome<void> r = Add(id, std::move(*device), std::move(detail)); !r) return r;
  }
  if (config_.vsock.has_value()) {
    Outcome<std::unique_ptr<virtio::Vsock>> vsock = virtio::Vsock::Create(
        {.guest_cid = config_.vsock->cid, .socket = config_.vsock->socket}, loop);
    if (!vsock) return tl::unexpected(vsock.error());
    if (Outcome<void> r = Add("vsock0", std::move(*vsock),
                              fmt::format("CID {}, {}", config_.vsock->cid, config_.vsock->socket));
        !r) {
      return r;
    }
  }
  if (config_.rng) {
    if (Outcome<void> r = Add("rng0", std::make_unique<virtio::Rng>(loop), {}); !r) return r;
  }
  if (Outcome<void> r = AddAssigned(); !r) return r;
  return AddVdevs();
}

Outcome<void> DeviceSet::AddVdevs() {
  if (config_.vdevs.empty()) return {};
  vdevs_ = std::make_unique<VirtualDevices>(
      VirtualDevices::Host{.interrupts = host_.platform.interrupts,
                           .memory = host_.memory,
                           .root = *root_,
                           .loop = *loops_.front(),
                           .open = [this](const VdevConfig& vdev) { return LendTo(vdev); }});
  for (std::size_t i = 0; i < config_.vdevs.size(); ++i) {
    const VdevConfig& vdev = config_.vdevs[i];
    Entry entry;
    entry.id = vdev.id.empty() ? fmt::format("vdev{}", i) : vdev.id;
    Outcome<pci::PciFunction*> function = vdevs_->Add(vdev, entry.id, config_.cpus);
    if (!function) {
      Failure failure = function.error();
      failure.cause = fmt::format("vdev '{}': {}", entry.id, failure.cause);
      return tl::unexpected(std::move(failure));
    }
    entry.detail = vdevs_->Detail(entry.id);
    entry.assigned = *function;
    entries_.push_back(std::move(entry));
  }
  return {};
}

// Driven by the vdevs' back ends rather than by the guest.
Outcome<LentDevice> DeviceSet::LendTo(const VdevConfig& vdev) {
  AssignedConfig device;
  device.host = vdev.host;
  device.socket = vdev.socket;
  return assigned().Lend(device);
}

AssignedDevices& DeviceSet::assigned() {
  if (assigned_ == nullptr) {
    assigned_ = std::make_unique<AssignedDevices>(
        AssignedDevices::Host{.platform = host_.platform,
                              .files = host_.vfio_files,
                              .memory = host_.memory,
                              .root = *root_,
                              .loop = host_.control,
                              .give_back = [this](const std::string& id) { GiveBack(id); }});
  }
  return *assigned_;
}

Outcome<void> DeviceSet::AddAssigned() {
  for (std::size_t i = 0; i < config_.devices.size(); ++i) {
    const AssignedConfig& device = config_.devices[i];
    const std::string id = device.id.empty() ? fmt::format("device{}", i) : device.id;
    Outcome<pci::PciFunction*> function = assigned().Place(device, id);
    if (!function) {
      Failure failure = function.error();
      failure.cause = fmt::format("device '{}': {}", id, failure.cause);
      return tl::unexpected(std::move(failure));
    }
    Entry entry;
    entry.id = id;
    entry.detail = assigned_->Detail(id);
    entry.assigned = *function;
    entries_.push_back(std::move(entry));
  }
  return {};
}

Outcome<void> DeviceSet::Add(std::string id, std::unique_ptr<virtio::Device> device,
                             std::string detail) {
  Entry entry{.id = std::move(id),
              .device = std::move(device),
              .pci = nullptr,
              .mmio = nullptr,
              .detail = std::move(detail)};
  if (root_ != nullptr) {
    Result<std::unique_ptr<virtio::PciTransport>> transport = virtio::PciTransport::Create(
        *entry.device, host_.memory, host_.platform.interrupts, entry.id);
    if (!transport) return HostFailure(fmt::format("device '{}'", entry.id), transport.error());
    entry.pci = std::move(*transport);
    if (Result<pci::Bdf> where = root_->Add(*entry.pci); !where) {
      return HostFailure(fmt::format("device '{}'", entry.id), where.error());
    }
  } else {
    const std::uint64_t index = entries_.size();
    const std::uint64_t base = x86_64::kVirtioMmio + index * x86_64::kVirtioMmioStride;
    const auto gsi = static_cast<std::uint32_t>(x86_64::kVirtioMmioFirstGsi + index);
    Result<std::unique_ptr<virtio::MmioTransport>> transport = virtio::MmioTransport::Create(
        *entry.device, host_.memory, host_.platform, host_.mmio, memory::Gpa(base), gsi, entry.id);
    if (!transport) return HostFailure(fmt::format("device '{}'", entry.id), transport.error());
    entry.mmio = std::move(*transport);
  }
  entries_.push_back(std::move(entry));
  return {};
}

void DeviceSet::DescribeTo(boot::acpi::Config& acpi) const {
  acpi.serial = serial_ != nullptr;
  if (root_ != nullptr) {
    const pci::Windows& windows = host_.windows;
    acpi.pci = boot::acpi::PciRoot{.buses = root_->config().buses,
                                   .window32 = {windows.memory32.base, windows.memory32.size},
                                   .window64 = {windows.memory64.base, windows.memory64.size},
                                   .ports = {windows.io.base, windows.io.size}};
  }
  for (const Entry& entry : entries_) {
    if (entry.mmio == nullptr) continue;
    acpi.virtio_mmio.push_back({.base = entry.mmio->base().value,
                                .size = virtio::MmioTransport::kSize,
                                .gsi = entry.mmio->gsi()});
  }
}

std::vector<std::string> DeviceSet::CommandLineParts() const {
  std::vector<std::string> parts;
  for (const Entry& entry : entries_) {
    if (entry.mmio == nullptr) continue;
    // Linux Documentation/admin-guide/kernel-parameters.txt, virtio_mmio.device: size@base:irq.
    parts.push_back(fmt::format("virtio_mmio.device={}@{:#x}:{}", virtio::MmioTransport::kSize,
                                entry.mmio->base().value, entry.mmio->gsi()));
  }
  return parts;
}

std::string DeviceSet::Describe() const {
  std::string text;
  if (serial_ != nullptr) text += fmt::format("serial   {}\n", serial_->description());
  for (const Entry& entry : entries_) {
    const std::string where =
        entry.mmio == nullptr
            ? std::string()
            : fmt::format("mmio {:#x}, IRQ {}", entry.mmio->base().value, entry.mmio->gsi());
    text += fmt::format("{:<8} {}{}{}\n", entry.id, entry.detail,
                        entry.detail.empty() || where.empty() ? "" : ", ", where);
  }
  if (root_ != nullptr) {
    for (const pci::FunctionInfo& function : root_->Functions()) text += pci::Describe(function);
  }
  return text;
}

void DeviceSet::ReportMetrics(MetricsWriter& metrics) const {
  for (const Entry& entry : entries_) {
    if (entry.assigned != nullptr) continue;
    metrics.Group(entry.id, [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { entry.device->ReportCounters(sink); });
      w.Group("transport", [&](MetricsWriter& t) {
        t.Counters([&](CounterSink& sink) {
          if (entry.pci != nullptr) entry.pci->ReportCounters(sink);
          if (entry.mmio != nullptr) entry.mmio->ReportCounters(sink);
        });
      });
    });
  }
  if (assigned_ != nullptr) assigned_->ReportMetrics(metrics);
  if (vdevs_ != nullptr) vdevs_->ReportMetrics(metrics);
  for (const auto& port : ports_) {
    metrics.Group(port->name(), [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { port->ReportCounters(sink); });
    });
  }
  if (!ports_.empty()) {
    metrics.Group("hotplug", [&](MetricsWriter& w) {
      w.Value("devices_added", added_);
      w.Value("devices_removed", removed_);
    });
  }
  if (serial_ != nullptr) {
    metrics.Group("serial0", [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { serial_->ReportCounters(sink); });
    });
  }
}

}  // namespace postern
