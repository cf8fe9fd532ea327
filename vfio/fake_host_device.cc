#include "vfio/fake_host_device.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "devices/pci/pci_regs.h"
#include "src/base/check.h"

namespace postern::vfio {
namespace {

constexpr std::uint32_t kPower = 0x40;
constexpr std::uint32_t kMsi = 0x50;
constexpr std::uint32_t kMsix = 0x70;
constexpr std::uint32_t kExpress = 0x80;

std::uint64_t Little(std::span<const std::byte> data) {
  std::uint64_t value = 0;
  for (std::size_t i = std::min<std::size_t>(data.size(), 8); i-- > 0;)
    value = value << 8 | std::to_integer<std::uint64_t>(data[i]);
  return value;
}

}  // namespace

// --- address space ---

iommu::Limits FakeAddressSpace::limits() const {
  return {.ranges = {{0, ~std::uint64_t{0}}}, .page_sizes = 0x1000, .mappings_left = 0};
}

Result<void> FakeAddressSpace::Map(iommu::Iova at, const iommu::HostRange& from,
                                   memory::Access /*access*/) {
  if (fail != 0) return SysError("fake map", fail);
  for (const Mapped& other : mapped) {
    if (at.value < other.at + other.length && other.at < at.value + from.length)
      return Err(Errc::kOverlap, "fake map");
  }
  mapped.push_back({at.value, from.length, from.address});
  return {};
}

Result<void> FakeAddressSpace::Unmap(iommu::Iova at, std::uint64_t length) {
  const auto found = std::ranges::find_if(
      mapped, [&](const Mapped& m) { return m.at == at.value && m.length == length; });
  if (found == mapped.end()) return Err(Errc::kNotFound, "fake unmap");
  mapped.erase(found);
  return {};
}

Result<void> FakeAddressSpace::TrackDirty(bool /*on*/) {
  return Err(Errc::kUnsupported, "fake");
}

Result<void> FakeAddressSpace::TakeDirty(iommu::Iova /*at*/, std::uint64_t /*length*/,
                                         std::uint64_t /*page_size*/,
                                         std::span<std::uint64_t> /*bits*/) {
  return Err(Errc::kUnsupported, "fake");
}

// --- set-up ---

FakeHostDevice::FakeHostDevice() : config(pci::kConfigEnd) {
  device.name = "fake0";
  device.can_reset = true;
  device.regions[kConfigRegion] = {
      .size = pci::kConfigEnd, .readable = true, .writable = true, .areas = {}};
  Put<std::uint32_t>(0, 0x10d38086);
  Put<std::uint16_t>(pci::kStatus, 0x10);
  Put<std::uint32_t>(pci::kRevisionId, 0x02000003);
  Put<std::uint8_t>(pci::kHeaderType, 0x80);  // one of several functions
  Put<std::uint32_t>(pci::kSubsystemVendorId, 0xa01f8086);
  Put<std::uint8_t>(pci::kCapabilitiesPointer, kPower);
  Put<std::uint32_t>(kPower, 0xfe230001);
  Put<std::uint8_t>(kPower + 1, kExpress);
  // Version 2, endpoint; FLR; link registers with something in them.
  Put<std::uint32_t>(kExpress, 0x00020010);
  Put<std::uint32_t>(kExpress + pci::kExpressDevice, pci::kExpressFlrCapable | 1);
  Put<std::uint16_t>(kExpress + pci::kExpressDeviceControl, 0x2810);
  for (std::uint32_t at = pci::kExpressLink; at < pci::kExpressDevice2; at += 4)
    Put<std::uint32_t>(kExpress + at, 0x04030201);
  Put<std::uint32_t>(kExpress + pci::kExpressLink2, 0x04030201);
  SetBar(0, 0xfe000000, kBar, true);
  SetBar(2, 0xe000000c, kBar, true);
  SetBar(4, 0xd001, 32, false);
  for (const std::uint32_t irq : {kErrorIrq, kRequestIrq})
    device.irqs[irq] = {.count = 1, .eventfd = true};
  for (std::size_t i = 0; i < events_.size(); ++i) events_[i].clear();
}

void FakeHostDevice::SetBar(std::size_t index, std::uint32_t register_value, std::uint64_t size,
                            bool mappable) {
  Put<std::uint32_t>(pci::kBar0 + 4 * index, register_value);
  device.regions[index] = {.size = size, .readable = true, .writable = true, .areas = {}};
  if (mappable) device.regions[index].areas.push_back({0, size});
  memory[index].assign(std::min<std::uint64_t>(size, 1 << 20), std::byte{0});
}

void FakeHostDevice::AddMsi(std::uint16_t vectors, bool address64, bool masking) {
  Put<std::uint8_t>(kMsi, pci::kCapMsi);
  Put<std::uint8_t>(kMsi + 1, config[kPower + 1]);
  Put<std::uint8_t>(kPower + 1, kMsi);
  unsigned log2 = 0;
  while (1U << log2 < vectors) ++log2;
  Put<std::uint16_t>(
      kMsi + pci::kMsiControl,
      static_cast<std::uint16_t>(log2 << 1 | (address64 ? 0x80U : 0U) | (masking ? 0x100U : 0U)));
  device.irqs[kMsiIrq] = {.count = vectors, .eventfd = true, .noresize = true};
}

void FakeHostDevice::AddMsix(std::uint16_t vectors, std::uint8_t bar, std::uint32_t table,
                             std::uint32_t pba) {
  Put<std::uint8_t>(kMsix, pci::kCapMsix);
  Put<std::uint8_t>(kMsix + 1, config[kPower + 1]);
  Put<std::uint8_t>(kPower + 1, kMsix);
  Put<std::uint16_t>(kMsix + pci::kMsixControl, static_cast<std::uint16_t>(vectors - 1));
  Put<std::uint32_t>(kMsix + pci::kMsixTable, table | bar);
  Put<std::uint32_t>(kMsix + pci::kMsixPba, pba | bar);
  device.irqs[kMsixIrq] = {.count = vectors, .eventfd = true};
}

void FakeHostDevice::AddIntx() {
  Put<std::uint8_t>(pci::kInterruptPin, 1);
  device.irqs[kIntxIrq] = {.count = 1, .eventfd = true, .maskable = true, .automasked = true};
}

void FakeHostDevice::AddRom(std::size_t size, std::uint8_t first, std::uint8_t second) {
  device.regions[kRomRegion] = {.size = size, .readable = true, .writable = false, .areas = {}};
  memory[kRomRegion].resize(size);
  for (std::size_t i = 0; i < size; ++i) memory[kRomRegion][i] = static_cast<std::byte>(i * 7);
  memory[kRomRegion][0] = std::byte{first};
  memory[kRomRegion][1] = std::byte{second};
}

// --- calls ---

Result<void> FakeHostDevice::Enter(const Call& call) {
  {
    const MutexLock lock(mutex_);
    calls_.push_back(call);
  }
  if (fail) {
    if (const int error = fail(call); error != 0) return SysError("fake device", error);
  }
  if (on_call) on_call(call);
  return {};
}

std::vector<FakeHostDevice::Call> FakeHostDevice::TakeCalls() {
  const MutexLock lock(mutex_);
  return std::exchange(calls_, {});
}

bool FakeHostDevice::Decodes() const {
  const bool memory_on = (Get<std::uint16_t>(pci::kCommand) & 2) != 0;
  return memory_on && (Get<std::uint8_t>(kPower + pci::kPowerControl) & 3) == 0;
}

bool FakeHostDevice::decodes() const {
  const MutexLock lock(mutex_);
  return Decodes();
}

Result<void> FakeHostDevice::ReadRegion(std::uint32_t region, std::uint64_t offset,
                                        std::span<std::byte> data) {
  TRY(Enter({Op::kRead, region, offset, 0, data.size()}));
  const MutexLock lock(mutex_);
  const RegionInfo& info = device.regions[region];
  if (!info.readable || offset > info.size || data.size() > info.size - offset)
    return Err(Errc::kInvalidArgument, "fake read");
  if (region == kConfigRegion) {
    std::memcpy(data.data(), config.data() + offset, data.size());
    return {};
  }
  const bool io = region < pci::kBarCount && (Get<std::uint32_t>(pci::kBar0 + 4 * region) & 1) != 0;
  if (!io && !Decodes()) return SysError("fake read", EIO);
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = offset + i < memory[region].size() ? memory[region][offset + i] : std::byte{0};
  }
  return {};
}

