// Descriptors, mappings, eventfds, threads, sockets and random bytes: the parts of base that wrap
// system calls.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "src/base/direct_store.h"
#include "src/base/event_fd.h"
#include "src/base/fd.h"
#include "src/base/fd_passing.h"
#include "src/base/mmap.h"
#include "src/base/random.h"
#include "src/base/thread.h"
#include "src/base/unix_socket.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

bool IsOpen(int fd) {
  return fcntl(fd, F_GETFD) >= 0;
}

class TempDir {
 public:
  TempDir() {
    path_ = "/tmp/postern-XXXXXX";  // not TEST_TMPDIR: a socket's path is short
    REQUIRE(mkdtemp(path_.data()) != nullptr);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::pair<Fd, Fd> SocketPair() {
  int fds[2] = {-1, -1};
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

TEST_CASE("fd: is closed once, by its last owner") {
  Fd first(open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(first.valid());
  const int number = first.get();
  Fd second = std::move(first);
  CHECK_FALSE(
      first.valid());  // NOLINT(bugprone-use-after-move): what a moved-from Fd is, is the point
  CHECK(IsOpen(number));
  Fd& same = second;
  second = std::move(same);
  CHECK(second.get() == number);
  Result<Fd> copy = second.Duplicate();
  REQUIRE(copy);
  CHECK((fcntl(copy->get(), F_GETFD) & FD_CLOEXEC) != 0);
  second.Close();
  CHECK_FALSE(IsOpen(number));
  CHECK(IsOpen(copy->get()));
  CHECK_FALSE(Fd().Duplicate().has_value());
  const int released = copy->release();
  CHECK(IsOpen(released));
  close(released);
}

TEST_CASE("event_fd: counts, clears and never blocks") {
  Result<EventFd> event = EventFd::Create();
  REQUIRE(event);
  CHECK_FALSE(event->Pending());
  CHECK(event->Consume() == 0);
  event->Signal();
  event->Signal();
  CHECK(event->Pending());
  Result<EventFd> copy = event->Duplicate();
  REQUIRE(copy);
  CHECK(copy->Consume() == 2);
  CHECK_FALSE(event->Pending());
  const std::uint64_t most = ~std::uint64_t{0} - 1;
  REQUIRE(write(event->fd(), &most, sizeof(most)) == sizeof(most));
  event->Signal();  // would block a blocking eventfd
  CHECK(event->Consume() == most);
}

TEST_CASE("mmap: maps, moves and unmaps") {
  Result<Mmap> mapping = Mmap::Create(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  REQUIRE(mapping);
  CHECK(mapping->size() == 8192);
  mapping->data()[8191] = std::byte{7};
  std::byte* const base = mapping->data();
  Mmap moved = std::move(*mapping);
  CHECK(mapping->data() == nullptr);
  CHECK(moved.data() == base);
  CHECK(msync(base, 8192, MS_ASYNC) == 0);
  moved.Unmap();
  CHECK(msync(base, 8192, MS_ASYNC) != 0);
  CHECK(errno == ENOMEM);

  CHECK(Mmap::Create(0, PROT_READ, MAP_PRIVATE).error().code == Errc::kInvalidArgument);
  CHECK(Mmap::Create(4096, PROT_READ, MAP_PRIVATE, 0, ~std::uint64_t{0}).error().code ==
        Errc::kInvalidArgument);
  const Fd file(memfd_create("test", MFD_CLOEXEC));
  CHECK(Mmap::Create(4096, PROT_READ, MAP_SHARED, file.get(), 1).error().sys_errno == EINVAL);
}

TEST_CASE("mmap: a large file is mapped where huge pages can be, and all of it is unmapped") {
  const Fd file(memfd_create("test", MFD_CLOEXEC));
  REQUIRE(ftruncate(file.get(), std::int64_t{4} << 30) == 0);
  struct Row {
    std::uint64_t offset, size, alignment;
  };
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  for (const Row& row :
       {Row{0, 4096, 4096}, Row{4096, 2 * kMiB, 2 * kMiB}, Row{2 * kMiB, 3 * kMiB, 2 * kMiB},
        Row{8 * kMiB + 4096, 8 * kMiB - 4096, 4 * kMiB}, Row{kMiB, 1024 * kMiB, 1024 * kMiB},
        Row{0, 2048 * kMiB, 1024 * kMiB}}) {
    CAPTURE(row.offset);
    CAPTURE(row.size);
    const std::byte value{static_cast<unsigned char>(row.size >> 12)};
    Result<Mmap> mapping =
        Mmap::CreateCongruent(row.size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), row.offset);
    REQUIRE(mapping);
    REQUIRE(mapping->size() == row.size);
    const auto address = reinterpret_cast<std::uintptr_t>(mapping->data());
    CHECK(address % row.alignment == row.offset % row.alignment);
    mapping->data()[row.size - 1] = value;
    std::byte read{};
    REQUIRE(pread(file.get(), &read, 1, static_cast<off_t>(row.offset + row.size - 1)) == 1);
    CHECK(read == value);
    std::byte* const base = mapping->data();
    mapping->Unmap();
    CHECK(msync(base, row.size, MS_ASYNC) != 0);
  }
  CHECK_FALSE(Mmap::CreateCongruent(4 * kMiB, PROT_READ, MAP_SHARED, file.get(), 1));
  CHECK_FALSE(
      Mmap::CreateCongruent(4 * kMiB, PROT_READ, MAP_SHARED, file.get(), ~std::uint64_t{0}));
}

TEST_CASE("thread: runs under its name and is joined by its owner") {
  std::array<char, 16> name{};
  std::atomic<int> ran{0};
  {
    Result<Thread> thread = Thread::Start("a-name-that-is-long", [&] {
      pthread_getname_np(pthread_self(), name.data(), name.size());
      ++ran;
    });
    REQUIRE(thread);
    CHECK(thread->joinable());
    Thread moved = std::move(*thread);
    CHECK_FALSE(thread->joinable());
  }
  CHECK(ran == 1);
  CHECK(std::string(name.data()) == "a-name-that-is-");
  Thread replaced = std::move(*Thread::Start("one", [&] { ++ran; }));
  replaced = std::move(*Thread::Start("two", [&] { ++ran; }));
  CHECK(ran >= 2);  // assignment joined the first
  replaced.Join();
  replaced.Join();
  CHECK(ran == 3);
}

TEST_CASE("random: fills all of it") {
  std::vector<std::byte> bytes(100'000);
  REQUIRE(FillRandom(bytes).has_value());
  // 100000 random bytes lack some value with probability 1e-167, and end in 32 zeroes with 1e-77.
  std::array<bool, 256> seen{};
  for (const std::byte byte : bytes) seen[std::to_integer<std::size_t>(byte)] = true;
  CHECK(std::count(seen.begin(), seen.end(), true) == 256);
  CHECK(std::any_of(bytes.end() - 32, bytes.end(), [](std::byte b) { return b != std::byte{0}; }));
  CHECK(FillRandom({}).has_value());
}

TEST_CASE("unix_socket: a listener accepts, replaces a stale socket and removes its own name") {
  const TempDir dir;
  const std::string path = dir / "s";
  {
    Outcome<UnixListener> listener = UnixListener::Create(path, "test socket");
    REQUIRE(listener.has_value());
    struct stat info {};
    REQUIRE(lstat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
    CHECK(listener->Accept().error().code == Errc::kNotFound);
    const Result<Fd> client = ConnectUnix(path);
    REQUIRE(client);
    const Result<Fd> server = listener->Accept();
    REQUIRE(server);
    CHECK((fcntl(server->get(), F_GETFL) & O_NONBLOCK) != 0);
    CHECK((fcntl(server->get(), F_GETFD) & FD_CLOEXEC) != 0);

    const Outcome<UnixListener> second = UnixListener::Create(path, "test socket");
    REQUIRE_FALSE(second.has_value());
    CHECK(second.error().cause.find("another process listens there") != std::string::npos);
    CHECK(ConnectUnix(path).has_value());  // the first is unharmed
  }
  CHECK(access(path.c_str(), F_OK) != 0);

  {
    // A socket nobody listens on any more.
    Outcome<UnixListener> gone = UnixListener::Create(path, "test socket");
    REQUIRE(gone.has_value());
    REQUIRE(rename(path.c_str(), (path + "2").c_str()) == 0);
  }
  REQUIRE(rename((path + "2").c_str(), path.c_str()) == 0);
  Outcome<UnixListener> fresh = UnixListener::Create(path, "test socket");
  REQUIRE(fresh.has_value());
  // Another file under the name is not ours to remove.
  REQUIRE(unlink(path.c_str()) == 0);
  const Fd file(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  REQUIRE(file.valid());
  fresh->Close();
  CHECK(access(path.c_str(), F_OK) == 0);
  const Outcome<UnixListener> blocked = UnixListener::Create(path, "test socket");
  REQUIRE_FALSE(blocked.has_value());
  CHECK(blocked.error().kind == Failure::Kind::kConfig);
  CHECK(access(path.c_str(), F_OK) == 0);
}

TEST_CASE("unix_socket: a path that does not fit an address is refused before any system call") {
  const std::string fits(kMaxUnixPath, 'x');
  const std::string too_long(kMaxUnixPath + 1, 'x');
  CHECK(ConnectUnix(too_long).error().code == Errc::kInvalidArgument);
  CHECK(ConnectUnix("").error().code == Errc::kInvalidArgument);
  CHECK(ConnectUnix(fits).error().sys_errno == ENOENT);
  CHECK(UnixListener::Create(too_long, "x").error().kind == Failure::Kind::kConfig);
  CHECK(UnixListener::Create("/nonexistent-directory/s", "x").error().kind == Failure::Kind::kHost);
}

TEST_CASE("fd_passing: descriptors arrive close-on-exec with their bytes") {
  auto [left, right] = SocketPair();
  const Fd file(memfd_create("passed", MFD_CLOEXEC));
  REQUIRE(ftruncate(file.get(), 12345) == 0);
  const std::array<std::byte, 3> data{std::byte{1}, std::byte{2}, std::byte{3}};
  const std::array<int, 2> fds{file.get(), left.get()};
  CHECK(*SendWithFds(left.get(), data, fds) == 3);
  std::array<std::byte, 16> buffer{};
  Result<Received> got = ReceiveWithFds(right.get(), buffer, 2);
  REQUIRE(got);
  CHECK(got->size == 3);
  REQUIRE(got->fds.size() == 2);
  struct stat info {};
  REQUIRE(fstat(got->fds[0].get(), &info) == 0);
  CHECK(info.st_size == 12345);
  CHECK((fcntl(got->fds[0].get(), F_GETFD) & FD_CLOEXEC) != 0);

  CHECK(*SendWithFds(left.get(), data, {}) == 3);
  got = ReceiveWithFds(right.get(), buffer, 2);
  REQUIRE(got);
  CHECK(got->fds.empty());
  got->fds.clear();
  left.Close();
  got = ReceiveWithFds(right.get(), buffer, 2);
  REQUIRE(got);
  CHECK(got->size == 0);
  CHECK(SendWithFds(right.get(), data, {}).error().sys_errno == EPIPE);
}

TEST_CASE("fd_passing: more descriptors than agreed are refused and closed") {
  auto [left, right] = SocketPair();
  const Fd lowest_before = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::array<std::byte, 1> data{std::byte{1}};
  const std::vector<int> many(kMaxPassedFds, left.get());
  REQUIRE(SendWithFds(left.get(), data, many).has_value());
  std::array<std::byte, 1> buffer{};
  const Result<Received> got = ReceiveWithFds(right.get(), buffer, 1);
  REQUIRE_FALSE(got);
  CHECK(got.error().code == Errc::kPeerProtocol);
  const Fd lowest_after = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK(lowest_after.get() == lowest_before.get() + 1);  // nothing stayed open in between
  const std::vector<int> too_many(kMaxPassedFds + 1, left.get());
  CHECK(SendWithFds(left.get(), data, too_many).error().code == Errc::kInvalidArgument);
  CHECK(ReceiveWithFds(right.get(), {}, 1).error().code == Errc::kInvalidArgument);
}

TEST_CASE("direct store: 64 bytes arrive where they belong and nowhere else") {
  alignas(64) std::array<std::byte, 192> memory{};
  std::array<std::byte, 64> block{};
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = std::byte(i + 1);
  StoreBlock(memory.data() + 64, block);
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const bool inside = i >= 64 && i < 128;
    CHECK(memory[i] == (inside ? block[i - 64] : std::byte{0}));
  }
}

}  // namespace
}  // namespace postern
