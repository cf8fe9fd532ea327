// first_run COMMAND ARGS...: starts a virtual machine monitor and stops the clock when one of its
// threads first enters a guest.
//
// Prints one line of JSON: wall_us and cpu_us from just before execve to the first KVM_RUN, maximum
// resident set so far, and how many system calls were stopped for. The monitor is killed then. A
// seccomp filter makes the kernel stop the monitor at that one request and at nothing else, so that
// the measurement costs the two monitors nothing between start and first run but the stops at
// thread creation.
//
// Source: Linux Documentation/userspace-api/seccomp_filter.rst (SECCOMP_RET_TRACE), ptrace(2).

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string>

namespace {

std::int64_t NowUs(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return std::int64_t{t.tv_sec} * 1'000'000 + t.tv_nsec / 1000;
}

// Stops ioctl(fd, KVM_RUN, ...) for the tracer; everything else goes on.
bool InstallFilter() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(KVM_RUN), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{sizeof(code) / sizeof(code[0]), code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

std::int64_t StatusKib(pid_t pid, const std::string& field) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1));
  }
  return -1;
}

pid_t ThreadGroup(pid_t thread) {
  return static_cast<pid_t>(StatusKib(thread, "Tgid"));
}

int Fail(const char* what) {
  (void)std::fprintf(stderr, "first_run: %s: %s\n", what, strerrordesc_np(errno));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    (void)std::fprintf(stderr, "usage: first_run COMMAND ARGS...\n");
    return 2;
  }
  const pid_t child = fork();
  if (child < 0) return Fail("fork");
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(126);
    (void)raise(SIGSTOP);
    if (!InstallFilter()) _exit(126);
    execvp(argv[1], argv + 1);
    _exit(127);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return Fail("start");
  const long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                       PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
  if (ptrace(PTRACE_SETOPTIONS, child, nullptr, options) != 0) return Fail("ptrace");
  std::int64_t start = NowUs(CLOCK_MONOTONIC);
  unsigned stops = 0;
  pid_t stopped = child;
  while (true) {
    const int signal = WIFSTOPPED(status) && status >> 16 == 0 ? WSTOPSIG(status) : 0;
    const bool ours = signal == SIGSTOP || signal == SIGTRAP;
    ptrace(PTRACE_CONT, stopped, nullptr, ours ? 0L : static_cast<long>(signal));
    stopped = waitpid(-1, &status, __WALL);
    if (stopped < 0) return Fail("wait");
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      if (stopped != child) continue;
      (void)std::fprintf(stderr, "first_run: %s ended before it ran a guest\n", argv[1]);
      return 1;
    }
    ++stops;
    const int event = status >> 16;
    if (event == PTRACE_EVENT_EXEC && stopped == child) start = NowUs(CLOCK_MONOTONIC);
    if (event == PTRACE_EVENT_SECCOMP) break;
  }
  const std::int64_t wall = NowUs(CLOCK_MONOTONIC) - start;
  const pid_t group = ThreadGroup(stopped);
  clockid_t clock{};
  const std::int64_t cpu = clock_getcpuclockid(group, &clock) == 0 ? NowUs(clock) : -1;
  std::printf("{\"wall_us\": %lld, \"cpu_us\": %lld, \"max_rss_kib\": %lld, \"stops\": %u}\n",
              static_cast<long long>(wall), static_cast<long long>(cpu),
              static_cast<long long>(StatusKib(group, "VmHWM")), stops);
  kill(child, SIGKILL);
  return 0;
}
