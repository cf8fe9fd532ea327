#include "src/kvm/vm.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>

#include "src/base/check.h"
#include "src/base/direct_store.h"
#include "src/base/log.h"
#include "src/kvm/fam.h"
#include "src/kvm/stats.h"

namespace postern::kvm {
namespace {

// Where KVM keeps its own pages on Intel hosts without unrestricted guests: at the top of the
// 32-bit space, clear of RAM and windows.
constexpr std::uint64_t kTssAddress = 0xfffbd000;
constexpr std::uint64_t kIdentityMapAddress = 0xfffbc000;
constexpr std::uint32_t kIoApicPins = 24;

}  // namespace

Result<std::unique_ptr<Vm>> Vm::Create(const Kvm& kvm) {
  Fd fd = TRY(kvm.CreateVm());
  const std::size_t run_size = TRY(kvm.VcpuMmapSize());
  const int slots = kvm.Check(KVM_CAP_NR_MEMSLOTS);
  const int routes = kvm.Check(KVM_CAP_IRQ_ROUTING);
  if (slots <= 0 || routes <= 0)
    return Err(Errc::kUnsupported, "KVM_CAP_NR_MEMSLOTS, KVM_CAP_IRQ_ROUTING");

  std::uint64_t identity = kIdentityMapAddress;
  if (ioctl(fd.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
    return SysError("KVM_SET_IDENTITY_MAP_ADDR");
  if (ioctl(fd.get(), KVM_SET_TSS_ADDR, kTssAddress) < 0) return SysError("KVM_SET_TSS_ADDR");
  return std::unique_ptr<Vm>(new Vm(std::move(fd), run_size, static_cast<std::uint32_t>(slots),
                                    static_cast<std::uint32_t>(routes)));
}

Result<void> Vm::ExitOnEmulationFailure() {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
  cap.args[0] = 1;
  if (ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) == 0) return {};
  if (errno == EINVAL) return Err(Errc::kUnsupported, "KVM_ENABLE_CAP EXIT_ON_EMULATION_FAILURE");
  return SysError("KVM_ENABLE_CAP EXIT_ON_EMULATION_FAILURE");
}

Result<void> Vm::CreateInterruptControllers(const Kvm& kvm, const VmOptions& options) {
  if (ioctl(fd_.get(), KVM_CREATE_IRQCHIP, 0) < 0) return SysError("KVM_CREATE_IRQCHIP");
  if (options.vcpus > 254 && kvm.Check(KVM_CAP_X2APIC_API) != 0) {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_X2APIC_API;
    cap.args[0] = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    if (ioctl(fd_.get(), KVM_ENABLE_CAP, &cap) < 0) return SysError("KVM_ENABLE_CAP X2APIC_API");
  }
  if (options.pit) {
    kvm_pit_config pit{};
    pit.flags = KVM_PIT_SPEAKER_DUMMY;
    if (ioctl(fd_.get(), KVM_CREATE_PIT2, &pit) < 0) return SysError("KVM_CREATE_PIT2");
  }
  has_irqchip_ = true;
  return {};
}

Vm::~Vm() = default;

Result<std::unique_ptr<Vcpu>> Vm::CreateVcpu(std::uint32_t id) {
  CHECK(has_irqchip_);
  Fd fd(ioctl(fd_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!fd.valid()) return SysError("KVM_CREATE_VCPU");
  Mmap run = TRY(Mmap::Create(run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get()));
  Fd stats = OpenStats(fd.get());
  return std::unique_ptr<Vcpu>(new Vcpu(std::move(fd), std::move(run), std::move(stats), id));
}

// --- memory slots ---

Result<std::uint32_t> Vm::AddSlot(std::uint64_t gpa, std::uint64_t size, std::uint64_t host,
                                  std::uint32_t flags) {
  MutexLock lock(mutex_);
  std::uint32_t index = 0;
  while (index < slots_.size() && slots_[index].used) ++index;
  if (index >= max_slots_) return Err(Errc::kExhausted, "KVM memory slots");
  if (index == slots_.size()) slots_.emplace_back();
  kvm_userspace_memory_region region{};
  region.slot = index;
  region.flags = flags;
  region.guest_phys_addr = gpa;
  region.memory_size = size;
  region.userspace_addr = host;
  if (ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
    // The kernel says EEXIST for a range that another slot has.
    if (errno == EEXIST) return Err(Errc::kOverlap, "KVM_SET_USER_MEMORY_REGION");
    return SysError("KVM_SET_USER_MEMORY_REGION");
  }
  slots_[index] = {.used = true, .gpa = gpa, .size = size, .host = host, .flags = flags};
  slot_changes_.Add();
  return index;
}

void Vm::RemoveSlot(std::uint32_t index) {
  MutexLock lock(mutex_);
  kvm_userspace_memory_region region{};
  region.slot = index;
  region.guest_phys_addr = slots_[index].gpa;
  region.userspace_addr = slots_[index].host;
  if (ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
    LOG_ERROR("kvm", "cannot remove memory slot {}: errno {}", index, errno);
  }
  slots_[index].used = false;
  slot_changes_.Add();
}

Result<void> Vm::Added(const memory::Region& region) {
  const std::uint32_t flags = region.dirty() != nullptr ? KVM_MEM_LOG_DIRTY_PAGES : 0;
  TRY(AddSlot(region.base().value, region.size(), region.host_address(), flags));
  return {};
}

void Vm::Removing(const memory::Region& region) {
  std::uint32_t index = 0;
  {
    MutexLock lock(mutex_);
    const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) {
      return slot.used && slot.gpa == region.base().value;
    });
    if (found == slots_.end()) return;
    index = static_cast<std::uint32_t>(found - slots_.begin());
  }
  RemoveSlot(index);
}

bool Vm::StoreToPages(memory::Gpa gpa, std::span<const std::byte, 64> block) {
  // Held over the store: a mapping that goes waits for it.
  const MutexLock lock(mutex_);
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.used && gpa.value >= slot.gpa && gpa.value - slot.gpa < slot.size;
  });
  if (found == slots_.end() || (found->flags & KVM_MEM_READONLY) != 0) return false;
  StoreBlock(reinterpret_cast<std::byte*>(found->host + (gpa.value - found->gpa)), block);
  return true;
}

