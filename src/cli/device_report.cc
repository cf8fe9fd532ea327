#include "src/cli/device_report.h"

#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "src/base/text.h"
#include "src/base/units.h"
#include "src/cli/print.h"

namespace postern::cli {
namespace {

using vfio::HostBar;
using vfio::HostIommu;

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
constexpr std::string_view kPinned =
    "all of the guest's RAM stays in memory while the device is assigned (its DMA may go anywhere)";

std::string Line(std::string_view name, std::string_view text) {
  return fmt::format("{:<20}  {}\n", name, text);
}

std::string Hex(std::optional<std::uint64_t> value, int digits) {
  return value ? fmt::format("{:0{}x}", *value, digits)
               : std::string(static_cast<std::size_t>(digits), '?');
}

std::string Join(const std::vector<std::string>& words, std::string_view empty) {
  std::string text;
  for (const std::string& word : words)
    text += fmt::format("{}{}", text.empty() ? "" : ", ", Escaped(word, 64));
  return text.empty() ? std::string(empty) : text;
}

std::string DriverLine(const vfio::HostPciDevice& device) {
  std::string text = device.driver.empty() ? "none" : Escaped(device.driver, 64);
  text += fmt::format(" ({})", Describe(device.use));
  if (!device.driver_override.empty())
    text += fmt::format(", driver_override '{}'", Escaped(device.driver_override, 64));
  if (!device.cdev.empty()) text += fmt::format(", /dev/vfio/devices/{}", device.cdev);
  return text;
}

std::string ChoiceLine(const vfio::DriverChoice& choice) {
  std::string text = fmt::format("{} (module {}{}", choice.driver, choice.module,
                                 choice.confirmed  ? ", loaded"
                                 : choice.built_in ? ", built in"
                                                   : "");
  if (choice.alias.empty()) return text + "): the generic one, as modules.alias names none";
  text += fmt::format("): alias {}", Escaped(choice.alias, 128));
  for (const vfio::AliasMatch& other : choice.others)
    text += fmt::format("; also {}", Escaped(other.module, 64));
  return text;
}

const char* RemappingName(HostIommu::Remapping remapping) {
  switch (remapping) {
    case HostIommu::Remapping::kOn:
      return "on";
    case HostIommu::Remapping::kOff:
      return "off";
    case HostIommu::Remapping::kUnknown:
      return "unknown";
  }
  return "";
}

std::string RemappingLine(const HostIommu& iommu) {
  std::string text = RemappingName(iommu.remapping);
  if (iommu.type1_allows_unsafe == true || iommu.iommufd_allows_unsafe == true)
    text += "; the host allows assignment without it (allow_unsafe_interrupts)";
  return text;
}

std::string GroupLines(const vfio::HostPciDevice& device) {
  if (!device.group) return Line("group", "none");
  std::string head = fmt::format("{}", *device.group);
  if (!device.group_type.empty()) head += fmt::format(", type {}", Escaped(device.group_type, 32));
  head += device.peers.empty() ? ", of this device alone" : ", with:";
  std::string text = Line("group", head);
  for (const vfio::GroupMember& peer : device.peers) {
    text += Line(
        "", fmt::format("{}  {}  {}", Escaped(peer.name, 64),
                        peer.driver.empty() ? "-" : Escaped(peer.driver, 64), Describe(peer.use)));
  }
  return text;
}

const char* KindName(const HostBar& bar) {
  switch (bar.kind) {
    case HostBar::Kind::kIo:
      return "I/O ports";
    case HostBar::Kind::kMemory32:
      return "32-bit memory";
    case HostBar::Kind::kMemory64:
      return "64-bit memory";
  }
  return "";
}

std::string BarName(const HostBar& bar) {
  return bar.index == vfio::kRomIndex ? "ROM" : fmt::format("BAR {}", bar.index);
}

std::string BarLines(const std::vector<HostBar>& bars) {
  std::string text;
  for (const HostBar& bar : bars) {
    text += Line(BarName(bar), fmt::format("{} {}{}{}", FormatSize(bar.size), KindName(bar),
                                           bar.prefetchable ? ", prefetchable" : "",
                                           bar.assigned ? "" : ", not assigned by the host"));
  }
  return bars.empty() ? Line("BARs", "none known") : text;
}

std::string PinnedLine(std::uint64_t locked_limit) {
  return fmt::format("{}; this user may lock {}", kPinned,
                     locked_limit == kNoLimit ? "any amount" : FormatSize(locked_limit));
}

std::string FunctionLine(const vfio::HostPciDevice& device) {
  if (!device.physical_function.empty())
    return fmt::format("a virtual function of {}", Escaped(device.physical_function, 64));
  if (device.total_vfs)
    return fmt::format("{} of {} enabled", device.num_vfs.value_or(0), *device.total_vfs);
  return "none";
}

std::string Verdict(const DeviceReport& report) {
  std::string text;
  std::size_t blocking = 0;
  std::string only;
  for (const vfio::Finding& finding : report.findings) {
    text += Line(finding.blocks ? "in the way" : "note", finding.cause);
    if (!finding.next_step.empty()) text += Line("", "-> " + finding.next_step);
    if (!finding.blocks) continue;
    ++blocking;
    only = finding.next_step;
  }
  const std::string& name = report.device.name;
  if (blocking == 0)
    return text + fmt::format("{} can be assigned: postern run --device host={}\n", name, name);
  if (blocking == 1) return text + fmt::format("{} cannot be assigned yet: {}\n", name, only);
  return text +
         fmt::format("{} cannot be assigned yet: {} things are in the way\n", name, blocking);
}

template <typename T>
nlohmann::json Maybe(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

nlohmann::json MaybeText(const std::string& text) {
  return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text);
}

const char* UseName(vfio::DriverUse use) {
  switch (use) {
    case vfio::DriverUse::kVfio:
      return "vfio";
    case vfio::DriverUse::kNone:
      return "none";
    case vfio::DriverUse::kBridge:
      return "bridge";
    case vfio::DriverUse::kStub:
      return "stub";
    case vfio::DriverUse::kInTheWay:
      return "in_the_way";
  }
  return "";
}

nlohmann::json BarsJson(const std::vector<HostBar>& bars) {
  nlohmann::json list = nlohmann::json::array();
  for (const HostBar& bar : bars) {
    const char* kind = bar.kind == HostBar::Kind::kIo         ? "io"
                       : bar.kind == HostBar::Kind::kMemory64 ? "memory64"
                                                              : "memory32";
    list.push_back({{"index", bar.index},
                    {"rom", bar.index == vfio::kRomIndex},
                    {"kind", kind},
                    {"prefetchable", bar.prefetchable},
                    {"assigned", bar.assigned},
                    {"size", bar.size}});
  }
  return list;
}

nlohmann::json GroupJson(const vfio::HostPciDevice& device) {
  if (!device.group) return nullptr;
  nlohmann::json members = nlohmann::json::array();
  for (const vfio::GroupMember& peer : device.peers) {
    members.push_back(
        {{"device", peer.name}, {"driver", MaybeText(peer.driver)}, {"use", UseName(peer.use)}});
  }
  return {{"number", *device.group},
          {"type", MaybeText(device.group_type)},
          {"noiommu", device.noiommu},
          {"other_members", std::move(members)}};
}

nlohmann::json IommuJson(const HostIommu& iommu) {
  return {{"present", iommu.present()},
          {"units", iommu.units},
          {"groups", iommu.groups},
          {"interrupt_remapping", RemappingName(iommu.remapping)},
          {"type1_allow_unsafe_interrupts", Maybe(iommu.type1_allows_unsafe)},
          {"iommufd_allow_unsafe_interrupts", Maybe(iommu.iommufd_allows_unsafe)}};
}

nlohmann::json IdentityJson(const vfio::HostPciDevice& device) {
  return {{"vendor", Maybe(device.vendor)},
          {"device", Maybe(device.device)},
          {"subsystem_vendor", Maybe(device.subsystem_vendor)},
          {"subsystem_device", Maybe(device.subsystem_device)},
          {"class", Maybe(device.class_code)},
          {"revision", Maybe(device.revision)},
          {"modalias", MaybeText(device.modalias)}};
}

nlohmann::json DriverJson(const DeviceReport& report) {
  const vfio::HostPciDevice& device = report.device;
  const vfio::DriverChoice& choice = report.choice;
  return {{"name", MaybeText(device.driver)},
          {"use", UseName(device.use)},
          {"override", MaybeText(device.driver_override)},
          {"cdev", MaybeText(device.cdev)},
          {"fitting",
           {{"name", choice.driver},
            {"module", choice.module},
            {"present", choice.confirmed},
            {"built_in", choice.built_in},
            {"alias", MaybeText(choice.alias)}}}};
}

nlohmann::json DeviceJson(const DeviceReport& report, std::uint64_t locked_limit) {
  const vfio::HostPciDevice& device = report.device;
  nlohmann::json findings = nlohmann::json::array();
  for (const vfio::Finding& finding : report.findings) {
    findings.push_back(
        {{"blocks", finding.blocks}, {"cause", finding.cause}, {"next_step", finding.next_step}});
  }
  return {{"device", device.name},
          {"assignable", report.assignable()},
          {"identity", IdentityJson(device)},
          {"driver", DriverJson(report)},
          {"bind", fmt::format("postern bind {}", device.name)},
          {"group", GroupJson(device)},
          {"iommu", IommuJson(device.iommu)},
          {"reset_methods", Maybe(device.reset_methods)},
          {"can_reset", device.can_reset},
          {"bars", BarsJson(device.bars)},
          {"numa_node", Maybe(device.numa_node)},
          {"virtual_functions",
           {{"total", Maybe(device.total_vfs)}, {"enabled", Maybe(device.num_vfs)}}},
          {"physical_function", MaybeText(device.physical_function)},
          {"pinned_memory", kPinned},
          {"lock_limit",
           locked_limit == kNoLimit ? nlohmann::json(nullptr) : nlohmann::json(locked_limit)},
          {"findings", std::move(findings)}};
}

std::uint64_t LockedLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kNoLimit;
  return limit.rlim_cur;
}

}  // namespace

