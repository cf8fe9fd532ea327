// What a server takes of its client: memory and eventfds.

#include "vfio/user/client_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <limits>
#include <memory>
#include <utility>

#include "src/base/check.h"
#include "src/base/event_fd.h"
#include "src/base/log.h"
#include "src/memory/guest_memory.h"
#include "vfio/user/client_interrupts.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

constexpr std::uint64_t kSize = 0x10000;
constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

Fd File(unsigned flags = MFD_ALLOW_SEALING, int seals = F_SEAL_SHRINK) {
  Fd file(memfd_create("client", MFD_CLOEXEC | flags));
  CHECK(file.valid());
  CHECK(ftruncate(file.get(), kSize) == 0);
  if (seals != 0) CHECK(fcntl(file.get(), F_ADD_SEALS, seals) == 0);
  return file;
}

UserDmaMap Whole(std::uint64_t address, std::uint64_t size = kSize, std::uint64_t offset = 0) {
  return {.readable = true, .writable = true, .offset = offset, .address = address, .size = size};
}

struct Table {
  Errc Map(const UserDmaMap& map) { return Map(map, file); }
  Errc Map(const UserDmaMap& map, const Fd& from) {
    const Result<void> done = memory->Map(map, from);
    return done ? static_cast<Errc>(0xff) : done.error().code;
  }
  Errc Unmap(const UserDmaUnmap& unmap) {
    const Result<void> done = memory->Unmap(unmap);
    return done ? static_cast<Errc>(0xff) : done.error().code;
  }
  [[nodiscard]] bool Reaches(std::uint64_t address) const {
    return memory->map()
        .Snapshot()
        ->View(memory::Gpa(address), 1, memory::Access::kWrite)
        .has_value();
  }
  std::unique_ptr<ClientMemory> memory = ClientMemory::Create(3).value();
  Fd file = File();
};
constexpr Errc kDone = static_cast<Errc>(0xff);

}  // namespace

TEST_CASE("client memory: a mapping is the client's file, at its address and offset") {
  Table t;
  CHECK(t.Map(Whole(0x100000, 0x2000, 0x3000)) == kDone);
  const auto view =
      t.memory->map().Snapshot()->View(memory::Gpa(0x101000), 8, memory::Access::kWrite);
  REQUIRE(view);
  REQUIRE(view->CopyIn(0, std::as_bytes(std::span("postern"))));
  std::array<char, 8> back{};
  CHECK(pread(t.file.get(), back.data(), 8, 0x4000) == 8);
  CHECK(std::string_view(back.data()) == "postern");
  CHECK(t.memory->bytes() == 0x2000);
  CHECK(t.Unmap({0x100000, 0x2000}) == kDone);
  CHECK_FALSE(t.Reaches(0x100000));
  CHECK(t.memory->mappings() == 0);
}

TEST_CASE("client memory: sizes, alignment and ends") {
  Table t;
  struct Row {
    const char* name = nullptr;
    UserDmaMap map;
    Errc code{};
  };
  const Row rows[] = {
      {"empty", Whole(0, 0), Errc::kInvalidArgument},
      {"a byte", Whole(0, 1), Errc::kInvalidArgument},
      {"a page and a byte", Whole(0, 0x1001), Errc::kInvalidArgument},
      {"address", Whole(1), Errc::kInvalidArgument},
      {"offset", Whole(0, 0x1000, 1), Errc::kInvalidArgument},
      {"wraps", Whole(kMax - 0xfff, 0x2000), Errc::kInvalidArgument},
      {"beyond the file", Whole(0, kSize + 0x1000), Errc::kPeerProtocol},
      {"beyond by its offset", Whole(0, kSize, 0x1000), Errc::kPeerProtocol},
      {"offset at the end", Whole(0, 0x1000, kSize), Errc::kPeerProtocol},
      {"offset and size wrap", Whole(0, 0x1000, kMax - 0xfff), Errc::kPeerProtocol},
      {"huge", Whole(0, std::uint64_t{1} << 62), Errc::kPeerProtocol},
      {"neither", {.address = 0, .size = 0x1000}, Errc::kInvalidArgument},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK(t.Map(row.map) == row.code);
  }
  CHECK(t.memory->mappings() == 0);
  CHECK(t.Map(Whole(kMax - 0xffff)) == kDone);  // up to the last byte
  CHECK(t.Unmap({kMax - 0xffff, kSize}) == kDone);
}

