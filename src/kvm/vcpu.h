#pragma once

// Vcpu: one KVM virtual CPU: its registers and its run loop step.
//
//   while (true) {
//     Exit exit = TRY(vcpu.Run());
//     switch (exit.kind) { case Exit::Kind::kMmio: ... }
//   }
//
// Ownership: from Vm::CreateVcpu; must not outlive the Vm. Threads: Run, Get and Set on the vCPU's
// own thread, or before it starts; Kick from any thread. Source: Linux
// Documentation/virt/kvm/api.rst, section 5 (kvm_run).

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "src/arch/x86_64/state.h"
#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "src/base/result.h"

namespace postern::kvm {

struct Exit {
  enum class Kind : std::uint8_t {
    kPortIo,       // address = port; data.size() = access width; repeated `count` times (string
                   // instructions)
    kMmio,         // address = guest-physical
    kInterrupted,  // kicked, or a signal
    kShutdown,     // triple fault
    kReset,        // KVM_SYSTEM_EVENT_RESET
    kPowerOff,     // KVM_SYSTEM_EVENT_SHUTDOWN
    kInternalError,
    kFailedEntry,
    kOther,  // reason = KVM's exit reason
  };
  Kind kind = Kind::kOther;
  bool write = false;
  std::uint64_t address = 0;
  std::span<std::byte> data =
      {};                   // in the run area: a read is answered by filling it before the next Run
  std::uint32_t count = 1;  // kPortIo: elements in data
  std::uint32_t reason =
      0;  // kOther: exit reason; kInternalError: suberror; kFailedEntry: hardware reason (low half)
};

// KVM_INTERNAL_ERROR_EMULATION, the suberror of an instruction that KVM had to emulate and cannot.
constexpr std::uint32_t kEmulationFailure = 1;

struct VcpuCounters {
  Counter exits, port_io, mmio, interrupted, other;
};

class Vcpu {
 public:
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  [[nodiscard]] std::uint32_t id() const { return id_; }
  // Enters the guest until it exits. An interrupted run (EINTR, EAGAIN of a processor that waits
  // for its start-up IPI) is an exit.
  [[nodiscard]] Result<Exit> Run();
  // Makes the current or the next Run return kInterrupted. The vCPU's thread must have called
  // BindThread.
  void Kick();
  void BindThread();
  // Installs the process-wide handler of the signal Kick uses. Idempotent.
  static void InstallKickHandler();

  [[nodiscard]] Result<void> SetCpuid(std::span<const x86_64::CpuidEntry> entries);
  [[nodiscard]] Result<void> SetRegs(const x86_64::Regs& regs);
  [[nodiscard]] Result<x86_64::Regs> GetRegs() const;
  // Base values KVM set up, with what `sregs` describes laid over them.
  [[nodiscard]] Result<void> SetSregs(const x86_64::Sregs& sregs);
  [[nodiscard]] Result<x86_64::Sregs> GetSregs() const;
  [[nodiscard]] Result<void> SetMsrs(std::span<const x86_64::Msr> msrs);
  // LVT LINT0/LINT1 and the rest of the local APIC page.
  [[nodiscard]] Result<void> GetLapic(std::span<std::byte, 1024> state) const;
  [[nodiscard]] Result<void> SetLapic(std::span<const std::byte, 1024> state);
  [[nodiscard]] Result<std::uint32_t> TscKhz() const;

  // For the last words about a guest that died: instruction bytes at RIP through KVM_TRANSLATE are
  // the caller's to read; this gives the guest-physical address of a linear one.
  [[nodiscard]] Result<std::uint64_t> Translate(std::uint64_t linear) const;
  // Instruction bytes KVM attached to an emulation failure; empty if none.
  [[nodiscard]] std::vector<std::byte> EmulationBytes() const;
  // The next Run begins with an invalid-opcode exception (#UD).
  [[nodiscard]] Result<void> QueueUndefinedOpcode();

  [[nodiscard]] const VcpuCounters& counters() const { return counters_; }
  // KVM's own per-vCPU counters ("exits", "halt_wakeup", ...), where the host offers them. From any
  // thread; does not wait for the vCPU.
  void ReportKernelCounters(CounterSink& sink) const;

 private:
  friend class Vm;
  Vcpu(Fd fd, Mmap run, Fd stats, std::uint32_t id)
      : fd_(std::move(fd)), run_(std::move(run)), stats_(std::move(stats)), id_(id) {}

  Fd fd_;
  Mmap run_;
  Fd stats_;
  std::uint32_t id_;
  std::atomic<bool> bound_{false};
  pthread_t thread_{};
  VcpuCounters counters_;
};

}  // namespace postern::kvm
