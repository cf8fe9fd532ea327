#include "devices/virtio/blk/blk.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "src/memory/guest_memory.h"
#include "tests/support/device_rig.h"
#include "tests/support/hostile_driver.h"
#include "tests/support/memory.h"

#include <doctest/doctest.h>

namespace postern::virtio {
namespace {

using testing::DeviceRig;
using testing::DriverQueue;
using testing::HostileDriver;
using testing::Pattern;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::ptrdiff_t kSector = 512;

// A file that is gone when the test is over. On the disk of the build, not in RAM: O_DIRECT and
// holes are the file system's to do.
class TempFile {
 public:
  explicit TempFile(std::uint64_t size, const char* directory = ".") {
    std::string path = std::string(directory) + "/blk_test.XXXXXX";
    const int fd = mkostemp(path.data(), O_CLOEXEC);
    REQUIRE(fd >= 0);
    REQUIRE(ftruncate(fd, static_cast<off_t>(size)) == 0);
    close(fd);
    path_ = path;
  }
  ~TempFile() { unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::vector<std::byte> Read(std::uint64_t offset, std::size_t length) const {
    std::vector<std::byte> bytes(length);
    const Fd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(pread(fd.get(), bytes.data(), length, static_cast<off_t>(offset)) ==
            static_cast<ssize_t>(length));
    return bytes;
  }
  void Write(std::uint64_t offset, std::span<const std::byte> bytes) const {
    const Fd fd(open(path_.c_str(), O_WRONLY | O_CLOEXEC));
    REQUIRE(pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
            static_cast<ssize_t>(bytes.size()));
  }
  void Resize(std::uint64_t size) const {
    REQUIRE(truncate(path_.c_str(), static_cast<off_t>(size)) == 0);
  }
  [[nodiscard]] std::uint64_t AllocatedBytes() const {
    struct stat info {};
    REQUIRE(stat(path_.c_str(), &info) == 0);
    return static_cast<std::uint64_t>(info.st_blocks) * 512;
  }

 private:
  std::string path_;
};

// No file may grow or be written beyond `bytes` while this lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    static_cast<void>(signal(SIGXFSZ, SIG_IGN));
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old_) == 0);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() { static_cast<void>(setrlimit(RLIMIT_FSIZE, &old_)); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit old_{};
};

BlkHeader Header(std::uint32_t type, std::uint64_t sector) {
  return {le32(type), le32(0), le64(sector)};
}

struct Answer {
  std::uint32_t length = 0;
  BlkStatus status = BlkStatus::kIoErr;
  std::vector<std::byte> data;  // without the status byte
};

// A disk with a driver before it, on the test's own thread.
struct Fixture {
  explicit Fixture(const TempFile& file, BlkOptions options = {},
                   DeviceRig::Options rig_options = {}) {
    options.path = file.path();
    EventLoop* loops[] = {loop.get()};
    Outcome<std::unique_ptr<Blk>> created = Blk::Create(options, loops);
    REQUIRE_MESSAGE(created.has_value(), (created ? std::string() : created.error().cause));
    blk = *std::move(created);
    rig = std::make_unique<DeviceRig>(*blk, rig_options);
    rig->Activate();
  }

  Answer Wait() {
    const auto used = rig->WaitUsed(0);
    REQUIRE(used.has_value());
    Answer answer{used->length, BlkStatus::kIoErr, rig->driver(0).Written(used->head)};
    REQUIRE_FALSE(answer.data.empty());
    answer.status = static_cast<BlkStatus>(answer.data.back());
    answer.data.pop_back();
    return answer;
  }
  Answer Run(DriverQueue::Builder& request) {
    request.Publish();
    rig->Kick(0);
    return Wait();
  }
  Answer Read(std::uint64_t sector, std::uint32_t bytes) {
    return Run(rig->driver(0)
                   .Build()
                   .ReadableObject(Header(kBlkTypeIn, sector))
                   .Writable(bytes, std::byte{0xcc})
                   .Writable(1, std::byte{0xff}));
  }
  Answer Write(std::uint64_t sector, std::span<const std::byte> bytes) {
    return Run(rig->driver(0)
                   .Build()
                   .ReadableObject(Header(kBlkTypeOut, sector))
                   .Readable(bytes)
                   .Writable(1, std::byte{0xff}));
  }
  Answer Ranges(std::uint32_t type, std::span<const BlkRange> ranges) {
    return Run(rig->driver(0)
                   .Build()
                   .ReadableObject(Header(type, 0))
                   .Readable(std::as_bytes(ranges))
                   .Writable(1, std::byte{0xff}));
  }
  Answer Flush() {
    return Run(rig->driver(0)
                   .Build()
                   .ReadableObject(Header(kBlkTypeFlush, 0))
                   .Writable(1, std::byte{0xff}));
  }

