#include "iommu/ioas.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "iommu/fake_iommu_kernel.h"
#include "iommu/iommufd_abi.h"
#include "src/base/mmap.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Access;
using Lines = std::vector<std::string>;

constexpr std::uint64_t kRam = 0x10000;
constexpr std::uint64_t kTop = ~std::uint64_t{0};

struct World {
  FakeIommuKernel kernel;
  Fd file;
  Mmap ram;
  std::unique_ptr<Ioas> ioas;

  World() {
    file = Fd(memfd_create("ioas_test", MFD_CLOEXEC));
    REQUIRE(ftruncate(file.get(), kRam) == 0);
    ram = *Mmap::Create(kRam, PROT_READ | PROT_WRITE, MAP_SHARED, file.get());
    ioas = *Ioas::Open(kernel);
    (void)kernel.TakeLog();
  }
  [[nodiscard]] HostRange Ram(std::uint64_t offset = 0, std::uint64_t length = kRam) const {
    return {.address = ram.data() + offset, .length = length};
  }
  [[nodiscard]] HostRange File(std::uint64_t offset = 0, std::uint64_t length = kRam) const {
    return {.address = ram.data() + offset, .fd = file.get(), .offset = offset, .length = length};
  }
  Result<void> Attach(const FakeHardware& hardware, std::uint64_t who = 1) {
    TRY(kernel.AttachDevice(ioas->iommufd(), ioas->id(), who, hardware));
    return ioas->Attached();
  }
  bool Reaches(std::uint64_t iova) {
    return kernel.DmaOfIoas(ioas->id(), iova, 1, Access::kRead) != nullptr;
  }
};

bool Is(const Result<void>& result, int sys_errno) {
  return !result && result.error().code == Errc::kSystem && result.error().sys_errno == sys_errno;
}
bool Is(const Result<void>& result, Errc code) {
  return !result && result.error().code == code;
}

TEST_CASE("ioas: is made, mapped, unmapped and destroyed in this order") {
  FakeIommuKernel kernel;
  const Mmap ram = *Mmap::Create(kRam, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  {
    const auto ioas = *Ioas::Open(kernel);
    CHECK(ioas->name() == "iommufd");
    REQUIRE(ioas->Map(Iova(0x8000), {.address = ram.data(), .length = 0x4000}, Access::kRead));
    REQUIRE(ioas->Map(Iova(0), {.address = ram.data(), .length = 0x4000}, Access::kReadWrite));
    REQUIRE(ioas->Unmap(Iova(0x8000), 0x4000).has_value());
  }
  CHECK(kernel.TakeLog() == Lines{"open /dev/iommu", "IOMMU_IOAS_ALLOC", "IOMMU_IOAS_IOVA_RANGES",
                                  "IOMMU_IOAS_MAP 0x8000+0x4000 r", "IOMMU_IOAS_MAP 0x0+0x4000 rw",
                                  "IOMMU_IOAS_UNMAP 0x8000+0x4000", "IOMMU_DESTROY",
                                  "close /dev/iommu"});
}

TEST_CASE("ioas: two of them share an iommufd that was given") {
  FakeIommuKernel kernel;
  Fd iommufd = *kernel.Open("/dev/iommu", O_RDWR);
  Fd second = *iommufd.Duplicate();
  const auto a = *Ioas::Open(kernel, std::move(iommufd));
  auto b = *Ioas::Open(kernel, std::move(second));
  CHECK(a->id() != b->id());
  CHECK(kernel.ioas_count() == 2);
  b.reset();
  CHECK(kernel.ioas_count() == 1);
  CHECK(kernel.open_files() == 1);
}

TEST_CASE("ioas: a host without iommufd, or a descriptor that is none, says so") {
  FakeIommuKernel kernel;
  SUBCASE("none") {
    kernel.rules.iommufd = false;
    CHECK(Ioas::Open(kernel).error().sys_errno == ENOENT);
  }
  SUBCASE("not allowed") {
    kernel.FailOpen("/dev/iommu", EACCES);
    CHECK(Ioas::Open(kernel).error().sys_errno == EACCES);
  }
  SUBCASE("something else") {
    CHECK(Ioas::Open(kernel, Fd(eventfd(0, EFD_CLOEXEC))).error().sys_errno == ENOTTY);
  }
  SUBCASE("no IOAS") {
    kernel.Fail(IOMMU_IOAS_ALLOC, ENOMEM);
    CHECK(Ioas::Open(kernel).error().sys_errno == ENOMEM);
  }
  SUBCASE("no ranges: the IOAS is given back") {
    kernel.Fail(IOMMU_IOAS_IOVA_RANGES, EIO);
    CHECK(Ioas::Open(kernel).error().sys_errno == EIO);
  }
  CHECK(kernel.ioas_count() == 0);
  CHECK(kernel.open_files() == 0);
}

TEST_CASE("ioas: an IOAS with a device on it outlives its owner's wish, until the iommufd goes") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  world.ioas.reset();
  CHECK(world.kernel.TakeLog() ==
        Lines{"IOMMU_IOAS_IOVA_RANGES", "IOMMU_DESTROY = EBUSY", "close /dev/iommu"});
  CHECK(world.kernel.ioas_count() == 0);
}

