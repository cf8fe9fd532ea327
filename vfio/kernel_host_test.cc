// Devices opened both ways, shared groups and address spaces, the order of calls, and refusals.

#include "vfio/kernel_host.h"

#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

#include "src/base/mmap.h"
#include "vfio/fake_vfio_kernel.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using iommu::Iova;
using Log = std::vector<std::string>;
using Spec = KernelHost::Spec;
using Iommufd = KernelHost::Spec::Iommufd;
using DevicePtr = std::unique_ptr<HostDevice>;

constexpr const char* kNvme = "/sys/bus/pci/devices/0000:3b:00.0";
constexpr const char* kNic = "/sys/bus/pci/devices/0000:5e:00.0";
constexpr std::size_t kRam = 65536;

struct Rig {
  FakeVfioKernel kernel;
  FakeVfioDevice& nvme = kernel.AddDevice("0000:3b:00.0", 12);
  Mmap ram = *Mmap::Create(kRam, PROT_READ | PROT_WRITE, MAP_SHARED);
  int fills = 0;
  bool fill_fails = false;
  KernelHost host{kernel, &kernel.kvm(), kernel.sysfs(), kernel.dev(),
                  [this](iommu::AddressSpace& space) { return Fill(space); }};

  Outcome<void> Fill(iommu::AddressSpace& space) {
    ++fills;
    if (fill_fails) return HostFailure("no memory", "add some");
    const auto mapped =
        space.Map(Iova(0), {.address = ram.data(), .length = kRam}, memory::Access::kReadWrite);
    if (!mapped) return HostFailure("map", mapped.error());
    return {};
  }
  DevicePtr Open(const Spec& spec) {
    auto device = host.Open(spec);
    if (!device) FAIL(device.error().cause);
    return std::move(*device);
  }
  Failure Refused(const Spec& spec) {
    auto device = host.Open(spec);
    REQUIRE_FALSE(device);
    INFO(device.error().cause);
    CHECK_FALSE(device.error().cause.empty());
    return device.error();
  }
};

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Where the line with this part is; the end if there is none.
std::size_t At(const Log& log, const std::string& part) {
  return static_cast<std::size_t>(
      std::find_if(log.begin(), log.end(), [&](const auto& line) { return Has(line, part); }) -
      log.begin());
}

// The lines are there, in this order (others between them).
bool InOrder(const Log& log, const std::vector<std::string>& parts) {
  auto at = log.begin();
  for (const std::string& part : parts) {
    at = std::find_if(at, log.end(), [&](const auto& line) { return Has(line, part); });
    if (at == log.end()) {
      MESSAGE("missing or too early: " << part);
      return false;
    }
    ++at;
  }
  return true;
}

std::size_t OpenFiles() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

// --- group and container ---

TEST_CASE(
    "group: opened, attached, memory mapped, KVM told, and only then the device (regression)") {
  Rig rig;
  const DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  const Log log = rig.kernel.TakeLog();
  CHECK(InOrder(log, {"open /dev/vfio/12", "VFIO_GROUP_GET_STATUS", "open /dev/vfio/vfio",
                      "VFIO_GROUP_SET_CONTAINER", "VFIO_SET_IOMMU", "MAP_DMA", "KVM add group 12",
                      "VFIO_GROUP_GET_DEVICE_FD", "0000:3b:00.0 opened, KVM knows, 1 mappings"}));
  CHECK(device->address_space().name() == "type1");
  CHECK(device->info().name == "0000:3b:00.0");
  CHECK(rig.fills == 1);
  CHECK(rig.kernel.DmaOfGroup(12, 100, 4, memory::Access::kReadWrite) == rig.ram.data() + 100);
}

