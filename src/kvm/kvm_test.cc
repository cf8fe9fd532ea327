// The KVM layer on this machine's real /dev/kvm, with real-mode guests of a few bytes.

#include "src/kvm/kvm.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "bazel/testing/skip.h"
#include "src/kvm/vm.h"
#include "src/memory/guest_memory.h"

#include <doctest/doctest.h>

namespace postern::kvm {
namespace {

using memory::Gpa;

constexpr std::uint64_t kRam = 0x10000;
constexpr std::uint64_t kCode = 0x1000;

// A machine with 64 KiB of RAM and one vCPU in real mode at kCode.
struct Guest {
  Kvm kvm;
  std::unique_ptr<Vm> vm;
  std::unique_ptr<memory::MemoryMap> memory;
  std::unique_ptr<Vcpu> vcpu;

  ~Guest() {
    vcpu.reset();
    memory->Unobserve(*vm);
  }
  void Code(std::initializer_list<std::uint8_t> bytes) const {
    std::vector<std::byte> copy;
    for (const std::uint8_t byte : bytes) copy.push_back(std::byte{byte});
    REQUIRE(memory->Snapshot()->CopyIn(Gpa(kCode), copy));
    x86_64::Regs regs;
    regs.rip = kCode;
    regs.rflags = 2;
    REQUIRE(vcpu->SetRegs(regs));
  }
  // Runs through exits that are of no interest until one of this kind.
  [[nodiscard]] Exit RunTo(Exit::Kind kind) const {
    for (int tries = 0; tries < 100; ++tries) {
      const Result<Exit> exit = vcpu->Run();
      REQUIRE(exit);
      if (exit->kind == kind) return *exit;
    }
    FAIL("the exit did not come");
    return {};
  }
};

// Nothing where there is no usable KVM.
std::unique_ptr<Guest> MakeGuest(bool track_dirty = false) {
  Result<Kvm> kvm = Kvm::Open();
  if (!kvm) return nullptr;
  auto guest = std::unique_ptr<Guest>(new Guest{std::move(*kvm), nullptr, nullptr, nullptr});
  Result<std::unique_ptr<Vm>> vm = Vm::Create(guest->kvm);
  REQUIRE(vm);
  guest->vm = std::move(*vm);
  memory::Backing backing;
  backing.track_dirty = track_dirty;
  Result<memory::RegionPtr> region = memory::Region::Create(Gpa(0), kRam, backing);
  REQUIRE(region);
  Result<memory::GuestMemoryPtr> memory = memory::GuestMemory::Create({*region});
  REQUIRE(memory);
  guest->memory = std::make_unique<memory::MemoryMap>(*memory);
  REQUIRE(guest->memory->Observe(*guest->vm));
  REQUIRE(guest->vm->CreateInterruptControllers(guest->kvm, {}));
  Result<std::unique_ptr<Vcpu>> vcpu = guest->vm->CreateVcpu(0);
  REQUIRE(vcpu);
  guest->vcpu = std::move(*vcpu);
  Result<x86_64::Sregs> sregs = guest->vcpu->GetSregs();
  REQUIRE(sregs);
  for (x86_64::Segment* segment : {&sregs->cs, &sregs->ds, &sregs->es, &sregs->ss}) {
    segment->base = 0;
    segment->selector = 0;
  }
  REQUIRE(guest->vcpu->SetSregs(*sregs));
  return guest;
}

TEST_CASE("kvm: a path that is no KVM is refused with the reason") {
  CHECK(Kvm::Open("/nonexistent").error().sys_errno == ENOENT);
  CHECK(Kvm::Open("/dev/null").error().code == Errc::kSystem);
}

TEST_CASE("kvm: supported CPUID has the basic leaf, and the survey finds what Postern needs") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  const auto cpuid = guest->kvm.SupportedCpuid();
  REQUIRE(cpuid);
  CHECK(std::any_of(cpuid->begin(), cpuid->end(),
                    [](const auto& e) { return e.function == 0 && e.eax >= 1; }));
  CHECK(guest->vcpu->SetCpuid(*cpuid));
  for (const Capability& capability : Survey(guest->kvm)) {
    CAPTURE(std::string(capability.name));
    if (capability.required) CHECK(capability.value != 0);
  }
  CHECK(CanRunGuestKernels(guest->kvm) != GuestKernels::kUnknown);
}

TEST_CASE("vcpu: port writes and reads exit with port, width and data") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  // mov dx, 0x1234; mov al, 0x5a; out dx, al; in ax, dx; out dx, ax; hlt
  guest->Code({0xba, 0x34, 0x12, 0xb0, 0x5a, 0xee, 0xed, 0xef, 0xf4});
  Exit exit = guest->RunTo(Exit::Kind::kPortIo);
  CHECK(exit.write);
  CHECK(exit.address == 0x1234);
  REQUIRE(exit.data.size() == 1);
  CHECK(exit.data[0] == std::byte{0x5a});
  exit = guest->RunTo(Exit::Kind::kPortIo);
  CHECK_FALSE(exit.write);
  REQUIRE(exit.data.size() == 2);
  exit.data[0] = std::byte{0x21};
  exit.data[1] = std::byte{0x43};
  exit = guest->RunTo(Exit::Kind::kPortIo);
  CHECK(exit.write);
  CHECK(exit.data[0] == std::byte{0x21});
  CHECK(exit.data[1] == std::byte{0x43});
  CHECK(guest->vcpu->counters().port_io.Get() == 3);
}

