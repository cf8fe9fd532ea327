#include "src/boot/acpi/tables.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "bazel/testing/skip.h"
#include "src/boot/acpi/sdt.h"

#include <doctest/doctest.h>

namespace postern::boot::acpi {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kBase = x86_64::kAcpiArea;

unsigned Sum(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (const std::byte byte : bytes) sum += std::to_integer<unsigned>(byte);
  return sum & 0xff;
}

template <typename T>
T At(std::span<const std::byte> bytes, std::size_t offset) {
  REQUIRE(offset + sizeof(T) <= bytes.size());
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

Config Full(std::uint32_t cpus = 4) {
  Config config;
  config.cpus = cpus;
  config.pci = PciRoot{.buses = 1, .window64 = {0x1000000000, 0x3000000000}};
  for (std::uint32_t i = 0; i < 12; ++i) {
    config.virtio_mmio.push_back({x86_64::kVirtioMmio + i * x86_64::kVirtioMmioStride, 0x200,
                                  x86_64::kVirtioMmioFirstGsi + i});
  }
  config.serial = true;
  return config;
}

// The tables by signature, found as a kernel finds them: RSDP, XSDT, and the DSDT through the FADT.
// All checksums verified.
std::map<std::string, Bytes> Walk(const Bytes& area) {
  const auto rsdp = At<Rsdp>(area, 0);
  CHECK(std::string(rsdp.signature.data(), 8) == "RSD PTR ");
  CHECK(+rsdp.revision == 2);
  CHECK(+rsdp.length == 36);
  CHECK(+rsdp.rsdt == 0);
  CHECK(Sum(std::span(area).first(20)) == 0);
  CHECK(Sum(std::span(area).first(36)) == 0);
  std::map<std::string, Bytes> tables;
  const auto add = [&](std::uint64_t address) {
    REQUIRE(address >= kBase);
    REQUIRE(address % 8 == 0);
    const std::size_t offset = address - kBase;
    const auto header = At<SdtHeader>(area, offset);
    REQUIRE(offset + header.length <= area.size());
    const auto table = std::span(area).subspan(offset, header.length);
    CHECK(Sum(table) == 0);
    return tables
        .emplace(std::string(header.signature.data(), 4), Bytes(table.begin(), table.end()))
        .first->second;
  };
  const Bytes xsdt = add(rsdp.xsdt);
  for (std::size_t offset = sizeof(SdtHeader); offset < xsdt.size(); offset += 8)
    add(At<std::uint64_t>(xsdt, offset));
  REQUIRE(tables.count("FACP") == 1);
  const auto fadt = At<Fadt>(tables["FACP"], 0);
  CHECK(+fadt.dsdt == +fadt.x_dsdt);
  add(fadt.x_dsdt);
  return tables;
}

TEST_CASE("acpi: every table is reachable, checksummed and inside the area") {
  auto tables = Walk(BuildTables(Full(), kBase));
  CHECK(tables.size() == 5);
  for (const char* signature : {"XSDT", "FACP", "APIC", "MCFG", "DSDT"})
    CHECK(tables.count(signature) == 1);
  Config small;
  tables = Walk(BuildTables(small, kBase));
  CHECK(tables.count("MCFG") == 0);
}

TEST_CASE("acpi: FADT describes a hardware-reduced machine that can sleep and reset") {
  const auto fadt = At<Fadt>(Walk(BuildTables(Full(), kBase))["FACP"], 0);
  CHECK(+fadt.header.length == 276);
  CHECK(+fadt.header.revision == 6);
  CHECK((fadt.flags & kHardwareReduced) != 0);
  CHECK((fadt.flags & kResetRegisterSupported) != 0);
  CHECK(+fadt.reset_register.space == 1);
  CHECK(+fadt.reset_register.bit_width == 8);
  CHECK(+fadt.reset_register.address == x86_64::kResetPort);
  CHECK(+fadt.reset_value == x86_64::kResetValue);
  CHECK(+fadt.sleep_control.address == x86_64::kSleepControlPort);
  CHECK(+fadt.sleep_status.address == x86_64::kSleepStatusPort);
  CHECK(+fadt.boot_architecture == (kVgaNotPresent | kCmosRtcNotPresent | kLegacyDevices));
  CHECK((fadt.boot_architecture & 2) == 0);  // no 8042
  CHECK(+fadt.sci_interrupt == 0);
  // 4.1: what a hardware-reduced machine leaves zero.
  for (const std::uint8_t byte : fadt.fixed_hardware) CHECK(byte == 0);
  for (const Address& address : fadt.x_fixed_hardware) CHECK(+address.address == 0);
}

TEST_CASE("acpi: MADT lists one local APIC per vCPU, x2APIC entries from id 255 on, one IOAPIC") {
  for (const std::uint32_t cpus : {1U, 2U, 32U, 254U, 255U, 256U, 300U}) {
    CAPTURE(cpus);
    const Bytes madt = Walk(BuildTables(Full(cpus), kBase))["APIC"];
    const auto head = At<Madt>(madt, 0);
    CHECK(+head.local_apic == 0xfee00000);
    CHECK(+head.flags == 0);
    std::uint32_t next = 0;
    unsigned io_apics = 0;
    unsigned nmis = 0;
    for (std::size_t offset = sizeof(Madt); offset < madt.size();) {
      const auto type = At<std::uint8_t>(madt, offset);
      const auto length = At<std::uint8_t>(madt, offset + 1);
      REQUIRE(length >= 6);
      if (type == kMadtLocalApic) {
        const auto entry = At<MadtLocalApic>(madt, offset);
        CHECK(+entry.apic_id == next);
        CHECK(+entry.processor_uid == next++);
        CHECK(+entry.flags == 1);
      } else if (type == kMadtLocalX2Apic) {
        const auto entry = At<MadtLocalX2Apic>(madt, offset);
        CHECK(next >= 255);
        CHECK(+entry.apic_id == next);
        CHECK(+entry.processor_uid == next++);
      } else if (type == kMadtIoApic) {
        const auto entry = At<MadtIoApic>(madt, offset);
        CHECK(+entry.address == 0xfec00000);
        CHECK(+entry.gsi_base == 0);
        ++io_apics;
      } else {
        CHECK((type == kMadtLocalApicNmi || type == kMadtLocalX2ApicNmi));
        ++nmis;
      }
      offset += length;
    }
    CHECK(next == cpus);
    CHECK(io_apics == 1);
    CHECK(nmis == (cpus > 255 ? 2 : 1));
  }
}

TEST_CASE("acpi: MCFG has the ECAM base and the last bus") {
  Config config = Full();
  for (const std::uint32_t buses : {1U, 16U, 256U}) {
    config.pci->buses = buses;
    const auto mcfg = At<Mcfg>(Walk(BuildTables(config, kBase))["MCFG"], 0);
    CHECK(+mcfg.base == 0xe0000000);
    CHECK(+mcfg.segment == 0);
    CHECK(+mcfg.first_bus == 0);
    CHECK(+mcfg.last_bus == buses - 1);
  }
}

TEST_CASE("acpi: the DSDT routes the pins of every slot and reserves ECAM of every bus") {
  Config config = Full();
  config.pci->buses = 9;
  const Bytes dsdt = Walk(BuildTables(config, kBase))["DSDT"];
  const auto find = [&](const std::vector<std::uint8_t>& wanted) {
    const auto bytes = std::as_bytes(std::span(wanted));
    return std::search(dsdt.begin(), dsdt.end(), bytes.begin(), bytes.end());
  };
  // Name(_PRT, Package(124) ...): PkgLength of three bytes.
  auto at = find({0x08, '_', 'P', 'R', 'T', 0x12});
  REQUIRE(at != dsdt.end());
  std::size_t offset = static_cast<std::size_t>(at - dsdt.begin()) + 6;
  offset += 1U + (At<std::uint8_t>(dsdt, offset) >> 6);
  CHECK(At<std::uint8_t>(dsdt, offset++) == 124);
  for (unsigned slot = 1; slot < 32; ++slot) {
    for (unsigned pin = 0; pin < 4; ++pin) {
      CAPTURE(slot);
      CAPTURE(pin);
      CHECK(At<std::uint8_t>(dsdt, offset) == 0x12);
      const std::size_t length = At<std::uint8_t>(dsdt, offset + 1);
      CHECK(At<std::uint8_t>(dsdt, offset + 2) == 4);
      CHECK(At<std::uint8_t>(dsdt, offset + 3) == 0x0c);
      CHECK(At<std::uint32_t>(dsdt, offset + 4) == (slot << 16 | 0xffff));
      CHECK(At<std::uint8_t>(dsdt, offset + (pin < 2 ? 8 : 9)) == pin);
      // The last element is a byte integer.
      CHECK(At<std::uint8_t>(dsdt, offset + length - 1) == 0x0a);
      CHECK(At<std::uint8_t>(dsdt, offset + length) == 16 + (slot + pin) % 4);
      offset += 1 + length;
    }
  }
  CHECK(offset <= dsdt.size());
  // WordBusNumber 0..8, WordIO 0x1000..0xffff, and Memory32Fixed of 9 MiB.
  CHECK(find({0x88, 0x0d, 0, 2, 0x0c, 0, 0, 0, 0, 0, 8, 0, 0, 0, 9, 0}) != dsdt.end());
  const std::vector<std::uint8_t> ports = {0x88, 0x0d, 0,    1,    0x0c, 3, 0, 0,
                                           0,    0x10, 0xff, 0xff, 0,    0, 0, 0xf0};
  CHECK(find(ports) != dsdt.end());
  CHECK(find({0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x90, 0}) != dsdt.end());
  config.pci->ports = {};
  const Bytes portless = BuildDsdt(config);
  const auto pattern = std::as_bytes(std::span(ports));
  CHECK(std::search(portless.begin(), portless.end(), pattern.begin(), pattern.end()) ==
        portless.end());
  // A machine of virtio-mmio devices, whose inputs these are, too, has none of it.
  config.pci.reset();
  const Bytes other = Walk(BuildTables(config, kBase))["DSDT"];
  const std::string_view text(static_cast<const char*>(static_cast<const void*>(other.data())),
                              other.size());
  CHECK(text.find("_PRT") == std::string_view::npos);
}

TEST_CASE("acpi: a machine too large for the area is refused, the largest that fits is written") {
  std::vector<memory::RegionPtr> regions;
  regions.push_back(memory::Region::Create(memory::Gpa(0), 1 << 20, {}).value());
  const auto memory = memory::GuestMemory::Create(std::move(regions)).value();
  CHECK(WriteTables(*memory, Full(1024)).value() == memory::Gpa(0xe0000));
  CHECK(memory->Read<std::uint64_t>(memory::Gpa(0xe0000)).value() ==
        0x2052545020445352);  // "RSD PTR "
  const auto refused = WriteTables(*memory, Full(4500));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind == Failure::Kind::kConfig);
}

// Runs a program; its exit status, or -1. Output goes to `log`.
int Run(const std::vector<std::string>& words, const std::string& log) {
  std::vector<std::string> copy = words;
  std::vector<char*> argv;
  argv.reserve(copy.size() + 1);
  for (std::string& word : copy) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  REQUIRE(posix_spawn_file_actions_init(&actions) == 0);
  REQUIRE(posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                           O_WRONLY | O_CREAT | O_TRUNC, 0600) == 0);
  REQUIRE(posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO) == 0);
  pid_t pid = 0;
  const int spawned = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  REQUIRE(posix_spawn_file_actions_destroy(&actions) == 0);
  if (spawned != 0) return -1;
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void CheckWithIasl(const std::string& folder, const std::string& signature, const Bytes& bytes) {
  CAPTURE(signature);
  const std::string base = folder + "/" + signature;
  const std::string again_base = folder + "/again_" + signature;
  const std::string log_file = folder + "/log";
  std::ofstream(base + ".aml", std::ios::binary)
      .write(static_cast<const char*>(static_cast<const void*>(bytes.data())),
             static_cast<std::streamsize>(bytes.size()));
  CHECK(Run({"iasl", "-d", base + ".aml"}, log_file) == 0);
  const std::string disassembly = ReadFile(base + ".dsl");
  CHECK(disassembly.find("Invalid") == std::string::npos);
  CHECK(disassembly.find("Unknown") == std::string::npos);
  CHECK(Run({"iasl", "-oa", "-p", again_base, base + ".dsl"}, log_file) == 0);
  const std::string log = ReadFile(log_file);
  CAPTURE(log);
  if (signature != "DSDT") return;
  CHECK(log.find("0 Errors, 0 Warnings") != std::string::npos);
  // The compiler writes its own name and revision into the header, so the checksum differs too.
  const std::string again = ReadFile(again_base + ".aml");
  REQUIRE(again.size() == bytes.size());
  CHECK(std::memcmp(again.data() + sizeof(SdtHeader), bytes.data() + sizeof(SdtHeader),
                    bytes.size() - sizeof(SdtHeader)) == 0);
}

TEST_CASE(
    "acpi: iasl disassembles every table and compiles it again to the same bytes, without "
    "warnings") {
  char folder_template[] = "/tmp/postern_acpi_test_XXXXXX";
  REQUIRE(mkdtemp(folder_template) != nullptr);
  const std::string folder(folder_template);
  if (Run({"iasl", "-v"}, folder + "/log") != 0) {
    std::filesystem::remove_all(folder);
    SKIP_TEST("iasl (acpica-tools) is not installed");
  }
  std::vector<Config> configs = {Full(), Full(300), Config{}};
  configs[2].power_button = false;
  for (const Config& config : configs) {
    for (const auto& table : Walk(BuildTables(config, kBase))) {
      CheckWithIasl(folder, table.first, table.second);
    }
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace postern::boot::acpi