TEST_CASE("group: left in reverse order; the container stays (regression)") {
  Rig rig;
  DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  REQUIRE(device->SetVectors(kMsixIrq, 0, std::array{-1}));
  (void)rig.kernel.TakeLog();
  device.reset();
  const Log log = rig.kernel.TakeLog();
  CHECK(InOrder(log, {"0000:3b:00.0 irqs 2 trigger none 0+0", "close device 0000:3b:00.0",
                      "KVM remove group 12", "VFIO_GROUP_UNSET_CONTAINER", "close /dev/vfio/12"}));
  CHECK(At(log, " = E") == log.size());
  CHECK(At(log, "close /dev/vfio/vfio") == log.size());
  CHECK(rig.kernel.open_files() == 1);
}

TEST_CASE("group: shared by its devices, left with the last one (regression)") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.1", 12);
  DevicePtr first = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  (void)rig.kernel.TakeLog();
  DevicePtr second =
      rig.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.1", .iommufd = Iommufd::kOff});
  Log log = rig.kernel.TakeLog();
  CHECK(At(log, "open /dev/vfio/") == log.size());
  CHECK(At(log, "SET_CONTAINER") == log.size());
  CHECK(At(log, "KVM") == At(log, "opened, KVM knows"));
  CHECK(rig.fills == 1);
  CHECK(&first->address_space() == &second->address_space());
  (void)rig.kernel.TakeLog();

  first.reset();
  log = rig.kernel.TakeLog();
  CHECK(At(log, "close device 0000:3b:00.0") < log.size());
  CHECK(At(log, "UNSET_CONTAINER") == log.size());
  CHECK(At(log, "KVM remove") == log.size());
  std::array<std::byte, 4> word{};
  CHECK(second->ReadRegion(kConfigRegion, 0, word));
  CHECK(rig.kernel.DmaOfGroup(12, 0, 4, memory::Access::kReadWrite) != nullptr);
  first = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});  // it may come back
  first.reset();
  second.reset();
  log = rig.kernel.TakeLog();
  CHECK(At(log, "UNSET_CONTAINER") < log.size());
  CHECK(rig.kernel.open_files() == 1);
}

TEST_CASE("group: the same device twice is refused, by any of its paths (regression)") {
  for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
    Rig rig;
    DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = way});
    (void)rig.kernel.TakeLog();
    for (const std::string& path :
         {std::string(kNvme), std::string("/sys/devices/pci0000:00/0000:3b:00.0")}) {
      const Failure failure = rig.Refused({.sysfs = path, .iommufd = way});
      CHECK(failure.kind == Failure::Kind::kConfig);
      CHECK(Has(failure.cause, "0000:3b:00.0 is assigned"));
    }
    CHECK(rig.kernel.TakeLog().empty());
    device.reset();
    device = rig.Open({.sysfs = kNvme, .iommufd = way});
  }
}

TEST_CASE("container: used again after its last device left, with memory mapped (regression)") {
  Rig rig;
  for (int i = 0; i < 3; ++i) {
    DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
    CHECK(InOrder(rig.kernel.TakeLog(), {"VFIO_SET_IOMMU", "MAP_DMA", "opened, KVM knows, 1 map"}));
    CHECK(rig.kernel.DmaOfGroup(12, 0, kRam, memory::Access::kReadWrite) == rig.ram.data());
    device.reset();
    CHECK(rig.kernel.DmaOfGroup(12, 0, kRam, memory::Access::kReadWrite) == nullptr);
    (void)rig.kernel.TakeLog();
  }
  CHECK(rig.fills == 1);
  CHECK(rig.host.spaces() == 1);
}

TEST_CASE("container: groups share one where they can, and get a second where not (regression)") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13);
  rig.kernel.AddDevice("0000:80:00.0", 14, {.kind = 1});
  const DevicePtr nvme = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  const DevicePtr nic = rig.Open({.sysfs = kNic, .iommufd = Iommufd::kOff});
  CHECK(&nvme->address_space() == &nic->address_space());
  CHECK(rig.fills == 1);
  (void)rig.kernel.TakeLog();
  DevicePtr other =
      rig.Open({.sysfs = "/sys/bus/pci/devices/0000:80:00.0", .iommufd = Iommufd::kOff});
  CHECK(&nvme->address_space() != &other->address_space());
  CHECK(rig.fills == 2);
  CHECK(rig.host.spaces() == 2);
  CHECK(InOrder(rig.kernel.TakeLog(),
                {"VFIO_GROUP_SET_CONTAINER = E", "open /dev/vfio/vfio", "VFIO_SET_IOMMU", "MAP_DMA",
                 "0000:80:00.0 opened, KVM knows, 1"}));
  CHECK(rig.kernel.DmaOfGroup(14, 0, 4, memory::Access::kReadWrite) == rig.ram.data());
  other.reset();
  other = rig.Open({.sysfs = "/sys/bus/pci/devices/0000:80:00.0", .iommufd = Iommufd::kOff});
  CHECK(rig.host.spaces() == 2);  // used again
}

