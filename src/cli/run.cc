#include "src/cli/run.h"

#include <charconv>
#include <csignal>
#include <cstdio>
#include <functional>
#include <optional>

#include <fmt/format.h>

#include "src/api/config_json.h"
#include "src/api/control.h"
#include "src/api/machine_target.h"
#include "src/base/fd.h"
#include "src/base/log.h"
#include "src/cli/metrics_file.h"
#include "src/cli/parse.h"
#include "src/cli/print.h"
#include "src/cli/process.h"
#include "src/machine/machine.h"

namespace postern::cli {
namespace {

struct RunSettings {
  Config config;
  std::uint64_t shutdown_timeout_ms = 60'000;
  LogLevel log_level = LogLevel::kWarn;
  std::string log_file;
  bool dry_run = false;
  bool help = false;
};

Outcome<RunSettings> ParseRun(const std::vector<std::string>& arguments) {
  Outcome<std::vector<Given>> given = ParseOptions(RunOptions(), "run", arguments);
  if (!given) return tl::unexpected(given.error());
  RunSettings settings;
  // The file first, whatever the order of the flags: flags win.
  for (const Given& g : *given) {
    if (g.option->name != "config") continue;
    if (Outcome<void> r = api::ApplyJsonFile(g.value, settings.config); !r)
      return tl::unexpected(r.error());
  }
  for (const Given& g : *given) {
    if (g.option->config) {
      if (Outcome<void> r = api::ApplyFlag(g.option->name, g.value, settings.config); !r)
        return tl::unexpected(r.error());
    } else if (g.option->name == "shutdown-timeout") {
      std::uint64_t seconds = 0;
      const auto [end, error] =
          std::from_chars(g.value.data(), g.value.data() + g.value.size(), seconds);
      if (error != std::errc() || end != g.value.data() + g.value.size() || seconds > 86400) {
        return ConfigFailure(
            fmt::format("--shutdown-timeout: '{}' is not a number of seconds", g.value),
            "give 0 to 86400");
      }
      settings.shutdown_timeout_ms = seconds * 1000;
    } else if (g.option->name == "log-level") {
      Outcome<LogLevel> level = ParseLevel(g.value);
      if (!level) return tl::unexpected(level.error());
      settings.log_level = *level;
    } else if (g.option->name == "log-file") {
      settings.log_file = g.value;
    } else if (g.option->name == "dry-run") {
      settings.dry_run = true;
    } else if (g.option->name == "help") {
      settings.help = true;
    }
  }
  return settings;
}

// What signals do to a machine, on its control thread: the first SIGTERM or SIGINT presses the
// power button, a second one or the timeout ends it; SIGHUP ends it; SIGUSR1 writes the metrics.
class Ending {
 public:
  Ending(Machine& machine, std::uint64_t timeout_ms, std::function<void()> write_metrics)
      : machine_(machine), timeout_ms_(timeout_ms), write_metrics_(std::move(write_metrics)) {}

  void Hear(int signal) {
    if (signal == SIGUSR1) {
      write_metrics_();
    } else if (signal == SIGHUP || asked_ || timeout_ms_ == 0) {
      Force(signal);
    } else {
      asked_ = true;
      LOG_INFO("cli", "signal {}: asking the guest to power off", signal);
      machine_.PowerButton();
      machine_.control().After(timeout_ms_, [this, signal] {
        LOG_WARN("cli", "the guest did not power off within {} s", timeout_ms_ / 1000);
        Force(signal);
      });
    }
  }
  // The signal that ended the machine against the guest's will.
  [[nodiscard]] std::optional<int> forced() const { return forced_; }

 private:
  void Force(int signal) {
    if (!forced_.has_value()) forced_ = signal;
    machine_.Stop();
  }

  Machine& machine_;
  std::uint64_t timeout_ms_;
  std::function<void()> write_metrics_;
  bool asked_ = false;
  std::optional<int> forced_;
};

void WriteMetrics(const Fd& fd, const Machine& machine) {
  if (fd.valid()) AppendMetrics(fd, machine.Metrics());
}

struct End {
  ExitReport report;
  std::optional<int> forced;
};

// The machine is gone when this returns, and a terminal it used is its old self again.
Outcome<End> RunToEnd(const RunSettings& settings, const Fd& metrics, const sigset_t& signals) {
  Outcome<std::unique_ptr<Machine>> made = Machine::Create(settings.config);
  if (!made) return tl::unexpected(made.error());
  Machine& machine = **made;
  if (settings.dry_run) {
    Print(stdout, machine.Describe());
    return End{{ExitReport::Reason::kPowerOff, {}}, std::nullopt};
  }
  LOG_INFO("cli", "{}", machine.Describe());
  api::MachineTarget target(machine);
  std::unique_ptr<api::ControlServer> control;
  if (!settings.config.control.empty()) {
    Outcome<std::unique_ptr<api::ControlServer>> served =
        api::ControlServer::Create(settings.config.control, machine.control(), target);
    if (!served) return tl::unexpected(served.error());
    control = std::move(*served);
  }
  Ending ending(machine, settings.shutdown_timeout_ms, [&] { WriteMetrics(metrics, machine); });
  SignalWatch watch(machine.control(), [&](int signal) { ending.Hear(signal); });
  if (Result<void> r = watch.Watch(signals); !r) return HostFailure("signals", r.error());
  if (Outcome<void> r = machine.Start(); !r) return tl::unexpected(r.error());
  End end;
  end.report = machine.Wait();
  end.forced = ending.forced();
  WriteMetrics(metrics, machine);
  return end;
}

}  // namespace

int Run(const std::vector<std::string>& arguments) {
  Outcome<RunSettings> settings = ParseRun(arguments);
  if (!settings) return PrintFailure(settings.error());
  if (settings->help) {
    Print(stdout, fmt::format("Usage: postern run [FLAG...]\n\n"
                              "Starts a microVM and runs it to its end.\n\n{}\n"
                              "Signals: SIGTERM or SIGINT asks the guest to power off, a second "
                              "one ends it; SIGUSR1 writes the metrics.\n\n"
                              "Exit codes: 0 the guest powered off; 1 the host failed; 2 the "
                              "configuration is wrong; 3 the guest asked for a\n"
                              "reset; 4 the guest cannot go on (triple fault, KVM internal error); "
                              "128+N ended by signal N.\n",
                              FormatOptions(RunOptions())));
    return 0;
  }
  if (const Outcome<void> log = OpenLog(settings->log_level, settings->log_file); !log)
    return PrintFailure(log.error());
  const sigset_t signals = BlockSignals();
  Fd metrics;
  if (!settings->config.metrics.empty()) {
    Outcome<Fd> opened = OpenMetrics(settings->config.metrics);
    if (!opened) return PrintFailure(opened.error());
    metrics = std::move(*opened);
  }
  Outcome<End> end = RunToEnd(*settings, metrics, signals);
  if (!end) return PrintFailure(end.error());
  if (end->report.reason == ExitReport::Reason::kStopped && end->forced.has_value()) {
    Print(stderr, fmt::format("postern: ended by signal {}\n", *end->forced));
    return 128 + *end->forced;
  }
  if (!end->report.text.empty()) Print(stderr, fmt::format("postern: {}\n", end->report.text));
  return end->report.exit_code();
}

}  // namespace postern::cli
