#include "iommu/peer_memory.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/mman.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "iommu/fake_iommu_kernel.h"
#include "iommu/ioas.h"
#include "iommu/type1.h"
#include "src/base/mmap.h"
#include "src/base/thread.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Access;

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kBar = std::uint64_t{256} << 30;

// Two groups that cannot share a container, and so one each.
struct World {
  FakeIommuKernel kernel;
  std::vector<std::unique_ptr<Type1Container>> containers;
  std::vector<Fd> groups;
  Mmap pages = *Mmap::Create(16 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  PeerMemory peers;

  World() {
    for (const unsigned group : {26U, 27U}) {
      kernel.AddGroup(group, {.last = (std::uint64_t{1} << 39) - 1, .kind = group});
      containers.push_back(*Type1Container::Open(kernel));
      groups.push_back(*kernel.Open("/dev/vfio/" + std::to_string(group), O_RDWR));
      REQUIRE(containers.back()->Attach(groups.back().get()).has_value());
    }
  }
  HostRange Page(std::uint64_t number, std::uint64_t count = 1) {
    return {.address = pages.data() + number * kPage, .length = count * kPage};
  }
  // The page of `pages` that a device of the group reaches there; -1: none.
  int Reached(unsigned group, std::uint64_t iova, Access access = Access::kRead) {
    const std::byte* at = kernel.DmaOfGroup(group, iova, 1, access);
    return at == nullptr ? -1 : static_cast<int>((at - pages.data()) / static_cast<int>(kPage));
  }
};

TEST_CASE("peer memory: what a device offers is in every address space, and goes with it") {
  World world;
  const auto gpu = world.peers.Join(*world.containers[0], "gpu0");
  const auto nic = world.peers.Join(*world.containers[1], "nic0");
  gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
  gpu->Offer(2, Iova(kBar + 0x10000), world.Page(2, 2), Access::kRead);
  gpu->Offer(2, Iova(kBar + 0x20000), world.Page(5), Access::kReadWrite);
  for (const unsigned group : {26U, 27U}) {
    CAPTURE(group);
    CHECK(world.Reached(group, kBar, Access::kReadWrite) == 1);
    CHECK(world.Reached(group, kBar + 0x11000) == 3);
    CHECK(world.Reached(group, kBar + 0x11000, Access::kWrite) == -1);
    CHECK(world.Reached(group, kBar + 0x20000) == 5);
  }
  CHECK(gpu->maps() == 6);
  CHECK(gpu->refused() == 0);
  CHECK(nic->maps() == 0);
  gpu->Withdraw(2);
  for (const unsigned group : {26U, 27U}) {
    CAPTURE(group);
    CHECK(world.Reached(group, kBar) == 1);
    CHECK(world.kernel.MappingsOfGroup(group).size() == 1);
  }
  // The same BAR elsewhere.
  gpu->Withdraw(0);
  gpu->Offer(0, Iova(2 * kBar - 0x1000), world.Page(1), Access::kReadWrite);
  CHECK(world.Reached(27, kBar) == -1);
  CHECK(world.Reached(27, 2 * kBar - 0x1000) == 1);
}

TEST_CASE("peer memory: a device that comes later finds what is there, and takes nothing away") {
  World world;
  const auto gpu = world.peers.Join(*world.containers[0], "gpu0");
  gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
  CHECK(world.kernel.MappingsOfGroup(27).empty());
  for (int round = 0; round < 10; ++round) {
    auto nic = world.peers.Join(*world.containers[1], "nic0");
    nic->Offer(4, Iova(kBar + 0x10000), world.Page(8), Access::kReadWrite);
    CHECK(world.Reached(27, kBar) == 1);
    CHECK(world.Reached(26, kBar + 0x10000) == 8);
    // Another one of the same space: nothing is mapped twice, and nothing goes while one is left.
    auto vf = world.peers.Join(*world.containers[1], "vf0");
    CHECK(world.kernel.MappingsOfGroup(27).size() == 2);
    nic.reset();
    CHECK(world.Reached(27, kBar) == 1);
    CHECK(world.Reached(26, kBar + 0x10000) == -1);
    vf.reset();
    CHECK(world.kernel.MappingsOfGroup(27).empty());
    CHECK(world.Reached(26, kBar) == 1);
  }
}

TEST_CASE("peer memory: one address space of several devices has one map of each page") {
  World world;
  const auto a = world.peers.Join(*world.containers[0], "a");
  const auto b = world.peers.Join(*world.containers[0], "b");
  a->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
  b->Offer(0, Iova(kBar + 0x1000), world.Page(2), Access::kReadWrite);
  CHECK(world.kernel.MappingsOfGroup(26).size() == 2);
  CHECK(a->maps() + b->maps() == 2);
}

TEST_CASE("peer memory: a space that refuses goes without, is counted, and the others have it") {
  World world;
  const auto gpu = world.peers.Join(*world.containers[0], "gpu0");
  const auto nic = world.peers.Join(*world.containers[1], "nic0");
  SUBCASE("the kernel does not map such memory") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EFAULT);
    gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
    CHECK(world.Reached(26, kBar) == -1);
    CHECK(world.Reached(27, kBar) == 1);
    CHECK(gpu->refused() == 1);
    gpu->Withdraw(0);
    CHECK(world.kernel.MappingsOfGroup(27).empty());
    // Tried again at the next mapping of the BAR.
    gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
    CHECK(world.Reached(26, kBar) == 1);
  }
  SUBCASE("out of its reach") {
    gpu->Offer(0, Iova(2 * kBar), world.Page(1), Access::kReadWrite);
    CHECK(gpu->refused() == 2);
    CHECK(gpu->maps() == 0);
  }
  SUBCASE("refused by all, and taken by the one that comes later") {
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EINVAL);
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, EINVAL, 1);
    gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
    CHECK(gpu->refused() == 2);
    auto ioas = *Ioas::Open(world.kernel);
    const auto late = world.peers.Join(*ioas, "late");
    CHECK(world.kernel.MappingsOfIoas(ioas->id()).size() == 1);
  }
  SUBCASE("it does not give it up: it is not asked again") {
    gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
    world.kernel.Fail(VFIO_IOMMU_UNMAP_DMA, EINVAL);
    gpu->Withdraw(0);
    CHECK(world.Reached(26, kBar) == 1);
    CHECK(world.Reached(27, kBar) == -1);
  }
}

