#include "src/machine/metrics.h"

#include <iterator>

#include <fmt/format.h>

namespace postern {

void MetricsWriter::Key(std::string_view name) {
  fmt::format_to(std::back_inserter(text_), "{}\"{}\":", first_ ? "" : ",", name);
  first_ = false;
}

void MetricsWriter::Group(std::string_view name, const std::function<void(MetricsWriter&)>& body) {
  Key(name);
  text_ += '{';
  first_ = true;
  body(*this);
  text_ += '}';
  first_ = false;
}

void MetricsWriter::Counters(const std::function<void(CounterSink&)>& report) {
  class Sink final : public CounterSink {
   public:
    explicit Sink(MetricsWriter& writer) : writer_(writer) {}
    void Add(std::string_view name, std::uint64_t value) override { writer_.Value(name, value); }

   private:
    MetricsWriter& writer_;
  } sink(*this);
  report(sink);
}

void MetricsWriter::Value(std::string_view name, std::uint64_t value) {
  Key(name);
  fmt::format_to(std::back_inserter(text_), "{}", value);
}

std::string MetricsWriter::Finish() {
  text_ += "}\n";
  return std::move(text_);
}

}  // namespace postern
