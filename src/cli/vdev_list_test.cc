#include "src/cli/vdev_list.h"

#include <string>
#include <string_view>

#include "tests/support/fake_sysfs.h"

#include <doctest/doctest.h>

namespace postern::cli {
namespace {

void AddAccelerator(testing::FakeSysfs& host, const std::string& bdf, const std::string& driver,
                    std::string_view device, int group) {
  host.AddDevice({.bdf = bdf, .driver = driver, .group = group, .class_code = "0x088000"});
  host.Put(host.Folder(bdf) + "/vendor", "0x8086\n");
  host.Put(host.Folder(bdf) + "/device", device);
}

bool Has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("vdev list: a host without accelerators has the engine, and says what is not there") {
  const testing::FakeSysfs host;
  const std::string text = DescribeVdevs(host.roots());
  CHECK(Has(text, "engine  threads of Postern; on any host"));
  CHECK(Has(text, "Accelerators of this host\n  none\n"));
  CHECK(Has(text, "idxd driver\n  none\n"));
}

TEST_CASE("vdev list: accelerators with what stands in their way, and the driver's queues") {
  testing::FakeSysfs host;
  host.AddDriver("idxd");
  host.AddDriver("vfio-pci");
  AddAccelerator(host, "0000:6a:01.0", "idxd", "0x0b25\n", 7);
  AddAccelerator(host, "0000:6a:02.0", "idxd", "0x0cfe\n", 8);
  AddAccelerator(host, "0000:e7:01.0", "vfio-pci", "0x0b25\n", 9);
  AddAccelerator(host, "0000:00:1f.0", "", "0x10d3\n", 10);
  const std::string queue = host.roots().sysfs + "/bus/dsa/devices/wq0.1";
  host.Put(queue + "/type", "user\n");
  host.Put(queue + "/mode", "dedicated\x1b[31m\n");
  host.Put(queue + "/size", "16\n");
  host.Put(queue + "/state", "enabled\n");
  host.Put(host.roots().sysfs + "/bus/dsa/devices/dsa0/state", "enabled\n");
  host.Put(host.roots().dev + "/dsa/wq0.1", "");
  const std::string text = DescribeVdevs(host.roots());
  CHECK(Has(text, "0000:6a:01.0  8086:0b25 DSA, driver idxd: 'postern bind 0000:6a:01.0' first\n"));
  CHECK(Has(text, "0000:6a:02.0  8086:0cfe IAA, which no back end drives yet\n"));
  CHECK(Has(text, "0000:e7:01.0  8086:0b25 DSA, "));
  CHECK_FALSE(Has(text, "10d3"));
  CHECK(Has(text, "  /dev/dsa/wq0.1  type user, mode dedicated\\x1b[31m, size 16, enabled\n"));
  CHECK(Has(text, "    wq0.1: its attribute mode makes no sense: "));
  host.Put(queue + "/mode", "shared\n");
  host.Put(queue + "/max_transfer_size", "2097152\n");
  host.Put(queue + "/op_config", "00000001,003f03ff\n");
  CHECK(Has(DescribeVdevs(host.roots()), "    ready: path=/dev/dsa/wq0.1\n"));
  host.Put(queue + "/type", "kernel\n");
  CHECK(Has(DescribeVdevs(host.roots()), "accel-config config-wq dsa0/wq0.1 --type=user"));
}

}  // namespace postern::cli
