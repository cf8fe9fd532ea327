#include "src/cli/options.h"

#include <set>

#include "src/api/config_json.h"
#include "src/cli/completion.h"
#include "src/cli/parse.h"

#include <doctest/doctest.h>

namespace postern::cli {
namespace {

Outcome<std::vector<Given>> Parse(const std::vector<std::string>& arguments) {
  return ParseOptions(RunOptions(), "run", arguments);
}

TEST_CASE("parse: values by space or equals sign, in order, lists repeated") {
  const auto given = Parse({"--cpus", "2", "--disk=path=a", "--disk", "path=b", "--dry-run"});
  REQUIRE(given);
  REQUIRE(given->size() == 4);
  CHECK((*given)[0].option->name == "cpus");
  CHECK((*given)[0].value == "2");
  CHECK((*given)[1].value == "path=a");
  CHECK((*given)[2].value == "path=b");
  CHECK((*given)[3].option->name == "dry-run");
  CHECK(Parse({}));
  CHECK((*Parse({"-h"}))[0].option->name == "help");
}

TEST_CASE("parse: wrong flags are named, with a suggestion") {
  struct Case {
    std::vector<std::string> arguments;
    const char* cause;
    const char* next;
  };
  const Case cases[] = {
      {{"--kernle", "x"}, "unknown flag '--kernle'", "--kernel"},
      {{"--frobnicate"}, "unknown flag '--frobnicate'", "--help"},
      {{"-z"}, "unknown flag '-z'", "--help"},
      {{"--kernel"}, "--kernel needs a value", "--help"},
      {{"--dry-run=yes"}, "--dry-run takes no value", ""},
      {{"--cpus", "1", "--cpus", "2"}, "--cpus is given twice", ""},
      {{"vmlinuz"}, "unexpected argument 'vmlinuz'", ""},
      {{"--cpus", "1", "more"}, "unexpected argument 'more'", ""},
  };
  for (const Case& c : cases) {
    CAPTURE(c.cause);
    const auto given = Parse(c.arguments);
    REQUIRE_FALSE(given);
    CHECK(given.error().kind == Failure::Kind::kConfig);
    CHECK(given.error().cause == c.cause);
    CHECK(given.error().next_step.find(c.next) != std::string::npos);
  }
}

TEST_CASE(
    "options: every configuration flag is a field the reader knows, and help shows every flag") {
  const std::string help = FormatOptions(RunOptions());
  for (const Option& option : RunOptions()) {
    CAPTURE(option.name);
    CHECK(help.find("--" + std::string(option.name)) != std::string::npos);
    if (!option.config) continue;
    Config config;
    const Outcome<void> result = api::ApplyFlag(option.name, "?!", config);
    if (!result) CHECK(result.error().cause.find("no such field") == std::string::npos);
  }
}

TEST_CASE("parse: verbs that take devices get them in order, wherever flags stand") {
  std::vector<std::string> devices;
  const auto parse = [&](const std::vector<std::string>& arguments) {
    devices.clear();
    return ParseOptions(BindOptions(), "bind", arguments, &devices);
  };
  auto given = parse({"3b:00.0", "--force", "0000:3c:00.0", "--driver=vfio-pci", "--dry-run"});
  REQUIRE(given);
  CHECK(devices == std::vector<std::string>{"3b:00.0", "0000:3c:00.0"});
  REQUIRE(given->size() == 3);
  CHECK((*given)[0].option->name == "force");
  CHECK((*given)[1].value == "vfio-pci");
  given = parse({"a", "--", "--force", "b"});
  REQUIRE(given);
  CHECK(given->empty());
  CHECK(devices == std::vector<std::string>{"a", "--force", "b"});
  REQUIRE(parse({"-h", "a"}));
  CHECK(devices == std::vector<std::string>{"a"});
  CHECK(parse({"a", "--frce"}).error().next_step == "did you mean --force?");
  CHECK(parse({"a", "--driver"}).error().cause == "--driver needs a value");
  CHECK(ParseOptions(UnbindOptions(), "unbind", {"a", "--force"}, &devices).error().cause ==
        "unknown flag '--force'");
}

TEST_CASE("parse: doctor takes several devices, and only behind their flag") {
  const auto given = ParseOptions(DoctorOptions(), "doctor",
                                  {"--device", "3b:00.0", "--json", "--device=3c:00.0"});
  REQUIRE(given);
  REQUIRE(given->size() == 3);
  CHECK((*given)[0].value == "3b:00.0");
  CHECK((*given)[2].value == "3c:00.0");
  CHECK_FALSE(ParseOptions(DoctorOptions(), "doctor", {"3b:00.0"}));
}

TEST_CASE("completion: each shell's script names every flag; other shells are refused") {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome<std::string> script = CompletionScript(shell);
    REQUIRE(script);
    for (const std::span<const Option> table :
         {RunOptions(), VdevServeOptions(), DoctorOptions(), BindOptions(), UnbindOptions()}) {
      for (const Option& option : table)
        CHECK(script->find(std::string(option.name)) != std::string::npos);
    }
    for (const char* verb : {"run", "vdev", "serve", "doctor", "bind", "unbind", "completion"})
      CHECK(script->find(verb) != std::string::npos);
    CHECK(script->find("/sys/bus/pci/devices") != std::string::npos);
  }
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome<std::string> script = CompletionScript(shell);
    REQUIRE(script);
    CHECK(script->find(std::string(CtlCommands())) != std::string::npos);
    for (const Option& option : CtlOptions())
      CHECK(script->find(std::string(option.name)) != std::string::npos);
  }
  CHECK_FALSE(CompletionScript("tcsh"));
}

}  // namespace
}  // namespace postern::cli
