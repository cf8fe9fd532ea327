// PCI by ECAM: enumeration, BARs, capabilities, MSI-X.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/probe/text.h"

namespace postern::probe {

inline constexpr uint16_t kPciCommand = 0x04;
inline constexpr uint16_t kPciCommandMemory = 0x2;
inline constexpr uint16_t kPciCommandMaster = 0x4;
inline constexpr uint16_t kPciCommandNoIntx = 0x400;
inline constexpr uint8_t kCapabilityVendor = 0x09;
inline constexpr uint8_t kCapabilityMsix = 0x11;

struct PciBar {
  uint64_t address;
  uint64_t size;  // 0: not implemented
  bool is_port;
  bool is_64;
};

struct PciFunction {
  uint16_t bdf;     // bus 15:8, device 7:3, function 2:0
  uint64_t config;  // this function's page of the ECAM window
  uint16_t vendor;
  uint16_t device;
  uint32_t class_code;
  uint8_t header_type;
  PciBar bars[6];
  uint8_t msix;  // offset of the MSI-X capability, 0: none
};

// Scans every bus behind the ECAM window, sizes all BARs (with decoding off, as PCI 3.0 6.2.5.1
// asks), leaves addresses as they were.
void InitPci();
size_t PciFunctionCount();
PciFunction& PciFunctionAt(size_t index);

void AddBdf(Line& line, uint16_t bdf);  // "0000:00:03.0"

// The next capability of this kind after `after` (0: the first); 0 if there is none. Loops end.
uint8_t FindCapability(const PciFunction& function, uint8_t id, uint8_t after = 0);

void EnablePci(const PciFunction& function);
// Reads BAR `index` from config space again, for after it was moved.
uint64_t BarAddress(const PciFunction& function, unsigned index);
void SetBarAddress(PciFunction& function, unsigned index, uint64_t address);

// The MSI-X table of one function. Vectors are masked until Set.
class Msix {
 public:
  // False if the function has no MSI-X or its table lies outside its BARs.
  bool Open(const PciFunction& function);
  [[nodiscard]] unsigned size() const { return size_; }
  void Set(unsigned entry, uint8_t vector);  // program and unmask
  void Mask(unsigned entry, bool masked);
  [[nodiscard]] bool Pending(unsigned entry) const;
  void MaskAll(bool masked);  // the function mask
  void Close();               // turns MSI-X off

  [[nodiscard]] uint64_t table() const { return table_; }
  [[nodiscard]] uint64_t pba() const { return pba_; }

 private:
  void SetControl(uint16_t value) const;
  uint64_t control_ = 0;
  uint64_t table_ = 0;
  uint64_t pba_ = 0;
  unsigned size_ = 0;
};

}  // namespace postern::probe
