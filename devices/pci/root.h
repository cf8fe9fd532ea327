#pragma once

// PciRoot: a PCI Express host bridge with one bus of 32 slots, reached by ECAM.
//
//   auto root = TRY(PciRoot::Create({.ecam = Gpa(0xe0000000), .windows = windows}, mmio, &ports,
//                                   platform));
//   Bdf where = TRY(root->Add(*disk));
//   TRY(root->AssignAddresses());  // before boot: the duty of firmware
//
// Slot 0 holds the bridge's own function. There is no bus but 0; functions 1..7 and empty slots
// read as all ones. ECAM is claimed on the MMIO bus for bus 0 alone (1 MiB). The bridge carries
// ID 1b36:0008 (the generic PCIe host bridge of QEMU's pci-ids document): guests go by its class,
// none has a driver that binds to the ID.
//
// Ownership: borrows the functions; each is removed before it is destroyed. Threads: any; one
// lock, taken before a function's.

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
  static constexpr std::uint64_t kEcamSize = 1 << 20;
  static constexpr std::size_t kSlots = 32;

  // kInvalidArgument: misaligned ECAM, a window that wraps, a 32-bit window that reaches 4 GiB;
  // kOverlap: ECAM's range is taken.
  [[nodiscard]] static Result<std::unique_ptr<PciRoot>> Create(const RootConfig& config,
                                                               bus::Bus& memory, bus::Bus* ports,
                                                               const bus::Platform& platform);
  ~PciRoot() override;

  // The lowest free slot if none is given. kExhausted, kOverlap (slot taken), kInvalidArgument
  // (slot 0 or above 31).
  [[nodiscard]] Result<Bdf> Add(PciFunction& function,
                                std::optional<std::uint8_t> slot = std::nullopt);
  // Unmaps the function's BARs; afterwards no access to it is in progress: it may be destroyed.
  // Waits for vCPUs inside their handlers, so not from one. kNotFound.
  Result<void> Remove(PciFunction& function);

  // Gives every memory BAR whose register is 0 a place in the windows, largest first, at least page
  // aligned; 64-bit BARs above 4 GiB if there is a window, else and on lack of room below. I/O BARs
  // likewise; those without room stay at 0, undecoded. Enables nothing. kExhausted names no BAR:
  // none was placed.
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

  const RootConfig config_;
  BarSpace space_;
  Mutex lock_;
  std::unique_ptr<PciFunction> bridge_;
  std::array<PciFunction*, kSlots> slots_{};  // lock_, which the bus holds during Read and Write
  bus::Registration ecam_;
  Counter absent_;
};

}  // namespace postern::pci
