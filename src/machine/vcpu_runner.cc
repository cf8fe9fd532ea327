#include "src/machine/vcpu_runner.h"

#include <array>
#include <string>

#include <fmt/format.h>

#include "src/arch/x86_64/regs.h"
#include "src/base/failure.h"

namespace postern {
namespace {

std::string Text(std::span<const std::byte> bytes) {
  if (bytes.empty()) return "(not readable)";
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{}{:02x}", text.empty() ? "" : " ", byte);
  return text;
}

}  // namespace

VcpuRunner::VcpuRunner(std::unique_ptr<kvm::Vcpu> vcpu, bus::Bus& mmio, bus::Bus& ports,
                       const memory::MemoryMap& memory, StoreToPages store_to_pages,
                       std::function<void(ExitReport)> end)
    : vcpu_(std::move(vcpu)),
      mmio_(mmio),
      ports_(ports),
      memory_(memory),
      store_to_pages_(std::move(store_to_pages)),
      end_(std::move(end)) {}

VcpuRunner::~VcpuRunner() {
  Stop();
}

Result<void> VcpuRunner::Start() {
  thread_ = TRY(Thread::Start(fmt::format("vcpu{}", vcpu_->id()), [this] {
    vcpu_->BindThread();
    Loop();
  }));
  return {};
}

void VcpuRunner::Stop() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mutex_);
    want_.store(Want::kStop);
    changed_.notify_all();
  }
  vcpu_->Kick();
  thread_.Join();
}

void VcpuRunner::Pause() {
  if (!thread_.joinable()) return;
  MutexLock lock(mutex_);
  Want running = Want::kRun;
  if (!want_.compare_exchange_strong(running, Want::kPause)) return;
  vcpu_->Kick();
  while (!paused_) changed_.wait(mutex_);
}

void VcpuRunner::Resume() {
  MutexLock lock(mutex_);
  Want paused = Want::kPause;
  if (!want_.compare_exchange_strong(paused, Want::kRun)) return;
  changed_.notify_all();
}

bool VcpuRunner::Obey() {
  if (want_.load() == Want::kRun) return true;
  MutexLock lock(mutex_);
  paused_ = true;
  changed_.notify_all();
  while (want_.load() == Want::kPause) changed_.wait(mutex_);
  paused_ = false;
  return want_.load() == Want::kRun;
}

void VcpuRunner::Loop() {
  // A vCPU that ended still answers Pause, until Stop.
  std::unique_ptr<ExitReport> ended;
  while (Obey() && ended == nullptr) {
    const Result<kvm::Exit> exit = vcpu_->Run();
    if (!exit) {
      ended = std::make_unique<ExitReport>(
          ExitReport{ExitReport::Reason::kHostError,
                     fmt::format("vCPU {}: {}", vcpu_->id(), Describe(exit.error()))});
    } else {
      ended = Handle(*exit);
    }
  }
  if (ended == nullptr) return;
  end_(std::move(*ended));
  MutexLock lock(mutex_);
  paused_ = true;
  changed_.notify_all();
  while (want_.load() != Want::kStop) changed_.wait(mutex_);
}

DirectStoreHost VcpuRunner::StoreHost() const {
  return {.translate = [this](std::uint64_t linear) { return vcpu_->Translate(linear); },
          .memory = memory_,
          .store_to_pages = store_to_pages_,
          .mmio = mmio_};
}

std::vector<std::byte> VcpuRunner::Instruction(std::uint64_t linear) const {
  std::vector<std::byte> bytes = vcpu_->EmulationBytes();
  return bytes.empty() ? ReadInstruction(linear, StoreHost()) : bytes;
}

