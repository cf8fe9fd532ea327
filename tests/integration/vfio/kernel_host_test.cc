// Real devices of this machine's kernel: whatever PCI functions are bound to a VFIO driver, and
// mediated devices. Meant for the emulated host (tests/rig), where they are an NVMe disk, the
// kernel's sample mtty and the like; elsewhere it is skipped. Devices are reset, and nobody else
// may be using them.

#include "vfio/kernel_host.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "bazel/testing/skip.h"
#include "src/base/event_fd.h"
#include "src/base/mmap.h"
#include "src/kvm/kvm.h"
#include "src/kvm/vfio_files.h"
#include "src/kvm/vm.h"

#include <doctest/doctest.h>

namespace postern {
namespace {

using iommu::Iova;
using vfio::KernelHost;
using Spec = KernelHost::Spec;
using Iommufd = Spec::Iommufd;
using DevicePtr = std::unique_ptr<vfio::HostDevice>;

constexpr std::size_t kRam = std::size_t{64} << 20;

std::vector<std::string> Devices() {
  std::vector<std::string> found;
  std::error_code error;
  for (const char* bus : {"/sys/bus/pci/devices", "/sys/bus/mdev/devices"}) {
    for (const auto& entry : std::filesystem::directory_iterator(bus, error)) {
      if (std::filesystem::exists(entry.path() / "vfio-dev", error)) {
        found.push_back(entry.path().string());
      }
    }
  }
  return found;
}

std::vector<Iommufd> Ways() {
  std::vector<Iommufd> ways{Iommufd::kOff};
  if (std::filesystem::exists("/dev/iommu") && std::filesystem::exists("/dev/vfio/devices")) {
    ways.push_back(Iommufd::kOn);
  }
  return ways;
}

std::uint64_t SysfsNumber(const std::string& path) {
  std::string text;
  std::ifstream(path) >> text;
  return std::stoull(text, nullptr, 16);
}

std::size_t OpenFiles() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

struct Rig {
  Mmap ram = *Mmap::Create(kRam, PROT_READ | PROT_WRITE, MAP_SHARED);
  kvm::Kvm kvm = *kvm::Kvm::Open();
  std::unique_ptr<kvm::Vm> vm = *kvm::Vm::Create(kvm);
  kvm::VfioFiles files{*vm};
  KernelHost host{SystemCalls(), &files, "/sys", "/dev", [this](iommu::AddressSpace& space) {
                    const auto mapped = space.Map(Iova(0), {.address = ram.data(), .length = kRam},
                                                  memory::Access::kReadWrite);
                    return mapped ? Outcome<void>() : HostFailure("map RAM", mapped.error());
                  }};

