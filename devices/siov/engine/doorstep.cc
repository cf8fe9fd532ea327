#include "devices/siov/engine/doorstep.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace postern::dsa {
namespace {

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

long Futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout) {
  // The word's address is all the kernel is given: it compares and sleeps, or wakes.
  return syscall(SYS_futex, &word, operation, value, timeout, nullptr, 0);
}

}  // namespace

Doorstep::Ticket Doorstep::Prepare() {
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  return rings_.load(std::memory_order_seq_cst);
}

void Doorstep::Cancel() {
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

bool Doorstep::Wait(Ticket ticket, std::optional<std::chrono::nanoseconds> timeout) {
  timespec span{};
  if (timeout) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(*timeout);
    span.tv_sec = seconds.count();
    span.tv_nsec = (*timeout - seconds).count();
  }
  (void)Futex(rings_, FUTEX_WAIT_PRIVATE, ticket, timeout ? &span : nullptr);
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  return rings_.load(std::memory_order_seq_cst) != ticket;
}

bool Doorstep::Ring() {
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return false;
  rings_.fetch_add(1, std::memory_order_seq_cst);
  (void)Futex(rings_, FUTEX_WAKE_PRIVATE, 1, nullptr);
  return true;
}

void Doorstep::RingAll() {
  rings_.fetch_add(1, std::memory_order_seq_cst);
  (void)Futex(rings_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr);
}

}  // namespace postern::dsa
