#include "vfio/in_use.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "src/base/text.h"

namespace postern::vfio {
namespace {

constexpr std::size_t kMaxTable = std::size_t{16} << 20;

struct Mount {
  std::string device;  // "8:1"
  std::string point;
  std::string source;  // "/dev/sda1"
};

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    if (end != 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

// proc_pid_mountinfo(5): "36 35 98:0 /root /point options tags... - type source options".
std::vector<Mount> ReadMounts(const HostRoots& roots) {
  std::vector<Mount> mounts;
  const auto text = ReadText(roots.proc + "/self/mountinfo", kMaxTable);
  if (!text) return mounts;
  for (const std::string_view line : Split(*text, '\n')) {
    const std::vector<std::string_view> fields = Split(line, ' ');
    if (fields.size() < 7) continue;
    const auto dash = std::find(fields.begin() + 6, fields.end(), "-");
    const bool source = fields.end() - dash > 2;
    mounts.push_back({std::string(fields[2]), std::string(fields[4]),
                      source ? std::string(*(dash + 2)) : std::string()});
  }
  return mounts;
}

bool LiesBelow(const std::string& path, const std::string& name) {
  return path.find(fmt::format("/{}/", name)) != std::string::npos;
}

// The disk of an NVMe subsystem with several controllers lies in no device's folder; its subsystem
// links to its controllers.
bool IsNvmeHeadOf(const std::string& path, const std::string& name) {
  const std::size_t at = path.find("/nvme-subsystem/");
  if (at == std::string::npos) return false;
  const std::size_t end = path.find('/', at + 16);
  if (end == std::string::npos) return false;
  const std::string subsystem = path.substr(0, end);
  for (const std::string& entry : ListFolder(subsystem)) {
    if (!entry.starts_with("nvme")) continue;
    if (LiesBelow(RealPath(fmt::format("{}/{}", subsystem, entry)) + "/", name)) return true;
  }
  return false;
}

class DiskUses {
 public:
  explicit DiskUses(const HostRoots& roots) : roots_(roots), mounts_(ReadMounts(roots)) {
    const std::string text = ReadText(roots.proc + "/swaps", kMaxTable).value_or("");
    for (const std::string_view line : Split(text, '\n'))
      swaps_.emplace_back(line.substr(0, line.find_first_of(" \t")));
  }

  // `name`: of a disk, a partition, or what is stacked upon one.
  void Add(const std::string& name, std::vector<HostUse>& uses) {
    if (seen_.size() >= 4096 || !seen_.insert(name).second) return;
    const std::string folder = fmt::format("{}/class/block/{}", roots_.sysfs, name);
    const std::string device = ReadLine(folder + "/dev").value_or("");
    const std::string node = "/dev/" + name;
    const std::string mapped = ReadLine(folder + "/dm/name").value_or("");
    const auto is_source = [&](const std::string& source) {
      return source == node || (!mapped.empty() && source == "/dev/mapper/" + mapped);
    };
    for (const Mount& mount : mounts_) {
      // By source as well: file systems over several disks have a device number of their own.
      if ((device.empty() || mount.device != device) && !is_source(mount.source)) continue;
      uses.push_back(
          {fmt::format("{} is mounted at {}", Escaped(name, 64), Escaped(mount.point, 256)),
           mount.point == "/"});
    }
    if (std::any_of(swaps_.begin(), swaps_.end(), is_source))
      uses.push_back({fmt::format("the host swaps to {}", Escaped(name, 64)), false});
    for (const std::string& holder : ListFolder(folder + "/holders")) {
      uses.push_back(
          {fmt::format("{} is part of {}", Escaped(name, 64), Escaped(holder, 64)), false});
      Add(holder, uses);
    }
  }

 private:
  const HostRoots& roots_;
  std::vector<Mount> mounts_;
  std::vector<std::string> swaps_;
  std::set<std::string> seen_;
};

void AddInterface(const std::string& name, const std::string& folder, std::vector<HostUse>& uses) {
  const std::string state = ReadLine(folder + "/operstate").value_or("");
  const std::uint64_t flags = ReadNumber(folder + "/flags", 16).value_or(0);
  constexpr std::uint64_t kIffUp = 1;
  // Drivers without carrier detection report "unknown" for an interface in full use.
  if (state == "up" || (state == "unknown" && (flags & kIffUp) != 0))
    uses.push_back({fmt::format("network interface {} is up", Escaped(name, 64)), false});
  const std::string master = LinkName(folder + "/master");
  if (!master.empty()) {
    uses.push_back(
        {fmt::format("network interface {} belongs to {}", Escaped(name, 64), Escaped(master, 64)),
         false});
  }
}

}  // namespace

std::vector<HostUse> FindHostUses(const std::string& name, const HostRoots& roots) {
  std::vector<HostUse> uses;
  DiskUses disks(roots);
  const std::string block = roots.sysfs + "/class/block";
  for (const std::string& entry : ListFolder(block)) {
    const std::string path = RealPath(fmt::format("{}/{}", block, entry));
    if (LiesBelow(path, name) || IsNvmeHeadOf(path, name)) disks.Add(entry, uses);
  }
  const std::string net = roots.sysfs + "/class/net";
  for (const std::string& entry : ListFolder(net)) {
    const std::string folder = fmt::format("{}/{}", net, entry);
    if (LiesBelow(RealPath(folder), name)) AddInterface(entry, folder, uses);
  }
  return uses;
}

}  // namespace postern::vfio
