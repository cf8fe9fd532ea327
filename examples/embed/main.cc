// A virtual machine in thirty lines: runs a kernel, or the built-in guest without one, and says how
// it ended.
//
//   bazel build //examples/embed && bazel-bin/examples/embed/embed [KERNEL [INITRD]]

#include <cstdio>

#include "src/machine/machine.h"

int main(int argc, char** argv) {
  postern::Config config;
  config.memory.size = 128 << 20;
  if (argc > 1) config.kernel = argv[1];
  if (argc > 2) config.initrd = argv[2];

  auto machine = postern::Machine::Create(config);
  if (!machine) {
    (void)std::fprintf(stderr, "%s\n%s\n", machine.error().cause.c_str(),
                       machine.error().next_step.c_str());
    return 1;
  }
  if (auto started = (*machine)->Start(); !started) {
    (void)std::fprintf(stderr, "%s\n", started.error().cause.c_str());
    return 1;
  }
  const postern::ExitReport end = (*machine)->Wait();
  if (!end.text.empty()) (void)std::fprintf(stderr, "%s\n", end.text.c_str());
  return end.exit_code();
}
