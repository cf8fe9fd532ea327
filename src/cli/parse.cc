#include "src/cli/parse.h"

#include <getopt.h>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace postern::cli {
namespace {

// What getopt_long answers for the first row of a table: above every character and its own codes.
constexpr int kFirstOption = 0x100;

// Levenshtein distance, to suggest the flag that was meant.
std::size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

std::string Suggestion(std::span<const Option> options, std::string_view verb,
                       std::string_view wrong) {
  const Option* best = nullptr;
  std::size_t best_distance = std::min<std::size_t>(4, wrong.size() / 2 + 1);
  for (const Option& option : options) {
    if (const std::size_t d = Distance(option.name, wrong); d < best_distance) {
      best = &option;
      best_distance = d;
    }
  }
  if (best != nullptr) return fmt::format("did you mean --{}?", best->name);
  return fmt::format("postern {} --help lists the flags", verb);
}

}  // namespace

Outcome<std::vector<Given>> ParseOptions(std::span<const Option> options, std::string_view verb,
                                         const std::vector<std::string>& arguments,
                                         std::vector<std::string>* positional) {
  std::vector<std::string> names;
  names.reserve(options.size());
  for (const Option& o : options) names.emplace_back(o.name);
  std::vector<option> longs;
  for (std::size_t i = 0; i < options.size(); ++i) {
    longs.push_back({names[i].c_str(),
                     options[i].argument.empty() ? no_argument : required_argument, nullptr,
                     kFirstOption + static_cast<int>(i)});
  }
  longs.push_back({});
  // getopt wants a program name first and a null last, and mutable strings.
  std::vector<std::string> copies = arguments;
  copies.insert(copies.begin(), "postern");
  std::vector<char*> argv;
  argv.reserve(copies.size() + 1);
  for (std::string& copy : copies) argv.push_back(copy.data());
  argv.push_back(nullptr);

  std::vector<Given> given;
  optind = 0;
  opterr = 0;
  while (true) {
    const int at = optind == 0 ? 1 : optind;
    // getopt's state is static: the main thread alone parses. '+': the first word that is no flag
    // ends them; '-': it is answered as code 1. ':' for a missing argument. -h is the one short
    // flag.
    const int got =  // NOLINTNEXTLINE(concurrency-mt-unsafe)
        getopt_long(static_cast<int>(argv.size()) - 1, argv.data(),
                    positional != nullptr ? "-:h" : "+:h", longs.data(), nullptr);
    if (got == -1) break;
    if (got == 1 && positional != nullptr) {
      positional->emplace_back(optarg);
      continue;
    }
    const std::string_view word = arguments[static_cast<std::size_t>(
        std::min(at - 1, static_cast<int>(arguments.size()) - 1))];
    if (got == ':') {
      return ConfigFailure(fmt::format("{} needs a value", word),
                           fmt::format("postern {} --help shows what it takes", verb));
    }
    if (got == '?') {
      std::string_view name = word.substr(0, word.find('='));
      while (name.starts_with('-')) name.remove_prefix(1);
      const bool is_switch = std::any_of(options.begin(), options.end(), [&](const Option& o) {
        return o.name == name && o.argument.empty();
      });
      if (is_switch) return ConfigFailure(fmt::format("--{} takes no value", name), "leave it out");
      return ConfigFailure(fmt::format("unknown flag '{}'", word), Suggestion(options, verb, name));
    }
    const auto index = got == 'h'
                           ? static_cast<std::size_t>(
                                 std::find(names.begin(), names.end(), "help") - names.begin())
                           : static_cast<std::size_t>(got - kFirstOption);
    const Option& option = options[index];
    const bool twice = std::any_of(given.begin(), given.end(),
                                   [&](const Given& g) { return g.option == &option; });
    if (twice && !option.repeatable)
      return ConfigFailure(fmt::format("--{} is given twice", option.name), "give it once");
    given.push_back({&option, optarg != nullptr && got != 'h' ? optarg : ""});
  }
  for (; positional != nullptr && optind < static_cast<int>(argv.size()) - 1; ++optind)
    positional->emplace_back(argv[static_cast<std::size_t>(optind)]);  // after "--"
  if (optind < static_cast<int>(argv.size()) - 1) {
    return ConfigFailure(
        fmt::format("unexpected argument '{}'", argv[static_cast<std::size_t>(optind)]),
        "every setting is a flag; a value follows its flag");
  }
  return given;
}

Outcome<LogLevel> ParseLevel(const std::string& text) {
  constexpr std::pair<const char*, LogLevel> kLevels[] = {
      {"trace", LogLevel::kTrace}, {"debug", LogLevel::kDebug}, {"info", LogLevel::kInfo},
      {"warn", LogLevel::kWarn},   {"error", LogLevel::kError}, {"off", LogLevel::kOff}};
  for (const auto& [name, level] : kLevels) {
    if (text == name) return level;
  }
  return ConfigFailure(fmt::format("--log-level: '{}' is no level", text),
                       "use trace, debug, info, warn, error or off");
}

std::string FormatOptions(std::span<const Option> options) {
  std::string text;
  for (const Option& option : options) {
    text += fmt::format("  --{}{}{}\n", option.name, option.argument.empty() ? "" : " ",
                        option.argument);
    std::string_view help = option.help;
    while (!help.empty()) {
      const std::size_t end = std::min(help.find('\n'), help.size());
      text += fmt::format("        {}\n", help.substr(0, end));
      help.remove_prefix(std::min(end + 1, help.size()));
    }
  }
  return text;
}

}  // namespace postern::cli
