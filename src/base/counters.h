#pragma once

// Counter: a monotonic event count; CounterSink: where an object reports its counters for the
// metrics file.
//
//   struct BlkCounters { Counter reads, read_bytes, errors; };
//   void Blk::ReportCounters(CounterSink& sink) const {
//     sink.Add("reads", counters_.reads.Get());
//   }
//
// Threads: Add and Get from any thread (relaxed); a reader may see the counters of one event at
// different times.

#include <atomic>
#include <cstdint>
#include <string_view>

namespace postern {

class Counter {
 public:
  void Add(std::uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

class CounterSink {
 public:
  virtual ~CounterSink() = default;
  virtual void Add(std::string_view name, std::uint64_t value) = 0;
};

}  // namespace postern
