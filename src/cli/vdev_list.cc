#include "src/cli/vdev_list.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "devices/siov/cdev/idxd_queue.h"
#include "devices/siov/host/host_caps.h"
#include "src/base/text.h"
#include "src/cli/print.h"
#include "vfio/host_pci.h"

namespace postern::cli {
namespace {

constexpr std::size_t kMaxShown = 64;

constexpr std::string_view kComposed =
    R"(Virtual devices: postern run --vdev type=TYPE[,KEY...]
  dsa     profile=ro (configured by Postern) or cfg (configured by the guest)

Back ends: backend=NAME
  engine  threads of Postern; on any host. Portals: polled, trapped
  vfio    queues of a DSA that Postern drives: host=BDF, or socket=PATH of a vfio-user server.
          Portals: direct, trapped
  cdev    a queue of the host's idxd driver: path=/dev/dsa/wqX.Y. Portals: trapped
)";

std::string Text(const std::string& path) {
  return Escaped(vfio::ReadLine(path).value_or("?"), 32);
}

// "ready", or what to do first.
std::string StateOf(const vfio::HostPciDevice& device, const vfio::HostRoots& roots) {
  if (!device.vfio_bound()) {
    const std::string driver = device.driver.empty() ? "no driver" : "driver " + device.driver;
    return fmt::format("{}: 'postern bind {}' first", Escaped(driver, 64), device.name);
  }
  const std::vector<vfio::Finding> findings = vfio::Examine(device, roots);
  const auto blocks = std::ranges::find(findings, true, &vfio::Finding::blocks);
  if (blocks == findings.end()) return fmt::format("ready: host={}", device.name);
  return blocks->next_step.empty() ? blocks->cause
                                   : fmt::format("{}: {}", blocks->cause, blocks->next_step);
}

std::string DescribeFunctions(const vfio::HostRoots& roots) {
  std::string text;
  std::size_t shown = 0;
  const std::string folder = roots.sysfs + "/bus/pci/devices";
  for (const std::string& name : vfio::ListFolder(folder)) {
    const auto vendor = vfio::ReadNumber(fmt::format("{}/{}/vendor", folder, name), 16);
    const auto id = vfio::ReadNumber(fmt::format("{}/{}/device", folder, name), 16);
    if (!vendor || !id || *vendor > 0xffff || *id > 0xffff) continue;
    const dsa::HostKind kind =
        dsa::KindOf(static_cast<std::uint16_t>(*vendor), static_cast<std::uint16_t>(*id));
    if (kind == dsa::HostKind::kOther || shown == kMaxShown) continue;
    const Outcome<vfio::HostPciDevice> device = vfio::ReadHostPci(name, roots.sysfs);
    if (!device) continue;
    ++shown;
    const bool is_dsa = kind == dsa::HostKind::kDsa;
    text += fmt::format("  {}  {:04x}:{:04x} {}, {}\n", device->name, *vendor, *id,
                        is_dsa ? "DSA" : "IAA",
                        is_dsa ? StateOf(*device, roots) : "which no back end drives yet");
  }
  return text.empty() ? "  none\n" : text;
}

// "ready", or what to do first.
std::string StateOfQueue(const std::string& file, const vfio::HostRoots& roots) {
  const Outcome<dsa::IdxdQueueInfo> queue = dsa::ExamineIdxdQueue(file, roots);
  if (queue) return "ready: path=/dev/dsa/" + queue->name;
  return fmt::format("{}: {}", queue.error().cause, queue.error().next_step);
}

std::string DescribeQueues(const vfio::HostRoots& roots) {
  std::string text;
  std::size_t shown = 0;
  const std::string folder = roots.sysfs + "/bus/dsa/devices";
  for (const std::string& name : vfio::ListFolder(folder)) {
    if (!name.starts_with("wq") || shown == kMaxShown) continue;
    ++shown;
    const std::string of = fmt::format("{}/{}", folder, name);
    const std::string file = fmt::format("{}/dsa/{}", roots.dev, name);
    text += fmt::format("  {}  type {}, mode {}, size {}, {}\n",
                        vfio::Exists(file) ? "/dev/dsa/" + Escaped(name, 32) : Escaped(name, 32),
                        Text(of + "/type"), Text(of + "/mode"), Text(of + "/size"),
                        Text(of + "/state"));
    text += fmt::format("    {}\n", StateOfQueue(file, roots));
  }
  return text.empty() ? "  none\n" : text;
}

}  // namespace

std::string DescribeVdevs(const vfio::HostRoots& roots) {
  return fmt::format("{}\nAccelerators of this host\n{}\nQueues of its idxd driver\n{}", kComposed,
                     DescribeFunctions(roots), DescribeQueues(roots));
}

int VdevList(const std::vector<std::string>& arguments) {
  if (!arguments.empty()) {
    const bool help = arguments.size() == 1 && (arguments[0] == "--help" || arguments[0] == "-h");
    Print(help ? stdout : stderr,
          "Usage: postern vdev list\n\nWhat virtual devices can be composed on this host, and of "
          "what.\n");
    return help ? 0 : 2;
  }
  Print(stdout, DescribeVdevs({}));
  return 0;
}

}  // namespace postern::cli
