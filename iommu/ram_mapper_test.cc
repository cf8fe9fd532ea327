#include "iommu/ram_mapper.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "iommu/fake_iommu_kernel.h"
#include "iommu/ioas.h"
#include "iommu/prefault.h"
#include "iommu/type1.h"
#include "src/base/mmap.h"

#include <doctest/doctest.h>

namespace postern::iommu {
namespace {

using memory::Access;
using memory::Backing;
using memory::Gpa;
using memory::GuestMemory;
using memory::MemoryMap;
using memory::MemoryObserver;
using memory::Region;
using memory::RegionPtr;
using Lines = std::vector<std::string>;

constexpr std::uint64_t kSize = 0x10000;

RegionPtr Ram(std::uint64_t base, const Backing& backing = {}) {
  return *Region::Create(Gpa(base), kSize, backing);
}

MemoryMap MapOf(std::vector<RegionPtr> regions) {
  return MemoryMap(*GuestMemory::Create(std::move(regions)));
}

struct World {
  FakeIommuKernel kernel;
  std::unique_ptr<Type1Container> container;
  Fd group;
  World() {
    kernel.AddGroup(26, {});
    container = *Type1Container::Open(kernel);
    group = *kernel.Open("/dev/vfio/26", O_RDWR);
    REQUIRE(container->Attach(group.get()).has_value());
    (void)kernel.TakeLog();
  }
  std::byte* Dma(std::uint64_t iova) { return kernel.DmaOfGroup(26, iova, 1, Access::kReadWrite); }
};

bool SamePage(const std::byte* device, const Region& region) {
  return reinterpret_cast<std::uintptr_t>(device) == region.host_address();
}

TEST_CASE(
    "ram_mapper: every region of the map is where the guest sees it, as long as it is there") {
  World world;
  const RegionPtr low = Ram(0);
  const RegionPtr high = Ram(std::uint64_t{4} << 30);
  const RegionPtr plugged = Ram(std::uint64_t{8} << 30);
  MemoryMap memory = MapOf({low, high});
  RamMapper mapper(*world.container, 4);
  REQUIRE(memory.Observe(mapper).has_value());
  CHECK(mapper.mapped_bytes() == 2 * kSize);
  CHECK(SamePage(world.Dma(0), *low));
  CHECK(SamePage(world.Dma(std::uint64_t{4} << 30), *high));
  REQUIRE(memory.Add(plugged).has_value());
  CHECK(SamePage(world.Dma(std::uint64_t{8} << 30), *plugged));
  REQUIRE(memory.Remove(Gpa(0)).has_value());
  CHECK(world.Dma(0) == nullptr);
  CHECK(mapper.mapped_bytes() == 2 * kSize);
  CHECK_FALSE(mapper.last_error().has_value());
  CHECK(world.kernel.TakeLog() ==
        Lines{"VFIO_IOMMU_MAP_DMA 0x0+0x10000 rw", "VFIO_IOMMU_MAP_DMA 0x100000000+0x10000 rw",
              "VFIO_IOMMU_MAP_DMA 0x200000000+0x10000 rw", "VFIO_IOMMU_UNMAP_DMA 0x0+0x10000"});
  memory.Unobserve(mapper);
}

TEST_CASE("ram_mapper: a map that fails in the middle leaves exactly what was there before") {
  World world;
  std::vector<RegionPtr> regions;
  for (std::uint64_t i = 0; i < 4; ++i) regions.push_back(Ram(i << 20));
  const Mmap other = *Mmap::Create(kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(world.container->Map(Iova(std::uint64_t{1} << 40),
                               {.address = other.data(), .length = kSize}, Access::kRead));
  (void)world.kernel.TakeLog();
  MemoryMap memory = MapOf(regions);
  RamMapper mapper(*world.container, 1);
  for (unsigned failing = 0; failing < 4; ++failing) {
    CAPTURE(failing);
    world.kernel.Fail(VFIO_IOMMU_MAP_DMA, ENOMEM, failing);
    CHECK(memory.Observe(mapper).error().sys_errno == ENOMEM);
    REQUIRE(mapper.last_error().has_value());
    CHECK(mapper.last_error()->gpa == regions[failing]->base());
    CHECK(mapper.last_error()->length == kSize);
    CHECK(mapper.last_error()->error.sys_errno == ENOMEM);
    CHECK(mapper.mapped_bytes() == 0);
    const std::vector<FakeMapping> left = world.kernel.MappingsOfGroup(26);
    REQUIRE(left.size() == 1);
    CHECK(left[0].iova == std::uint64_t{1} << 40);
    Lines expected;
    for (unsigned i = 0; i < failing; ++i) {
      expected.push_back(fmt::format("VFIO_IOMMU_MAP_DMA {:#x}+0x10000 rw", i << 20));
    }
    expected.emplace_back("VFIO_IOMMU_MAP_DMA = ENOMEM");
    for (unsigned i = failing; i > 0; --i) {
      expected.push_back(fmt::format("VFIO_IOMMU_UNMAP_DMA {:#x}+0x10000", (i - 1) << 20));
    }
    CHECK(world.kernel.TakeLog() == expected);
  }
  CHECK(memory.Observe(mapper).has_value());
  CHECK(world.kernel.MappingsOfGroup(26).size() == 5);
  memory.Unobserve(mapper);
}

TEST_CASE("ram_mapper: a region that cannot be plugged is in nobody's map") {
  World world;
  MemoryMap memory = MapOf({Ram(0)});
  RamMapper mapper(*world.container, 1);
  REQUIRE(memory.Observe(mapper).has_value());
  (void)world.kernel.TakeLog();
  SUBCASE("in the window of interrupts: before any page is touched") {
    const RegionPtr bad = Ram(0xfedf8000);
    CHECK(memory.Add(bad).error().code == Errc::kGuestRange);
    CHECK(world.kernel.TakeLog().empty());
    std::vector<unsigned char> present(kSize / 4096, 1);
    REQUIRE(mincore(reinterpret_cast<void*>(bad->host_address()), kSize, present.data()) == 0);
    CHECK((present[0] & 1) == 0);
  }
  SUBCASE("no more mappings") {
    world.kernel.rules.entry_limit = 1;
    CHECK(memory.Add(Ram(0x100000)).error().sys_errno == ENOSPC);
  }
  CHECK(memory.Snapshot()->regions().size() == 1);
  CHECK(world.kernel.MappingsOfGroup(26).size() == 1);
  CHECK(mapper.mapped_bytes() == kSize);
  memory.Unobserve(mapper);
}

TEST_CASE("ram_mapper: memory is present before it is pinned") {
  World world;
  const RegionPtr region = Ram(0);
  auto* base = reinterpret_cast<unsigned char*>(region->host_address());
  base[0x5000] = 0x77;
  std::vector<unsigned char> present(kSize / 4096);
  world.kernel.tamper = [&](unsigned long request, void* /*argument*/) {
    if (request != VFIO_IOMMU_MAP_DMA) return;
    REQUIRE(mincore(base, kSize, present.data()) == 0);
  };
  MemoryMap memory = MapOf({region});
  unsigned threads = 0;
  unsigned expected = 1;
  SUBCASE("with threads") {
    threads = 4;
    expected = kSize / 4096;
  }
  SUBCASE("unless it is not wanted") {}
  RamMapper mapper(*world.container, threads);
  REQUIRE(memory.Observe(mapper).has_value());
  unsigned count = 0;
  for (const unsigned char page : present) count += page & 1U;
  CHECK(count == expected);
  CHECK(base[0x5000] == 0x77);
  memory.Unobserve(mapper);
}

TEST_CASE("ram_mapper: by file where the mapping is the file, by address where it is a copy") {
  FakeIommuKernel kernel;
  const auto ioas = *Ioas::Open(kernel);
  REQUIRE(kernel.AttachDevice(ioas->iommufd(), ioas->id(), 1, {}).has_value());
  REQUIRE(ioas->Attached().has_value());
  (void)kernel.TakeLog();
  Backing backing{.kind = Backing::Kind::kMemfd};
  std::string call = "IOMMU_IOAS_MAP";
  SUBCASE("shared memfd") {
    backing.shared = true;
    call = "IOMMU_IOAS_MAP_FILE";
  }
  SUBCASE("private memfd") {}
  SUBCASE("anonymous") {
    backing = {};
  }
  const RegionPtr region = Ram(0x100000, backing);
  MemoryMap memory = MapOf({region});
  RamMapper mapper(*ioas, 1);
  REQUIRE(memory.Observe(mapper).has_value());
  CHECK(kernel.TakeLog() == Lines{call + " 0x100000+0x10000 rw"});
  // What the guest writes is what the device reads.
  const std::uint32_t pattern = 0x04030201;
  REQUIRE(memory.Snapshot()->CopyIn(Gpa(0x104000), std::as_bytes(std::span(&pattern, 1))));
  const std::byte* at = kernel.DmaOfIoas(ioas->id(), 0x104000, 4, Access::kRead);
  REQUIRE(at != nullptr);
  CHECK(at[0] == std::byte{0x01});
  CHECK(at[3] == std::byte{0x04});
  memory.Unobserve(mapper);
}

TEST_CASE("ram_mapper: a region the kernel does not give up is counted as mapped") {
  World world;
  MemoryMap memory = MapOf({Ram(0)});
  RamMapper mapper(*world.container, 1);
  REQUIRE(memory.Observe(mapper).has_value());
  world.kernel.Fail(VFIO_IOMMU_UNMAP_DMA, EIO);
  REQUIRE(memory.Remove(Gpa(0)).has_value());
  CHECK(mapper.mapped_bytes() == kSize);
  memory.Unobserve(mapper);
}

// Stands for KVM: tells whether the device reached the region at the time.
class Recorder final : public MemoryObserver {
 public:
  Recorder(std::string name, World& world, Lines& log)
      : name_(std::move(name)), world_(world), log_(log) {}
  Result<void> Added(const Region& region) override {
    log_.push_back(name_ + " added" + State(region));
    return {};
  }
  void Removing(const Region& region) override {
    log_.push_back(name_ + " removing" + State(region));
  }

 private:
  std::string State(const Region& region) {
    return world_.Dma(region.base().value) != nullptr ? ", reached by DMA" : ", not reached";
  }
  std::string name_;
  World& world_;
  Lines& log_;
};

TEST_CASE("ram_mapper: KVM has a region before any device reaches it and after every device") {
  World world;
  Lines log;
  Recorder kvm("kvm", world, log);
  Recorder after("later space", world, log);
  RamMapper mapper(*world.container, 1);
  MemoryMap memory = MapOf({});
  REQUIRE(memory.Observe(kvm).has_value());
  REQUIRE(memory.Observe(mapper).has_value());
  REQUIRE(memory.Observe(after).has_value());
  REQUIRE(memory.Add(Ram(0x100000)).has_value());
  CHECK(log == Lines{"kvm added, not reached", "later space added, reached by DMA"});
  log.clear();
  REQUIRE(memory.Remove(Gpa(0x100000)).has_value());
  CHECK(log == Lines{"later space removing, reached by DMA", "kvm removing, not reached"});
  log.clear();
  // A region no device can have is given up by KVM, and the spaces after are not told of it.
  world.kernel.Fail(VFIO_IOMMU_MAP_DMA, ENOMEM);
  CHECK_FALSE(memory.Add(Ram(0x100000)).has_value());
  CHECK(log == Lines{"kvm added, not reached", "kvm removing, not reached"});
}

TEST_CASE("ram_mapper: two address spaces: what the second refuses the first gives up") {
  World world;
  const auto second = *Type1Container::Open(world.kernel);
  world.kernel.AddGroup(27, {.last = 0xffffffff});
  const Fd group = *world.kernel.Open("/dev/vfio/27", O_RDWR);
  REQUIRE(second->Attach(group.get()).has_value());
  MemoryMap memory = MapOf({Ram(0)});
  RamMapper first_mapper(*world.container, 1);
  RamMapper second_mapper(*second, 1);
  REQUIRE(memory.Observe(first_mapper).has_value());
  REQUIRE(memory.Observe(second_mapper).has_value());
  CHECK(memory.Add(Ram(std::uint64_t{4} << 30)).error().code == Errc::kGuestRange);
  CHECK(world.Dma(std::uint64_t{4} << 30) == nullptr);
  CHECK(world.kernel.MappingsOfGroup(26).size() == 1);
  CHECK(world.kernel.MappingsOfGroup(27).size() == 1);
  CHECK_FALSE(first_mapper.last_error().has_value());
  CHECK(second_mapper.last_error()->gpa == Gpa(std::uint64_t{4} << 30));
  memory.Unobserve(second_mapper);
  memory.Unobserve(first_mapper);
}

TEST_CASE("prefault: small memory is not worth a thread") {
  const PrefaultOptions options{.threads = 8, .per_thread = 0x1000000};
  CHECK(UsefulPrefaultThreads(0, options) == 1);
  CHECK(UsefulPrefaultThreads(0x1ffffff, options) == 1);
  CHECK(UsefulPrefaultThreads(0x2000000, options) == 2);
  CHECK(UsefulPrefaultThreads(~std::uint64_t{0}, options) == 8);
  CHECK(UsefulPrefaultThreads(~std::uint64_t{0}, {.threads = 0}) == 1);
  CHECK(UsefulPrefaultThreads(~std::uint64_t{0}, {.threads = 4000000}) == 64);
  CHECK(UsefulPrefaultThreads(0x5000000, {.threads = 8, .per_thread = 0}) == 8);
}

TEST_CASE("prefault: the host offers a thread a processor, within reason") {
  CHECK(HostPrefaultThreads() >= 1);
  CHECK(HostPrefaultThreads() <= 16);
  cpu_set_t allowed;
  REQUIRE(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
  // A test's share may be smaller than the host.
  CHECK(HostPrefaultThreads() >= static_cast<unsigned>(std::min(CPU_COUNT(&allowed), 16)));
}

TEST_CASE("prefault: each part of the memory is made present, whatever the number of threads") {
  constexpr std::uint64_t kPages = 37;
  for (unsigned threads = 1; threads <= 9; ++threads) {
    CAPTURE(threads);
    const Mmap memory =
        *Mmap::Create(kPages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    REQUIRE(Prefault(memory.data(), memory.size(), {.threads = threads, .per_thread = 4096}));
    std::vector<unsigned char> present(kPages);
    REQUIRE(mincore(memory.data(), memory.size(), present.data()) == 0);
    unsigned count = 0;
    for (const unsigned char page : present) count += page & 1U;
    CHECK(count == kPages);
  }
}

TEST_CASE("prefault: memory that cannot be written is an error, from whichever thread") {
  const Mmap memory = *Mmap::Create(0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(munmap(memory.data() + 0xf000, 0x1000) == 0);
  const Result<void> result =
      Prefault(memory.data(), memory.size(), {.threads = 4, .per_thread = 4096});
  REQUIRE(mmap(memory.data() + 0xf000, 0x1000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
               -1, 0) == memory.data() + 0xf000);
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().sys_errno == ENOMEM);
}

}  // namespace
}  // namespace postern::iommu
