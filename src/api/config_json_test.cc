#include "src/api/config_json.h"

#include <unistd.h>

#include <cstdio>

#include <doctest/doctest.h>

namespace postern::api {
namespace {

TEST_CASE("json: every field reaches the configuration") {
  Config c;
  REQUIRE(ApplyJson(R"({
    // comments are allowed
    "kernel": "vmlinuz", "initrd": "initrd", "cmdline": "quiet", "cpus": 4,
    "memory": {"size": "1G", "hugepages": "2M", "shared": true, "prefault": true},
    "disks": [{"path": "a", "readonly": true, "direct": true, "cache": "unsafe", "engine": "sync", "serial": "S", "queues": 2,
               "queue_size": 128, "id": "root"}],
    "nets": [{"tap": "t0", "mac": "02:00:00:00:00:01", "mtu": 9000, "queue_pairs": 2, "offload": false}, {"fd": 7}],
    "vsock": {"cid": 5, "socket": "/run/v"},
    "console": {"mode": "file", "path": "log"}, "serial": {"mode": "pty"},
    "rng": false, "transport": "mmio", "io_threads": 2, "pit": true, "movdir64b": false, "metrics": "m", "hotplug_ports": 5,
    "control": "ctl"
  })",
                    "vm.json", c));
  CHECK(c.kernel == "vmlinuz");
  CHECK(c.initrd == "initrd");
  CHECK(c.cmdline == "quiet");
  CHECK(c.cpus == 4);
  CHECK(c.memory.size == 1 << 30);
  CHECK(c.memory.hugepages == 2 << 20);
  CHECK(c.memory.shared);
  CHECK(c.memory.prefault);
  REQUIRE(c.disks.size() == 1);
  CHECK(c.disks[0].readonly);
  CHECK(c.disks[0].direct);
  CHECK(c.disks[0].cache == DiskConfig::Cache::kUnsafe);
  CHECK(c.disks[0].engine == DiskConfig::Engine::kSync);
  CHECK(c.disks[0].queues == 2);
  CHECK(c.disks[0].id == "root");
  REQUIRE(c.nets.size() == 2);
  CHECK(c.nets[0].mtu == 9000);
  CHECK_FALSE(c.nets[0].offload);
  CHECK(c.nets[1].fd == 7);
  REQUIRE(c.vsock.has_value());
  CHECK(c.vsock->cid == 5);
  CHECK(c.console.mode == ConsoleConfig::Mode::kFile);
  CHECK(c.serial.mode == ConsoleConfig::Mode::kPty);
  CHECK_FALSE(c.rng);
  CHECK(c.transport == Transport::kMmio);
  CHECK(c.io_threads == 2);
  CHECK(c.pit);
  CHECK(c.movdir64b == false);
  CHECK(c.hotplug_ports == 5);
  CHECK(c.control == "ctl");
}

TEST_CASE("json and flags: assigned devices, by each way of naming one") {
  Config c;
  REQUIRE(ApplyJson(R"({"devices": [
    {"host": "0000:3b:00.0", "id": "disk", "iommufd": true, "rombar": true, "intx": false, "p2p": true, "trap_bar": 2},
    {"path": "/sys/bus/mdev/devices/x", "iommufd": "fd=7"}, {"fd": 9, "iommufd": "off"}]})",
                    "vm.json", c));
  REQUIRE(c.devices.size() == 3);
  CHECK(c.devices[0].host == "0000:3b:00.0");
  CHECK(c.devices[0].iommufd == AssignedConfig::Iommufd::kOn);
  CHECK(c.devices[0].rombar);
  CHECK_FALSE(c.devices[0].intx);
  CHECK(c.devices[0].p2p);
  CHECK(c.devices[0].trap_bar == 2);
  CHECK(c.devices[1].iommufd_fd == 7);
  CHECK(c.devices[1].iommufd == AssignedConfig::Iommufd::kOn);
  CHECK(c.devices[2].fd == 9);
  CHECK(c.devices[2].iommufd == AssignedConfig::Iommufd::kOff);
  REQUIRE(ApplyFlag("device", "socket=/run/d,id=user", c));
  REQUIRE(ApplyFlag("device", "0000:01:00.1,iommufd=fd=4,trap-bar=5,rombar", c));
  REQUIRE(c.devices.size() == 5);
  CHECK(c.devices[3].socket == "/run/d");
  CHECK(c.devices[4].host == "0000:01:00.1");
  CHECK(c.devices[4].iommufd_fd == 4);
  CHECK(c.devices[4].trap_bar == 5);
  for (const char* bad : {"host=a,iommufd=maybe", "host=a,iommufd=fd=", "host=a,iommufd=fd=-1",
                          "host=a,trap-bar=6", "host=a,fd=x", "host=a,what=1"}) {
    CAPTURE(bad);
    CHECK_FALSE(ApplyFlag("device", bad, c));
  }
  CHECK(c.devices.size() == 5);
}