TEST_CASE("ioas: ranges are read again after each device, however many there are") {
  World world;
  CHECK(world.ioas->limits().ranges == std::vector<IovaRange>{{0, kTop}});
  CHECK(world.ioas->limits().page_sizes == 4096);
  REQUIRE(world.Attach({}).has_value());
  CHECK(world.ioas->limits().ranges ==
        std::vector<IovaRange>{{0, 0xfedfffff}, {0xfef00000, (std::uint64_t{1} << 48) - 1}});
  FakeHardware holes{.reserved = {}, .page_sizes = 0x40200000};
  for (std::uint64_t i = 1; i <= 100; ++i) {
    holes.reserved.push_back({i << 30, (i << 30) + 0xffff});
  }
  (void)world.kernel.TakeLog();
  REQUIRE(world.Attach(holes, 2).has_value());
  CHECK(world.kernel.TakeLog() ==
        Lines{"IOMMU_IOAS_IOVA_RANGES = EMSGSIZE", "IOMMU_IOAS_IOVA_RANGES"});
  CHECK(world.ioas->limits().ranges.size() == 102);
  CHECK(world.ioas->limits().ranges.front() == IovaRange{0, (1U << 30) - 1});
  CHECK(world.ioas->limits().page_sizes == 0x200000);
  CHECK(Is(world.ioas->Map(Iova(0x1000), world.Ram(), Access::kRead), Errc::kInvalidArgument));
  world.kernel.DetachDevice(2);
  REQUIRE(world.ioas->Attached().has_value());
  CHECK(world.ioas->limits().ranges.size() == 2);
}

TEST_CASE("ioas: an answer about ranges that cannot be is malformed, and changes nothing") {
  World world;
  REQUIRE(world.ioas->Map(Iova(0), world.Ram(), Access::kRead).has_value());
  static iommu_ioas_iova_ranges* answer = nullptr;
  static void (*change)() = nullptr;
  const auto range = [](std::size_t i) -> iommu_iova_range& {
    return reinterpret_cast<iommu_iova_range*>(answer->allowed_iovas)[i];
  };
  static auto at = range;
  SUBCASE("more than there was room for") {
    change = [] { answer->num_iovas = 17; };
  }
  SUBCASE("four thousand million") {
    change = [] { answer->num_iovas = 0xffffffff; };
  }
  SUBCASE("reversed") {
    change = [] { at(0) = {.start = 2, .last = 1}; };
  }
  SUBCASE("overlapping") {
    change = [] { at(1) = at(0) = {.start = 0, .last = kTop}, answer->num_iovas = 2; };
  }
  SUBCASE("no alignment") {
    change = [] { answer->out_iova_alignment = 0; };
  }
  SUBCASE("an alignment that is none") {
    change = [] { answer->out_iova_alignment = 0x3000; };
  }
  world.kernel.tamper = [](unsigned long request, void* argument) {
    if (request != IOMMU_IOAS_IOVA_RANGES) return;
    answer = static_cast<iommu_ioas_iova_ranges*>(argument);
    change();
  };
  CHECK(Is(world.ioas->Attached(), EPROTO));
  CHECK(world.ioas->limits().ranges == std::vector<IovaRange>{{0, kTop}});
}

TEST_CASE("ioas: a kernel that never has room enough is given up") {
  World world;
  for (unsigned i = 0; i < 8; ++i) world.kernel.Fail(IOMMU_IOAS_IOVA_RANGES, EMSGSIZE);
  CHECK(Is(world.ioas->Attached(), EPROTO));
  // It asked for no more than it was given: not asked a second time.
  CHECK(world.kernel.TakeLog().size() == 1);
}

