// postern: the command line.

#include <exception>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "src/cli/bind.h"
#include "src/cli/completion.h"
#include "src/cli/ctl.h"
#include "src/cli/doctor.h"
#include "src/cli/print.h"
#include "src/cli/run.h"
#include "src/cli/vdev.h"
#include "src/cli/version.h"

namespace postern::cli {
namespace {

constexpr std::string_view kHelp =
    R"(Usage: postern VERB [FLAG...]

A microVM monitor for Linux/KVM with virtio and VFIO devices.

Verbs:
  run          start a microVM and run it to its end; without --kernel, the built-in guest that tests every device
  ctl          ask a running microVM: devices, hot plug, power button, counters
  vdev serve   serve a virtual accelerator to guests of QEMU, Cloud Hypervisor or another Postern (vfio-user)
  vdev list    what virtual devices can be composed on this host, and of what
  doctor       say what this host can do for a microVM; --device BDF: for one of its PCI devices
  bind         give PCI devices of the host to a VFIO driver, to be assigned to a microVM
  unbind       give them back to what they had before
  completion   print a completion script: postern completion bash|zsh|fish

  --version    print the version
  --help       this text; postern VERB --help says more
)";

int Main(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    Print(stderr, kHelp);
    return 2;
  }
  const std::string& verb = arguments[0];
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (verb == "--help" || verb == "-h" || verb == "help") {
    Print(stdout, kHelp);
    return 0;
  }
  if (verb == "--version" || verb == "version") {
    Print(stdout, fmt::format("postern {}\n", kVersion));
    return 0;
  }
  if (verb == "run") return Run(rest);
  if (verb == "ctl") return Ctl(rest);
  if (verb == "vdev") return Vdev(rest);
  if (verb == "doctor") return Doctor(rest);
  if (verb == "bind") return Bind(rest);
  if (verb == "unbind") return Unbind(rest);
  if (verb == "completion") {
    if (rest.size() != 1 || rest[0] == "--help") {
      Print(rest.size() == 1 ? stdout : stderr,
            "Usage: postern completion bash|zsh|fish\n\nsource <(postern completion bash)\n");
      return rest.size() == 1 ? 0 : 2;
    }
    Outcome<std::string> script = CompletionScript(rest[0]);
    if (!script) return PrintFailure(script.error());
    Print(stdout, *script);
    return 0;
  }
  return PrintFailure({Failure::Kind::kConfig, fmt::format("unknown verb '{}'", verb),
                       "postern --help lists the verbs"});
}

}  // namespace
}  // namespace postern::cli

int main(int argc, char** argv) {
  try {
    return postern::cli::Main({argv + 1, argv + (argc > 0 ? argc : 1)});
  } catch (const std::exception& error) {
    // Libraries throw for want of memory; nothing of ours does.
    (void)std::fprintf(stderr, "postern: %s\n", error.what());
    return 1;
  }
}
