#include "src/boot/acpi/tables.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "src/base/check.h"
#include "src/boot/acpi/aml.h"
#include "src/boot/acpi/sdt.h"

namespace postern::boot::acpi {
namespace {

using Table = std::vector<std::byte>;

constexpr std::array<char, 6> kOemId = {'P', 'O', 'S', 'T', 'R', 'N'};
constexpr std::array<char, 8> kOemTableId = {'P', 'O', 'S', 'T', 'E', 'R', 'N', ' '};
constexpr std::array<char, 4> kCreatorId = {'P', 'S', 'T', 'N'};
constexpr std::size_t kTableAlignment = 8;

// The first APIC id that a processor local APIC entry cannot hold: 255 is "all processors"
// (5.2.12.2, 5.2.12.12).
constexpr std::uint32_t kFirstX2ApicId = 255;

std::uint8_t Checksum(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (const std::byte byte : bytes) sum += std::to_integer<unsigned>(byte);
  return static_cast<std::uint8_t>(0x100U - (sum & 0xffU));
}

template <typename T>
void Append(Table& table, const T& part) {
  const auto bytes = std::as_bytes(std::span(&part, 1));
  table.insert(table.end(), bytes.begin(), bytes.end());
}

SdtHeader Header(const char (&signature)[5], std::uint8_t revision) {
  SdtHeader header{};
  std::memcpy(header.signature.data(), signature, header.signature.size());
  header.revision = revision;
  header.oem_id = kOemId;
  header.oem_table_id = kOemTableId;
  header.oem_revision = 1;
  header.creator_id = kCreatorId;
  header.creator_revision = 1;
  return header;
}

// Fills length and checksum of a complete table.
Table Seal(Table table) {
  const auto length = static_cast<std::uint32_t>(table.size());
  std::memcpy(table.data() + offsetof(SdtHeader, length), &length, sizeof(length));
  table[offsetof(SdtHeader, checksum)] = std::byte{0};
  table[offsetof(SdtHeader, checksum)] = std::byte{Checksum(table)};
  return table;
}

// ---- DSDT ----

// PCI Firmware Specification 3.3, 4.5.1: the OS says what it wants to control, we say what it may.
// Everything but standard hot-plug (SHPC), which this machine's ports do not have.
void AddOsc(Aml& bridge) {
  constexpr std::uint32_t kGranted = 0x3d;  // native hot-plug, PME, AER, PCIe capability, LTR
  constexpr std::uint32_t kUnrecognizedUuid = 0x04;  // status bits in the first DWORD
  constexpr std::uint32_t kUnrecognizedRevision = 0x08;
  constexpr std::uint32_t kCapabilitiesMasked = 0x10;
  bridge.Method("_OSC", 4, [](Aml& osc) {
    osc.CreateDWordFieldOfArg(3, 0, "CDW1");
    osc.If([](Aml& is) { is.LEqual().Arg(0).Uuid("33db4d5b-1ff7-401c-9657-7441c03dd766"); },
           [](Aml& pcie) {
             pcie.CreateDWordFieldOfArg(3, 8, "CDW3");
             pcie.And().Path("CDW3").Integer(kGranted).Local(0);
             pcie.If([](Aml& is) { is.LNotEqual().Arg(1).Integer(1); },
                     [](Aml& then) {
                       then.Or().Path("CDW1").Integer(kUnrecognizedRevision).Path("CDW1");
                     });
             pcie.If([](Aml& is) { is.LNotEqual().Path("CDW3").Local(0); },
                     [](Aml& then) {
                       then.Or().Path("CDW1").Integer(kCapabilitiesMasked).Path("CDW1");
                     });
             pcie.Store().Local(0).Path("CDW3");
           });
    osc.Else([](Aml& other) { other.Or().Path("CDW1").Integer(kUnrecognizedUuid).Path("CDW1"); });
    osc.Return().Arg(3);
  });
}

// 6.2.13: a package for each pin of each slot: address (slot, any function), pin, no link device,
// GSI. Level-triggered by definition; KVM's IOAPIC takes asserted for active whatever polarity the
// guest programs. Pins behind a root port need no table: they are the port's own.
void AddInterruptRouting(Aml& bridge) {
  constexpr std::uint32_t kSlots = 32;
  constexpr std::uint32_t kAnyFunction = 0xffff;
  constexpr std::uint32_t kFirst = 1;  // slot 0, the host bridge, has no pin
  bridge.Name("_PRT").PackageOf((kSlots - kFirst) * x86_64::kPciIntxGsis, [](Aml& table) {
    for (std::uint32_t slot = kFirst; slot < kSlots; ++slot) {
      for (std::uint32_t pin = 0; pin < x86_64::kPciIntxGsis; ++pin) {
        table.PackageOf(4, [slot, pin](Aml& entry) {
          entry.Integer(slot << 16 | kAnyFunction)
              .Integer(pin)
              .Integer(0)
              .Integer(x86_64::kPciIntxFirstGsi + (slot + pin) % x86_64::kPciIntxGsis);
        });
      }
    }
  });
}

void AddPci(Aml& sb, const PciRoot& pci) {
  sb.Device("PCI0", [&pci](Aml& bridge) {
    bridge.Name("_HID").EisaId("PNP0A08");
    bridge.Name("_CID").EisaId("PNP0A03");
    bridge.Name("_SEG").Integer(0);
    bridge.Name("_BBN").Integer(0);
    bridge.Name("_UID").Integer(0);
    bridge.Name("_CCA").Integer(1);
    Resources windows;
    windows.BusNumbers(0, static_cast<std::uint16_t>(pci.buses - 1));
    if (pci.ports.size != 0) {
      windows.PortWindow(static_cast<std::uint16_t>(pci.ports.base),
                         static_cast<std::uint16_t>(pci.ports.size));
    }
    if (pci.window32.size != 0) {
      windows.MemoryWindow32(static_cast<std::uint32_t>(pci.window32.base),
                             static_cast<std::uint32_t>(pci.window32.size));
    }
    if (pci.window64.size != 0) windows.MemoryWindow64(pci.window64.base, pci.window64.size);
    bridge.Name("_CRS").Resources(windows);
    AddInterruptRouting(bridge);
    AddOsc(bridge);
  });
  // PCI Firmware Specification 3.3, 4.1.2: configuration space is claimed by a motherboard
  // resource.
  sb.Device("MRES", [&pci](Aml& reserved) {
    reserved.Name("_HID").EisaId("PNP0C02");
    reserved.Name("_UID").Integer(0);
    reserved.Name("_CRS").Resources(Resources().Memory32Fixed(
        x86_64::kEcam, static_cast<std::uint32_t>(pci.buses * x86_64::kEcamBusSize)));
  });
}

void AddVirtioMmio(Aml& sb, const VirtioMmioDevice& device, std::size_t index) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  const std::array<char, 4> name = {'V', 'R', kDigits[index >> 4 & 0xf], kDigits[index & 0xf]};
  sb.Device(std::string_view(name.data(), name.size()), [&device, index](Aml& virtio) {
    virtio.Name("_HID").String("LNRO0005");
    virtio.Name("_UID").Integer(index);
    virtio.Name("_CCA").Integer(1);
    virtio.Name("_CRS").Resources(Resources()
                                      .Memory32Fixed(static_cast<std::uint32_t>(device.base),
                                                     static_cast<std::uint32_t>(device.size))
                                      .Interrupt(device.gsi));
  });
}

void AddSerial(Aml& sb) {
  sb.Device("COM1", [](Aml& com1) {
    com1.Name("_HID").EisaId("PNP0501");
    com1.Name("_UID").Integer(0);
    com1.Name("_CRS").Resources(
        Resources()
            .Io(x86_64::kSerialPort, static_cast<std::uint8_t>(x86_64::kSerialPorts))
            .Interrupt(x86_64::kSerialGsi));
  });
}

// ACPI 6.5 5.6.9: a hardware-reduced machine has no fixed events; a GED turns an interrupt into a
// notification.
void AddPowerButton(Aml& sb) {
  constexpr std::uint8_t kStatusChange = 0x80;  // 4.8.3.2.2: the button was pressed
  sb.Device("PWRB", [](Aml& button) {
    button.Name("_HID").EisaId("PNP0C0C");
    button.Name("_UID").Integer(0);
  });
  sb.Device("GED_", [](Aml& ged) {
    ged.Name("_HID").String("ACPI0013");
    ged.Name("_UID").Integer(0);
    ged.Name("_CRS").Resources(Resources().Interrupt(x86_64::kPowerButtonGsi));
    ged.Method("_EVT", 1, [](Aml& evt) {
      evt.If([](Aml& is) { is.LEqual().Arg(0).Integer(x86_64::kPowerButtonGsi); },
             [](Aml& then) { then.Notify("\\_SB.PWRB", kStatusChange); });
    });
  });
}

// ---- the other tables ----

Table BuildFadt(const Config& config, std::uint64_t dsdt) {
  const auto port = [](std::uint16_t number) {
    return Address{kSpaceSystemIo, 8, 0, kAccessByte, number};
  };
  Fadt fadt{};
  fadt.header = Header("FACP", 6);
  fadt.dsdt = static_cast<std::uint32_t>(dsdt);
  fadt.x_dsdt = dsdt;
  fadt.boot_architecture = static_cast<std::uint16_t>(kVgaNotPresent | kCmosRtcNotPresent |
                                                      (config.serial ? kLegacyDevices : 0U));
  fadt.flags = kWbinvd | kProcC1 | kPowerButtonIsDevice | kSleepButtonIsDevice | kRtcNotFixed |
               kResetRegisterSupported | kHeadless | kHardwareReduced;
  fadt.reset_register = port(x86_64::kResetPort);
  fadt.reset_value = x86_64::kResetValue;
  fadt.minor_version = 5;
  fadt.sleep_control = port(x86_64::kSleepControlPort);
  fadt.sleep_status = port(x86_64::kSleepStatusPort);
  std::memcpy(&fadt.hypervisor_vendor, "Postern", 8);
  Table table;
  Append(table, fadt);
  return Seal(std::move(table));
}

Table BuildMadt(const Config& config) {
  Madt madt{};
  madt.header = Header("APIC", 6);
  madt.local_apic = x86_64::kLocalApic;
  madt.flags = 0;  // no pair of 8259s
  Table table;
  Append(table, madt);
  // APIC id = UID = vCPU index; the boot processor comes first.
  for (std::uint32_t id = 0; id < config.cpus; ++id) {
    if (id < kFirstX2ApicId) {
      Append(table,
             MadtLocalApic{kMadtLocalApic, sizeof(MadtLocalApic), static_cast<std::uint8_t>(id),
                           static_cast<std::uint8_t>(id), kApicEnabled});
    } else {
      Append(table,
             MadtLocalX2Apic{kMadtLocalX2Apic, sizeof(MadtLocalX2Apic), 0, id, kApicEnabled, id});
    }
  }
  Append(table, MadtIoApic{kMadtIoApic, sizeof(MadtIoApic), 0, 0, x86_64::kIoApic, 0});
  // All processors: NMI at LINT1, edge and active high as the bus has it.
  Append(table, MadtLocalApicNmi{kMadtLocalApicNmi, sizeof(MadtLocalApicNmi), 0xff, 0, 1});
  if (config.cpus > kFirstX2ApicId) {
    Append(table, MadtLocalX2ApicNmi{
                      kMadtLocalX2ApicNmi, sizeof(MadtLocalX2ApicNmi), 0, 0xffffffff, 1, {}});
  }
  return Seal(std::move(table));
}

Table BuildMcfg(const PciRoot& pci) {
  Mcfg mcfg{};
  mcfg.header = Header("MCFG", 1);
  mcfg.base = x86_64::kEcam;
  mcfg.last_bus = static_cast<std::uint8_t>(pci.buses - 1);
  Table table;
  Append(table, mcfg);
  return Seal(std::move(table));
}

Table BuildXsdt(std::span<const std::uint64_t> addresses) {
  Table table;
  Append(table, Header("XSDT", 1));
  for (const std::uint64_t address : addresses) Append(table, address);
  return Seal(std::move(table));
}

Table BuildRsdp(std::uint64_t xsdt) {
  Rsdp rsdp{};
  std::memcpy(rsdp.signature.data(), "RSD PTR ", rsdp.signature.size());
  rsdp.oem_id = kOemId;
  rsdp.revision = 2;
  rsdp.length = sizeof(rsdp);
  rsdp.xsdt = xsdt;
  const auto bytes = std::as_bytes(std::span(&rsdp, 1));
  rsdp.checksum = Checksum(bytes.first(20));
  rsdp.extended_checksum = Checksum(bytes);
  Table table;
  Append(table, rsdp);
  return table;
}

std::size_t AlignUp(std::size_t value) {
  return (value + kTableAlignment - 1) / kTableAlignment * kTableAlignment;
}

}  // namespace

