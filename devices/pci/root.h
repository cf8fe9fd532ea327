#pragma once

// PciRoot: a PCI Express host bridge with one bus of 32 slots, some of which may be root ports with
// a bus of one slot behind them, reached by ECAM.
//
//   auto root = TRY(PciRoot::Create({.ecam = Gpa(0xe0000000), .windows = windows, .buses = 2},
//                                   mmio, &ports, platform));
//   Bdf where = TRY(root->Add(*disk));
//   TRY(root->Add(*port));         // a RootPort
//   TRY(root->AssignAddresses());  // before boot: the duty of firmware
//   TRY(port->Plug(*other));       // while the guest runs
//
// Slot 0 holds the bridge's own function. Functions 1..7, empty slots and buses that no port has
// read as all ones. ECAM is claimed on the MMIO bus for `buses` buses (1 MiB each). A bus number is
// that of the first port (in slot order) whose secondary bus register has it; bus 0 is always the
// host bridge's own. The bridge carries ID 1b36:0008 (the generic PCIe host bridge of QEMU's
// pci-ids document): guests go by its class, none has a driver that binds to the ID.
//
// Ownership: borrows functions and ports; each is removed before it is destroyed. Threads: any; one
// lock, taken before a function's. No two functions' locks are held together.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "devices/pci/bar_space.h"
#include "devices/pci/bdf.h"
#include "devices/pci/function.h"
#include "devices/pci/root_port.h"
#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/bus.h"
#include "src/bus/mmio_handler.h"
#include "src/bus/platform.h"
#include "src/memory/gpa.h"

namespace postern::pci {

struct RootConfig {
  memory::Gpa ecam;  // 1 MiB aligned
  Windows windows;
  std::uint32_t buses = 1;  // 1..256: how far ECAM reaches; one for each root port beside bus 0
  // The wired interrupts of the host bridge, if there are any: pin p (0 is INTA#) of slot s is
  // wired to input (s + p) % 4 of these; a root port passes on pin p of what is behind it as its
  // own (PCI Express 3.0 2.2.8.1: device 0 is not rotated).
  std::optional<IntxInputs> intx = std::nullopt;
};

// One line of a listing per BAR tile.
struct TileInfo {
  std::uint64_t offset;
  std::uint64_t length;
  bool trapped;  // else mapped pages
  std::string name;
};
struct BarInfo {
  std::size_t index;
  BarKind kind;
  std::uint64_t address;  // as the register says
  std::uint64_t size;
  bool mapped;
  std::vector<TileInfo> tiles;
};
struct FunctionInfo {
  Bdf bdf;
  std::string name;
  std::uint16_t vendor;
  std::uint16_t device;
  std::uint32_t class_code;
  std::vector<BarInfo> bars;
};
// "00:01.0 1af4:1042 disk0", then a line per BAR and tile.
[[nodiscard]] std::string Describe(const FunctionInfo& function);

class PciRoot final : private bus::MmioHandler {
 public:
  static constexpr std::uint64_t kEcamBusSize = 1 << 20;
  static constexpr std::size_t kSlots = 32;

  // kInvalidArgument: misaligned ECAM, a bus count out of range, a window that wraps, a 32-bit
  // window that reaches 4 GiB;
  // kOverlap: ECAM's range is taken.
  [[nodiscard]] static Result<std::unique_ptr<PciRoot>> Create(const RootConfig& config,
                                                               bus::Bus& memory, bus::Bus* ports,
                                                               const bus::Platform& platform);
  ~PciRoot() override;

  // The lowest free slot if none is given. kExhausted, kOverlap (slot taken), kInvalidArgument
  // (slot 0 or above 31).
  [[nodiscard]] Result<Bdf> Add(PciFunction& function,
                                std::optional<std::uint8_t> slot = std::nullopt);
  // A port, before boot: it gets the next bus number. kExhausted, too, when ECAM has no bus left.
  [[nodiscard]] Result<Bdf> Add(RootPort& port, std::optional<std::uint8_t> slot = std::nullopt);
  // Into the slot behind a port, whose guest is told (RootPort::Plug does this). kOverlap when it
  // is occupied, kNotFound when the port is not here.
  [[nodiscard]] Result<Bdf> Add(PciFunction& function, RootPort& behind);
  // Unmaps the function's BARs; afterwards no access to it is in progress: it may be destroyed.
  // Waits for vCPUs inside their handlers, so not from one. kNotFound; kBadState for a port that is
  // occupied.
  Result<void> Remove(PciFunction& function);

  // What is plugged into the port, or null.
  [[nodiscard]] PciFunction* Behind(const RootPort& port);

  // Gives every memory BAR of bus 0 whose register is 0 a place in the windows, largest first, at
  // least page aligned; 64-bit BARs above 4 GiB if there is a window, else and on lack of room
  // below. I/O BARs likewise; those without room stay at 0, undecoded, which is counted and logged;
  // ports get their windows.
  // Enables nothing. kExhausted names no BAR: none was placed. Functions behind ports are placed by
  // the guest.
  [[nodiscard]] Result<void> AssignAddresses();

  [[nodiscard]] std::vector<FunctionInfo> Functions();
  [[nodiscard]] const RootConfig& config() const { return config_; }
  void ReportCounters(CounterSink& sink) const;

 private:
  PciRoot(const RootConfig& config, bus::Bus& memory, bus::Bus* ports,
          const bus::Platform& platform);
  void Read(std::uint64_t offset, std::span<std::byte> data) override;
  void Write(std::uint64_t offset, std::span<const std::byte> data) override;
  [[nodiscard]] PciFunction* At(std::uint64_t offset) const;
  [[nodiscard]] Result<Bdf> Insert(PciFunction& function, std::optional<std::uint8_t> slot)
      REQUIRES(lock_);
  [[nodiscard]] std::optional<IntxInputs> InputsOf(std::size_t slot) const;
  [[nodiscard]] std::optional<std::size_t> SlotOf(const RootPort& port) const;
  void ResetBehind(std::size_t slot);

  const RootConfig config_;
  BarSpace space_;
  Mutex lock_;
  std::unique_ptr<PciFunction> bridge_;
  // By slot; lock_, which the bus holds during Read and Write.
  std::array<PciFunction*, kSlots> slots_{};
  std::array<RootPort*, kSlots> ports_{};      // the same object as in slots_
  std::array<PciFunction*, kSlots> behind_{};  // what is plugged into that port
  std::uint32_t next_bus_ = 1;
  bus::Registration ecam_;
  Counter absent_;
};

}  // namespace postern::pci
