// One static program for both ends of the rig's traffic tests: it runs in the guest, which has no
// other tools for vsock or checked UDP, and on the host beside it.
//
//   agent send ENDPOINT BYTES      connects, sends a pattern, half-closes, compares the receiver's
//   count and digest agent recv ENDPOINT            accepts one connection, takes all, answers
//   "COUNT DIGEST" agent echo ENDPOINT            accepts one connection, returns every byte until
//   its end agent duplex ENDPOINT BYTES    connects to an echo, sends and receives at once,
//   compares every byte agent refused ENDPOINT         succeeds if a connection is refused or reset
//   agent udp-echo PORT            answers datagrams for ever
//   agent udp-ping ADDR PORT COUNT SIZE   sends datagrams one at a time, compares each answer,
//   resends lost ones agent power-button SECONDS     waits for the ACPI power button
//
// ENDPOINT: tcp:ADDRESS:PORT   vsock:CID:PORT   unix:PATH   hybrid:PATH:PORT (a host's way to a
// guest's vsock port: connect to PATH, say "CONNECT PORT", be told "OK N"). To listen, ADDRESS and
// CID name the local end; CID may be "any". Everything ends within five minutes. Exit code 0: all
// was as it must be.

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/input.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <vector>

// One process with one thread: what clang-tidy knows of functions that are not thread safe does not
// concern it. NOLINTBEGIN(concurrency-mt-unsafe)
namespace {

constexpr unsigned kLimitSeconds = 300;
constexpr size_t kChunk = 65536;

[[noreturn]] void Die(const std::string& what) {
  dprintf(STDERR_FILENO, "agent: %s: %s\n", what.c_str(), strerror(errno));
  exit(1);
}

[[noreturn]] void Wrong(const std::string& what) {
  dprintf(STDERR_FILENO, "agent: %s\n", what.c_str());
  exit(1);
}

uint64_t Number(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  unsigned long long value = strtoull(text.c_str(), &end, 10);
  if (errno != 0 || text.empty() || *end != '\0') Wrong("not a number: " + text);
  return value;
}

// The byte at `offset` of the pattern: no period that a page, a segment or a ring could hide
// behind.
uint8_t PatternByte(uint64_t offset) {
  uint64_t x = offset / 8 + 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  x ^= x >> 31;
  return static_cast<uint8_t>(x >> (8 * (offset % 8)));
}

void FillPattern(uint64_t offset, uint8_t* data, size_t length) {
  for (size_t i = 0; i < length; ++i) data[i] = PatternByte(offset + i);
}

// FNV-1a, 64 bits.
struct Digest {
  uint64_t value = 0xcbf29ce484222325U;
  uint64_t count = 0;

  void Add(const uint8_t* data, size_t length) {
    for (size_t i = 0; i < length; ++i) value = (value ^ data[i]) * 0x100000001b3U;
    count += length;
  }
  [[nodiscard]] std::string Text() const {
    char text[64];
    if (snprintf(text, sizeof(text), "%" PRIu64 " %016" PRIx64 "\n", count, value) < 0) return {};
    return text;
  }
};

struct Address {
  int family = 0;
  socklen_t length = 0;
  sockaddr_storage storage{};
  bool handshake = false;
  std::string handshake_port;
};

template <typename T>
void Put(Address* address, const T& value) {
  memcpy(&address->storage, &value, sizeof(value));
  address->length = sizeof(value);
}

Address UnixAddress(const std::string& path) {
  Address address;
  sockaddr_un value{};
  value.sun_family = AF_UNIX;
  if (path.size() >= sizeof(value.sun_path)) Wrong("path too long: " + path);
  memcpy(value.sun_path, path.c_str(), path.size() + 1);
  address.family = AF_UNIX;
  Put(&address, value);
  return address;
}

Address TcpAddress(const std::string& host, const std::string& port) {
  Address address;
  sockaddr_in value{};
  value.sin_family = AF_INET;
  value.sin_port = htons(static_cast<uint16_t>(Number(port)));
  if (inet_pton(AF_INET, host.c_str(), &value.sin_addr) != 1) Wrong("not an address: " + host);
  address.family = AF_INET;
  Put(&address, value);
  return address;
}

Address VsockAddress(const std::string& cid, const std::string& port) {
  Address address;
  sockaddr_vm value{};
  value.svm_family = AF_VSOCK;
  value.svm_port = static_cast<unsigned>(Number(port));
  value.svm_cid = cid == "any" ? VMADDR_CID_ANY : static_cast<unsigned>(Number(cid));
  address.family = AF_VSOCK;
  Put(&address, value);
  return address;
}

Address ParseEndpoint(const std::string& text) {
  size_t first = text.find(':');
  size_t last = text.rfind(':');
  std::string kind = text.substr(0, first);
  if (first == std::string::npos) Wrong("not an endpoint: " + text);
  if (kind == "unix") return UnixAddress(text.substr(first + 1));
  if (first == last) Wrong("not an endpoint: " + text);
  std::string middle = text.substr(first + 1, last - first - 1);
  std::string port = text.substr(last + 1);
  if (kind == "tcp") return TcpAddress(middle, port);
  if (kind == "vsock") return VsockAddress(middle, port);
  if (kind != "hybrid") Wrong("not an endpoint: " + text);
  Address address = UnixAddress(middle);
  address.handshake = true;
  address.handshake_port = port;
  return address;
}

const sockaddr* Raw(const Address& address) {
  return reinterpret_cast<const sockaddr*>(&address.storage);
}

int NewSocket(const Address& address) {
  int fd = socket(address.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) Die("socket");
  return fd;
}

void WriteAll(int fd, const void* data, size_t length) {
  const char* from = static_cast<const char*>(data);
  while (length > 0) {
    ssize_t n = write(fd, from, length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) Die("write");
    from += n;
    length -= static_cast<size_t>(n);
  }
}

size_t ReadSome(int fd, void* data, size_t length) {
  while (true) {
    ssize_t n = read(fd, data, length);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno != EINTR) Die("read");
  }
}

