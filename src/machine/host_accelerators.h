#pragma once

// HostAccelerators: the DSAs of the host that one machine drives for its virtual devices: each is
// opened when the first of them asks for it, and shared by those that name the same.
//
//   HostAccelerators accelerators([&](const VdevConfig& config) { return Open(config); });
//   dsa::DsaHost* dsa = TRY_OUTCOME(accelerators.Get(config));
//
// All its users have the machine's memory, at guest-physical addresses, by the device's own table.
//
// Ownership: of the drivers and, through them, the devices; goes after the virtual devices and
// before what the devices were opened with. Threads: the control thread.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "devices/siov/host/dsa_host.h"
#include "iommu/ram_mapper.h"
#include "src/base/failure.h"
#include "src/machine/config.h"
#include "src/memory/guest_memory.h"
#include "vfio/host_device.h"

namespace postern {

// Guest memory in an address space nobody else has, for as long as this lives.
class LentMemory {
 public:
  LentMemory(memory::MemoryMap& memory, std::unique_ptr<iommu::RamMapper> mapper)
      : memory_(memory), mapper_(std::move(mapper)) {}
  ~LentMemory() { memory_.Unobserve(*mapper_); }
  LentMemory(const LentMemory&) = delete;
  LentMemory& operator=(const LentMemory&) = delete;

 private:
  memory::MemoryMap& memory_;
  const std::unique_ptr<iommu::RamMapper> mapper_;
};

struct LentDevice {
  std::unique_ptr<LentMemory> memory;  // null: its address space is shared, and others see to it
  std::unique_ptr<vfio::HostDevice> device;
};

class HostAccelerators {
 public:
  using Opener = std::function<Outcome<LentDevice>(const VdevConfig& config)>;
  explicit HostAccelerators(Opener open) : open_(std::move(open)) {}

  // Of the device the configuration names.
  [[nodiscard]] Outcome<dsa::DsaHost*> Get(const VdevConfig& config);

 private:
  struct Entry {
    std::string key;
    std::unique_ptr<LentMemory> memory;
    std::unique_ptr<dsa::DsaHost> host;  // gone before its memory
  };
  const Opener open_;
  std::vector<Entry> entries_;
};

}  // namespace postern
