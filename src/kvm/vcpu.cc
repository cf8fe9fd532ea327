#include "src/kvm/vcpu.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <csignal>
#include <cstring>

#include "src/base/check.h"
#include "src/kvm/fam.h"
#include "src/kvm/stats.h"

namespace postern::kvm {
namespace {

// The signal that makes KVM_RUN return; its handler does nothing, immediate_exit does the rest
// (api.rst, section 5).
int KickSignal() {
  return SIGRTMIN;
}

kvm_run& RunArea(const Mmap& map) {
  // The kernel shares this structure with us for the life of the vCPU; it is no object of ours to
  // copy.
  return *static_cast<kvm_run*>(static_cast<void*>(map.data()));
}

kvm_segment ToKvm(const x86_64::Segment& s) {
  kvm_segment out{};
  out.base = s.base;
  out.limit = s.limit;
  out.selector = s.selector;
  out.type = s.type;
  out.present = s.present;
  out.dpl = s.dpl;
  out.db = s.db;
  out.s = s.s;
  out.l = s.l;
  out.g = s.g;
  out.avl = s.avl;
  out.unusable = s.unusable;
  return out;
}

x86_64::Segment FromKvm(const kvm_segment& s) {
  return {.base = s.base,
          .limit = s.limit,
          .selector = s.selector,
          .type = s.type,
          .present = s.present,
          .dpl = s.dpl,
          .db = s.db,
          .s = s.s,
          .l = s.l,
          .g = s.g,
          .avl = s.avl,
          .unusable = s.unusable};
}

}  // namespace

Vcpu::~Vcpu() = default;

void Vcpu::InstallKickHandler() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigemptyset(&action.sa_mask);
  CHECK(sigaction(KickSignal(), &action, nullptr) == 0);
}

void Vcpu::BindThread() {
  thread_ = pthread_self();
  bound_.store(true, std::memory_order_release);
}

