#pragma once

// VirtualDevices: the devices of one machine that are composed in this process (devices/siov):
// made from the configuration and put on the PCI root.
//
//   VirtualDevices vdevs(host);
//   Outcome<pci::PciFunction*> dsa = vdevs.Add(config, "vdev0", cpus);
//
// Ownership: owns the functions, their engines and the devices of the host they use; borrows what
// Host names. Threads: the control thread; traps come to a function under its own lock.

#include <memory>
#include <string>
#include <vector>

#include "devices/pci/root.h"
#include "devices/siov/core/vdev.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/bus/platform.h"
#include "src/machine/config.h"
#include "src/machine/host_accelerators.h"
#include "src/machine/metrics.h"
#include "src/memory/guest_memory.h"

namespace postern {

class VirtualDevices {
 public:
  struct Host {
    bus::InterruptSource& interrupts;
    memory::MemoryMap& memory;
    pci::PciRoot& root;
    EventLoop& loop;                // on which back ends' events are handled
    HostAccelerators::Opener open;  // devices of the host that back ends drive
  };

  explicit VirtualDevices(const Host& host) : host_(host), accelerators_(host.open) {}
  // vCPUs must be at rest.
  ~VirtualDevices();
  VirtualDevices(const VirtualDevices&) = delete;
  VirtualDevices& operator=(const VirtualDevices&) = delete;

  // In the lowest free slot of the root. `cpus`: the guest's, which decide what portals may be.
  [[nodiscard]] Outcome<pci::PciFunction*> Add(const VdevConfig& config, const std::string& id,
                                               std::uint32_t cpus);
  // "dsa-ro, 1 queue of 32, polled portals, engine of 1 thread"; empty for another id.
  [[nodiscard]] std::string Detail(const std::string& id) const;

  void ReportMetrics(MetricsWriter& metrics) const;

 private:
  struct Entry {
    std::string id;
    std::string detail;
    std::unique_ptr<siov::Vdev> vdev;
  };

  const Host host_;
  HostAccelerators accelerators_;  // gone after the vdevs
  std::vector<Entry> entries_;
};

}  // namespace postern
