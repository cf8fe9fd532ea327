#include "vfio/host_pci.h"

#include <algorithm>
#include <string>

#include "tests/support/fake_sysfs.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using testing::FakeSysfs;

bool Blocks(const std::vector<Finding>& findings, std::string_view part) {
  return std::any_of(findings.begin(), findings.end(), [&](const Finding& f) {
    return f.blocks && f.cause.find(part) != std::string::npos && !f.next_step.empty();
  });
}
bool Blocked(const std::vector<Finding>& findings) {
  return std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.blocks; });
}

TEST_CASE("bdf: with and without domain, in either case") {
  CHECK(ToString(*ParseHostBdf("3b:00.0")) == "0000:3b:00.0");
  CHECK(ToString(*ParseHostBdf("0000:3B:1F.7")) == "0000:3b:1f.7");
  CHECK(ToString(*ParseHostBdf("10000:e1:00.0")) == "10000:e1:00.0");
  CHECK(*ParseHostBdf("ffffffff:ff:1f.7") == HostBdf{0xffffffff, 0xff, 0x1f, 7});
}

TEST_CASE("bdf: everything else is a configuration error that names it") {
  for (const char* text : {"",
                           "3b",
                           "3b:00",
                           "3b:00.8",
                           "3b:20.0",
                           "3b:00.00",
                           "3b.00.0",
                           "03b:00.0",
                           "000:3b:00.0",
                           ":3b:00.0",
                           "0000:3b:00.0 ",
                           " 3b:00.0",
                           "0000:3g:00.0",
                           "123456789:3b:00.0",
                           "-1:3b:00.0",
                           "0000-3b:00.0",
                           "0x00:3b:00.0",
                           "+000:3b:00.0",
                           "../../etc",
                           "0000:3b:00.0\n"}) {
    CAPTURE(text);
    const Outcome<HostBdf> bdf = ParseHostBdf(text);
    REQUIRE_FALSE(bdf);
    CHECK(bdf.error().kind == Failure::Kind::kConfig);
    CHECK(bdf.error().cause.find("no PCI address") != std::string::npos);
    CHECK(bdf.error().cause.find('\n') == std::string::npos);
  }
}

TEST_CASE("resource: kinds and sizes; what follows a 64-bit BAR is none") {
  const std::vector<HostBar> bars = ParseResource(
      "0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n"
      "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
      "0x000000000000e000 0x000000000000e01f 0x0000000000040101\n"
      "0x0000004000000000 0x00000040ffffffff 0x000000000014220c\n"
      "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
      "0x0000000000000000 0x00000000000fffff 0x0000000020040200\n"
      "0x00000000fe100000 0x00000000fe13ffff 0x0000000000046200\n"
      "0x00000000aa000000 0x00000000aaffffff 0x0000000000040200\n");
  REQUIRE(bars.size() == 5);
  CHECK(bars[0] == HostBar{0, HostBar::Kind::kMemory64, false, true, 0xfe000000, 0x4000});
  CHECK(bars[1] == HostBar{2, HostBar::Kind::kIo, false, true, 0xe000, 0x20});
  CHECK(bars[2] == HostBar{3, HostBar::Kind::kMemory64, true, true, 0x4000000000, 0x100000000});
  CHECK(bars[3] == HostBar{5, HostBar::Kind::kMemory32, false, false, 0, 0x100000});
  CHECK(bars[4].index == kRomIndex);
  CHECK(bars[4].size == 0x40000);
}

TEST_CASE("resource: hostile lines are left out, the others keep their numbers") {
  const std::vector<HostBar> bars = ParseResource(
      "0x0 0xffffffffffffffff 0x200\n"  // a size of 2^64
      "0x2000 0x1fff 0x200\n"           // ends before it starts
      "0x1000 0x1fff 0x300\n"           // I/O and memory
      "0x1000 0x1fff 0x200 0x1\n"       // four numbers
      "0x1000 0x1fff\n"                 // two
      "0x1000 0x11111111111111111 0x200\n"
      "0x1 0xffffffffffffffff 0x200");
  REQUIRE(bars.size() == 1);
  CHECK(bars[0].index == kRomIndex);
  CHECK(bars[0].size == 0xffffffffffffffff);
  CHECK(ParseResource("").empty());
  CHECK(ParseResource("\n\n\n\n\n\n\n\n0x0 0xfff 0x200\n").empty());
  CHECK(ParseResource(std::string(100000, ' ')).empty());
}