void Vcpu::Kick() {
  __atomic_store_n(&RunArea(run_).immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
  if (bound_.load(std::memory_order_acquire)) pthread_kill(thread_, KickSignal());
}

Result<Exit> Vcpu::Run() {
  kvm_run& run = RunArea(run_);
  if (ioctl(fd_.get(), KVM_RUN, 0) < 0) {
    // EAGAIN: a processor that was waiting for its start-up IPI changed state; run it again.
    if (errno != EINTR && errno != EAGAIN) return SysError("KVM_RUN");
    __atomic_store_n(&run.immediate_exit, std::uint8_t{0}, __ATOMIC_SEQ_CST);
    counters_.interrupted.Add();
    return Exit{.kind = Exit::Kind::kInterrupted};
  }
  counters_.exits.Add();
  switch (run.exit_reason) {
    case KVM_EXIT_IO: {
      counters_.port_io.Add();
      const std::size_t bytes = std::size_t{run.io.size} * run.io.count;
      // Offset and length come from the kernel, not from the guest; a value outside the area would
      // be a kernel bug.
      CHECK(run.io.data_offset <= run_.size() && run_.size() - run.io.data_offset >= bytes);
      return Exit{.kind = Exit::Kind::kPortIo,
                  .write = run.io.direction == KVM_EXIT_IO_OUT,
                  .address = run.io.port,
                  .data = {run_.data() + run.io.data_offset, bytes},
                  .count = run.io.count};
    }
    case KVM_EXIT_MMIO: {
      counters_.mmio.Add();
      CHECK(run.mmio.len <= sizeof(run.mmio.data));
      return Exit{.kind = Exit::Kind::kMmio,
                  .write = run.mmio.is_write != 0,
                  .address = run.mmio.phys_addr,
                  .data = std::as_writable_bytes(std::span(run.mmio.data)).first(run.mmio.len)};
    }
    case KVM_EXIT_INTR:
      counters_.interrupted.Add();
      return Exit{.kind = Exit::Kind::kInterrupted};
    case KVM_EXIT_SHUTDOWN:
      return Exit{.kind = Exit::Kind::kShutdown};
    case KVM_EXIT_SYSTEM_EVENT:
      if (run.system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
        return Exit{.kind = Exit::Kind::kPowerOff};
      if (run.system_event.type == KVM_SYSTEM_EVENT_RESET) return Exit{.kind = Exit::Kind::kReset};
      return Exit{.kind = Exit::Kind::kOther, .reason = run.exit_reason};
    case KVM_EXIT_INTERNAL_ERROR:
      return Exit{.kind = Exit::Kind::kInternalError, .reason = run.internal.suberror};
    case KVM_EXIT_FAIL_ENTRY:
      return Exit{
          .kind = Exit::Kind::kFailedEntry,
          .reason = static_cast<std::uint32_t>(run.fail_entry.hardware_entry_failure_reason)};
    default:
      counters_.other.Add();
      return Exit{.kind = Exit::Kind::kOther, .reason = run.exit_reason};
  }
}

Result<void> Vcpu::SetCpuid(std::span<const x86_64::CpuidEntry> entries) {
  std::vector<kvm_cpuid_entry2> converted;
  for (const x86_64::CpuidEntry& e : entries) {
    kvm_cpuid_entry2 entry{};
    entry.function = e.function;
    entry.index = e.index;
    entry.flags = e.flags;
    entry.eax = e.eax;
    entry.ebx = e.ebx;
    entry.ecx = e.ecx;
    entry.edx = e.edx;
    converted.push_back(entry);
  }
  FamBuffer<CpuidHeader, kvm_cpuid_entry2> buffer(
      {.nent = static_cast<std::uint32_t>(converted.size())}, converted);
  if (ioctl(fd_.get(), kSetCpuid2, buffer.data()) < 0) return SysError("KVM_SET_CPUID2");
  return {};
}

Result<void> Vcpu::SetRegs(const x86_64::Regs& r) {
  kvm_regs regs{};
  regs.rax = r.rax;
  regs.rbx = r.rbx;
  regs.rcx = r.rcx;
  regs.rdx = r.rdx;
  regs.rsi = r.rsi;
  regs.rdi = r.rdi;
  regs.rsp = r.rsp;
  regs.rbp = r.rbp;
  regs.r8 = r.r8;
  regs.r9 = r.r9;
  regs.r10 = r.r10;
  regs.r11 = r.r11;
  regs.r12 = r.r12;
  regs.r13 = r.r13;
  regs.r14 = r.r14;
  regs.r15 = r.r15;
  regs.rip = r.rip;
  regs.rflags = r.rflags;
  if (ioctl(fd_.get(), KVM_SET_REGS, &regs) < 0) return SysError("KVM_SET_REGS");
  return {};
}

Result<x86_64::Regs> Vcpu::GetRegs() const {
  kvm_regs r{};
  if (ioctl(fd_.get(), KVM_GET_REGS, &r) < 0) return SysError("KVM_GET_REGS");
  return x86_64::Regs{.rax = r.rax,
                      .rbx = r.rbx,
                      .rcx = r.rcx,
                      .rdx = r.rdx,
                      .rsi = r.rsi,
                      .rdi = r.rdi,
                      .rsp = r.rsp,
                      .rbp = r.rbp,
                      .r8 = r.r8,
                      .r9 = r.r9,
                      .r10 = r.r10,
                      .r11 = r.r11,
                      .r12 = r.r12,
                      .r13 = r.r13,
                      .r14 = r.r14,
                      .r15 = r.r15,
                      .rip = r.rip,
                      .rflags = r.rflags};
}

Result<void> Vcpu::SetSregs(const x86_64::Sregs& s) {
  kvm_sregs sregs{};
  if (ioctl(fd_.get(), KVM_GET_SREGS, &sregs) < 0) return SysError("KVM_GET_SREGS");
  sregs.cs = ToKvm(s.cs);
  sregs.ds = ToKvm(s.ds);
  sregs.es = ToKvm(s.es);
  sregs.fs = ToKvm(s.fs);
  sregs.gs = ToKvm(s.gs);
  sregs.ss = ToKvm(s.ss);
  sregs.tr = ToKvm(s.tr);
  sregs.ldt = ToKvm(s.ldt);
  sregs.gdt.base = s.gdt.base;
  sregs.gdt.limit = s.gdt.limit;
  sregs.idt.base = s.idt.base;
  sregs.idt.limit = s.idt.limit;
  sregs.cr0 = s.cr0;
  sregs.cr3 = s.cr3;
  sregs.cr4 = s.cr4;
  sregs.efer = s.efer;
  if (ioctl(fd_.get(), KVM_SET_SREGS, &sregs) < 0) return SysError("KVM_SET_SREGS");
  return {};
}

Result<x86_64::Sregs> Vcpu::GetSregs() const {
  kvm_sregs s{};
  if (ioctl(fd_.get(), KVM_GET_SREGS, &s) < 0) return SysError("KVM_GET_SREGS");
  return x86_64::Sregs{.cs = FromKvm(s.cs),
                       .ds = FromKvm(s.ds),
                       .es = FromKvm(s.es),
                       .fs = FromKvm(s.fs),
                       .gs = FromKvm(s.gs),
                       .ss = FromKvm(s.ss),
                       .tr = FromKvm(s.tr),
                       .ldt = FromKvm(s.ldt),
                       .gdt = {s.gdt.base, s.gdt.limit},
                       .idt = {s.idt.base, s.idt.limit},
                       .cr0 = s.cr0,
                       .cr3 = s.cr3,
                       .cr4 = s.cr4,
                       .efer = s.efer};
}

Result<void> Vcpu::SetMsrs(std::span<const x86_64::Msr> msrs) {
  for (const x86_64::Msr& msr : msrs) {
    kvm_msr_entry entry{};
    entry.index = msr.index;
    entry.data = msr.value;
    FamBuffer<MsrsHeader, kvm_msr_entry> buffer({.nmsrs = 1}, std::span(&entry, 1));
    const int set = ioctl(fd_.get(), kSetMsrs, buffer.data());
    if (set < 0) return SysError("KVM_SET_MSRS");
    // 0: the kernel does not know this one.
    if (set == 0 && msr.required) return Err(Errc::kUnsupported, "KVM_SET_MSRS");
  }
  return {};
}

Result<void> Vcpu::GetLapic(std::span<std::byte, 1024> state) const {
  static_assert(sizeof(kvm_lapic_state) == 1024);
  if (ioctl(fd_.get(), KVM_GET_LAPIC, state.data()) < 0) return SysError("KVM_GET_LAPIC");
  return {};
}

Result<void> Vcpu::SetLapic(std::span<const std::byte, 1024> state) {
  if (ioctl(fd_.get(), KVM_SET_LAPIC, state.data()) < 0) return SysError("KVM_SET_LAPIC");
  return {};
}

Result<std::uint32_t> Vcpu::TscKhz() const {
  const int khz = ioctl(fd_.get(), KVM_GET_TSC_KHZ, 0);
  if (khz < 0) return SysError("KVM_GET_TSC_KHZ");
  return static_cast<std::uint32_t>(khz);
}

Result<std::uint64_t> Vcpu::Translate(std::uint64_t linear) const {
  kvm_translation translation{};
  translation.linear_address = linear;
  if (ioctl(fd_.get(), KVM_TRANSLATE, &translation) < 0) return SysError("KVM_TRANSLATE");
  if (translation.valid == 0) return Err(Errc::kNotFound, "KVM_TRANSLATE");
  return translation.physical_address;
}

std::vector<std::byte> Vcpu::EmulationBytes() const {
  const kvm_run& run = RunArea(run_);
  if (run.exit_reason != KVM_EXIT_INTERNAL_ERROR ||
      run.emulation_failure.suberror != KVM_INTERNAL_ERROR_EMULATION ||
      run.emulation_failure.ndata < 1 ||
      (run.emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0) {
    return {};
  }
  const std::size_t size = std::min<std::size_t>(run.emulation_failure.insn_size,
                                                 sizeof(run.emulation_failure.insn_bytes));
  const std::span<const std::byte> bytes =
      std::as_bytes(std::span(run.emulation_failure.insn_bytes)).first(size);
  return {bytes.begin(), bytes.end()};
}

Result<void> Vcpu::QueueUndefinedOpcode() {
  constexpr std::uint8_t kInvalidOpcode = 6;
  kvm_vcpu_events events{};
  if (ioctl(fd_.get(), KVM_GET_VCPU_EVENTS, &events) < 0) return SysError("KVM_GET_VCPU_EVENTS");
  events.exception.injected = 1;
  events.exception.nr = kInvalidOpcode;
  events.exception.has_error_code = 0;
  if (ioctl(fd_.get(), KVM_SET_VCPU_EVENTS, &events) < 0) return SysError("KVM_SET_VCPU_EVENTS");
  return {};
}

void Vcpu::ReportKernelCounters(CounterSink& sink) const {
  ReportStats(stats_, sink);
}

}  // namespace postern::kvm
