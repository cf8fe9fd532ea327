#pragma once

// PciFunction: one PCI function: its config space, its BARs and ROM, its MSI and MSI-X, and the
// reactions every function has in common: BARs are decoded as COMMAND and their registers say,
// MSI and MSI-X follow message control.
//
//   class Vdev final : public pci::PciFunction {
//     Vdev() : PciFunction("vdev0", {...}) {}
//     Result<void> Init() {
//       TRY(AddBar(0, std::move(bar)));
//       return AddMsix(std::move(table), 0, 0x3000, 0x4000);
//     }
//   };
//   Bdf where = TRY(root.Add(*vdev));
//
// Moving: a BAR register written while decoding is on takes effect at once: the old range is
// unmapped, the new one mapped. A place that is taken, outside the windows, or 0 leaves the BAR
// unmapped until COMMAND or a BAR is written again; that is counted and logged.
//
// Ownership: the creator owns it and removes it from its root before destroying it (CHECK).
// Threads: one lock for all of it, also held while BAR handlers run; the root takes it for config
// accesses. Lock order: root, function, then leaves (bus, BarSpace, MsixTable, platform).

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/bar.h"
#include "devices/pci/bar_space.h"
#include "devices/pci/bdf.h"
#include "devices/pci/config_space.h"
#include "devices/pci/msi.h"
#include "devices/pci/msix.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"

namespace postern::pci {

// In which BAR, and where in it, table and pending bits are.
struct MsixPlace {
  std::uint8_t table_bar = 0;
  std::uint32_t table_offset = 0;
  std::uint8_t pba_bar = 0;
  std::uint32_t pba_offset = 0;
};

// Interrupt controller inputs (GSIs) to which the four INTx pins of a function are wired, INTA#
// first.
using IntxInputs = std::array<std::uint32_t, 4>;

struct FunctionState {
  ConfigState config;
  std::optional<MsixState> msix;
  std::optional<MsiState> msi;
};

class PciFunction {
 public:
  PciFunction(std::string name, const Identity& identity)
      : name_(std::move(name)), config_(identity) {}
  virtual ~PciFunction();
  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;

  [[nodiscard]] Mutex& lock() RETURN_CAPABILITY(lock_) { return lock_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] ConfigSpace& config() { return config_; }
  [[nodiscard]] const ConfigSpace& config() const { return config_; }
  // By register index; the upper half of a 64-bit BAR is empty; the ROM at kRomIndex.
  [[nodiscard]] std::span<const std::optional<Bar>> bars() const { return bars_; }
  [[nodiscard]] MsixTable* msix() { return msix_.get(); }
  [[nodiscard]] MsiCapability* msi() { return msi_.get(); }
  // What the BAR's register says, decoded or not; 0 for an empty index.
  [[nodiscard]] std::uint64_t BarAddress(std::size_t index) const;

  // --- by the root ---
  // From now on BARs are decoded in `space`.
  void Attach(BarSpace& space, Bdf where, std::optional<IntxInputs> intx = std::nullopt)
      REQUIRES(lock_);
  // Unmaps everything.
  void Detach() REQUIRES(lock_);
  // Before boot, as firmware would: the register after reset and now. `address` is aligned to the
  // BAR's size.
  void PlaceBar(std::size_t index, std::uint64_t address) REQUIRES(lock_);
  // Before boot: the host bridge has no I/O ports left for one of its BARs or windows.
  void NoteWithoutPorts() REQUIRES(lock_);
  void ReadConfig(std::uint32_t offset, std::span<std::byte> data) REQUIRES(lock_);
  void WriteConfig(std::uint32_t offset, std::span<const std::byte> data) REQUIRES(lock_);

  // Function reset: interrupts off, decoding off, registers as after power-on with BARs at 0 (as
  // placed, if the monitor placed them), vectors masked.
  void Reset() REQUIRES(lock_);
  [[nodiscard]] FunctionState SaveFunction() REQUIRES(lock_);
  // Refuses (kBadFormat) what SaveFunction of the same kind of function could not have given; BARs
  // are then decoded as the state says.
  [[nodiscard]] Result<void> RestoreFunction(const FunctionState& state) REQUIRES(lock_);
  virtual void ReportCounters(CounterSink& sink) const;

