// Process 1 of the emulated host: makes the machine's own root file system the job's root, runs one
// job in it, and carries its standard streams, byte for byte, over virtio-serial ports. Statically
// linked.
//
// Ports (see `rig`, which is the other end of each):
//   vport0p1  control. rig -> init: key NUL value NUL pairs, the job's description, ended by "run".
//             init -> rig: lines: "up", "alive" (every few seconds from then on), "exit CODE
//             STDOUT_BYTES STDERR_BYTES", "error TEXT".
//   vport0p2  the job's standard output, or its terminal     vport0p3  its standard error
//   vport0p4  its standard input (or the terminal's input)
//
// Started as "modprobe" (the kernel runs /sbin/modprobe of the initramfs, not of the job's root),
// it enters the job's root and runs the modprobe found there: so the kernel's own module requests
// work. Started on the machine with --tsc-khz, it prints the frequency of the time stamp counter.

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include <string>
#include <vector>

// One process with one thread: what clang-tidy knows of functions that are not thread safe does not
// concern it. NOLINTBEGIN(concurrency-mt-unsafe)
namespace {

constexpr const char* kRoot = "/host";
constexpr int kCannotExecute = 126;
constexpr int kNotFound = 127;

struct Share {
  std::string tag;
  std::string path;
};

struct Job {
  std::string cwd = "/";
  std::string modules_dir;  // on the machine; shown to the job as /lib/modules/$(uname -r)
  std::vector<std::string> modules;
  std::vector<std::string> argv;
  std::vector<std::string> environment;
  std::vector<Share> shares;
  bool stdin_wanted = false;
  bool terminal = false;
  winsize size{};
};

int g_control = -1;

void Log(const char* format, ...) __attribute__((format(printf, 1, 2)));
void Log(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  int length = vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  if (length < 0) return;
  int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  dprintf(fd, "<3>rig: %s\n", text);
  close(fd);
}

bool WriteAll(int fd, const char* data, size_t length) {
  while (length > 0) {
    ssize_t n = write(fd, data, length);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
      pollfd ready{fd, POLLOUT, 0};
      poll(&ready, 1, -1);
      continue;
    }
    if (n <= 0) return false;
    data += n;
    length -= static_cast<size_t>(n);
  }
  return true;
}

void Tell(const std::string& line) {
  if (g_control >= 0) WriteAll(g_control, line.data(), line.size());
}

// Nothing can be done without this step: the other end prints the reason and ends the emulator.
[[noreturn]] void Fail(const std::string& what) {
  std::string reason = what + ": " + strerror(errno);
  Log("%s", reason.c_str());
  Tell("error " + reason + "\n");
  sleep(5);
  reboot(RB_POWER_OFF);
  _exit(1);
}

void Mount(const char* source, const char* target, const char* type, unsigned long flags,
           const char* options) {
  mkdir(target, 0755);
  if (mount(source, target, type, flags, options) != 0) Fail(std::string("mount ") + target);
}

// For what only some kernels have: its absence is the job's business.
void TryMount(const char* source, const char* target, const char* type) {
  mkdir(target, 0755);
  mount(source, target, type, 0, nullptr);
}

void LoadModule(const std::string& path) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    Log("%s: %s", path.c_str(), strerror(errno));
    return;
  }
  if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST) {
    Log("%s: %s", path.c_str(), strerror(errno));
  }
  close(fd);
}

// A list holds one module file name a line, dependencies first.
void LoadModules(const char* list) {
  FILE* file = fopen(list, "re");
  if (file == nullptr) return;
  char name[256];
  while (fgets(name, sizeof(name), file) != nullptr) {
    name[strcspn(name, "\n")] = '\0';
    LoadModule(std::string("/modules/") + name);
  }
  static_cast<void>(fclose(file));
}

// Ports appear some time after the driver's probe: they are announced over the control queue.
int OpenPort(int number) {
  std::string path = "/dev/vport0p" + std::to_string(number);
  for (int tries = 0; tries < 20000; ++tries) {
    int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd >= 0) return fd;
    usleep(500);
  }
  Fail("open " + path);
}

