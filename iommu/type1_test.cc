#include "iommu/type1.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "iommu/fake_iommu_kernel.h"
#include "src/base/mmap.h"
#include "src/base/thread.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Access;
using Lines = std::vector<std::string>;

constexpr std::uint64_t kRam = 0x10000;

struct World {
  FakeIommuKernel kernel;
  Mmap ram;
  std::unique_ptr<Type1Container> container;
  Fd group;

  explicit World(const FakeHardware& hardware = {}) {
    kernel.AddGroup(26, hardware);
    ram = *Mmap::Create(kRam, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    container = *Type1Container::Open(kernel);
    group = *kernel.Open("/dev/vfio/26", O_RDWR);
  }
  [[nodiscard]] HostRange Ram(std::uint64_t offset = 0, std::uint64_t length = kRam) const {
    return {.address = ram.data() + offset, .length = length};
  }
  Fd OpenGroup(unsigned number, const FakeHardware& hardware) {
    kernel.AddGroup(number, hardware);
    return *kernel.Open("/dev/vfio/" + std::to_string(number), O_RDWR);
  }
  bool Reaches(std::uint64_t iova, unsigned number = 26) {
    return kernel.DmaOfGroup(number, iova, 1, Access::kRead) != nullptr;
  }
};

bool Is(const Result<void>& result, int sys_errno) {
  return !result && result.error().code == Errc::kSystem && result.error().sys_errno == sys_errno;
}
bool Is(const Result<void>& result, Errc code) {
  return !result && result.error().code == code;
}

TEST_CASE("type1: container, group, IOMMU, limits, mappings: in this order") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  REQUIRE(world.container->Map(Iova(0x8000), world.Ram(0x4000, 0x1000), Access::kRead).has_value());
  REQUIRE(world.container->Unmap(Iova(0), 0x4000).has_value());
  world.container->Detach(world.group.get());
  world.group = Fd();
  world.container.reset();
  CHECK(world.kernel.TakeLog() ==
        Lines{"open /dev/vfio/vfio", "VFIO_GET_API_VERSION", "VFIO_CHECK_EXTENSION",
              "open /dev/vfio/26", "VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU",
              "VFIO_IOMMU_GET_INFO", "VFIO_IOMMU_GET_INFO", "VFIO_IOMMU_MAP_DMA 0x0+0x4000 rw",
              "VFIO_IOMMU_MAP_DMA 0x8000+0x1000 r", "VFIO_IOMMU_UNMAP_DMA 0x0+0x4000",
              "VFIO_GROUP_UNSET_CONTAINER", "close /dev/vfio/vfio", "close /dev/vfio/26"});
}

TEST_CASE("type1: a host without VFIO, of another version, or without version 2 says so") {
  FakeIommuKernel kernel;
  SUBCASE("no module") {
    kernel.rules.containers = false;
    const auto container = Type1Container::Open(kernel);
    REQUIRE_FALSE(container.has_value());
    CHECK(container.error().sys_errno == ENOENT);
  }
  SUBCASE("not allowed") {
    kernel.FailOpen("/dev/vfio/vfio", EACCES);
    CHECK(Type1Container::Open(kernel).error().sys_errno == EACCES);
  }
  SUBCASE("version") {
    kernel.rules.api_version = 1;
    CHECK(Type1Container::Open(kernel).error().code == Errc::kUnsupported);
  }
  SUBCASE("type") {
    kernel.rules.type1v2 = false;
    CHECK(Type1Container::Open(kernel).error().code == Errc::kUnsupported);
  }
  SUBCASE("a call fails") {
    kernel.Fail(VFIO_CHECK_EXTENSION, EIO);
    CHECK(Type1Container::Open(kernel).error().sys_errno == EIO);
  }
  CHECK(kernel.open_files() == 0);
}

TEST_CASE("type1: limits are those of the hardware attached") {
  World world(
      {.reserved = {{0xfee00000, 0xfeefffff}}, .last = 0x7fffffffff, .page_sizes = 0x201000});
  CHECK(world.container->info() == DefaultType1Info());
  CHECK(world.container->name() == "type1");
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  const Type1Info info = world.container->info();
  CHECK(info.limits.ranges == std::vector<IovaRange>{{0, 0xfedfffff}, {0xfef00000, 0x7fffffffff}});
  CHECK(info.limits.page_sizes == 0x201000);
  CHECK(info.limits.mappings_left == 65535);
  CHECK(info.dirty_page_sizes == 4096);
  CHECK(world.container->limits().ranges == info.limits.ranges);
}