class CopyingSpace final : public AddressSpace {
 public:
  [[nodiscard]] std::string_view name() const override { return "copying"; }
  [[nodiscard]] Limits limits() const override {
    return {.ranges = {{0, ~std::uint64_t{0}}}, .page_sizes = kPage, .device_memory = false};
  }
  Result<void> Map(Iova /*at*/, const HostRange& /*from*/, Access /*access*/) override {
    ++maps;
    return {};
  }
  Result<void> Unmap(Iova /*at*/, std::uint64_t /*length*/) override {
    ++maps;
    return {};
  }
  Result<void> TrackDirty(bool /*on*/) override { return {}; }
  Result<void> TakeDirty(Iova /*at*/, std::uint64_t /*length*/, std::uint64_t /*page*/,
                         std::span<std::uint64_t> /*bits*/) override {
    return {};
  }
  int maps = 0;
};

TEST_CASE("peer memory: a space that takes no memory of devices gets none; its device offers") {
  World world;
  CopyingSpace space;
  const auto nic = world.peers.Join(*world.containers[0], "nic0");
  {
    const auto remote = world.peers.Join(space, "remote");
    remote->Offer(0, Iova(kBar), world.Page(3), Access::kReadWrite);
    CHECK(world.Reached(26, kBar) == 3);
    nic->Offer(0, Iova(kBar + 0x1000), world.Page(4), Access::kReadWrite);
  }
  CHECK(space.maps == 0);
  CHECK(world.Reached(26, kBar) == -1);
  CHECK(world.Reached(26, kBar + 0x1000) == 4);
}

TEST_CASE("peer memory: BARs move while devices come and go") {
  World world;
  const auto gpu = world.peers.Join(*world.containers[0], "gpu0");
  {
    const Thread mover = *Thread::Start("mover", [&] {
      for (int i = 0; i < 200; ++i) {
        gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
        gpu->Withdraw(0);
      }
      gpu->Offer(0, Iova(kBar), world.Page(1), Access::kReadWrite);
    });
    for (int i = 0; i < 200; ++i) {
      const auto nic = world.peers.Join(*world.containers[1], "nic0");
      nic->Offer(0, Iova(kBar + 0x1000), world.Page(2), Access::kReadWrite);
    }
  }
  CHECK(world.kernel.MappingsOfGroup(26).size() == 1);
  CHECK(world.kernel.MappingsOfGroup(27).empty());
}

}  // namespace
}  // namespace postern::iommu
