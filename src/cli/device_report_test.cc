#include "src/cli/device_report.h"

#include <string>

#include <nlohmann/json.hpp>

#include "tests/support/fake_sysfs.h"

#include <doctest/doctest.h>

namespace postern::cli {
namespace {

using testing::FakeSysfs;

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

std::string LastLine(const std::string& text) {
  return text.substr(text.rfind('\n', text.size() - 2) + 1);
}
bool Contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

struct Host : FakeSysfs {
  Host() {
    AddDriver("nvme");
    AddDriver("vfio-pci");
    AddDevice({.bdf = "0000:3b:00.0",
               .driver = "nvme",
               .group = 14,
               .resource = "0xfe000000 0xfe003fff 0x140204\n"});
  }
};

TEST_CASE("device table: what it is, what fits, what to run, and a verdict at the end") {
  Host host;
  const Outcome<DeviceReport> report = ReportDevice("3b:00.0", host.roots());
  REQUIRE(report);
  CHECK_FALSE(report->assignable());
  const std::string table = DeviceTable(*report, 8 << 20);
  CHECK(Contains(table, "0000:3b:00.0, 8086:0a54, class 010802\n"));
  CHECK(Contains(table, "nvme (in use by the host)\n"));
  CHECK(Contains(table, "vfio-pci (module vfio_pci, loaded): alias vfio_pci:v*d*"));
  CHECK(Contains(table, "14, type DMA-FQ, of this device alone\n"));
  CHECK(Contains(table, "dmar0; 1 groups\n"));
  CHECK(Contains(table, "interrupt remapping   on\n"));
  CHECK(Contains(table, "flr, bus\n"));
  CHECK(Contains(table, "16K 64-bit memory\n"));
  CHECK(Contains(table, "all of the guest's RAM"));
  CHECK(Contains(table, "may lock 8M\n"));
  CHECK(LastLine(table) == "0000:3b:00.0 cannot be assigned yet: postern bind 0000:3b:00.0\n");
}

TEST_CASE("device table: a device that is ready says how to assign it") {
  Host host;
  host.AddDevice({.bdf = "0000:3c:00.0", .driver = "vfio-pci", .group = 15});
  host.Put(host.roots().dev + "/vfio/15", "");
  const Outcome<DeviceReport> report = ReportDevice("3c:00.0", host.roots());
  REQUIRE(report);
  CHECK(report->assignable());
  const std::string table = DeviceTable(*report, kNoLimit);
  CHECK_FALSE(Contains(table, "postern bind"));
  CHECK(LastLine(table) ==
        "0000:3c:00.0 can be assigned: postern run --device host=0000:3c:00.0\n");
}

TEST_CASE("device table: what a device calls itself cannot steer the terminal") {
  Host host;
  const std::string evil = "a\x1b[2Jb";
  host.AddDriver(evil);
  host.AddDevice({.bdf = "0000:3d:00.0", .driver = evil, .group = 14});
  host.Put(host.Folder("0000:3d:00.0") + "/driver_override", evil + "\n");
  host.Put(host.Folder("0000:3d:00.0") + "/reset_method", evil + "\n");
  for (const char* bdf : {"3b:00.0", "3d:00.0"}) {
    const Outcome<DeviceReport> report = ReportDevice(bdf, host.roots());
    REQUIRE(report);
    CHECK(DeviceTable(*report, kNoLimit).find('\x1b') == std::string::npos);
    CHECK(DevicesJson({*report}, kNoLimit).find('\x1b') == std::string::npos);
  }
}

TEST_CASE("device JSON: parses, with the same verdict; what is unknown is null") {
  Host host;
  host.Put(host.Folder("0000:3b:00.0") + "/vendor", "rubbish\n");
  host.Put(host.Folder("0000:3b:00.0") + "/driver_override", "\xff\xfe\n");
  const Outcome<DeviceReport> report = ReportDevice("3b:00.0", host.roots());
  REQUIRE(report);
  const nlohmann::json json =
      nlohmann::json::parse(DevicesJson({*report}, kNoLimit), nullptr, false);
  REQUIRE(json.is_object());
  REQUIRE(json["devices"].size() == 1);
  const nlohmann::json& device = json["devices"][0];
  CHECK(device["device"] == "0000:3b:00.0");
  CHECK(device["assignable"] == false);
  CHECK(device["identity"]["vendor"].is_null());
  CHECK(device["identity"]["device"] == 0xa54);
  CHECK(device["driver"]["name"] == "nvme");
  CHECK(device["driver"]["fitting"]["module"] == "vfio_pci");
  CHECK(device["group"]["number"] == 14);
  CHECK(device["bars"][0]["size"] == 0x4000);
  CHECK(device["lock_limit"].is_null());
  CHECK(device["findings"][0]["next_step"] == "postern bind 0000:3b:00.0");
}

}  // namespace
}  // namespace postern::cli
