// DsaHost: how it comes to be, and what it writes into the device's tables.

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "devices/pci/pci_regs.h"
#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/host/dsa_host.h"
#include "src/base/check.h"
#include "src/base/log.h"

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;
using regs::Command;

constexpr const char* kLog = "siov";
constexpr std::uint16_t kMemory = 0x2, kBusMaster = 0x4;
constexpr std::uint64_t kQueueWords = 4;  // of 64 bits in GRPCFG
constexpr std::uint32_t kNewestOldVersion = 0x2ff;
// Traffic classes A and B are 1, as Linux has them by default up to version 2.
constexpr std::uint64_t kTrafficClasses = 1 | 1 << 3;
constexpr std::uint32_t kMaxPriority = 15;
// Of a queue nobody has asked for yet. What composes a device (Postern's own among them) may have a
// limit that no register tells.
constexpr std::uint32_t kMaxShare = 32;

std::string Unusable(const std::string& name) {
  return name + " cannot be driven as a DSA";
}

// 0 where there is no limit, else its logarithm.
std::uint32_t Log2(std::uint64_t value) {
  return value == 0 ? 0 : static_cast<std::uint32_t>(std::bit_width(value)) - 1;
}

}  // namespace

Outcome<std::unique_ptr<DsaHost>> DsaHost::Create(std::unique_ptr<vfio::HostDevice> device,
                                                  const DsaHostOptions& options) {
  const std::string name = device->info().name;
  const DeviceRegisters registers(*device);
  const Result<std::uint16_t> vendor = registers.Config16(0);
  const Result<std::uint16_t> id = registers.Config16(2);
  if (!vendor || !id) return HostFailure(Unusable(name), (!vendor ? vendor : id).error());
  switch (KindOf(*vendor, *id)) {
    case HostKind::kDsa:
      break;
    case HostKind::kAnalytics:
      return ConfigFailure(fmt::format("{} is an analytics accelerator ({:04x}:{:04x}), not a DSA",
                                       name, *vendor, *id),
                           "'postern vdev list' shows which functions are");
    case HostKind::kOther:
      return ConfigFailure(fmt::format("{} is not a DSA ({:04x}:{:04x})", name, *vendor, *id),
                           "'postern vdev list' shows which functions are");
  }
  // NOLINTNEXTLINE(cppcoreguidelines-owning-memory): the constructor is private
  std::unique_ptr<DsaHost> host(new DsaHost(std::move(device), options));
  if (Result<void> done = host->Init(); !done) return HostFailure(Unusable(name), done.error());
  LOG_INFO(kLog, "{}: DSA version {:#x}, {} queues of {} entries together, {} engines", name,
           host->caps_.version, host->caps_.queues, host->caps_.entries, host->caps_.engines);
  return host;
}

DsaHost::DsaHost(std::unique_ptr<vfio::HostDevice> device, DsaHostOptions options)
    : device_(std::move(device)), options_(std::move(options)) {}

DsaHost::~DsaHost() {
  const bool complete = thread_.joinable();
  if (complete) {
    loop_->Stop();
    thread_.Join();
  }
  for (const Queue& queue : queues_) CHECK(queue.owner == nullptr);
  // Nobody uses it any more: the state it was found in, and no way to memory.
  if (complete && !lost()) {
    if (const Result<void> reset = ResetDevice(); !reset)
      LOG_DEBUG(kLog, "{}: last reset: {}", device_->info().name, Describe(reset.error()));
  }
  (void)registers_.SetConfig16(pci::kCommand, 0);
  commands_.reset();
  (void)device_->DisableIrq(vfio::kMsixIrq);
}

Result<void> DsaHost::Init() {
  if (device_->info().can_reset) {
    // Without it the command below is all the reset there is.
    if (const Result<void> reset = device_->Reset(); !reset)
      LOG_WARN(kLog, "{}: function reset: {}", device_->info().name, Describe(reset.error()));
  }
  TRY(registers_.SetConfig16(pci::kCommand, kMemory | kBusMaster));
  TRY(ResetDevice());
  caps_ = TRY(ReadHostCaps(registers_));
  if (options_.pasids && !caps_.configurable)
    return Err(Errc::kUnsupported, "PASIDs of a device whose configuration is fixed");
  queues_.resize(caps_.queues);
  handles_.resize(caps_.queues + 1);
  TRY(ReadQueues());
  loop_ = TRY(EventLoop::Create());
  commands_ = std::make_unique<CommandQueue>(registers_, *loop_, options_.command_limit,
                                             [this](const char* why) { Lose(why); });
  TRY(TakeInterrupts());
  thread_ = TRY(Thread::Start(options_.name, [this] { loop_->Run(); }));
  return {};
}

