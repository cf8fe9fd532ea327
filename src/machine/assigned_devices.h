#pragma once

// AssignedDevices: the devices of one machine that are not ours: opened (VFIO or vfio-user), their
// DMA given the guest's memory, put on the PCI root as functions.
//
//   AssignedDevices devices(host);
//   Outcome<pci::PciFunction*> nvme = devices.Open(config, "nvme0");
//   TRY(port.Plug(**nvme));           // or Place: a slot of the root, before boot
//   ...
//   devices.Close("nvme0");           // after it was taken out
//
// Ownership: owns the functions, their host devices, the address spaces and the mappers of guest
// RAM; borrows what Host names. Goes before the memory map and the virtual machine. Threads: the
// control thread; what a function does on a trap is under its own lock.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "devices/pci/root.h"
#include "iommu/peer_memory.h"
#include "iommu/ram_mapper.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/bus/platform.h"
#include "src/bus/vfio_files.h"
#include "src/machine/config.h"
#include "src/machine/host_accelerators.h"
#include "src/machine/metrics.h"
#include "src/memory/guest_memory.h"
#include "vfio/function.h"
#include "vfio/kernel_host.h"

namespace postern {

class AssignedDevices {
 public:
  struct Host {
    bus::Platform platform;
    bus::VfioFiles* files = nullptr;
    memory::MemoryMap& memory;
    pci::PciRoot& root;
    EventLoop& loop;  // the control thread's; error and request events of the devices
    // The host wants the device back, or it has gone: posted on the loop, once.
    std::function<void(const std::string& id)> give_back;
  };

  explicit AssignedDevices(const Host& host);
  // vCPUs must be at rest.
  ~AssignedDevices();
  AssignedDevices(const AssignedDevices&) = delete;
  AssignedDevices& operator=(const AssignedDevices&) = delete;

  // Opened, with all guest memory mapped for it; in no slot yet. Nothing is left after a failure.
  [[nodiscard]] Outcome<pci::PciFunction*> Open(const AssignedConfig& config,
                                                const std::string& id);
  // The same, in the lowest free slot of the root; wired interrupts work there alone.
  [[nodiscard]] Outcome<pci::PciFunction*> Place(const AssignedConfig& config,
                                                 const std::string& id);
  // Opened the same way, with the guest's memory, for somebody else to drive: no function of the
  // guest's. Given back before this goes.
  [[nodiscard]] Outcome<LentDevice> Lend(const AssignedConfig& config);
  // After the function is in no slot any more: the host has the device back when this returns.
  void Close(const std::string& id);
  // "0000:3b:00.0, DMA by type1"; empty for another id.
  [[nodiscard]] std::string Detail(const std::string& id) const;

  void ReportMetrics(MetricsWriter& metrics) const;

 private:
  struct Entry {
    std::string id;
    std::string detail;
    std::unique_ptr<vfio::VfioFunction> function;
    // Of a device with an address space to itself.
    std::unique_ptr<iommu::RamMapper> mapper;
  };

  [[nodiscard]] Outcome<std::unique_ptr<iommu::RamMapper>> Fill(iommu::AddressSpace& space);
  [[nodiscard]] Outcome<std::unique_ptr<vfio::HostDevice>> OpenHost(const AssignedConfig& config);
  [[nodiscard]] Outcome<pci::PciFunction*> Make(const AssignedConfig& config, const std::string& id,
                                                std::optional<std::uint32_t> intx_gsi);

  const Host host_;
  vfio::KernelHost kernel_;
  iommu::PeerMemory peers_;  // of the devices with p2p
  // Of the kernel's address spaces, in the order they were made.
  std::vector<std::unique_ptr<iommu::RamMapper>> mappers_;
  std::vector<Entry> entries_;
};

}  // namespace postern
