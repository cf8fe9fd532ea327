#include "vfio/driver_choice.h"

#include <string>

#include "tests/support/fake_sysfs.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

using testing::FakeSysfs;

constexpr std::string_view kMlx5 = "pci:v000015B3d00001021sv000015B3sd00000001bc02sc00i00";

TEST_CASE("alias: shell patterns match as modprobe's do") {
  struct Row {
    const char* pattern;
    const char* text;
    bool matches;
  };
  const Row rows[] = {
      {"", "", true},
      {"", "a", false},
      {"*", "", true},
      {"*", "abc", true},
      {"a*", "abc", true},
      {"*c", "abc", true},
      {"a*c", "abdc", true},
      {"a*c", "abcd", false},
      {"v*d*", "v1d2d3", true},
      {"*d3", "v1d2d3", true},
      {"**a**", "bab", true},
      {"a?c", "abc", true},
      {"a?c", "ac", false},
      {"[0-9]", "5", true},
      {"[0-9]", "a", false},
      {"[!0-9]", "a", true},
      {"[]a]", "]", true},
      {"[a-]", "-", true},
      {"a[bc]*", "acxyz", true},
      {"[a", "a", false},
      {"[", "[", false},
      {"*[", "a[", false},
      {"\\*", "*", true},
      {"\\*", "a", false},
      {"\\", "\\", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    CAPTURE(row.text);
    CHECK(MatchesAlias(row.pattern, row.text) == row.matches);
  }
}

TEST_CASE("alias: a pattern made to be slow is not") {
  std::string pattern;
  for (int i = 0; i < 500; ++i) pattern += "*a";
  CHECK_FALSE(MatchesAlias(pattern + "b", std::string(256, 'a')));
}

TEST_CASE("modules.alias: vfio_pci aliases that match, others not") {
  const std::vector<AliasMatch> matches = MatchModulesAlias(
      "# comment\n"
      "alias pci:v000015B3d00001021sv*sd*bc*sc*i* mlx5_core\n"
      "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* other_vfio_pci\n"
      "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
      "alias vfio_pci:v000015B3d00001021sv*sd*bc*sc*i* mlx5_vfio_pci",
      kMlx5);
  REQUIRE(matches.size() == 2);
  CHECK(matches[0].module == "vfio_pci");
  CHECK(matches[0].wildcards == 7);
  CHECK(matches[1].module == "mlx5_vfio_pci");
  CHECK(matches[1].wildcards == 5);
}

TEST_CASE("modules.alias: hostile lines are skipped") {
  const std::string text = std::string("alias vfio_pci:* ../../evil\n") +
                           "alias vfio_pci:* -rf\n"
                           "alias vfio_pci:* a b\n"
                           "alias vfio_pci:*\n"
                           "alias vfio_pci:* \n"
                           "alias  vfio_pci:* twospaces\n"
                           "alias vfio_pci:[ brackets\n"
                           "alias vfio_pci:" +
                           std::string(5000, '*') + " long\n" + std::string("\0alias\0", 7) +
                           "\nalias vfio_pci:* " + std::string(100, 'm') + "\n";
  CHECK(MatchModulesAlias(text, kMlx5).empty());
  CHECK(MatchModulesAlias("alias vfio_pci:* vfio_pci\n", "usb:v1").empty());
  CHECK(MatchModulesAlias("alias vfio_pci:* vfio_pci\n", "").empty());
  CHECK(MatchModulesAlias("alias vfio_pci:* vfio_pci\n", "pci:").empty());
}

TEST_CASE("choice: the most specific of the alias files, wherever it is") {
  FakeSysfs host;
  DriverChoice choice = ChooseDriver(kMlx5, host.roots());
  CHECK(choice.module == "vfio_pci");
  CHECK(choice.driver == "vfio-pci");
  CHECK_FALSE(choice.confirmed);
  CHECK(choice.wildcards == 7);

  host.Put(host.roots().modules + "/modules.builtin.modinfo",
           std::string("vfio_pci.alias=vfio_pci:v*d*sv*sd*bc*sc*i*") + '\0' +
               "mlx5_vfio_pci.alias=vfio_pci:v000015B3d00001021sv*sd*bc*sc*i*" + '\0' +
               "mlx5_vfio_pci.license=GPL" + '\0');
  choice = ChooseDriver(kMlx5, host.roots());
  CHECK(choice.module == "mlx5_vfio_pci");
  CHECK(choice.built_in);
  CHECK(choice.wildcards == 5);
  REQUIRE(choice.others.size() == 2);
  CHECK(choice.others[0].module == "vfio_pci");

  host.Put(host.roots().modules + "/modules.alias",
           "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
           "alias vfio_pci:v000015B3d00001021sv000015B3sd*bc*sc*i* special_vfio\n");
  choice = ChooseDriver(kMlx5, host.roots());
  CHECK(choice.module == "special_vfio");
  CHECK_FALSE(choice.built_in);
}

TEST_CASE("choice: the generic driver where nothing matches or nothing can be read") {
  FakeSysfs host;
  host.Remove(host.roots().modules);
  for (const std::string_view modalias : {kMlx5, std::string_view("")}) {
    const DriverChoice choice = ChooseDriver(modalias, host.roots());
    CHECK(choice.driver == "vfio-pci");
    CHECK(choice.alias.empty());
  }
}

TEST_CASE("choice: the driver's name is what the kernel calls it once it is there") {
  FakeSysfs host;
  CHECK(DriverOfModule("hisi_acc_vfio_pci", host.roots().sysfs).name == "hisi_acc_vfio_pci");
  CHECK_FALSE(DriverOfModule("hisi_acc_vfio_pci", host.roots().sysfs).present);
  SUBCASE("of a module") {
    host.AddDriver("other-name-vfio", "hisi_acc_vfio_pci");
    const PciDriverName driver = DriverOfModule("hisi-acc-vfio-pci", host.roots().sysfs);
    CHECK(driver.name == "other-name-vfio");
    CHECK(driver.present);
  }
  SUBCASE("built in") {
    host.AddDriver("hisi-acc-vfio-pci", {}, true);
    const PciDriverName driver = DriverOfModule("hisi_acc_vfio_pci", host.roots().sysfs);
    CHECK(driver.name == "hisi-acc-vfio-pci");
    CHECK(driver.present);
  }
  CHECK(DriverOfModule("../x", host.roots().sysfs).name.empty());
}

}  // namespace
}  // namespace postern::vfio
