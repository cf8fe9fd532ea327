#pragma once

// The fixed tables of ACPI as they lie in memory. Source: ACPI 6.5, section 5.2; PCI Firmware
// Specification 3.3, 4.1.2 (MCFG).

#include <array>
#include <cstddef>
#include <cstdint>

namespace postern::boot::acpi {

#pragma pack(push, 1)
// 5.2.5.3
struct Rsdp {
  std::array<char, 8> signature;
  std::uint8_t checksum;  // over the first 20 bytes
  std::array<char, 6> oem_id;
  std::uint8_t revision;
  std::uint32_t rsdt;
  std::uint32_t length;
  std::uint64_t xsdt;
  std::uint8_t extended_checksum;
  std::array<std::uint8_t, 3> reserved;
};

// 5.2.6
struct SdtHeader {
  std::array<char, 4> signature;
  std::uint32_t length;
  std::uint8_t revision;
  std::uint8_t checksum;
  std::array<char, 6> oem_id;
  std::array<char, 8> oem_table_id;
  std::uint32_t oem_revision;
  std::array<char, 4> creator_id;
  std::uint32_t creator_revision;
};

// 5.2.3.2: generic address structure.
struct Address {
  std::uint8_t space;
  std::uint8_t bit_width;
  std::uint8_t bit_offset;
  std::uint8_t access_size;
  std::uint64_t address;
};

// 5.2.9
struct Fadt {
  SdtHeader header;
  std::uint32_t firmware_ctrl;
  std::uint32_t dsdt;
  std::uint8_t reserved0;
  std::uint8_t preferred_pm_profile;
  std::uint16_t sci_interrupt;
  std::uint32_t smi_command;
  // 52..108: PM1, GPE, P-state and C-state fields: ignored when hardware-reduced.
  std::array<std::uint8_t, 57> fixed_hardware;
  std::uint16_t boot_architecture;  // 109
  std::uint8_t reserved1;
  std::uint32_t flags;
  Address reset_register;
  std::uint8_t reset_value;
  std::uint16_t arm_boot_architecture;
  std::uint8_t minor_version;
  std::uint64_t x_firmware_ctrl;
  std::uint64_t x_dsdt;
  std::array<Address, 8> x_fixed_hardware;
  Address sleep_control;
  Address sleep_status;
  std::uint64_t hypervisor_vendor;
};

// 5.2.12
struct Madt {
  SdtHeader header;
  std::uint32_t local_apic;
  std::uint32_t flags;
};
// 5.2.12.2
struct MadtLocalApic {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t processor_uid;
  std::uint8_t apic_id;
  std::uint32_t flags;
};
// 5.2.12.3
struct MadtIoApic {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t id;
  std::uint8_t reserved;
  std::uint32_t address;
  std::uint32_t gsi_base;
};
// 5.2.12.7
struct MadtLocalApicNmi {
  std::uint8_t type;
  std::uint8_t length;
  std::uint8_t processor_uid;
  std::uint16_t flags;
  std::uint8_t lint;
};
// 5.2.12.12
struct MadtLocalX2Apic {
  std::uint8_t type;
  std::uint8_t length;
  std::uint16_t reserved;
  std::uint32_t apic_id;
  std::uint32_t flags;
  std::uint32_t processor_uid;
};
// 5.2.12.13
struct MadtLocalX2ApicNmi {
  std::uint8_t type;
  std::uint8_t length;
  std::uint16_t flags;
  std::uint32_t processor_uid;
  std::uint8_t lint;
  std::array<std::uint8_t, 3> reserved;
};

struct Mcfg {
  SdtHeader header;
  std::uint64_t reserved;
  std::uint64_t base;
  std::uint16_t segment;
  std::uint8_t first_bus;
  std::uint8_t last_bus;
  std::uint32_t reserved2;
};
#pragma pack(pop)

static_assert(sizeof(Rsdp) == 36);
static_assert(sizeof(SdtHeader) == 36);
static_assert(sizeof(Address) == 12);
static_assert(sizeof(Fadt) == 276);
static_assert(offsetof(Fadt, dsdt) == 40 && offsetof(Fadt, sci_interrupt) == 46);
static_assert(offsetof(Fadt, boot_architecture) == 109 && offsetof(Fadt, flags) == 112);
static_assert(offsetof(Fadt, reset_register) == 116 && offsetof(Fadt, reset_value) == 128);
static_assert(offsetof(Fadt, minor_version) == 131 && offsetof(Fadt, x_dsdt) == 140);
static_assert(offsetof(Fadt, sleep_control) == 244 && offsetof(Fadt, sleep_status) == 256);
static_assert(offsetof(Fadt, hypervisor_vendor) == 268);
static_assert(sizeof(Madt) == 44);
static_assert(sizeof(MadtLocalApic) == 8 && sizeof(MadtIoApic) == 12 &&
              sizeof(MadtLocalApicNmi) == 6);
static_assert(sizeof(MadtLocalX2Apic) == 16 && sizeof(MadtLocalX2ApicNmi) == 12);
static_assert(sizeof(Mcfg) == 60);

// 5.2.9.3: boot architecture flags. The 8042's is bit 1, and it is not there.
constexpr std::uint16_t kLegacyDevices = 1U << 0;
constexpr std::uint16_t kVgaNotPresent = 1U << 2;
constexpr std::uint16_t kCmosRtcNotPresent = 1U << 5;
// Table 5.10: fixed feature flags.
constexpr std::uint32_t kWbinvd = 1U << 0;
constexpr std::uint32_t kProcC1 = 1U << 2;
constexpr std::uint32_t kPowerButtonIsDevice = 1U << 4;
constexpr std::uint32_t kSleepButtonIsDevice = 1U << 5;
constexpr std::uint32_t kRtcNotFixed = 1U << 6;
constexpr std::uint32_t kResetRegisterSupported = 1U << 10;
constexpr std::uint32_t kHeadless = 1U << 12;
constexpr std::uint32_t kHardwareReduced = 1U << 20;

constexpr std::uint8_t kSpaceSystemIo = 1;
constexpr std::uint8_t kAccessByte = 1;

constexpr std::uint8_t kMadtLocalApic = 0;
constexpr std::uint8_t kMadtIoApic = 1;
constexpr std::uint8_t kMadtLocalApicNmi = 4;
constexpr std::uint8_t kMadtLocalX2Apic = 9;
constexpr std::uint8_t kMadtLocalX2ApicNmi = 0xa;
constexpr std::uint32_t kApicEnabled = 1;

}  // namespace postern::boot::acpi