TEST_CASE("host pci: a device as sysfs shows it") {
  FakeSysfs host;
  host.AddDriver("nvme");
  host.AddDriver("pcieport", {}, true);
  host.AddDevice(
      {.bdf = "0000:3a:00.0", .driver = "pcieport", .group = 14, .class_code = "0x060400"});
  host.AddDevice({.bdf = "0000:3b:00.0",
                  .driver = "nvme",
                  .group = 14,
                  .resource = "0xfe000000 0xfe003fff 0x140204\n"});
  host.Put(host.Folder("0000:3b:00.0") + "/numa_node", "1\n");
  host.Put(host.Folder("0000:3b:00.0") + "/sriov_totalvfs", "8\n");
  host.Put(host.Folder("0000:3b:00.0") + "/sriov_numvfs", "2\n");
  host.Put(host.roots().sysfs + "/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
           "N\n");

  const Outcome<HostPciDevice> device = ReadHostPci("3b:00.0", host.roots().sysfs);
  REQUIRE(device);
  CHECK(device->name == "0000:3b:00.0");
  CHECK(device->vendor == 0x8086U);
  CHECK(device->device == 0xa54U);
  CHECK(device->class_code == 0x010802U);
  CHECK(device->driver == "nvme");
  CHECK(device->driver_module == "nvme");
  CHECK(device->driver_override.empty());
  CHECK(device->use == DriverUse::kInTheWay);
  CHECK(device->modalias == "pci:v00008086d00000A54sv00008086sd00004712bc01sc08i02");
  CHECK(device->group == 14U);
  CHECK(device->group_type == "DMA-FQ");
  REQUIRE(device->peers.size() == 1);
  CHECK(device->peers[0].name == "0000:3a:00.0");
  CHECK(device->peers[0].use == DriverUse::kBridge);
  REQUIRE(device->bars.size() == 1);
  CHECK(device->bars[0].size == 0x4000);
  CHECK(*device->reset_methods == std::vector<std::string>{"flr", "bus"});
  CHECK(device->numa_node == 1U);
  CHECK(device->total_vfs == 8U);
  CHECK(device->num_vfs == 2U);
  CHECK(device->iommu.units == std::vector<std::string>{"dmar0"});
  CHECK(device->iommu.remapping == HostIommu::Remapping::kOn);
  CHECK(device->iommu.type1_allows_unsafe == false);
  CHECK_FALSE(device->iommu.iommufd_allows_unsafe.has_value());
}

TEST_CASE("host pci: a device that is not there is a configuration error") {
  const FakeSysfs host;
  const Outcome<HostPciDevice> device = ReadHostPci("00:1f.0", host.roots().sysfs);
  REQUIRE_FALSE(device);
  CHECK(device.error().kind == Failure::Kind::kConfig);
  CHECK(device.error().cause == "there is no PCI device 0000:00:1f.0 on this host");
}

