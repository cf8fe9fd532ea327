#pragma once

// Fields: reads the members of one JSON object into typed variables, keeping count of which were
// known. Values may be JSON's own types or the strings a command-line flag gives ("true", "512M",
// "3"). Internal to src/api.

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "src/base/failure.h"

namespace postern::api {

class Fields {
 public:
  using Json = nlohmann::json;

  // `path` is empty for the document itself. Remembers the first error and then does nothing more.
  Fields(const Json& object, std::string path);

  Fields& Text(const char* name, std::string& out);
  Fields& Flag(const char* name, bool& out);
  Fields& Flag(const char* name, std::optional<bool>& out);
  // An integer in [low, high].
  Fields& Number(const char* name, std::uint64_t low, std::uint64_t high,
                 const std::function<void(std::uint64_t)>& set);
  template <typename U>
  Fields& Number(const char* name, U& out, std::uint64_t low = 0,
                 std::uint64_t high = std::numeric_limits<U>::max()) {
    return Number(name, low, high, [&out](std::uint64_t v) { out = static_cast<U>(v); });
  }
  // "512M", 4096. Zero only if `zero_allowed`.
  Fields& Size(const char* name, std::uint64_t& out, bool zero_allowed = false);
  template <typename E>
  Fields& Choice(const char* name, E& out,
                 std::initializer_list<std::pair<const char*, E>> choices) {
    std::vector<const char*> names;
    for (const auto& choice : choices) names.push_back(choice.first);
    if (const std::optional<std::size_t> index = ChoiceIndex(name, names))
      out = (choices.begin() + *index)->second;
    return *this;
  }
  // A member that is itself an object, or in a flag the short form of it; `read` gets the value and
  // its path.
  Fields& Member(const char* name,
                 const std::function<Outcome<void>(const Json&, const std::string&)>& read);

  // The first error, or one about members nobody asked for.
  [[nodiscard]] Outcome<void> Finish();
  // Names asked for so far.
  [[nodiscard]] const std::vector<std::string>& known() const { return known_; }

 private:
  [[nodiscard]] const Json* Find(const char* name);
  [[nodiscard]] std::optional<std::size_t> ChoiceIndex(const char* name,
                                                       const std::vector<const char*>& names);
  void Fail(const char* name, const std::string& what, const std::string& next_step);

  const Json& object_;
  std::string path_;
  std::vector<std::string> known_;
  std::optional<Failure> failure_;
};

}  // namespace postern::api
