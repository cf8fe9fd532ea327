// Serves the test function on a vfio-user socket until it is told to end (SIGTERM, SIGINT), for
// integration tests that want the device in a process of its own.

#include <signal.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "tests/support/vfio_user_server.h"

namespace {

constexpr const char* kUsage =
    "usage: vfio_user_device [--intx] [--vectors N] [--dma-by-message] [--dma-after-reply] SOCKET\n"
    "Serves a PCI function (DMA engine, mappable memory, MSI-X) on SOCKET by vfio-user, one "
    "client\n"
    "after the other, until SIGTERM or SIGINT.\n";

int Usage(std::FILE* to, int code) {
  (void)std::fputs(kUsage, to);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  postern::testing::VfioUserServerOptions options;
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--help") return Usage(stdout, 0);
    if (argument == "--intx") {
      options.function.intx = true;
    } else if (argument == "--dma-by-message") {
      options.dma_by_message = true;
    } else if (argument == "--dma-after-reply") {
      options.dma_after_reply = true;
    } else if (argument == "--vectors" && i + 1 < argc) {
      const unsigned long vectors = std::strtoul(argv[++i], nullptr, 10);
      if (vectors < 1 || vectors > 256) return Usage(stderr, 2);
      options.function.vectors = static_cast<unsigned>(vectors);
    } else if (!argument.starts_with("--") && path.empty()) {
      path = argument;
    } else {
      return Usage(stderr, 2);
    }
  }
  if (path.empty()) return Usage(stderr, 2);
  // Before there are threads, so that none of them takes the signal.
  sigset_t end;
  (void)sigemptyset(&end);
  (void)sigaddset(&end, SIGTERM);
  (void)sigaddset(&end, SIGINT);
  if (pthread_sigmask(SIG_BLOCK, &end, nullptr) != 0) return 1;
  const postern::testing::VfioUserServer server(options, path);
  (void)std::printf("serving %s\n", path.c_str());
  (void)std::fflush(stdout);
  int signal = 0;
  return sigwait(&end, &signal) == 0 ? 0 : 1;
}
