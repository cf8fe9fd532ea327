#include "vfio/capability_walk.h"

#include <algorithm>
#include <bitset>
#include <optional>

#include "devices/pci/pci_regs.h"

namespace postern::vfio {
namespace {

// How much is hidden of a capability whose length is not known, if no other one begins earlier.
constexpr std::uint32_t kHiddenConventional = 0x10;
constexpr std::uint32_t kHiddenExtended = 0x40;

class Walker {
 public:
  explicit Walker(std::span<const std::uint8_t> config) : config_(config) {
    for (std::size_t i = 0; i < pci::kHeaderEnd; ++i) taken_.set(i);
  }

  void Conventional();
  void Extended();
  Capabilities Finish();

 private:
  [[nodiscard]] std::uint32_t Load(std::uint32_t at, unsigned bytes) const {
    std::uint32_t value = 0;
    for (unsigned i = bytes; i-- > 0;) {
      value = value << 8 | (at + i < config_.size() ? config_[at + i] : 0xffU);
    }
    return value;
  }
  [[nodiscard]] std::optional<std::uint32_t> ConventionalSize(std::uint8_t id,
                                                              std::uint32_t at) const;
  [[nodiscard]] std::optional<std::uint32_t> ExtendedSize(std::uint16_t id, std::uint32_t at) const;
  [[nodiscard]] std::uint32_t ExpressSize(std::uint32_t at) const;
  void Keep(std::vector<Capability>& list, Capability capability, std::uint32_t limit, bool single);

