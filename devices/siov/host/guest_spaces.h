#pragma once

// GuestSpaces: several guests of this process on one physical DSA: each gets a PASID and an address
// space that holds its own RAM at its guest-physical addresses, so that what its descriptors name
// is its own memory or a fault.
//
//   auto shared = TRY(kernel_host.OpenShared({.sysfs = "/sys/bus/pci/devices/0000:6a:01.0"}));
//   GuestSpaces spaces(*shared.pasids);
//   auto host = TRY(DsaHost::Create(std::move(shared.device), {.name = "dsa", .pasids = true}));
//   auto space = TRY(spaces.Admit(guest_memory));            // for each guest
//   auto backend = TRY(VfioBackend::Create(*host, {.queues = 1}, std::move(space)));
//
// Why a guest cannot reach another's memory: its queues are dedicated, so that the device takes the
// PASID from the queue's configuration, which the host writes, and not from the descriptor (DSA
// 5.1); and the device has no table without a PASID but an empty one.
//
// RAM follows the guest's memory map for as long as the space lives, as an observer of it
// (ram_mapper.h has the order). When the space goes the PASID is detached first, then the memory is
// let go; its queues must be reset by then (VfioBackend holds it until they are).
//
// Ownership: borrows the device and the memory map. Threads: the control thread.
// Not run on hardware so far: see README.

#include <memory>

#include "devices/siov/host/dsa_host.h"
#include "iommu/prefault.h"
#include "src/base/failure.h"
#include "src/memory/guest_memory.h"
#include "vfio/pasid_device.h"

namespace postern::dsa {

class GuestSpaces {
 public:
  // prefault_threads: how many make memory present before it is pinned; 0: it is not.
  explicit GuestSpaces(vfio::PasidDevice& device,
                       unsigned prefault_threads = iommu::HostPrefaultThreads())
      : device_(device), prefault_threads_(prefault_threads) {}

  // The failure says what could not be mapped and why, or that there is no PASID.
  [[nodiscard]] Outcome<std::unique_ptr<GuestSpace>> Admit(memory::MemoryMap& memory);

 private:
  vfio::PasidDevice& device_;
  const unsigned prefault_threads_;
};

}  // namespace postern::dsa