TEST_CASE("container: memory where a second group's devices cannot reach is explained") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13,
                       {.reserved = {{0x8000, 0x8fff}, {0xfee00000, 0xfeefffff}}});
  const DevicePtr nvme = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  (void)rig.Refused({.sysfs = kNic, .iommufd = Iommufd::kOff});
  CHECK(rig.kernel.DmaOfGroup(12, 0, kRam, memory::Access::kReadWrite) != nullptr);
  CHECK(rig.kernel.DmaOfGroup(13, 0, 4, memory::Access::kReadWrite) == nullptr);
}

TEST_CASE("fill: a failure ends the opening, and the next device tries again") {
  for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
    Rig rig;
    rig.fill_fails = true;
    const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = way});
    CHECK(failure.cause == "no memory");
    CHECK(failure.next_step == "add some");
    const Log log = rig.kernel.TakeLog();
    CHECK(At(log, "opened, KVM") == log.size());
    rig.fill_fails = false;
    const DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = way});
    CHECK(rig.fills == 2);
  }
}

TEST_CASE("group: a device the host is still resetting is tried again, then given up") {
  Rig rig;
  rig.kernel.Fail(VFIO_GROUP_GET_DEVICE_FD, EAGAIN);
  rig.kernel.Fail(VFIO_GROUP_GET_DEVICE_FD, EAGAIN);
  { const DevicePtr device = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff}); }
  for (int i = 0; i < 20; ++i) rig.kernel.Fail(VFIO_GROUP_GET_DEVICE_FD, EAGAIN);
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff}).cause, "resetting"));
  CHECK(rig.kernel.open_files() == 1);
}

TEST_CASE("group: each call that fails leaves nothing behind, and the next try works") {
  Rig rig;
  struct Row {
    unsigned long request;
    int error;
    const char* says;
  };
  for (const Row& row : {Row{VFIO_IOMMU_MAP_DMA, ENOMEM, "map"},  // while the space is filled
                         {VFIO_GROUP_GET_STATUS, ENODEV, "VFIO_GROUP_GET_STATUS"},
                         {VFIO_GROUP_SET_CONTAINER, EBUSY, "in use"},
                         {VFIO_SET_IOMMU, EPERM, "remap"},
                         {VFIO_SET_IOMMU, ENODEV, "VFIO_SET_IOMMU"},
                         {VFIO_IOMMU_MAP_DMA, ENOMEM, "MAP_DMA"},  // again
                         {VFIO_GROUP_GET_DEVICE_FD, EBUSY, "in use"},
                         {VFIO_GROUP_GET_DEVICE_FD, EACCES, "token"},
                         {VFIO_GROUP_GET_DEVICE_FD, ENODEV, "not in the group"},
                         {VFIO_DEVICE_GET_INFO, EIO, "VFIO_DEVICE_GET_INFO"},
                         {VFIO_DEVICE_GET_REGION_INFO, EIO, "REGION_INFO"},
                         {VFIO_DEVICE_GET_IRQ_INFO, EIO, "IRQ_INFO"}}) {
    CAPTURE(row.says);
    CAPTURE(row.error);
    rig.kernel.Fail(row.request, row.error);
    const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff});
    CAPTURE(failure.cause);
    CHECK(Has(failure.cause, row.says));
    CHECK(rig.kernel.open_files() <= 1);
    CHECK(rig.host.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff}));
    CHECK(rig.kernel.open_files() == 1);
  }
  rig.kernel.FailKvm(EINVAL);
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff}).cause, "KVM"));
  CHECK(rig.kernel.open_files() == 1);
}