TEST_CASE("host pci: malformed files are unknown, never a number") {
  FakeSysfs host;
  host.AddDevice({.bdf = "0000:3b:00.0", .modalias = "pci:v*d*"});
  const std::string folder = host.Folder("0000:3b:00.0");
  const std::string bad[] = {"",
                             "\n",
                             "0x",
                             "0x1ffff\n",
                             "-1\n",
                             "0x12 34\n",
                             "zz\n",
                             std::string(1 << 17, '9'),
                             std::string("\0\0\0", 3),
                             "\xff\xfe\n"};
  for (const std::string& text : bad) {
    CAPTURE(text.substr(0, 16));
    for (const char* file : {"vendor", "device", "revision"}) host.Put(folder + "/" + file, text);
    host.Put(folder + "/class", "0x1000000\n");
    for (const char* file : {"numa_node", "sriov_totalvfs", "sriov_numvfs"})
      host.Put(folder + "/" + file, "0x" + text);
    host.Put(folder + "/resource", text);
    const Outcome<HostPciDevice> device = ReadHostPci("3b:00.0", host.roots().sysfs);
    REQUIRE(device);
    CHECK_FALSE(device->vendor.has_value());
    CHECK_FALSE(device->device.has_value());
    CHECK_FALSE(device->revision.has_value());
    CHECK_FALSE(device->class_code.has_value());
    CHECK_FALSE(device->numa_node.has_value());
    CHECK_FALSE(device->total_vfs.has_value());
    CHECK_FALSE(device->num_vfs.has_value());
    CHECK(device->modalias.empty());
    CHECK(device->bars.empty());
    CHECK_FALSE(device->group.has_value());
  }
  // A folder in place of a file.
  host.Remove(folder + "/vendor");
  host.Put(folder + "/vendor/x", "0x8086");
  CHECK_FALSE(ReadHostPci("3b:00.0", host.roots().sysfs)->vendor.has_value());
  // A group that is no number, and one that is not there.
  host.Link(folder + "/iommu_group", "../../../kernel/iommu_groups/1x");
  CHECK_FALSE(ReadHostPci("3b:00.0", host.roots().sysfs)->group.has_value());
  host.Remove(folder + "/iommu_group");
  host.Link(folder + "/iommu_group", "../../../kernel/iommu_groups/18446744073709551615");
  CHECK(ReadHostPci("3b:00.0", host.roots().sysfs)->peers.empty());
}

TEST_CASE("host pci: the device node's name is one that the kernel gives") {
  FakeSysfs host;
  host.AddDriver("mlx5_vfio_pci");
  host.AddDevice({.bdf = "0000:3b:00.0", .driver = "mlx5_vfio_pci", .group = 3});
  const std::string folder = host.Folder("0000:3b:00.0");
  host.Put(folder + "/vfio-dev/vfio../dev", "");
  host.Put(folder + "/vfio-dev/vfio11/power/control", "");  // a kernel without device nodes
  host.Put(folder + "/vfio-dev/vfio12/dev", "511:12\n");
  const Outcome<HostPciDevice> device = ReadHostPci("3b:00.0", host.roots().sysfs);
  CHECK(device->cdev == "vfio12");
  CHECK(device->use == DriverUse::kVfio);
}

TEST_CASE("examine: a device bound to VFIO, alone in its group, is free to go") {
  FakeSysfs host;
  host.AddDriver("vfio-pci");
  host.AddDevice({.bdf = "0000:3b:00.0", .driver = "vfio-pci", .group = 14});
  host.Put(host.roots().dev + "/vfio/14", "");
  HostPciDevice device = *ReadHostPci("3b:00.0", host.roots().sysfs);
  CHECK(Examine(device, host.roots()).empty());

  SUBCASE("but not without its node") {
    host.Remove(host.roots().dev + "/vfio/14");
    CHECK(Blocks(Examine(device, host.roots()), "/vfio/14"));
  }
  SUBCASE("and the node may be the device's own") {
    host.Remove(host.roots().dev + "/vfio/14");
    host.Put(host.roots().dev + "/vfio/devices/vfio0", "");
    device.cdev = "vfio0";
    CHECK(Examine(device, host.roots()).empty());
  }
  SUBCASE("without a way to reset it there is a remark") {
    host.Put(host.Folder("0000:3b:00.0") + "/reset_method", "\n");
    device = *ReadHostPci("3b:00.0", host.roots().sysfs);
    const std::vector<Finding> findings = Examine(device, host.roots());
    REQUIRE(findings.size() == 1);
    CHECK_FALSE(findings[0].blocks);
  }
  SUBCASE("interrupt remapping off is in the way, unless the host allows it") {
    host.Put(host.roots().sysfs + "/kernel/irq/24/chip_name", "PCI-MSI\n");
    device = *ReadHostPci("3b:00.0", host.roots().sysfs);
    CHECK(Blocks(Examine(device, host.roots()), "interrupt remapping is off"));
    host.Put(host.roots().sysfs + "/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
             "Y\n");
    device = *ReadHostPci("3b:00.0", host.roots().sysfs);
    CHECK_FALSE(Blocked(Examine(device, host.roots())));
  }
  SUBCASE("a made-up group without an IOMMU is in the way") {
    host.Put(host.roots().sysfs + "/kernel/iommu_groups/14/name", "vfio-noiommu\n");
    device = *ReadHostPci("3b:00.0", host.roots().sysfs);
    CHECK(Blocks(Examine(device, host.roots()), "without an IOMMU"));
  }
}