  DevicePtr Open(const std::string& path, Iommufd way) {
    auto device = host.Open({.sysfs = path, .iommufd = way});
    if (!device) FAIL(device.error().cause);
    return std::move(*device);
  }
};

bool IsMediated(const std::string& path) {
  return path.starts_with("/sys/bus/mdev/");
}

void CheckConfig(vfio::HostDevice& device, const std::string& path) {
  std::array<std::byte, 4> id{};
  REQUIRE(device.ReadRegion(vfio::kConfigRegion, 0, id));
  if (IsMediated(path)) return;
  const auto byte = [&](std::size_t i) { return std::to_integer<std::uint64_t>(id[i]); };
  CHECK((byte(0) | byte(1) << 8) == SysfsNumber(path + "/vendor"));
  CHECK((byte(2) | byte(3) << 8) == SysfsNumber(path + "/device"));
}

// Memory decoding on, every area of every BAR mapped and read through the kernel as well.
void CheckBars(vfio::HostDevice& device) {
  std::array<std::byte, 2> command{};
  REQUIRE(device.ReadRegion(vfio::kConfigRegion, 4, command));
  command[0] |= std::byte{2};
  REQUIRE(device.WriteRegion(vfio::kConfigRegion, 4, command));
  for (std::uint32_t bar = 0; bar < 6; ++bar) {
    const vfio::RegionInfo& info = device.info().regions[bar];
    if (info.size == 0) continue;
    CAPTURE(bar);
    std::array<std::byte, 4> word{};
    CHECK(device.ReadRegion(bar, 0, word));
    CHECK_FALSE(device.ReadRegion(bar, info.size - 3, word));
    for (const vfio::MapArea& area : info.areas) {
      const auto pages = device.MapRegion(bar, area);
      REQUIRE(pages);
      CHECK((*pages)->pages().length == area.length);
    }
  }
}

void CheckInterrupts(vfio::HostDevice& device, bool mediated) {
  const vfio::DeviceInfo& info = device.info();
  const EventFd event = *EventFd::Create();
  if (const std::uint32_t count = info.irqs[vfio::kMsixIrq].count; count != 0) {
    CHECK(device.SetVectors(vfio::kMsixIrq, 0, {}));
    CHECK(device.SetVectors(vfio::kMsixIrq, 0, std::array{event.fd()}));
    if (!info.irqs[vfio::kMsixIrq].noresize) {
      CHECK(device.SetVectors(vfio::kMsixIrq, count - 1, std::array{event.fd()}));
      CHECK(device.SetVectors(vfio::kMsixIrq, count - 1, std::array{-1}));
    }
    CHECK_FALSE(device.SetVectors(vfio::kMsixIrq, count, std::array{event.fd()}));
    CHECK(device.DisableIrq(vfio::kMsixIrq));
    CHECK(device.DisableIrq(vfio::kMsixIrq));
  }
  if (info.irqs[vfio::kMsiIrq].count != 0) {
    CHECK(device.SetVectors(vfio::kMsiIrq, 0, std::array{event.fd()}));
    CHECK(device.DisableIrq(vfio::kMsiIrq));
  }
  if (info.irqs[vfio::kIntxIrq].count != 0) {
    const EventFd unmask = *EventFd::Create();
    CHECK_FALSE(device.MaskIntx(true));  // not there before it is enabled
    CHECK(device.SetVectors(vfio::kIntxIrq, 0, std::array{event.fd()}));
    CHECK(device.MaskIntx(true));
    // The sample mtty has no such thing.
    CHECK(device.SetIntxUnmask(unmask.fd()).has_value() != mediated);
    CHECK(device.MaskIntx(false));
    CHECK(device.SetIntxUnmask(-1).has_value() != mediated);
    CHECK(device.DisableIrq(vfio::kIntxIrq));
  }
  for (const std::uint32_t irq : {vfio::kErrorIrq, vfio::kRequestIrq}) {
    if (info.irqs[irq].count == 0) continue;
    CAPTURE(irq);
    CHECK(device.SetVectors(irq, 0, std::array{event.fd()}));
    CHECK(device.DisableIrq(irq));
    CHECK(device.SetVectors(irq, 0, std::array{event.fd()}));
    CHECK(device.SetVectors(irq, 0, std::array{-1}));
    CHECK(device.DisableIrq(irq));
    CHECK(device.SetVectors(irq, 0, std::array{event.fd()}));  // left for the destructor
  }
}

TEST_CASE("vfio: each device bound to VFIO is opened, used and given back, every way there is") {
  if (Devices().empty()) SKIP_TEST("no device is bound to a VFIO driver");
  for (const std::string& path : Devices()) {
    for (const Iommufd way : Ways()) {
      CAPTURE(path);
      CAPTURE(way == Iommufd::kOn);
      Rig rig;
      for (int round = 0; round < 2; ++round) {
        const DevicePtr device = rig.Open(path, way);
        MESSAGE(device->info().name << " by " << device->address_space().name());
        CHECK(rig.files.created());
        CheckConfig(*device, path);
        if (device->info().can_reset) CHECK(device->Reset());
        CheckBars(*device);
        CheckInterrupts(*device, IsMediated(path));
        CHECK_FALSE(device->address_space().limits().ranges.empty());
        CHECK_FALSE(rig.host.Open({.sysfs = path, .iommufd = way}));  // the same twice
      }
    }
  }
}

TEST_CASE("vfio: devices passed in as descriptors have their names and are given back") {
  if (Devices().empty()) SKIP_TEST("no device is bound to a VFIO driver");
  for (const std::string& path : Devices()) {
    CAPTURE(path);
    const std::string name = std::filesystem::path(path).filename().string();
    const auto link = [&](const char* what) {
      return std::filesystem::canonical(path + what).filename().string();
    };
    Rig rig;
    {
      Result<Fd> group = SystemCalls().Open("/dev/vfio/" + link("/iommu_group"), O_RDWR);
      REQUIRE(group);
      const auto device = rig.host.Open({.sysfs = path, .fd = group->get()});
      REQUIRE(device);
      CHECK((*device)->address_space().name() == "type1");
      CHECK_FALSE(rig.host.Open({.fd = group->get()}));
    }
    if (Ways().size() < 2) continue;
    const auto entry = std::filesystem::directory_iterator(path + "/vfio-dev")->path();
    Result<Fd> file = SystemCalls().Open("/dev/vfio/devices/" + entry.filename().string(), O_RDWR);
    REQUIRE(file);
    Result<Fd> iommufd = SystemCalls().Open("/dev/iommu", O_RDWR);
    REQUIRE(iommufd);
    const auto device = rig.host.Open({.fd = file->get(), .iommufd_fd = iommufd->get()});
    REQUIRE(device);
    CHECK((*device)->info().name == name);
    CHECK_FALSE(rig.host.Open({.fd = file->get()}));
    CHECK_FALSE(rig.host.Open({.sysfs = path}));
    CHECK_FALSE(rig.host.Open({.fd = iommufd->get()}));
  }
}

TEST_CASE("vfio: all devices of the machine at once, and again") {
  if (Devices().empty()) SKIP_TEST("no device is bound to a VFIO driver");
  for (const Iommufd way : Ways()) {
    Rig rig;
    std::size_t before = 0;
    for (int round = 0; round < 5; ++round) {
      std::vector<DevicePtr> devices;
      for (const std::string& path : Devices()) devices.push_back(rig.Open(path, way));
      devices.clear();
      if (round == 0) before = OpenFiles();
      CHECK(OpenFiles() == before);
    }
  }
}

}  // namespace
}  // namespace postern
