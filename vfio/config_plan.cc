#include "vfio/config_plan.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "devices/pci/pci_regs.h"

namespace postern::vfio {
namespace {

constexpr std::uint8_t kAll = 0xff;
constexpr std::uint8_t kHeaderTypeMask = 0x7f;

class Planner {
 public:
  Planner(std::span<const std::uint8_t> config, const DeviceInfo& info, const BarShapes& shapes)
      : config_(config), info_(info), shapes_(shapes) {
    for (auto* bytes : {&plan_.image.values, &plan_.image.writable, &plan_.image.write_one_to_clear,
                        &plan_.emulated, &plan_.forwarded}) {
      bytes->resize(config.size());
    }
  }
  ConfigPlan Make();

 private:
  [[nodiscard]] std::uint16_t Load16(std::uint32_t at) const {
    return static_cast<std::uint16_t>(config_[at] | config_[at + 1] << 8);
  }
  [[nodiscard]] std::uint32_t Load32(std::uint32_t at) const {
    return Load16(at) | std::uint32_t{Load16(at + 2)} << 16;
  }
  // The bytes come from the shadow, which has the device's value or 0; nothing is forwarded.
  void Cache(std::uint32_t at, std::uint32_t size);
  void Zero(std::uint32_t at, std::uint32_t size);
  void Put(std::uint32_t at, std::uint32_t value, unsigned bytes);
  void PutMask(std::vector<std::uint8_t>& masks, std::uint32_t at, std::uint32_t mask,
               unsigned bytes);

  void Header();
  // False: not to be shown after all.
  bool Conventional(const Capability& capability);
  bool Msi(const Capability& capability);
  bool Msix(const Capability& capability);
  [[nodiscard]] bool Fits(std::uint32_t place, std::uint64_t bytes) const;
  void Power(std::uint32_t at);
  bool Express(const Capability& capability);
  void Af(std::uint32_t at);
  void Extended(const Capability& capability);
  void LinkConventional(const std::vector<Capability>& list);
  void LinkExtended(const std::vector<Capability>& list);