std::string ReadLine(int fd) {
  std::string line;
  char c;
  while (line.size() < 256 && ReadSome(fd, &c, 1) == 1) {
    line += c;
    if (c == '\n') return line;
  }
  return line;
}

// One attempt. False: refused, or closed before the handshake's answer.
bool TryConnect(const Address& address, int* result) {
  int fd = NewSocket(address);
  if (connect(fd, Raw(address), address.length) != 0) {
    close(fd);
    return false;
  }
  if (address.handshake) {
    std::string request = "CONNECT " + address.handshake_port + "\n";
    WriteAll(fd, request.data(), request.size());
    if (ReadLine(fd).rfind("OK ", 0) != 0) {
      close(fd);
      errno = ECONNRESET;
      return false;
    }
  }
  *result = fd;
  return true;
}

// The peer may still be on its way to listen().
int Connect(const Address& address) {
  int fd = -1;
  for (int tries = 0; tries < 2000; ++tries) {
    if (TryConnect(address, &fd)) return fd;
    usleep(100'000);
  }
  Die("connect");
}

int Accept(const Address& address) {
  int listener = NewSocket(address);
  int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address.family == AF_UNIX)
    unlink(reinterpret_cast<const sockaddr_un*>(&address.storage)->sun_path);
  if (bind(listener, Raw(address), address.length) != 0) Die("bind");
  if (listen(listener, 1) != 0) Die("listen");
  int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) Die("accept");
  close(listener);
  return fd;
}

void Send(const Address& address, uint64_t bytes) {
  int fd = Connect(address);
  Digest digest;
  std::vector<uint8_t> chunk(kChunk);
  while (digest.count < bytes) {
    size_t length =
        static_cast<size_t>(bytes - digest.count < kChunk ? bytes - digest.count : kChunk);
    FillPattern(digest.count, chunk.data(), length);
    WriteAll(fd, chunk.data(), length);
    digest.Add(chunk.data(), length);
  }
  if (shutdown(fd, SHUT_WR) != 0) Die("shutdown");
  std::string answer = ReadLine(fd);
  if (answer != digest.Text()) Wrong("sent " + digest.Text() + "the receiver has " + answer);
}

void Receive(const Address& address) {
  int fd = Accept(address);
  Digest digest;
  std::vector<uint8_t> chunk(kChunk);
  while (size_t n = ReadSome(fd, chunk.data(), chunk.size())) digest.Add(chunk.data(), n);
  WriteAll(fd, digest.Text().data(), digest.Text().size());
  dprintf(STDOUT_FILENO, "%s", digest.Text().c_str());
}

void Echo(const Address& address) {
  int fd = Accept(address);
  std::vector<uint8_t> chunk(kChunk);
  while (size_t n = ReadSome(fd, chunk.data(), chunk.size())) WriteAll(fd, chunk.data(), n);
}

void Duplex(const Address& address, uint64_t bytes) {
  int fd = Connect(address);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  std::vector<uint8_t> out(kChunk);
  std::vector<uint8_t> in(kChunk);
  uint64_t sent = 0;
  uint64_t received = 0;
  while (received < bytes) {
    short wanted = static_cast<short>(POLLIN | (sent < bytes ? POLLOUT : 0));
    pollfd ready{fd, wanted, 0};
    if (poll(&ready, 1, -1) < 0) Die("poll");
    if ((ready.revents & POLLOUT) != 0 && sent < bytes) {
      size_t length = static_cast<size_t>(bytes - sent < kChunk ? bytes - sent : kChunk);
      FillPattern(sent, out.data(), length);
      ssize_t n = write(fd, out.data(), length);
      if (n < 0 && errno != EAGAIN) Die("write");
      if (n > 0) sent += static_cast<uint64_t>(n);
      if (sent == bytes && shutdown(fd, SHUT_WR) != 0) Die("shutdown");
    }
    if ((ready.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      ssize_t n = read(fd, in.data(), in.size());
      if (n < 0 && errno == EAGAIN) continue;
      if (n < 0) Die("read");
      if (n == 0) Wrong("the echo ended after " + std::to_string(received) + " bytes");
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        if (in[i] != PatternByte(received + i))
          Wrong("wrong byte at " + std::to_string(received + i));
      }
      received += static_cast<uint64_t>(n);
    }
  }
}