TEST_CASE("ioas: what cannot be right never reaches the kernel") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  REQUIRE(world.ioas->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  (void)world.kernel.TakeLog();
  Ioas& ioas = *world.ioas;
  CHECK(Is(ioas.Map(Iova(0x8000), world.Ram(0, 0), Access::kRead), Errc::kInvalidArgument));
  CHECK(Is(ioas.Map(Iova(0x8800), world.Ram(), Access::kRead), Errc::kInvalidArgument));
  CHECK(Is(ioas.Map(Iova(~std::uint64_t{0xfff}), world.Ram(), Access::kRead),
           Errc::kInvalidArgument));
  CHECK(Is(ioas.Map(Iova(0x3000), world.Ram(), Access::kRead), Errc::kOverlap));
  CHECK(Is(ioas.Map(Iova(0xfee00000), world.Ram(), Access::kRead), Errc::kGuestRange));
  CHECK(Is(ioas.Unmap(Iova(0), 0x3000), Errc::kNotFound));
  CHECK(Is(ioas.Unmap(Iova(0x4000), 0x1000), Errc::kNotFound));
  CHECK(world.kernel.TakeLog().empty());
}

TEST_CASE("ioas: shared files are mapped by file") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  (void)world.kernel.TakeLog();
  REQUIRE(world.ioas->Map(Iova(0x1000), world.File(0x2000, 0x4000), Access::kReadWrite));
  REQUIRE(world.ioas->Map(Iova(0x8000), world.Ram(0, 0x1000), Access::kRead).has_value());
  CHECK(world.kernel.TakeLog() ==
        Lines{"IOMMU_IOAS_MAP_FILE 0x1000+0x4000 rw", "IOMMU_IOAS_MAP 0x8000+0x1000 r"});
  // The device and this process see one memory, by two addresses.
  std::byte* at = world.kernel.DmaOfIoas(world.ioas->id(), 0x1234, 1, Access::kWrite);
  REQUIRE(at != nullptr);
  CHECK(at != world.ram.data() + 0x2234);
  *at = std::byte{0x5a};
  CHECK(world.ram.data()[0x2234] == std::byte{0x5a});
  REQUIRE(world.ioas->Unmap(Iova(0x1000), 0x4000).has_value());
  CHECK_FALSE(world.Reaches(0x1000));
}

TEST_CASE("ioas: where the kernel cannot map files it is asked once") {
  World world;
  Lines expected;
  SUBCASE("a kernel before 6.13") {
    world.kernel.rules.map_file = false;
    expected = {"IOMMU_IOAS_MAP_FILE = ENOTTY"};
  }
  SUBCASE("a file of a kind it does not pin") {
    world.kernel.Fail(kIoasMapFile, EINVAL);
    expected = {"IOMMU_IOAS_MAP_FILE = EINVAL"};
  }
  SUBCASE("not supported") {
    world.kernel.Fail(kIoasMapFile, EOPNOTSUPP);
    expected = {"IOMMU_IOAS_MAP_FILE = EOPNOTSUPP"};
  }
  REQUIRE(world.ioas->Map(Iova(0), world.File(0, 0x4000), Access::kReadWrite).has_value());
  REQUIRE(world.ioas->Map(Iova(0x4000), world.File(0x4000, 0x4000), Access::kReadWrite));
  expected.insert(expected.end(),
                  {"IOMMU_IOAS_MAP 0x0+0x4000 rw", "IOMMU_IOAS_MAP 0x4000+0x4000 rw"});
  CHECK(world.kernel.TakeLog() == expected);
}

TEST_CASE("ioas: a failure that has nothing to do with files does not give them up") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  (void)world.kernel.TakeLog();
  SUBCASE("limit of locked memory: not tried again by address") {
    world.kernel.rules.memlock = 0x1000;
    CHECK(Is(world.ioas->Map(Iova(0), world.File(), Access::kReadWrite), ENOMEM));
    CHECK(world.kernel.TakeLog() == Lines{"IOMMU_IOAS_MAP_FILE 0x0+0x10000 rw = ENOMEM"});
    world.kernel.rules.memlock = kTop;
  }
  SUBCASE("a range it did not tell of: refused both ways") {
    world.kernel.Fail(kIoasMapFile, EINVAL);
    world.kernel.Fail(IOMMU_IOAS_MAP, EINVAL);
    CHECK(Is(world.ioas->Map(Iova(0), world.File(), Access::kReadWrite), EINVAL));
  }
  SUBCASE("overlap") {
    world.kernel.Fail(kIoasMapFile, EEXIST);
    CHECK(Is(world.ioas->Map(Iova(0), world.File(), Access::kReadWrite), Errc::kOverlap));
  }
  (void)world.kernel.TakeLog();
  CHECK(world.ioas->Map(Iova(0), world.File(), Access::kReadWrite).has_value());
  CHECK(world.kernel.TakeLog() == Lines{"IOMMU_IOAS_MAP_FILE 0x0+0x10000 rw"});
}

