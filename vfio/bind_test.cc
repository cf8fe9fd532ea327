#include "vfio/bind.h"

#include <cerrno>
#include <string>
#include <vector>

#include "tests/support/fake_sysfs.h"
#include "vfio/in_use.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using testing::FakeSysfs;
using Steps = std::vector<std::string>;

constexpr const char* kDisk = "0000:3b:00.0";

// An NVMe disk on its driver, vfio-pci as a module that is not loaded.
struct Host : FakeSysfs {
  Host() {
    AddDriver("nvme");
    AddLoadable("vfio_pci", "vfio-pci");
    AddDevice({.bdf = kDisk, .driver = "nvme", .group = 14});
  }
  Outcome<BindReport> Bind(const BindOptions& options = {}) {
    return vfio::Bind(kDisk, options, roots(), *this);
  }
  Outcome<BindReport> Unbind(const BindOptions& options = {}) {
    return vfio::Unbind(kDisk, options, roots(), *this);
  }
  [[nodiscard]] bool AsBefore() const {
    return Driver(kDisk) == "nvme" && Override(kDisk) == "(null)" && !Exists(StateFile(kDisk));
  }
};

TEST_CASE("bind: loads the driver, overrides, unbinds, probes; unbind restores what was") {
  Host host;
  Outcome<BindReport> report = host.Bind();
  REQUIRE(report);
  CHECK(report->changed);
  CHECK(report->driver == "vfio-pci");
  CHECK(host.Driver(kDisk) == "vfio-pci");
  CHECK(host.Override(kDisk) == "vfio-pci");
  CHECK(host.done == Steps{"modprobe vfio_pci", "driver_override vfio-pci",
                           "nvme/unbind 0000:3b:00.0", "drivers_probe 0000:3b:00.0"});
  CHECK(ReadText(host.StateFile(kDisk)) ==
        "driver=nvme\nmodule=nvme\ndriver_override=\nbound=vfio-pci\n");

  host.done.clear();
  report = host.Unbind();
  REQUIRE(report);
  CHECK(report->changed);
  CHECK(report->driver == "nvme");
  CHECK(host.AsBefore());
  CHECK(host.done ==
        Steps{"driver_override ", "vfio-pci/unbind 0000:3b:00.0", "nvme/bind 0000:3b:00.0"});
}

TEST_CASE("bind and unbind: a second time changes nothing") {
  Host host;
  REQUIRE(host.Bind());
  host.done.clear();
  Outcome<BindReport> report = host.Bind();
  REQUIRE(report);
  CHECK_FALSE(report->changed);
  CHECK(host.done.empty());
  REQUIRE(host.Unbind());
  host.done.clear();
  report = host.Unbind();
  REQUIRE(report);
  CHECK_FALSE(report->changed);
  CHECK(report->driver == "nvme");
  CHECK(host.done.empty());
  CHECK(host.AsBefore());
}

TEST_CASE("bind: a dry run says the commands and changes nothing") {
  Host host;
  const Outcome<BindReport> report = host.Bind({.dry_run = true});
  REQUIRE(report);
  CHECK_FALSE(report->changed);
  const std::string bus = host.roots().sysfs + "/bus/pci/";
  CHECK(report->steps == Steps{"modprobe vfio_pci",
                               "echo vfio-pci > " + bus + "devices/0000:3b:00.0/driver_override",
                               "echo 0000:3b:00.0 > " + bus + "drivers/nvme/unbind",
                               "echo 0000:3b:00.0 > " + bus + "drivers_probe"});
  CHECK(host.done.empty());
  CHECK(host.AsBefore());
  REQUIRE(host.Bind());
  host.done.clear();
  const Outcome<BindReport> back = host.Unbind({.dry_run = true});
  REQUIRE(back);
  CHECK(back->steps == Steps{"echo > " + bus + "devices/0000:3b:00.0/driver_override",
                             "echo 0000:3b:00.0 > " + bus + "drivers/vfio-pci/unbind",
                             "echo 0000:3b:00.0 > " + bus + "drivers/nvme/bind"});
  CHECK(host.done.empty());
  CHECK(host.Driver(kDisk) == "vfio-pci");
}