  std::unique_ptr<EventLoop> loop = EventLoop::Create().value();
  std::unique_ptr<Blk> blk;
  std::unique_ptr<DeviceRig> rig;
};

BlkRange Range(std::uint64_t sector, std::uint32_t sectors, std::uint32_t flags = 0) {
  return {le64(sector), le32(sectors), le32(flags)};
}

std::string CreateError(const BlkOptions& options, Failure::Kind* kind = nullptr) {
  auto loop = EventLoop::Create().value();
  EventLoop* loops[] = {loop.get()};
  const auto created = Blk::Create(options, loops);
  REQUIRE_FALSE(created.has_value());
  if (kind != nullptr) *kind = created.error().kind;
  CHECK(created.error().cause.find('\n') == std::string::npos);
  return created.error().cause + "; " + created.error().next_step;
}

const std::array<BlkOptions::Engine, 2> kEngines{BlkOptions::Engine::kAuto,
                                                 BlkOptions::Engine::kSync};

// --- reading and writing ---

TEST_CASE("blk: reads and writes land where they should, by every engine, buffered and direct") {
  for (const BlkOptions::Engine engine : kEngines) {
    for (const bool direct : {false, true}) {
      for (const bool event_idx : {false, true}) {
        CAPTURE(static_cast<int>(engine));
        CAPTURE(direct);
        const TempFile file(4 * kMiB);
        const auto disk = Pattern(4 * kMiB, 1);
        file.Write(0, disk);
        Fixture f(file, {.direct = direct, .engine = engine},
                  {.event_idx = event_idx, .arena_size = kMiB});
        for (const std::uint32_t bytes : {4096U, 8192U, 131072U}) {
          const Answer read = f.Read(64, bytes);
          CHECK(read.status == BlkStatus::kOk);
          CHECK(read.length == bytes + 1);
          CHECK(std::equal(read.data.begin(), read.data.end(), disk.begin() + 64 * kSector));
        }
        const auto news = Pattern(12288, 2);
        const Answer write = f.Write(1024, news);
        CHECK(write.status == BlkStatus::kOk);
        CHECK(write.length == 1);
        CHECK(f.Flush().status == BlkStatus::kOk);
        CHECK(file.Read(1024 * kSector, 12288) == news);
        CHECK(file.Read(1024 * kSector - 512, 512) ==
              std::vector(disk.begin() + 1023 * kSector, disk.begin() + 1024 * kSector));
        CHECK(f.Read(1024, 12288).data == news);
        CHECK(f.rig->counter("reads") == 4);
        CHECK(f.rig->counter("read_bytes") == 4096 + 8192 + 131072 + 12288);
        CHECK(f.rig->counter("writes") == 1);
        CHECK(f.rig->counter("write_bytes") == 12288);
        CHECK(f.rig->counter("flushes") == 1);
        CHECK(f.rig->counter("errors") == 0);
      }
    }
  }
}

TEST_CASE("blk: the engine asked for is the engine used") {
  const TempFile file(kMiB);
  CHECK(Fixture(file, {.engine = BlkOptions::Engine::kSync}).blk->engine() == "sync");
  Fixture f(file, {.engine = BlkOptions::Engine::kIoUring});
  CHECK(f.blk->engine() == "io_uring");
}

TEST_CASE("blk: scattered buffers of odd sizes; with direct I/O they go through a bounce buffer") {
  for (const BlkOptions::Engine engine : kEngines) {
    for (const bool direct : {false, true}) {
      CAPTURE(direct);
      const TempFile file(8 * kMiB);
      const auto disk = Pattern(8 * kMiB, 3);
      file.Write(0, disk);
      Fixture f(file, {.direct = direct, .engine = engine}, {.arena_size = 8 * kMiB});
      DriverQueue& driver = f.rig->driver(0);
      // An odd address, and pieces that are no multiple of a sector; more than one bounce buffer in
      // all.
      const std::uint64_t odd = driver.Allocate(3 * kMiB + 1, 4096) + 1;
      const Answer read = f.Run(driver.Build()
                                    .ReadableObject(Header(kBlkTypeIn, 16))
                                    .WritableAt(odd, 700)
                                    .WritableAt(odd + 700, 3 * kMiB - 700)
                                    .Writable(1, std::byte{0xff}));
      CHECK(read.status == BlkStatus::kOk);
      CHECK(read.length == 3 * kMiB + 1);
      CHECK(std::equal(read.data.begin(), read.data.end(), disk.begin() + 16 * kSector));
      CHECK(f.rig->counter("bounced") == (direct ? 1 : 0));

      const auto news = Pattern(2 * kMiB, 4);
      testing::Store(f.rig->memory(), odd, news);
      const Answer write = f.Run(driver.Build()
                                     .ReadableObject(Header(kBlkTypeOut, 4096))
                                     .ReadableAt(odd, 3)
                                     .ReadableAt(odd + 3, 2 * kMiB - 3)
                                     .Writable(1, std::byte{0xff}));
      CHECK(write.status == BlkStatus::kOk);
      CHECK(f.Flush().status == BlkStatus::kOk);
      CHECK(file.Read(4096 * kSector, 2 * kMiB) == news);
      CHECK(f.rig->counter("bounced") == (direct ? 2 : 0));
    }
  }
}

TEST_CASE("blk: a batch is one system call and at most one interrupt") {
  const TempFile file(4 * kMiB);
  Fixture f(file, {.engine = BlkOptions::Engine::kIoUring}, {.event_idx = true});
  DriverQueue& driver = f.rig->driver(0);
  driver.SetUsedEvent(31);
  for (std::uint32_t i = 0; i < 32; ++i) {
    driver.Build()
        .ReadableObject(Header(kBlkTypeIn, std::uint64_t{i} * 8))
        .Writable(4096)
        .Writable(1)
        .Publish();
  }
  f.rig->Kick(0);
  for (int i = 0; i < 32; ++i) CHECK(f.Wait().status == BlkStatus::kOk);
  CHECK(f.rig->counter("commits") == 1);
  CHECK(f.rig->interrupt().queue_count(0) == 1);
  CHECK(f.rig->counter("kicks") <= 1);
}

TEST_CASE("blk: a full ring of indirect requests with many segments") {
  const TempFile file(16 * kMiB);
  const auto disk = Pattern(4 * kMiB, 5);
  file.Write(0, disk);
  for (const BlkOptions::Engine engine : kEngines) {
    Fixture f(file, {.engine = engine}, {.arena_size = 8 * kMiB});
    DriverQueue& driver = f.rig->driver(0);
    for (std::uint32_t i = 0; i < 256; ++i) {
      auto request = driver.Build();
      request.ReadableObject(Header(kBlkTypeIn, std::uint64_t{i} * 8));
      for (int part = 0; part < 16; ++part) request.Writable(256);
      request.Writable(1, std::byte{0xff}).Indirect();
      driver.StageHead(request.Place());
    }
    driver.PublishStaged();
    f.rig->Kick(0);
    std::uint32_t right = 0;
    for (std::uint32_t i = 0; i < 256; ++i) {
      const Answer answer = f.Wait();
      if (answer.status != BlkStatus::kOk) continue;
      for (std::ptrdiff_t sector = 0; sector < 2048; sector += 8) {
        if (std::equal(answer.data.begin(), answer.data.end(), disk.begin() + sector * kSector))
          ++right;
      }
    }
    CHECK(right == 256);
  }
}

TEST_CASE("blk: identification") {
  const TempFile file(kMiB);
  Fixture f(file, {.serial = "postern-0123456789ab"});
  const auto id = [&](std::uint32_t bytes) {
    return f.Run(f.rig->driver(0)
                     .Build()
                     .ReadableObject(Header(kBlkTypeGetId, 0))
                     .Writable(bytes, std::byte{0xee})
                     .Writable(1));
  };
  const Answer whole = id(20);
  CHECK(whole.status == BlkStatus::kOk);
  CHECK(whole.length == 21);
  CHECK(std::memcmp(whole.data.data(), "postern-0123456789ab", 20) == 0);
  CHECK(id(5).length == 6);
  const Answer more = id(30);
  CHECK(more.length == 21);
  CHECK(more.data[20] == std::byte{0xee});
}

TEST_CASE("blk: what cannot be served is answered, not done") {
  const TempFile file(kMiB);
  Fixture f(file);
  const auto sectors = static_cast<std::uint64_t>(kMiB / 512);
  CHECK(f.Read(sectors - 1, 512).status == BlkStatus::kOk);
  CHECK(f.Read(sectors, 512).status == BlkStatus::kIoErr);
  CHECK(f.Read(sectors - 1, 1024).status == BlkStatus::kIoErr);
  CHECK(f.Read(~std::uint64_t{0}, 512).status == BlkStatus::kIoErr);
  CHECK(f.Read(~std::uint64_t{0} / 512 + 1, 512).status == BlkStatus::kIoErr);
  CHECK(f.Read(0, 511).status == BlkStatus::kIoErr);
  CHECK(f.Read(0, 0).status == BlkStatus::kOk);
  CHECK(f.Write(sectors, Pattern(512)).status == BlkStatus::kIoErr);
  const Answer unknown =
      f.Run(f.rig->driver(0).Build().ReadableObject(Header(0x1234, 0)).Writable(1));
  CHECK(unknown.status == BlkStatus::kUnsupported);
  CHECK(unknown.length == 1);
  CHECK(f.rig->counter("errors") == 7);
  CHECK(f.rig->interrupt().needs_reset_count() == 0);
  CHECK(f.Read(0, 512).status == BlkStatus::kOk);
}

TEST_CASE("blk: a request that cannot even be answered stops the device until reset") {
  const TempFile file(kMiB);
  Fixture f(file);
  f.rig->driver(0).Build().ReadableObject(Header(kBlkTypeIn, 0)).Publish();
  f.rig->driver(0).Build().ReadableObject(Header(kBlkTypeFlush, 0)).Writable(1).Publish();
  f.rig->Kick(0);
  CHECK(f.rig->interrupt().needs_reset_count() == 1);
  CHECK(f.rig->counter("protocol_errors") == 1);
  CHECK(f.rig->counter("flushes") == 0);
  f.rig->Reset();
  f.rig->Activate();
  CHECK(f.Read(0, 512).status == BlkStatus::kOk);
}

TEST_CASE("blk: a read-only disk reads, and refuses all else") {
  const TempFile file(kMiB);
  Fixture f(file, {.readonly = true});
  CHECK((f.blk->features() & kBlkFeatureRo) != 0);
  CHECK((f.blk->features() & (kBlkFeatureDiscard | kBlkFeatureWriteZeroes | kBlkFeatureFlush)) ==
        0);
  CHECK(f.Read(0, 512).status == BlkStatus::kOk);
  CHECK(f.Write(0, Pattern(512)).status == BlkStatus::kIoErr);
  const std::array<BlkRange, 1> range{Range(0, 1)};
  CHECK(f.Ranges(kBlkTypeDiscard, range).status == BlkStatus::kIoErr);
  CHECK(f.Ranges(kBlkTypeWriteZeroes, range).status == BlkStatus::kIoErr);
  CHECK(f.Flush().status == BlkStatus::kOk);
  CHECK(file.Read(0, 512) == std::vector<std::byte>(512));
}

TEST_CASE("blk: discard makes holes, write-zeroes makes zeros with and without them") {
  for (const BlkOptions::Engine engine : kEngines) {
    const TempFile file(4 * kMiB);
    file.Write(0, Pattern(4 * kMiB, 6));
    Fixture f(file, {.engine = engine});
    if ((f.blk->features() & kBlkFeatureDiscard) == 0) {
      MESSAGE("this file system makes no holes: discard not tested");
    } else {
      const std::uint64_t before = file.AllocatedBytes();
      const std::array<BlkRange, 3> ranges{Range(0, 1024), Range(2048, 0), Range(4096, 1024)};
      const Answer discard = f.Ranges(kBlkTypeDiscard, ranges);
      CHECK(discard.status == BlkStatus::kOk);
      CHECK(discard.length == 1);
      CHECK(f.Flush().status == BlkStatus::kOk);
      CHECK(file.AllocatedBytes() < before);
      CHECK(file.Read(4096 * kSector, 1024 * kSector) == std::vector<std::byte>(1024 * kSector));
      CHECK(f.rig->counter("discards") == 1);
    }
    for (const std::uint32_t flags : {0U, kBlkRangeUnmap}) {
      CAPTURE(flags);
      file.Write(0, Pattern(kMiB, 7));
      const std::array<BlkRange, 2> ranges{Range(3, 5, flags), Range(100, 801, flags)};
      CHECK(f.Ranges(kBlkTypeWriteZeroes, ranges).status == BlkStatus::kOk);
      auto expected = Pattern(kMiB, 7);
      std::fill_n(expected.begin() + 3 * kSector, 5 * kSector, std::byte{0});
      std::fill_n(expected.begin() + 100 * kSector, 801 * kSector, std::byte{0});
      CHECK(f.Read(0, 65536).data == std::vector(expected.begin(), expected.begin() + 65536));
      CHECK(file.Read(0, kMiB) == expected);
    }
    CHECK(f.rig->counter("write_zeroes") == 2);
    // All ranges are checked before the first is carried out.
    const auto pattern = Pattern(4096, 8);
    file.Write(0, pattern);
    const std::array<BlkRange, 2> second_bad{Range(0, 8), Range(1 << 20, 8)};
    CHECK(f.Ranges(kBlkTypeWriteZeroes, second_bad).status == BlkStatus::kIoErr);
    const std::array<BlkRange, 1> bad_flags{Range(0, 8, 6)};
    CHECK(f.Ranges(kBlkTypeWriteZeroes, bad_flags).status == BlkStatus::kUnsupported);
    CHECK(f.Ranges(kBlkTypeDiscard, std::array{Range(0, 8, 1)}).status == BlkStatus::kUnsupported);
    CHECK(file.Read(0, 4096) == pattern);
  }
}

TEST_CASE("blk: where the host cannot zero a range, zeros are written") {
  // tmpfs knows holes but not FALLOC_FL_ZERO_RANGE.
  for (const BlkOptions::Engine engine : kEngines) {
    const TempFile file(24 * kMiB, "/dev/shm");
    const auto disk = Pattern(24 * kMiB, 9);
    file.Write(0, disk);
    Fixture f(file, {.engine = engine});
    CHECK(f.Ranges(kBlkTypeWriteZeroes, std::array{Range(8, 40000), Range(45000, 3)}).status ==
          BlkStatus::kOk);
    auto expected = disk;
    std::fill_n(expected.begin() + 8 * kSector, 40000 * kSector, std::byte{0});
    std::fill_n(expected.begin() + 45000 * kSector, 3 * kSector, std::byte{0});
    CHECK(file.Read(0, 24 * kMiB) == expected);
  }
}

// --- the host fails ---

TEST_CASE("blk: a file that is cut while in use gives I/O errors, and its driver lives") {
  for (const BlkOptions::Engine engine : kEngines) {
    const TempFile file(kMiB);
    Fixture f(file, {.engine = engine}, {.track_dirty = true});
    file.Resize(kMiB / 2);
    const Answer read = f.Read(1024 - 8, 8192);
    CHECK(read.status == BlkStatus::kIoErr);
    CHECK(read.length == 1);
    CHECK(f.Read(1024, 4096).status == BlkStatus::kIoErr);
    CHECK(f.Read(0, 4096).status == BlkStatus::kOk);
    CHECK(f.rig->interrupt().needs_reset_count() == 0);
  }
}

TEST_CASE("blk: a full disk under a write is the guest's I/O error, and the device lives") {
  // A limit on file sizes stands in for the full disk: the write fails the same way, with another
  // errno.
  for (const BlkOptions::Engine engine : kEngines) {
    const TempFile file(kMiB);
    Fixture f(file, {.engine = engine});
    Answer refused;
    Answer partial;
    {
      const FileSizeLimit limit(4096);
      refused = f.Write(16, Pattern(4096));
      partial = f.Write(0, Pattern(8192));
    }
    CHECK(refused.status == BlkStatus::kIoErr);
    CHECK(partial.status == BlkStatus::kIoErr);
    CHECK(f.Write(16, Pattern(4096)).status == BlkStatus::kOk);
    CHECK(f.rig->interrupt().needs_reset_count() == 0);
  }
}

TEST_CASE("blk: what the host wrote into the guest is dirty") {
  const TempFile file(kMiB);
  for (const BlkOptions::Engine engine : kEngines) {
    Fixture f(file, {.engine = engine}, {.track_dirty = true});
    const std::uint64_t buffer = f.rig->driver(0).Allocate(8192, 4096);
    DriverQueue::Builder request = f.rig->driver(0).Build();
    request.ReadableObject(Header(kBlkTypeIn, 0)).WritableAt(buffer, 8192).Writable(1);
    static_cast<void>(f.rig->memory()->regions()[0]->dirty()->Take());
    CHECK(f.Run(request).status == BlkStatus::kOk);
    CHECK(testing::IsDirty(f.rig->memory(), buffer));
    CHECK(testing::IsDirty(f.rig->memory(), buffer + 4096));
  }
}

// --- reset ---

TEST_CASE("blk: reset waits for what is in flight (regression CVE-2026-45782)") {
  const TempFile file(32 * kMiB);
  file.Write(0, Pattern(32 * kMiB, 10));
  for (const bool direct : {false, true}) {
    for (const bool queue_only : {false, true}) {
      Fixture f(file, {.direct = direct}, {.arena_size = 16 * kMiB});
      DriverQueue& driver = f.rig->driver(0);
      for (std::uint32_t i = 0; i < 64; ++i) {
        const std::uint64_t buffer = driver.Allocate(128 << 10, 4096);
        driver.StageHead(driver.Build()
                             .ReadableObject(Header(kBlkTypeIn, std::uint64_t{i} * 256))
                             .WritableAt(buffer, 128 << 10)
                             .Writable(1)
                             .Place());
      }
      driver.PublishStaged();
      f.rig->Kick(0);
      // The rig checks that no chain is out afterwards.
      if (queue_only) {
        f.rig->ResetQueue(0);
      } else {
        f.rig->Reset();
      }
      const auto after = testing::Load(f.rig->memory(), 0x1000, 1 << 20);
      f.rig->Run(20);
      CHECK(testing::Load(f.rig->memory(), 0x1000, 1 << 20) == after);
      if (queue_only) {
        f.rig->ResumeQueue(0);
      } else {
        f.rig->Activate();
      }
      CHECK(f.Read(0, 4096).status == BlkStatus::kOk);
    }
  }
}

TEST_CASE("blk: reset twice, of an idle device, and of a queue that is not there") {
  const TempFile file(kMiB);
  Fixture f(file);
  CHECK(f.blk->ResetQueue(7) == nullptr);
  CHECK(f.blk->Reset().queues.size() == 1);
  CHECK(f.blk->Reset().queues.empty());
  CHECK(f.blk->ResetQueue(0) == nullptr);
}

TEST_CASE("blk: saved queues continue where they were, and the driver is woken once") {
  const TempFile file(kMiB);
  Fixture f(file);
  CHECK(f.Write(0, Pattern(512)).status == BlkStatus::kOk);
  const BlkState state = f.blk->Save();
  const auto queues = f.rig->Reset();
  REQUIRE(queues.size() == 1);
  CHECK(queues[0].next_used == 1);
  REQUIRE(f.blk->Restore(state).has_value());
  const std::uint64_t interrupts = f.rig->interrupt().queue_count(0);
  f.rig->ActivateFrom(queues);
  CHECK(f.rig->interrupt().queue_count(0) == interrupts + 1);
  CHECK(f.Read(0, 512).data == Pattern(512));
}

TEST_CASE("blk: state that cannot be of this disk is refused") {
  const TempFile file(kMiB);
  auto loop = EventLoop::Create().value();
  EventLoop* loops[] = {loop.get()};
  auto blk = Blk::Create({.path = file.path()}, loops).value();
  const BlkState good = blk->Save();
  CHECK(good.capacity == kMiB / 512);
  CHECK(blk->Restore(good).has_value());
  CHECK_FALSE(blk->Restore({.version = 2, .capacity = good.capacity}).has_value());
  CHECK_FALSE(blk->Restore({.capacity = good.capacity + 1}).has_value());
  CHECK_FALSE(blk->Restore({.capacity = 0}).has_value());
  CHECK(blk->Restore({.capacity = good.capacity - 8, .writeback = false}).has_value());
  CHECK(blk->capacity() == good.capacity - 8);
  CHECK_FALSE(blk->Save().writeback);
}

// --- configuration ---

TEST_CASE("blk: configuration space") {
  const TempFile file(kMiB);
  Fixture f(file, {.num_queues = 2, .queue_size = 128});
  CHECK(f.rig->ConfigAt<le64>(offsetof(BlkConfig, capacity)).get() == kMiB / 512);
  CHECK(f.rig->ConfigAt<le32>(offsetof(BlkConfig, seg_max)).get() == 126);
  CHECK(f.rig->ConfigAt<le32>(offsetof(BlkConfig, blk_size)).get() == 512);
  CHECK(f.rig->ConfigAt<le16>(offsetof(BlkConfig, num_queues)).get() == 2);
  CHECK(f.rig->ConfigAt<le32>(offsetof(BlkConfig, max_write_zeroes_seg)).get() == 16);
  CHECK(f.rig->ConfigAt<std::uint8_t>(offsetof(BlkConfig, writeback)) == 1);
  CHECK((f.blk->features() & kBlkFeatureMq) != 0);
  // Any offset and width, also across the end and far beyond it.
  std::array<std::byte, 8> data{};
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{57}, std::uint64_t{60},
                                     std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    CAPTURE(offset);
    data.fill(std::byte{0xff});
    f.blk->ReadConfig(offset, data);
    if (offset >= 57) {
      CHECK(std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; }));
    }
    if (offset != offsetof(BlkConfig, writeback)) f.blk->WriteConfig(offset, data);
  }
  CHECK(f.rig->ConfigAt<le64>(0).get() == kMiB / 512);
  CHECK(f.rig->ConfigAt<std::uint8_t>(offsetof(BlkConfig, writeback)) == 1);
}

