#include "src/machine/machine.h"

#include <cpuid.h>
#include <sys/resource.h>

#include <array>
#include <ctime>
#include <span>
#include <vector>

#include <fmt/format.h>

#include "src/arch/x86_64/cpuid.h"
#include "src/arch/x86_64/layout.h"
#include "src/arch/x86_64/regs.h"
#include "src/base/log.h"
#include "src/base/mutex.h"
#include "src/base/units.h"
#include "src/boot/acpi/tables.h"
#include "src/boot/boot.h"
#include "src/bus/bus.h"
#include "src/kvm/kvm.h"
#include "src/kvm/vfio_files.h"
#include "src/kvm/vm.h"
#include "src/machine/device_set.h"
#include "src/machine/metrics.h"
#include "src/machine/power_ports.h"
#include "src/machine/vcpu_runner.h"
#include "src/memory/guest_memory.h"
#include "src/probe/embedded.h"

namespace postern {
namespace {

constexpr const char* kLog = "machine";

Outcome<kvm::Kvm> OpenKvm() {
  Result<kvm::Kvm> opened = kvm::Kvm::Open();
  if (opened) return std::move(*opened);
  const Error& error = opened.error();
  switch (error.sys_errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return HostFailure("this host has no /dev/kvm",
                         "load kvm_intel or kvm_amd, and check that virtualisation is on in the "
                         "firmware (or nested, in a VM)");
    case EACCES:
    case EPERM:
      return HostFailure("no permission to use /dev/kvm",
                         "run as root, or join the group that owns /dev/kvm");
    default:
      return HostFailure("cannot use /dev/kvm", error, "postern doctor says what this host can do");
  }
}

Outcome<memory::GuestMemoryPtr> MakeMemory(const MemoryConfig& config) {
  memory::Backing backing;
  if (config.hugepages != 0) {
    backing.kind = memory::Backing::Kind::kHugetlb;
    backing.page_size = config.hugepages;
  } else if (config.shared) {
    backing.kind = memory::Backing::Kind::kMemfd;
  }
  backing.shared = config.shared;
  backing.prefault = config.prefault;
  backing.transparent_hugepages = config.thp;
  backing.mergeable = config.mergeable;

  const x86_64::RamSplit split = x86_64::SplitRam(config.size);
  const std::array<std::pair<std::uint64_t, std::uint64_t>, 2> runs{
      {{0, split.low}, {x86_64::kHighRam, split.high}}};
  std::vector<memory::RegionPtr> regions;
  for (const auto& [base, size] : runs) {
    if (size == 0) continue;
    Result<memory::RegionPtr> region = memory::Region::Create(memory::Gpa(base), size, backing);
    if (!region) {
      return HostFailure(
          fmt::format("cannot get {} of guest memory", FormatSize(size)), region.error(),
          config.hugepages != 0
              ? fmt::format("reserve huge pages of {} first (postern doctor counts them), or leave "
                            "out hugepages",
                            FormatSize(config.hugepages))
              : "use less memory, or free some");
    }
    regions.push_back(std::move(*region));
  }
  Result<memory::GuestMemoryPtr> memory = memory::GuestMemory::Create(std::move(regions));
  if (!memory) return HostFailure("guest memory", memory.error());
  return std::move(*memory);
}

std::uint64_t MicrosecondsOf(const timeval& time) {
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000 +
         static_cast<std::uint64_t>(time.tv_usec);
}

}  // namespace

// Declared in the order of construction; what is destroyed last stands first.
struct Machine::Impl {
  Config config;
  std::unique_ptr<EventLoop> control;
  std::unique_ptr<kvm::Vm> vm;
  std::unique_ptr<kvm::VfioFiles> vfio_files;
  std::unique_ptr<memory::MemoryMap> memory;
  bus::Bus mmio;
  bus::Bus ports;
  Mutex power_lock;
  std::unique_ptr<PowerPorts> power;
  bus::Registration power_registration;
  std::unique_ptr<bus::IrqLine> power_button;
  std::unique_ptr<DeviceSet> devices;
  std::vector<std::unique_ptr<VcpuRunner>> vcpus;
  std::string kernel_label;
  std::uint32_t tsc_khz = 0;

  Mutex end_mutex;
  std::unique_ptr<ExitReport> end GUARDED_BY(end_mutex);

