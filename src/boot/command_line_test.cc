#include "src/boot/command_line.h"

#include <string>

#include <doctest/doctest.h>

namespace postern::boot {
namespace {

std::string Join(const std::string& user, std::initializer_list<const char*> generated) {
  CommandLine line(user);
  for (const char* part : generated) line.Add(part);
  return line.Build(2047).value();
}

TEST_CASE("command line: generated parts follow the user's, before what belongs to init") {
  CHECK(Join("", {}).empty());
  CHECK(Join("quiet", {}) == "quiet");
  CHECK(Join("", {"console=hvc0"}) == "console=hvc0");
  CHECK(Join("quiet", {"a=1", "b=2"}) == "quiet a=1 b=2");
  CHECK(Join("  quiet\t ", {" a ", ""}) == "quiet a");
  CHECK(Join("ro -- single", {"a"}) == "ro a -- single");
  CHECK(Join("-- single", {"a"}) == "a -- single");
  CHECK(Join("ro --", {"a"}) == "ro a --");
  CHECK(Join("x--y --z", {"a"}) == "x--y --z a");
  CHECK(Join("p=\"1 -- 2\" ro", {"a"}) == "p=\"1 -- 2\" ro a");
  CHECK(Join("ro -- a -- b", {"c"}) == "ro c -- a -- b");
}

TEST_CASE("command line: knows which parameters the user set") {
  const CommandLine line("console=ttyS0 quiet root=\"/dev/x console=y\" -- init=z");
  CHECK(line.UserSets("console"));
  CHECK(line.UserSets("quiet"));
  CHECK(line.UserSets("root"));
  CHECK_FALSE(line.UserSets("init"));
  CHECK_FALSE(line.UserSets("consol"));
  CHECK_FALSE(line.UserSets("qui"));
  CHECK_FALSE(CommandLine("").UserSets("quiet"));
}

TEST_CASE("command line: the limit is exact and says by how much it is exceeded") {
  CommandLine line(std::string(10, 'x'));
  CHECK(line.Build(10).value().size() == 10);
  const auto refused = line.Build(9);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind == Failure::Kind::kConfig);
  CHECK(refused.error().cause.find("has 10 bytes; this kernel takes 9") != std::string::npos);
  CHECK(refused.error().next_step.find("by 1 bytes") != std::string::npos);
}

TEST_CASE("command line: bytes that would end or forge a line are refused") {
  for (const char bad : {'\0', '\n', '\r'}) {
    CHECK_FALSE(CommandLine(std::string("a") + bad + "b").Build(100));
  }
  CHECK(CommandLine("name=\xc3\xa4\t1").Build(100));
}

}  // namespace
}  // namespace postern::boot