Result<std::vector<std::uint64_t>> Vm::TakeDirtyLog(memory::Gpa base) {
  MutexLock lock(mutex_);
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    return slot.used && slot.gpa == base.value;
  });
  if (found == slots_.end()) return Err(Errc::kNotFound, "KVM_GET_DIRTY_LOG");
  std::vector<std::uint64_t> bits((found->size / 4096 + 63) / 64);
  kvm_dirty_log log{};
  log.slot = static_cast<std::uint32_t>(found - slots_.begin());
  log.dirty_bitmap = bits.data();
  if (ioctl(fd_.get(), KVM_GET_DIRTY_LOG, &log) < 0) return SysError("KVM_GET_DIRTY_LOG");
  return bits;
}

class Vm::Pages final : public bus::Mapping {
 public:
  Pages(Vm& vm, std::uint32_t slot) : vm_(vm), slot_(slot) {}
  ~Pages() override { vm_.RemoveSlot(slot_); }

 private:
  Vm& vm_;
  std::uint32_t slot_;
};

Result<std::unique_ptr<bus::Mapping>> Vm::Map(memory::Gpa gpa, const bus::HostPages& pages,
                                              memory::Access access) {
  if (pages.address == nullptr || pages.length == 0 || pages.length % 4096 != 0 ||
      gpa.value % 4096 != 0) {
    return Err(Errc::kInvalidArgument, "map pages into the guest");
  }
  const std::uint32_t flags = access == memory::Access::kRead ? KVM_MEM_READONLY : 0;
  const std::uint32_t slot =
      TRY(AddSlot(gpa.value, pages.length, reinterpret_cast<std::uintptr_t>(pages.address), flags));
  return std::unique_ptr<bus::Mapping>(new Pages(*this, slot));
}

// --- interrupts ---

Result<void> Vm::AssignIrqfd(const EventFd& event, std::uint32_t gsi, bool assign,
                             const EventFd* resample) {
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<std::uint32_t>(event.fd());
  irqfd.gsi = gsi;
  irqfd.flags = assign ? 0 : KVM_IRQFD_FLAG_DEASSIGN;
  if (resample != nullptr && assign) {
    irqfd.flags |= KVM_IRQFD_FLAG_RESAMPLE;
    irqfd.resamplefd = static_cast<std::uint32_t>(resample->fd());
  }
  irqfd_changes_.Add();
  if (ioctl(fd_.get(), KVM_IRQFD, &irqfd) < 0)
    return SysError(assign ? "KVM_IRQFD assign" : "KVM_IRQFD deassign");
  return {};
}