// 9.2.12: by polling, as no interrupt is set up. A device found in the middle of a command of
// somebody else's ends it first.
Result<void> DsaHost::ResetDevice() {
  const auto deadline = std::chrono::steady_clock::now() + options_.reset_limit;
  const auto wait = [&]() -> Result<void> {
    auto pause = std::chrono::microseconds(1);
    while (true) {
      const regs::CMDSTATUS status{{TRY(registers_.Read32(regs::kCmdstatus))}};
      if (!status.Get<regs::CMDSTATUS::Active>()) return {};
      if (std::chrono::steady_clock::now() > deadline)
        return SysError("a command is not completed", ETIMEDOUT);
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, std::chrono::microseconds(1000));
    }
  };
  TRY(wait());
  regs::CMD reset;
  reset.Set<regs::CMD::Code>(static_cast<std::uint64_t>(Command::kResetDevice));
  TRY(registers_.Write32(regs::kCmd, reset.raw));
  TRY(wait());
  const regs::GENSTS status{{TRY(registers_.Read32(regs::kGensts))}};
  if (status.Get<regs::GENSTS::State>() != regs::DeviceState::kDisabled)
    return SysError("not disabled after a reset", EIO);
  return {};
}

// A fixed device has its queues already; those of no size, or shared ones, are of no use.
Result<void> DsaHost::ReadQueues() {
  if (caps_.configurable) return {};
  for (std::uint32_t i = 0; i < caps_.queues; ++i) {
    const std::uint32_t size = TRY(registers_.Read32(caps_.OfQueue(i, regs::kWqSize))) & 0xffff;
    const regs::WQMODE mode{{TRY(registers_.Read32(caps_.OfQueue(i, regs::kWqMode)))}};
    const bool usable =
        mode.Get<regs::WQMODE::Dedicated>() && !mode.Get<regs::WQMODE::PasidEnable>();
    queues_[i].size = usable ? size : 0;
  }
  return {};
}

// All vectors are allocated at once: adding one later would interrupt the others' owners on hosts
// that cannot.
Result<void> DsaHost::TakeInterrupts() {
  misc_ = std::make_unique<Signal>(TRY(EventFd::Create()), [this] { OnInterrupt(); });
  TRY(loop_->Watch(misc_->event().fd(), EPOLLIN, *misc_));
  std::vector<int> events(caps_.queues + 1, -1);
  events[0] = misc_->event().fd();
  TRY(device_->SetVectors(vfio::kMsixIrq, 0, events));
  TRY(Watch(error_, vfio::kErrorIrq, "the kernel reports an error of it"));
  TRY(Watch(request_, vfio::kRequestIrq, "the host wants it back, or it is gone"));
  return registers_.Write32(regs::kGenctrl,
                            static_cast<std::uint32_t>(regs::GENCTRL::SwErrorInterrupt::kMask |
                                                       regs::GENCTRL::HaltInterrupt::kMask));
}

Result<void> DsaHost::Watch(std::unique_ptr<Signal>& slot, std::uint32_t irq, const char* what) {
  if (device_->info().irqs[irq].count == 0) return {};
  slot = std::make_unique<Signal>(TRY(EventFd::Create()), [this, what] { Lose(what); });
  TRY(loop_->Watch(slot->event().fd(), EPOLLIN, *slot));
  const int event = slot->event().fd();
  return device_->SetVectors(irq, 0, std::span<const int>(&event, 1));
}

// --- tables ---

void DsaHost::PlanTheRest() {
  if (!caps_.configurable) return;
  std::uint32_t used = 0;
  std::uint32_t unplanned = 0;
  for (const Queue& queue : queues_) {
    used += queue.size;
    unplanned += queue.size == 0 ? 1 : 0;
  }
  if (unplanned == 0) return;
  const std::uint32_t share = std::min(kMaxShare, (caps_.entries - used) / unplanned);
  for (Queue& queue : queues_) {
    if (queue.size == 0) queue.size = share;
  }
}

Result<void> DsaHost::Configure() {
  if (!caps_.configurable) return {};
  for (std::uint32_t i = 0; i < caps_.queues; ++i)
    TRY(registers_.Write32(caps_.OfQueue(i, regs::kWqSize), queues_[i].size));
  TRY(ConfigureGroups());
  regs::GENCFG general{{TRY(registers_.Read32(regs::kGencfg))}};
  general.Set<regs::GENCFG::EventLogEnable>(false);
  // 9.2.8: without it a descriptor of an unprivileged queue with a PASID may not ask for an
  // interrupt.
  general.Set<regs::GENCFG::UserInterruptsEnable>(options_.pasids);
  return registers_.Write32(regs::kGencfg, general.raw);
}