Result<void> FakeHostDevice::WriteRegion(std::uint32_t region, std::uint64_t offset,
                                         std::span<const std::byte> data) {
  TRY(Enter({Op::kWrite, region, offset, Little(data), data.size()}));
  const MutexLock lock(mutex_);
  const RegionInfo& info = device.regions[region];
  if (!info.writable || offset > info.size || data.size() > info.size - offset)
    return Err(Errc::kInvalidArgument, "fake write");
  if (region == kConfigRegion) {
    WriteConfig(offset, data);
    return {};
  }
  const bool io = region < pci::kBarCount && (Get<std::uint32_t>(pci::kBar0 + 4 * region) & 1) != 0;
  if (!io && !Decodes()) return SysError("fake write", EIO);
  for (std::size_t i = 0; i < data.size() && offset + i < memory[region].size(); ++i)
    memory[region][offset + i] = data[i];
  return {};
}

// Enough of what the kernel and a device do: identity and BARs stay, status bits are cleared by
// writing 1, the reset bit resets.
void FakeHostDevice::WriteConfig(std::uint64_t offset, std::span<const std::byte> data) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    const std::size_t at = offset + i;
    const auto value = std::to_integer<std::uint8_t>(data[i]);
    if (at == pci::kStatus + 1) {
      config[at] &= static_cast<std::uint8_t>(~(value & (pci::kStatusErrorBits >> 8)));
    } else if (at >= pci::kHeaderEnd || at == pci::kCommand || at == pci::kCommand + 1) {
      config[at] = value;
    }
    if (at == kExpress + pci::kExpressDeviceControl + 1 && (value & 0x80) != 0) {
      ++function_resets;
      ResetRegisters();
    }
  }
}