  // The first end stands; from any thread, vCPU threads under device locks among them.
  void End(ExitReport report) {
    {
      MutexLock lock(end_mutex);
      if (end != nullptr) return;
      end = std::make_unique<ExitReport>(std::move(report));
    }
    control->Stop();
  }

  Outcome<void> MakeVm(const kvm::Kvm& kvm);
  Outcome<void> MakePower();
  Outcome<void> MakeDevices(unsigned physical_bits);
  [[nodiscard]] std::span<const x86_64::CpuidOverride> CpuidOverrides() const;
  Outcome<void> MakeVcpus(const kvm::Kvm& kvm, std::vector<x86_64::CpuidEntry> supported);
  Outcome<void> LoadGuest(bool gigabyte_pages);
};

Outcome<void> Machine::Impl::MakeVm(const kvm::Kvm& kvm) {
  const int most = kvm.max_vcpus();
  if (config.cpus > static_cast<std::uint32_t>(most)) {
    return ConfigFailure(
        fmt::format("cpus: {} is more than the {} this host's KVM allows", config.cpus, most),
        "use fewer");
  }
  Result<std::unique_ptr<kvm::Vm>> made = kvm::Vm::Create(kvm);
  if (!made)
    return HostFailure("cannot create a virtual machine", made.error(),
                       "postern doctor says what this host's KVM offers");
  vm = std::move(*made);
  vfio_files = std::make_unique<kvm::VfioFiles>(*vm);

  Outcome<memory::GuestMemoryPtr> ram = MakeMemory(config.memory);
  if (!ram) return tl::unexpected(ram.error());
  memory = std::make_unique<memory::MemoryMap>(std::move(*ram));
  if (Result<void> r = memory->Observe(*vm); !r)
    return HostFailure("cannot give the guest its memory", r.error());
  if (Result<void> r =
          vm->CreateInterruptControllers(kvm, {.pit = config.pit, .vcpus = config.cpus});
      !r)
    return HostFailure("cannot create the interrupt controllers", r.error(),
                       "postern doctor says what this host's KVM offers");
  if (!config.vdevs.empty()) {
    if (Result<void> r = vm->ExitOnEmulationFailure(); !r) {
      LOG_WARN("machine", "a program in the guest cannot use MOVDIR64B on a trapped portal: {}",
               postern::Describe(r.error()));
    }
  }
  return {};
}

Outcome<void> Machine::Impl::MakePower() {
  power = std::make_unique<PowerPorts>([this](ExitReport::Reason reason) { End({reason, {}}); });
  Result<bus::Registration> registration =
      ports.Add(x86_64::kPowerPorts, x86_64::kPowerPortsSize, *power, power_lock, "power");
  if (!registration) return HostFailure("power ports", registration.error());
  power_registration = std::move(*registration);
  Result<std::unique_ptr<bus::IrqLine>> line = vm->NewLine(x86_64::kPowerButtonGsi, nullptr);
  if (!line) return HostFailure("power button", line.error());
  power_button = std::move(*line);
  return {};
}

Outcome<void> Machine::Impl::MakeDevices(unsigned physical_bits) {
  const x86_64::AddressRange above =
      x86_64::PciWindow64(x86_64::SplitRam(config.memory.size).End(), physical_bits);
  DeviceSet::Host host{
      .platform = vm->platform(),
      .mmio = mmio,
      .ports = ports,
      .memory = *memory,
      .windows = {.memory32 = {x86_64::kPciWindow32, x86_64::kPciWindow32Size},
                  .memory64 = {above.base, above.size},
                  .io = {x86_64::kPciPorts, x86_64::kPciPortsSize}},
      .quit =
          [this] {
            End({ExitReport::Reason::kStopped, {}});
          },
      .control = *control,
      .vfio_files = vfio_files.get(),
  };
  Outcome<std::unique_ptr<DeviceSet>> made = DeviceSet::Create(config, host);
  if (!made) return tl::unexpected(made.error());
  devices = std::move(*made);
  return {};
}

std::span<const x86_64::CpuidOverride> Machine::Impl::CpuidOverrides() const {
  // KVM hides MOVDIR64B on hosts that have it (Linux arch/x86/kvm without virtualisation hardware);
  // the instruction needs nothing of KVM. ENQCMD does: a PASID that KVM does not translate.
  constexpr std::uint32_t kMovdir64b = 1U << 28;
  constexpr std::uint32_t kEnqcmd = 1U << 29;
  using Register = x86_64::CpuidOverride::Register;
  static constexpr std::array<x86_64::CpuidOverride, 1> kBoth{
      {{.function = 7, .reg = Register::kEcx, .set = kMovdir64b, .clear = kEnqcmd}}};
  static constexpr std::array<x86_64::CpuidOverride, 1> kNeither{
      {{.function = 7, .reg = Register::kEcx, .clear = kMovdir64b | kEnqcmd}}};
  std::uint32_t eax = 0;
  std::uint32_t ebx = 0;
  std::uint32_t ecx = 0;
  std::uint32_t edx = 0;
  const bool host_has =
      __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ecx & kMovdir64b) != 0;
  return config.movdir64b.value_or(host_has) ? std::span(kBoth) : std::span(kNeither);
}