// Splits the control stream into its NUL-terminated strings.
class ControlReader {
 public:
  // Takes in what the port has. False: the other end is gone.
  bool Fill() {
    char chunk[4096];
    ssize_t n = read(g_control, chunk, sizeof(chunk));
    if (n < 0) return errno == EINTR || errno == EAGAIN;
    if (n == 0) return false;
    buffer_.append(chunk, static_cast<size_t>(n));
    return true;
  }
  bool Next(std::string* key, std::string* value) {
    size_t key_end = buffer_.find('\0');
    if (key_end == std::string::npos) return false;
    size_t value_end = buffer_.find('\0', key_end + 1);
    if (value_end == std::string::npos) return false;
    *key = buffer_.substr(0, key_end);
    *value = buffer_.substr(key_end + 1, value_end - key_end - 1);
    buffer_.erase(0, value_end + 1);
    return true;
  }

 private:
  std::string buffer_;
};

winsize ParseSize(const std::string& text) {
  winsize size{};
  unsigned rows = 24;
  unsigned columns = 80;
  if (sscanf(text.c_str(), "%u %u", &rows, &columns) != 2)
    Log("odd terminal size: %s", text.c_str());
  size.ws_row = static_cast<unsigned short>(rows);
  size.ws_col = static_cast<unsigned short>(columns);
  return size;
}

Job ReadJob(ControlReader* control) {
  Job job;
  std::string key;
  std::string value;
  int silent = 0;
  while (true) {
    while (control->Next(&key, &value)) {
      if (key == "run") return job;
      if (key == "cwd") job.cwd = value;
      if (key == "arg") job.argv.push_back(value);
      if (key == "env") job.environment.push_back(value);
      if (key == "modules-dir") job.modules_dir = value;
      if (key == "module") job.modules.push_back(value);
      if (key == "stdin") job.stdin_wanted = true;
      if (key == "terminal") {
        job.terminal = true;
        job.size = ParseSize(value);
      }
      if (key == "share") {
        size_t colon = value.find(':');
        if (colon != std::string::npos)
          job.shares.push_back({value.substr(0, colon), value.substr(colon + 1)});
      }
    }
    // A read before the port's "connected" message has arrived returns 0 as well.
    if (!control->Fill() && ++silent > 5000) Fail("no job was sent");
    if (silent > 0) usleep(1000);
  }
}

void MakeDirectories(const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    mkdir(path.substr(0, slash).c_str(), 0755);
  }
  mkdir(path.c_str(), 0755);
}

std::string InRoot(const std::string& path) {
  return kRoot + path;
}

void MountRoot() {
  Mount("host", "/lower", "9p", MS_RDONLY,
        "trans=virtio,version=9p2000.L,msize=512000,cache=loose");
  Mount("rig", "/upper", "tmpfs", 0, "mode=755");
  mkdir("/upper/data", 0755);
  mkdir("/upper/work", 0755);
  Mount("rig", kRoot, "overlay", 0, "lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work");
  for (const char* name : {"/dev", "/proc", "/sys"}) {
    mkdir(InRoot(name).c_str(), 0755);
    if (mount(name, InRoot(name).c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) {
      Fail(std::string("bind ") + name);
    }
  }
  // What the machine's own processes left in these is not this host's state.
  Mount("rig", InRoot("/run").c_str(), "tmpfs", 0, "mode=755");
  mkdir(InRoot("/run/lock").c_str(), 01777);
}

void PrepareJob(const Job& job) {
  for (const Share& share : job.shares) {
    MakeDirectories(InRoot(share.path));
    Mount(share.tag.c_str(), InRoot(share.path).c_str(), "9p", 0,
          "trans=virtio,version=9p2000.L,msize=512000,cache=none");
  }
  utsname name{};
  if (!job.modules_dir.empty() && uname(&name) == 0) {
    std::string target = InRoot(std::string("/lib/modules/") + name.release);
    MakeDirectories(target);
    if (mount(InRoot(job.modules_dir).c_str(), target.c_str(), nullptr, MS_BIND, nullptr) != 0) {
      Log("no modules for the job: %s: %s", job.modules_dir.c_str(), strerror(errno));
    }
  }
  sethostname("rig", 3);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq request{};
  strncpy(request.ifr_name, "lo", sizeof(request.ifr_name) - 1);
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (fd >= 0) {
    ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
  }
}

// Everything from fork to exec for a process in the job's root. `arguments` and `environment`
// outlive it.
[[noreturn]] void Exec(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment, const std::string& cwd) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (chroot(kRoot) != 0 || chdir("/") != 0) {
    dprintf(STDERR_FILENO, "rig: cannot enter the job's root: %s\n", strerror(errno));
    _exit(kCannotExecute);
  }
  if (chdir(cwd.c_str()) != 0) {
    dprintf(STDERR_FILENO, "rig: cannot enter %s: %s\n", cwd.c_str(), strerror(errno));
    _exit(kCannotExecute);
  }
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  clearenv();
  for (const std::string& entry : environment) putenv(const_cast<char*>(entry.c_str()));
  execvp(argv[0], argv.data());
  int error = errno;
  dprintf(STDERR_FILENO, "rig: cannot run %s: %s\n", argv[0], strerror(error));
  _exit(error == ENOENT ? kNotFound : kCannotExecute);
}