TEST_CASE("vcpu: an access outside RAM exits as MMIO, and its answer reaches the guest") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  // mov ax, 0x2000; mov ds, ax; mov al, [0x10]; mov [0x20], al; hlt  (0x20010 is above the 64 KiB)
  guest->Code({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0x10, 0x00, 0xa2, 0x20, 0x00, 0xf4});
  Exit exit = guest->RunTo(Exit::Kind::kMmio);
  CHECK_FALSE(exit.write);
  CHECK(exit.address == 0x20010);
  REQUIRE(exit.data.size() == 1);
  exit.data[0] = std::byte{0x77};
  exit = guest->RunTo(Exit::Kind::kMmio);
  CHECK(exit.write);
  CHECK(exit.address == 0x20020);
  CHECK(exit.data[0] == std::byte{0x77});
}

TEST_CASE("vcpu: an instruction that KVM cannot emulate exits with its bytes") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  REQUIRE(guest->vm->ExitOnEmulationFailure());
  // mov ax, 0xf000; mov ds, ax; popcnt ax, [0x2000]
  guest->Code({0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xf3, 0x0f, 0xb8, 0x06, 0x00, 0x20});
  const Exit exit = guest->RunTo(Exit::Kind::kInternalError);
  CHECK(exit.reason == kEmulationFailure);
  const std::vector<std::byte> bytes = guest->vcpu->EmulationBytes();
  REQUIRE(bytes.size() >= 6);
  CHECK(bytes[0] == std::byte{0xf3});
  CHECK(bytes[2] == std::byte{0xb8});
  const Result<x86_64::Regs> regs = guest->vcpu->GetRegs();
  REQUIRE(regs);
  CHECK(regs->rip == kCode + 5);
}

TEST_CASE("vcpu: a #UD that was queued is what the guest goes on with") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  constexpr std::uint64_t kHandler = 0x2000;
  constexpr std::uint64_t kUndefinedVector = 0x18;  // of 4 bytes each, the seventh
  REQUIRE(guest->memory->Snapshot()->CopyIn(Gpa(kUndefinedVector),
                                            std::array{std::byte{0}, std::byte{kHandler >> 8}}));
  // out 0xe1, al
  REQUIRE(guest->memory->Snapshot()->CopyIn(Gpa(kHandler),
                                            std::array{std::byte{0xe6}, std::byte{0xe1}}));
  // mov sp, 0x8000; out 0xe0, al; out 0xe2, al
  guest->Code({0xbc, 0x00, 0x80, 0xe6, 0xe0, 0xe6, 0xe2});
  CHECK(guest->RunTo(Exit::Kind::kPortIo).address == 0xe0);
  REQUIRE(guest->vcpu->QueueUndefinedOpcode());
  CHECK(guest->RunTo(Exit::Kind::kPortIo).address == 0xe1);
}

TEST_CASE("vcpu: a kick from another thread ends a run that would not end") {
  Vcpu::InstallKickHandler();
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  guest->Code({0xeb, 0xfe});  // jmp $
  std::atomic<bool> started{false};
  std::atomic<bool> kicked{false};
  std::thread thread([&] {
    guest->vcpu->BindThread();
    started = true;
    const Result<Exit> exit = guest->vcpu->Run();
    kicked = exit && exit->kind == Exit::Kind::kInterrupted;
  });
  while (!started) std::this_thread::yield();
  guest->vcpu->Kick();
  thread.join();
  CHECK(kicked);
  CHECK(guest->vcpu->counters().interrupted.Get() == 1);
}

