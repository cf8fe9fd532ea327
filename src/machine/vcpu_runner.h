#pragma once

// VcpuRunner: the thread of one vCPU: enters the guest, carries out what it exits for on the buses,
// and reports how it ended. Ownership: borrows the buses and the end callback; they outlive it.
// Threads: Start, Stop and Pause from the control thread.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <vector>

#include "src/base/mutex.h"
#include "src/base/thread.h"
#include "src/bus/bus.h"
#include "src/kvm/vcpu.h"
#include "src/machine/direct_store.h"
#include "src/machine/exit_report.h"
#include "src/memory/guest_memory.h"

namespace postern {

class VcpuRunner {
 public:
  // kvm::Vm::StoreToPages of its machine.
  using StoreToPages = std::function<bool(memory::Gpa gpa, bus::Block block)>;

  // `end` is called on the vCPU's thread, at most once, when the guest cannot go on from here.
  VcpuRunner(std::unique_ptr<kvm::Vcpu> vcpu, bus::Bus& mmio, bus::Bus& ports,
             const memory::MemoryMap& memory, StoreToPages store_to_pages,
             std::function<void(ExitReport)> end);
  ~VcpuRunner();

  [[nodiscard]] Result<void> Start();
  // Leaves the guest and joins the thread. Idempotent.
  void Stop();
  // Pause returns when the vCPU is out of the guest and will not enter it before Resume.
  void Pause();
  void Resume();

  [[nodiscard]] kvm::Vcpu& vcpu() { return *vcpu_; }
  [[nodiscard]] const kvm::Vcpu& vcpu() const { return *vcpu_; }
  // Instructions carried out here for KVM, and #UDs given to a program in the guest. Any thread.
  void ReportCounters(CounterSink& sink) const;

 private:
  enum class Want : std::uint8_t { kRun, kPause, kStop };
  void Loop();
  // False when the loop is to end.
  bool Obey();
  // Nothing, or why the guest cannot go on.
  std::unique_ptr<ExitReport> Handle(const kvm::Exit& exit);
  void PortIo(const kvm::Exit& exit);
  // False: it was no instruction of ours, nor a program's of the guest, and the guest cannot go on.
  [[nodiscard]] bool GoOnAfterEmulationFailure();
  [[nodiscard]] DirectStoreHost StoreHost() const;
  [[nodiscard]] std::vector<std::byte> Instruction(std::uint64_t linear) const;
  [[nodiscard]] ExitReport Died(const kvm::Exit& exit) const;

  std::unique_ptr<kvm::Vcpu> vcpu_;
  bus::Bus& mmio_;
  bus::Bus& ports_;
  const memory::MemoryMap& memory_;
  StoreToPages store_to_pages_;
  std::function<void(ExitReport)> end_;
  Thread thread_;
  std::atomic<Want> want_{Want::kRun};
  Mutex mutex_;
  std::condition_variable_any changed_;
  bool paused_ GUARDED_BY(mutex_) = false;
  Counter direct_stores_, undefined_opcodes_;
};

}  // namespace postern