Outcome<void> Machine::Impl::MakeVcpus(const kvm::Kvm& kvm,
                                       std::vector<x86_64::CpuidEntry> supported) {
  for (std::uint32_t i = 0; i < config.cpus; ++i) {
    const auto fail = [i](const Error& error) {
      return HostFailure(fmt::format("cannot set up vCPU {}", i), error);
    };
    Result<std::unique_ptr<kvm::Vcpu>> made = vm->CreateVcpu(i);
    if (!made) return fail(made.error());
    kvm::Vcpu& vcpu = **made;
    if (i == 0) tsc_khz = vcpu.TscKhz().value_or(0);
    const std::vector<x86_64::CpuidEntry> cpuid =
        x86_64::BuildCpuid(supported, {.index = i,
                                       .count = config.cpus,
                                       .tsc_khz = tsc_khz,
                                       .tsc_deadline = kvm.tsc_deadline(),
                                       .overrides = CpuidOverrides()});
    if (Result<void> r = vcpu.SetCpuid(cpuid); !r) return fail(r.error());
    if (Result<void> r = vcpu.SetMsrs(x86_64::InitialMsrs()); !r) return fail(r.error());
    std::array<std::byte, 1024> lapic{};
    if (Result<void> r = vcpu.GetLapic(lapic); !r) return fail(r.error());
    if (Result<void> r = x86_64::SetLocalApicLvt(lapic, i == 0); !r) return fail(r.error());
    if (Result<void> r = vcpu.SetLapic(lapic); !r) return fail(r.error());
    vcpus.push_back(std::make_unique<VcpuRunner>(
        std::move(*made), mmio, ports, *memory,
        [this](memory::Gpa gpa, bus::Block block) { return vm->StoreToPages(gpa, block); },
        [this](ExitReport report) { End(std::move(report)); }));
  }
  return {};
}

Outcome<void> Machine::Impl::LoadGuest(bool gigabyte_pages) {
  const memory::GuestMemoryPtr ram = memory->Snapshot();
  boot::acpi::Config acpi;
  acpi.cpus = config.cpus;
  devices->DescribeTo(acpi);
  Outcome<memory::Gpa> rsdp = boot::acpi::WriteTables(*ram, acpi);
  if (!rsdp) return tl::unexpected(rsdp.error());

  const bool built_in = config.kernel.empty();
  Outcome<boot::Image> kernel = built_in ? Outcome<boot::Image>(boot::Image::FromBytes(
                                               probe::ProbeImage(), "built-in guest", "kernel"))
                                         : boot::Image::Open(config.kernel, "kernel");
  if (!kernel) return tl::unexpected(kernel.error());
  std::optional<boot::Image> initrd;
  if (!config.initrd.empty()) {
    Outcome<boot::Image> opened = boot::Image::Open(config.initrd, "initrd");
    if (!opened) return tl::unexpected(opened.error());
    initrd = std::move(*opened);
  }

  boot::CommandLine line(config.cmdline);
  // Every console the guest has, virtio last: the kernel gives the last one to init.
  if (!line.UserSets("console")) {
    if (config.serial.mode != ConsoleConfig::Mode::kOff) line.Add("console=ttyS0");
    if (config.console.mode != ConsoleConfig::Mode::kOff) line.Add("console=hvc0");
  }
  if (config.serial.mode != ConsoleConfig::Mode::kOff && !line.UserSets("earlycon"))
    line.Add("earlycon=uart,io,0x3f8");
  // A panic reboots, which ends the process, instead of waiting for a person.
  if (!line.UserSets("panic")) line.Add("panic=-1");
  // Linux has the devices from ACPI; the built-in guest reads none of its bytecode.
  if (built_in) {
    for (std::string& part : devices->CommandLineParts()) line.Add(std::move(part));
  }

  Outcome<boot::BootState> state =
      boot::PrepareBoot(*ram, {.kernel = &*kernel,
                               .initrd = initrd.has_value() ? &*initrd : nullptr,
                               .command_line = &line,
                               .rsdp = *rsdp,
                               .load = {}});
  if (!state) return tl::unexpected(state.error());
  kernel_label = kernel->Label();
  LOG_DEBUG(kLog, "{} by {}, entry {:#x}, command line: {}", kernel_label,
            state->protocol == boot::Protocol::kPvh ? "PVH" : "the 64-bit protocol",
            state->entry.value, state->command_line);

  if (Result<void> r = x86_64::WriteGdt(*ram); !r) return HostFailure("boot structures", r.error());
  x86_64::InitialState initial;
  if (state->protocol == boot::Protocol::kPvh) {
    initial = x86_64::PvhState(state->entry.value, state->info.value);
  } else {
    const auto size = gigabyte_pages ? x86_64::PageSize::k1GiB : x86_64::PageSize::k2MiB;
    if (Result<void> r = x86_64::WritePageTables(*ram, size); !r)
      return HostFailure("boot structures", r.error());
    initial = x86_64::Linux64State(state->entry.value, state->info.value);
  }
  kvm::Vcpu& boot_vcpu = vcpus.front()->vcpu();
  if (Result<void> r = boot_vcpu.SetSregs(initial.sregs); !r)
    return HostFailure("cannot set up vCPU 0", r.error());
  if (Result<void> r = boot_vcpu.SetRegs(initial.regs); !r)
    return HostFailure("cannot set up vCPU 0", r.error());
  return {};
}