TEST_CASE("group: without KVM there is nobody to tell") {
  FakeVfioKernel kernel;
  kernel.AddDevice("0000:3b:00.0", 12);
  KernelHost host(kernel, nullptr, kernel.sysfs(), kernel.dev());
  for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
    CHECK(host.Open({.sysfs = kNvme, .iommufd = way}));
  }
  const Log log = kernel.TakeLog();
  CHECK(At(log, "KVM add") == log.size());
}

// --- device file and iommufd ---

TEST_CASE("device file: KVM told, bound, attached, memory mapped (regression)") {
  Rig rig;
  const DevicePtr device = rig.Open({.sysfs = kNvme});
  CHECK(InOrder(rig.kernel.TakeLog(),
                {"open /dev/vfio/devices/vfio0", "KVM add 0000:3b:00.0", "VFIO_DEVICE_BIND_IOMMUFD",
                 "0000:3b:00.0 bound, KVM knows", "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
                 "IOMMU_IOAS_IOVA_RANGES", "IOMMU_IOAS_MAP", "VFIO_DEVICE_GET_INFO"}));
  CHECK(device->address_space().name() == "iommufd");
  CHECK(rig.fills == 1);
}

TEST_CASE("device file: detached, forgotten by KVM, closed; the address space stays") {
  Rig rig;
  DevicePtr device = rig.Open({.sysfs = kNvme});
  REQUIRE(device->SetVectors(kMsixIrq, 0, std::array{-1}));
  (void)rig.kernel.TakeLog();
  device.reset();
  const Log log = rig.kernel.TakeLog();
  CHECK(InOrder(log, {"0000:3b:00.0 irqs 2 trigger none 0+0", "VFIO_DEVICE_DETACH_IOMMUFD_PT",
                      "KVM remove 0000:3b:00.0", "close /dev/vfio/devices/vfio0"}));
  CHECK(rig.kernel.open_files() == 1);
  device = rig.Open({.sysfs = kNvme});
  CHECK(rig.fills == 1);
}

TEST_CASE("device file: devices of any groups share one address space") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13, {.kind = 1});
  rig.kernel.AddDevice("0000:3b:00.1", 12);
  const DevicePtr a = rig.Open({.sysfs = kNvme});
  const DevicePtr b = rig.Open({.sysfs = kNic});
  const DevicePtr c = rig.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.1"});
  CHECK(&a->address_space() == &b->address_space());
  CHECK(&a->address_space() == &c->address_space());
  CHECK(rig.fills == 1);
  CHECK(rig.host.spaces() == 1);
}

TEST_CASE("device file: memory where a second device cannot reach is explained, and undone") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13,
                       {.reserved = {{0x8000, 0x8fff}, {0xfee00000, 0xfeefffff}}});
  const DevicePtr nvme = rig.Open({.sysfs = kNvme});
  const Failure failure = rig.Refused({.sysfs = kNic});
  CHECK(Has(failure.cause, "0000:5e:00.0"));
  CHECK(Has(failure.cause, "cannot reach"));
  const auto limits = nvme->address_space().limits();
  CHECK(limits.Allows(Iova(0), kRam));
  CHECK(rig.kernel.open_files() == 2);
}