TEST_CASE("type1: a kernel that tells no ranges gets the usual ones") {
  World world;
  world.kernel.rules.iova_range_cap = false;
  world.kernel.rules.dma_avail_cap = false;
  world.kernel.rules.migration_cap = false;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  CHECK(world.container->limits().ranges == DefaultType1Info().limits.ranges);
  CHECK(world.container->limits().mappings_left == 0);
}

TEST_CASE("type1: what cannot be right never reaches the kernel") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  (void)world.kernel.TakeLog();
  Type1Container& container = *world.container;
  CHECK(Is(container.Map(Iova(0x8000), world.Ram(0, 0), Access::kRead), Errc::kInvalidArgument));
  CHECK(Is(container.Map(Iova(0x8001), world.Ram(), Access::kRead), Errc::kInvalidArgument));
  CHECK(Is(container.Map(Iova(~std::uint64_t{0xfff}), world.Ram(), Access::kRead),
           Errc::kInvalidArgument));
  CHECK(Is(container.Map(Iova(0x3000), world.Ram(), Access::kRead), Errc::kOverlap));
  CHECK(Is(container.Map(Iova(0xfedff000), world.Ram(), Access::kRead), Errc::kGuestRange));
  CHECK(Is(container.Map(Iova(std::uint64_t{1} << 48), world.Ram(), Access::kRead),
           Errc::kGuestRange));
  CHECK(Is(container.Unmap(Iova(0x8000), 0x1000), Errc::kNotFound));
  CHECK(Is(container.Unmap(Iova(0), 0x3000), Errc::kNotFound));
  CHECK(Is(container.Unmap(Iova(0x1000), 0x1000), Errc::kNotFound));
  CHECK(world.kernel.TakeLog().empty());
}

TEST_CASE("type1: a device reads and writes what is mapped, as far as it is allowed") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0x100000), world.Ram(0, 0x4000), Access::kReadWrite));
  REQUIRE(world.container->Map(Iova(0x200000), world.Ram(0x4000, 0x1000), Access::kRead));
  REQUIRE(world.container->Map(Iova(0x300000), world.Ram(0x5000, 0x1000), Access::kWrite));
  std::byte* at = world.kernel.DmaOfGroup(26, 0x101234, 8, Access::kWrite);
  REQUIRE(at == world.ram.data() + 0x1234);
  CHECK(world.kernel.DmaOfGroup(26, 0x103ff8, 9, Access::kRead) == nullptr);
  CHECK(world.kernel.DmaOfGroup(26, 0x200000, 1, Access::kWrite) == nullptr);
  CHECK(world.kernel.DmaOfGroup(26, 0x200000, 1, Access::kRead) != nullptr);
  CHECK(world.kernel.DmaOfGroup(26, 0x300000, 1, Access::kRead) == nullptr);
  CHECK(world.kernel.DmaOfGroup(26, 0x300000, 1, Access::kWrite) != nullptr);
}

TEST_CASE("type1: each refusal of the kernel is told as it is, and nothing is remembered") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  const auto map = [&] { return world.container->Map(Iova(0), world.Ram(), Access::kReadWrite); };
  SUBCASE("limit of locked memory") {
    world.kernel.rules.memlock = kRam - 0x1000;
    CHECK(Is(map(), ENOMEM));
    world.kernel.rules.memlock = kRam;
  }
  SUBCASE("limit of mappings") {
    world.kernel.rules.entry_limit = 0;
    CHECK(Is(map(), ENOSPC));
    world.kernel.rules.entry_limit = 1;
  }
  SUBCASE("memory that is not there") {
    const Mmap room = *Mmap::Create(kRam, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
    const HostRange hole{.address = room.data(), .length = kRam};
    REQUIRE(munmap(room.data(), kRam) == 0);
    CHECK(Is(world.container->Map(Iova(0), hole, Access::kRead), EFAULT));
    REQUIRE(mmap(room.data(), kRam, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
            room.data());
  }
  SUBCASE("something of somebody else's is there") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EEXIST);
    CHECK(Is(map(), Errc::kOverlap));
  }
  SUBCASE("a range it did not tell of") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EINVAL);
    CHECK(Is(map(), EINVAL));
  }
  CHECK_FALSE(world.Reaches(0));
  CHECK(Is(world.container->Unmap(Iova(0), kRam), Errc::kNotFound));
  CHECK(map().has_value());
  CHECK(world.Reaches(0));
}

