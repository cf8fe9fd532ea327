#include "vfio/host_pci.h"

#include <algorithm>
#include <array>
#include <limits>

#include <fmt/format.h>

#include "src/base/text.h"

namespace postern::vfio {
namespace {

// include/linux/ioport.h
constexpr std::uint64_t kResourceIo = 0x100;
constexpr std::uint64_t kResourceMemory = 0x200;
constexpr std::uint64_t kResourcePrefetch = 0x2000;
constexpr std::uint64_t kResourceMemory64 = 0x100000;
constexpr std::uint64_t kResourceUnset = 0x20000000;

bool IsHexDigits(std::string_view text, std::size_t least, std::size_t most) {
  return text.size() >= least && text.size() <= most &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
         });
}

// "0x... 0x... 0x..." of one line.
std::optional<std::array<std::uint64_t, 3>> ParseTriple(std::string_view line) {
  std::array<std::uint64_t, 3> values{};
  for (std::uint64_t& value : values) {
    const std::size_t end = std::min(line.find(' '), line.size());
    const std::optional<std::uint64_t> number = ParseNumber(line.substr(0, end), 16);
    if (!number) return std::nullopt;
    value = *number;
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  if (!line.empty()) return std::nullopt;
  return values;
}

std::optional<std::uint64_t> ReadAtMost(const std::string& path, std::uint64_t most, int base) {
  const std::optional<std::uint64_t> value = ReadNumber(path, base);
  return value && *value <= most ? value : std::nullopt;
}

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (end != 0 && words.size() < 32) words.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

void ReadIds(HostPciDevice& device) {
  const std::string& folder = device.folder;
  device.vendor = ReadAtMost(folder + "/vendor", 0xffff, 16);
  device.device = ReadAtMost(folder + "/device", 0xffff, 16);
  device.subsystem_vendor = ReadAtMost(folder + "/subsystem_vendor", 0xffff, 16);
  device.subsystem_device = ReadAtMost(folder + "/subsystem_device", 0xffff, 16);
  device.revision = ReadAtMost(folder + "/revision", 0xff, 16);
  device.class_code = ReadAtMost(folder + "/class", 0xffffff, 16);
  device.modalias = ReadLine(folder + "/modalias").value_or("");
  if (!IsPciModalias(device.modalias)) device.modalias.clear();
  device.numa_node = ReadAtMost(folder + "/numa_node", 1 << 16, 10);  // -1: none
  device.total_vfs = ReadAtMost(folder + "/sriov_totalvfs", 0xffff, 10);
  device.num_vfs = ReadAtMost(folder + "/sriov_numvfs", 0xffff, 10);
  device.physical_function = LinkName(folder + "/physfn");
}

void ReadDriver(HostPciDevice& device) {
  const std::string& folder = device.folder;
  device.driver_module = LinkName(folder + "/driver/module");
  device.driver_override = ReadLine(folder + "/driver_override").value_or("");
  if (device.driver_override == "(null)") device.driver_override.clear();
}

void ReadReset(HostPciDevice& device) {
  device.can_reset = Exists(device.folder + "/reset");
  const std::optional<std::string> methods = ReadLine(device.folder + "/reset_method");
  if (methods) device.reset_methods = SplitWords(*methods);
}

std::optional<bool> ReadSwitch(const std::string& path) {
  const std::optional<std::string> text = ReadLine(path);
  if (text == "Y" || text == "1") return true;
  if (text == "N" || text == "0") return false;
  return std::nullopt;
}

// The interrupt chips in use carry the prefix "IR-" where a remapping unit stands before the
// processors ("IR-PCI-MSI", "IR-IO-APIC"): arch/x86 and drivers/iommu, {intel,amd} irq domains.
HostIommu::Remapping ReadRemapping(const std::string& sysfs_root) {
  HostIommu::Remapping answer = HostIommu::Remapping::kUnknown;
  const std::string folder = sysfs_root + "/kernel/irq";
  for (const std::string& irq : ListFolder(folder)) {
    const std::string chip = ReadLine(fmt::format("{}/{}/chip_name", folder, irq)).value_or("");
    if (chip.starts_with("IR-")) return HostIommu::Remapping::kOn;
    if (chip.starts_with("IO-APIC") || chip.starts_with("PCI-MSI"))
      answer = HostIommu::Remapping::kOff;
  }
  return answer;
}

}  // namespace