TEST_CASE("bind: a device without a driver goes back to none, an override to what it was") {
  Host host;
  host.AddDevice({.bdf = "0000:04:00.0", .native = "nvme", .group = 15});
  host.Put(host.Folder("0000:04:00.0") + "/driver_override", "none\n");
  REQUIRE(Bind("04:00.0", {}, host.roots(), host));
  CHECK(host.Driver("0000:04:00.0") == "vfio-pci");
  REQUIRE(Unbind("04:00.0", {}, host.roots(), host));
  CHECK(host.Driver("0000:04:00.0").empty());
  CHECK(host.Override("0000:04:00.0") == "none");
}

TEST_CASE("bind: a failure at any step goes back to what was") {
  const struct {
    const char* at;
    int error;
  } rows[] = {{"/driver_override", EACCES}, {"/nvme/unbind", EBUSY}, {"/drivers_probe", EIO}};
  for (const auto& row : rows) {
    CAPTURE(row.at);
    Host host;
    host.faults[row.at] = row.error;
    const Outcome<BindReport> report = host.Bind();
    REQUIRE_FALSE(report);
    CHECK(report.error().kind == Failure::Kind::kHost);
    CHECK(report.error().cause.find(row.at) != std::string::npos);
    CHECK_FALSE(report.error().next_step.empty());
    CHECK(host.AsBefore());
  }
  SUBCASE("the driver refuses the device") {
    Host host;
    host.refusing.insert("vfio-pci");
    const Outcome<BindReport> report = host.Bind();
    REQUIRE_FALSE(report);
    CHECK(report.error().cause == "'vfio-pci' did not take 0000:3b:00.0; it is back with 'nvme'");
    CHECK(host.AsBefore());
  }
  SUBCASE("the old driver does not come back either: both are said, the record is kept") {
    Host host;
    host.refusing = {"vfio-pci", "nvme"};
    const Outcome<BindReport> report = host.Bind();
    REQUIRE_FALSE(report);
    CHECK(report.error().cause.find("could not be put back") != std::string::npos);
    CHECK(host.Driver(kDisk).empty());
    CHECK(host.Override(kDisk) == "(null)");
    CHECK(Exists(host.StateFile(kDisk)));
    host.refusing.clear();
    REQUIRE(host.Unbind());
    CHECK(host.AsBefore());
  }
  SUBCASE("the module is not there") {
    FakeSysfs host;
    host.AddDriver("nvme");
    host.AddDevice({.bdf = kDisk, .driver = "nvme", .group = 14});
    CHECK_FALSE(Bind(kDisk, {}, host.roots(), host));
    CHECK(host.done == Steps{"modprobe vfio_pci"});
    CHECK(host.Driver(kDisk) == "nvme");
    CHECK_FALSE(Exists(host.StateFile(kDisk)));
  }
  SUBCASE("the module brings no driver") {
    Host host;
    host.AddLoadable("vfio_pci", "");
    CHECK_FALSE(host.Bind());
    CHECK(host.AsBefore());
  }
  SUBCASE("the state cannot be kept") {
    Host host;
    host.Put(host.roots().run, "a file in place of the folder");
    const Outcome<BindReport> report = host.Bind();
    REQUIRE_FALSE(report);
    CHECK(report.error().cause.find("cannot keep what was there before") != std::string::npos);
    CHECK(host.done.empty());
  }
}

