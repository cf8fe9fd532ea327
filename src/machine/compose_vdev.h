#pragma once

// ComposeVdev: a virtual device as a configuration describes it: personality, back end and portal
// mode, put together; in no slot yet. The machine puts it on its PCI root, `postern vdev serve`
// behind a socket.
//
//   ComposedVdev dsa = TRY_OUTCOME(ComposeVdev(config, "vdev0", {interrupts, memory, loop, cpus}));
//
// Ownership: as siov::Vdev. Threads: any.

#include <cstdint>
#include <memory>
#include <string>

#include "devices/siov/core/vdev.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/bus/platform.h"
#include "src/machine/config.h"
#include "src/machine/host_accelerators.h"
#include "src/memory/guest_memory.h"

namespace postern {

struct VdevHost {
  bus::InterruptSource& interrupts;
  const memory::MemoryMap& memory;
  EventLoop& loop;           // on which the back end's events are handled
  std::uint32_t cpus = 1;    // of the guest, which decide what portals may be
  bool pages_leave = false;  // siov::VdevOptions'
  // Outlives the device; null: neither backend=vfio nor cdev is to be had.
  HostAccelerators* accelerators = nullptr;
};

struct ComposedVdev {
  std::string detail;  // "dsa-ro, 1 queue of 32, polled portals, engine of 1 thread"
  std::unique_ptr<siov::Vdev> vdev;
};

[[nodiscard]] Outcome<ComposedVdev> ComposeVdev(const VdevConfig& config, const std::string& id,
                                                const VdevHost& host);

}  // namespace postern
