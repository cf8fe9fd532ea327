#include "devices/siov/engine/back_off.h"

#include <algorithm>
#include <ctime>

namespace postern::dsa {
namespace {

// 2^20 of the shortest sleep is beyond the longest that there can be.
constexpr std::uint32_t kMaxDoublings = 20;

std::chrono::nanoseconds ProcessorTime() {
  timespec time{};
  (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

BackOff::BackOff(const PollPolicy& policy)
    : policy_(policy),
      longest_(policy.idle_permille >= 1000 ? policy.max_sleep
                                            : std::min(kFirstLongest, policy.max_sleep)) {}

std::chrono::nanoseconds BackOff::Next() {
  return NextAt(MeasureDue() ? ProcessorTime() : std::chrono::nanoseconds(0));
}

std::chrono::nanoseconds BackOff::NextAt(std::chrono::nanoseconds processor_time) {
  if (MeasureDue() && policy_.idle_permille < 1000) {
    // sleeps_ 0: there was work since the last measure.
    if (sleeps_ != 0) {
      const std::chrono::nanoseconds cost = (processor_time - measured_) / kSleepsPerMeasure;
      longest_ = std::clamp<std::chrono::nanoseconds>(cost * 1000 / policy_.idle_permille,
                                                      policy_.first_sleep, policy_.max_sleep);
    }
    measured_ = processor_time;
  }
  const std::uint32_t doublings = std::min(sleeps_, kMaxDoublings);
  ++sleeps_;
  return std::min<std::chrono::nanoseconds>(policy_.first_sleep * (std::int64_t{1} << doublings),
                                            longest_);
}

}  // namespace postern::dsa