void RunModprobe(const Job& job) {
  if (job.modules.empty()) return;
  std::vector<std::string> arguments = {"/sbin/modprobe", "-a"};
  arguments.insert(arguments.end(), job.modules.begin(), job.modules.end());
  pid_t child = fork();
  if (child == 0) {
    int null = open("/dev/kmsg", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
    Exec(arguments, {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/");
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    errno = 0;
    Fail("modprobe of the modules asked for failed (see --verbose)");
  }
}

struct Streams {
  int out = -1;       // read end of the job's standard output, or the terminal's master
  int err = -1;       // read end of its standard error; -1 with a terminal
  int in = -1;        // write end of its standard input, or the terminal's master
  int child[3] = {};  // what the job gets
};

Streams MakeStreams(const Job& job) {
  Streams streams;
  if (job.terminal) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    int unlocked = 0;
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) != 0) Fail("open a terminal");
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    if (slave < 0) Fail("open the terminal's far end");
    ioctl(master, TIOCSWINSZ, &job.size);
    streams.out = master;
    streams.in = master;
    for (int& fd : streams.child) fd = slave;
    return streams;
  }
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) Fail("pipe");
  streams.out = out[0];
  streams.err = err[0];
  streams.child[1] = out[1];
  streams.child[2] = err[1];
  if (job.stdin_wanted) {
    int in[2];
    if (pipe2(in, O_CLOEXEC) != 0) Fail("pipe");
    streams.child[0] = in[0];
    streams.in = in[1];
    fcntl(streams.in, F_SETFL, O_NONBLOCK);
  } else {
    streams.child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
  fcntl(streams.out, F_SETFL, O_NONBLOCK);
  fcntl(streams.err, F_SETFL, O_NONBLOCK);
  return streams;
}

pid_t StartJob(const Job& job, const Streams& streams) {
  pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) {
    setsid();
    if (job.terminal) ioctl(streams.child[0], TIOCSCTTY, 0);
    for (int fd = 0; fd < 3; ++fd) dup2(streams.child[fd], fd);
    if (job.terminal) close(streams.child[0]);
    Exec(job.argv, job.environment, job.cwd);
  }
  for (int fd : streams.child) {
    close(fd);
    if (job.terminal) break;
  }
  return child;
}

// Moves what is there from a job's stream to its port. False: the stream has ended.
bool Forward(int from, int port, uint64_t* moved) {
  char chunk[32768];
  ssize_t n = read(from, chunk, sizeof(chunk));
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  if (n == 0) return false;
  if (!WriteAll(port, chunk, static_cast<size_t>(n))) return false;
  *moved += static_cast<uint64_t>(n);
  return true;
}

// The job's standard input: bytes wait here until the job takes them, so that nothing else waits
// for it.
struct Input {
  std::string waiting;
  uint64_t received = 0;
  uint64_t end = UINT64_MAX;  // known once the other end has said how many bytes there are

  [[nodiscard]] bool Finished() const { return received >= end && waiting.empty(); }
};

