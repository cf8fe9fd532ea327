#pragma once

// VfioFunction: a PCI function of the guest whose registers, memory and interrupts are those of a
// HostDevice.
//
//   auto function = TRY(VfioFunction::Create(std::move(device), platform, loop,
//                                            {.id = "gpu0"}, [&] { machine.Unplug("gpu0"); }));
//   Bdf where = TRY(root.Add(*function));
//
// Is not: DMA. Guest memory is mapped into device.address_space() by whoever opened the device;
// only what other devices reach of its BARs (Options::peers) is told from here.
//
// What the guest reads is the device's, except for the bits ConfigPlan emulates. COMMAND is kept
// here and passed on: memory decoding off: BARs are unmapped, then the device is told; on: the
// device is told, then they are mapped. In a power state other than D0 nothing is mapped.
//
// Loss: when a call fails with ENODEV, or the device signals an error, the function is lost: it
// reads as all ones, drops writes, maps nothing and signals nothing; the rest of the machine goes
// on. A reset by the machine takes an erroneous device back if the device can reset; one that
// vanished stays lost.
//
// Ownership: owns the device; borrows platform and loop; removed from its root before it is
// destroyed, from any thread but one that holds its lock. Threads: the function's lock; events
// arrive on the loop's thread. `on_request` runs there, once, without the lock, and does not
// destroy the function. Source: Linux Documentation/driver-api/vfio.rst; PCI 3.0 chapter 6; PCI
// Express Base 3.0 6.6.2 (FLR).

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/function.h"
#include "iommu/peer_memory.h"
#include "src/base/counters.h"
#include "src/base/event_fd.h"
#include "src/base/event_loop.h"
#include "src/base/failure.h"
#include "src/base/mmap.h"
#include "src/base/result.h"
#include "src/bus/platform.h"
#include "vfio/bar_plan.h"
#include "vfio/config_plan.h"
#include "vfio/host_device.h"
#include "vfio/interrupts.h"
#include "vfio/region_tile.h"

namespace postern::vfio {

// What is emulated; the state inside the device is not in it.
struct VfioFunctionState {
  std::uint32_t version = 1;
  pci::FunctionState function;
};

class VfioFunction final : public pci::PciFunction, private RegionOwner {
 public:
  struct Options {
    std::string id;        // empty: the device's name
    bool rom_bar = false;  // offer the device's option ROM
    bool intx = true;
    std::optional<std::uint32_t> intx_gsi = std::nullopt;  // none: no INTx, the pin register is 0
    // Who shares its BARs with the machine's other devices, and theirs with it; null: nobody.
    iommu::PeerMemory* peers = nullptr;
    std::vector<unsigned> trap_bars;
  };

  // The device is reset if it can be. kConfig: a bridge, a trap_bars index; kHost: the rest.
  [[nodiscard]] static Outcome<std::unique_ptr<VfioFunction>> Create(
      std::unique_ptr<HostDevice> device, const bus::Platform& platform, EventLoop& loop,
      Options options, std::function<void()> on_request);
  ~VfioFunction() override;

  [[nodiscard]] HostDevice& device() { return *device_; }
  [[nodiscard]] bool lost() const { return lost_.load(std::memory_order_relaxed); }
  [[nodiscard]] Interrupts& interrupts() { return *interrupts_; }

  [[nodiscard]] VfioFunctionState Save() REQUIRES(lock());
  // Resets, then brings registers and interrupts of the device in line with the state. kBadFormat,
  // and the function is as after reset; kBadState: it is lost.
  [[nodiscard]] Result<void> Restore(const VfioFunctionState& state) REQUIRES(lock());
  void ReportCounters(CounterSink& sink) const override;

 private:
  struct Parts {
    std::unique_ptr<HostDevice> device;
    BarShapes shapes;
    ConfigPlan plan;
  };
  enum class Loss : std::uint8_t { kNone, kError, kVanished };

  class Signal final : public EventHandler {
   public:
    Signal(EventFd event, std::function<void()> function)
        : event_(std::move(event)), function_(std::move(function)) {}
    void OnEvent(int fd, std::uint32_t events) override;
    [[nodiscard]] const EventFd& event() const { return event_; }

   private:
    EventFd event_;
    std::function<void()> function_;
  };

  // The guest's end of a wired interrupt, where the device cannot be told by the kernel.
  class EndOfIntx final : public EventHandler {
   public:
    explicit EndOfIntx(VfioFunction& owner) : owner_(owner) {}
    void OnEvent(int fd, std::uint32_t events) override;

   private:
    VfioFunction& owner_;
  };

  VfioFunction(Parts parts, const bus::Platform& platform, EventLoop& loop, Options options,
               std::function<void()> on_request);