void FakeHostDevice::ResetRegisters() {
  Put<std::uint16_t>(pci::kCommand, 0);
  Put<std::uint8_t>(kPower + pci::kPowerControl, 0);
  Put<std::uint16_t>(kExpress + pci::kExpressDeviceControl, 0x2810);
}

class FakeHostDevice::Pages final : public RegionMapping {
 public:
  Pages(FakeHostDevice& owner, std::vector<std::byte>& memory, const MapArea& area)
      : owner_(owner),
        pages_{
            .fd = -1, .offset = 0, .address = memory.data() + area.offset, .length = area.length} {
    ++owner_.mappings_;
  }
  ~Pages() override { --owner_.mappings_; }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  [[nodiscard]] const bus::HostPages& pages() const override { return pages_; }

 private:
  FakeHostDevice& owner_;
  bus::HostPages pages_;
};

Result<std::unique_ptr<RegionMapping>> FakeHostDevice::MapRegion(std::uint32_t region,
                                                                 const MapArea& area) {
  TRY(Enter({Op::kMap, region, area.offset, 0, area.length}));
  const bool inside = std::ranges::any_of(device.regions[region].areas, [&](const MapArea& whole) {
    return area.offset >= whole.offset && area.offset - whole.offset <= whole.length &&
           area.length <= whole.length - (area.offset - whole.offset);
  });
  if (!inside || area.offset % 4096 != 0 || area.length % 4096 != 0 || area.length == 0)
    return Err(Errc::kInvalidArgument, "fake map");
  // Large regions have no bytes behind them.
  if (area.offset > memory[region].size() || area.length > memory[region].size() - area.offset)
    return SysError("fake map", ENOMEM);
  return std::unique_ptr<RegionMapping>(std::make_unique<Pages>(*this, memory[region], area));
}