Result<std::uint32_t> Vm::AllocateRoute() {
  MutexLock lock(mutex_);
  for (std::uint32_t i = 0; i < routes_.size(); ++i) {
    if (!routes_[i].used) {
      routes_[i] = {.used = true, .valid = false, .message = {}};
      return kIoApicPins + i;
    }
  }
  if (kIoApicPins + routes_.size() >= max_routes_)
    return Err(Errc::kExhausted, "KVM interrupt routes");
  routes_.push_back({.used = true, .valid = false, .message = {}});
  return kIoApicPins + static_cast<std::uint32_t>(routes_.size()) - 1;
}

void Vm::FreeRoute(std::uint32_t gsi) {
  MutexLock lock(mutex_);
  // The stale entry stays in the kernel until the next commit; nothing signals it.
  routes_[gsi - kIoApicPins] = {};
}

Result<void> Vm::SetRoute(std::uint32_t gsi, const bus::MsiMessage& message, bool commit) {
  MutexLock lock(mutex_);
  Route& route = routes_[gsi - kIoApicPins];
  route.message = message;
  route.valid = true;
  return commit ? CommitRoutes() : Result<void>{};
}

// KVM_SET_GSI_ROUTING replaces the whole table, so the wired inputs are part of every one: as the
// kernel's own default, pins 0 to 15 reach both PIC and IOAPIC and the rest the IOAPIC.
Result<void> Vm::CommitRoutes() {
  std::vector<kvm_irq_routing_entry> entries;
  for (std::uint32_t pin = 0; pin < kIoApicPins; ++pin) {
    kvm_irq_routing_entry entry{};
    entry.gsi = pin;
    entry.type = KVM_IRQ_ROUTING_IRQCHIP;
    if (pin < 16) {
      entry.u.irqchip.irqchip = pin < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
      entry.u.irqchip.pin = pin % 8;
      entries.push_back(entry);
    }
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = pin;
    entries.push_back(entry);
  }
  for (std::uint32_t i = 0; i < routes_.size(); ++i) {
    if (!routes_[i].used || !routes_[i].valid) continue;
    kvm_irq_routing_entry entry{};
    entry.gsi = kIoApicPins + i;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<std::uint32_t>(routes_[i].message.address);
    entry.u.msi.address_hi = static_cast<std::uint32_t>(routes_[i].message.address >> 32);
    entry.u.msi.data = routes_[i].message.data;
    entries.push_back(entry);
  }
  FamBuffer<RoutingHeader, kvm_irq_routing_entry> buffer(
      {.nr = static_cast<std::uint32_t>(entries.size())}, entries);
  route_commits_.Add();
  if (ioctl(fd_.get(), kSetGsiRouting, buffer.data()) < 0) return SysError("KVM_SET_GSI_ROUTING");
  return {};
}

class Vm::Msi final : public bus::MsiRoute {
 public:
  Msi(Vm& vm, std::uint32_t gsi, EventFd event) : vm_(vm), gsi_(gsi), event_(std::move(event)) {}
  ~Msi() override {
    if (attached_) (void)vm_.AssignIrqfd(event_, gsi_, false);
    vm_.FreeRoute(gsi_);
  }

  Result<void> Set(const bus::MsiMessage& message) override {
    if (has_message_ && message == message_) return {};
    message_ = message;
    has_message_ = true;
    committed_ = false;
    // A masked route's message is committed when it is unmasked: drivers write address and data in
    // three masked steps.
    if (!attached_) return vm_.SetRoute(gsi_, message_, false);
    TRY(vm_.SetRoute(gsi_, message_, true));
    committed_ = true;
    return {};
  }