TEST_CASE("device file: each call that fails leaves nothing behind, and the next try works") {
  Rig rig;
  struct Row {
    unsigned long request;
    int error;
    const char* says;
  };
  for (const Row& row : {Row{IOMMU_IOAS_MAP, ENOMEM, "map"},
                         {VFIO_DEVICE_BIND_IOMMUFD, EBUSY, "in use"},
                         {VFIO_DEVICE_BIND_IOMMUFD, EINVAL, "in use"},
                         {VFIO_DEVICE_BIND_IOMMUFD, EPERM, "remap"},
                         {VFIO_DEVICE_BIND_IOMMUFD, ENODEV, "BIND"},
                         {VFIO_DEVICE_ATTACH_IOMMUFD_PT, ENOMEM, "ATTACH"},
                         {VFIO_DEVICE_ATTACH_IOMMUFD_PT, EADDRINUSE, "cannot reach"},
                         {VFIO_DEVICE_GET_INFO, EIO, "VFIO_DEVICE_GET_INFO"}}) {
    CAPTURE(row.says);
    rig.kernel.Fail(row.request, row.error);
    const Failure failure = rig.Refused({.sysfs = kNvme});
    CAPTURE(failure.cause);
    CHECK(Has(failure.cause, row.says));
    CHECK(rig.kernel.open_files() == 1);
    CHECK(rig.host.Open({.sysfs = kNvme}));
  }
  rig.kernel.FailKvm(EEXIST);
  CHECK(Has(rig.Refused({.sysfs = kNvme}).cause, "KVM"));
  rig.kernel.Fail(VFIO_DEVICE_BIND_IOMMUFD, EAGAIN);
  CHECK(rig.host.Open({.sysfs = kNvme}));
  CHECK(rig.kernel.open_files() == 1);
}

// --- which way ---

TEST_CASE("way: device files and iommufd if the host has both, else groups") {
  Rig rig;
  CHECK(rig.Open({.sysfs = kNvme})->address_space().name() == "iommufd");
  SUBCASE("no device files") {
    rig.kernel.RemoveDeviceFiles();
  }
  SUBCASE("no iommufd") {
    std::filesystem::remove(rig.kernel.dev() + "/iommu");
  }
  CHECK(rig.Open({.sysfs = kNvme})->address_space().name() == "type1");
}

TEST_CASE("way: iommufd forced where the host lacks it is refused with what is missing") {
  Rig rig;
  rig.kernel.RemoveDeviceFiles();
  const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOn});
  CHECK(Has(failure.cause, "device file"));
  CHECK(Has(failure.next_step, "iommufd=off"));
}

TEST_CASE("way: a group that is open as such stays so for its other devices") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.1", 12);
  const DevicePtr first = rig.Open({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  const DevicePtr second = rig.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.1"});
  CHECK(second->address_space().name() == "type1");
}

TEST_CASE("way: a mediated device, by group and by file") {
  Rig rig;
  rig.kernel.AddMediated("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", 20);
  for (const std::string& path :
       {std::string("/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"),
        std::string("/sys/devices/pci0000:00/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001")}) {
    for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
      const DevicePtr device = rig.Open({.sysfs = path, .iommufd = way});
      CHECK(device->info().name == "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001");
      CHECK(device->info().regions[kConfigRegion].size == 0xff);
      CHECK(device->info().irqs[kMsixIrq].count == 0);
    }
  }
}

// --- descriptors passed in ---

TEST_CASE("descriptor: a device file, with its path or without") {
  Rig rig;
  Fd file = *rig.kernel.Open("/dev/vfio/devices/vfio0", O_RDWR);
  {
    const DevicePtr device = rig.Open({.fd = file.get()});
    CHECK(device->address_space().name() == "iommufd");
    CHECK(Has(device->info().name, std::to_string(file.get())));
  }
  // The host has the device back once the caller's own descriptor is closed, too.
  file.Close();
  const Fd again = *rig.kernel.Open("/dev/vfio/devices/vfio0", O_RDWR);
  const DevicePtr named = rig.Open({.sysfs = kNvme, .fd = again.get()});
  CHECK(named->info().name == "0000:3b:00.0");
  CHECK(Has(rig.Refused({.sysfs = kNvme}).cause, "assigned to this machine already"));
}

TEST_CASE("descriptor: the same device file twice is refused by the kernel, and said") {
  Rig rig;
  const Fd file = *rig.kernel.Open("/dev/vfio/devices/vfio0", O_RDWR);
  const Fd copy = *file.Duplicate();
  const DevicePtr device = rig.Open({.fd = file.get()});
  CHECK(Has(rig.Refused({.fd = file.get()}).cause, "already"));
  CHECK(Has(rig.Refused({.fd = copy.get()}).cause, "already"));
  const Fd other = *rig.kernel.Open("/dev/vfio/devices/vfio0", O_RDWR);
  CHECK(Has(rig.Refused({.fd = other.get()}).cause, "in use"));
}