  struct Dropped {
    std::uint32_t at;
    std::uint32_t reach;
  };
  std::span<const std::uint8_t> config_;
  Capabilities found_;
  std::bitset<pci::kConfigEnd> taken_;  // bytes of the header and of kept capabilities
  std::vector<std::uint32_t> heads_;
  std::vector<Dropped> dropped_;
};

std::uint32_t Walker::ExpressSize(std::uint32_t at) const {
  const pci::EXPRESS_FLAGS flags{{static_cast<std::uint16_t>(Load(at + pci::kExpressFlags, 2))}};
  return flags.Get<pci::EXPRESS_FLAGS::Version>() >= 2 ? pci::kExpressSizeV2 : pci::kExpressSizeV1;
}

// None: not shown.
std::optional<std::uint32_t> Walker::ConventionalSize(std::uint8_t id, std::uint32_t at) const {
  switch (id) {
    case pci::kCapPower:
    case pci::kCapVpd:
    case pci::kCapPcix:
    case pci::kCapSata:
      return 8;
    case pci::kCapMsi: {
      const pci::MSI_CONTROL control{{static_cast<std::uint16_t>(Load(at + pci::kMsiControl, 2))}};
      return 0xaU + (control.Get<pci::MSI_CONTROL::Address64>() ? 4 : 0) +
             (control.Get<pci::MSI_CONTROL::PerVectorMasking>() ? 10 : 0);
    }
    case pci::kCapVendor:
      return Load(at + 2, 1);
    case pci::kCapExpress:
      return ExpressSize(at);
    case pci::kCapMsix:
      return pci::kMsixCapSize;
    case pci::kCapAf:
      return pci::kAfCapSize;
    default:
      return std::nullopt;
  }
}

std::optional<std::uint32_t> Walker::ExtendedSize(std::uint16_t id, std::uint32_t at) const {
  switch (id) {
    case pci::kExtCapSerial:
      return 12;
    case pci::kExtCapLatency:
      return 8;
    case pci::kExtCapVendor:
    case pci::kExtCapDesignatedVendor:
      return Load(at + 4, 4) >> 20;  // of the vendor-specific header: length 31:20
    case pci::kExtCapTph: {
      // 7.26.2: a steering tag table follows if bits 10:9 say it is here; entries - 1 in 26:16.
      const std::uint32_t requester = Load(at + 4, 4);
      const std::uint32_t entries = (requester >> 16 & 0x7ff) + 1;
      return 12 + ((requester >> 9 & 3) == 1 ? (entries * 2 + 3) / 4 * 4 : 0);
    }
    default:
      return std::nullopt;
  }
}

void Walker::Keep(std::vector<Capability>& list, Capability capability, std::uint32_t limit,
                  bool single) {
  const std::uint32_t header = limit == pci::kConfigEnd ? 4 : 2;
  const auto same = [&](const Capability& other) { return other.id == capability.id; };
  bool good = capability.size > header && capability.size <= limit - capability.at &&
              !(single && std::ranges::any_of(list, same));
  for (std::uint32_t i = 0; good && i < capability.size; ++i) {
    good = !taken_.test(capability.at + i);
  }
  if (!good) {
    ++found_.refused;
    dropped_.push_back({capability.at, header});
    return;
  }
  for (std::uint32_t i = 0; i < capability.size; ++i) taken_.set(capability.at + i);
  list.push_back(capability);
}

void Walker::Conventional() {
  const pci::STATUS status{{static_cast<std::uint16_t>(Load(pci::kStatus, 2))}};
  if (!status.Get<pci::STATUS::CapabilitiesList>()) return;
  std::bitset<pci::kConventionalEnd> visited;
  std::uint32_t link = Load(pci::kCapabilitiesPointer, 1);
  while (link != 0 && link != 0xff) {
    // PCI 3.0 6.7: the low two bits are reserved and masked.
    const std::uint32_t at = link & 0xfc;
    if (at < pci::kHeaderEnd || visited.test(at)) {
      ++found_.refused;
      return;
    }
    visited.set(at);
    const auto id = static_cast<std::uint8_t>(Load(at, 1));
    link = Load(at + 1, 1);
    if (id == 0xff) {
      ++found_.refused;
      return;
    }
    heads_.push_back(at);
    if (const auto size = ConventionalSize(id, at)) {
      Keep(found_.conventional, {id, 0, at, *size}, pci::kConventionalEnd, id != pci::kCapVendor);
    } else {
      ++found_.dropped;
      dropped_.push_back({at, kHiddenConventional});
    }
  }
}

void Walker::Extended() {
  if (config_.size() < pci::kConfigEnd) return;
  std::bitset<pci::kConfigEnd> visited;
  std::uint32_t at = pci::kConventionalEnd;
  while (true) {
    if (at < pci::kConventionalEnd || visited.test(at)) {
      ++found_.refused;
      return;
    }
    visited.set(at);
    const std::uint32_t header = Load(at, 4);
    if (header == 0 || header == 0xffffffff) return;
    const auto id = static_cast<std::uint16_t>(header);
    const auto version = static_cast<std::uint8_t>(header >> 16 & 0xf);
    heads_.push_back(at);
    // An ID of 0 with a next pointer stands where a capability at 0x100 was hidden.
    if (const auto size = ExtendedSize(id, at)) {
      const bool single = id != pci::kExtCapVendor && id != pci::kExtCapDesignatedVendor;
      Keep(found_.extended, {id, version, at, *size}, pci::kConfigEnd, single);
    } else if (id != 0) {
      ++found_.dropped;
      dropped_.push_back({at, kHiddenExtended});
    }
    at = header >> 20 & 0xffc;
    if (at == 0) return;
  }
}

Capabilities Walker::Finish() {
  std::ranges::sort(heads_);
  for (const Dropped& dropped : dropped_) {
    const auto next = std::ranges::upper_bound(heads_, dropped.at);
    std::uint32_t end = dropped.at + dropped.reach;
    end = std::min<std::uint32_t>(
        end, dropped.at < pci::kConventionalEnd ? pci::kConventionalEnd : pci::kConfigEnd);
    if (next != heads_.end()) end = std::min(end, *next);
    std::uint32_t begin = dropped.at;
    while (begin < end && taken_.test(begin)) ++begin;
    std::uint32_t stop = begin;
    while (stop < end && !taken_.test(stop)) ++stop;
    if (begin < stop) found_.hidden.push_back({begin, stop});
  }
  return std::move(found_);
}

}  // namespace

Capabilities WalkCapabilities(std::span<const std::uint8_t> config) {
  Walker walker(config);
  walker.Conventional();
  walker.Extended();
  return walker.Finish();
}

}  // namespace postern::vfio