Machine::Machine() : impl_(std::make_unique<Impl>()) {}

Machine::~Machine() {
  for (const auto& vcpu : impl_->vcpus) vcpu->Stop();
  impl_->devices.reset();
  if (impl_->power != nullptr) {
    MutexLock lock(impl_->power_lock);
    impl_->power_registration.Reset();
  }
  // The Vm outlives what it handed out; then memory slots go before the memory.
  impl_->power_button.reset();
  if (impl_->memory != nullptr && impl_->vm != nullptr) impl_->memory->Unobserve(*impl_->vm);
}

Outcome<std::unique_ptr<Machine>> Machine::Create(const Config& config) {
  if (Outcome<void> r = Validate(config); !r) return tl::unexpected(r.error());
  std::unique_ptr<Machine> machine(new Machine());
  Impl& impl = *machine->impl_;
  impl.config = config;
  Result<std::unique_ptr<EventLoop>> control = EventLoop::Create();
  if (!control) return HostFailure("control loop", control.error());
  impl.control = std::move(*control);
  kvm::Vcpu::InstallKickHandler();

  Outcome<kvm::Kvm> kvm = OpenKvm();
  if (!kvm) return tl::unexpected(kvm.error());
  if (Outcome<void> r = impl.MakeVm(*kvm); !r) return tl::unexpected(r.error());
  Result<std::vector<x86_64::CpuidEntry>> supported = kvm->SupportedCpuid();
  if (!supported)
    return HostFailure("cannot read the processor features KVM offers", supported.error());
  const unsigned physical_bits = x86_64::PhysicalAddressBits(*supported);
  const bool gigabyte_pages = x86_64::HasGigabytePages(*supported);
  if (Outcome<void> r = impl.MakePower(); !r) return tl::unexpected(r.error());
  if (Outcome<void> r = impl.MakeDevices(physical_bits); !r) return tl::unexpected(r.error());
  if (Outcome<void> r = impl.MakeVcpus(*kvm, std::move(*supported)); !r)
    return tl::unexpected(r.error());
  if (Outcome<void> r = impl.LoadGuest(gigabyte_pages); !r) return tl::unexpected(r.error());
  return machine;
}

Outcome<void> Machine::Start() {
  for (const auto& vcpu : impl_->vcpus) {
    if (Result<void> r = vcpu->Start(); !r) {
      for (const auto& started : impl_->vcpus) started->Stop();
      return HostFailure("cannot start a vCPU thread", r.error());
    }
  }
  return {};
}

