#pragma once

// Bus: address ranges of one kind (MMIO or port I/O) and their handlers.
//
// Semantics of rust-vmm's vm-device Bus, with two differences: an access that no range claims, or
// that straddles the end of one, reads as all ones and is ignored when written (both counted), and
// registration happens whole or not at all.
//
// Ownership: handlers and locks belong to the device and outlive their Registration. Threads: Read
// and Write from any vCPU thread. Add from any thread. A Registration is destroyed or reset by a
// thread that holds the lock it was registered with (a device that disables its own BAR does so
// inside its own handler) or while no vCPU runs; after that no handler call is in progress.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/base/counters.h"
#include "src/base/mutex.h"
#include "src/base/result.h"
#include "src/bus/mmio_handler.h"

namespace postern::bus {

class Bus;

// One claimed range; gives it up when destroyed.
class Registration {
 public:
  Registration() = default;
  Registration(Registration&& other) noexcept;
  Registration& operator=(Registration&& other) noexcept;
  ~Registration() { Reset(); }
  void Reset();
  [[nodiscard]] bool active() const { return entry_ != nullptr; }

 private:
  friend class Bus;
  struct Entry;
  Registration(Bus* bus, std::shared_ptr<Entry> entry) : bus_(bus), entry_(std::move(entry)) {}
  Bus* bus_ = nullptr;
  std::shared_ptr<Entry> entry_;
};

struct RangeInfo {
  std::uint64_t base;
  std::uint64_t size;
  std::string name;
  std::uint64_t reads;  // accesses its handler took
  std::uint64_t writes;
};

class Bus {
 public:
  Bus();
  ~Bus();
  Bus(const Bus&) = delete;
  Bus& operator=(const Bus&) = delete;

  // kInvalidArgument if size is 0 or base + size - 1 wraps, kOverlap if any byte is taken. `name`
  // is for tracing and listings.
  [[nodiscard]] Result<Registration> Add(std::uint64_t base, std::uint64_t size,
                                         MmioHandler& handler, Mutex& lock, std::string name);

  void Read(std::uint64_t address, std::span<std::byte> data);
  void Write(std::uint64_t address, std::span<const std::byte> data);
  // A direct store: nothing comes between its parts. `address` is a multiple of its size (CHECK).
  void WriteBlock(std::uint64_t address, Block data);

  // Returns when no access that had begun before the call is still under way with a range that is
  // given up by now: a vCPU may have found such a range and still wait for the device's lock.
  // Called between Registration::Reset and destroying the device and its lock while vCPUs run (hot
  // unplug); never from a handler or with a device's lock held.
  void Drain() const;

  [[nodiscard]] std::vector<RangeInfo> Ranges() const;
  // reads, writes, and the accesses that no range took: unmatched_reads, unmatched_writes,
  // straddles, odd_widths. A block counts as one write.
  void ReportCounters(CounterSink& sink) const;

 private:
  friend class Registration;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace postern::bus