TEST_CASE("examine: names the members of the group that are in the way, and how to bind them") {
  FakeSysfs host;
  for (const char* driver : {"vfio-pci", "snd_hda_intel", "pci-stub", "lpc_ich"})
    host.AddDriver(driver);
  host.AddDevice({.bdf = "0000:01:00.0", .driver = "vfio-pci", .group = 1});
  host.AddDevice({.bdf = "0000:01:00.1", .driver = "snd_hda_intel", .group = 1});
  host.AddDevice({.bdf = "0000:01:00.2", .group = 1});
  host.AddDevice({.bdf = "0000:01:00.3", .driver = "pci-stub", .group = 1});
  host.AddDevice(
      {.bdf = "0000:01:00.4", .driver = "lpc_ich", .group = 1, .class_code = "0x060100"});
  host.AddDevice({.bdf = "0000:01:00.5", .group = 1, .class_code = "0x060400"});
  const HostPciDevice device = *ReadHostPci("01:00.0", host.roots().sysfs);
  REQUIRE(device.peers.size() == 5);
  CHECK(device.peers[0].use == DriverUse::kInTheWay);
  CHECK(device.peers[1].use == DriverUse::kNone);
  CHECK(device.peers[2].use == DriverUse::kStub);
  CHECK(device.peers[3].use == DriverUse::kInTheWay);
  CHECK(device.peers[4].use == DriverUse::kBridge);
  host.Put(host.roots().dev + "/vfio/1", "");
  const std::vector<Finding> findings = Examine(device, host.roots());
  REQUIRE(findings.size() == 1);
  CHECK(findings[0].cause ==
        "the host uses other members of IOMMU group 1: 0000:01:00.1 (snd_hda_intel), "
        "0000:01:00.4 (lpc_ich)");
  CHECK(findings[0].next_step.starts_with("postern bind 0000:01:00.1 0000:01:00.4;"));
}

TEST_CASE("examine: no IOMMU, no group, a host driver, a bridge: each named with its cure") {
  FakeSysfs host;
  host.AddDriver("nvme");
  host.AddDevice({.bdf = "0000:3b:00.0", .driver = "nvme"});
  HostPciDevice device = *ReadHostPci("3b:00.0", host.roots().sysfs);
  CHECK(Blocks(Examine(device, host.roots()), "is in no IOMMU group"));
  CHECK(Blocks(Examine(device, host.roots()), "it is bound to 'nvme'"));
  host.Remove(host.roots().sysfs + "/class/iommu/dmar0");
  device = *ReadHostPci("3b:00.0", host.roots().sysfs);
  CHECK(Blocks(Examine(device, host.roots()), "has no IOMMU"));

  host.AddDevice({.bdf = "0000:00:01.0", .group = 2, .class_code = "0x060400"});
  device = *ReadHostPci("00:01.0", host.roots().sysfs);
  CHECK(Blocks(Examine(device, host.roots()), "it is a bridge"));
  // "Other bridge": not one of the bus.
  host.AddDevice({.bdf = "0000:00:02.0", .group = 3, .class_code = "0x068000"});
  device = *ReadHostPci("00:02.0", host.roots().sysfs);
  CHECK(Blocks(Examine(device, host.roots()), "it has no driver"));
}

TEST_CASE("bound: all devices of VFIO drivers, by name") {
  FakeSysfs host;
  host.AddDriver("vfio-pci");
  host.AddDriver("nvme");
  host.AddDevice({.bdf = "0000:02:00.0", .driver = "vfio-pci"});
  host.AddDevice({.bdf = "0000:01:00.0", .driver = "vfio-pci"});
  host.AddDevice({.bdf = "0000:03:00.0", .driver = "nvme"});
  const std::vector<BoundDevice> bound = ListVfioBound(host.roots().sysfs);
  REQUIRE(bound.size() == 2);
  CHECK(bound[0].name == "0000:01:00.0");
  CHECK(bound[1].name == "0000:02:00.0");
}

}  // namespace
}  // namespace postern::vfio
