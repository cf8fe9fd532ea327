#pragma once

// DeviceSet: the devices of one machine: made from the configuration, put behind the chosen
// transport, listed, counted, taken down in order.
//
// Ownership: owns the I/O loops and their threads, the devices, the transports and the hot-plug
// ports; borrows buses, platform, memory map and control loop. Threads: the control thread.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "devices/pci/root.h"
#include "devices/pci/root_port.h"
#include "devices/virtio/device.h"
#include "devices/virtio/mmio/mmio_transport.h"
#include "devices/virtio/pci/pci_transport.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/thread.h"
#include "src/boot/acpi/tables.h"
#include "src/bus/bus.h"
#include "src/bus/platform.h"
#include "src/bus/vfio_files.h"
#include "src/machine/assigned_devices.h"
#include "src/machine/config.h"
#include "src/machine/device_info.h"
#include "src/machine/metrics.h"
#include "src/machine/serial_console.h"
#include "src/machine/virtual_devices.h"
#include "src/memory/guest_memory.h"

namespace postern {

class DeviceSet {
 public:
  struct Host {
    bus::Platform platform;
    bus::Bus& mmio;
    bus::Bus& ports;
    memory::MemoryMap& memory;
    pci::Windows windows;
    std::function<void()> quit;  // the user typed the escape sequence; any thread
    EventLoop& control;
    bus::VfioFiles* vfio_files = nullptr;
  };
  [[nodiscard]] static Outcome<std::unique_ptr<DeviceSet>> Create(const Config& config,
                                                                  const Host& host);
  // Stops the loops after the devices were reset on them: no I/O is in flight afterwards. vCPUs
  // must be at rest.
  ~DeviceSet();

  // As Machine's of the same names.
  [[nodiscard]] Outcome<std::string> AddDevice(const DeviceConfig& device);
  [[nodiscard]] Outcome<void> RemoveDevice(const std::string& id, std::function<void()> done);
  [[nodiscard]] Outcome<void> PullDevice(const std::string& id);
  [[nodiscard]] std::vector<DeviceInfo> Devices() const;
  [[nodiscard]] std::size_t free_slots() const;

  // What the ACPI tables say of the devices.
  void DescribeTo(boot::acpi::Config& acpi) const;
  // Kernel parameters by which a kernel without ACPI finds virtio-mmio devices; empty for PCI.
  [[nodiscard]] std::vector<std::string> CommandLineParts() const;
  // For people, a line each.
  [[nodiscard]] std::string Describe() const;
  void ReportMetrics(MetricsWriter& metrics) const;

 private:
  struct Entry {
    std::string id;
    std::unique_ptr<virtio::Device> device;
    std::unique_ptr<virtio::PciTransport> pci;
    std::unique_ptr<virtio::MmioTransport> mmio;
    std::string detail;
    pci::RootPort* port = nullptr;  // the hot-plug slot it is in
    // No virtio device: assigned_ or vdevs_ has it, device is null.
    pci::PciFunction* assigned = nullptr;
  };
  DeviceSet(const Config& config, const Host& host) : config_(config), host_(host) {}
  [[nodiscard]] Outcome<void> StartLoops();
  [[nodiscard]] Outcome<void> AddAll();
  [[nodiscard]] Outcome<void> AddAssigned();
  [[nodiscard]] Outcome<void> AddVdevs();
  [[nodiscard]] Outcome<void> AddPorts();
  [[nodiscard]] Outcome<Entry> MakeDisk(const DiskConfig& disk, const std::string& id);
  // Whether the slot's windows can hold the BARs.
  [[nodiscard]] static Outcome<void> CheckRoom(const Entry& entry, const pci::RootPort& port);
  [[nodiscard]] Outcome<Entry> MakeAssigned(const AssignedConfig& device, const std::string& id);
  [[nodiscard]] Outcome<LentDevice> LendTo(const VdevConfig& vdev);
  [[nodiscard]] AssignedDevices& assigned();
  // The host wants an assigned device back: the guest is asked for it where it can be, and in any
  // case loses it.
  void GiveBack(const std::string& id);
  [[nodiscard]] Outcome<std::string> NewId(const std::string& wanted, std::string_view kind) const;
  [[nodiscard]] bool IsTaken(std::string_view id) const;
  [[nodiscard]] pci::RootPort* FreePort() const;
  // A device that was added, by its id.
  [[nodiscard]] Outcome<Entry*> FindAdded(const std::string& id);
  void Discard(const std::string& id);
  [[nodiscard]] Outcome<void> Add(std::string id, std::unique_ptr<virtio::Device> device,
                                  std::string detail);

  const Config config_;
  const Host host_;
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::vector<EventLoop*> loop_pointers_;
  std::vector<Thread> threads_;
  std::unique_ptr<pci::PciRoot> root_;
  std::vector<std::unique_ptr<pci::RootPort>> ports_;
  std::vector<Entry> entries_;
  std::unique_ptr<AssignedDevices> assigned_;  // none where no device is assigned
  std::unique_ptr<VirtualDevices> vdevs_;      // none where there is none
  std::unique_ptr<SerialConsole> serial_;
  std::uint64_t added_ = 0;  // while the machine was there, and removed again
  std::uint64_t removed_ = 0;
};

}  // namespace postern