 protected:
  // Set-up, before the function is attached. kInvalidArgument: index taken, no room for the upper
  // half of a 64-bit BAR, tables outside the BAR.
  [[nodiscard]] Result<void> AddBar(std::size_t index, Bar bar);
  // The expansion ROM: a 32-bit memory range of 2 KiB to 16 MiB, decoded while its own enable bit
  // and memory decoding are on.
  [[nodiscard]] Result<void> AddRom(Bar rom);
  // `at`: where a loaded config space has the capability already; appended to the chain if 0.
  [[nodiscard]] Result<void> AddMsix(std::unique_ptr<MsixTable> table, const MsixPlace& place,
                                     std::uint32_t at = 0);
  [[nodiscard]] Result<void> AddMsix(std::unique_ptr<MsixTable> table, std::uint8_t bar,
                                     std::uint32_t table_offset, std::uint32_t pba_offset) {
    return AddMsix(std::move(table), {bar, table_offset, bar, pba_offset});
  }
  [[nodiscard]] Result<void> AddMsi(std::unique_ptr<MsiCapability> msi, std::uint32_t at = 0);

  // Bar::TrapPages of bars()[bar]; kInvalidArgument where there is none. With the lock held.
  [[nodiscard]] Result<void> TrapBarPages(std::size_t bar, std::size_t index, const Trapped& tile);

  // While blocked nothing is decoded, whatever COMMAND says (a low-power state, a device that is
  // gone). With the lock held; not from a hook but OnConfigWrite, OnConfigWritten and OnReset*.
  void BlockDecoding(bool blocked);
  // From OnMemoryDecode(true) alone: the BARs stay unmapped until COMMAND or a BAR is written
  // again.
  void RefuseDecoding();

  // --- hooks, with the lock held; offset and width were accepted ---
  // `data` holds this space's value; the hook may replace bytes of it.
  virtual void OnConfigRead(std::uint32_t offset, std::span<std::byte> data) {
    (void)offset;
    (void)data;
  }
  // Before the space takes the bytes; and after it did and all common reactions ran.
  virtual void OnConfigWrite(std::uint32_t offset, std::span<const std::byte> data) {
    (void)offset;
    (void)data;
  }
  virtual void OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) {
    (void)offset;
    (void)data;
  }
  // The function is in a slot now (before any BAR is decoded); and is no longer (after all were
  // unmapped). `intx`: where its wired interrupts go, if the root has any.
  virtual void OnAttach(Bdf where, const std::optional<IntxInputs>& intx) {
    (void)where;
    (void)intx;
  }
  virtual void OnDetach() {}
  // Memory decoding goes on (called before the BARs are mapped) or off (after they were unmapped).
  virtual void OnMemoryDecode(bool on) { (void)on; }
  // A BAR was mapped; and is about to be unmapped.
  virtual void OnBarMapped(std::size_t index) { (void)index; }
  virtual void OnBarUnmapping(std::size_t index) { (void)index; }
  // Parts of Reset: before anything else; after interrupts and decoding went off; at the end, when
  // all registers have their values after reset.
  virtual void OnResetBegin() {}
  virtual void OnReset() {}
  virtual void OnResetDone() {}

 private:
  void UpdateDecoding();
  void Unmap(std::size_t index);
  void UpdateMsix();
  [[nodiscard]] Result<std::uint32_t> PlaceMsix(std::uint16_t vectors, std::uint32_t at);
  [[nodiscard]] bool Holds(std::uint8_t bar, std::uint32_t offset, std::uint64_t bytes) const;
  [[nodiscard]] std::optional<std::uint64_t> Wanted(std::size_t index) const;

  Mutex lock_;
  const std::string name_;
  ConfigSpace config_;
  std::array<std::optional<Bar>, kBarCount + 1> bars_;
  std::unique_ptr<MsixTable> msix_;
  std::unique_ptr<MsiCapability> msi_;
  std::uint32_t msix_capability_ = 0;
  BarSpace* space_ = nullptr;
  Bdf bdf_;
  bool decoding_ = false;
  bool blocked_ = false;
  bool decode_refused_ = false;
  Counter config_reads_, config_writes_, config_refused_, bar_maps_, bar_refusals_, without_ports_;
};

}  // namespace postern::pci