  // --- set-up (function_setup.cc) ---
  [[nodiscard]] static Outcome<Parts> Examine(std::unique_ptr<HostDevice> device,
                                              const Options& options);
  [[nodiscard]] Result<void> Init(bus::InterruptSource& interrupts) EXCLUDES(lock());
  [[nodiscard]] Result<void> AddParts(bus::InterruptSource& interrupts) REQUIRES(lock());
  [[nodiscard]] Result<void> AddBars(bus::InterruptSource& interrupts);
  [[nodiscard]] Result<void> AddTiledBar(const BarShape& shape, pci::MsixTable* table);
  [[nodiscard]] pci::Tile TileOf(const BarShape& shape, const Piece& piece, pci::MsixTable* table);
  [[nodiscard]] std::optional<pci::Tile> MapPiece(const BarShape& shape, const Piece& piece);
  void AddRomIfAny();
  [[nodiscard]] Result<void> ReadRom(std::span<std::byte> to);
  // Without the lock: the loop's thread may be waiting for it in a handler of an earlier one.
  [[nodiscard]] Result<void> WatchSignals();
  [[nodiscard]] Result<void> Watch(std::unique_ptr<Signal>& slot, std::uint32_t irq,
                                   std::function<void()> function);

  // --- hooks ---
  void OnConfigRead(std::uint32_t offset, std::span<std::byte> data) override;
  void OnConfigWrite(std::uint32_t offset, std::span<const std::byte> data) override
      REQUIRES(lock());
  void OnConfigWritten(std::uint32_t offset, std::span<const std::byte> data) override;
  void OnMemoryDecode(bool on) override;
  void OnBarMapped(std::size_t index) override;
  void OnBarUnmapping(std::size_t index) override;
  void OnResetBegin() override;
  void OnReset() override;
  void OnResetDone() override;

  // --- RegionOwner ---
  [[nodiscard]] bool Reachable() override { return !lost(); }
  [[nodiscard]] HostDevice& Device() override { return *device_; }
  void OnRegionError(const Error& error) override;

  // --- the device ---
  [[nodiscard]] Result<void> ReadDevice(std::uint32_t offset, std::span<std::byte> data);
  [[nodiscard]] Result<void> WriteDevice(std::uint32_t offset, std::span<const std::byte> data);
  // The bytes of a write the device is to have; `reset`: the function-level reset bit too.
  [[nodiscard]] Result<void> Forward(std::uint32_t offset, std::span<const std::byte> data,
                                     bool reset);
  [[nodiscard]] bool AsksForReset(std::uint32_t offset, std::span<const std::byte> data) const;
  void FunctionLevelReset(std::uint32_t offset, std::span<const std::byte> data) REQUIRES(lock());
  [[nodiscard]] Result<void> PushCommand();
  void PushControl(std::uint32_t at, std::uint32_t offset, std::size_t width);
  void BeforePowerWrite(std::uint32_t offset, std::span<const std::byte> data);
  void AfterPowerWrite(std::uint32_t offset, std::size_t width);
  void LeaveLowPower();
  [[nodiscard]] Result<void> ResetDevice();
  void Note(const Error& error, const char* what);
  void Lose(Loss loss);
  void OnLost();

  std::unique_ptr<HostDevice> device_;
  EventLoop& loop_;
  const Options options_;
  const BarShapes shapes_;
  const ConfigPlan plan_;
  std::function<void()> on_request_;

  std::vector<std::unique_ptr<RegionTile>> tiles_;
  std::vector<std::unique_ptr<RegionMapping>> mappings_;
  Mmap rom_;
  std::unique_ptr<Interrupts> interrupts_;
  EndOfIntx end_of_intx_{*this};
  std::unique_ptr<Signal> error_signal_, request_signal_, loss_signal_;

  // After device_: its address space is left before the device is closed.
  std::unique_ptr<iommu::PeerMemory::Member> peer_;
  std::optional<std::uint16_t> command_;  // what the device was told last
  std::uint8_t power_state_ = 0;          // D0..D3 as the device says
  struct ResetWrite {
    std::uint32_t offset = 0;
    std::array<std::byte, 8> data{};
    std::size_t width = 0;
  };
  std::optional<ResetWrite> reset_write_;  // the guest's write that asks for a reset, during it
  std::atomic<bool> lost_{false};          // written with the lock
  Loss loss_ = Loss::kNone;
  bool revive_ = false;

  std::array<RegionCounters, pci::kBarCount> bar_counters_;
  Counter config_reads_, config_writes_, device_errors_, resets_, reset_failures_, aer_events_,
      requests_, losses_, unmappable_pieces_, rom_refused_;
};

}  // namespace postern::vfio