TEST_CASE("blk: the driver may switch between write-back and write-through, where it is offered") {
  constexpr std::uint64_t kWriteback = offsetof(BlkConfig, writeback);
  const std::array<std::byte, 1> off{std::byte{0}};
  const std::array<std::byte, 1> nonsense{std::byte{7}};
  const TempFile file(kMiB);
  {
    Fixture f(file);
    f.blk->WriteConfig(kWriteback, nonsense);
    CHECK(f.rig->ConfigAt<std::uint8_t>(kWriteback) == 1);
    f.blk->WriteConfig(kWriteback, off);
    CHECK(f.rig->ConfigAt<std::uint8_t>(kWriteback) == 0);
    CHECK(f.Write(0, Pattern(4096)).status == BlkStatus::kOk);
  }
  Fixture through(file, {.cache = BlkOptions::Cache::kWritethrough});
  CHECK((through.blk->features() & (kBlkFeatureFlush | kBlkFeatureConfigWce)) == 0);
  CHECK(through.rig->ConfigAt<std::uint8_t>(kWriteback) == 0);
  const std::array<std::byte, 1> on{std::byte{1}};
  through.blk->WriteConfig(kWriteback, on);
  CHECK(through.rig->ConfigAt<std::uint8_t>(kWriteback) == 0);
  CHECK(through.Write(0, Pattern(4096)).status == BlkStatus::kOk);
}