TEST_CASE("descriptor: a group, with the device's path; devices of it share it") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.1", 12);
  Fd group = *rig.kernel.Open("/dev/vfio/12", O_RDWR);
  {
    const DevicePtr first = rig.Open({.sysfs = kNvme, .fd = group.get()});
    CHECK(first->address_space().name() == "type1");
    const DevicePtr second =
        rig.Open({.sysfs = "/sys/bus/pci/devices/0000:3b:00.1", .fd = group.get()});
    CHECK(&first->address_space() == &second->address_space());
    CHECK(Has(rig.Refused({.fd = group.get()}).cause, "which of its devices"));
  }
  CHECK(Has(rig.Refused({.sysfs = kNvme, .fd = group.get(), .iommufd = Iommufd::kOn}).cause,
            "cannot be used with an iommufd"));
  group.Close();
  CHECK(rig.kernel.open_files() == 1);
}

TEST_CASE("descriptor: a group that is not the device's is refused") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13);
  const Fd group = *rig.kernel.Open("/dev/vfio/13", O_RDWR);
  const Failure failure = rig.Refused({.sysfs = kNvme, .fd = group.get()});
  CHECK(Has(failure.cause, "not in the group"));
}

TEST_CASE("descriptor: an iommufd passed in is used, and others get their own address space") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13);
  const Fd iommufd = *rig.kernel.Open("/dev/iommu", O_RDWR);
  const DevicePtr nvme = rig.Open({.sysfs = kNvme, .iommufd_fd = iommufd.get()});
  const DevicePtr nic = rig.Open({.sysfs = kNic});
  CHECK(&nvme->address_space() != &nic->address_space());
  CHECK(rig.fills == 2);
  const Failure failure = rig.Refused({.sysfs = "/sys/bus/pci/devices/0000:5e:00.0/",
                                       .iommufd = Iommufd::kOff,
                                       .iommufd_fd = iommufd.get()});
  CHECK(failure.kind == Failure::Kind::kConfig);
}

TEST_CASE("descriptor: a device file has the name sysfs gives it, and must be the one meant") {
  // /dev/null (1:3) plays the device file: a character device that refuses everything as an unbound
  // one does.
  class Refusing final : public KernelCalls {
   public:
    explicit Refusing(KernelCalls& next) : next_(next) {}
    Result<Fd> Open(const std::string& path, int flags) override { return next_.Open(path, flags); }
    Result<int> IoctlRaw(int fd, unsigned long request, unsigned long argument,
                         const char* op) override {
      struct stat status {};
      if (fstat(fd, &status) == 0 && S_ISCHR(status.st_mode)) return SysError(op, EINVAL);
      return next_.IoctlRaw(fd, request, argument, op);
    }
    Result<std::size_t> Read(int, std::span<std::byte>, std::uint64_t, const char* op) override {
      return SysError(op, EINVAL);
    }
    Result<std::size_t> Write(int, std::span<const std::byte>, std::uint64_t,
                              const char* op) override {
      return SysError(op, EINVAL);
    }
    Result<Mmap> Map(int, std::uint64_t, std::size_t, int, const char* op) override {
      return SysError(op, EINVAL);
    }

   private:
    KernelCalls& next_;
  };
  FakeVfioKernel kernel;
  kernel.AddDevice("0000:3b:00.0", 12);
  kernel.AddDevice("0000:5e:00.0", 13);
  std::filesystem::create_directories(kernel.sysfs() + "/dev/char/1:3");
  std::filesystem::create_directory_symlink(kernel.sysfs() + "/bus/pci/devices/0000:5e:00.0",
                                            kernel.sysfs() + "/dev/char/1:3/device");
  Refusing calls(kernel);
  KernelHost host(calls, nullptr, kernel.sysfs(), kernel.dev());
  const Fd file(open("/dev/null", O_RDWR | O_CLOEXEC));
  const auto other = host.Open({.sysfs = kNvme, .fd = file.get()});
  REQUIRE_FALSE(other);
  CHECK(Has(other.error().cause, "the device file of 0000:5e:00.0, not of 0000:3b:00.0"));
  for (const char* path : {"", kNic}) {
    const auto taken = host.Open({.sysfs = path, .fd = file.get()});
    REQUIRE_FALSE(taken);
    CHECK(Has(taken.error().cause, "cannot take 0000:5e:00.0: it is in use"));
  }
}