void Refused(const Address& address) {
  int fd = -1;
  if (TryConnect(address, &fd)) Wrong("the connection was accepted");
}

void UdpEcho(const std::string& port) {
  Address address = TcpAddress("0.0.0.0", port);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, Raw(address), address.length) != 0) Die("udp bind");
  std::vector<uint8_t> datagram(65536);
  while (true) {
    sockaddr_in peer{};
    socklen_t length = sizeof(peer);
    ssize_t n = recvfrom(fd, datagram.data(), datagram.size(), 0,
                         reinterpret_cast<sockaddr*>(&peer), &length);
    if (n < 0) Die("recvfrom");
    sendto(fd, datagram.data(), static_cast<size_t>(n), 0, reinterpret_cast<sockaddr*>(&peer),
           length);
  }
}

void UdpPing(const Address& address, uint64_t count, uint64_t size) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, Raw(address), address.length) != 0) Die("udp connect");
  timeval wait{0, 500'000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
  if (size == 0 || size > 60000) Wrong("datagram size out of range");
  std::vector<uint8_t> out(size);
  std::vector<uint8_t> in(size + 1);
  for (uint64_t i = 0; i < count; ++i) {
    FillPattern(i * size, out.data(), out.size());
    int tries = 0;
    while (true) {
      if (++tries > 40) Wrong("no answer to datagram " + std::to_string(i));
      if (send(fd, out.data(), out.size(), 0) < 0) {
        usleep(100'000);
        continue;
      }
      ssize_t n = recv(fd, in.data(), in.size(), 0);
      if (n < 0) continue;
      if (static_cast<size_t>(n) == size && memcmp(in.data(), out.data(), size) == 0) break;
      // A late answer to an earlier try is no error; anything else is.
      if (i == 0 || static_cast<size_t>(n) != size || in[0] != PatternByte((i - 1) * size)) {
        Wrong("wrong answer to datagram " + std::to_string(i));
      }
    }
  }
}

// Linux Documentation/input/input.rst: events are fixed-size records of struct input_event.
void PowerButton(uint64_t seconds) {
  std::vector<pollfd> fds;
  DIR* folder = opendir("/dev/input");
  if (folder == nullptr) Die("/dev/input");
  while (dirent* entry = readdir(folder)) {
    if (strncmp(entry->d_name, "event", 5) != 0) continue;
    int fd = open((std::string("/dev/input/") + entry->d_name).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) fds.push_back({fd, POLLIN, 0});
  }
  closedir(folder);
  if (fds.empty()) Wrong("no input device");
  dprintf(STDOUT_FILENO, "waiting for the power button\n");
  time_t end = time(nullptr) + static_cast<time_t>(seconds);
  while (time(nullptr) < end) {
    if (poll(fds.data(), fds.size(), 1000) <= 0) continue;
    for (pollfd& entry : fds) {
      input_event event{};
      if ((entry.revents & POLLIN) == 0 || read(entry.fd, &event, sizeof(event)) != sizeof(event))
        continue;
      if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) return;
    }
  }
  Wrong("the power button was not pressed");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> args(argv + 1, argv + argc);
  static_cast<void>(signal(SIGPIPE, SIG_IGN));
  std::string verb = args.empty() ? "" : args[0];
  if (verb != "udp-echo") alarm(kLimitSeconds);
  if (verb == "send" && args.size() == 3) {
    Send(ParseEndpoint(args[1]), Number(args[2]));
  } else if (verb == "recv" && args.size() == 2) {
    Receive(ParseEndpoint(args[1]));
  } else if (verb == "echo" && args.size() == 2) {
    Echo(ParseEndpoint(args[1]));
  } else if (verb == "duplex" && args.size() == 3) {
    Duplex(ParseEndpoint(args[1]), Number(args[2]));
  } else if (verb == "refused" && args.size() == 2) {
    Refused(ParseEndpoint(args[1]));
  } else if (verb == "udp-echo" && args.size() == 2) {
    UdpEcho(args[1]);
  } else if (verb == "udp-ping" && args.size() == 5) {
    UdpPing(TcpAddress(args[1], args[2]), Number(args[3]), Number(args[4]));
  } else if (verb == "power-button" && args.size() == 2) {
    PowerButton(Number(args[1]));
  } else {
    Wrong("usage: see the head of guest_agent.cc");
  }
  return 0;
}
// NOLINTEND(concurrency-mt-unsafe)
