// Several guests on one DSA, from each guest's driver to the ioctls: Vdev, VfioBackend,
// GuestSpaces, DsaHost, KernelDevice and a kernel that has PASIDs (FakePasidKernel), behind whose
// device file is a LoopbackDevice.

#include "devices/siov/host/guest_spaces.h"

#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/siov/dsa/dsa_regs.h"
#include "devices/siov/host/host_rig.h"
#include "vfio/fake_pasid_kernel.h"
#include "vfio/kernel_host.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

namespace regs = dsa_regs;

constexpr const char* kDsa = "/sys/bus/pci/devices/0000:6a:01.0";
constexpr std::uint64_t kRegionShift = 40;  // of the device file's offsets
constexpr std::uint64_t kRam = 0x200000;

// The PASID in each queue's configuration.
using Pasids = std::array<std::atomic<std::uint32_t>, 2>;

// A kernel whose one device is a DSA that works. A Vdev has no PASIDs; what they are in a queue's
// configuration is kept here.
class DsaKernel final : public vfio::FakePasidKernel {
 public:
  DsaKernel(vfio::HostDevice& device, Pasids& pasids) : device_(device), pasids_(pasids) {
    vfio::FakeVfioDevice& file = fake.AddDevice("0000:6a:01.0", 7);
    const vfio::DeviceInfo& info = device.info();
    for (std::uint32_t i = 0; i < vfio::kRegionCount; ++i) {
      const std::uint32_t access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
      file.regions[i].size = info.regions[i].size;
      file.regions[i].flags = info.regions[i].size == 0 ? 0 : access;
      file.regions[i].msix_mappable = false;
    }
    file.irqs[vfio::kMsixIrq].count = info.irqs[vfio::kMsixIrq].count;
  }
  Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                       const char* op) override {
    const Result<int> done = FakePasidKernel::IoctlRaw(fd, request, argument, op);
    if (!done) return done;
    if (request == VFIO_DEVICE_RESET) TRY(device_.Reset());
    if (request == VFIO_DEVICE_SET_IRQS)
      TRY(SetIrqs(*reinterpret_cast<const vfio_irq_set*>(argument)));
    return done;
  }
  Result<std::size_t> Read(int fd, std::span<std::byte> to, std::uint64_t offset,
                           const char* op) override {
    if (!FakePasidKernel::Read(fd, to, offset, op)) return SysError(op, EIO);
    TRY(device_.ReadRegion(RegionOf(offset), InRegion(offset), to));
    return to.size();
  }
  Result<std::size_t> Write(int fd, std::span<const std::byte> from, std::uint64_t offset,
                            const char* op) override {
    if (!FakePasidKernel::Write(fd, from, offset, op)) return SysError(op, EIO);
    for (std::uint32_t queue = 0; queue < pasids_.size() && mode_row != 0; ++queue) {
      if (RegionOf(offset) != 0 || InRegion(offset) != mode_row + queue * mode_stride) continue;
      std::uint32_t mode = 0;
      std::memcpy(&mode, from.data(), sizeof(mode));
      pasids_[queue] = mode >> 28 & 1 ? mode >> 8 & 0xfffff : 0;
      mode &= 0xff;
      TRY(device_.WriteRegion(0, InRegion(offset), std::as_bytes(std::span(&mode, 1))));
      return from.size();
    }
    TRY(device_.WriteRegion(RegionOf(offset), InRegion(offset), from));
    return from.size();
  }

 private:
  static std::uint32_t RegionOf(std::uint64_t offset) {
    return static_cast<std::uint32_t>(offset >> kRegionShift);
  }
  static std::uint64_t InRegion(std::uint64_t offset) {
    return offset & ((std::uint64_t{1} << kRegionShift) - 1);
  }
  Result<void> SetIrqs(const vfio_irq_set& set) {
    if ((set.flags & VFIO_IRQ_SET_DATA_EVENTFD) == 0) return device_.DisableIrq(set.index);
    std::vector<int> events(set.count);
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(events));
    std::memcpy(bytes.data(), &set.data, bytes.size());
    return device_.SetVectors(set.index, set.start, events);
  }

  vfio::HostDevice& device_;
  Pasids& pasids_;

 public:
  // Where the first queue's mode is, once that is known.
  std::atomic<std::uint64_t> mode_row{0};
  std::atomic<std::uint64_t> mode_stride{0};
};