TEST_CASE("type1: an unmap the kernel does not do, or not wholly, is an error") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  SUBCASE("fails") {
    world.kernel.Fail(VFIO_IOMMU_UNMAP_DMA, EIO);
    CHECK(Is(world.container->Unmap(Iova(0), kRam), EIO));
    // It counts as present: a second try is possible, a second mapping is not.
    CHECK(Is(world.container->Map(Iova(0), world.Ram(), Access::kRead), Errc::kOverlap));
    CHECK(world.container->Unmap(Iova(0), kRam).has_value());
    CHECK_FALSE(world.Reaches(0));
  }
  const auto answer = [&](std::uint64_t size) {
    world.kernel.tamper = [size](unsigned long request, void* argument) {
      if (request != VFIO_IOMMU_UNMAP_DMA) return;
      static_cast<vfio_iommu_type1_dma_unmap*>(argument)->size = size;
    };
    return world.container->Unmap(Iova(0), kRam);
  };
  SUBCASE("less") {
    CHECK(Is(answer(kRam - 0x1000), EPROTO));
  }
  SUBCASE("nothing") {
    CHECK(Is(answer(0), EPROTO));
  }
  SUBCASE("more") {
    CHECK(Is(answer(kRam + 0x1000), EPROTO));
  }
}

TEST_CASE("type1: plug, unplug, plug: all is mapped again (regression cloud-hypervisor #6891)") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  REQUIRE(world.container->Map(Iova(0x100000), world.Ram(0x4000, 0x4000), Access::kRead));
  world.container->Detach(world.group.get());
  CHECK(world.container->groups() == 0);
  CHECK(world.container->info() == DefaultType1Info());
  CHECK_FALSE(world.Reaches(0));
  // The map goes on changing while no device is there.
  (void)world.kernel.TakeLog();
  REQUIRE(world.container->Unmap(Iova(0x100000), 0x4000).has_value());
  REQUIRE(world.container->Map(Iova(0x200000), world.Ram(0x8000, 0x4000), Access::kWrite));
  CHECK(world.kernel.TakeLog().empty());
  SUBCASE("the same group") {}
  SUBCASE("another group (regression cloud-hypervisor #7328)") {
    world.group = world.OpenGroup(27, {});
    (void)world.kernel.TakeLog();
  }
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  CHECK(world.kernel.TakeLog() == Lines{"VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU",
                                        "VFIO_IOMMU_GET_INFO", "VFIO_IOMMU_GET_INFO",
                                        "VFIO_IOMMU_MAP_DMA 0x0+0x4000 rw",
                                        "VFIO_IOMMU_MAP_DMA 0x200000+0x4000 w"});
  REQUIRE(world.container->Unmap(Iova(0x200000), 0x4000).has_value());
  REQUIRE(world.container->Unmap(Iova(0), 0x4000).has_value());
}

TEST_CASE("type1: regression: a group the host took away has left its container by itself") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  world.kernel.TakeAway(26);
  (void)world.kernel.TakeLog();
  world.container->Detach(world.group.get());
  CHECK(world.kernel.TakeLog() ==
        Lines{"VFIO_GROUP_UNSET_CONTAINER = EINVAL", "VFIO_GROUP_GET_STATUS = ENODEV"});
  CHECK(world.container->groups() == 0);
  world.group = world.OpenGroup(27, {});
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  CHECK(world.kernel.MappingsOfGroup(27).size() == 1);
  REQUIRE(world.container->Unmap(Iova(0), 0x4000).has_value());
}