TEST_CASE("blk: a growing file is seen on Resize, and the driver is told once") {
  const TempFile file(kMiB);
  Fixture f(file);
  file.Resize(2 * kMiB);
  CHECK(f.Read(kMiB / 512, 512).status == BlkStatus::kIoErr);
  CHECK(f.blk->Resize().has_value());
  CHECK(f.rig->interrupt().config_count() == 1);
  CHECK(f.rig->ConfigAt<le64>(0).get() == 2 * kMiB / 512);
  CHECK(f.Read(kMiB / 512, 512).status == BlkStatus::kOk);
  CHECK(f.blk->Resize().has_value());
  CHECK(f.rig->interrupt().config_count() == 1);
}

TEST_CASE("blk: a size that is no multiple of a sector is rounded down") {
  const TempFile file(kMiB + 300);
  Fixture f(file);
  CHECK(f.blk->capacity() == kMiB / 512);
  CHECK(f.Read(kMiB / 512, 512).status == BlkStatus::kIoErr);
}

TEST_CASE("blk: what a user gets wrong is said in one line, with the next step") {
  Failure::Kind kind{};
  CHECK(CreateError({.path = "/nonexistent/disk.img"}, &kind).find("No such file") !=
        std::string::npos);
  CHECK(kind == Failure::Kind::kConfig);
  CHECK(CreateError({.path = "/tmp"}).find("directory") != std::string::npos);
  CHECK(CreateError({.path = "/dev/null"}).find("neither a file nor a block device") !=
        std::string::npos);
  const TempFile empty(0);
  CHECK(CreateError({.path = empty.path()}).find("is empty") != std::string::npos);
  const TempFile tiny(511);
  CHECK(CreateError({.path = tiny.path()}).find("is empty") != std::string::npos);
  const TempFile file(kMiB);
  CHECK(CreateError({.path = file.path(), .serial = "123456789012345678901"}).find("20 bytes") !=
        std::string::npos);
  CHECK(CreateError({.path = file.path(), .num_queues = 0}).find("queues") != std::string::npos);
  CHECK(CreateError({.path = file.path(), .num_queues = 65}).find("queues") != std::string::npos);
  CHECK(CreateError({.path = file.path(), .queue_size = 100}).find("power of two") !=
        std::string::npos);
  CHECK(CreateError({.path = file.path(), .queue_size = 2}).find("power of two") !=
        std::string::npos);
  const std::string fifo = file.path() + ".fifo";
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(CreateError({.path = fifo}).find("neither") != std::string::npos);
  unlink(fifo.c_str());
}