// Runs a queue's descriptors on the memory its PASID leads to: `memories`, from PASID 1 up.
class RunnerByPasid final : public DescriptorRunner {
 public:
  using Memories = std::array<memory::MemoryMap*, 2>;
  RunnerByPasid(const Memories& memories, const Pasids& pasids, const ExecutorCaps& caps,
                ExecutorEnvironment& environment)
      : pasids_(pasids) {
    for (memory::MemoryMap* memory : memories)
      executors_.push_back(std::make_unique<Executor>(*memory, caps, environment));
  }
  Executed Run(const QueueLimits& limits, const siov::Descriptor& descriptor) override {
    return executors_.at(pasids_.at(limits.queue) - 1)->Execute(limits, descriptor);
  }
  void Rest() override {
    for (const auto& executor : executors_) executor->Rest();
  }

 private:
  const Pasids& pasids_;
  std::vector<std::unique_ptr<Executor>> executors_;
};

struct SharedRig {
  memory::MemoryMap one{testing::MakeMemory(kRam)};
  memory::MemoryMap two{testing::MakeMemory(kRam)};
  Pasids pasid_of{};  // by queue
  std::unique_ptr<LoopbackDevice> device = NewDevice();
  DsaKernel kernel{*device, pasid_of};
  vfio::KernelHost kernels{kernel, nullptr, kernel.fake.sysfs(), kernel.fake.dev()};
  vfio::PasidDevice* pasids = nullptr;
  std::unique_ptr<DsaHost> host = NewHost();
  GuestSpaces spaces{*pasids, 0};

  std::unique_ptr<LoopbackDevice> NewDevice() {
    const ExecutorCaps caps{.operations = kAllOperations};
    const RunnerByPasid::Memories memories{&one, &two};
    auto engine = Engine::Create({.name = "loopback", .queues = 8, .operations = kAllOperations},
                                 {.runner =
                                      [this, caps, memories](ExecutorEnvironment& environment) {
                                        return std::make_unique<RunnerByPasid>(memories, pasid_of,
                                                                               caps, environment);
                                      },
                                  .polled = PolledPages()});
    auto personality = DsaPersonality::Create({.profile = DsaProfile::kConfigurable, .wqs = 2},
                                              engine.value()->caps());
    return std::make_unique<LoopbackDevice>(std::move(personality).value(),
                                            std::move(engine).value(), siov::PortalMode::kTrapped);
  }
  std::unique_ptr<DsaHost> NewHost() {
    auto shared = kernels.OpenShared({.sysfs = kDsa}).value();
    pasids = shared.pasids;
    auto created = DsaHost::Create(std::move(shared.device),
                                   {.name = "dsa", .portals_are_memory = true, .pasids = true});
    const HostCaps& caps = created.value()->caps();
    kernel.mode_row = caps.OfQueue(0, regs::kWqMode);
    kernel.mode_stride = caps.wqcfg_bytes;
    return std::move(*created);
  }
  std::uint32_t Register(std::uint32_t queue, std::uint32_t row) {
    return DeviceRegisters(*device).Read32(host->caps().OfQueue(queue, row)).value();
  }
  // The last that was written for this vector.
  std::uint64_t Permission(std::uint32_t vector) {
    const std::uint64_t at = host->caps().msixperm + std::uint64_t{vector} * regs::kMsixpermStride;
    std::uint64_t last = ~std::uint64_t{0};
    for (const LoopbackDevice::Access& write : device->Writes(0)) {
      if (write.offset == at) last = write.value;
    }
    return last;
  }
};

// A guest's Vdev on one queue, with the memory of `map`.
struct SharingGuest {
  static std::unique_ptr<VfioBackend> NewQueues(SharedRig& rig, memory::MemoryMap& map) {
    return VfioBackend::Create(*rig.host, {.queues = 1, .size = 16}, rig.spaces.Admit(map).value())
        .value();
  }
  SharingGuest(SharedRig& rig, memory::MemoryMap& map)
      : memory(map),
        dsa(NewQueues(rig, map), {.wqs = 1, .wq_size = 16}, siov::PortalMode::kTrapped) {}

  // What was at 0x1000 is at 0x2000 afterwards: the status.
  std::uint8_t Move(std::byte value, std::uint64_t to = 0x2000) {
    const auto snapshot = memory.Snapshot();
    CHECK(snapshot->View(memory::Gpa(0x1000), 512, memory::Access::kWrite)
              ->Fill(0, 512, value)
              .has_value());
    CHECK(snapshot->Write(memory::Gpa(0x3000), std::uint64_t{0}).has_value());
    WorkDescriptor move{};
    move.flags_and_opcode = std::uint32_t{static_cast<std::uint8_t>(Opcode::kMove)} << 24 |
                            Flag::kRecordValid | Flag::kRequestRecord;
    move.record = 0x3000;
    move.source = 0x1000;
    move.destination = to;
    move.size = 512;
    dsa.SubmitTrapped(0, std::bit_cast<siov::Descriptor>(move));
    CHECK(WaitFor([&] { return *snapshot->Read<std::uint8_t>(memory::Gpa(0x3000)) != 0; }));
    return *snapshot->Read<std::uint8_t>(memory::Gpa(0x3000));
  }
  std::uint8_t At(std::uint64_t address) {
    return *memory.Snapshot()->Read<std::uint8_t>(memory::Gpa(address));
  }

