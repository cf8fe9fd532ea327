#include "src/cli/vdev.h"

#include <csignal>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "src/api/config_json.h"
#include "src/base/event_loop.h"
#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/cli/metrics_file.h"
#include "src/cli/parse.h"
#include "src/cli/print.h"
#include "src/cli/process.h"
#include "src/cli/vdev_list.h"
#include "src/machine/config.h"
#include "src/machine/metrics.h"
#include "src/machine/served_vdev.h"
#include "vfio/user/server.h"

namespace postern::cli {
namespace {

constexpr std::string_view kHelp = R"(Usage: postern vdev serve --socket PATH [FLAG...]

Serves a virtual device on a UNIX socket by vfio-user: to QEMU 10.1 or later, Cloud Hypervisor or another Postern, which
attach it to their guests. The work is done by threads of this process; the guest's driver is its kernel's own (Linux: idxd).

)";

constexpr std::string_view kMore = R"(
The guest's memory must be shared with this process: it comes as a file, and what has no file cannot be reached (the log
says so). It is trusted with all of it. Each client gets a device of its own, as new; one is served at a time.

QEMU:
  qemu-system-x86_64 -machine q35,memory-backend=ram -m 1G \
    -object memory-backend-memfd,id=ram,size=1G,share=on \
    -device '{"driver":"vfio-user-pci","socket":{"path":"/run/dsa.sock","type":"unix"}}' ...
Postern:
  postern run --memory 1G,shared --device socket=/run/dsa.sock ...
Cloud Hypervisor:
  cloud-hypervisor --memory size=1G,shared=on --user-device socket=/run/dsa.sock ...

Portals, where the guest stores its descriptors:
  portal=trapped  Each store of the guest leaves it and comes here as a message. Nothing is lost, whatever the driver does.
                  But a processor's MOVDIR64B (with which Linux's idxd stores) is not carried out by KVM on such a page: on
                  a processor that has it, that driver needs portal=polled.
  portal=polled   The pages are memory of this process that the guest stores to without leaving it. Lossless while one CPU
                  submits and takes the slots of the page one after the other, as Linux's idxd does in a guest of one CPU.
                  The page cannot be taken back from the client: a driver that breaks the rule is seen, counted
                  (portal_rules_broken) and logged, and the device halts until the client goes.

Signals: SIGTERM or SIGINT ends it and removes the socket; SIGUSR1 writes the metrics.

Exit codes: 0 it was told to end; 1 the host failed; 2 the flags are wrong.
)";

struct ServeSettings {
  std::string socket;
  VdevConfig vdev;
  std::string metrics;
  LogLevel log_level = LogLevel::kInfo;
  std::string log_file;
  bool help = false;
};

// What is wrong with a machine's --vdev is here wrong with --type.
tl::unexpected<Failure> OfType(Failure failure) {
  for (const std::string_view name : {"--vdev", "vdevs[0]"}) {
    if (failure.cause.starts_with(name)) failure.cause.replace(0, name.size(), "--type");
  }
  return tl::unexpected(std::move(failure));
}

Outcome<ServeSettings> ParseServe(const std::vector<std::string>& arguments) {
  Outcome<std::vector<Given>> given = ParseOptions(VdevServeOptions(), "vdev serve", arguments);
  if (!given) return tl::unexpected(given.error());
  ServeSettings settings;
  std::string type = "dsa";
  for (const Given& g : *given) {
    if (g.option->name == "socket") settings.socket = g.value;
    if (g.option->name == "type") type = g.value;
    if (g.option->name == "metrics") settings.metrics = g.value;
    if (g.option->name == "log-file") settings.log_file = g.value;
    if (g.option->name == "help") settings.help = true;
    if (g.option->name != "log-level") continue;
    Outcome<LogLevel> level = ParseLevel(g.value);
    if (!level) return tl::unexpected(level.error());
    settings.log_level = *level;
  }
  if (settings.help) return settings;
  if (settings.socket.empty())
    return ConfigFailure("vdev serve needs a socket", "give --socket PATH");
  // The same keys and checks as a machine's --vdev.
  Config config;
  if (Outcome<void> r = api::ApplyFlag("vdev", type, config); !r) return OfType(r.error());
  if (Outcome<void> r = Validate(config); !r) return OfType(r.error());
  settings.vdev = config.vdevs.front();
  if (settings.vdev.id.empty()) settings.vdev.id = "vdev0";
  return settings;
}

Outcome<void> ServeToEnd(const ServeSettings& settings, const Fd& metrics,
                         const sigset_t& signals) {
  Result<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  if (!loop) return HostFailure("event loop", loop.error());
  std::string detail;
  const auto make = [&] {
    return MakeServedVdev(settings.vdev, settings.vdev.id, **loop, &detail);
  };
  Outcome<std::unique_ptr<vfio::UserServer>> server =
      vfio::UserServer::Create(settings.socket, **loop, make);
  if (!server) return tl::unexpected(server.error());
  const auto write_metrics = [&] {
    if (!metrics.valid()) return;
    MetricsWriter writer;
    writer.Group(settings.vdev.id, [&](MetricsWriter& w) {
      w.Counters([&](CounterSink& sink) { (*server)->ReportCounters(sink); });
    });
    AppendMetrics(metrics, writer.Finish());
  };
  SignalWatch watch(**loop,
                    [&](int signal) { signal == SIGUSR1 ? write_metrics() : (*loop)->Stop(); });
  if (Result<void> r = watch.Watch(signals); !r) return HostFailure("signals", r.error());
  Print(stdout, fmt::format("serving {} on {}\n", detail, settings.socket));
  (*loop)->Run();
  write_metrics();
  return {};
}

int Serve(const std::vector<std::string>& arguments) {
  const Outcome<ServeSettings> settings = ParseServe(arguments);
  if (!settings) return PrintFailure(settings.error());
  if (settings->help) {
    Print(stdout, fmt::format("{}{}{}", kHelp, FormatOptions(VdevServeOptions()), kMore));
    return 0;
  }
  if (const Outcome<void> log = OpenLog(settings->log_level, settings->log_file); !log)
    return PrintFailure(log.error());
  const sigset_t signals = BlockSignals();
  Fd metrics;
  if (!settings->metrics.empty()) {
    Outcome<Fd> opened = OpenMetrics(settings->metrics);
    if (!opened) return PrintFailure(opened.error());
    metrics = std::move(*opened);
  }
  if (const Outcome<void> end = ServeToEnd(*settings, metrics, signals); !end)
    return PrintFailure(end.error());
  return 0;
}

}  // namespace

int Vdev(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments[0] == "serve")
    return Serve({arguments.begin() + 1, arguments.end()});
  if (!arguments.empty() && arguments[0] == "list")
    return VdevList({arguments.begin() + 1, arguments.end()});
  const bool help = !arguments.empty() && (arguments[0] == "--help" || arguments[0] == "-h");
  if (help) {
    Print(stdout,
          "Usage: postern vdev serve --socket PATH [FLAG...]\n"
          "       postern vdev list\n\n"
          "postern vdev serve --help says more.\n");
    return 0;
  }
  return PrintFailure({Failure::Kind::kConfig,
                       arguments.empty() ? std::string("vdev needs a command")
                                         : fmt::format("vdev has no command '{}'", arguments[0]),
                       "postern vdev --help"});
}

}  // namespace postern::cli