TEST_CASE("descriptor: of the wrong kind, or closed, is refused and left alone") {
  Rig rig;
  const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  const Fd container = *rig.kernel.Open("/dev/vfio/vfio", O_RDWR);
  const Fd iommufd = *rig.kernel.Open("/dev/iommu", O_RDWR);
  for (const int fd : {null.get(), container.get(), 987}) {
    for (const std::string& path : {std::string(), std::string(kNvme)}) {
      CAPTURE(fd);
      const Failure failure = rig.Refused({.sysfs = path, .fd = fd});
      CHECK(failure.kind == Failure::Kind::kConfig);
      CHECK(Has(failure.cause, fmt::format("descriptor {}", fd)));
      CHECK_FALSE(failure.next_step.empty());
    }
  }
  CHECK_FALSE(rig.host.Open({.fd = iommufd.get()}));
  const Failure other = rig.Refused({.sysfs = kNvme, .iommufd_fd = null.get()});
  CHECK(other.kind == Failure::Kind::kConfig);
  CHECK(Has(other.cause, "no iommufd"));
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd_fd = 987}).cause, "not open"));
  CHECK(fcntl(null.get(), F_GETFD) >= 0);
  CHECK(fcntl(container.get(), F_GETFD) >= 0);
  CHECK(Has(rig.Refused({}).cause, "no device"));
}

// --- refusals ---

TEST_CASE("refused: not bound to a VFIO driver names the driver and the command") {
  Rig rig;
  for (const Iommufd way : {Iommufd::kAuto, Iommufd::kOn, Iommufd::kOff}) {
    rig.kernel.Bind("0000:3b:00.0", "nvme");
    Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = way});
    CHECK(Has(failure.cause, "0000:3b:00.0 is bound to 'nvme'"));
    CHECK(Has(failure.next_step, "postern bind 0000:3b:00.0"));
    rig.kernel.Bind("0000:3b:00.0", "");
    failure = rig.Refused({.sysfs = kNvme, .iommufd = way});
    CHECK(Has(failure.cause, "is bound to no driver"));
  }
}

TEST_CASE("refused: a group that is not viable names the other members and their drivers") {
  Rig rig;
  rig.kernel.AddStranger("0000:3b:00.1", 12, "snd_hda_intel");
  rig.kernel.SetViable(12, false);
  const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  CHECK(Has(failure.cause, "0000:3b:00.1 (driver snd_hda_intel)"));
  CHECK(Has(failure.next_step, "postern bind 0000:3b:00.1"));
  CHECK(rig.kernel.open_files() == 0);
}

TEST_CASE("group: viable although its container is set already: one bit of several (regression)") {
  Rig rig;
  const Fd group = *rig.kernel.Open("/dev/vfio/12", O_RDWR);
  const Fd container = *rig.kernel.Open("/dev/vfio/vfio", O_RDWR);
  int number = container.get();
  REQUIRE(rig.kernel.Ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &number, "set"));
  const Failure failure = rig.Refused({.sysfs = kNvme, .fd = group.get()});
  CHECK(Has(failure.cause, "SET_CONTAINER"));  // not: "cannot be used: others of its group"
}

TEST_CASE("refused: no IOMMU group, and a group without an IOMMU") {
  Rig rig;
  rig.kernel.MakeNoiommu(12);
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff}).cause, "noiommu"));
  rig.kernel.RemoveGroupLink("0000:3b:00.0");
  const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff});
  CHECK(Has(failure.cause, "no IOMMU group"));
  CHECK(Has(failure.next_step, "intel_iommu=on"));
}

