#pragma once

// BackOff: how long a worker with polled pages sleeps between two looks: twice as long each time it
// finds nothing, up to where its sleeping and looking costs no more than a share of a core.
//
//   BackOff back_off(policy);
//   sleep(back_off.Next());        // found nothing
//   back_off.Restart();            // found something
//
// What a sleep costs differs tenfold between hosts (a few microseconds on a bare machine, tens in a
// virtual one), so it is measured: the thread's processor time over kSleepsPerMeasure sleeps.
// Threads: the one that sleeps.

#include <chrono>
#include <cstdint>

namespace postern::dsa {

struct PollPolicy {
  // After the last descriptor: looks without a pause.
  std::chrono::microseconds spin{50};
  std::chrono::microseconds first_sleep{20};
  // The first descriptor after a rest in a polled page waits for this at most, and for what the
  // host takes to wake a thread (the kernel's timer slack, 50 us by default, included).
  std::chrono::microseconds max_sleep{10'000};
  // Of a core, for an idle worker, while max_sleep allows it. 1000: sleeps grow to max_sleep.
  std::uint32_t idle_permille = 6;
};

class BackOff {
 public:
  static constexpr std::uint32_t kSleepsPerMeasure = 16;
  static constexpr std::chrono::microseconds kFirstLongest{500};

  explicit BackOff(const PollPolicy& policy);
  [[nodiscard]] std::chrono::nanoseconds Next();
  // The same with the thread's processor time given.
  [[nodiscard]] std::chrono::nanoseconds NextAt(std::chrono::nanoseconds processor_time);
  void Restart() { sleeps_ = 0; }
  // Since Restart.
  [[nodiscard]] std::uint32_t sleeps() const { return sleeps_; }

 private:
  [[nodiscard]] bool MeasureDue() const { return sleeps_ % kSleepsPerMeasure == 0; }

  const PollPolicy policy_;
  std::chrono::nanoseconds longest_;
  std::chrono::nanoseconds measured_{0};  // processor time at the last measure
  std::uint32_t sleeps_ = 0;
};

}  // namespace postern::dsa
