#pragma once

// ConfigSpace: the 4 KiB configuration space of one PCI Express function (type 0 header), as
// values with masks: every bit is read-only, writable, or cleared by writing 1.
//
//   ConfigSpace config({.vendor = 0x1af4, .device = 0x1041, .class_code = 0x020000});
//   std::uint32_t at = TRY(config.AddCapability(kCapVendor, body, writable));
//   config.Write(kCommand, bytes);                           // the guest: masked
//   COMMAND command{{config.Get<std::uint16_t>(kCommand)}};  // the device
//
// Is not: what a write means. PciFunction reacts to COMMAND, the BARs and MSI-X control by
// looking at the values afterwards, so a side effect never depends on the width or offset the
// guest chose. A function whose registers live elsewhere (an assigned device) overlays reads and
// writes in PciFunction's hooks.
//
// Threads: not synchronised; the function's lock. Source: PCI Local Bus 3.0 chapter 6, PCI
// Express Base 3.0 chapter 7.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "devices/pci/pci_regs.h"
#include "src/base/result.h"

namespace postern::pci {

struct Identity {
  std::uint16_t vendor = 0;
  std::uint16_t device = 0;
  std::uint8_t revision = 0;
  std::uint32_t class_code = 0;  // 24 bits: class, subclass, programming interface
  std::uint16_t subsystem_vendor = 0;
  std::uint16_t subsystem = 0;
};

// Saved state: the registers as little-endian dwords, 64 of them, or 1024 for a function with
// extended capabilities.
struct ConfigState {
  std::vector<std::uint32_t> registers;
};

// A whole space as bytes: values after reset, the bits the guest may write, and those it clears by
// writing 1 (disjoint). All 256 or all 4096 long.
struct ConfigImage {
  std::vector<std::uint8_t> values;
  std::vector<std::uint8_t> writable;
  std::vector<std::uint8_t> write_one_to_clear;
};

class ConfigSpace {
 public:
  explicit ConfigSpace(const Identity& identity);

  // Becomes a copy of another function's space, capabilities included: none can be added any more.
  void Load(ConfigImage image);

  // --- the guest's side ---
  // 1, 2 or 4 bytes within one aligned dword, or an aligned 8 bytes (as two dwords). False for any
  // other access: it reads as all ones and writes nothing.
  [[nodiscard]] bool Read(std::uint32_t offset, std::span<std::byte> data) const;
  bool Write(std::uint32_t offset, std::span<const std::byte> data);
  [[nodiscard]] static bool Accepts(std::uint32_t offset, std::size_t width);

  // --- the device's side: offsets are our own and inside the space (CHECK) ---
  template <std::unsigned_integral U>
  [[nodiscard]] U Get(std::uint32_t offset) const {
    return static_cast<U>(Load(offset, sizeof(U)));
  }
  // The value the register has after reset, and has now.
  template <std::unsigned_integral U>
  void Set(std::uint32_t offset, U value) {
    Store(offset, sizeof(U), value, true);
  }
  // The value now; a reset brings back the old.
  template <std::unsigned_integral U>
  void Update(std::uint32_t offset, U value) {
    Store(offset, sizeof(U), value, false);
  }
  // Which bits the guest may write, and which it clears by writing 1. Disjoint.
  template <std::unsigned_integral U>
  void Allow(std::uint32_t offset, U writable, U write_one_to_clear = 0) {
    SetMasks(offset, sizeof(U), writable, write_one_to_clear);
  }
  // Adds writable bits to those there are.
  template <std::unsigned_integral U>
  void AllowAlso(std::uint32_t offset, U writable) {
    AddWritable(offset, sizeof(U), writable);
  }

  // Appends a capability to the chain at 0x34, dword aligned, and answers its offset. `body` is
  // what follows the ID and next bytes; `writable` says which of its bits the guest may write and
  // is as long or empty. kExhausted when it does not fit below 0x100.
  [[nodiscard]] Result<std::uint8_t> AddCapability(std::uint8_t id,
                                                   std::span<const std::uint8_t> body,
                                                   std::span<const std::uint8_t> writable = {});
  // The same for the extended chain, which starts at 0x100; `body` follows the 4-byte header.
  [[nodiscard]] Result<std::uint16_t> AddExtendedCapability(
      std::uint16_t id, std::uint8_t version, std::span<const std::uint8_t> body,
      std::span<const std::uint8_t> writable = {});

  // Every register to its value after reset.
  void Reset() { values_ = reset_; }
  [[nodiscard]] ConfigState Save() const;
  // kBadFormat, and nothing changed, when the size differs or a bit the guest cannot write differs
  // from this function's.
  [[nodiscard]] Result<void> Restore(const ConfigState& state);

 private:
  [[nodiscard]] std::uint64_t Load(std::uint32_t offset, std::size_t width) const;
  void Store(std::uint32_t offset, std::size_t width, std::uint64_t value, bool also_reset);
  void SetMasks(std::uint32_t offset, std::size_t width, std::uint64_t writable, std::uint64_t w1c);
  void AddWritable(std::uint32_t offset, std::size_t width, std::uint64_t writable);
  void Grow();

  // 256 bytes each until an extended capability is added, then 4096: most functions have none.
  std::vector<std::uint8_t> values_, reset_, writable_, w1c_;
  std::uint32_t last_capability_ = 0;  // offset of the last link of each chain; 0: none yet
  std::uint32_t next_capability_ = kHeaderEnd;
  std::uint32_t last_extended_ = 0;
  std::uint32_t next_extended_ = kConventionalEnd;
};

}  // namespace postern::pci