TEST_CASE("ioas: each refusal of the kernel is told as it is, and nothing is remembered") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  const auto map = [&] { return world.ioas->Map(Iova(0), world.Ram(), Access::kReadWrite); };
  SUBCASE("limit of locked memory") {
    world.kernel.rules.memlock = 0x1000;
    CHECK(Is(map(), ENOMEM));
    world.kernel.rules.memlock = kTop;
  }
  SUBCASE("device memory") {
    world.kernel.Fail(IOMMU_IOAS_MAP, EFAULT);
    CHECK(Is(map(), EFAULT));
  }
  SUBCASE("something is there") {
    world.kernel.Fail(IOMMU_IOAS_MAP, EEXIST);
    CHECK(Is(map(), Errc::kOverlap));
  }
  CHECK_FALSE(world.Reaches(0));
  CHECK(map().has_value());
  CHECK(world.Reaches(0));
}

TEST_CASE("ioas: an unmap the kernel does not do, or not wholly, is an error") {
  World world;
  REQUIRE(world.ioas->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  SUBCASE("fails") {
    world.kernel.Fail(IOMMU_IOAS_UNMAP, EBUSY);
    CHECK(Is(world.ioas->Unmap(Iova(0), kRam), EBUSY));
    CHECK(Is(world.ioas->Map(Iova(0), world.Ram(), Access::kRead), Errc::kOverlap));
    CHECK(world.ioas->Unmap(Iova(0), kRam).has_value());
  }
  SUBCASE("less") {
    world.kernel.tamper = [](unsigned long request, void* argument) {
      if (request == IOMMU_IOAS_UNMAP) static_cast<iommu_ioas_unmap*>(argument)->length -= 0x1000;
    };
    CHECK(Is(world.ioas->Unmap(Iova(0), kRam), EPROTO));
  }
}

TEST_CASE("ioas: mappings stay when the last device leaves") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  REQUIRE(world.ioas->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  world.kernel.DetachDevice(1);
  REQUIRE(world.ioas->Attached().has_value());
  CHECK_FALSE(world.Reaches(0));
  (void)world.kernel.TakeLog();
  REQUIRE(world.Attach({}, 2).has_value());
  CHECK(world.Reaches(0));
  CHECK(world.kernel.TakeLog() == Lines{"IOMMU_IOAS_IOVA_RANGES"});
}

TEST_CASE("ioas: ranges that shrink under a mapping are told") {
  World world;
  REQUIRE(world.Attach({}).has_value());
  REQUIRE(world.ioas->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  // The kernel itself refuses such a device.
  CHECK(Is(world.Attach({.reserved = {{0x4000, 0x4fff}}}, 2), EADDRINUSE));
  // One that does not, and tells of it afterwards.
  world.kernel.tamper = [](unsigned long request, void* argument) {
    if (request != IOMMU_IOAS_IOVA_RANGES) return;
    auto* answer = static_cast<iommu_ioas_iova_ranges*>(argument);
    reinterpret_cast<iommu_iova_range*>(answer->allowed_iovas)[0].start = 0x8000;
  };
  CHECK(Is(world.Attach({}, 2), Errc::kGuestRange));
  world.kernel.DetachDevice(2);
  world.kernel.tamper = nullptr;
  CHECK(world.ioas->Attached().has_value());
}

struct Dirty : World {
  std::uint32_t NewHwpt(std::uint32_t flags) {
    iommu_hwpt_alloc alloc{};
    alloc.size = sizeof(alloc);
    alloc.flags = flags;
    alloc.pt_id = ioas->id();
    REQUIRE(kernel.Ioctl(ioas->iommufd(), IOMMU_HWPT_ALLOC, &alloc, "IOMMU_HWPT_ALLOC"));
    return alloc.out_hwpt_id;
  }
};

TEST_CASE("ioas: without a hardware page table it cannot tell what devices wrote") {
  World world;
  std::vector<std::uint64_t> bits(1);
  CHECK(Is(world.ioas->TrackDirty(true), Errc::kUnsupported));
  CHECK(Is(world.ioas->TakeDirty(Iova(0), 0x1000, 0x1000, bits), Errc::kUnsupported));
}

TEST_CASE("ioas: what devices wrote since the last time is added to the bits") {
  Dirty world;
  const std::uint32_t first = world.NewHwpt(IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  const std::uint32_t second = world.NewHwpt(IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  REQUIRE(world.ioas->AddHwpt(first).has_value());
  REQUIRE(world.ioas->AddHwpt(second).has_value());
  REQUIRE(world.ioas->AddHwpt(second).has_value());
  std::vector<std::uint64_t> bits = {0x8000, 0};
  CHECK(Is(world.ioas->TakeDirty(Iova(0), 0x1000, 0x1000, bits), Errc::kBadState));
  REQUIRE(world.ioas->TrackDirty(true).has_value());
  CHECK(Is(world.ioas->AddHwpt(first), Errc::kBadState));
  world.kernel.MarkDirty(first, 0x100000, 0x1000);
  world.kernel.MarkDirty(second, 0x100000 + 0x41000, 0x2000);
  REQUIRE(world.ioas->TakeDirty(Iova(0x100000), 0x80000, 0x1000, bits).has_value());
  CHECK(bits == std::vector<std::uint64_t>{0x8001, 0x6});
  REQUIRE(world.ioas->TakeDirty(Iova(0x100000), 0x80000, 0x1000, bits).has_value());
  CHECK(bits == std::vector<std::uint64_t>{0x8001, 0x6});
  REQUIRE(world.ioas->TrackDirty(false).has_value());
  world.kernel.MarkDirty(first, 0x100000, 0x1000);
  REQUIRE(world.ioas->TrackDirty(true).has_value());
  bits = {0, 0};
  REQUIRE(world.ioas->TakeDirty(Iova(0x100000), 0x80000, 0x1000, bits).has_value());
  CHECK(bits == std::vector<std::uint64_t>{0, 0});
  world.ioas->RemoveHwpt(first);
  world.ioas->RemoveHwpt(second);
  CHECK(Is(world.ioas->TrackDirty(true), Errc::kUnsupported));
}

TEST_CASE("ioas: bits that do not hold the range are refused before the kernel writes them") {
  Dirty world;
  REQUIRE(world.ioas->AddHwpt(world.NewHwpt(IOMMU_HWPT_ALLOC_DIRTY_TRACKING)).has_value());
  REQUIRE(world.ioas->TrackDirty(true).has_value());
  std::vector<std::uint64_t> bits(1);
  const auto take = [&](std::uint64_t at, std::uint64_t length, std::uint64_t page) {
    return world.ioas->TakeDirty(Iova(at), length, page, bits);
  };
  CHECK(take(0, 0x40000, 0x1000).has_value());
  CHECK(Is(take(0, 0x41000, 0x1000), Errc::kInvalidArgument));
  CHECK(Is(take(0, 0, 0x1000), Errc::kInvalidArgument));
  CHECK(Is(take(0, 0x1000, 0), Errc::kInvalidArgument));
  CHECK(Is(take(0, 0x3000, 0x3000), Errc::kInvalidArgument));
  CHECK(Is(take(0x800, 0x1000, 0x1000), Errc::kInvalidArgument));
  CHECK(Is(take(0, 0x1800, 0x1000), Errc::kInvalidArgument));
  CHECK(Is(take(kTop - 0xfff, 0x2000, 0x1000), Errc::kInvalidArgument));
  CHECK(Is(take(0, kTop - 0xfff, 0x1000), Errc::kInvalidArgument));
}

TEST_CASE("ioas: tracking is on for all page tables or for none") {
  Dirty world;
  const std::uint32_t good = world.NewHwpt(IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  const std::uint32_t other = world.NewHwpt(0);
  REQUIRE(world.ioas->AddHwpt(good).has_value());
  REQUIRE(world.ioas->AddHwpt(other).has_value());
  (void)world.kernel.TakeLog();
  CHECK(Is(world.ioas->TrackDirty(true), EOPNOTSUPP));
  const std::string name = "IOMMU_HWPT_SET_DIRTY_TRACKING ";
  CHECK(world.kernel.TakeLog() == Lines{name + std::to_string(good) + " on",
                                        name + std::to_string(other) + " on = EOPNOTSUPP",
                                        name + std::to_string(good) + " off"});
  std::vector<std::uint64_t> bits(1);
  CHECK(Is(world.ioas->TakeDirty(Iova(0), 0x1000, 0x1000, bits), Errc::kBadState));
}

}  // namespace
}  // namespace postern::iommu