bool VcpuRunner::GoOnAfterEmulationFailure() {
  const Result<x86_64::Sregs> sregs = vcpu_->GetSregs();
  Result<x86_64::Regs> regs = vcpu_->GetRegs();
  if (!sregs || !regs) return false;
  const std::vector<std::byte> bytes = Instruction(x86_64::LinearRip(*regs, *sregs));
  if (EmulateDirectStore(bytes, *regs, *sregs, StoreHost()) == DirectStoreEnd::kDone) {
    // Takes back the #UD that KVM may have put in line.
    if (!vcpu_->SetRegs(*regs)) return false;
    direct_stores_.Add();
    return true;
  }
  // What KVM does without being asked: a program of the guest cannot end the guest.
  if (x86_64::PrivilegeLevel(*sregs) == 0) return false;
  undefined_opcodes_.Add();
  return vcpu_->QueueUndefinedOpcode().has_value();
}

std::unique_ptr<ExitReport> VcpuRunner::Handle(const kvm::Exit& exit) {
  using Kind = kvm::Exit::Kind;
  switch (exit.kind) {
    case Kind::kMmio:
      if (exit.write) {
        mmio_.Write(exit.address, exit.data);
      } else {
        mmio_.Read(exit.address, exit.data);
      }
      return nullptr;
    case Kind::kPortIo:
      PortIo(exit);
      return nullptr;
    case Kind::kInterrupted:
      return nullptr;
    case Kind::kPowerOff:
      return std::make_unique<ExitReport>(ExitReport{ExitReport::Reason::kPowerOff, {}});
    case Kind::kReset:
      return std::make_unique<ExitReport>(ExitReport{ExitReport::Reason::kReset, {}});
    case Kind::kInternalError:
      if (exit.reason == kvm::kEmulationFailure && GoOnAfterEmulationFailure()) return nullptr;
      [[fallthrough]];
    default:
      return std::make_unique<ExitReport>(Died(exit));
  }
}

void VcpuRunner::PortIo(const kvm::Exit& exit) {
  // A string instruction exits once for `count` elements of equal width.
  if (exit.count == 0) return;
  const std::size_t width = exit.data.size() / exit.count;
  for (std::size_t at = 0; at < exit.data.size(); at += width) {
    if (exit.write) {
      ports_.Write(exit.address, exit.data.subspan(at, width));
    } else {
      ports_.Read(exit.address, exit.data.subspan(at, width));
    }
  }
}

void VcpuRunner::ReportCounters(CounterSink& sink) const {
  sink.Add("direct_stores", direct_stores_.Get());
  sink.Add("undefined_opcodes", undefined_opcodes_.Get());
}

ExitReport VcpuRunner::Died(const kvm::Exit& exit) const {
  using Kind = kvm::Exit::Kind;
  ExitReport report;
  report.reason = exit.kind == Kind::kShutdown ? ExitReport::Reason::kTripleFault
                                               : ExitReport::Reason::kInternalError;
  std::string what;
  switch (exit.kind) {
    case Kind::kShutdown:
      what = "triple fault";
      break;
    case Kind::kInternalError:
      what = exit.reason == kvm::kEmulationFailure
                 ? "KVM internal error: emulation failure"
                 : fmt::format("KVM internal error, suberror {}", exit.reason);
      break;
    case Kind::kFailedEntry:
      what = fmt::format("KVM could not enter the guest, hardware reason {:#x}", exit.reason);
      break;
    default:
      what = fmt::format("KVM exit reason {} that this machine does not handle", exit.reason);
  }
  const Result<x86_64::Regs> regs = vcpu_->GetRegs();
  const std::uint64_t rip = regs ? regs->rip : 0;
  const Result<x86_64::Sregs> sregs = vcpu_->GetSregs();
  // What AMD-V saves of a processor that shut down is undefined; Linux's svm.c resets the vCPU.
  if (exit.kind == Kind::kShutdown && regs && sregs && x86_64::IsAtReset(*regs, *sregs)) {
    report.text =
        fmt::format("vCPU {}: {}; where is not known: KVM on AMD processors resets the vCPU first",
                    vcpu_->id(), what);
    return report;
  }
  report.text =
      fmt::format("vCPU {}: {} at rip {:#x}, instruction bytes {}", vcpu_->id(), what, rip,
                  Text(Instruction(regs && sregs ? x86_64::LinearRip(*regs, *sregs) : rip)));
  return report;
}

}  // namespace postern
