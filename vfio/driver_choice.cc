#include "vfio/driver_choice.h"

#include <sys/utsname.h>

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "vfio/host_pci.h"

namespace postern::vfio {
namespace {

constexpr std::string_view kPrefix = "vfio_pci:";
constexpr std::string_view kBusPrefix = "pci:";
constexpr std::size_t kMaxAlias = 1024;
constexpr std::size_t kMaxTable = std::size_t{64} << 20;
constexpr std::size_t kMaxMatches = 64;

// One element of a pattern: how many of its bytes it takes, and whether it accepts `c`.
struct Element {
  std::size_t size = 0;  // 0: malformed
  bool accepts = false;
};

Element Brackets(std::string_view pattern, char c) {
  std::size_t at = 1;
  const bool negated = at < pattern.size() && pattern[at] == '!';
  if (negated) ++at;
  bool found = false;
  for (bool first = true; at < pattern.size(); first = false) {
    if (pattern[at] == ']' && !first) return {at + 1, found != negated};
    char low = pattern[at++];
    if (low == '\\' && at < pattern.size()) low = pattern[at++];
    char high = low;
    if (at + 1 < pattern.size() && pattern[at] == '-' && pattern[at + 1] != ']') {
      high = pattern[at + 1];
      at += 2;
      if (high == '\\' && at < pattern.size()) high = pattern[at++];
    }
    found = found || (static_cast<unsigned char>(low) <= static_cast<unsigned char>(c) &&
                      static_cast<unsigned char>(c) <= static_cast<unsigned char>(high));
  }
  return {};
}

Element Next(std::string_view pattern, char c) {
  switch (pattern.front()) {
    case '?':
      return {1, true};
    case '[':
      return Brackets(pattern, c);
    case '\\':
      if (pattern.size() < 2) return {};
      return {2, pattern[1] == c};
    default:
      return {1, pattern.front() == c};
  }
}

// Wildcards of a well-formed alias; nullopt for one that is none.
std::optional<unsigned> CountWildcards(std::string_view pattern) {
  unsigned count = 0;
  while (!pattern.empty()) {
    if (pattern.front() == '*') {
      ++count;
      pattern.remove_prefix(1);
      continue;
    }
    const Element element = Next(pattern, 'x');
    if (element.size == 0) return std::nullopt;
    if (pattern.front() == '?' || pattern.front() == '[') ++count;
    pattern.remove_prefix(element.size);
  }
  return count;
}

void Consider(std::string_view alias, std::string_view module, bool built_in,
              std::string_view modalias, std::vector<AliasMatch>& matches) {
  if (!alias.starts_with(kPrefix) || alias.size() > kMaxAlias || !IsDriverName(module)) return;
  if (matches.size() == kMaxMatches) return;
  const std::string_view pattern = alias.substr(kPrefix.size());
  const std::optional<unsigned> wildcards = CountWildcards(pattern);
  if (!wildcards || !MatchesAlias(pattern, modalias.substr(kBusPrefix.size()))) return;
  matches.push_back({std::string(module), std::string(alias), *wildcards, built_in});
}

std::string ModulesFolder(const HostRoots& roots) {
  if (!roots.modules.empty()) return roots.modules;
  utsname kernel{};
  if (uname(&kernel) != 0) return {};
  return fmt::format("/lib/modules/{}", kernel.release);
}

std::string Underscored(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace

bool MatchesAlias(std::string_view pattern, std::string_view text) {
  std::size_t p = 0;
  std::size_t t = 0;
  // Where to go on if what follows the last '*' does not match: one more byte for the '*'. Earlier
  // ones need not be tried again.
  std::optional<std::pair<std::size_t, std::size_t>> retry;
  while (true) {
    if (p < pattern.size() && pattern[p] == '*') {
      retry = {++p, t};
      continue;
    }
    if (t == text.size() && p == pattern.size()) return true;
    if (t < text.size() && p < pattern.size()) {
      const Element element = Next(pattern.substr(p), text[t]);
      if (element.size == 0) return false;
      if (element.accepts) {
        p += element.size;
        ++t;
        continue;
      }
    }
    if (!retry || retry->second == text.size()) return false;
    p = retry->first;
    t = ++retry->second;
  }
}

std::vector<AliasMatch> MatchModulesAlias(std::string_view text, std::string_view modalias) {
  std::vector<AliasMatch> matches;
  if (!IsPciModalias(modalias)) return matches;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.starts_with("alias ")) continue;
    line.remove_prefix(6);
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) continue;
    Consider(line.substr(0, space), line.substr(space + 1), false, modalias, matches);
  }
  return matches;
}

std::vector<AliasMatch> MatchBuiltinModinfo(std::string_view text, std::string_view modalias) {
  constexpr std::string_view kKey = ".alias=";
  std::vector<AliasMatch> matches;
  if (!IsPciModalias(modalias)) return matches;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\0'), text.size());
    const std::string_view item = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t key = item.find(kKey);
    if (key == std::string_view::npos) continue;
    Consider(item.substr(key + kKey.size()), item.substr(0, key), true, modalias, matches);
  }
  return matches;
}

PciDriverName DriverOfModule(const std::string& module, const std::string& sysfs_root) {
  if (!IsDriverName(module)) return {};
  const std::string own = Underscored(module);
  constexpr std::string_view kPci = "pci:";
  for (const std::string& link : ListFolder(fmt::format("{}/module/{}/drivers", sysfs_root, own))) {
    const std::string name = link.starts_with(kPci) ? link.substr(kPci.size()) : std::string();
    if (IsDriverName(name)) return {name, true};
  }
  // A driver that is built in need not have a folder of its module.
  for (const std::string& name : ListFolder(sysfs_root + "/bus/pci/drivers")) {
    if (IsDriverName(name) && Underscored(name) == own) return {name, true};
  }
  return {own == "vfio_pci" ? "vfio-pci" : module, false};
}

DriverChoice ChooseDriver(std::string_view modalias, const HostRoots& roots) {
  const std::string folder = ModulesFolder(roots);
  std::vector<AliasMatch> matches;
  if (const auto text = ReadText(folder + "/modules.alias", kMaxTable))
    matches = MatchModulesAlias(*text, modalias);
  if (const auto text = ReadText(folder + "/modules.builtin.modinfo", kMaxTable)) {
    for (AliasMatch& match : MatchBuiltinModinfo(*text, modalias))
      matches.push_back(std::move(match));
  }
  std::stable_sort(matches.begin(), matches.end(), [](const AliasMatch& a, const AliasMatch& b) {
    return a.wildcards < b.wildcards;
  });
  DriverChoice choice;
  if (!matches.empty()) {
    choice.module = matches.front().module;
    choice.alias = matches.front().alias;
    choice.wildcards = matches.front().wildcards;
    choice.built_in = matches.front().built_in;
    choice.others.assign(matches.begin() + 1, matches.end());
  }
  PciDriverName driver = DriverOfModule(choice.module, roots.sysfs);
  choice.driver = std::move(driver.name);
  choice.confirmed = driver.present;
  return choice;
}

}  // namespace postern::vfio