Result<void> FakeHostDevice::SetVectors(std::uint32_t irq, std::uint32_t start,
                                        std::span<const int> events) {
  const auto given = std::ranges::count_if(events, [](int fd) { return fd >= 0; });
  TRY(Enter({Op::kSetVectors, irq, start, static_cast<std::uint64_t>(given), events.size()}));
  const MutexLock lock(mutex_);
  const IrqInfo& info = device.irqs[irq];
  if (start > info.count || events.size() > info.count - start || events.empty() || !info.eventfd)
    return SysError("fake irq", EINVAL);
  const bool kind = irq <= kMsixIrq;
  if (kind && enabled_ != irq && enabled_ != kIrqCount) return SysError("fake irq", EINVAL);
  if (kind && enabled_ == irq && info.noresize && start + events.size() > fixed_[irq])
    return SysError("fake irq", EINVAL);
  if (kind && enabled_ != irq) {
    enabled_ = irq;
    fixed_[irq] = start + events.size();
    intx_masked_ = false;
  }
  std::vector<int>& list = events_[irq];
  if (list.size() < start + events.size()) list.resize(start + events.size(), -1);
  std::ranges::copy(events, list.begin() + start);
  return {};
}

Result<void> FakeHostDevice::DisableIrq(std::uint32_t irq) {
  TRY(Enter({Op::kDisable, irq, 0, 0, 0}));
  const MutexLock lock(mutex_);
  if (irq <= kMsixIrq) {
    if (enabled_ != irq) return SysError("fake irq", EINVAL);
    enabled_ = kIrqCount;
    unmask_event_ = -1;
  }
  events_[irq].clear();
  return {};
}

Result<void> FakeHostDevice::MaskIntx(bool masked) {
  TRY(Enter({Op::kMaskIntx, kIntxIrq, masked ? 1U : 0U, 0, 0}));
  const MutexLock lock(mutex_);
  if (enabled_ != kIntxIrq) return SysError("fake irq", EINVAL);
  intx_masked_ = masked;
  return {};
}

Result<void> FakeHostDevice::SetIntxUnmask(int unmask) {
  TRY(Enter({Op::kUnmaskEvent, kIntxIrq, 0, unmask >= 0 ? 1U : 0U, 0}));
  const MutexLock lock(mutex_);
  if (enabled_ != kIntxIrq) return SysError("fake irq", EINVAL);
  unmask_event_ = unmask;
  return {};
}

Result<void> FakeHostDevice::Reset() {
  if (!device.can_reset) return Err(Errc::kUnsupported, "fake reset");
  TRY(Enter({Op::kReset, 0, 0, 0, 0}));
  const MutexLock lock(mutex_);
  ++resets;
  ResetRegisters();
  return {};
}

// --- the device's side ---

bool FakeHostDevice::Fire(std::uint32_t irq, std::uint32_t vector) {
  const MutexLock lock(mutex_);
  if (irq == kIntxIrq) {
    // What the kernel's handler of the unmask event does.
    std::uint64_t count = 0;
    if (unmask_event_ >= 0 && read(unmask_event_, &count, sizeof(count)) == sizeof(count))
      intx_masked_ = false;
    if (intx_masked_) return false;
  }
  if (vector >= events_[irq].size() || events_[irq][vector] < 0) return false;
  if (irq == kIntxIrq) intx_masked_ = true;
  const std::uint64_t one = 1;
  return write(events_[irq][vector], &one, sizeof(one)) == sizeof(one);
}

int FakeHostDevice::Event(std::uint32_t irq, std::uint32_t vector) const {
  const MutexLock lock(mutex_);
  return vector < events_[irq].size() ? events_[irq][vector] : -1;
}

std::uint32_t FakeHostDevice::enabled() const {
  const MutexLock lock(mutex_);
  return enabled_;
}

std::size_t FakeHostDevice::allocated() const {
  const MutexLock lock(mutex_);
  return enabled_ == kIrqCount ? 0 : events_[enabled_].size();
}

bool FakeHostDevice::intx_masked() const {
  const MutexLock lock(mutex_);
  return intx_masked_;
}

}  // namespace postern::vfio