TEST_CASE("client memory: files that can be shortened do no harm; what is no memory is refused") {
  Table t;
  CHECK(t.Map(Whole(0), Fd()) == Errc::kUnsupported);
  // Not sealed, and takes the seal: from now on it cannot be shortened.
  const Fd open = File(MFD_ALLOW_SEALING, 0);
  CHECK(t.Map(Whole(0), open) == kDone);
  CHECK(ftruncate(open.get(), 0) != 0);
  // Takes no seal (Cloud Hypervisor's): shortened, it is zeros, and the server lives.
  const Fd loose = File(0, 0);
  CHECK(t.Map(Whole(kSize), loose) == kDone);
  CHECK(ftruncate(loose.get(), 0) == 0);
  std::byte byte{1};
  CHECK(t.memory->map().Snapshot()->CopyOut(memory::Gpa(kSize), std::span(&byte, 1)).has_value());
  CHECK(byte == std::byte{0});
  CHECK(t.memory->lost() == 1);
  CHECK(t.Unmap({kSize, kSize}) == kDone);
  CHECK(t.memory->lost() == 1);
  const Fd null(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  CHECK(t.Map(Whole(kSize), null) == Errc::kPeerProtocol);
  const Fd text(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  CHECK(t.Map(Whole(kSize), text) == Errc::kPeerProtocol);
  // To be read alone, by its descriptor.
  const Fd file = File();
  std::array<char, 32> path{};
  (void)std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", file.get());
  const Fd readonly(::open(path.data(), O_RDONLY | O_CLOEXEC));
  CHECK(t.Map(Whole(kSize), readonly) == Errc::kSystem);
}

TEST_CASE("client memory: what is for reading alone is taken, and not reached") {
  Table t;
  UserDmaMap rom = Whole(0);
  rom.writable = false;
  CHECK(t.Map(rom) == kDone);
  CHECK_FALSE(t.Reaches(0));
  CHECK(t.Map(Whole(0x8000)) == Errc::kOverlap);
  CHECK(t.memory->bytes() == 0);
  CHECK(t.Unmap({0, kSize}) == kDone);
}

TEST_CASE("client memory: overlap, number, and ranges to unmap") {
  Table t;
  CHECK(t.Map(Whole(0x10000)) == kDone);
  for (const std::uint64_t at : {0x1000U, 0x10000U, 0x1f000U})
    CHECK(t.Map(Whole(at)) == Errc::kOverlap);
  CHECK(t.Map(Whole(0)) == kDone);
  CHECK(t.Map(Whole(0x20000)) == kDone);
  CHECK(t.Map(Whole(0x30000)) == Errc::kExhausted);
  CHECK(t.Unmap({0, 0}) == Errc::kInvalidArgument);
  CHECK(t.Unmap({kMax, 2}) == Errc::kInvalidArgument);
  CHECK(t.Unmap({0x30000, 0x1000}) == Errc::kNotFound);
  CHECK(t.Unmap({0x1000, 0x1000}) == Errc::kInvalidArgument);
  CHECK(t.Unmap({0x1000, 0x20000}) == Errc::kInvalidArgument);
  CHECK(t.Unmap({0, 0x1f000}) == Errc::kInvalidArgument);
  CHECK(t.memory->mappings() == 3);
  CHECK(t.Unmap({0, 0x20000}) == kDone);
  CHECK(t.memory->mappings() == 1);
  CHECK_FALSE(t.Reaches(0x10000));
  CHECK(t.Reaches(0x20000));
  CHECK(t.Unmap({.all = true}) == kDone);
  CHECK(t.memory->mappings() == 0);
  CHECK(t.Unmap({.all = true}) == kDone);
}

TEST_CASE("client interrupts: a vector signals who took it, and keeps what nobody took") {
  ClientInterrupts interrupts;
  auto route = interrupts.NewMsi().value();
  REQUIRE(route->Set({.data = 3}));
  REQUIRE(route->Mask(false));
  const int number = route->trigger().fd();
  route->trigger().Signal();
  const EventFd event = EventFd::Create().value();
  const auto copy = [&] {
    Fd borrowed(event.fd());
    Fd twin = borrowed.Duplicate().value();
    (void)borrowed.release();
    return twin;
  };
  REQUIRE(ClientInterrupts::Check(copy()));
  CHECK_FALSE(interrupts.Assign(2, copy()));
  REQUIRE(interrupts.Assign(3, copy()));
  CHECK(interrupts.assigned() == 1);
  CHECK(event.Consume() == 1);
  CHECK(route->trigger().fd() == number);
  route->trigger().Signal();
  CHECK(event.Consume() == 1);
  interrupts.Detach();
  route->trigger().Signal();
  CHECK_FALSE(event.Pending());
  interrupts.Attach();
  CHECK(event.Consume() == 1);
  interrupts.Clear(3);
  route->trigger().Signal();
  CHECK_FALSE(event.Pending());
  interrupts.Forget();
  REQUIRE(interrupts.Assign(3, copy()));
  CHECK_FALSE(event.Pending());
  // Full: whoever waits to write is let go, and the client is still signalled.
  const std::uint64_t most = std::numeric_limits<std::uint64_t>::max() - 1;
  CHECK(write(event.fd(), &most, sizeof(most)) == sizeof(most));
  interrupts.Detach();
  CHECK(event.Consume() == 1);
  CHECK_FALSE(interrupts.NewLine(0));
}

TEST_CASE("client interrupts: what is no eventfd is refused, and an eventfd is made non-blocking") {
  int ends[2] = {-1, -1};
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  const Fd in(ends[0]);
  const Fd out(ends[1]);
  CHECK_FALSE(ClientInterrupts::Check(out));
  CHECK_FALSE(ClientInterrupts::Check(File()));
  EventFd event = EventFd::Create().value();
  CHECK(fcntl(event.fd(), F_SETFL, 0) == 0);
  Fd borrowed(event.fd());
  CHECK(ClientInterrupts::Check(borrowed));
  (void)borrowed.release();
  CHECK((fcntl(event.fd(), F_GETFL) & O_NONBLOCK) != 0);
}

}  // namespace postern::vfio
