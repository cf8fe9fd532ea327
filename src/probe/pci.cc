#include "src/probe/pci.h"

#include "src/probe/acpi.h"
#include "src/probe/interrupts.h"
#include "src/probe/paging.h"
#include "src/probe/x86.h"

namespace postern::probe {
namespace {

constexpr size_t kMaxFunctions = 64;
PciFunction g_functions[kMaxFunctions];
size_t g_function_count;

constexpr uint64_t kConfigPage = 4096;
constexpr uint64_t kBarOffset = 0x10;
constexpr uint64_t kCapabilityPointer = 0x34;
constexpr uint16_t kStatusHasCapabilities = 0x10;

// MSI-X message control (PCI 3.0 6.8.2.3).
constexpr uint16_t kMsixEnable = 0x8000;
constexpr uint16_t kMsixFunctionMask = 0x4000;
constexpr uint64_t kMsixEntrySize = 16;
constexpr uint64_t kMsixEntryControl = 12;

void SizeBars(PciFunction& function) {
  const uint64_t command = function.config + kPciCommand;
  const uint16_t before = Read16(command);
  Write16(command, static_cast<uint16_t>(before & ~0x3));
  const unsigned count = function.header_type == 0 ? 6 : 2;
  for (unsigned i = 0; i < count; ++i) {
    const uint64_t reg = function.config + kBarOffset + uint64_t{4} * i;
    const uint32_t low = Read32(reg);
    Write32(reg, 0xffffffff);
    const uint32_t low_mask = Read32(reg);
    Write32(reg, low);
    PciBar& bar = function.bars[i];
    bar.is_port = (low & 1) != 0;
    bar.is_64 = !bar.is_port && (low & 6) == 4;
    if (bar.is_port) {
      bar.address = low & ~uint32_t{3};
      bar.size = (~(low_mask & ~uint32_t{3}) + 1) & 0xffff;
      continue;
    }
    bar.address = low & ~uint32_t{15};
    uint64_t mask = 0xffffffff00000000 | (low_mask & ~uint32_t{15});
    if (bar.is_64 && i + 1 < count) {
      const uint32_t high = Read32(reg + 4);
      Write32(reg + 4, 0xffffffff);
      mask = uint64_t{Read32(reg + 4)} << 32 | (low_mask & ~uint32_t{15});
      Write32(reg + 4, high);
      bar.address |= uint64_t{high} << 32;
      ++i;
    } else if (low_mask == 0) {
      mask = 0;
    }
    bar.size = mask == 0 ? 0 : ~mask + 1;
  }
  Write16(command, before);
}

bool AddFunction(uint16_t bdf) {
  const Acpi& acpi = AcpiInfo();
  const uint64_t config =
      acpi.ecam + (uint64_t{bdf} - (uint64_t{acpi.first_bus} << 8)) * kConfigPage;
  const uint32_t id = Read32(config);
  if ((id & 0xffff) == 0xffff || (id & 0xffff) == 0) return false;
  if (g_function_count == kMaxFunctions) return false;
  PciFunction& function = g_functions[g_function_count++];
  function.bdf = bdf;
  function.config = config;
  function.vendor = static_cast<uint16_t>(id);
  function.device = static_cast<uint16_t>(id >> 16);
  function.class_code = Read32(config + 8) >> 8;
  function.header_type = Read8(config + 0x0e) & 0x7f;
  SizeBars(function);
  function.msix = FindCapability(function, kCapabilityMsix);
  return true;
}

// A BAR's bytes [offset, offset + size), mapped; 0 if they are not inside an assigned memory BAR.
uint64_t MapBar(const PciFunction& function, unsigned bar, uint64_t offset, uint64_t size) {
  if (bar >= 6) return 0;
  const PciBar& b = function.bars[bar];
  if (b.is_port || b.address == 0 || offset > b.size || size > b.size - offset) return 0;
  MapPhysical(b.address + offset, size, Caching::kDevice);
  return b.address + offset;
}

}  // namespace

void InitPci() {
  const Acpi& acpi = AcpiInfo();
  if (acpi.ecam == 0) return;
  // Only bus 0 is always there; others are reached when a bridge names them.
  MapPhysical(acpi.ecam, uint64_t{32} * 8 * kConfigPage, Caching::kDevice);
  uint8_t buses[8] = {acpi.first_bus};
  size_t bus_count = 1;
  for (size_t b = 0; b < bus_count; ++b) {
    for (unsigned device = 0; device < 32; ++device) {
      for (unsigned function = 0; function < 8; ++function) {
        const auto bdf = static_cast<uint16_t>(unsigned{buses[b]} << 8 | device << 3 | function);
        if (!AddFunction(bdf)) {
          if (function == 0) break;
          continue;
        }
        const PciFunction& found = g_functions[g_function_count - 1];
        const uint8_t secondary = found.header_type == 1 ? Read8(found.config + 0x19) : 0;
        if (secondary > buses[b] && secondary <= acpi.last_bus && bus_count < sizeof(buses)) {
          buses[bus_count++] = secondary;
          MapPhysical(
              acpi.ecam + (uint64_t{secondary} - acpi.first_bus) * uint64_t{256} * kConfigPage,
              uint64_t{256} * kConfigPage, Caching::kDevice);
        }
        if (function == 0 && (Read8(found.config + 0x0e) & 0x80) == 0) break;
      }
    }
  }
}

size_t PciFunctionCount() {
  return g_function_count;
}
PciFunction& PciFunctionAt(size_t index) {
  return g_functions[index];
}

void AddBdf(Line& line, uint16_t bdf) {
  line.Add("0000:").Hex(bdf >> 8, 2).Add(':').Hex(bdf >> 3 & 0x1f, 2).Add('.').Hex(bdf & 7);
}

uint8_t FindCapability(const PciFunction& function, uint8_t id, uint8_t after) {
  if (after == 0 && (Read16(function.config + 6) & kStatusHasCapabilities) == 0) return 0;
  auto at = static_cast<uint8_t>(
      Read8(function.config + (after == 0 ? kCapabilityPointer : uint64_t{after} + 1)) & 0xfc);
  // 192 bytes of 4-byte units: a list that is longer goes in circles.
  for (int i = 0; at >= 0x40 && i < 48; ++i) {
    const uint16_t head = Read16(function.config + at);
    if ((head & 0xff) == id) return at;
    at = static_cast<uint8_t>(head >> 8 & 0xfc);
  }
  return 0;
}

void EnablePci(const PciFunction& function) {
  const uint64_t command = function.config + kPciCommand;
  Write16(command, static_cast<uint16_t>(Read16(command) | kPciCommandMemory | kPciCommandMaster |
                                         kPciCommandNoIntx));
}

uint64_t BarAddress(const PciFunction& function, unsigned index) {
  const uint64_t reg = function.config + kBarOffset + 4 * uint64_t{index};
  const uint64_t low = Read32(reg) & ~uint32_t{15};
  return function.bars[index].is_64 ? low | uint64_t{Read32(reg + 4)} << 32 : low;
}

void SetBarAddress(PciFunction& function, unsigned index, uint64_t address) {
  const uint64_t reg = function.config + kBarOffset + 4 * uint64_t{index};
  Write32(reg, static_cast<uint32_t>(address));
  if (function.bars[index].is_64) Write32(reg + 4, static_cast<uint32_t>(address >> 32));
  function.bars[index].address = address;
}

bool Msix::Open(const PciFunction& function) {
  if (function.msix == 0) return false;
  control_ = function.config + function.msix + 2;
  size_ = (Read16(control_) & 0x7ffU) + 1;
  const uint32_t table = Read32(function.config + function.msix + 4);
  const uint32_t pba = Read32(function.config + function.msix + 8);
  table_ = MapBar(function, table & 7, table & ~uint32_t{7}, size_ * kMsixEntrySize);
  pba_ = MapBar(function, pba & 7, pba & ~uint32_t{7}, uint64_t{(size_ + 63) / 64} * 8);
  if (table_ == 0 || pba_ == 0) return false;
  for (unsigned i = 0; i < size_; ++i) Mask(i, true);
  SetControl(kMsixEnable);
  return true;
}

void Msix::SetControl(uint16_t value) const {
  Write16(control_, value);
}

void Msix::Set(unsigned entry, uint8_t vector) {
  const MsiMessage message = MessageFor(vector);
  const uint64_t at = table_ + entry * kMsixEntrySize;
  Write32(at + kMsixEntryControl, 1);
  Write32(at, static_cast<uint32_t>(message.address));
  Write32(at + 4, static_cast<uint32_t>(message.address >> 32));
  Write32(at + 8, message.data);
  Write32(at + kMsixEntryControl, 0);
}

void Msix::Mask(unsigned entry, bool masked) {
  Write32(table_ + entry * kMsixEntrySize + kMsixEntryControl, masked ? 1 : 0);
}

bool Msix::Pending(unsigned entry) const {
  return (Read64(pba_ + uint64_t{entry / 64} * 8) >> (entry % 64) & 1) != 0;
}

void Msix::MaskAll(bool masked) {
  SetControl(masked ? kMsixEnable | kMsixFunctionMask : kMsixEnable);
}

void Msix::Close() {
  if (control_ != 0) SetControl(0);
}

}  // namespace postern::probe