ExitReport Machine::Wait() {
  impl_->control->Run();
  for (const auto& vcpu : impl_->vcpus) vcpu->Stop();
  ExitReport report;
  {
    MutexLock lock(impl_->end_mutex);
    if (impl_->end != nullptr) report = *impl_->end;
  }
  const bool died = report.reason == ExitReport::Reason::kInternalError ||
                    report.reason == ExitReport::Reason::kTripleFault;
  if (died && !impl_->config.kernel.empty()) {
    const Outcome<kvm::Kvm> kvm = OpenKvm();
    if (kvm && kvm::CanRunGuestKernels(*kvm) == kvm::GuestKernels::kNo) {
      report.text +=
          "\nThis host's KVM cannot run guest kernels at all: it emulates instructions and lacks "
          "some that every kernel uses."
          "\nRun on a host with hardware virtualisation (postern doctor checks), or without "
          "--kernel for the built-in guest.";
    }
  }
  return report;
}

void Machine::Pause() {
  for (const auto& vcpu : impl_->vcpus) vcpu->Pause();
}

void Machine::Resume() {
  for (const auto& vcpu : impl_->vcpus) vcpu->Resume();
}

void Machine::PowerButton() {
  impl_->power_button->trigger().Signal();
}

Outcome<std::string> Machine::AddDevice(const DeviceConfig& device) {
  return impl_->devices->AddDevice(device);
}

Outcome<void> Machine::RemoveDevice(const std::string& id, std::function<void()> done) {
  return impl_->devices->RemoveDevice(id, std::move(done));
}

Outcome<void> Machine::PullDevice(const std::string& id) {
  return impl_->devices->PullDevice(id);
}

std::vector<DeviceInfo> Machine::Devices() const {
  return impl_->devices->Devices();
}

std::size_t Machine::free_slots() const {
  return impl_->devices->free_slots();
}

void Machine::Stop() {
  impl_->End({ExitReport::Reason::kStopped, {}});
}

EventLoop& Machine::control() {
  return *impl_->control;
}

std::string Machine::Metrics() const {
  MetricsWriter writer;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  writer.Value("utc_timestamp_ms", static_cast<std::uint64_t>(now.tv_sec) * 1000 +
                                       static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  writer.Group("process", [&](MetricsWriter& w) {
    w.Value("cpu_user_us", MicrosecondsOf(usage.ru_utime));
    w.Value("cpu_system_us", MicrosecondsOf(usage.ru_stime));
    w.Value("max_rss_kib", static_cast<std::uint64_t>(usage.ru_maxrss));
  });
  writer.Group("vcpus", [&](MetricsWriter& w) {
    for (const auto& runner : impl_->vcpus) {
      const kvm::Vcpu& vcpu = runner->vcpu();
      w.Group(fmt::format("vcpu{}", vcpu.id()), [&](MetricsWriter& v) {
        v.Value("exits", vcpu.counters().exits.Get());
        v.Value("mmio_exits", vcpu.counters().mmio.Get());
        v.Value("port_io_exits", vcpu.counters().port_io.Get());
        v.Value("interrupted", vcpu.counters().interrupted.Get());
        v.Value("other_exits", vcpu.counters().other.Get());
        v.Counters([&](CounterSink& sink) { runner->ReportCounters(sink); });
        v.Group("kvm", [&](MetricsWriter& k) {
          k.Counters([&](CounterSink& sink) { vcpu.ReportKernelCounters(sink); });
        });
      });
    }
  });
  writer.Group("kvm", [&](MetricsWriter& w) {
    w.Counters([&](CounterSink& sink) { impl_->vm->ReportCounters(sink); });
  });
  writer.Group("mmio_bus", [&](MetricsWriter& w) {
    w.Counters([&](CounterSink& sink) { impl_->mmio.ReportCounters(sink); });
  });
  writer.Group("port_bus", [&](MetricsWriter& w) {
    w.Counters([&](CounterSink& sink) { impl_->ports.ReportCounters(sink); });
    w.Value("power_ports_ignored", impl_->power->ignored());
  });
  writer.Group("devices", [&](MetricsWriter& w) { impl_->devices->ReportMetrics(w); });
  return writer.Finish();
}

std::string Machine::Describe() const {
  const MemoryConfig& memory = impl_->config.memory;
  std::string text =
      fmt::format("kernel   {}\nvCPUs    {}, TSC {} MHz\nmemory   {}{}{}\n", impl_->kernel_label,
                  impl_->config.cpus, impl_->tsc_khz / 1000, FormatSize(memory.size),
                  memory.hugepages != 0 ? " on huge pages of " + FormatSize(memory.hugepages) : "",
                  memory.shared ? ", shared" : "");
  return text + impl_->devices->Describe();
}

}  // namespace postern
