#include "src/api/fields.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "src/base/units.h"

namespace postern::api {
namespace {

std::string Shown(const Fields::Json& value) {
  std::string text = value.dump(-1, ' ', false, Fields::Json::error_handler_t::replace);
  constexpr std::size_t kLongest = 60;
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  return text;
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::optional<std::uint64_t> ToNumber(const Fields::Json& value) {
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (!value.is_string()) return std::nullopt;
  const std::string& text = value.get_ref<const std::string&>();
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return number;
}

}  // namespace

Fields::Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object()) {
    failure_ = Failure{Failure::Kind::kConfig,
                       fmt::format("{}: expected an object, not {}",
                                   path_.empty() ? "configuration" : path_, Shown(object)),
                       "write it as {\"key\": value, ...}"};
  }
}

void Fields::Fail(const char* name, const std::string& what, const std::string& next_step) {
  if (failure_.has_value()) return;
  const std::string where = path_.empty() ? name : path_ + "." + name;
  failure_ = Failure{Failure::Kind::kConfig, where + ": " + what, next_step};
}

const Fields::Json* Fields::Find(const char* name) {
  known_.emplace_back(name);
  if (failure_.has_value()) return nullptr;
  const auto found = object_.find(name);
  return found == object_.end() ? nullptr : &*found;
}

Fields& Fields::Text(const char* name, std::string& out) {
  const Json* value = Find(name);
  if (value == nullptr) return *this;
  if (!value->is_string()) {
    Fail(name, fmt::format("expected a string, not {}", Shown(*value)), "put it in quotes");
  } else if (value->get_ref<const std::string&>().find('\0') != std::string::npos) {
    Fail(name, "contains a NUL byte", "remove it");
  } else {
    out = value->get<std::string>();
  }
  return *this;
}

Fields& Fields::Flag(const char* name, std::optional<bool>& out) {
  bool value = false;
  Flag(name, value);
  if (!failure_.has_value() && object_.contains(name)) out = value;
  return *this;
}

Fields& Fields::Flag(const char* name, bool& out) {
  const Json* value = Find(name);
  if (value == nullptr) return *this;
  if (value->is_boolean()) {
    out = value->get<bool>();
    return *this;
  }
  const std::string text = value->is_string() ? value->get<std::string>() : "";
  if (text == "on" || text == "true" || text == "yes") {
    out = true;
  } else if (text == "off" || text == "false" || text == "no") {
    out = false;
  } else {
    Fail(name, fmt::format("expected true or false, not {}", Shown(*value)),
         "use on, off, true or false");
  }
  return *this;
}

Fields& Fields::Number(const char* name, std::uint64_t low, std::uint64_t high,
                       const std::function<void(std::uint64_t)>& set) {
  const Json* value = Find(name);
  if (value == nullptr) return *this;
  const std::optional<std::uint64_t> number = ToNumber(*value);
  if (!number.has_value() || *number < low || *number > high) {
    Fail(name, fmt::format("{} is not a whole number from {} to {}", Shown(*value), low, high),
         fmt::format("give a number from {} to {}", low, high));
    return *this;
  }
  set(*number);
  return *this;
}

Fields& Fields::Size(const char* name, std::uint64_t& out, bool zero_allowed) {
  const Json* value = Find(name);
  if (value == nullptr) return *this;
  std::uint64_t size = 0;
  bool good = false;
  if (value->is_number_unsigned()) {
    size = value->get<std::uint64_t>();
    good = true;
  } else if (value->is_string()) {
    const Result<std::uint64_t> parsed = ParseSize(value->get_ref<const std::string&>());
    good = parsed.has_value();
    size = parsed.value_or(0);
  }
  if (!good || (size == 0 && !zero_allowed)) {
    Fail(name, fmt::format("{} is not a size", Shown(*value)),
         "give bytes, or a number with K, M, G or T, such as 512M");
    return *this;
  }
  out = size;
  return *this;
}

std::optional<std::size_t> Fields::ChoiceIndex(const char* name,
                                               const std::vector<const char*>& names) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const std::string text = value->is_string() ? value->get<std::string>() : "";
  const auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end()) {
    const std::string list = Join({names.begin(), names.end()});
    Fail(name, fmt::format("{} is none of: {}", Shown(*value), list), "choose one of: " + list);
    return std::nullopt;
  }
  return static_cast<std::size_t>(found - names.begin());
}

Fields& Fields::Member(const char* name,
                       const std::function<Outcome<void>(const Json&, const std::string&)>& read) {
  const Json* value = Find(name);
  if (value == nullptr) return *this;
  const std::string where = path_.empty() ? name : path_ + "." + name;
  if (Outcome<void> result = read(*value, where); !result) failure_ = result.error();
  return *this;
}

Outcome<void> Fields::Finish() {
  if (failure_.has_value()) return tl::unexpected(*failure_);
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    return ConfigFailure(fmt::format("{}{}: no such field", path_.empty() ? "" : path_ + ".", key),
                         "known here: " + Join(known_));
  }
  return {};
}

}  // namespace postern::api