bool DeviceReport::assignable() const {
  return std::none_of(findings.begin(), findings.end(),
                      [](const vfio::Finding& finding) { return finding.blocks; });
}

Outcome<DeviceReport> ReportDevice(std::string_view bdf, const vfio::HostRoots& roots) {
  Outcome<vfio::HostPciDevice> device = vfio::ReadHostPci(bdf, roots.sysfs);
  if (!device) return tl::unexpected(device.error());
  DeviceReport report;
  report.device = std::move(*device);
  report.choice = vfio::ChooseDriver(report.device.modalias, roots);
  report.findings = vfio::Examine(report.device, roots);
  return report;
}

std::string DeviceTable(const DeviceReport& report, std::uint64_t locked_limit) {
  const vfio::HostPciDevice& device = report.device;
  const HostIommu& iommu = device.iommu;
  std::string text =
      Line("device", fmt::format("{}, {}:{}, class {}", device.name, Hex(device.vendor, 4),
                                 Hex(device.device, 4), Hex(device.class_code, 6)));
  text += Line("driver", DriverLine(device));
  text += Line("fitting driver", ChoiceLine(report.choice));
  if (device.use != vfio::DriverUse::kVfio && !vfio::IsBridgeClass(device.class_code))
    text += Line("to bind it", fmt::format("postern bind {}", device.name));
  text += GroupLines(device);
  text += Line("iommu", iommu.present() ? fmt::format("{}; {} groups", Join(iommu.units, "unnamed"),
                                                      iommu.groups)
                                        : "none");
  text += Line("interrupt remapping", RemappingLine(iommu));
  text += Line("reset methods", device.reset_methods ? Join(*device.reset_methods, "none")
                                : device.can_reset   ? "one that this kernel does not name"
                                                     : "none");
  text += BarLines(device.bars);
  text += Line("NUMA node", device.numa_node ? std::to_string(*device.numa_node) : "none");
  text += Line("virtual functions", FunctionLine(device));
  text += Line("pinned memory", PinnedLine(locked_limit));
  return text + Verdict(report);
}

std::string DevicesJson(const std::vector<DeviceReport>& reports, std::uint64_t locked_limit) {
  nlohmann::json devices = nlohmann::json::array();
  for (const DeviceReport& report : reports) devices.push_back(DeviceJson(report, locked_limit));
  return nlohmann::json{{"devices", std::move(devices)}}.dump(
             2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

int DoctorDevices(const std::vector<std::string>& bdfs, bool json) {
  std::vector<DeviceReport> reports;
  for (const std::string& bdf : bdfs) {
    Outcome<DeviceReport> report = ReportDevice(bdf, {});
    if (!report) return PrintFailure(report.error());
    reports.push_back(std::move(*report));
  }
  const std::uint64_t limit = LockedLimit();
  if (json) Print(stdout, DevicesJson(reports, limit));
  for (std::size_t i = 0; !json && i < reports.size(); ++i)
    Print(stdout, (i == 0 ? "" : "\n") + DeviceTable(reports[i], limit));
  const bool all = std::all_of(reports.begin(), reports.end(),
                               [](const DeviceReport& report) { return report.assignable(); });
  return all ? 0 : 1;
}

}  // namespace postern::cli