  Result<void> Mask(bool masked) override {
    if (masked) {
      if (!attached_) return {};
      TRY(vm_.AssignIrqfd(event_, gsi_, false));
      attached_ = false;
      return {};
    }
    if (attached_ || !has_message_) return {};
    if (!committed_) {
      TRY(vm_.SetRoute(gsi_, message_, true));
      committed_ = true;
    }
    // What collected while masked is delivered now. KVM looks at the eventfd when it attaches and
    // injects if it is signalled, but leaves the count as it is, which would show as pending for
    // ever after. So the count is taken first; one that arrives between is injected by the
    // attachment itself and only has to be cleared.
    const bool collected = event_.Consume() > 0;
    if (Result<void> assigned = vm_.AssignIrqfd(event_, gsi_, true); !assigned) {
      if (collected) event_.Signal();
      return assigned;
    }
    const bool arrived_between = event_.Consume() > 0;
    if (collected && !arrived_between) event_.Signal();
    attached_ = true;
    return {};
  }

  [[nodiscard]] const EventFd& trigger() const override { return event_; }

 private:
  Vm& vm_;
  std::uint32_t gsi_;
  EventFd event_;
  bus::MsiMessage message_;
  bool has_message_ = false;
  bool committed_ = false;
  bool attached_ = false;
};

Result<std::unique_ptr<bus::MsiRoute>> Vm::NewMsi() {
  EventFd event = TRY(EventFd::Create());
  const std::uint32_t gsi = TRY(AllocateRoute());
  return std::unique_ptr<bus::MsiRoute>(new Msi(*this, gsi, std::move(event)));
}

class Vm::Line final : public bus::IrqLine {
 public:
  Line(Vm& vm, std::uint32_t gsi, EventFd event) : vm_(vm), gsi_(gsi), event_(std::move(event)) {}
  ~Line() override { (void)vm_.AssignIrqfd(event_, gsi_, false); }

  [[nodiscard]] const EventFd& trigger() const override { return event_; }
  void SetLevel(bool high) override {
    kvm_irq_level level{};
    level.irq = gsi_;
    level.level = high ? 1 : 0;
    if (ioctl(vm_.fd(), KVM_IRQ_LINE, &level) < 0)
      LOG_ERROR("kvm", "KVM_IRQ_LINE {}: errno {}", gsi_, errno);
  }

 private:
  Vm& vm_;
  std::uint32_t gsi_;
  EventFd event_;
};

Result<std::unique_ptr<bus::IrqLine>> Vm::NewLine(std::uint32_t gsi, const EventFd* resample) {
  if (gsi >= kIoApicPins) return Err(Errc::kInvalidArgument, "interrupt line");
  EventFd event = TRY(EventFd::Create());
  TRY(AssignIrqfd(event, gsi, true, resample));
  return std::unique_ptr<bus::IrqLine>(new Line(*this, gsi, std::move(event)));
}

// --- doorbells ---

class Vm::Bell final : public bus::Doorbell {
 public:
  Bell(const Vm& vm, const kvm_ioeventfd& request) : vm_(vm), request_(request) {}
  ~Bell() override {
    request_.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    if (ioctl(vm_.fd(), KVM_IOEVENTFD, &request_) < 0) {
      LOG_ERROR("kvm", "cannot remove the doorbell at {:#x}: errno {}",
                std::uint64_t{request_.addr}, errno);
    }
  }

 private:
  const Vm& vm_;
  kvm_ioeventfd request_;
};

Result<std::unique_ptr<bus::Doorbell>> Vm::Register(memory::Gpa gpa, std::uint32_t width,
                                                    std::optional<std::uint64_t> match,
                                                    const EventFd& event) {
  kvm_ioeventfd request{};
  request.addr = gpa.value;
  request.len = width;
  request.fd = event.fd();
  if (match.has_value()) {
    request.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
    request.datamatch = *match;
  }
  if (ioctl(fd_.get(), KVM_IOEVENTFD, &request) < 0) {
    if (errno == EEXIST) return Err(Errc::kOverlap, "KVM_IOEVENTFD");
    return SysError("KVM_IOEVENTFD");
  }
  doorbells_.Add();
  return std::unique_ptr<bus::Doorbell>(new Bell(*this, request));
}

void Vm::ReportCounters(CounterSink& sink) const {
  sink.Add("route_commits", route_commits_.Get());
  sink.Add("irqfd_changes", irqfd_changes_.Get());
  sink.Add("slot_changes", slot_changes_.Get());
  sink.Add("doorbells", doorbells_.Get());
  ReportStats(OpenStats(fd_.get()), sink);
}

}  // namespace postern::kvm
