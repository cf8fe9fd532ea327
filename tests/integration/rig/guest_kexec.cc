// Starts another kernel in the place of the running one, without a reset of the machine between:
// what kexec-tools does by kexec_file_load(2), for a guest that has no such package.
//
//   guest_kexec KERNEL INITRD COMMAND-LINE     ends in the other kernel, or with 1 and the cause

#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

int Die(const char* what) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
  dprintf(STDERR_FILENO, "guest_kexec: %s: %s\n", what, strerror(errno));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    dprintf(STDERR_FILENO, "usage: guest_kexec KERNEL INITRD COMMAND-LINE\n");
    return 2;
  }
  const int kernel = open(argv[1], O_RDONLY | O_CLOEXEC);
  if (kernel < 0) return Die(argv[1]);
  const int initrd = open(argv[2], O_RDONLY | O_CLOEXEC);
  if (initrd < 0) return Die(argv[2]);
  if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], 0UL) != 0)
    return Die("kexec_file_load");
  (void)reboot(static_cast<int>(LINUX_REBOOT_CMD_KEXEC));
  return Die("reboot");
}
