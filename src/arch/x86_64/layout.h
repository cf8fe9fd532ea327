#pragma once

// Every guest-physical address and port number of the x86-64 machine, in address order.
//
// Low RAM is one run from 0 to at most 3 GiB (the 256 KiB below 1 MiB that PCs give to VGA and ROMs
// are RAM too, but are not told to the kernel as such); then the hole for devices up to 4 GiB; then
// high RAM; then the 64-bit PCI window. The loader's structures share few pages so that a start
// touches little memory. All of them are free for the kernel to reuse once it has copied them; only
// the ACPI area stays reserved.

#include <cstdint>

namespace postern::x86_64 {

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kMiB = 1024 * kKiB;
constexpr std::uint64_t kGiB = 1024 * kMiB;

// ---- below 1 MiB: what the loader leaves for the kernel ----
constexpr std::uint64_t kBootArea = 0x1000;      // first byte the loader writes
constexpr std::uint64_t kGdt = 0x1000;           // six descriptors
constexpr std::uint64_t kPvhStartInfo = 0x1100;  // struct hvm_start_info
constexpr std::uint64_t kPvhModules = 0x1180;    // struct hvm_modlist_entry, one
// Struct hvm_memmap_table_entry, up to kMaxMemoryMapEntries.
constexpr std::uint64_t kPvhMemoryMap = 0x1200;
constexpr std::uint64_t kZeroPage = 0x2000;  // struct boot_params
constexpr std::uint64_t kPml4 = 0x3000;      // identity map of the first 4 GiB
constexpr std::uint64_t kPdpt = 0x4000;
constexpr std::uint64_t kPageDirectories = 0x5000;  // four, used when 1 GiB pages are missing
constexpr std::uint64_t kCommandLine = 0x10000;
constexpr std::uint64_t kCommandLineCapacity = 0x10000;  // with the terminating NUL
constexpr std::uint64_t kBootAreaEnd = 0x20000;
// End of conventional memory told to the kernel (above it PCs keep the EBDA).
constexpr std::uint64_t kLowRamEnd = 0x9fc00;
// RSDP, then the other tables; where kernels also search for an RSDP.
constexpr std::uint64_t kAcpiArea = 0xe0000;
constexpr std::uint64_t kAcpiAreaEnd = 0xf0000;
// Where a PC's firmware is entered in real mode, at ffff:0000. Code there writes to kResetPort.
constexpr std::uint64_t kFirmwareArea = 0xf0000;
constexpr std::uint64_t kFirmwareEntry = 0xffff0;
constexpr std::uint64_t kFirmwareAreaEnd = 0x100000;
constexpr std::uint64_t kKernelLowest = 0x100000;  // no byte of a kernel or initrd lies below

constexpr std::uint32_t kMaxMemoryMapEntries = 32;

// ---- 3 GiB .. 4 GiB: the hole ----
constexpr std::uint64_t kHole = 0xc0000000;         // low RAM ends here at the latest
constexpr std::uint64_t kPciWindow32 = 0xc0000000;  // 32-bit BARs
constexpr std::uint64_t kPciWindow32Size = 512 * kMiB;
constexpr std::uint64_t kEcam = 0xe0000000;  // PCIe configuration space, 1 MiB per bus
constexpr std::uint64_t kEcamBusSize = 1 * kMiB;
constexpr std::uint64_t kEcamReserved = 256 * kMiB;  // kept free for 256 buses
// Virtio-mmio device n is at kVirtioMmio + n * kVirtioMmioStride.
constexpr std::uint64_t kVirtioMmio = 0xf0000000;
// Its own page each, so that a mapping or a trap concerns one device.
constexpr std::uint64_t kVirtioMmioStride = 0x1000;
constexpr std::uint64_t kVirtioMmioRegisters = 0x200;
constexpr std::uint32_t kMaxVirtioMmio = 16;      // as many as have an IOAPIC input
constexpr std::uint64_t kIoApic = 0xfec00000;     // in KVM
constexpr std::uint64_t kLocalApic = 0xfee00000;  // in KVM; also the target of MSI messages
constexpr std::uint64_t kLocalApicSize = 1 * kMiB;
constexpr std::uint64_t kKvmIdentityMap = 0xfffbc000;  // KVM_SET_IDENTITY_MAP_ADDR: 1 page
constexpr std::uint64_t kKvmTss = 0xfffbd000;          // KVM_SET_TSS_ADDR: 3 pages
constexpr std::uint64_t kHoleEnd = 0x100000000;

// ---- 4 GiB and above ----
constexpr std::uint64_t kHighRam = 0x100000000;
// The 64-bit PCI window starts at the first multiple of this above RAM (and never below 4 GiB):
// large enough for the alignment of any BAR that fits beside another.
constexpr std::uint64_t kPciWindow64Alignment = 64 * kGiB;

// ---- ports ----
constexpr std::uint16_t kSerialPort = 0x3f8;  // 16550, 8 ports (COM1)
constexpr std::uint16_t kSerialPorts = 8;
// ACPI 6.5 4.8.3.7 and 4.8.3.6: one byte each.
constexpr std::uint16_t kSleepControlPort = 0x600;
constexpr std::uint16_t kSleepStatusPort = 0x601;
constexpr std::uint16_t kResetPort = 0x602;
constexpr std::uint16_t kPowerPorts = kSleepControlPort;  // the three as one range
constexpr std::uint16_t kPowerPortsSize = 3;
// I/O BARs. Below lie the ports of a PC's mainboard; Linux gives none of them to a PCI function.
constexpr std::uint16_t kPciPorts = 0x1000;
constexpr std::uint32_t kPciPortsSize = 0xf000;
constexpr std::uint8_t kResetValue = 0x01;  // what FADT asks the kernel to write to kResetPort
constexpr std::uint8_t kSleepTypeS5 = 5;    // SLP_TYP of \_S5
// SLEEP_CONTROL_REG: SLP_EN is bit 5, SLP_TYP bits 4:2.
constexpr std::uint8_t kSleepEnable = 0x20;
constexpr std::uint8_t kSleepTypeShift = 2;
constexpr std::uint8_t kSleepTypeMask = 0x07;
constexpr std::uint8_t kPowerOffValue = kSleepEnable | (kSleepTypeS5 << kSleepTypeShift);

// ---- IOAPIC inputs (GSI) ----
constexpr std::uint32_t kIoApicInputs = 24;
constexpr std::uint32_t kSerialGsi = 4;
constexpr std::uint32_t kPowerButtonGsi = 5;  // edge: pulse it to press the button
// Virtio-mmio device n has input kVirtioMmioFirstGsi + n, edge.
constexpr std::uint32_t kVirtioMmioFirstGsi = 8;
// Pin p (0 is INTA#) of PCI slot s has input kPciIntxFirstGsi + (s + p) % kPciIntxGsis, level. A
// machine has virtio-mmio devices or a PCI host bridge, never both, so the two ranges may overlap.
constexpr std::uint32_t kPciIntxFirstGsi = 16;
constexpr std::uint32_t kPciIntxGsis = 4;

static_assert(kPvhMemoryMap + std::uint64_t{kMaxMemoryMapEntries} * 24 <= kZeroPage);
static_assert(kPageDirectories + std::uint64_t{4} * 0x1000 <= kCommandLine);
static_assert(kCommandLine + kCommandLineCapacity <= kBootAreaEnd && kBootAreaEnd <= kLowRamEnd);
static_assert(kPciWindow32 + kPciWindow32Size <= kEcam && kEcam + kEcamReserved <= kVirtioMmio);
static_assert(kVirtioMmio + kMaxVirtioMmio * kVirtioMmioStride <= kIoApic);
static_assert(kVirtioMmioFirstGsi + kMaxVirtioMmio <= kIoApicInputs);
static_assert(kPciIntxFirstGsi + kPciIntxGsis <= kIoApicInputs);
static_assert(kSerialPort + kSerialPorts <= kPciPorts &&
              kPowerPorts + kPowerPortsSize <= kPciPorts);
static_assert(kPciPorts + kPciPortsSize <= 0x10000);

// The least RAM with which anything boots, and the most this layout places (a 46-bit physical
// address space keeps half for PCI).
constexpr std::uint64_t kMinRam = 4 * kMiB;
constexpr std::uint64_t kMaxRam = std::uint64_t{1} << 45;

// How `bytes` of RAM are placed: [0, low) and [kHighRam, kHighRam + high).
struct RamSplit {
  std::uint64_t low;
  std::uint64_t high;
  [[nodiscard]] constexpr std::uint64_t End() const { return high != 0 ? kHighRam + high : low; }
};
[[nodiscard]] constexpr RamSplit SplitRam(std::uint64_t bytes) {
  return bytes <= kHole ? RamSplit{bytes, 0} : RamSplit{kHole, bytes - kHole};
}

// An address range of the 64-bit PCI window for RAM that ends at `ram_end`; size 0 where
// `physical_bits` leave no room.
struct AddressRange {
  std::uint64_t base = 0;
  std::uint64_t size = 0;
  friend constexpr bool operator==(const AddressRange&, const AddressRange&) = default;
};
[[nodiscard]] constexpr AddressRange PciWindow64(std::uint64_t ram_end, unsigned physical_bits) {
  // 46 bits at most: what Linux maps on every processor without five-level paging (its direct map).
  const unsigned bits = physical_bits > 46 ? 46 : physical_bits;
  const std::uint64_t limit = std::uint64_t{1} << bits;
  const std::uint64_t from = ram_end < kHoleEnd ? kHoleEnd : ram_end;
  // Small address spaces (36 bits and the like) cannot afford the full alignment.
  const std::uint64_t alignment =
      limit >= 8 * kPciWindow64Alignment ? kPciWindow64Alignment : 1 * kGiB;
  const std::uint64_t base = (from + alignment - 1) / alignment * alignment;
  return base < limit ? AddressRange{base, limit - base} : AddressRange{};
}

}  // namespace postern::x86_64
