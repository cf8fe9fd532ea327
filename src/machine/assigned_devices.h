#pragma once

// AssignedDevices: the devices of one machine that are not ours: opened (VFIO or vfio-user), their
// DMA given the guest's memory, put on the PCI root as functions.
//
//   AssignedDevices devices(host);
//   if (Outcome<void> r = devices.Add(config, "device0"); !r) return r;
//
// Ownership: owns the functions, their host devices, the address spaces and the mappers of guest
// RAM; borrows what Host names. Goes before the memory map and the virtual machine. Threads: the
// control thread; what a function does on a trap is under its own lock.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "devices/pci/root.h"
#include "iommu/ram_mapper.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/bus/platform.h"
#include "src/bus/vfio_files.h"
#include "src/machine/config.h"
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
    EventLoop& loop;  // error and request events of the devices
  };

  explicit AssignedDevices(const Host& host);
  // vCPUs must be at rest.
  ~AssignedDevices();
  AssignedDevices(const AssignedDevices&) = delete;
  AssignedDevices& operator=(const AssignedDevices&) = delete;

  // Opened, all guest memory mapped for it, and on the root; or nothing of it is left.
  [[nodiscard]] Outcome<void> Add(const AssignedConfig& config, const std::string& id);

  [[nodiscard]] bool empty() const { return entries_.empty(); }
  // For people, a line each.
  [[nodiscard]] std::string Describe() const;
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
  [[nodiscard]] Outcome<std::unique_ptr<vfio::HostDevice>> Open(const AssignedConfig& config);
  void Remove(Entry& entry);

  const Host host_;
  vfio::KernelHost kernel_;
  // Of the kernel's address spaces, in the order they were made.
  std::vector<std::unique_ptr<iommu::RamMapper>> mappers_;
  std::vector<Entry> entries_;
};

}  // namespace postern