// 5.1: queues of a size are in one group each, groups have queues and engines or neither.
Result<void> DsaHost::ConfigureGroups() {
  std::vector<std::uint32_t> members;
  for (std::uint32_t i = 0; i < caps_.queues; ++i) {
    if (queues_[i].size != 0) members.push_back(i);
  }
  const auto groups =
      std::min({caps_.groups, caps_.engines, static_cast<std::uint32_t>(members.size())});
  for (std::uint32_t group = 0; group < caps_.groups; ++group) {
    std::uint64_t queues = 0;
    std::uint64_t engines = 0;
    if (group < groups) {
      for (std::size_t i = group; i < members.size(); i += groups)
        queues |= std::uint64_t{1} << members[i];
      for (std::uint32_t i = group; i < caps_.engines; i += groups)
        engines |= std::uint64_t{1} << i;
    }
    const std::uint32_t at = caps_.grpcfg + group * regs::kGrpcfgStride;
    TRY(registers_.Write64(at, queues));
    for (std::uint32_t word = 1; word < kQueueWords; ++word)
      TRY(registers_.Write64(at + 8 * word, 0));
    TRY(registers_.Write64(at + regs::kGrpEngines, engines));
    regs::GRPFLAGS flags{{TRY(registers_.ReadRaw64(at + regs::kGrpFlags))}};
    flags.Set<regs::GRPFLAGS::TrafficClasses>(caps_.version <= kNewestOldVersion ? kTrafficClasses
                                                                                 : 0);
    TRY(registers_.Write64(at + regs::kGrpFlags, flags.raw));
  }
  return {};
}

// 9.2.24, while the queue is disabled. Its size stays as it is.
Result<void> DsaHost::ConfigureQueue(std::uint32_t queue, const siov::QueueConfig& config) {
  if (!caps_.configurable) return {};
  const Queue& of = queues_[queue];
  regs::WQMODE mode;
  mode.Set<regs::WQMODE::Dedicated>(true);
  if (caps_.priority) {
    mode.Set<regs::WQMODE::Priority>(std::clamp<std::uint32_t>(config.priority, 1, kMaxPriority));
  }
  if (of.pasid) {
    mode.Set<regs::WQMODE::PasidEnable>(true);
    mode.Set<regs::WQMODE::Pasid>(*of.pasid);
  }
  regs::WQLIMITS limits;
  limits.Set<regs::WQLIMITS::MaxTransfer>(
      std::min(Log2(config.max_transfer), caps_.transfer_shift));
  // 5.2: not 0, where there are batches.
  if (caps_.batch_shift != 0) {
    limits.Set<regs::WQLIMITS::MaxBatch>(
        std::clamp<std::uint32_t>(Log2(config.max_batch), 1, caps_.batch_shift));
  }
  TRY(registers_.Write32(caps_.OfQueue(queue, regs::kWqThreshold), 0));
  TRY(registers_.Write32(caps_.OfQueue(queue, regs::kWqMode), mode.raw));
  TRY(registers_.Write32(caps_.OfQueue(queue, regs::kWqLimits), limits.raw));
  TRY(registers_.Write32(caps_.OfQueue(queue, regs::kWqOccupancyInterrupt), 0));
  TRY(registers_.Write32(caps_.OfQueue(queue, regs::kWqOccupancyLimit), 0));
  if (caps_.operations_config) {
    for (std::uint32_t i = 0; i < config.operations.size(); ++i) {
      TRY(registers_.Write64(caps_.OfQueue(queue, regs::kWqOperations + 8 * i),
                             config.operations[i]));
    }
  }
  return ConfigurePermissions(queue);
}

// 9.2.21: the queue's vector can be asked for with its PASID alone.
Result<void> DsaHost::ConfigurePermissions(std::uint32_t queue) {
  constexpr std::uint32_t kEnable = 1U << 3;
  constexpr unsigned kPasidShift = 12;
  const std::optional<std::uint32_t>& pasid = queues_[queue].pasid;
  const std::uint32_t value = pasid ? *pasid << kPasidShift | kEnable : 0;
  return registers_.Write32(caps_.msixperm + (queue + 1) * regs::kMsixpermStride, value);
}

}  // namespace postern::dsa