TEST_CASE("type1: a first attachment that fails half way leaves the container as it was") {
  World world;
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  REQUIRE(world.container->Map(Iova(0x100000), world.Ram(0x4000, 0x4000), Access::kReadWrite));
  REQUIRE(world.container->Map(Iova(0x200000), world.Ram(0x8000, 0x4000), Access::kReadWrite));
  int expected = EIO;
  SUBCASE("SET_CONTAINER") {
    world.kernel.Fail(VFIO_GROUP_SET_CONTAINER, EIO);
  }
  SUBCASE("SET_CONTAINER, in use: there are no others to go with") {
    expected = EBUSY;
    world.kernel.Fail(VFIO_GROUP_SET_CONTAINER, EBUSY);
  }
  SUBCASE("SET_IOMMU") {
    world.kernel.Fail(VFIO_SET_IOMMU, EIO);
  }
  SUBCASE("first GET_INFO") {
    world.kernel.Fail(VFIO_IOMMU_GET_INFO, EIO);
  }
  SUBCASE("second GET_INFO") {
    world.kernel.Fail(VFIO_IOMMU_GET_INFO, EIO, 1);
  }
  SUBCASE("first mapping") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EIO);
  }
  SUBCASE("last mapping") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EIO, 2);
  }
  CHECK(Is(world.container->Attach(world.group.get()), expected));
  CHECK(world.container->groups() == 0);
  CHECK(world.container->info() == DefaultType1Info());
  CHECK(world.kernel.MappingsOfGroup(26).empty());
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  CHECK(world.kernel.MappingsOfGroup(26).size() == 3);
}

TEST_CASE("type1: a remembered mapping the first group cannot have") {
  World world({.reserved = {{0x100000, 0x1fffff}}});
  REQUIRE(world.container->Map(Iova(0), world.Ram(0, 0x4000), Access::kReadWrite).has_value());
  REQUIRE(world.container->Map(Iova(0x100000), world.Ram(0x4000, 0x4000), Access::kReadWrite));
  CHECK(Is(world.container->Attach(world.group.get()), Errc::kGuestRange));
  CHECK(world.container->groups() == 0);
  REQUIRE(world.container->Unmap(Iova(0x100000), 0x4000).has_value());
  CHECK(world.container->Attach(world.group.get()).has_value());
}

TEST_CASE("type1: a second group shares the domain, and takes ranges away") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  const Fd second = world.OpenGroup(27, {.reserved = {{0x200000, 0x2fffff}}});
  REQUIRE(world.container->Attach(second.get()).has_value());
  CHECK(world.container->groups() == 2);
  CHECK(world.Reaches(0, 27));
  CHECK(Is(world.container->Map(Iova(0x200000), world.Ram(), Access::kRead), Errc::kGuestRange));
  CHECK(Is(world.container->Attach(second.get()), Errc::kBadState));
  // With it goes what it alone could not reach.
  world.container->Detach(second.get());
  CHECK_FALSE(world.Reaches(0, 27));
  CHECK(world.Reaches(0));
  CHECK(world.container->Map(Iova(0x200000), world.Ram(), Access::kRead).has_value());
}

TEST_CASE("type1: a group that cannot share needs a container of its own") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  const Type1Info before = world.container->info();
  Fd second;
  SUBCASE("another IOMMU") {
    second = world.OpenGroup(27, {.kind = 1});
  }
  SUBCASE("a mapping lies where it cannot reach") {
    second = world.OpenGroup(27, {.reserved = {{0x4000, 0x4fff}}});
  }
  SUBCASE("busy") {
    second = world.OpenGroup(27, {});
    world.kernel.Fail(VFIO_GROUP_SET_CONTAINER, EBUSY);
  }
  CHECK(Is(world.container->Attach(second.get()), Errc::kUnsupported));
  CHECK(world.container->groups() == 1);
  CHECK(world.container->info() == before);
  CHECK(world.Reaches(0));
  const auto own = *Type1Container::Open(world.kernel);
  CHECK(own->Attach(second.get()).has_value());
}

