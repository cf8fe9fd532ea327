#include "devices/pci/msi.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "src/base/log.h"

namespace postern::pci {

Result<std::unique_ptr<MsiCapability>> MsiCapability::Create(bus::InterruptSource& interrupts,
                                                             const Options& options) {
  if (options.vectors > kMsiMaxVectors || !std::has_single_bit(options.vectors))
    return Err(Errc::kInvalidArgument, "MSI vector count");
  auto table = TRY(MsixTable::Create(interrupts, options.vectors));
  return std::unique_ptr<MsiCapability>(new MsiCapability(options, std::move(table)));
  // The analyzer loses the table on its way through Result.
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)

void MsiCapability::Place(ConfigSpace& config, std::uint32_t at) {
  at_ = at;
  MSI_CONTROL control;
  control.Set<MSI_CONTROL::PerVectorMasking>(options_.per_vector_masking);
  control.Set<MSI_CONTROL::Address64>(options_.address64);
  control.Set<MSI_CONTROL::CapableVectors>(
      static_cast<std::uint16_t>(std::countr_zero(options_.vectors)));
  MSI_CONTROL writable;
  writable.Set<MSI_CONTROL::EnabledVectors>(7);
  writable.Set<MSI_CONTROL::Enable>(true);
  config.Set<std::uint16_t>(at + kMsiControl, control.raw);
  config.Allow<std::uint16_t>(at + kMsiControl, writable.raw);
  config.Set<std::uint32_t>(at + kMsiAddressLow, 0);
  config.Allow<std::uint32_t>(at + kMsiAddressLow, kMsixAddressLowMask);
  if (options_.address64) {
    config.Set<std::uint32_t>(at + kMsiAddressLow + 4, 0);
    config.Allow<std::uint32_t>(at + kMsiAddressLow + 4, 0xffffffff);
  }
  config.Set<std::uint16_t>(DataAt(), 0);
  config.Allow<std::uint16_t>(DataAt(), 0xffff);
  if (!options_.per_vector_masking) return;
  const auto all = static_cast<std::uint32_t>((std::uint64_t{1} << options_.vectors) - 1);
  config.Set<std::uint16_t>(DataAt() + 2, 0);
  config.Allow<std::uint16_t>(DataAt() + 2, 0);
  config.Set<std::uint32_t>(MaskAt(), 0);
  config.Allow<std::uint32_t>(MaskAt(), all);
  config.Set<std::uint32_t>(PendingAt(), 0);
  config.Allow<std::uint32_t>(PendingAt(), 0);
}

// PCI 3.0 6.8.1.3: encodings above 32 are reserved, and more than the function asked for is not
// given: both count as all there are.
std::uint16_t MsiCapability::Wanted(const ConfigSpace& config) const {
  const MSI_CONTROL control{{config.Get<std::uint16_t>(at_ + kMsiControl)}};
  const unsigned log2 = std::min<unsigned>(control.Get<MSI_CONTROL::EnabledVectors>(), 5);
  return std::min(options_.vectors, static_cast<std::uint16_t>(1U << log2));
}

void MsiCapability::SetEntries(const ConfigSpace& config) {
  MsixTableEntry entry;
  entry.msg_addr_lo = config.Get<std::uint32_t>(at_ + kMsiAddressLow);
  if (options_.address64) entry.msg_addr_hi = config.Get<std::uint32_t>(at_ + kMsiAddressLow + 4);
  const std::uint32_t data = config.Get<std::uint16_t>(DataAt());
  const std::uint32_t masks = options_.per_vector_masking ? config.Get<std::uint32_t>(MaskAt()) : 0;
  for (std::uint16_t i = 0; i < options_.vectors; ++i) {
    const bool masked = i >= active_ || (masks >> i & 1) != 0;
    // 6.8.1.6: the function modifies the low bits its vectors need, and no others.
    const std::uint32_t low = active_ - 1U;
    entry.msg_data = (data & ~low) | (i & low);
    entry.vector_ctl = masked ? MSIX_VECTOR_CONTROL::Mask::kMask : 0;
    table_->SetEntry(i, entry);
  }
}

void MsiCapability::Update(const ConfigSpace& config) {
  const MSI_CONTROL control{{config.Get<std::uint16_t>(at_ + kMsiControl)}};
  const bool enable = control.Get<MSI_CONTROL::Enable>();
  const std::uint16_t wanted = Wanted(config);
  if (!enable || (enabled() && wanted != active_)) {
    if (enable) {
      changes_while_enabled_.Add();
      GUEST_LOG("pci", "MSI: {} vectors instead of {} while enabled", wanted, active_);
    }
    table_->SetControl(false, false);
  }
  active_ = wanted;
  SetEntries(config);
  table_->SetControl(enable, false);
}

void MsiCapability::RefreshPending(ConfigSpace& config) const {
  if (!options_.per_vector_masking) return;
  config.Update<std::uint32_t>(PendingAt(), static_cast<std::uint32_t>(table_->PendingWord(0)));
}

void MsiCapability::Reset() {
  table_->Reset();
  active_ = 1;
}

MsiState MsiCapability::Save() const {
  return {static_cast<std::uint32_t>(table_->PendingWord(0))};
}

Result<void> MsiCapability::Restore(const ConfigSpace& config, const MsiState& state) {
  const MSI_CONTROL control{{config.Get<std::uint16_t>(at_ + kMsiControl)}};
  const std::uint64_t valid =
      control.Get<MSI_CONTROL::Enable>() ? (std::uint64_t{1} << Wanted(config)) - 1 : 0;
  if ((state.pending & ~valid) != 0) return Err(Errc::kBadFormat, "MSI state pending bits");
  Reset();
  Update(config);
  for (std::uint16_t i = 0; i < options_.vectors; ++i) {
    if ((state.pending >> i & 1) != 0) table_->Trigger(i);
  }
  return {};
}

void MsiCapability::ReportCounters(CounterSink& sink) const {
  sink.Add("msi_changes_while_enabled", changes_while_enabled_.Get());
}

}  // namespace postern::pci