TEST_CASE("blk: a disk has one writer or any number of readers") {
  const TempFile file(kMiB);
  auto loop = EventLoop::Create().value();
  EventLoop* loops[] = {loop.get()};
  {
    const auto writer = Blk::Create({.path = file.path()}, loops);
    REQUIRE(writer.has_value());
    CHECK(CreateError({.path = file.path()}).find("in use by another") != std::string::npos);
    CHECK(CreateError({.path = file.path(), .readonly = true}).find("in use by another") !=
          std::string::npos);
  }
  const auto reader = Blk::Create({.path = file.path(), .readonly = true}, loops);
  CHECK(reader.has_value());
  CHECK(Blk::Create({.path = file.path(), .readonly = true}, loops).has_value());
  CHECK(CreateError({.path = file.path()}).find("in use by another") != std::string::npos);
}

// --- several queues, threads ---

TEST_CASE("blk: several queues on several loops, each on its own thread") {
  const TempFile file(16 * kMiB);
  const auto disk = Pattern(16 * kMiB, 11);
  file.Write(0, disk);
  for (const BlkOptions::Engine engine : kEngines) {
    auto first = EventLoop::Create().value();
    auto second = EventLoop::Create().value();
    EventLoop* loops[] = {first.get(), second.get()};
    auto blk = Blk::Create({.path = file.path(), .engine = engine, .num_queues = 3}, loops).value();
    std::thread other([&] { second->Run(); });
    {
      DeviceRig rig(*blk, {.event_idx = true, .arena_size = 512 << 10, .threaded = true});
      for (int round = 0; round < 3; ++round) {
        rig.Activate();
        for (std::uint16_t q = 0; q < 3; ++q) {
          for (std::uint32_t i = 0; i < 16; ++i) {
            rig.driver(q)
                .Build()
                .ReadableObject(Header(kBlkTypeIn, (std::uint64_t{q} * 16 + i) * 8))
                .Writable(4096)
                .Writable(1)
                .Publish();
          }
          rig.Kick(q);
        }
        std::uint32_t right = 0;
        for (std::uint16_t q = 0; q < 3; ++q) {
          for (std::uint32_t i = 0; i < 16; ++i) {
            const auto used = rig.WaitUsed(q);
            REQUIRE(used.has_value());
            const auto data = rig.driver(q).Written(used->head);
            for (std::ptrdiff_t k = 0; k < 16; ++k) {
              if (std::equal(data.begin(), data.end() - 1,
                             disk.begin() + (std::ptrdiff_t{q} * 16 + k) * 4096))
                ++right;
            }
          }
        }
        CHECK(right == 48);
        rig.ResetQueue(1);
        rig.ResumeQueue(1);
        rig.driver(1).Build().ReadableObject(Header(kBlkTypeFlush, 0)).Writable(1).Publish();
        rig.Kick(1);
        CHECK(rig.WaitUsed(1).has_value());
        rig.Reset();
      }
    }
    second->Stop();
    other.join();
  }
}