TEST_CASE("bind: the variant driver that fits best, by the name it turns out to have") {
  Host host;
  host.AddLoadable("acc_vfio_pci", "acc-vfio-pci");
  host.Put(host.roots().modules + "/modules.alias",
           "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
           "alias vfio_pci:v00008086d00000A54sv*sd*bc*sc*i* acc_vfio_pci\n");
  // Before the module is there nobody knows what it calls its driver.
  CHECK(host.Bind({.dry_run = true})->note.find("'acc_vfio_pci' is a guess") != std::string::npos);
  CHECK(host.Bind()->note.empty());
  CHECK(host.Driver(kDisk) == "acc-vfio-pci");

  // Another one on request: what was there first is still known.
  REQUIRE(host.Bind({.driver = "vfio_pci"}));
  CHECK(host.Driver(kDisk) == "vfio-pci");
  // The best again: not by itself, but it says so.
  const Outcome<BindReport> report = host.Bind();
  REQUIRE(report);
  CHECK_FALSE(report->changed);
  CHECK(report->note.find("--driver acc_vfio_pci") != std::string::npos);
  REQUIRE(host.Unbind());
  CHECK(host.AsBefore());
}

TEST_CASE("bind: going back from a rebind that fails keeps the first record") {
  Host host;
  REQUIRE(host.Bind());
  host.AddLoadable("acc_vfio_pci", "acc-vfio-pci");
  host.refusing.insert("acc-vfio-pci");
  CHECK_FALSE(host.Bind({.driver = "acc_vfio_pci"}));
  CHECK(host.Driver(kDisk) == "vfio-pci");
  CHECK(host.Override(kDisk) == "vfio-pci");
  REQUIRE(host.Unbind());
  CHECK(host.AsBefore());
}

TEST_CASE("bind: only VFIO drivers, only addresses of devices") {
  Host host;
  for (const char* driver : {"nvme", "../vfio", "vfio pci", "-vfio", "vfio/../x"}) {
    CAPTURE(driver);
    const Outcome<BindReport> report = host.Bind({.driver = driver});
    REQUIRE_FALSE(report);
    CHECK(report.error().kind == Failure::Kind::kConfig);
  }
  CHECK(Bind("zz", {}, host.roots(), host).error().kind == Failure::Kind::kConfig);
  CHECK(Unbind("00:1f.7", {}, host.roots(), host).error().kind == Failure::Kind::kConfig);
  CHECK(host.done.empty());
}

TEST_CASE("bind: a bridge and the host's root disk are refused, forced or not") {
  Host host;
  host.AddDevice({.bdf = "0000:00:01.0", .group = 1, .class_code = "0x060400"});
  host.AddBlock(kDisk, "nvme0n1", "259:0");
  host.AddBlock(kDisk, "nvme0n1p2", "259:2");
  host.Put(host.roots().proc + "/self/mountinfo",
           "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n");
  for (const bool force : {false, true}) {
    const BindOptions options{.force = force};
    CHECK(Bind("00:01.0", options, host.roots(), host).error().cause.find("bridge") !=
          std::string::npos);
    CHECK(host.Bind(options).error().cause ==
          "0000:3b:00.0 holds the host's root: nvme0n1p2 is mounted at /");
  }
  CHECK(host.done.empty());
}

