#pragma once

// ReportedCounter: one value of whatever reports counters.
//
//   CHECK(testing::ReportedCounter(*vdev, "queue0_submitted") == 3);
//
// Threads: as ReportCounters of `source`.

#include <cstdint>
#include <string_view>

#include "src/base/counters.h"

namespace postern::testing {

// All ones where none has the name; the last one where several have it.
template <typename Source>
[[nodiscard]] std::uint64_t ReportedCounter(const Source& source, std::string_view name) {
  struct Sink final : CounterSink {
    explicit Sink(std::string_view n) : wanted(n) {}
    void Add(std::string_view added, std::uint64_t value) override {
      if (added == wanted) found = value;
    }
    std::string_view wanted;
    std::uint64_t found = ~std::uint64_t{0};
  } sink(name);
  source.ReportCounters(sink);
  return sink.found;
}

}  // namespace postern::testing
