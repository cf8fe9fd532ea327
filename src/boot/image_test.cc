#include "src/boot/image.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "src/boot/test_images.h"

#include <doctest/doctest.h>

namespace postern::boot {
namespace {

using memory::Gpa;
using testing::ByteVector;

Fd MakeFile(std::size_t size) {
  Fd fd(memfd_create("image_test", MFD_CLOEXEC));
  ByteVector bytes;
  for (std::size_t i = 0; i < size; ++i) bytes.push_back(testing::Pattern(3, i));
  REQUIRE(write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(size));
  return fd;
}

TEST_CASE("image: reads are checked against the size") {
  const ByteVector bytes(100, std::byte{7});
  for (const bool from_file : {false, true}) {
    CAPTURE(from_file);
    const Image image = from_file ? Image::FromFd(MakeFile(100), "f", "kernel").value()
                                  : Image::FromBytes(bytes, "f", "kernel");
    CHECK(image.size() == 100);
    ByteVector out(10);
    CHECK(image.Read(90, out));
    CHECK_FALSE(image.Read(91, out));
    CHECK_FALSE(image.Read(100, out));
    CHECK_FALSE(image.Read(UINT64_MAX, out));
    CHECK_FALSE(image.Read(UINT64_MAX - 4, out));
    CHECK(image.Read(100, {}));
    const auto memory = testing::MakeMemory(1 << 20);
    CHECK(image.ReadInto(*memory, Gpa(0x100), 10, 90));
    CHECK_FALSE(image.ReadInto(*memory, Gpa(0x100), 10, 91));
    CHECK_FALSE(image.ReadInto(*memory, Gpa((1 << 20) - 50), 0, 100));
    CHECK_FALSE(image.ReadInto(*memory, Gpa(UINT64_MAX), 0, 100));
  }
}

TEST_CASE("image: a file is read into adjacent regions and marks them dirty") {
  std::vector<memory::RegionPtr> regions;
  const memory::Backing backing{.track_dirty = true};
  regions.push_back(memory::Region::Create(Gpa(0), 0x2000, backing).value());
  regions.push_back(memory::Region::Create(Gpa(0x2000), 0x2000, backing).value());
  const auto memory = memory::GuestMemory::Create(std::move(regions)).value();
  const Image image = Image::FromFd(MakeFile(0x1800), "f", "kernel").value();
  REQUIRE(image.ReadInto(*memory, Gpa(0x1000), 0, 0x1800));
  const ByteVector bytes = testing::Peek(*memory, 0x1000, 0x1800);
  REQUIRE(bytes.size() == 0x1800);
  for (std::size_t i = 0; i < bytes.size(); ++i) REQUIRE(bytes[i] == testing::Pattern(3, i));
  CHECK_FALSE(memory->regions()[0]->dirty()->IsDirty(0));
  CHECK(memory->regions()[0]->dirty()->IsDirty(0x1000));
  CHECK(memory->regions()[1]->dirty()->IsDirty(0));
  CHECK_FALSE(memory->regions()[1]->dirty()->IsDirty(0x1000));
}

TEST_CASE("image: a file that shrinks meanwhile is an error, not zeros") {
  const Fd keep = MakeFile(0x2000);
  const Image image = Image::FromFd(keep.Duplicate().value(), "f", "kernel").value();
  REQUIRE(ftruncate(keep.get(), 0x1000) == 0);
  ByteVector out(0x2000);
  const auto read = image.Read(0, out);
  REQUIRE_FALSE(read);
  CHECK(read.error().code == Errc::kBadFormat);
}

TEST_CASE(
    "image: paths that are no readable file are refused with the next step, without waiting") {
  char folder[] = "/tmp/postern_image_test_XXXXXX";
  REQUIRE(mkdtemp(folder) != nullptr);
  const std::string fifo = std::string(folder) + "/fifo";
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  for (const std::string& path : {std::string(folder) + "/none", std::string(folder), fifo,
                                  std::string("/dev/null"), std::string()}) {
    CAPTURE(path);
    const auto image = Image::Open(path, "initrd");
    REQUIRE_FALSE(image);
    CHECK(image.error().kind == Failure::Kind::kConfig);
    CHECK(image.error().cause.find("initrd '" + path + "'") != std::string::npos);
    CHECK_FALSE(image.error().next_step.empty());
  }
  REQUIRE(unlink(fifo.c_str()) == 0);
  REQUIRE(rmdir(folder) == 0);
}

TEST_CASE("image: a name cannot forge a line") {
  const auto image = Image::Open("/none\nerror: fake", "kernel");
  REQUIRE_FALSE(image);
  CHECK(image.error().cause.find('\n') == std::string::npos);
}

}  // namespace
}  // namespace postern::boot