TEST_CASE("regression #3: KVM's counters of a vCPU are read while it is in the guest") {
  Vcpu::InstallKickHandler();
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  guest->Code({0xeb, 0xfe});  // jmp $
  std::atomic<bool> started{false};
  std::thread thread([&] {
    guest->vcpu->BindThread();
    started = true;
    (void)guest->vcpu->Run();
  });
  while (!started) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  struct Sink final : CounterSink {
    void Add(std::string_view, std::uint64_t) override { ++count; }
    int count = 0;
  } sink;
  // Comes back, kick or no kick: nothing else ends this guest.
  guest->vcpu->ReportKernelCounters(sink);
  CHECK(guest->vcpu->counters().interrupted.Get() == 0);
  guest->vcpu->Kick();
  thread.join();
}

TEST_CASE("vm: a doorbell takes the matching write without an exit, and lets others through") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  EventFd event = *EventFd::Create();
  auto bell = guest->vm->Register(Gpa(0x20000), 2, 7, event);
  REQUIRE(bell);
  // mov ax, 0x2000; mov ds, ax; mov word [0], 7; mov word [0], 8; hlt
  guest->Code({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xc7, 0x06, 0x00, 0x00, 0x07, 0x00, 0xc7, 0x06, 0x00,
               0x00, 0x08, 0x00, 0xf4});
  const Exit exit = guest->RunTo(Exit::Kind::kMmio);
  CHECK(exit.data[0] == std::byte{8});
  CHECK(event.Consume() == 1);
  CHECK(guest->vm->Register(Gpa(0x20000), 2, 7, event).error().code == Errc::kOverlap);
  bell->reset();
  CHECK(guest->vm->Register(Gpa(0x20000), 2, 7, event));
}

TEST_CASE(
    "vm: mapped pages are memory to the guest until the mapping goes; RAM cannot be covered") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  Result<Mmap> page = Mmap::Create(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(page);
  const bus::HostPages pages{.address = page->data(), .length = 4096};
  auto mapping = guest->vm->Map(Gpa(0x20000), pages, memory::Access::kReadWrite);
  REQUIRE(mapping);
  // mov ax, 0x2000; mov ds, ax; mov byte [5], 0x66; out 0x80, al; mov byte [5], 0x67; hlt
  guest->Code({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xc6, 0x06, 0x05, 0x00, 0x66, 0xe6, 0x80, 0xc6, 0x06,
               0x05, 0x00, 0x67, 0xf4});
  (void)guest->RunTo(Exit::Kind::kPortIo);
  CHECK(page->data()[5] == std::byte{0x66});
  mapping->reset();
  const Exit exit = guest->RunTo(Exit::Kind::kMmio);
  CHECK(exit.address == 0x20005);
  CHECK(page->data()[5] == std::byte{0x66});

  CHECK(guest->vm->Map(Gpa(kRam - 4096), pages, memory::Access::kRead).error().code ==
        Errc::kOverlap);
  for (const auto& [gpa, length] :
       std::map<std::uint64_t, std::uint64_t>{{0x20001, 4096}, {0x30000, 0}, {0x40000, 4095}}) {
    const bus::HostPages wrong{.address = page->data(), .length = length};
    CHECK(guest->vm->Map(Gpa(gpa), wrong, memory::Access::kRead).error().code ==
          Errc::kInvalidArgument);
  }
}

TEST_CASE(
    "vm: 64 bytes are stored to pages that are mapped, and not to what is read-only or gone") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  Result<Mmap> pages = Mmap::Create(0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(pages);
  const bus::HostPages host{.address = pages->data(), .length = 0x1000};
  const bus::HostPages fixed{.address = pages->data() + 0x1000, .length = 0x1000};
  auto mapping = guest->vm->Map(Gpa(0x20000), host, memory::Access::kReadWrite);
  const auto read_only = guest->vm->Map(Gpa(0x30000), fixed, memory::Access::kRead);
  REQUIRE(mapping);
  REQUIRE(read_only);
  std::array<std::byte, 64> block{};
  block.fill(std::byte{7});
  CHECK(guest->vm->StoreToPages(Gpa(0x20fc0), block));
  CHECK(std::equal(block.begin(), block.end(), pages->data() + 0xfc0));
  CHECK_FALSE(guest->vm->StoreToPages(Gpa(0x21000), block));
  CHECK_FALSE(guest->vm->StoreToPages(Gpa(0x30000), block));
  mapping->reset();
  CHECK_FALSE(guest->vm->StoreToPages(Gpa(0x20fc0), block));
}

TEST_CASE("vm: the dirty log has the pages a vCPU wrote, once") {
  const auto guest = MakeGuest(true);
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  REQUIRE(guest->vm->TakeDirtyLog(Gpa(0)));
  // mov byte [0x3000], 1; out 0x80, al; hlt
  guest->Code({0xc6, 0x06, 0x00, 0x30, 0x01, 0xe6, 0x80, 0xf4});
  (void)guest->RunTo(Exit::Kind::kPortIo);
  const auto log = guest->vm->TakeDirtyLog(Gpa(0));
  REQUIRE(log);
  CHECK(((*log)[0] & (1u << 3)) != 0);
  CHECK(((*log)[0] & (1u << 5)) == 0);
  CHECK((*guest->vm->TakeDirtyLog(Gpa(0)))[0] == 0);
  CHECK(guest->vm->TakeDirtyLog(Gpa(0x5000)).error().code == Errc::kNotFound);
}

