// modules.alias and modules.builtin.modinfo of any content; patterns against fnmatch(3).

#include "vfio/driver_choice.h"

#include <fnmatch.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/check.h"

namespace postern::vfio {
namespace {

constexpr std::string_view kModalias = "pci:v000015B3d00001021sv000015B3sd00000001bc02sc00i00";

void CheckMatches(const std::vector<AliasMatch>& matches, bool built_in) {
  CHECK(matches.size() <= 64);
  for (const AliasMatch& match : matches) {
    CHECK(IsDriverName(match.module) && match.built_in == built_in);
    CHECK(match.alias.starts_with("vfio_pci:") && match.wildcards <= match.alias.size());
  }
}

// The C library's answer, where both mean the same: no brackets, no backslashes.
void Compare(std::string_view bytes) {
  constexpr std::string_view kPattern = "**?abv0";
  constexpr std::string_view kText = "abv0";
  std::string pattern;
  std::string text;
  const std::size_t half = std::min<std::size_t>(bytes.size() / 2, 12);
  for (std::size_t i = 0; i < half; ++i) {
    pattern += kPattern[static_cast<std::uint8_t>(bytes[i]) % kPattern.size()];
    text += kText[static_cast<std::uint8_t>(bytes[bytes.size() - 1 - i]) % kText.size()];
  }
  CHECK(MatchesAlias(pattern, text) == (fnmatch(pattern.c_str(), text.c_str(), 0) == 0));
}

}  // namespace
}  // namespace postern::vfio

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace postern::vfio;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 4) {
    case 0:
      CheckMatches(MatchModulesAlias(text, kModalias), false);
      CheckMatches(MatchBuiltinModinfo(text, kModalias), true);
      (void)MatchModulesAlias("alias vfio_pci:* x\n", text);
      break;
    case 1: {
      // Well-formed around something that is not.
      const std::size_t half = text.size() / 2;
      std::string line = "alias vfio_pci:";
      line.append(text.substr(0, half));
      line += " ";
      line.append(text.substr(half));
      CheckMatches(MatchModulesAlias(line, kModalias), false);
      break;
    }
    case 2:
      (void)MatchesAlias(text.substr(0, text.size() / 2), text.substr(text.size() / 2));
      break;
    default:
      Compare(text);
      break;
  }
  return 0;
}
