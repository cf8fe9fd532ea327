// Devices in the fake kernel's sysfs.

#include "vfio/sysfs_device.h"

#include <fcntl.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "src/base/fd.h"
#include "vfio/fake_vfio_kernel.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

struct Rig {
  FakeVfioKernel kernel;
  [[nodiscard]] std::string Path(const std::string& name, const char* bus = "pci") const {
    return kernel.sysfs() + "/bus/" + bus + "/devices/" + name;
  }
};

TEST_CASE("sysfs: a device is told with driver, group and device file, by any path to it") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  const auto device = FindSysfsDevice(rig.Path("0000:3b:00.0"));
  REQUIRE(device);
  CHECK(device->name == "0000:3b:00.0");
  CHECK(device->driver == "vfio-pci");
  CHECK(device->group == 12u);
  CHECK(device->cdev == "vfio0");
  CHECK(device->vfio_bound());
  CHECK_FALSE(device->mediated);
  CHECK_FALSE(device->noiommu);
  const auto again = FindSysfsDevice(rig.kernel.sysfs() + "/devices/pci0000:00/0000:3b:00.0/");
  REQUIRE(again);
  CHECK(again->path == device->path);
}

TEST_CASE("sysfs: a mediated device is a VFIO device whatever its driver is called") {
  Rig rig;
  rig.kernel.AddMediated("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", 5);
  const auto device = FindSysfsDevice(rig.Path("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "mdev"));
  REQUIRE(device);
  CHECK(device->mediated);
  CHECK(device->driver == "mtty");
  CHECK(device->vfio_bound());
}

TEST_CASE("sysfs: paths that are no device are refused by name") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  for (const std::string& path :
       {rig.Path("0000:99:00.0"), rig.kernel.sysfs() + "/bus/pci/devices",
        rig.kernel.dev() + "/iommu", std::string("\n\x1b[2J"), std::string(5000, 'a')}) {
    const auto device = FindSysfsDevice(path);
    REQUIRE_FALSE(device);
    CHECK(device.error().kind == Failure::Kind::kConfig);
    CHECK_FALSE(device.error().next_step.empty());
    CHECK(device.error().cause.find('\n') == std::string::npos);
    CHECK(device.error().cause.find('\x1b') == std::string::npos);
  }
}

TEST_CASE("sysfs: what else is in the group and keeps it from VFIO") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  rig.kernel.AddDevice("0000:3b:00.1", 12);
  rig.kernel.AddStranger("0000:3b:00.2", 12, "snd_hda_intel");
  rig.kernel.AddStranger("0000:3b:00.3", 12, "");
  rig.kernel.AddStranger("0000:3b:00.4", 12, "pci-stub");
  rig.kernel.AddStranger("0000:00:1c.0", 12, "pcieport");
  rig.kernel.AddStranger("0000:3c:00.0", 13, "nvme");
  const auto device = FindSysfsDevice(rig.Path("0000:3b:00.0"));
  REQUIRE(device);
  const auto blockers = Blockers(*device);
  REQUIRE(blockers.size() == 1);
  CHECK(blockers[0].name == "0000:3b:00.2");
  CHECK(blockers[0].driver == "snd_hda_intel");
  REQUIRE(device->peers.size() == 5);  // not itself
  CHECK(device->peers[0].use == DriverUse::kBridge);
  CHECK(device->peers[1].use == DriverUse::kVfio);
  CHECK(device->peers[3].use == DriverUse::kNone);
  CHECK(device->peers[4].use == DriverUse::kStub);
}

TEST_CASE("sysfs: a kernel without device files still says which driver is one of VFIO") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  rig.kernel.RemoveDeviceFiles();
  const auto device = FindSysfsDevice(rig.Path("0000:3b:00.0"));
  REQUIRE(device);
  CHECK(device->vfio_bound());
  CHECK(device->cdev.empty());
}

TEST_CASE("sysfs: a VFIO driver is told by the device's entry, or by its name before Linux 6.1") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  const std::string folder = rig.Path("0000:3b:00.0");
  const auto use = [&] { return FindSysfsDevice(folder)->use; };
  for (const char* driver : {"vfio-pci", "mlx5_vfio_pci", "hisi-acc-vfio-pci"}) {
    CAPTURE(driver);
    rig.kernel.Bind("0000:3b:00.0", driver);
    CHECK(use() == DriverUse::kVfio);
  }
  rig.kernel.Bind("0000:3b:00.0", "acme-migration");
  CHECK(use() == DriverUse::kInTheWay);
  // An empty folder and names that are not the kernel's tell nothing.
  std::filesystem::create_directories(folder + "/vfio-dev/vfiox");
  CHECK(use() == DriverUse::kInTheWay);
  std::filesystem::create_directories(folder + "/vfio-dev/vfio7");
  CHECK(use() == DriverUse::kVfio);
  CHECK(FindSysfsDevice(folder)->cdev.empty());
}

TEST_CASE("sysfs: a group without an IOMMU is seen") {
  Rig rig;
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  rig.kernel.MakeNoiommu(12);
  CHECK(FindSysfsDevice(rig.Path("0000:3b:00.0"))->noiommu);
  rig.kernel.RemoveGroupLink("0000:3b:00.0");
  const auto device = FindSysfsDevice(rig.Path("0000:3b:00.0"));
  CHECK_FALSE(device->group);
  CHECK_FALSE(device->noiommu);
}

TEST_CASE("sysfs: a descriptor that is no device file has no device") {
  Rig rig;
  CHECK_FALSE(FindDeviceOfFile(-1, rig.kernel.sysfs()));
  const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  CHECK_FALSE(FindDeviceOfFile(null.get(), rig.kernel.sysfs()));
  // /dev/null is 1:3: let it be the file of a VFIO device.
  rig.kernel.AddDevice("0000:3b:00.0", 12);
  const std::string folder = rig.kernel.sysfs() + "/dev/char/1:3";
  std::filesystem::create_directories(folder);
  std::filesystem::create_directory_symlink(rig.Path("0000:3b:00.0"), folder + "/device");
  const auto device = FindDeviceOfFile(null.get(), rig.kernel.sysfs());
  REQUIRE(device);
  CHECK(device->name == "0000:3b:00.0");
}

}  // namespace
}  // namespace postern::vfio