  memory::MemoryMap& memory;
  GuestDsa dsa;
};

}  // namespace

TEST_CASE("guest spaces: two guests on one device, each with its PASID and its own memory") {
  SharedRig rig;
  {
    SharingGuest one(rig, rig.one);
    SharingGuest two(rig, rig.two);
    REQUIRE(one.dsa.Enable(0) == 0);
    REQUIRE(two.dsa.Enable(0) == 0);
    // What the device was told: dedicated queues, each with its guest's PASID, unprivileged.
    for (std::uint32_t queue = 0; queue < 2; ++queue) {
      const regs::WQMODE mode{{rig.Register(queue, regs::kWqMode)}};
      CHECK(mode.Get<regs::WQMODE::Dedicated>());
      CHECK(rig.pasid_of.at(queue) == queue + 1);
      CHECK_FALSE(mode.Get<regs::WQMODE::Privileged>());
      CHECK(rig.Permission(queue + 1) == ((queue + 1) << 12 | 1U << 3));
    }
    // What the kernel was told: each PASID leads to its guest's memory, nothing leads elsewhere.
    REQUIRE(rig.kernel.attached.size() == 2);
    for (const auto& [pasid, map] : {std::pair{1U, &rig.one}, std::pair{2U, &rig.two}}) {
      const auto mappings =
          rig.kernel.fake.MappingsOfIoas(rig.kernel.spaces[rig.kernel.attached[pasid]]);
      REQUIRE(mappings.size() == 1);
      CHECK(mappings[0].iova == 0);
      CHECK(mappings[0].length == kRam);
      CHECK(reinterpret_cast<std::uintptr_t>(mappings[0].address) ==
            map->Snapshot()->regions()[0]->host_address());
    }
    CHECK(one.Move(std::byte{0x11}) == 1);
    CHECK(two.Move(std::byte{0x22}) == 1);
    CHECK(one.At(0x2000) == 0x11);
    CHECK(two.At(0x2000) == 0x22);
    // Beyond a guest's memory there is a fault, of its own queue.
    CHECK(one.Move(std::byte{0x33}, kRam) == (0x80 | 3));
    // A reset of one guest's device leaves the other's queue alone.
    one.dsa.FunctionLevelReset();
    CHECK(two.Move(std::byte{0x44}) == 1);
    CHECK(two.At(0x2000) == 0x44);
  }
  CHECK(rig.kernel.attached.empty());
  // Before its space went, the guest's queue was reset.
  CHECK((rig.Register(0, regs::kWqStatus) >> 30) == 0);
  rig.host.reset();
  CHECK(rig.kernel.fake.open_files() == 0);
}

TEST_CASE("guest spaces: memory that is plugged in or out follows the guest's map") {
  SharedRig rig;
  auto space = rig.spaces.Admit(rig.one).value();
  CHECK(space->pasid() == 1);
  const std::uint32_t ioas = rig.kernel.spaces[rig.kernel.attached[1]];
  auto region = memory::Region::Create(memory::Gpa(0x10000000), kRam, {}).value();
  REQUIRE(rig.one.Add(region));
  CHECK(rig.kernel.fake.MappingsOfIoas(ioas).size() == 2);
  REQUIRE(rig.one.Remove(memory::Gpa(0x10000000)));
  CHECK(rig.kernel.fake.MappingsOfIoas(ioas).size() == 1);
  space.reset();
  // The map has forgotten it.
  REQUIRE(rig.one.Add(region));
}

TEST_CASE("guest spaces: a guest that cannot be admitted leaves nothing behind") {
  SharedRig rig;
  rig.kernel.fake.Fail(IOMMU_IOAS_MAP, ENOMEM);
  const auto refused = rig.spaces.Admit(rig.one);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().cause.find("memory") != std::string::npos);
  CHECK(rig.kernel.attached.empty());
  rig.kernel.attaches = false;
  CHECK(rig.spaces.Admit(rig.one).error().cause.find("PASID") != std::string::npos);
  rig.kernel.attaches = true;
  CHECK(rig.spaces.Admit(rig.one).value()->pasid() == 1);
}

}  // namespace postern::dsa
