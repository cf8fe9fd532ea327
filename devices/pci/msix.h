#pragma once

// MsixTable: a function's MSI-X vectors: the table and the pending bit array as the guest sees
// them, and a route per vector.
//
//   auto msix = TRY(MsixTable::Create(platform.interrupts, 3));
//   ... Trapped{0x3000, 0x1000, &msix->table(), "msix-table"},
//       Trapped{0x4000, 0x1000, &msix->pba(), "msix-pba"} ...
//   msix->Trigger(2);
//
// A route is asked for when its vector is first unmasked, so unused vectors cost nothing. While a
// vector is masked its triggers collect (in the route's eventfd, or in a bit before there is
// one): they show in the PBA and are delivered once when it is unmasked. Triggers while MSI-X is
// disabled are dropped, and disabling drops what is pending.
//
// Ownership: borrows the InterruptSource. Threads: Trigger and enabled from any thread, without
// the function's lock; all else with it. Source: PCI 3.0, 6.8.2 and 6.8.3. State names are
// cloud-hypervisor's MsixConfigState.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "devices/pci/pci_regs.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"

namespace postern::pci {

struct MsixTableEntry {
  std::uint32_t msg_addr_lo = 0;
  std::uint32_t msg_addr_hi = 0;
  std::uint32_t msg_data = 0;
  std::uint32_t vector_ctl = 1;  // 6.8.2.9: masked after reset
};

struct MsixState {
  std::vector<MsixTableEntry> table_entries;
  std::vector<std::uint64_t> pba_entries;
  bool masked = false;
  bool enabled = false;
};

// What happens to vectors, for an owner whose signals come from elsewhere (an assigned device): it
// hands a vector's trigger to the source when the vector is first opened. Called with the
// function's lock; a call into the table is not allowed from here.
class MsixObserver {
 public:
  virtual ~MsixObserver() = default;
  // The vector is enabled and unmasked, its route in place: `trigger` delivers from now on, and
  // collects while the vector is masked. Again at each unmasking.
  virtual void OnVectorOpened(std::uint16_t vector, const EventFd& trigger) = 0;
  // After the unmasked vectors were opened; with all masked, too.
  virtual void OnEnabled() = 0;
  // After all routes were masked and before what is pending is dropped.
  virtual void OnDisabled() = 0;
};

class MsixTable {
 public:
  // 1..2048 vectors.
  [[nodiscard]] static Result<std::unique_ptr<MsixTable>> Create(bus::InterruptSource& interrupts,
                                                                 std::uint16_t vectors);
  ~MsixTable();
  MsixTable(const MsixTable&) = delete;
  MsixTable& operator=(const MsixTable&) = delete;

  [[nodiscard]] std::uint16_t size() const { return static_cast<std::uint16_t>(entries_.size()); }
  [[nodiscard]] static constexpr std::uint64_t TableBytes(std::uint16_t vectors) {
    return std::uint64_t{vectors} * kMsixEntrySize;
  }
  [[nodiscard]] static constexpr std::uint64_t PbaBytes(std::uint16_t vectors) {
    return (std::uint64_t{vectors} + 63) / 64 * 8;
  }
  // Dword and qword accesses, naturally aligned (6.8.2: others are undefined); others, and those
  // beyond the end, read 0 and are ignored.
  [[nodiscard]] bus::MmioHandler& table() { return table_handler_; }
  [[nodiscard]] bus::MmioHandler& pba() { return pba_handler_; }

  // The two guest-writable bits of message control.
  void SetControl(bool enabled, bool function_masked);
  [[nodiscard]] bool enabled() const { return enabled_.load(std::memory_order_acquire); }

  // Outlives the table, or is taken away (null) before it goes.
  void SetObserver(MsixObserver* observer) { observer_ = observer; }
  // An entry by other means than the table's registers (MSI, whose registers lie in config space);
  // reserved bits are dropped. `vector` is below size() (CHECK).
  void SetEntry(std::uint16_t vector, const MsixTableEntry& entry);
  [[nodiscard]] std::uint64_t PendingWord(std::size_t index) const { return PbaWord(index); }

  // Out-of-range vectors (virtio's NO_VECTOR) signal nothing.
  void Trigger(std::uint16_t vector);

  void Reset();
  [[nodiscard]] MsixState Save() const;
  // kBadFormat, and nothing changed, for another vector count or reserved bits set. A route the
  // platform refuses stays masked.
  [[nodiscard]] Result<void> Restore(const MsixState& state);
  void ReportCounters(CounterSink& sink) const;

 private:
  struct Vector {
    std::unique_ptr<bus::MsiRoute> route;  // function's lock
    std::atomic<const EventFd*> trigger{
        nullptr};          // of route, once there is one; never goes back to null
    bool pending = false;  // guarded by MsixTable::pending_mutex_; only while there is no route
    bool masked = true;    // what the route was told; function's lock
    bool has_message = false;
    bus::MsiMessage message;  // what the route was told last
  };
  class TableHandler final : public bus::MmioHandler {
   public:
    explicit TableHandler(MsixTable& owner) : owner_(owner) {}
    void Read(std::uint64_t offset, std::span<std::byte> data) override;
    void Write(std::uint64_t offset, std::span<const std::byte> data) override;

   private:
    MsixTable& owner_;
  };
  class PbaHandler final : public bus::MmioHandler {
   public:
    explicit PbaHandler(MsixTable& owner) : owner_(owner) {}
    void Read(std::uint64_t offset, std::span<std::byte> data) override;
    void Write(std::uint64_t offset, std::span<const std::byte> data) override;

   private:
    MsixTable& owner_;
  };

  MsixTable(bus::InterruptSource& interrupts, std::uint16_t vectors);
  [[nodiscard]] bool WantsMasked(std::size_t index) const;
  // Brings the route of one vector in line with table and control.
  void Apply(std::size_t index);
  [[nodiscard]] Result<void> Open(std::size_t index);
  [[nodiscard]] bool EnsureRoute(std::size_t index);
  void DropPending();
  [[nodiscard]] bool Pending(std::size_t index) const;
  [[nodiscard]] std::uint64_t PbaWord(std::size_t index) const;
  void SetDword(std::size_t index, std::uint32_t field, std::uint32_t value);
  [[nodiscard]] std::uint32_t GetDword(std::uint64_t offset) const;

  bus::InterruptSource& interrupts_;
  MsixObserver* observer_ = nullptr;  // function's lock
  std::vector<MsixTableEntry> entries_;
  std::unique_ptr<Vector[]> vectors_;
  std::atomic<bool> enabled_{false};
  bool function_masked_ = false;
  TableHandler table_handler_{*this};
  PbaHandler pba_handler_{*this};
  mutable Mutex pending_mutex_;
  Counter triggers_, refused_, route_errors_;
};

}  // namespace postern::pci