TEST_CASE("bind: what the host uses is refused with the reason, unless forced") {
  Host host;
  host.AddBlock(kDisk, "nvme0n1", "259:0");
  std::string reason;
  SUBCASE("a mounted disk") {
    host.Put(host.roots().proc + "/self/mountinfo",
             "22 1 259:0 / /srv rw shared:1 - ext4 /dev/nvme0n1 rw\n");
    reason = "nvme0n1 is mounted at /srv";
  }
  SUBCASE("a file system over several disks, known by its source") {
    host.Put(host.roots().proc + "/self/mountinfo",
             "22 1 0:35 / /srv rw - btrfs /dev/nvme0n1 rw\n");
    reason = "nvme0n1 is mounted at /srv";
  }
  SUBCASE("a swap partition") {
    host.Put(host.roots().proc + "/swaps", "Filename\tType\n/dev/nvme0n1  partition 1 0 -2\n");
    reason = "swaps to nvme0n1";
  }
  SUBCASE("a part of a volume, which is mounted") {
    host.Put(host.Folder(kDisk) + "/block/nvme0n1/holders/dm-0/x", "");
    host.Put(host.roots().sysfs + "/class/block/dm-0/dev", "254:0\n");
    host.Put(host.roots().proc + "/self/mountinfo",
             "22 1 254:0 / /home rw - ext4 /dev/mapper/vg-home rw\n");
    reason = "nvme0n1 is part of dm-0, dm-0 is mounted at /home";
  }
  SUBCASE("a network interface that is up") {
    host.AddNet(kDisk, "eth0", "up");
    reason = "network interface eth0 is up";
  }
  SUBCASE("one that cannot tell, but is in use") {
    host.AddNet(kDisk, "eth0", "unknown");
    reason = "network interface eth0 is up";
  }
  SUBCASE("virtual functions") {
    host.Put(host.Folder(kDisk) + "/sriov_numvfs", "4\n");
    reason = "4 virtual functions";
  }
  const Outcome<BindReport> report = host.Bind();
  REQUIRE_FALSE(report);
  CHECK(report.error().cause.find(reason) != std::string::npos);
  CHECK(report.error().next_step.find("--force") != std::string::npos);
  CHECK(host.done.empty());
  CHECK(host.Bind({.force = true}));
  CHECK(host.Driver(kDisk) == "vfio-pci");
}

TEST_CASE("in use: idle disks and interfaces that are down are not; other devices' neither") {
  Host host;
  host.AddDevice({.bdf = "0000:3b:00.1", .driver = "nvme"});
  host.AddBlock(kDisk, "nvme0n1", "259:0");
  host.AddNet(kDisk, "eth0", "down");
  host.AddBlock("0000:3b:00.1", "nvme1n1", "259:4");
  host.AddNet("0000:3b:00.1", "eth1", "up");
  host.Put(
      host.roots().proc + "/self/mountinfo",
      "22 1 259:4 / / rw - ext4 /dev/nvme1n1 rw\nmalformed\n1 2 3 4 5 6 7\n\n- - - - - - - -\n");
  CHECK(FindHostUses(kDisk, host.roots()).empty());
  CHECK(FindHostUses("0000:3b:00.1", host.roots()).size() == 2);
}

