#pragma once

// MsiCapability: a function's MSI capability: its registers in config space and a route for each of
// up to 32 vectors.
//
//   auto msi = TRY(MsiCapability::Create(platform.interrupts, {.vectors = 4}));
//   TRY(AddMsi(std::move(msi)));   // in a PciFunction
//   msi->vectors().Trigger(2);
//
// The vectors are an MsixTable the guest does not see: entry i has the capability's address, its
// data with the low bits replaced by i, and is masked by bit i of the mask register (where there is
// one) or because the guest enabled fewer. So routes, masks, pending bits and the observer behave
// as there. A guest that changes the number of vectors while MSI is enabled (PCI 3.0 6.8.1.3
// forbids it) disables and enables.
//
// Ownership: borrows the InterruptSource. Threads: as MsixTable. Source: PCI 3.0, 6.8.1.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "devices/pci/config_space.h"
#include "devices/pci/msix.h"
#include "src/base/counters.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::pci {

struct MsiState {
  std::uint32_t pending = 0;  // the rest is in config space
};

class MsiCapability {
 public:
  struct Options {
    std::uint16_t vectors = 1;  // 1, 2, 4 .. 32
    bool address64 = true;
    bool per_vector_masking = false;
  };

  [[nodiscard]] static Result<std::unique_ptr<MsiCapability>> Create(
      bus::InterruptSource& interrupts, const Options& options);

  // Bytes of the capability with its two-byte header.
  [[nodiscard]] std::uint32_t size() const { return Size(options_); }
  [[nodiscard]] static constexpr std::uint32_t Size(const Options& options) {
    return 0xa + (options.address64 ? 4 : 0) + (options.per_vector_masking ? 10 : 0);
  }
  // Writes values and masks of the registers at `at`, where the header is, and stays with them.
  void Place(ConfigSpace& config, std::uint32_t at);
  [[nodiscard]] std::uint32_t at() const { return at_; }

  // The guest may have written any of the registers.
  void Update(const ConfigSpace& config);
  // Brings the pending bits register up to date, before the guest reads it.
  void RefreshPending(ConfigSpace& config) const;
  void Reset();
  [[nodiscard]] MsiState Save() const;
  // kBadFormat for pending bits of vectors that are not enabled. `config` is restored already.
  [[nodiscard]] Result<void> Restore(const ConfigSpace& config, const MsiState& state);

  [[nodiscard]] bool enabled() const { return table_->enabled(); }
  // How many the guest enabled, at most what there are; 0 while disabled.
  [[nodiscard]] std::uint16_t enabled_vectors() const { return enabled() ? active_ : 0; }
  [[nodiscard]] MsixTable& vectors() { return *table_; }
  void ReportCounters(CounterSink& sink) const;

 private:
  MsiCapability(const Options& options, std::unique_ptr<MsixTable> table)
      : options_(options), table_(std::move(table)) {}
  [[nodiscard]] std::uint32_t DataAt() const { return at_ + (options_.address64 ? 0xc : 0x8); }
  [[nodiscard]] std::uint32_t MaskAt() const { return DataAt() + 4; }
  [[nodiscard]] std::uint32_t PendingAt() const { return DataAt() + 8; }
  [[nodiscard]] std::uint16_t Wanted(const ConfigSpace& config) const;
  void SetEntries(const ConfigSpace& config);

  const Options options_;
  const std::unique_ptr<MsixTable> table_;
  std::uint32_t at_ = 0;
  std::uint16_t active_ = 1;
  Counter changes_while_enabled_;
};

}  // namespace postern::pci
