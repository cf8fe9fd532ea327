#include "src/cli/doctor.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <iterator>
#include <optional>

#include <fmt/format.h>
#include <liburing.h>
#include <nlohmann/json.hpp>

#include "src/base/fd.h"
#include "src/base/text.h"
#include "src/base/units.h"
#include "src/cli/device_report.h"
#include "src/cli/parse.h"
#include "src/cli/print.h"
#include "src/kvm/kvm.h"
#include "vfio/host_pci.h"

namespace postern::cli {
namespace {

enum class State : std::uint8_t { kOk, kLimited, kMissing };

struct Row {
  std::string name;
  State state = State::kOk;
  bool required = false;  // for a microVM with a Linux guest
  std::string detail;
  std::string next_step;
};

const char* StateName(State state) {
  switch (state) {
    case State::kOk:
      return "ok";
    case State::kLimited:
      return "limited";
    case State::kMissing:
      return "missing";
  }
  return "";
}

std::string ReadLine(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[4096];
  const ssize_t size = fd.valid() ? read(fd.get(), text, sizeof(text)) : -1;
  if (size <= 0) return {};
  const std::string_view view(text, static_cast<std::size_t>(size));
  return std::string(view.substr(0, view.find('\n')));
}

std::vector<std::string> List(const char* directory) {
  std::vector<std::string> names;
  DIR* dir = opendir(directory);
  if (dir == nullptr) return names;
  // readdir is safe here: the stream is this function's own.
  while (const dirent* entry = readdir(dir)) {  // NOLINT(concurrency-mt-unsafe)
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

void KvmRows(std::vector<Row>& rows) {
  Result<kvm::Kvm> kvm = kvm::Kvm::Open();
  if (!kvm) {
    const int error = kvm.error().sys_errno;
    const bool permission = error == EACCES || error == EPERM;
    rows.push_back({"kvm", State::kMissing, true, Describe(kvm.error()),
                    permission ? "run as root, or join the group that owns /dev/kvm"
                               : "load kvm_intel or kvm_amd; check the firmware's virtualisation "
                                 "setting, or nesting in a VM"});
    return;
  }
  rows.push_back({"kvm", State::kOk, true, "/dev/kvm, API version 12", {}});

  std::string missing;
  std::string absent;
  for (const kvm::Capability& capability : kvm::Survey(*kvm)) {
    if (capability.value != 0) continue;
    std::string& list = capability.required ? missing : absent;
    list += fmt::format("{}{} ({})", list.empty() ? "" : ", ", capability.name, capability.purpose);
  }
  if (!missing.empty()) {
    rows.push_back({"kvm capabilities", State::kMissing, true, "needed and not there: " + missing,
                    "use a newer host kernel"});
  } else if (!absent.empty()) {
    rows.push_back({"kvm capabilities",
                    State::kLimited,
                    true,
                    "all that is needed; not there: " + absent,
                    {}});
  } else {
    rows.push_back({"kvm capabilities", State::kOk, true, "all that Postern uses", {}});
  }

  switch (kvm::CanRunGuestKernels(*kvm)) {
    case kvm::GuestKernels::kYes:
      rows.push_back(
          {"guest kernels", State::kOk, true, "guest code runs on the processor itself", {}});
      break;
    case kvm::GuestKernels::kNo:
      rows.push_back({"guest kernels", State::kMissing, true,
                      "this KVM emulates guest instructions and lacks some that every kernel uses; "
                      "the built-in guest runs, Linux does not",
                      "use a host with hardware virtualisation (or nested virtualisation on)"});
      break;
    case kvm::GuestKernels::kUnknown:
      rows.push_back({"guest kernels", State::kLimited, true, "could not be tried", {}});
      break;
  }
  rows.push_back(
      {"vcpus", State::kOk, false, fmt::format("up to {} in one machine", kvm->max_vcpus()), {}});
}

void HugepageRows(std::vector<Row>& rows) {
  constexpr std::pair<const char*, const char*> kSizes[] = {{"2M", "hugepages-2048kB"},
                                                            {"1G", "hugepages-1048576kB"}};
  for (const auto& [name, directory] : kSizes) {
    const std::string base = fmt::format("/sys/kernel/mm/hugepages/{}", directory);
    const std::string total = ReadLine(base + "/nr_hugepages");
    if (total.empty()) {
      rows.push_back({fmt::format("hugepages {}", name),
                      State::kMissing,
                      false,
                      "this kernel or processor has none of this size",
                      {}});
    } else if (total == "0") {
      rows.push_back({fmt::format("hugepages {}", name), State::kLimited, false, "none reserved",
                      fmt::format("echo N > {}/nr_hugepages reserves N", base)});
    } else {
      rows.push_back(
          {fmt::format("hugepages {}", name),
           State::kOk,
           false,
           fmt::format("{} reserved, {} free", total, ReadLine(base + "/free_hugepages")),
           {}});
    }
  }
  const std::string thp = ReadLine("/sys/kernel/mm/transparent_hugepage/enabled");
  const bool off = thp.empty() || thp.find("[never]") != std::string::npos;
  rows.push_back({"transparent hugepages",
                  off ? State::kLimited : State::kOk,
                  false,
                  thp.empty() ? "not in this kernel" : thp,
                  {}});
}

// A device node that has to be opened for reading and writing.
Row NodeRow(const char* name, const char* path, const char* purpose, const char* next_step) {
  const Fd fd(open(path, O_RDWR | O_CLOEXEC));
  if (fd.valid()) return {name, State::kOk, false, fmt::format("{}: {}", path, purpose), {}};
  const int error = errno;
  return {name, State::kMissing, false, fmt::format("{}: {}", path, strerrordesc_np(error)),
          next_step};
}

Row IoUringRow() {
  io_uring ring{};
  const int result = io_uring_queue_init(4, &ring, 0);
  if (result == 0) {
    io_uring_queue_exit(&ring);
    return {"io_uring", State::kOk, false, "used for disks", {}};
  }
  return {"io_uring", State::kLimited, false,
          fmt::format("refused ({}): disks use plain reads and writes", strerrordesc_np(-result)),
          "check kernel.io_uring_disabled and the seccomp filter of the container"};
}

Row IommuRow() {
  const std::vector<std::string> units = List("/sys/class/iommu");
  const std::size_t groups = List("/sys/kernel/iommu_groups").size();
  if (units.empty() && groups == 0) {
    return {"iommu", State::kMissing, false, "no IOMMU: devices cannot be assigned to guests",
            "switch VT-d or AMD-Vi on in the firmware; on Intel boot the host with intel_iommu=on"};
  }
  std::string names;
  for (const std::string& unit : units) names += (names.empty() ? "" : ", ") + unit;
  return {"iommu", State::kOk, false, fmt::format("{}; {} groups", names, groups), {}};
}

// Which VFIO is there, and who is bound to it.
Row VfioRow() {
  Row row = NodeRow("vfio", "/dev/vfio/vfio", "devices assigned by group and container", "");
  if (row.state != State::kOk) {
    row.next_step = access("/sys/module/vfio", F_OK) != 0
                        ? "modprobe vfio-pci (postern bind BDF does it); needs an IOMMU"
                    : access("/dev/vfio/vfio", F_OK) != 0
                        ? "modprobe vfio_iommu_type1; in a container, pass the node in"
                        : "run as root, or give the node to the user who runs Postern";
  }
  std::string bound;
  for (const vfio::BoundDevice& device : vfio::ListVfioBound()) {
    bound += fmt::format("{}{} ({})", bound.empty() ? "" : ", ", Escaped(device.name, 64),
                         Escaped(device.driver, 64));
  }
  row.detail += bound.empty() ? "; no device is bound to a VFIO driver" : "; bound: " + bound;
  return row;
}

std::vector<Row> Examine() {
  std::vector<Row> rows;
  utsname kernel{};
  uname(&kernel);
  rows.push_back({"host kernel",
                  State::kOk,
                  true,
                  fmt::format("{} {} {}", kernel.sysname, kernel.release, kernel.machine),
                  {}});
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  rows.push_back({"host",
                  State::kOk,
                  true,
                  fmt::format("{} processors, {} MiB of memory", cpus,
                              static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page) /
                                  (1 << 20)),
                  {}});
  KvmRows(rows);
  HugepageRows(rows);
  rows.push_back(NodeRow("tap", "/dev/net/tun", "network interfaces of guests", "modprobe tun"));
  rows.push_back(IoUringRow());
  rows.push_back(IommuRow());
  rows.push_back(VfioRow());
  rows.push_back(NodeRow("iommufd", "/dev/iommu", "devices assigned by iommufd",
                         "modprobe iommufd; needs a kernel built with IOMMUFD"));
  return rows;
}

std::string ToJson(const std::vector<Row>& rows) {
  nlohmann::json checks = nlohmann::json::array();
  for (const Row& row : rows) {
    checks.push_back({{"name", row.name},
                      {"state", StateName(row.state)},
                      {"required", row.required},
                      {"detail", row.detail},
                      {"next_step", row.next_step}});
  }
  return nlohmann::json{{"checks", std::move(checks)}}.dump(
             2, ' ', false, nlohmann::json::error_handler_t::replace) +
         "\n";
}

std::string ToTable(const std::vector<Row>& rows) {
  std::size_t width = 0;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  std::string text;
  for (const Row& row : rows) {
    text += fmt::format("{:<{}}  {:<8} {}\n", row.name, width, StateName(row.state), row.detail);
    if (!row.next_step.empty())
      text += fmt::format("{:<{}}           {}\n", "", width, row.next_step);
  }
  return text;
}

}  // namespace

int Doctor(const std::vector<std::string>& arguments) {
  Outcome<std::vector<Given>> given = ParseOptions(DoctorOptions(), "doctor", arguments);
  if (!given) return PrintFailure(given.error());
  bool json = false;
  std::vector<std::string> devices;
  for (const Given& g : *given) {
    if (g.option->name == "help") {
      Print(stdout,
            "Usage: postern doctor [--json] [--device BDF...]\n\nSays what this host can do for a "
            "microVM, or what stands between one of its PCI devices and a microVM.\nChanges "
            "nothing.\n\n" +
                FormatOptions(DoctorOptions()) +
                "\nExit code: 0 when Linux guests can run here, 1 when something they need is "
                "missing. With --device: 0 when\neach device can be assigned as it is, 1 when "
                "something is in the way, 2 when an address is wrong.\n");
      return 0;
    }
    json = json || g.option->name == "json";
    if (g.option->name == "device") devices.push_back(g.value);
  }
  if (!devices.empty()) return DoctorDevices(devices, json);
  const std::vector<Row> rows = Examine();
  Print(stdout, json ? ToJson(rows) : ToTable(rows));
  const bool missing = std::any_of(rows.begin(), rows.end(), [](const Row& r) {
    return r.required && r.state == State::kMissing;
  });
  return missing ? 1 : 0;
}

}  // namespace postern::cli