class Supervisor {
 public:
  Supervisor(const Job& job, ControlReader* control) : job_(job), control_(control) {
    out_port_ = OpenPort(2);
    err_port_ = OpenPort(3);
    in_port_ = OpenPort(4);
  }

  [[noreturn]] void Run() {
    sigset_t child_signal;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_signal, nullptr);
    signal_fd_ = signalfd(-1, &child_signal, SFD_CLOEXEC | SFD_NONBLOCK);
    static_cast<void>(signal(SIGPIPE, SIG_IGN));

    streams_ = MakeStreams(job_);
    out_open_ = true;
    err_open_ = streams_.err >= 0;
    in_open_ = streams_.in >= 0;
    Tell("up\n");
    child_ = StartJob(job_, streams_);
    while (true) {
      // With the job gone, what its streams still hold is passed on; who else holds them open is
      // not waited for.
      bool finishing = exit_code_ >= 0;
      bool progress = Step(finishing ? 0 : kAliveSeconds * 1000);
      TellAlive();
      if (finishing && !progress) break;
    }
    sync();
    Tell("exit " + std::to_string(exit_code_) + " " + std::to_string(out_bytes_) + " " +
         std::to_string(err_bytes_) + "\n");
    while (control_->Fill()) {
    }
    PowerOff();
  }

 private:
  [[noreturn]] static void PowerOff() {
    sync();
    reboot(RB_POWER_OFF);
    while (true) pause();
  }

  void TellAlive() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < next_alive_) return;
    next_alive_ = now.tv_sec + kAliveSeconds;
    Tell("alive\n");
  }

  // One round of poll. True if anything moved.
  bool Step(int timeout) {
    enum { kSignal, kControl, kOut, kErr, kPort, kIn, kCount };
    pollfd fds[kCount];
    for (pollfd& entry : fds) entry = {-1, 0, 0};
    fds[kSignal] = {signal_fd_, POLLIN, 0};
    fds[kControl] = {g_control, POLLIN, 0};
    if (out_open_) fds[kOut] = {streams_.out, POLLIN, 0};
    if (err_open_) fds[kErr] = {streams_.err, POLLIN, 0};
    if (in_open_ && input_.waiting.empty()) fds[kPort] = {in_port_, POLLIN, 0};
    if (in_open_ && !input_.waiting.empty()) fds[kIn] = {streams_.in, POLLOUT, 0};
    if (poll(fds, kCount, timeout) < 0) return true;

    bool progress = false;
    if (fds[kSignal].revents != 0) progress = Reap();
    if (fds[kControl].revents != 0) Control();
    if (fds[kOut].revents != 0) {
      uint64_t before = out_bytes_;
      out_open_ = Forward(streams_.out, out_port_, &out_bytes_);
      progress = progress || out_bytes_ != before;
    }
    if (fds[kErr].revents != 0) {
      uint64_t before = err_bytes_;
      err_open_ = Forward(streams_.err, err_port_, &err_bytes_);
      progress = progress || err_bytes_ != before;
    }
    if (fds[kPort].revents != 0) TakeInput();
    if (fds[kIn].revents != 0) GiveInput();
    return progress;
  }

  bool Reap() {
    signalfd_siginfo info{};
    while (read(signal_fd_, &info, sizeof(info)) > 0) {
    }
    bool reaped = false;
    int status = 0;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
      if (pid != child_) continue;
      exit_code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
      reaped = true;
    }
    return reaped;
  }

  void Control() {
    if (!control_->Fill()) PowerOff();
    std::string key;
    std::string value;
    while (control_->Next(&key, &value)) {
      if (key == "size" && job_.terminal) {
        winsize size = ParseSize(value);
        ioctl(streams_.out, TIOCSWINSZ, &size);
      } else if (key == "stdin-end") {
        input_.end = strtoull(value.c_str(), nullptr, 10);
        EndInput();
      } else if (key == "signal" && exit_code_ < 0) {
        kill(-child_, static_cast<int>(strtol(value.c_str(), nullptr, 10)));
      }
    }
  }

  void TakeInput() {
    char chunk[4096];
    ssize_t n = read(in_port_, chunk, sizeof(chunk));
    if (n <= 0) {
      usleep(1000);  // the port's "connected" message is not there yet, and poll reports a hang-up
      return;
    }
    input_.waiting.append(chunk, static_cast<size_t>(n));
    input_.received += static_cast<uint64_t>(n);
    GiveInput();
  }

  void GiveInput() {
    ssize_t n = write(streams_.in, input_.waiting.data(), input_.waiting.size());
    if (n > 0) input_.waiting.erase(0, static_cast<size_t>(n));
    if (n < 0 && errno != EAGAIN &&
        errno != EINTR) {  // the job has closed its end: the rest has no reader
      close(streams_.in);
      in_open_ = false;
      return;
    }
    EndInput();
  }

  void EndInput() {
    if (!in_open_ || job_.terminal || !input_.Finished()) return;
    close(streams_.in);
    in_open_ = false;
  }

  static constexpr int kAliveSeconds = 5;

  const Job& job_;
  ControlReader* control_;
  time_t next_alive_ = 0;
  Streams streams_;
  Input input_;
  int signal_fd_ = -1;
  int out_port_ = -1;
  int err_port_ = -1;
  int in_port_ = -1;
  bool out_open_ = false;
  bool err_open_ = false;
  bool in_open_ = false;
  uint64_t out_bytes_ = 0;
  uint64_t err_bytes_ = 0;
  pid_t child_ = -1;
  int exit_code_ = -1;
};

