#pragma once

// Doorstep: where a group's workers sleep until there is work: a counter in a futex, and how many
// wait on it, so that a submission that finds nobody asleep makes no system call.
//
//   worker                                     submitter
//   ticket = door.Prepare();                   make the work visible (a seq_cst store)
//   if (work to be seen) door.Cancel();        door.Ring();
//   else door.Wait(ticket, timeout);
//
// No wake-up is lost: either Ring sees the sleeper that Prepare counted, or the sleeper, who looks
// after Prepare, sees the work; both orders are of sequentially consistent accesses. Threads: any.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

namespace postern::dsa {

class Doorstep {
 public:
  using Ticket = std::uint32_t;

  [[nodiscard]] Ticket Prepare();
  void Cancel();
  // Until a ring that came after Prepare, or the timeout. May return early. True: rung.
  bool Wait(Ticket ticket, std::optional<std::chrono::nanoseconds> timeout);

  // Wakes one. False, and no system call, when nobody sleeps.
  bool Ring();
  // Wakes all, those too who are between Prepare and Wait.
  void RingAll();

 private:
  std::atomic<std::uint32_t> rings_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

}  // namespace postern::dsa