Outcome<HostBdf> ParseHostBdf(std::string_view text) {
  const auto wrong = [&] {
    return ConfigFailure(
        fmt::format("'{}' is no PCI address", Escaped(text, 64)),
        "write it as lspci -D does: DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, 0000:3b:00.0; the "
        "domain may be left out");
  };
  if (text.size() < 7 || text.size() > 16) return wrong();
  const std::string_view tail = text.substr(text.size() - 7);  // "bb:dd.f"
  if (tail[2] != ':' || tail[5] != '.' || !IsHexDigits(tail.substr(0, 2), 2, 2) ||
      !IsHexDigits(tail.substr(3, 2), 2, 2) || !IsHexDigits(tail.substr(6), 1, 1)) {
    return wrong();
  }
  std::uint64_t domain = 0;
  if (std::string_view head = text.substr(0, text.size() - 7); !head.empty()) {
    if (head.back() != ':') return wrong();
    head.remove_suffix(1);
    if (!IsHexDigits(head, 4, 8)) return wrong();
    domain = ParseNumber(head, 16).value_or(0);
  }
  HostBdf bdf;
  bdf.domain = static_cast<std::uint32_t>(domain);
  bdf.bus = static_cast<std::uint8_t>(ParseNumber(tail.substr(0, 2), 16).value_or(0));
  bdf.device = static_cast<std::uint8_t>(ParseNumber(tail.substr(3, 2), 16).value_or(0));
  bdf.function = static_cast<std::uint8_t>(ParseNumber(tail.substr(6), 16).value_or(0));
  if (bdf.device > 31 || bdf.function > 7) return wrong();
  return bdf;
}

std::string ToString(const HostBdf& bdf) {
  return fmt::format("{:04x}:{:02x}:{:02x}.{}", bdf.domain, bdf.bus, bdf.device, bdf.function);
}

std::vector<HostBar> ParseResource(std::string_view text) {
  std::vector<HostBar> bars;
  for (unsigned index = 0; index <= kRomIndex && !text.empty(); ++index) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const auto triple = ParseTriple(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!triple) continue;
    const auto [first, last, flags] = *triple;
    const bool io = (flags & kResourceIo) != 0;
    if (io == ((flags & kResourceMemory) != 0)) continue;  // neither, or both
    if (last <= first || last - first == std::numeric_limits<std::uint64_t>::max()) continue;
    HostBar bar;
    bar.index = index;
    bar.kind = io                                 ? HostBar::Kind::kIo
               : (flags & kResourceMemory64) != 0 ? HostBar::Kind::kMemory64
                                                  : HostBar::Kind::kMemory32;
    bar.prefetchable = !io && (flags & kResourcePrefetch) != 0;
    bar.assigned = (flags & kResourceUnset) == 0;
    bar.address = first;
    bar.size = last - first + 1;
    bars.push_back(bar);
  }
  return bars;
}

bool IsPciModalias(std::string_view text) {
  return text.size() <= 256 && text.starts_with("pci:") && text.size() > 4 &&
         std::all_of(text.begin() + 4, text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
         });
}

HostIommu ReadHostIommu(const std::string& sysfs_root) {
  HostIommu iommu;
  iommu.units = ListFolder(sysfs_root + "/class/iommu");
  iommu.groups = ListFolder(sysfs_root + "/kernel/iommu_groups").size();
  iommu.remapping = ReadRemapping(sysfs_root);
  iommu.type1_allows_unsafe =
      ReadSwitch(sysfs_root + "/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
  iommu.iommufd_allows_unsafe =
      ReadSwitch(sysfs_root + "/module/iommufd/parameters/allow_unsafe_interrupts");
  return iommu;
}

Outcome<HostPciDevice> ReadHostPci(std::string_view bdf, const std::string& sysfs_root) {
  Outcome<HostBdf> address = ParseHostBdf(bdf);
  if (!address) return tl::unexpected(address.error());
  const std::string name = ToString(*address);
  const std::string folder = fmt::format("{}/bus/pci/devices/{}", sysfs_root, name);
  if (!Exists(folder)) {
    return ConfigFailure(fmt::format("there is no PCI device {} on this host", name),
                         "lspci -D lists the devices; echo 1 > /sys/bus/pci/rescan looks for new "
                         "ones");
  }
  HostPciDevice device;
  static_cast<SysfsDevice&>(device) = ReadSysfsDevice(folder);
  device.bdf = *address;
  device.folder = folder;
  ReadIds(device);
  ReadDriver(device);
  ReadReset(device);
  device.bars = ParseResource(ReadText(device.folder + "/resource").value_or(""));
  device.iommu = ReadHostIommu(sysfs_root);
  return device;
}

std::vector<BoundDevice> ListVfioBound(const std::string& sysfs_root) {
  std::vector<BoundDevice> bound;
  const std::string all = sysfs_root + "/bus/pci/devices";
  for (const std::string& name : ListFolder(all)) {
    const std::string folder = fmt::format("{}/{}", all, name);
    std::string driver = LinkName(folder + "/driver");
    if (UseOfDriver(folder, driver) == DriverUse::kVfio) bound.push_back({name, std::move(driver)});
  }
  return bound;
}

}  // namespace postern::vfio