TEST_CASE("in use: an NVMe disk with several paths belongs to each of its controllers") {
  Host host;
  const std::string subsystem = host.roots().sysfs + "/devices/virtual/nvme-subsystem/nvme-subsys0";
  host.Put(subsystem + "/nvme0n1/dev", "259:0\n");
  host.Put(host.Folder(kDisk) + "/nvme/nvme0/state", "live\n");
  host.Link(subsystem + "/nvme0", "../../../pci0000:00/0000:3b:00.0/nvme/nvme0");
  host.Link(host.roots().sysfs + "/class/block/nvme0n1",
            "../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
  host.Put(host.roots().proc + "/self/mountinfo", "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
  const std::vector<HostUse> uses = FindHostUses(kDisk, host.roots());
  REQUIRE(uses.size() == 1);
  CHECK(uses[0].root);
}

TEST_CASE("bind: without an IOMMU group it is refused before anything is touched") {
  Host host;
  host.AddDevice({.bdf = "0000:04:00.0", .driver = "nvme"});
  const Outcome<BindReport> report = Bind("04:00.0", {}, host.roots(), host);
  REQUIRE_FALSE(report);
  CHECK(report.error().cause.find("no IOMMU group") != std::string::npos);
  CHECK(host.done.empty());
}

TEST_CASE("unbind: a device that somebody else bound is left alone") {
  Host host;
  host.AddDriver("vfio-pci");
  host.AddDevice({.bdf = "0000:04:00.0", .driver = "vfio-pci", .native = "nvme", .group = 1});
  const Outcome<BindReport> report = Unbind("04:00.0", {}, host.roots(), host);
  REQUIRE_FALSE(report);
  CHECK(report.error().cause.find("not by postern bind") != std::string::npos);
  CHECK(report.error().next_step.find("drivers_probe") != std::string::npos);
  CHECK(host.done.empty());
}

TEST_CASE("unbind: a state folder that cannot be looked into is not one without this device") {
  Host host;
  host.AddDriver("vfio-pci");
  host.AddDevice({.bdf = "0000:04:00.0", .driver = "vfio-pci", .native = "nvme", .group = 1});
  host.Put(host.roots().run + "/bind", "");
  const Outcome<BindReport> report = Unbind("04:00.0", {}, host.roots(), host);
  REQUIRE_FALSE(report);
  CHECK(report.error().cause.find("cannot read what was there before") != std::string::npos);
  CHECK(host.done.empty());
}

TEST_CASE("unbind: a device bound anew in the meantime keeps its driver and loses our override") {
  Host host;
  host.AddDriver("uio_pci");
  REQUIRE(host.Bind());
  host.Remove(host.Folder(kDisk) + "/driver");
  host.Link(host.Folder(kDisk) + "/driver", "../../../bus/pci/drivers/uio_pci");
  const Outcome<BindReport> report = host.Unbind();
  REQUIRE(report);
  CHECK(report->driver == "uio_pci");
  CHECK(host.Driver(kDisk) == "uio_pci");
  CHECK(host.Override(kDisk) == "(null)");
  CHECK_FALSE(Exists(host.StateFile(kDisk)));
}

TEST_CASE("unbind: loads the old driver again if it is gone, and retries what failed") {
  Host host;
  REQUIRE(host.Bind());
  host.Remove(host.roots().sysfs + "/bus/pci/drivers/nvme");
  host.Remove(host.roots().sysfs + "/module/nvme");
  Outcome<BindReport> report = host.Unbind();
  REQUIRE_FALSE(report);
  CHECK(Exists(host.StateFile(kDisk)));
  CHECK(host.Driver(kDisk).empty());
  host.AddLoadable("nvme", "nvme");
  report = host.Unbind();
  REQUIRE(report);
  CHECK(host.AsBefore());
}

TEST_CASE("bind: a stale record does not outlive what it says") {
  Host host;
  host.Put(host.StateFile(kDisk), "driver=ancient\nmodule=\ndriver_override=x\nbound=vfio-pci\n");
  REQUIRE(host.Bind());
  REQUIRE(host.Unbind());
  CHECK(host.AsBefore());
  host.Put(host.StateFile(kDisk), "rubbish");
  CHECK_FALSE(host.Unbind());
  REQUIRE(host.Bind());
  REQUIRE(host.Unbind());
  CHECK(host.AsBefore());
}

TEST_CASE("record: what is written is read; anything else is malformed") {
  const BindRecord record{"nvme", "nvme", "", "vfio-pci"};
  CHECK(ParseBindRecord(FormatBindRecord(record)) == record);
  for (const char* text :
       {"", "\n", "driver=\nmodule=\ndriver_override=\nbound=\n", "driver=nvme\nbound=vfio-pci\n",
        "driver=a\ndriver=a\nmodule=\ndriver_override=\nbound=v\n",
        "driver=../x\nmodule=\ndriver_override=\nbound=v\n",
        "driver=..\nmodule=\ndriver_override=\nbound=v\n",
        "driver=\nmodule=\ndriver_override=\nbound=v\nmore=1\n",
        "driver=a\tb\nmodule=\ndriver_override=\nbound=v\n"}) {
    CAPTURE(text);
    const Result<BindRecord> parsed = ParseBindRecord(text);
    REQUIRE_FALSE(parsed);
    CHECK(parsed.error().code == Errc::kBadFormat);
  }
}

TEST_CASE("host sysfs: the real writer says why it cannot") {
  FakeSysfs host;
  const std::string file = host.roots().run + "/x";
  const Result<void> missing = HostSysfs().Write(file, "1");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().sys_errno == ENOENT);
  host.Put(file, "");
  REQUIRE(HostSysfs().Write(file, "vfio-pci"));
  CHECK(ReadLine(file) == "vfio-pci");
}

}  // namespace
}  // namespace postern::vfio
