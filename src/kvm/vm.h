#pragma once

// Vm: one KVM virtual machine: memory slots, the in-kernel interrupt controllers, interrupt routes,
// doorbells, vCPUs. It is the machine's implementation of bus::Platform: interrupts become irqfds,
// doorbells ioeventfds, mapped pages memory slots.
//
// Ownership: the Vm must outlive what it hands out (routes, lines, mappings, doorbells, vCPUs).
// Threads: any; one leaf mutex guards the slot and route tables. Source: Linux
// Documentation/virt/kvm/api.rst.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/mutex.h"
#include "src/bus/platform.h"
#include "src/kvm/kvm.h"
#include "src/kvm/vcpu.h"
#include "src/memory/guest_memory.h"

namespace postern::kvm {

struct VmOptions {
  bool pit = false;  // an in-kernel 8254, for guests that calibrate with one
  std::uint32_t vcpus = 1;
};

class Vm final : public bus::InterruptSource,
                 public bus::PageMapper,
                 public bus::Doorbells,
                 public memory::MemoryObserver {
 public:
  // A machine without memory, interrupt controllers or vCPUs.
  [[nodiscard]] static Result<std::unique_ptr<Vm>> Create(const Kvm& kvm);
  ~Vm() override;
  // Once, before the first vCPU, line or route; best after RAM is there: KVM changes the memory
  // slots of a VM that has an IOAPIC only after a grace period of some milliseconds.
  [[nodiscard]] Result<void> CreateInterruptControllers(const Kvm& kvm, const VmOptions& options);

  // An instruction of a guest's program that KVM has to emulate and cannot is an exit
  // (kInternalError), as those of its kernel always are, instead of a #UD. kUnsupported: Linux
  // before 5.14.
  [[nodiscard]] Result<void> ExitOnEmulationFailure();

  [[nodiscard]] bus::Platform platform() { return {*this, *this, *this}; }
  [[nodiscard]] Result<std::unique_ptr<Vcpu>> CreateVcpu(std::uint32_t id);

  // bus::InterruptSource
  [[nodiscard]] Result<std::unique_ptr<bus::MsiRoute>> NewMsi() override;
  [[nodiscard]] Result<std::unique_ptr<bus::IrqLine>> NewLine(std::uint32_t gsi,
                                                              const EventFd* resample) override;
  // bus::PageMapper
  [[nodiscard]] Result<std::unique_ptr<bus::Mapping>> Map(memory::Gpa gpa,
                                                          const bus::HostPages& pages,
                                                          memory::Access access) override;
  // bus::Doorbells. On the MMIO bus; PIO doorbells are not needed by any device here.
  [[nodiscard]] Result<std::unique_ptr<bus::Doorbell>> Register(memory::Gpa gpa,
                                                                std::uint32_t width,
                                                                std::optional<std::uint64_t> match,
                                                                const EventFd& event) override;
  // memory::MemoryObserver: RAM regions become memory slots. With dirty tracking asked for in the
  // region's backing, KVM logs too.
  [[nodiscard]] Result<void> Added(const memory::Region& region) override;
  void Removing(const memory::Region& region) override;

  // Stores 64 bytes to pages that Map put into the guest (not to its RAM), for a guest's
  // instruction that KVM cannot emulate. False: none are there, or they are read-only. `gpa` is a
  // multiple of 64.
  [[nodiscard]] bool StoreToPages(memory::Gpa gpa, std::span<const std::byte, 64> block);

  // Pages vCPUs wrote in the region at `base` since the last call (one bit a 4 KiB page).
  [[nodiscard]] Result<std::vector<std::uint64_t>> TakeDirtyLog(memory::Gpa base);

  // KVM's own per-VM counters that this host offers (KVM_GET_STATS_FD), and ours.
  void ReportCounters(CounterSink& sink) const;
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  class Msi;
  class Line;
  class Pages;
  class Bell;
  struct Slot {
    bool used = false;
    std::uint64_t gpa = 0;
    std::uint64_t size = 0;
    std::uint64_t host = 0;
    std::uint32_t flags = 0;
  };
  // A GSI's message; valid once the guest gave it one.
  struct Route {
    bool used = false;
    bool valid = false;
    bus::MsiMessage message;
  };

  Vm(Fd fd, std::size_t run_size, std::uint32_t max_slots, std::uint32_t max_routes)
      : fd_(std::move(fd)), run_size_(run_size), max_slots_(max_slots), max_routes_(max_routes) {}
  [[nodiscard]] Result<std::uint32_t> AddSlot(std::uint64_t gpa, std::uint64_t size,
                                              std::uint64_t host, std::uint32_t flags);
  void RemoveSlot(std::uint32_t index);
  [[nodiscard]] Result<std::uint32_t> AllocateRoute();
  void FreeRoute(std::uint32_t gsi);
  [[nodiscard]] Result<void> SetRoute(std::uint32_t gsi, const bus::MsiMessage& message,
                                      bool commit);
  [[nodiscard]] Result<void> CommitRoutes() REQUIRES(mutex_);
  [[nodiscard]] Result<void> AssignIrqfd(const EventFd& event, std::uint32_t gsi, bool assign,
                                         const EventFd* resample = nullptr);

  Fd fd_;
  std::size_t run_size_;
  std::uint32_t max_slots_;
  std::uint32_t max_routes_;
  bool has_irqchip_ = false;  // set before there is a second thread
  mutable Mutex mutex_;
  std::vector<Slot> slots_ GUARDED_BY(mutex_);
  std::vector<Route> routes_ GUARDED_BY(mutex_);
  Counter route_commits_, irqfd_changes_, slot_changes_, doorbells_;
};

}  // namespace postern::kvm
