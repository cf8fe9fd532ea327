#include "devices/siov/cdev/idxd_queue.h"

#include <cerrno>
#include <string>

#include "tests/support/fake_sysfs.h"

#include <doctest/doctest.h>

namespace postern::dsa {
namespace {

struct Host {
  Host() {
    Put("type", "user\n");
    Put("mode", "dedicated\n");
    Put("size", "16\n");
    Put("max_transfer_size", "2097152\n");
    Put("state", "enabled\n");
    Put("op_config", "00000000,00000000,00000000,00000000,00000000,00000000,00000001,003f03ff\n");
    host.Put(host.roots().sysfs + "/bus/dsa/devices/dsa0/state", "enabled\n");
    host.Put(Path(), "");
  }
  [[nodiscard]] std::string Path() const { return host.roots().dev + "/dsa/wq0.1"; }
  void Put(const std::string& name, const std::string& text) {
    host.Put(host.roots().sysfs + "/bus/dsa/devices/wq0.1/" + name, text);
  }
  // "cause: next step", or "".
  [[nodiscard]] std::string Open(const std::string& path) const {
    const auto queue = OpenIdxdQueue(path, host.roots());
    return queue ? "" : queue.error().cause + ": " + queue.error().next_step;
  }
  testing::FakeSysfs host;
};

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("idxd queue: what a queue is, its attributes say") {
  Host host;
  const auto queue = OpenIdxdQueue(host.Path(), host.host.roots());
  REQUIRE(queue.has_value());
  const IdxdQueueInfo& info = (*queue)->info();
  CHECK(info.name == "wq0.1");
  CHECK_FALSE(info.shared);
  CHECK(info.size == 16);
  CHECK(info.max_transfer == 2097152);
  CHECK(info.operations == siov::OperationSet{0x1003f03ff, 0, 0, 0});
  CHECK((*queue)->Alive());
  host.Put("state", "disabled\n");
  CHECK_FALSE((*queue)->Alive());
  host.Put("state", "enabled\n");
  // A file takes what a queue would.
  CHECK((*queue)->Write({}) == 0);
  (*queue)->Close();
  CHECK_FALSE((*queue)->Alive());
  CHECK((*queue)->Write({}) == EBADF);
  host.Put("mode", "shared\n");
  CHECK((*OpenIdxdQueue(host.Path(), host.host.roots()))->info().shared);
}

TEST_CASE("idxd queue: what stands in the way is named, with what to do about it") {
  Host host;
  CHECK(host.Open(host.Path()) == "");
  for (const char* path : {"", "wq0.1", "/dev/null", "/dev/dsa/wq", "/dev/dsa/wq1", "/dev/dsa/wq1.",
                           "/dev/dsa/wq.1", "/dev/dsa/wq0.1x", "/dev/dsa/wq0.9999999999"}) {
    CAPTURE(path);
    CHECK(Has(host.Open(path), "is no work queue: give path=/dev/dsa/wqX.Y"));
  }
  CHECK(Has(host.Open("/dev/dsa/wq7.1"), "no work queue wq7.1: load the driver"));
  host.Put("state", "disabled\n");
  CHECK(Has(host.Open(host.Path()), "accel-config enable-wq dsa0/wq0.1"));
  host.Put("type", "kernel\x1b\n");
  CHECK(Has(host.Open(host.Path()), "type 'kernel\\x1b', not 'user'"));
  CHECK(Has(host.Open(host.Path()), "accel-config config-wq dsa0/wq0.1 --type=user"));
  host.Put("type", "user\n");
  host.Put("state", "enabled\n");
  host.host.Remove(host.Path());
  CHECK(Has(host.Open(host.Path()), "wq0.1: open: No such file"));
}

TEST_CASE("idxd queue: attributes that make no sense are refused") {
  for (const char* size : {"", "0", "65536", "-1", "x", "99999999999999999999"}) {
    Host host;
    host.Put("size", std::string(size) + "\n");
    CHECK(Has(host.Open(host.Path()), "attribute size"));
  }
  Host host;
  host.Put("mode", "both\n");
  CHECK(Has(host.Open(host.Path()), "attribute mode"));
  host.Put("mode", "shared\n");
  host.Put("max_transfer_size", "0\n");
  CHECK(Has(host.Open(host.Path()), "attribute max_transfer_size"));
  host.Put("max_transfer_size", "1\n");
  host.Put("op_config", "1,,1\n");
  CHECK(Has(host.Open(host.Path()), "attribute op_config"));
  host.Put("op_config", "\n");
  CHECK(Has(host.Open(host.Path()), "attribute op_cap"));
  host.host.Put(host.host.roots().sysfs + "/bus/dsa/devices/dsa0/op_cap", "00000001,003f03ff\n");
  CHECK(host.Open(host.Path()) == "");
  host.host.Remove(host.host.roots().sysfs + "/bus/dsa/devices/dsa0");
  CHECK(Has(host.Open(host.Path()), "not a queue of a DSA"));
}

TEST_CASE("idxd queue: operations are 32 bits each, the highest first") {
  siov::OperationSet set{};
  CHECK(ParseOperations("5", set));
  CHECK(set == siov::OperationSet{5, 0, 0, 0});
  CHECK(ParseOperations("1,00000002,00000003", set));
  CHECK(set == siov::OperationSet{0x200000003, 1, 0, 0});
  for (const char* text : {"", ",", "1,", ",1", "123456789", "g", "1,2,3,4,5,6,7,8,9"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseOperations(text, set));
  }
}

}  // namespace postern::dsa