TEST_CASE("json: an error names the source and the path of the field, and changes nothing") {
  struct Case {
    const char* text;
    const char* where;
  };
  const Case cases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "expected an object"},
      {"null", "expected an object"},
      {R"({"kernl": "x"})", "kernl: no such field"},
      {R"({"kernel": 5})", "kernel: expected a string"},
      {R"({"kernel": "a\u0000b"})", "kernel: contains a NUL"},
      {R"({"cpus": 0})", "cpus:"},
      {R"({"cpus": -1})", "cpus:"},
      {R"({"cpus": 1.5})", "cpus:"},
      {R"({"cpus": 1025})", "cpus:"},
      {R"({"cpus": 18446744073709551616})", "cpus:"},
      {R"({"memory": 512})", "memory: expected an object"},
      {R"({"memory": {"size": "512X"}})", "memory.size:"},
      {R"({"memory": {"size": "99999999999999999999"}})", "memory.size:"},
      {R"({"memory": {"size": 0}})", "memory.size:"},
      {R"({"memory": {"shared": 1}})", "memory.shared:"},
      {R"({"disks": {}})", "disks: expected a list"},
      {R"({"disks": [{"path": "a"}, {"path": "b", "cache": "fast"}]})", "disks[1].cache:"},
      {R"({"disks": [5]})", "disks[0]: expected an object"},
      {R"({"disks": [{"queues": 0}]})", "disks[0].queues:"},
      {R"({"nets": [{"mtu": 67}]})", "nets[0].mtu:"},
      {R"({"nets": [{"mtu": 65536}]})", "nets[0].mtu:"},
      {R"({"vsock": {"cid": 2, "socket": "s"}})", "vsock.cid:"},
      {R"({"vsock": {"cid": 4294967295, "socket": "s"}})", "vsock.cid:"},
      {R"({"vsock": {"cid": 3}})", "vsock.socket: missing"},
      {R"({"console": {"mode": "file"}})", "console.path: missing"},
      {R"({"console": {"mode": "pty", "path": "x"}})", "console.path:"},
      {R"({"console": {"mode": "vga"}})", "console.mode:"},
      {R"({"transport": "isa"})", "transport:"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    Config config;
    config.cmdline = "kept";
    const Outcome<void> result = ApplyJson(c.text, "vm.json", config);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == Failure::Kind::kConfig);
    CAPTURE(result.error().cause);
    CHECK(result.error().cause.starts_with("vm.json: "));
    CHECK(result.error().cause.find(c.where) != std::string::npos);
    CHECK_FALSE(result.error().next_step.empty());
    CHECK(config.cmdline == "kept");
    CHECK(config.cpus == 1);
  }
}

TEST_CASE("flags: structured flags have the file's fields, with a bare first word and switches") {
  Config c;
  REQUIRE(ApplyFlag("memory", "256M,shared,hugepages=2M", c));
  CHECK(c.memory.size == 256 << 20);
  CHECK(c.memory.shared);
  CHECK(c.memory.hugepages == 2 << 20);
  REQUIRE(ApplyFlag("disk", "a,,b.img,readonly,queue-size=64", c));
  CHECK(c.disks[0].path == "a,b.img");
  CHECK(c.disks[0].readonly);
  CHECK(c.disks[0].queue_size == 64);
  REQUIRE(ApplyFlag("disk", "path=x,direct=off", c));
  CHECK_FALSE(c.disks[1].direct);
  REQUIRE(ApplyFlag("net", "tap=t0,offload=off", c));
  CHECK_FALSE(c.nets[0].offload);
  REQUIRE(ApplyFlag("console", "file=/tmp/log", c));
  CHECK(c.console.mode == ConsoleConfig::Mode::kFile);
  CHECK(c.console.path == "/tmp/log");
  REQUIRE(ApplyFlag("serial", "null", c));
  CHECK(c.serial.mode == ConsoleConfig::Mode::kNull);
  REQUIRE(ApplyFlag("io-threads", "2", c));
  CHECK(c.io_threads == 2);
  REQUIRE(ApplyFlag("rng", "off", c));
  CHECK_FALSE(c.rng);
}