TEST_CASE("refused: no permission, in use, modules missing: each with its next step") {
  Rig rig;
  struct Row {
    const char* path;
    int error;
    Iommufd way;
    const char* next;
  };
  for (const Row& row : {Row{"/dev/vfio/12", EACCES, Iommufd::kOff, "chown"},
                         {"/dev/vfio/12", EPERM, Iommufd::kOff, "chown"},
                         {"/dev/vfio/12", EBUSY, Iommufd::kOff, "fuser"},
                         {"/dev/vfio/12", ENOENT, Iommufd::kOff, "modprobe"},
                         {"/dev/vfio/vfio", ENOENT, Iommufd::kOff, "modprobe"},
                         {"/dev/vfio/vfio", EACCES, Iommufd::kOff, "chown"},
                         {"/dev/iommu", EACCES, Iommufd::kOn, "chown"},
                         {"/dev/vfio/devices/vfio0", EACCES, Iommufd::kOn, "chown"}}) {
    CAPTURE(row.path);
    CAPTURE(row.error);
    rig.kernel.FailOpen(row.path, row.error);
    const Failure failure = rig.Refused({.sysfs = kNvme, .iommufd = row.way});
    CHECK(failure.kind == Failure::Kind::kHost);
    CHECK(Has(failure.cause, "/vfio/12") == Has(row.path, "/12"));
    CHECK(Has(failure.next_step, row.next));
  }
  CHECK(Has(rig.Refused({.sysfs = "/sys/bus/pci/devices/0000:99:00.0"}).cause, "0000:99:00.0"));
}

TEST_CASE("refused: a container that is no type 1, version 2") {
  Rig rig;
  rig.kernel.rules.type1v2 = false;
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff}).cause, "not supported"));
  rig.kernel.rules.type1v2 = true;
  rig.kernel.rules.api_version = 1;
  CHECK(Has(rig.Refused({.sysfs = kNvme, .iommufd = Iommufd::kOff}).cause, "not supported"));
}

// --- long run ---

TEST_CASE("leaks: 1000 openings and closings keep no descriptor and no mapping (regression)") {
  Rig rig;
  rig.kernel.AddDevice("0000:5e:00.0", 13);
  for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
    { const DevicePtr warm = rig.Open({.sysfs = kNvme, .iommufd = way}); }
    const std::size_t kernel_before = rig.kernel.open_files();  // and closes its own ends
    const std::size_t before = OpenFiles();
    for (int i = 0; i < 500; ++i) {
      DevicePtr a = rig.Open({.sysfs = kNvme, .iommufd = way});
      DevicePtr b = rig.Open({.sysfs = kNic, .iommufd = way});
      REQUIRE(a->SetVectors(kMsixIrq, 0, std::array{-1}));
      if (i % 2 == 0) a.reset();
      if (i % 6 == 0) rig.kernel.Fail(VFIO_DEVICE_GET_REGION_INFO, EIO);
      b.reset();
      if (i % 2 == 0) (void)rig.host.Open({.sysfs = kNic, .iommufd = way});
    }
    (void)rig.kernel.TakeLog();
    CHECK(rig.kernel.open_files() == kernel_before);
    CHECK(OpenFiles() == before);
  }
}

TEST_CASE("teardown: the address spaces are closed with the host, after all groups") {
  FakeVfioKernel kernel;
  kernel.AddDevice("0000:3b:00.0", 12);
  {
    KernelHost host(kernel, &kernel.kvm(), kernel.sysfs(), kernel.dev());
    for (const Iommufd way : {Iommufd::kOff, Iommufd::kOn}) {
      CHECK(host.Open({.sysfs = kNvme, .iommufd = way}));
    }
    CHECK(kernel.open_files() == 2);
    (void)kernel.TakeLog();
  }
  CHECK(kernel.open_files() == 0);
  CHECK(kernel.ioas_count() == 0);
}

}  // namespace
}  // namespace postern::vfio