TEST_CASE("blk: a hostile driver cannot end or stall it, nor change what it may not") {
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    CAPTURE(seed);
    const TempFile file(kMiB);
    const bool readonly = seed % 3 == 0;
    const auto disk = Pattern(kMiB, 12);
    file.Write(0, disk);
    Fixture f(file,
              {.readonly = readonly,
               .direct = seed % 4 == 0,
               .cache = BlkOptions::Cache::kUnsafe,
               .engine = seed % 2 == 0 ? BlkOptions::Engine::kAuto : BlkOptions::Engine::kSync},
              {.event_idx = seed % 5 == 0, .queue_size = 16});
    HostileDriver hostile(f.rig->driver(0), seed);
    for (const std::uint32_t type : {kBlkTypeIn, kBlkTypeOut, kBlkTypeFlush, kBlkTypeGetId,
                                     kBlkTypeDiscard, kBlkTypeWriteZeroes}) {
      const BlkHeader header = Header(type, 3);
      hostile.AddPrefix(std::as_bytes(std::span(&header, 1)));
    }
    for (int step = 0; step < 400; ++step) {
      hostile.Step();
      const std::uint64_t broken = f.rig->interrupt().needs_reset_count();
      f.rig->Kick(0);
      if (f.rig->interrupt().needs_reset_count() > broken) {
        f.rig->Reset();
        f.rig->Activate();
      }
    }
    f.rig->Reset();
    f.rig->Activate();
    CHECK(f.Read(0, 512).status == BlkStatus::kOk);
    if (readonly) CHECK(file.Read(0, kMiB) == disk);
  }
}

}  // namespace
}  // namespace postern::virtio