  std::span<const std::uint8_t> config_;
  const DeviceInfo& info_;
  const BarShapes& shapes_;
  ConfigPlan plan_;
};

void Planner::Cache(std::uint32_t at, std::uint32_t size) {
  for (std::uint32_t i = at; i < at + size; ++i) {
    plan_.emulated[i] = kAll;
    plan_.image.values[i] = config_[i];
    plan_.forwarded[i] = 0;
  }
}

void Planner::Zero(std::uint32_t at, std::uint32_t size) {
  Cache(at, size);
  for (std::uint32_t i = at; i < at + size; ++i) plan_.image.values[i] = 0;
}

void Planner::Put(std::uint32_t at, std::uint32_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) {
    plan_.image.values[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
  }
}

void Planner::PutMask(std::vector<std::uint8_t>& masks, std::uint32_t at, std::uint32_t mask,
                      unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) masks[at + i] = static_cast<std::uint8_t>(mask >> (8 * i));
}

void Planner::Header() {
  Cache(0, pci::kHeaderEnd);
  Put(pci::kCommand, 0, 2);
  pci::COMMAND command;
  command.Set<pci::COMMAND::InterruptDisable>(true);
  command.Set<pci::COMMAND::Serr>(true);
  command.Set<pci::COMMAND::ParityError>(true);
  command.Set<pci::COMMAND::BusMaster>(true);
  PutMask(plan_.image.writable, pci::kCommand, command.raw, 2);
  // Status is the device's but for the capability list, which is ours; its error bits are cleared
  // by writing 1, there.
  pci::STATUS list;
  list.Set<pci::STATUS::CapabilitiesList>(true);
  PutMask(plan_.emulated, pci::kStatus, list.raw, 2);
  PutMask(plan_.forwarded, pci::kStatus, pci::kStatusErrorBits, 2);
  Put(pci::kStatus, 0, 2);
  plan_.image.writable[pci::kCacheLineSize] = kAll;
  plan_.image.values[pci::kHeaderType] = 0;
  plan_.image.values[pci::kHeaderType + 1] = 0;  // BIST
  Put(pci::kBar0, 0, 4);
  for (std::uint32_t at = pci::kBar0; at < pci::kBarEnd; ++at) plan_.image.values[at] = 0;
  Put(pci::kRomBase, 0, 4);
  Put(pci::kCapabilitiesPointer, 0, 4);
  Put(pci::kCapabilitiesPointer + 4, 0, 4);
  const std::uint8_t pin = config_[pci::kInterruptPin];
  plan_.interrupt_pin = pin >= 1 && pin <= 4;
  Put(pci::kInterruptLine, 0, 2);
  plan_.image.writable[pci::kInterruptLine] = kAll;
}

bool Planner::Msi(const Capability& capability) {
  const pci::MSI_CONTROL control{{Load16(capability.at + pci::kMsiControl)}};
  const unsigned log2 = control.Get<pci::MSI_CONTROL::CapableVectors>();
  const std::uint32_t count = info_.irqs[kMsiIrq].count;
  if (log2 > 5 || count == 0 || !info_.irqs[kMsiIrq].eventfd) return false;
  MsiPlan msi{.at = capability.at, .options = {}};
  msi.options.vectors = static_cast<std::uint16_t>(std::min(1U << log2, std::bit_floor(count)));
  msi.options.address64 = control.Get<pci::MSI_CONTROL::Address64>();
  msi.options.per_vector_masking = control.Get<pci::MSI_CONTROL::PerVectorMasking>();
  Zero(capability.at, capability.size);
  plan_.msi = msi;
  return true;
}

// `place`: an offset register of the MSI-X capability.
bool Planner::Fits(std::uint32_t place, std::uint64_t bytes) const {
  const std::uint32_t bar = place & 7;
  if (bar >= pci::kBarCount || !shapes_.bars[bar]) return false;
  const BarShape& shape = *shapes_.bars[bar];
  const std::uint64_t offset = place & ~std::uint32_t{7};
  return shape.kind != pci::BarKind::kIo && offset <= shape.region_size &&
         bytes <= shape.region_size - offset;
}

bool Planner::Msix(const Capability& capability) {
  const pci::MSIX_CONTROL control{{Load16(capability.at + pci::kMsixControl)}};
  const auto device_vectors =
      static_cast<std::uint16_t>(control.Get<pci::MSIX_CONTROL::TableSize>() + 1);
  const std::uint32_t count = info_.irqs[kMsixIrq].count;
  if (count == 0 || !info_.irqs[kMsixIrq].eventfd) return false;
  const std::uint32_t table = Load32(capability.at + pci::kMsixTable);
  const std::uint32_t pba = Load32(capability.at + pci::kMsixPba);
  const std::uint64_t table_bytes = pci::MsixTable::TableBytes(device_vectors);
  const std::uint64_t pba_bytes = pci::MsixTable::PbaBytes(device_vectors);
  if (!Fits(table, table_bytes) || !Fits(pba, pba_bytes)) return false;
  const bool same_bar = (table & 7) == (pba & 7);
  const std::uint64_t table_at = table & ~std::uint32_t{7};
  const std::uint64_t pba_at = pba & ~std::uint32_t{7};
  if (same_bar && table_at < pba_at + pba_bytes && pba_at < table_at + table_bytes) return false;
  MsixPlan msix{.at = capability.at, .device_vectors = device_vectors, .place = {}};
  msix.vectors = static_cast<std::uint16_t>(std::min<std::uint32_t>(device_vectors, count));
  msix.place = {static_cast<std::uint8_t>(table & 7), static_cast<std::uint32_t>(table_at),
                static_cast<std::uint8_t>(pba & 7), static_cast<std::uint32_t>(pba_at)};
  Zero(capability.at, capability.size);
  plan_.msix = msix;
  return true;
}

void Planner::Power(std::uint32_t at) {
  // PCI PM 1.2 3.2.3: the function signals no PME here, so it says that it cannot.
  PutMask(plan_.emulated, at + pci::kPowerCapabilities, pci::kPowerPmeSupport, 2);
  PutMask(plan_.forwarded, at + pci::kPowerCapabilities, 0, 2);
  pci::POWER_CONTROL pme;
  pme.Set<pci::POWER_CONTROL::PmeStatus>(true);
  pme.Set<pci::POWER_CONTROL::PmeEnable>(true);
  PutMask(plan_.emulated, at + pci::kPowerControl, pme.raw, 2);
  pci::POWER_CONTROL forwarded;
  forwarded.Set<pci::POWER_CONTROL::PowerState>(3);
  PutMask(plan_.forwarded, at + pci::kPowerControl, forwarded.raw | 0x1e00U, 4);  // data select
  plan_.power = at;
}

bool Planner::Express(const Capability& capability) {
  const std::uint32_t at = capability.at;
  pci::EXPRESS_FLAGS flags{{Load16(at + pci::kExpressFlags)}};
  const std::uint16_t type = flags.Get<pci::EXPRESS_FLAGS::Type>();
  if (type != pci::kExpressEndpoint && type != pci::kExpressRootIntegrated) return false;
  flags.Set<pci::EXPRESS_FLAGS::Type>(pci::kExpressRootIntegrated);
  // Some virtual functions say version 0, which no driver takes.
  if (flags.Get<pci::EXPRESS_FLAGS::Version>() == 0) flags.Set<pci::EXPRESS_FLAGS::Version>(1);
  Cache(at + pci::kExpressFlags, 2);
  Put(at + pci::kExpressFlags, flags.raw, 2);
  Cache(at + pci::kExpressDevice, 4);
  const bool version2 = capability.size >= pci::kExpressSizeV2;
  // PCI Express 3.0 7.8: an integrated endpoint has no link, slot or root registers.
  Zero(at + pci::kExpressLink,
       (version2 ? pci::kExpressDevice2 : pci::kExpressSizeV1) - pci::kExpressLink);
  if (version2) Zero(at + pci::kExpressLink2, pci::kExpressSizeV2 - pci::kExpressLink2);
  // The reset bit always reads 0; a write of it is ours to order (VfioFunction).
  const std::uint32_t control = at + pci::kExpressDeviceControl;
  PutMask(plan_.emulated, control, pci::kExpressFlr, 2);
  PutMask(plan_.forwarded, control, static_cast<std::uint16_t>(~pci::kExpressFlr), 2);
  if ((Load32(at + pci::kExpressDevice) & pci::kExpressFlrCapable) != 0)
    plan_.express_flr = control + 1;
  return true;
}

void Planner::Af(std::uint32_t at) {
  Cache(at + pci::kAfCapabilities, 1);
  Zero(at + pci::kAfControl, 1);
  if ((config_[at + pci::kAfCapabilities] & pci::kAfFlrCapable) != 0)
    plan_.af_flr = at + pci::kAfControl;
}

bool Planner::Conventional(const Capability& capability) {
  const std::uint32_t at = capability.at;
  for (std::uint32_t i = 2; i < capability.size; ++i) plan_.forwarded[at + i] = kAll;
  switch (capability.id) {
    case pci::kCapMsi:
      return Msi(capability);
    case pci::kCapMsix:
      return Msix(capability);
    case pci::kCapExpress:
      return Express(capability);
    case pci::kCapPower:
      Power(at);
      return true;
    case pci::kCapAf:
      Af(at);
      return true;
    default:
      return true;
  }
}

void Planner::Extended(const Capability& capability) {
  switch (capability.id) {
    case pci::kExtCapSerial:
      Cache(capability.at, capability.size);
      return;
    case pci::kExtCapLatency:
      for (std::uint32_t i = 0; i < capability.size; ++i) plan_.forwarded[capability.at + i] = 0;
      return;
    default:
      return;
  }
}

void Planner::LinkConventional(const std::vector<Capability>& list) {
  std::uint32_t link = pci::kCapabilitiesPointer;
  for (const Capability& capability : list) {
    plan_.image.values[link] = static_cast<std::uint8_t>(capability.at);
    Zero(capability.at, 2);
    plan_.image.values[capability.at] = static_cast<std::uint8_t>(capability.id);
    link = capability.at + 1;
  }
  pci::STATUS status;
  status.Set<pci::STATUS::CapabilitiesList>(!list.empty());
  Put(pci::kStatus, status.raw, 2);
}

void Planner::LinkExtended(const std::vector<Capability>& list) {
  if (config_.size() < pci::kConfigEnd) return;
  // PCI Express 3.0 7.9.1: the list starts at 0x100, be it with an empty header.
  Zero(pci::kConventionalEnd, 4);
  std::uint32_t last = pci::kConventionalEnd;
  std::uint32_t header = 0;
  for (const Capability& capability : list) {
    if (capability.at != last) Put(last, header | capability.at << 20, 4);
    Zero(capability.at, 4);
    header = capability.id | std::uint32_t{capability.version} << 16;
    Put(capability.at, header, 4);
    last = capability.at;
  }
}

ConfigPlan Planner::Make() {
  for (std::size_t i = pci::kHeaderEnd; i < config_.size(); ++i) plan_.forwarded[i] = kAll;
  Header();
  Capabilities found = WalkCapabilities(config_);
  plan_.dropped = found.dropped;
  plan_.refused = found.refused;
  for (const Range& range : found.hidden) Zero(range.begin, range.end - range.begin);
  std::erase_if(found.conventional, [this](const Capability& capability) {
    if (Conventional(capability)) return false;
    Zero(capability.at, capability.size);
    // Express of another type is well formed, just not ours to show.
    ++(capability.id == pci::kCapExpress ? plan_.dropped : plan_.refused);
    return true;
  });
  for (const Capability& capability : found.extended) Extended(capability);
  LinkConventional(found.conventional);
  LinkExtended(found.extended);
  // What the device does not have is never asked of it.
  for (std::uint64_t i = info_.regions[kConfigRegion].size; i < config_.size(); ++i) {
    plan_.emulated[i] = kAll;
    plan_.forwarded[i] = 0;
  }
  return std::move(plan_);
}

}  // namespace

Result<ConfigPlan> PlanConfig(std::span<const std::uint8_t> config, const DeviceInfo& info,
                              const BarShapes& shapes) {
  if (config.size() != pci::kConventionalEnd && config.size() != pci::kConfigEnd)
    return Err(Errc::kInvalidArgument, "config space size");
  if (config[0] == kAll && config[1] == kAll)
    return Err(Errc::kNotFound, "the device's config space reads as all ones");
  if ((config[pci::kHeaderType] & kHeaderTypeMask) != 0)
    return Err(Errc::kUnsupported, "a PCI bridge cannot be assigned");
  return Planner(config, info, shapes).Make();
}

}  // namespace postern::vfio
