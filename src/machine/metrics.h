#pragma once

// MetricsWriter: counters as one JSON object of objects. Names are ours (letters, digits, _ and -),
// so nothing needs escaping. Threads: a value.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "src/base/counters.h"

namespace postern {

class MetricsWriter {
 public:
  // {"name": {counters...}, ...}; nests as deep as groups are opened.
  void Group(std::string_view name, const std::function<void(MetricsWriter&)>& body);
  void Counters(const std::function<void(CounterSink&)>& report);
  void Value(std::string_view name, std::uint64_t value);
  // The finished object. Once.
  [[nodiscard]] std::string Finish();

 private:
  void Key(std::string_view name);
  std::string text_ = "{";
  bool first_ = true;
};

}  // namespace postern