// The fixed vector bits of the local APIC's interrupt request register: which vectors are pending.
bool Requested(const Vcpu& vcpu, unsigned vector) {
  std::array<std::byte, 1024> lapic{};
  REQUIRE(vcpu.GetLapic(lapic));
  const std::size_t at = 0x200 + (vector / 32) * 0x10 + (vector % 32) / 8;
  return (std::to_integer<unsigned>(lapic[at]) & (1u << (vector % 8))) != 0;
}

// Software-enables the local APIC (SDM vol. 3A 11.9: spurious vector register, bit 8).
void EnableLapic(Vcpu& vcpu) {
  std::array<std::byte, 1024> lapic{};
  REQUIRE(vcpu.GetLapic(lapic));
  lapic[0xf0] = std::byte{0xff};
  lapic[0xf1] = std::byte{0x01};
  REQUIRE(vcpu.SetLapic(lapic));
}

// irqfds inject from a kernel worker where the routing may sleep.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 200; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

TEST_CASE(
    "vm: an MSI route collects while masked, delivers once when unmasked, and follows its "
    "message") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  EnableLapic(*guest->vcpu);
  auto msi = guest->vm->NewMsi();
  REQUIRE(msi);
  REQUIRE((*msi)->Set({.address = 0xfee00000, .data = 0x41}));
  (*msi)->trigger().Signal();
  CHECK((*msi)->trigger().Pending());
  CHECK_FALSE(Requested(*guest->vcpu, 0x41));
  REQUIRE((*msi)->Mask(false));
  CHECK(Eventually([&] { return Requested(*guest->vcpu, 0x41); }));
  CHECK_FALSE((*msi)->trigger().Pending());

  REQUIRE((*msi)->Set({.address = 0xfee00000, .data = 0x52}));
  (*msi)->trigger().Signal();
  CHECK(Eventually([&] { return Requested(*guest->vcpu, 0x52); }));

  REQUIRE((*msi)->Mask(true));
  REQUIRE((*msi)->Set({.address = 0xfee00000, .data = 0x63}));
  (*msi)->trigger().Signal();
  (*msi)->trigger().Signal();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK_FALSE(Requested(*guest->vcpu, 0x63));
  REQUIRE((*msi)->Mask(false));
  CHECK(Eventually([&] { return Requested(*guest->vcpu, 0x63); }));
}

TEST_CASE("vm: routes are handed out again after they went, and have an end") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  std::vector<std::unique_ptr<bus::MsiRoute>> routes;
  while (true) {
    auto route = guest->vm->NewMsi();
    if (!route) {
      // Descriptors may run out before routes do.
      const bool expected =
          route.error().code == Errc::kExhausted || route.error().sys_errno == EMFILE;
      CHECK(expected);
      break;
    }
    routes.push_back(std::move(*route));
    REQUIRE(routes.size() <= 8192);
  }
  CHECK(routes.size() > 500);
  routes.pop_back();
  CHECK(guest->vm->NewMsi());
}

TEST_CASE("vm: a line outside the IOAPIC is refused") {
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  CHECK(guest->vm->NewLine(23, nullptr));
  CHECK(guest->vm->NewLine(24, nullptr).error().code == Errc::kInvalidArgument);
}

TEST_CASE("counters: KVM's own are reported where the host has them") {
  class Sink final : public CounterSink {
   public:
    void Add(std::string_view name, std::uint64_t value) override {
      values[std::string(name)] = value;
    }
    std::map<std::string, std::uint64_t> values;
  } sink;
  const auto guest = MakeGuest();
  if (guest == nullptr) SKIP_TEST("/dev/kvm cannot be used");
  guest->vm->ReportCounters(sink);
  CHECK(sink.values.contains("slot_changes"));
  guest->Code({0xe6, 0x80, 0xf4});
  (void)guest->RunTo(Exit::Kind::kPortIo);
  const auto survey = Survey(guest->kvm);
  const bool has_stats = std::any_of(survey.begin(), survey.end(), [](const Capability& c) {
    return std::string(c.name) == "BINARY_STATS_FD" && c.value != 0;
  });
  sink.values.clear();
  guest->vcpu->ReportKernelCounters(sink);
  if (has_stats) CHECK(sink.values["exits"] > 0);
}

}  // namespace
}  // namespace postern::kvm
