#include "src/memory/file_guard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "src/base/fd.h"
#include "src/base/mmap.h"
#include "src/memory/guest_memory.h"

#include <doctest/doctest.h>

namespace postern::memory {
namespace {

constexpr std::size_t kSize = 0x10000;

Fd File(unsigned flags = 0) {
  Fd file(memfd_create("guarded", MFD_CLOEXEC | flags));
  REQUIRE(file.valid());
  REQUIRE(ftruncate(file.get(), kSize) == 0);
  return file;
}

Mmap Map(const Fd& file) {
  return Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.get()).value();
}

unsigned char* At(const Mmap& map, std::size_t offset) {
  return reinterpret_cast<unsigned char*>(map.data()) + offset;
}

}  // namespace

TEST_CASE("file guard: a file that is cut off under us leaves zeros, and the process") {
  const Fd file = File();
  const Mmap map = Map(file);
  const FileGuard guard = FileGuard::Create(map.data(), map.size()).value();
  __atomic_store_n(At(map, 0x8000), 7, __ATOMIC_RELAXED);
  CHECK_FALSE(guard.lost());
  REQUIRE(ftruncate(file.get(), 0x4000) == 0);
  CHECK(__atomic_load_n(At(map, 0x8000), __ATOMIC_RELAXED) == 0);
  CHECK(guard.lost());
  __atomic_store_n(At(map, kSize - 1), 9, __ATOMIC_RELAXED);
  CHECK(__atomic_load_n(At(map, kSize - 1), __ATOMIC_RELAXED) == 9);
}

TEST_CASE("file guard: a mapping beside it, or whose guard is gone, ends the process as before") {
  const Fd file = File();
  const Mmap map = Map(file);
  const Mmap other = Map(file);
  {
    FileGuard first = FileGuard::Create(map.data(), map.size()).value();
    const FileGuard moved = std::move(first);
    CHECK_FALSE(moved.lost());
  }
  REQUIRE(ftruncate(file.get(), 0) == 0);
  for (const Mmap* victim : {&map, &other}) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      (void)__atomic_load_n(At(*victim, 0), __ATOMIC_RELAXED);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    // By the signal, or by a sanitizer's handler that was there before.
    CHECK(status != 0);
  }
}

TEST_CASE("guest memory: an adopted file is sealed where it can be, and guarded where it cannot") {
  const Fd sealable = File(MFD_ALLOW_SEALING);
  const auto sealed = Region::Adopt(Gpa(0), kSize, sealable.get(), 0);
  REQUIRE(sealed);
  CHECK(ftruncate(sealable.get(), 0) != 0);
  CHECK_FALSE((*sealed)->lost());
  const Fd open = File();
  const auto region = Region::Adopt(Gpa(0), kSize, open.get(), 0);
  REQUIRE(region);
  REQUIRE(ftruncate(open.get(), 0) == 0);
  const auto memory = GuestMemory::Create({*region}).value();
  std::byte byte{1};
  CHECK(memory->CopyOut(Gpa(0x1000), std::span(&byte, 1)).has_value());
  CHECK(byte == std::byte{0});
  CHECK((*region)->lost());
}

}  // namespace postern::memory
