#include "src/machine/config.h"

#include <functional>
#include <string>

#include <doctest/doctest.h>

namespace postern {
namespace {

Config Good() {
  Config config;
  config.disks.push_back({.path = "a.img"});
  config.nets.push_back({.tap = "tap0"});
  return config;
}

TEST_CASE("validate: the defaults are a machine, and so is one with a disk and an interface") {
  CHECK(Validate(Config{}));
  CHECK(Validate(Good()));
}

TEST_CASE("validate: a vdev's back end and what goes with it") {
  const auto cause = [](const std::function<void(VdevConfig&)>& change) {
    Config config;
    config.vdevs.emplace_back();
    change(config.vdevs[0]);
    const Outcome<void> valid = Validate(config);
    return valid ? std::string() : valid.error().cause;
  };
  using Backend = VdevConfig::Backend;
  using Portal = VdevConfig::Portal;
  CHECK(cause([](VdevConfig&) {}).empty());
  CHECK(cause([](VdevConfig& v) {
          v.backend = Backend::kVfio;
          v.host = "0000:6a:01.0";
          v.portal = Portal::kDirect;
        }).empty());
  CHECK(cause([](VdevConfig& v) {
          v.backend = Backend::kVfio;
          v.socket = "/run/dsa.sock";
        }).empty());
  CHECK(cause([](VdevConfig& v) { v.host = "0000:6a:01.0"; }) ==
        "vdevs[0].host: only backend=vfio has a device of the host");
  CHECK(cause([](VdevConfig& v) { v.socket = "/run/dsa.sock"; }) ==
        "vdevs[0].socket: only backend=vfio has a device of the host");
  CHECK(cause([](VdevConfig& v) { v.backend = Backend::kVfio; }) ==
        "vdevs[0]: backend=vfio needs one of host and socket");
  CHECK(cause([](VdevConfig& v) {
          v.backend = Backend::kVfio;
          v.host = "0000:6a:01.0";
          v.socket = "/run/dsa.sock";
        }) == "vdevs[0]: backend=vfio needs one of host and socket");
  CHECK(cause([](VdevConfig& v) {
          v.backend = Backend::kVfio;
          v.host = "0000:6a:01.0";
          v.engines = 2;
        }) == "vdevs[0].engines: backend=vfio has those of the device");
  CHECK(cause([](VdevConfig& v) {
          v.backend = Backend::kVfio;
          v.host = "0000:6a:01.0";
          v.portal = Portal::kPolled;
        }) == "vdevs[0].portal: pages of a host's device are direct, not polled");
  const auto on_driver = [](VdevConfig& v) {
    v.backend = Backend::kCdev;
    v.path = "/dev/dsa/wq0.0";
  };
  CHECK(cause(on_driver).empty());
  CHECK(cause([&](VdevConfig& v) {
          on_driver(v);
          v.wqs = 1;
          v.portal = Portal::kTrapped;
        }).empty());
  CHECK(cause([](VdevConfig& v) { v.backend = Backend::kCdev; }) ==
        "vdevs[0]: backend=cdev needs path");
  CHECK(cause([](VdevConfig& v) { v.path = "/dev/dsa/wq0.0"; }) ==
        "vdevs[0].path: only backend=cdev has a queue of the host's driver");
  CHECK(cause([&](VdevConfig& v) {
          on_driver(v);
          v.host = "0000:6a:01.0";
        }) == "vdevs[0].host: only backend=vfio has a device of the host");
  CHECK(cause([&](VdevConfig& v) {
          on_driver(v);
          v.engines = 2;
        }) == "vdevs[0].engines: backend=cdev has those of the host's queue");
  CHECK(cause([&](VdevConfig& v) {
          on_driver(v);
          v.wqs = 2;
        }) == "vdevs[0].wqs: backend=cdev is one queue, not 2");
  for (const Portal portal : {Portal::kDirect, Portal::kPolled}) {
    CHECK(cause([&](VdevConfig& v) {
            on_driver(v);
            v.portal = portal;
          }) ==
          "vdevs[0].portal: backend=cdev checks each descriptor, so that its portals are trapped");
  }
  CHECK(cause([](VdevConfig& v) { v.portal = Portal::kDirect; }) ==
        "vdevs[0].portal: direct needs pages of a device, which the engine is not");
}

TEST_CASE("validate: each wrong field is named") {
  struct Case {
    std::string field;
    std::function<void(Config&)> spoil;
  };
  constexpr std::uint64_t kMiB = 1 << 20;
  const Case cases[] = {
      {"cpus", [](Config& c) { c.cpus = 0; }},
      {"cpus", [](Config& c) { c.cpus = 1025; }},
      {"cpus", [](Config& c) { c.cpus = 0xffffffff; }},
      {"memory.size", [](Config& c) { c.memory.size = 0; }},
      {"memory.size", [](Config& c) { c.memory.size = 4096; }},
      {"memory.size", [](Config& c) { c.memory.size = 512 * kMiB + 1; }},
      {"memory.size", [](Config& c) { c.memory.size = ~std::uint64_t{0}; }},
      {"memory.size", [](Config& c) { c.memory.size = ~std::uint64_t{4095}; }},
      {"memory.hugepages", [](Config& c) { c.memory.hugepages = 4096; }},
      {"memory.size",
       [](Config& c) {
         c.memory.hugepages = 1024 * kMiB;
         c.memory.size = 1536 * kMiB;
       }},
      {"memory.thp",
       [](Config& c) {
         c.memory.hugepages = 2 * kMiB;
         c.memory.thp = true;
       }},
      {"memory.mergeable",
       [](Config& c) {
         c.memory.shared = true;
         c.memory.mergeable = true;
       }},
      {"initrd", [](Config& c) { c.initrd = "initrd.img"; }},
      {"disks[0].path", [](Config& c) { c.disks[0].path.clear(); }},
      {"disks[0].serial", [](Config& c) { c.disks[0].serial = std::string(21, 'x'); }},
      {"disks[0].queue_size", [](Config& c) { c.disks[0].queue_size = 100; }},
      {"disks[0].id", [](Config& c) { c.disks[0].id = "a b"; }},
      {"disks[0].id", [](Config& c) { c.disks[0].id = std::string(65, 'a'); }},
      {"nets[0].id",
       [](Config& c) {
         c.disks[0].id = "x";
         c.nets[0].id = "x";
       }},
      {"nets[0]", [](Config& c) { c.nets[0].tap.clear(); }},
      {"nets[0]", [](Config& c) { c.nets[0].fd = 5; }},
      {"nets[0].mac", [](Config& c) { c.nets[0].mac = "hello"; }},
      {"nets[0].queue_pairs",
       [](Config& c) {
         c.nets[0] = {.fd = 5};
         c.nets[0].queue_pairs = 2;
       }},
      {"nets[0].queue_size", [](Config& c) { c.nets[0].queue_size = 3; }},
      {"serial", [](Config& c) { c.serial.mode = ConsoleConfig::Mode::kStdio; }},
  };
  for (const Case& c : cases) {
    CAPTURE(c.field);
    Config config = Good();
    c.spoil(config);
    const Outcome<void> result = Validate(config);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == Failure::Kind::kConfig);
    CHECK(result.error().cause.starts_with(c.field));
    CHECK_FALSE(result.error().next_step.empty());
  }
}

TEST_CASE("validate: a device to be added is checked as one from the start") {
  CHECK(Validate(DeviceConfig(DiskConfig{.id = "x", .path = "a.img"}), "disk"));
  for (const DiskConfig& disk :
       {DiskConfig{}, DiskConfig{.id = "a b", .path = "a"}, DiskConfig{.id = "\n", .path = "a"},
        DiskConfig{.path = "a", .serial = "123456789012345678901"},
        DiskConfig{.path = "a", .queue_size = 3}}) {
    const Outcome<void> refused = Validate(DeviceConfig(disk), "disk");
    REQUIRE_FALSE(refused);
    CHECK(refused.error().cause.starts_with("disk."));
    CHECK(refused.error().cause.find('\n') == std::string::npos);
  }
}

TEST_CASE("mac: only addresses that an interface can have") {
  CHECK(ParseMac("02:00:00:00:00:01") == std::array<std::uint8_t, 6>{2, 0, 0, 0, 0, 1});
  CHECK(ParseMac("FE:dc:BA:98:76:54") ==
        std::array<std::uint8_t, 6>{0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54});
  for (const char* text :
       {"", "02:00:00:00:00", "02:00:00:00:00:0", "02:00:00:00:00:001", "02-00-00-00-00-01",
        "0g:00:00:00:00:01", "01:00:00:00:00:01", "00:00:00:00:00:00", " 2:00:00:00:00:01"}) {
    CAPTURE(std::string(text));
    CHECK_FALSE(ParseMac(text).has_value());
  }
}

TEST_CASE("validate: as many devices as the transport has room for, and not one more") {
  Config config;  // with a console and an entropy device
  for (int i = 0; i < 29; ++i) config.disks.push_back({.path = "a.img"});
  CHECK(Validate(config));
  config.disks.push_back({.path = "a.img"});
  CHECK_FALSE(Validate(config));

  config.disks.resize(20);
  config.hotplug_ports = 9;
  CHECK(Validate(config));
  config.hotplug_ports = 10;
  REQUIRE_FALSE(Validate(config));
  CHECK(Validate(config).error().cause.starts_with("hotplug_ports"));
  CHECK(Validate(config).error().next_step == "use at most 9");

  config.transport = Transport::kMmio;
  config.disks.resize(14);
  REQUIRE_FALSE(Validate(config));
  CHECK(Validate(config).error().cause.starts_with("hotplug_ports"));
  config.hotplug_ports = 0;
  CHECK(Validate(config));
  config.disks.push_back({.path = "a.img"});
  CHECK_FALSE(Validate(config));
}

}  // namespace
TEST_CASE("validate: an assigned device is named once, and fits the machine") {
  Config config;
  config.devices = {{.host = "0000:00:03.0"}, {.socket = "/run/d"}, {.fd = 3}};
  CHECK(Validate(config));
  SUBCASE("by nothing") {
    config.devices[0].host.clear();
    CHECK(Validate(config).error().cause ==
          "devices[0]: needs one of host, path, fd and socket, and has 0");
  }
  SUBCASE("by two") {
    config.devices[1].path = "/sys/x";
    CHECK(Validate(config).error().cause ==
          "devices[1]: needs one of host, path, fd and socket, and has 2");
  }
  SUBCASE("twice") {
    config.devices[2] = {.host = "0000:00:03.0"};
    CHECK(Validate(config).error().cause == "devices[2]: 0000:00:03.0 is given twice");
  }
  SUBCASE("vfio-user with iommufd") {
    config.devices[1].iommufd = AssignedConfig::Iommufd::kOn;
    CHECK_FALSE(Validate(config));
  }
  SUBCASE("without PCI") {
    config.transport = Transport::kMmio;
    CHECK_FALSE(Validate(config));
  }
  SUBCASE("with pages that are merged") {
    config.memory.mergeable = true;
    CHECK_FALSE(Validate(config));
  }
  SUBCASE("an id that is taken") {
    config.disks = {{.id = "d", .path = "disk.img"}};
    config.devices[0].id = "d";
    CHECK(Validate(config).error().cause == "devices[0].id: 'd' is taken");
  }
  SUBCASE("too many") {
    config.devices.clear();
    for (int i = 0; i < 30; ++i) config.devices.push_back({.fd = i});
    CHECK_FALSE(Validate(config));
  }
}

}  // namespace postern
