#include "src/cli/bind.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "src/base/text.h"
#include "src/cli/options.h"
#include "src/cli/parse.h"
#include "src/cli/print.h"
#include "vfio/bind.h"
#include "vfio/host_pci.h"

namespace postern::cli {
namespace {

struct Request {
  vfio::BindOptions options;
  std::vector<std::string> devices;
  bool help = false;
};

Outcome<Request> ParseRequest(std::span<const Option> table, std::string_view verb,
                              const std::vector<std::string>& arguments) {
  Request request;
  Outcome<std::vector<Given>> given = ParseOptions(table, verb, arguments, &request.devices);
  if (!given) return tl::unexpected(given.error());
  for (const Given& g : *given) {
    if (g.option->name == "driver") request.options.driver = g.value;
    request.options.force = request.options.force || g.option->name == "force";
    request.options.dry_run = request.options.dry_run || g.option->name == "dry-run";
    request.help = request.help || g.option->name == "help";
  }
  if (request.help) return request;
  if (request.devices.empty()) {
    return ConfigFailure(fmt::format("{}: which device?", verb),
                         fmt::format("postern {} BDF, as in: postern {} 0000:3b:00.0", verb, verb));
  }
  // All of them before the first is changed.
  for (std::string& device : request.devices) {
    Outcome<vfio::HostPciDevice> read = vfio::ReadHostPci(device);
    if (!read) return tl::unexpected(read.error());
    device = read->name;
  }
  std::sort(request.devices.begin(), request.devices.end());
  request.devices.erase(std::unique(request.devices.begin(), request.devices.end()),
                        request.devices.end());
  return request;
}

std::string DriverText(const std::string& driver) {
  return driver.empty() ? "no driver" : fmt::format("driver '{}'", Escaped(driver, 64));
}

void Report(const vfio::BindReport& report, bool dry_run) {
  if (dry_run) {
    for (const std::string& step : report.steps) Print(stdout, step + "\n");
    if (report.steps.empty())
      Print(stdout, fmt::format("# {}: nothing to do, it has {}\n", report.name,
                                DriverText(report.driver)));
  } else {
    Print(stdout, fmt::format("{}: {} {}\n", report.name, report.changed ? "now has" : "has",
                              DriverText(report.driver)));
  }
  if (!report.note.empty())
    Print(stdout, fmt::format("{}{}\n", dry_run ? "# " : "  ", report.note));
}

// What is still in the way of a device that was just bound.
void PrintRest(const std::string& name) {
  const Outcome<vfio::HostPciDevice> device = vfio::ReadHostPci(name);
  if (!device) return;
  for (const vfio::Finding& finding : vfio::Examine(*device, {})) {
    if (!finding.blocks) continue;
    Print(stdout,
          fmt::format("  still in the way: {}\n    {}\n", finding.cause, finding.next_step));
  }
}

using Action = Outcome<vfio::BindReport> (*)(std::string_view, const vfio::BindOptions&,
                                             const vfio::HostRoots&, vfio::SysfsWriter&);

// The devices do not depend on one another: a refused one does not hold up the others.
int ForEach(const Request& request, Action action, bool binds) {
  int code = 0;
  std::vector<std::string> bound;
  for (const std::string& device : request.devices) {
    Outcome<vfio::BindReport> report = action(device, request.options, {}, vfio::HostSysfs());
    if (!report) {
      code = std::max(code, PrintFailure(report.error()));
      continue;
    }
    Report(*report, request.options.dry_run);
    if (binds && !request.options.dry_run) bound.push_back(report->name);
  }
  // After all: the members of one group are often bound by one command.
  for (const std::string& name : bound) PrintRest(name);
  return code;
}

}  // namespace

int Bind(const std::vector<std::string>& arguments) {
  const Outcome<Request> request = ParseRequest(BindOptions(), "bind", arguments);
  if (!request) return PrintFailure(request.error());
  if (request->help) {
    Print(
        stdout,
        "Usage: postern bind BDF... [FLAG...]\n\n"
        "Gives PCI devices of the host to the VFIO driver that fits them best (loading it if "
        "need be), so that\n`postern run --device host=BDF` can assign them. What they had "
        "before is kept in /run/postern/bind.\nBDF is an address as lspci -D prints it, "
        "0000:3b:00.0; the domain may be left out.\n\n" +
            FormatOptions(BindOptions()) +
            "\nExit code: 0 done or already so, 1 the host refused a device (which is as it was), "
            "2 wrong input.\n");
    return 0;
  }
  return ForEach(*request, vfio::Bind, true);
}

int Unbind(const std::vector<std::string>& arguments) {
  const Outcome<Request> request = ParseRequest(UnbindOptions(), "unbind", arguments);
  if (!request) return PrintFailure(request.error());
  if (request->help) {
    Print(stdout,
          "Usage: postern unbind BDF... [FLAG...]\n\n"
          "Gives PCI devices back to the driver they had before `postern bind`. A machine that "
          "uses one is asked to\nlet go of it first, and this waits for that.\n\n" +
              FormatOptions(UnbindOptions()) +
              "\nExit code: 0 done or nothing to do, 1 the host refused, 2 wrong input.\n");
    return 0;
  }
  return ForEach(*request, vfio::Unbind, false);
}

}  // namespace postern::cli
