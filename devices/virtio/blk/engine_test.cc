#include "devices/virtio/blk/engine.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "src/base/fd.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::Pattern;

struct Collect final : BlkCompletions {
  void OnDone(std::uint32_t tag, std::int64_t result) override {
    ++count;
    results[tag] = result;
    if (resubmit != nullptr) std::exchange(resubmit, nullptr)->Submit(again);
  }
  std::map<std::uint32_t, std::int64_t> results;
  int count = 0;
  BlkEngine* resubmit = nullptr;
  BlkOp again;
};

// An unlinked file on the disk of the build.
Fd MakeFile(std::span<const std::byte> content) {
  std::string path = "./engine_test.XXXXXX";
  Fd fd(mkostemp(path.data(), O_CLOEXEC));
  REQUIRE(fd.valid());
  unlink(path.c_str());
  REQUIRE(write(fd.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  return fd;
}

std::unique_ptr<BlkEngine> Make(bool uring, int fd, std::uint32_t depth) {
  if (!uring) return MakeSyncEngine(fd, depth);
  return MakeUringEngine(fd, depth).value();
}

iovec Piece(std::vector<std::byte>& bytes, std::size_t offset, std::size_t length) {
  return {bytes.data() + offset, length};
}

TEST_CASE("blk engine: moves bytes, reports how many, and forgets nothing") {
  for (const bool uring : {true, false}) {
    CAPTURE(uring);
    const auto content = Pattern(65536);
    const Fd file = MakeFile(content);
    const auto engine = Make(uring, file.get(), 8);
    Collect done;
    std::vector<std::byte> buffer(16384);
    const std::array<iovec, 2> two{Piece(buffer, 0, 100), Piece(buffer, 100, 3996)};
    const std::array<iovec, 1> end{Piece(buffer, 4096, 8192)};
    const std::array<iovec, 1> beyond{Piece(buffer, 12288, 512)};
    engine->Submit(
        {.kind = BlkOp::Kind::kRead, .tag = 1, .offset = 4096, .bytes = 4096, .iovecs = two});
    engine->Submit({.kind = BlkOp::Kind::kRead,
                    .tag = 2,
                    .offset = 65536 - 4096,
                    .bytes = 8192,
                    .iovecs = end});
    engine->Submit(
        {.kind = BlkOp::Kind::kRead, .tag = 3, .offset = 1 << 20, .bytes = 512, .iovecs = beyond});
    engine->Submit({.kind = BlkOp::Kind::kSync, .tag = 4});
    CHECK(done.count == 0);
    engine->Drain(done);
    CHECK(done.count == 4);
    CHECK(done.results[1] == 4096);
    CHECK(std::equal(buffer.begin(), buffer.begin() + 4096, content.begin() + 4096));
    CHECK(done.results[2] == 4096);  // the file ends
    CHECK(done.results[3] == 0);
    CHECK(done.results[4] == 0);

    auto news = Pattern(8192, 5);
    const std::array<iovec, 2> from{Piece(news, 0, 8000), Piece(news, 8000, 192)};
    engine->Submit({.kind = BlkOp::Kind::kWrite,
                    .durable = true,
                    .tag = 5,
                    .offset = 512,
                    .bytes = 8192,
                    .iovecs = from});
    engine->Drain(done);
    CHECK(done.results[5] == 8192);
    std::vector<std::byte> back(8192);
    REQUIRE(pread(file.get(), back.data(), back.size(), 512) == 8192);
    CHECK(back == news);
  }
}

TEST_CASE("blk engine: errors are negative numbers") {
  for (const bool uring : {true, false}) {
    CAPTURE(uring);
    // A read-only descriptor.
    const Fd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    const auto engine = Make(uring, file.get(), 4);
    Collect done;
    std::vector<std::byte> buffer(512);
    const std::array<iovec, 1> iovecs{Piece(buffer, 0, 512)};
    engine->Submit({.kind = BlkOp::Kind::kWrite, .tag = 7, .bytes = 512, .iovecs = iovecs});
    engine->Submit({.kind = BlkOp::Kind::kPunchHole, .tag = 8, .bytes = 512});
    engine->Drain(done);
    CHECK(done.results[7] == -EBADF);
    CHECK(done.results[8] == -EBADF);
  }
}

TEST_CASE("blk engine: what is submitted from a completion is carried out too") {
  for (const bool uring : {true, false}) {
    CAPTURE(uring);
    const Fd file = MakeFile(Pattern(4096));
    const auto engine = Make(uring, file.get(), 1);
    Collect done;
    done.resubmit = engine.get();
    done.again = {.kind = BlkOp::Kind::kSync, .tag = 2};
    engine->Submit({.kind = BlkOp::Kind::kSync, .tag = 1});
    engine->Drain(done);
    CHECK(done.count == 2);
    CHECK(done.results.contains(2));
  }
}

TEST_CASE("blk engine: io_uring wakes a poller when work that was put off is done") {
  const Fd file = MakeFile(Pattern(1 << 20));
  const auto engine = Make(true, file.get(), 4);
  for (int round = 0; round < 20; ++round) {
    Collect done;
    engine->Submit({.kind = BlkOp::Kind::kSync, .tag = 1});
    engine->Commit();
    engine->Reap(done);
    while (done.count == 0) {
      pollfd ready{engine->poll_fd(), POLLIN, 0};
      const int events = poll(&ready, 1, 10000);
      if (events < 0 && errno == EINTR) continue;
      REQUIRE(events == 1);
      engine->Reap(done);
    }
    CHECK(done.results[1] == 0);
  }
}

TEST_CASE("blk engine: when a sandbox closes io_uring, the rest goes by plain system calls") {
  const auto content = Pattern(65536, 3);
  const Fd file = MakeFile(content);
  Collect done;
  std::vector<std::byte> buffer(8192);
  bool filtered = false;
  // The filter holds for the thread that installs it, and ends with it.
  std::thread sandboxed([&] {
    const auto engine = Make(true, file.get(), 4);
    const std::array<sock_filter, 4> program{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_enter, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    sock_fprog filter{static_cast<unsigned short>(program.size()),
                      const_cast<sock_filter*>(program.data())};  // the kernel only reads it
    filtered = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
               prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
    const std::array<iovec, 1> first{Piece(buffer, 0, 4096)};
    const std::array<iovec, 1> second{Piece(buffer, 4096, 4096)};
    engine->Submit(
        {.kind = BlkOp::Kind::kRead, .tag = 1, .offset = 4096, .bytes = 4096, .iovecs = first});
    engine->Submit({.kind = BlkOp::Kind::kSync, .tag = 2});
    engine->Commit();
    engine->Reap(done);
    engine->Submit(
        {.kind = BlkOp::Kind::kRead, .tag = 3, .offset = 0, .bytes = 4096, .iovecs = second});
    engine->Drain(done);
  });
  sandboxed.join();
  REQUIRE(filtered);
  CHECK(done.count == 3);
  CHECK(done.results[1] == 4096);
  CHECK(done.results[2] == 0);
  CHECK(done.results[3] == 4096);
  CHECK(std::equal(buffer.begin(), buffer.begin() + 4096, content.begin() + 4096));
  CHECK(std::equal(buffer.begin() + 4096, buffer.end(), content.begin()));
}

}  // namespace
}  // namespace postern::virtio