TEST_CASE("flags: win over the file; an entry with a known id replaces it") {
  Config c;
  REQUIRE(ApplyJson(R"({"cpus": 2, "disks": [{"id": "root", "path": "a"}, {"path": "b"}]})",
                    "vm.json", c));
  REQUIRE(ApplyFlag("cpus", "8", c));
  CHECK(c.cpus == 8);
  REQUIRE(ApplyFlag("disk", "path=c,id=root", c));
  REQUIRE(c.disks.size() == 2);
  CHECK(c.disks[0].path == "c");
  REQUIRE(ApplyFlag("disk", "path=d", c));
  CHECK(c.disks.size() == 3);
}

TEST_CASE("flags: errors name the flag") {
  struct Case {
    const char* name;
    const char* value;
    const char* where;
  };
  const Case cases[] = {
      {"cpus", "x", "--cpus:"},
      {"cpus", "", "--cpus:"},
      {"cpus", "1 ", "--cpus:"},
      {"cpus", "99999999999999999999", "--cpus:"},
      {"memory", "", "--memory"},
      {"memory", "512M,size=1G", "--memory"},
      {"disk", "path=a,path=b", "--disk"},
      {"disk", "path=a,cach=x", "--disk.cach"},
      {"disk", "path=a,cache", "--disk"},
      {"vsock", "cid=3", "--vsock.socket"},
      {"transport", "usb", "--transport:"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.value);
    Config config;
    const Outcome<void> result = ApplyFlag(c.name, c.value, config);
    REQUIRE_FALSE(result);
    CAPTURE(result.error().cause);
    CHECK(result.error().cause.starts_with(c.where));
    CHECK(config.disks.empty());
  }
}

TEST_CASE("regression: a value that is no UTF-8 is shown, not thrown over") {
  Config config;
  for (const char* name : {"cpus", "transport", "memory", "console"}) {
    const Outcome<void> result = ApplyFlag(name, "\xff\xfe", config);
    REQUIRE_FALSE(result);
    CHECK_FALSE(result.error().cause.empty());
  }
}

TEST_CASE("file: missing, a directory, and too large are told apart") {
  Config config;
  CHECK(ApplyJsonFile("/nonexistent/vm.json", config).error().cause.find("No such file") !=
        std::string::npos);
  CHECK(ApplyJsonFile("/", config).error().cause.find("not a regular file") != std::string::npos);
  char path[] = "/tmp/postern_config_XXXXXX";
  const int fd = mkstemp(path);
  REQUIRE(fd >= 0);
  REQUIRE(ftruncate(fd, (1 << 20) + 1) == 0);
  CHECK(ApplyJsonFile(path, config).error().cause.find("larger than 1 MiB") != std::string::npos);
  REQUIRE(ftruncate(fd, 0) == 0);
  REQUIRE(pwrite(fd, "{\"cpus\": 3}", 11, 0) == 11);
  CHECK(ApplyJsonFile(path, config));
  CHECK(config.cpus == 3);
  close(fd);
  unlink(path);
}

TEST_CASE("device: its kind, then the words of that kind's flag") {
  const Outcome<DeviceConfig> disk = ParseDevice("disk,path=a.img,readonly,id=x,serial=S");
  REQUIRE(disk);
  CHECK(std::get<DiskConfig>(*disk).path == "a.img");
  CHECK(std::get<DiskConfig>(*disk).readonly);
  CHECK(std::get<DiskConfig>(*disk).id == "x");
  CHECK(std::get<DiskConfig>(*ParseDevice("disk,a.img")).path == "a.img");
  for (const char* spec : {"", "disk", "disk,", "toaster", "toaster,path=a", "disk,path=a,bogus=1",
                           "Disk,path=a", "disk,path=a,path=b", "\xff"}) {
    CAPTURE(spec);
    const Outcome<DeviceConfig> refused = ParseDevice(spec);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().kind == Failure::Kind::kConfig);
    CHECK_FALSE(refused.error().cause.empty());
  }
}

TEST_CASE("flag keys: name the fields of a structured flag") {
  CHECK(FlagKeys("vsock") == "cid, socket");
  CHECK(FlagKeys("disk").find("cache") != std::string::npos);
}

}  // namespace
}  // namespace postern::api
