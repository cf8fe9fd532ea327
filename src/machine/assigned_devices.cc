#include "src/machine/assigned_devices.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "iommu/prefault.h"
#include "src/arch/x86_64/layout.h"
#include "src/base/kernel_calls.h"
#include "src/base/log.h"
#include "vfio/user/client.h"

namespace postern {
namespace {

constexpr const char* kLog = "machine";

vfio::KernelHost::Spec SpecOf(const AssignedConfig& config) {
  vfio::KernelHost::Spec spec;
  spec.sysfs = config.host.empty() ? config.path : "/sys/bus/pci/devices/" + config.host;
  spec.fd = config.fd;
  spec.iommufd_fd = config.iommufd_fd;
  switch (config.iommufd) {
    case AssignedConfig::Iommufd::kAuto:
      spec.iommufd = vfio::KernelHost::Spec::Iommufd::kAuto;
      break;
    case AssignedConfig::Iommufd::kOn:
      spec.iommufd = vfio::KernelHost::Spec::Iommufd::kOn;
      break;
    case AssignedConfig::Iommufd::kOff:
      spec.iommufd = vfio::KernelHost::Spec::Iommufd::kOff;
      break;
  }
  return spec;
}

// The lowest free slot of bus 0; nothing when all are taken.
std::optional<std::uint8_t> FreeSlot(pci::PciRoot& root) {
  std::array<bool, pci::PciRoot::kSlots> taken{true};
  for (const pci::FunctionInfo& function : root.Functions()) {
    if (function.bdf.bus == 0) taken[function.bdf.device] = true;
  }
  const auto free = std::ranges::find(taken, false);
  if (free == taken.end()) return std::nullopt;
  return static_cast<std::uint8_t>(free - taken.begin());
}

}  // namespace

AssignedDevices::AssignedDevices(const Host& host)
    : host_(host),
      kernel_(SystemCalls(), host.files, "/sys", "/dev",
              [this](iommu::AddressSpace& space) -> Outcome<void> {
                Outcome<std::unique_ptr<iommu::RamMapper>> mapper = Fill(space);
                if (!mapper) return tl::unexpected(mapper.error());
                mappers_.push_back(std::move(*mapper));
                return {};
              }) {}

AssignedDevices::~AssignedDevices() {
  while (!entries_.empty()) {
    (void)host_.root.Remove(*entries_.back().function);
    Close(std::string(entries_.back().id));
  }
  for (auto mapper = mappers_.rbegin(); mapper != mappers_.rend(); ++mapper)
    host_.memory.Unobserve(**mapper);
}

Outcome<std::unique_ptr<iommu::RamMapper>> AssignedDevices::Fill(iommu::AddressSpace& space) {
  auto mapper = std::make_unique<iommu::RamMapper>(space, iommu::HostPrefaultThreads());
  if (Result<void> r = host_.memory.Observe(*mapper); !r) {
    const auto& at = mapper->last_error();
    if (!at.has_value()) return HostFailure("cannot map the guest's memory for DMA", r.error());
    return tl::unexpected(iommu::ExplainMapFailure(space, at->gpa, at->length, at->error));
  }
  LOG_DEBUG(kLog, "{} bytes of guest memory mapped by {}", mapper->mapped_bytes(), space.name());
  return mapper;
}

Outcome<std::unique_ptr<vfio::HostDevice>> AssignedDevices::OpenHost(const AssignedConfig& config) {
  if (config.socket.empty()) return kernel_.Open(SpecOf(config));
  return vfio::UserDevice::Connect(config.socket, host_.memory, host_.loop);
}

Outcome<pci::PciFunction*> AssignedDevices::Make(const AssignedConfig& config,
                                                 const std::string& id,
                                                 std::optional<std::uint32_t> intx_gsi) {
  Outcome<std::unique_ptr<vfio::HostDevice>> device = OpenHost(config);
  if (!device) return tl::unexpected(device.error());
  iommu::AddressSpace& space = (*device)->address_space();
  Entry entry;
  entry.id = id;
  entry.detail = fmt::format("{}, DMA by {}", (*device)->info().name, space.name());
  vfio::VfioFunction::Options options;
  options.id = id;
  options.rom_bar = config.rombar;
  options.intx = config.intx;
  options.intx_gsi = intx_gsi;
  if (config.p2p) options.peers = &peers_;
  if (config.trap_bar >= 0) options.trap_bars = {static_cast<unsigned>(config.trap_bar)};
  // Not inside the function's own event: giving back destroys the function.
  Outcome<std::unique_ptr<vfio::VfioFunction>> function = vfio::VfioFunction::Create(
      std::move(*device), host_.platform, host_.loop, std::move(options),
      [this, id] { host_.loop.Post([this, id] { host_.give_back(id); }); });
  if (!function) return tl::unexpected(function.error());
  entry.function = std::move(*function);
  if (!config.socket.empty()) {
    Outcome<std::unique_ptr<iommu::RamMapper>> mapper = Fill(space);
    if (!mapper) return tl::unexpected(mapper.error());
    entry.mapper = std::move(*mapper);
  }
  entries_.push_back(std::move(entry));
  return entries_.back().function.get();
}

Outcome<LentDevice> AssignedDevices::Lend(const AssignedConfig& config) {
  Outcome<std::unique_ptr<vfio::HostDevice>> device = OpenHost(config);
  if (!device) return tl::unexpected(device.error());
  LentDevice lent;
  if (!config.socket.empty()) {
    Outcome<std::unique_ptr<iommu::RamMapper>> mapper = Fill((*device)->address_space());
    if (!mapper) return tl::unexpected(mapper.error());
    lent.memory = std::make_unique<LentMemory>(host_.memory, std::move(*mapper));
  }
  lent.device = std::move(*device);
  return lent;
}

Outcome<pci::PciFunction*> AssignedDevices::Open(const AssignedConfig& config,
                                                 const std::string& id) {
  return Make(config, id, std::nullopt);
}

Outcome<pci::PciFunction*> AssignedDevices::Place(const AssignedConfig& config,
                                                  const std::string& id) {
  const std::optional<std::uint8_t> slot = FreeSlot(host_.root);
  if (!slot) return ConfigFailure(fmt::format("no free PCI slot for '{}'", id), "remove a device");
  // As the root wires INTA# of a slot.
  Outcome<pci::PciFunction*> function =
      Make(config, id, x86_64::kPciIntxFirstGsi + *slot % x86_64::kPciIntxGsis);
  if (!function) return function;
  if (Result<pci::Bdf> where = host_.root.Add(**function, slot); !where) {
    Close(id);
    return HostFailure(fmt::format("device '{}'", id), where.error());
  }
  return function;
}

void AssignedDevices::Close(const std::string& id) {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.id == id; });
  if (found == entries_.end()) return;
  if (found->mapper != nullptr) host_.memory.Unobserve(*found->mapper);
  entries_.erase(found);
}

std::string AssignedDevices::Detail(const std::string& id) const {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.id == id; });
  return found == entries_.end() ? std::string() : found->detail;
}

void AssignedDevices::ReportMetrics(MetricsWriter& metrics) const {
  for (const Entry& entry : entries_) {
    metrics.Group(entry.id, [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { entry.function->ReportCounters(sink); });
    });
  }
}

}  // namespace postern