std::vector<std::byte> BuildDsdt(const Config& config) {
  CHECK(!config.pci || (config.pci->buses >= 1 && config.pci->buses <= 256));
  CHECK(config.virtio_mmio.size() <= 256);
  Aml aml;
  aml.Scope("\\_SB_", [&config](Aml& sb) {
    if (config.pci) AddPci(sb, *config.pci);
    for (std::size_t i = 0; i < config.virtio_mmio.size(); ++i)
      AddVirtioMmio(sb, config.virtio_mmio[i], i);
    if (config.serial) AddSerial(sb);
    if (config.power_button) AddPowerButton(sb);
  });
  // 7.4.2: S5, soft off. The first element goes to SLP_TYP of the sleep control register.
  aml.Name("\\_S5_").PackageOf(4, [](Aml& values) {
    values.Integer(x86_64::kSleepTypeS5).Integer(0).Integer(0).Integer(0);
  });
  Table table;
  Append(table, Header("DSDT", 2));  // 2: 64-bit integers
  table.insert(table.end(), aml.bytes().begin(), aml.bytes().end());
  return Seal(std::move(table));
}

std::vector<std::byte> BuildTables(const Config& config, std::uint64_t base) {
  // The RSDP comes first so that its address is known; the XSDT is last because it names all the
  // others.
  Table area(AlignUp(sizeof(Rsdp)));
  const auto place = [&area, base](const Table& table) {
    area.resize(AlignUp(area.size()));
    const std::uint64_t address = base + area.size();
    area.insert(area.end(), table.begin(), table.end());
    return address;
  };
  const std::uint64_t dsdt = place(BuildDsdt(config));
  std::vector<std::uint64_t> tables;
  tables.push_back(place(BuildFadt(config, dsdt)));
  tables.push_back(place(BuildMadt(config)));
  if (config.pci) tables.push_back(place(BuildMcfg(*config.pci)));
  const std::uint64_t xsdt = place(BuildXsdt(tables));
  const Table rsdp = BuildRsdp(xsdt);
  std::copy(rsdp.begin(), rsdp.end(), area.begin());
  return area;
}

Outcome<memory::Gpa> WriteTables(const memory::GuestMemory& memory, const Config& config) {
  const std::vector<std::byte> tables = BuildTables(config, x86_64::kAcpiArea);
  if (tables.size() > x86_64::kAcpiAreaEnd - x86_64::kAcpiArea) {
    return ConfigFailure("the ACPI tables of this machine take " + std::to_string(tables.size()) +
                             " bytes of " +
                             std::to_string(x86_64::kAcpiAreaEnd - x86_64::kAcpiArea),
                         "use fewer vCPUs or devices");
  }
  if (auto written = memory.CopyIn(memory::Gpa(x86_64::kAcpiArea), tables); !written) {
    return ConfigFailure(
        "the machine has too little memory for its ACPI tables",
        "give it at least " + std::to_string(x86_64::kMinRam / x86_64::kMiB) + " MiB");
  }
  return memory::Gpa(x86_64::kAcpiArea);
}

}  // namespace postern::boot::acpi
