// The loads of bench/compare, as one static program for the guest and the host.
//
//   load randread DEVICE SECONDS DEPTH   4 KiB O_DIRECT reads at random places: "LOAD ops=N us=N"
//   load sequential DEVICE SECONDS       256 KiB O_DIRECT reads, 8 at a time: "LOAD ops=N us=N"
//   load send ADDRESS PORT SECONDS       TCP as fast as it goes: "LOAD bytes=N us=N"
//   load receive ADDRESS PORT            connects and reads to the end: "LOAD bytes=N us=N"
//   load sink PORT, load source PORT SECONDS   the host's ends of send and receive; one connection

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kSmall = 4096;
constexpr std::size_t kLarge = 256 << 10;
constexpr unsigned kSequentialDepth = 8;
constexpr std::size_t kChunk = 128 << 10;

[[noreturn]] void Die(const char* what) {
  (void)std::fprintf(stderr, "load: %s: %s\n", what, strerrordesc_np(errno));
  _exit(1);
}

std::uint64_t NowUs() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000 +
         static_cast<std::uint64_t>(t.tv_nsec) / 1000;
}

std::uint64_t Next(std::uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 20;
}

// Reads of `block` bytes, `depth` at a time, at random places or one after the other.
int Reads(const char* device, std::uint64_t seconds, unsigned depth, std::size_t block,
          bool random) {
  const int fd = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd < 0) Die(device);
  std::uint64_t size = 0;
  if (ioctl(fd, BLKGETSIZE64, &size) != 0) Die("BLKGETSIZE64");
  const std::uint64_t blocks = size / block;
  aio_context_t context = 0;
  if (syscall(SYS_io_setup, depth, &context) != 0) Die("io_setup");
  std::vector<iocb> requests(depth);
  void* memory = std::aligned_alloc(kSmall, block * depth);
  std::uint64_t state = 42;
  std::uint64_t next = 0;
  const auto submit = [&](std::size_t index) {
    iocb& request = requests[index];
    request = {};
    request.aio_data = index;
    request.aio_lio_opcode = IOCB_CMD_PREAD;
    request.aio_fildes = static_cast<std::uint32_t>(fd);
    request.aio_buf = reinterpret_cast<std::uintptr_t>(memory) + index * block;
    request.aio_nbytes = block;
    request.aio_offset =
        static_cast<std::int64_t>((random ? Next(state) : next++) % blocks * block);
    iocb* list[] = {&request};
    if (syscall(SYS_io_submit, context, 1, list) != 1) Die("io_submit");
  };
  const std::uint64_t start = NowUs();
  const std::uint64_t end = start + seconds * 1'000'000;
  std::uint64_t ops = 0;
  for (std::size_t i = 0; i < depth; ++i) submit(i);
  std::vector<io_event> events(depth);
  unsigned in_flight = depth;
  while (in_flight > 0) {
    const long got = syscall(SYS_io_getevents, context, 1, depth, events.data(), nullptr);
    if (got < 0) Die("io_getevents");
    const bool more = NowUs() < end;
    for (long i = 0; i < got; ++i) {
      const io_event& event = events[static_cast<std::size_t>(i)];
      if (event.res != static_cast<std::int64_t>(block)) Die("a read came back short");
      ++ops;
      if (more) {
        submit(event.data);
      } else {
        --in_flight;
      }
    }
  }
  std::printf("LOAD ops=%llu us=%llu\n", static_cast<unsigned long long>(ops),
              static_cast<unsigned long long>(NowUs() - start));
  return 0;
}

int Connect(const char* address, int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  if (inet_pton(AF_INET, address, &to.sin_addr) != 1) Die("address");
  for (int tries = 0; connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0; ++tries) {
    if (tries == 50) Die("connect");
    usleep(100'000);
  }
  return fd;
}

int Accept(int port) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<std::uint16_t>(port));
  if (bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0) Die("bind");
  if (listen(listener, 1) != 0) Die("listen");
  const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) Die("accept");
  return fd;
}

int Pour(int fd, std::uint64_t seconds) {
  const std::vector<char> chunk(kChunk, 'x');
  const std::uint64_t start = NowUs();
  std::uint64_t bytes = 0;
  while (NowUs() - start < seconds * 1'000'000) {
    const ssize_t n = write(fd, chunk.data(), chunk.size());
    if (n < 0) Die("write");
    bytes += static_cast<std::uint64_t>(n);
  }
  shutdown(fd, SHUT_WR);
  // The other side closes when it has all of it.
  char byte = 0;
  while (read(fd, &byte, 1) > 0) {
  }
  std::printf("LOAD bytes=%llu us=%llu\n", static_cast<unsigned long long>(bytes),
              static_cast<unsigned long long>(NowUs() - start));
  return 0;
}

int Drain(int fd) {
  std::vector<char> chunk(kChunk);
  const std::uint64_t start = NowUs();
  std::uint64_t bytes = 0;
  ssize_t n = 0;
  while ((n = read(fd, chunk.data(), chunk.size())) > 0) bytes += static_cast<std::uint64_t>(n);
  if (n < 0) Die("read");
  std::printf("LOAD bytes=%llu us=%llu\n", static_cast<unsigned long long>(bytes),
              static_cast<unsigned long long>(NowUs() - start));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  (void)signal(SIGPIPE, SIG_IGN);
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "randread" && argc == 5) {
    return Reads(argv[2], std::strtoull(argv[3], nullptr, 10),
                 static_cast<unsigned>(std::strtoul(argv[4], nullptr, 10)), kSmall, true);
  }
  if (mode == "sequential" && argc == 4)
    return Reads(argv[2], std::strtoull(argv[3], nullptr, 10), kSequentialDepth, kLarge, false);
  if (mode == "send" && argc == 5)
    return Pour(Connect(argv[2], std::atoi(argv[3])), std::strtoull(argv[4], nullptr, 10));
  if (mode == "receive" && argc == 4) return Drain(Connect(argv[2], std::atoi(argv[3])));
  if (mode == "sink" && argc == 3) return Drain(Accept(std::atoi(argv[2])));
  if (mode == "source" && argc == 4)
    return Pour(Accept(std::atoi(argv[2])), std::strtoull(argv[3], nullptr, 10));
  (void)std::fprintf(stderr, "load: wrong arguments; see the top of load.cc\n");
  return 2;
}