TEST_CASE("type1: ranges that shrink under a mapping: the second group is refused again") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  const Fd second = world.OpenGroup(27, {});
  (void)world.kernel.TakeLog();
  // A kernel that attaches it all the same, and tells of the range afterwards.
  world.kernel.tamper = [](unsigned long request, void* argument) {
    if (request != VFIO_IOMMU_GET_INFO) return;
    vfio_iommu_type1_info info{};
    std::memcpy(&info, argument, sizeof(info));
    if (info.cap_offset == 0) return;
    // The ranges are the last capability: after migration (32) and mappings left (16).
    const vfio_iova_range first{.start = 0x8000, .end = 0xfedfffff};
    std::memcpy(static_cast<std::byte*>(argument) + info.cap_offset + 48 + 16, &first,
                sizeof(first));
  };
  CHECK(Is(world.container->Attach(second.get()), Errc::kGuestRange));
  CHECK(world.container->groups() == 1);
  CHECK_FALSE(world.Reaches(0, 27));
  CHECK(world.Reaches(0));
  CHECK(world.kernel.TakeLog() == Lines{"VFIO_GROUP_SET_CONTAINER", "VFIO_IOMMU_GET_INFO",
                                        "VFIO_IOMMU_GET_INFO", "VFIO_GROUP_UNSET_CONTAINER"});
  CHECK(world.container->limits().ranges.front() == IovaRange{0, 0xfedfffff});
}

TEST_CASE("type1: a second attachment that fails after SET_CONTAINER is undone") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  const Fd second = world.OpenGroup(27, {});
  world.kernel.Fail(VFIO_IOMMU_GET_INFO, EIO);
  CHECK(Is(world.container->Attach(second.get()), EIO));
  CHECK(world.container->groups() == 1);
  CHECK_FALSE(world.Reaches(0, 27));
  CHECK(world.container->Attach(second.get()).has_value());
}

TEST_CASE("type1: a domain that does not go with its last group reaches nothing any more") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  REQUIRE(world.container->Map(Iova(0), world.Ram(), Access::kReadWrite).has_value());
  world.kernel.Fail(VFIO_GROUP_UNSET_CONTAINER, EBUSY);  // a device is open still
  world.container->Detach(world.group.get());
  CHECK(world.container->groups() == 0);
  CHECK_FALSE(world.Reaches(0));
  CHECK(world.kernel.MappingsOfGroup(26).empty());
  world.container->Detach(12345);  // never was one
}

TEST_CASE("type1: an answer to GET_INFO that never ends is malformed") {
  World world;
  std::uint32_t size = 0;
  SUBCASE("grows with each call") {
    world.kernel.tamper = [](unsigned long request, void* argument) {
      if (request == VFIO_IOMMU_GET_INFO) *static_cast<std::uint32_t*>(argument) += 64;
    };
    CHECK(Is(world.container->Attach(world.group.get()), EPROTO));
    CHECK(world.kernel.TakeLog().size() == 4 + 2 + 4 + 1);  // four attempts, and left again
  }
  SUBCASE("larger than any") {
    size = (1U << 20) + 1;
  }
  SUBCASE("four thousand million bytes") {
    size = 0xffffffff;
  }
  if (size != 0) {
    world.kernel.tamper = [size](unsigned long request, void* argument) {
      if (request == VFIO_IOMMU_GET_INFO) *static_cast<std::uint32_t*>(argument) = size;
    };
    CHECK(Is(world.container->Attach(world.group.get()), EPROTO));
  }
  CHECK(world.container->groups() == 0);
}

TEST_CASE("type1: cannot tell what devices wrote") {
  World world;
  std::vector<std::uint64_t> bits(1);
  CHECK(Is(world.container->TrackDirty(true), Errc::kUnsupported));
  CHECK(Is(world.container->TakeDirty(Iova(0), 0x1000, 0x1000, bits), Errc::kUnsupported));
}

TEST_CASE("type1: threads map and unmap at once") {
  World world;
  REQUIRE(world.container->Attach(world.group.get()).has_value());
  const auto run = [&](std::uint64_t part) {
    for (int i = 0; i < 100; ++i) {
      const Iova at((part + 1) << 20);
      const Result<void> mapped =
          world.container->Map(at, world.Ram(part * 0x4000, 0x4000), Access::kReadWrite);
      if (!mapped || !world.container->limits().Allows(at, 0x4000)) return;
      if (!world.container->Unmap(at, 0x4000)) return;
    }
    (void)world.container->Map(Iova((part + 1) << 20), world.Ram(part * 0x4000, 0x4000),
                               Access::kReadWrite);
  };
  {
    const Thread other = *Thread::Start("map", [&] { run(1); });
    run(0);
  }
  CHECK(world.kernel.MappingsOfGroup(26).size() == 2);
}

}  // namespace
}  // namespace postern::iommu