int64_t NowNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// A reading of both clocks at once: of several, the one that took least time.
struct Reading {
  int64_t ns = 0;
  uint64_t ticks = 0;
};
Reading ReadBothClocks() {
  Reading best;
  int64_t least = INT64_MAX;
  for (int i = 0; i < 50; ++i) {
    int64_t before = NowNs();
    uint64_t ticks = __rdtsc();
    int64_t took = NowNs() - before;
    if (took >= least) continue;
    least = took;
    best = {before + took / 2, ticks};
  }
  return best;
}

// The emulator's guest sees this machine's counter as it is. Left to measure it against an emulated
// timer on a busy machine, its kernel may find half the frequency, and its time then runs twice as
// fast.
uint64_t TscKhz() {
  Reading first = ReadBothClocks();
  usleep(30'000);
  Reading second = ReadBothClocks();
  return (second.ticks - first.ticks) * 1'000'000 / static_cast<uint64_t>(second.ns - first.ns);
}

int EnterRootAndModprobe(char** argv) {
  if (chroot(kRoot) != 0 || chdir("/") != 0) return 1;
  execv("/sbin/modprobe", argv);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "--tsc-khz") == 0) {
    dprintf(STDOUT_FILENO, "%llu\n", static_cast<unsigned long long>(TscKhz()));
    return 0;
  }
  if (getpid() != 1) return EnterRootAndModprobe(argv);
  umask(022);
  Mount("dev", "/dev", "devtmpfs", 0, nullptr);
  Mount("proc", "/proc", "proc", 0, nullptr);
  Mount("sys", "/sys", "sysfs", 0, nullptr);
  // KVM and the rest load while the root file system is mounted: the emulated host has more than
  // one CPU.
  pid_t loader = fork();
  if (loader == 0) {
    LoadModules("/modules/rest");
    _exit(0);
  }
  LoadModules("/modules/first");
  Mount("devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666");
  Mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777");
  TryMount("cgroup2", "/sys/fs/cgroup", "cgroup2");
  TryMount("debugfs", "/sys/kernel/debug", "debugfs");
  symlink("/proc/self/fd", "/dev/fd");
  symlink("/proc/self/fd/0", "/dev/stdin");
  symlink("/proc/self/fd/1", "/dev/stdout");
  symlink("/proc/self/fd/2", "/dev/stderr");
  MountRoot();

  g_control = OpenPort(1);
  ControlReader control;
  Job job = ReadJob(&control);
  PrepareJob(job);
  int status = 0;
  waitpid(loader, &status, 0);
  RunModprobe(job);
  Supervisor supervisor(job, &control);
  supervisor.Run();
}
// NOLINTEND(concurrency-mt-unsafe)
