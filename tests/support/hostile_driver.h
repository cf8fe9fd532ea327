#pragma once

// HostileDriver: a driver that breaks rules, from a seed or from fuzzer input. Each step does one
// thing a guest can do to a queue: correct requests now and then, else descriptors, ring entries
// and indices of its choice: loops, jumps, ranges outside RAM, huge lengths, indirect tables in odd
// places, heads in flight, stores over rings and buffers while the device uses them.
//
//   HostileDriver hostile(rig.driver(0), seed);
//   for (int i = 0; i < 1000; ++i) { hostile.Step(); rig.Kick(0); }
//
// The same seed does the same. Threads: as the DriverQueue.

#include <cstdint>
#include <span>
#include <vector>

#include "tests/support/driver_queue.h"

namespace postern::testing {

class HostileDriver {
 public:
  HostileDriver(DriverQueue& driver, std::uint64_t seed) : driver_(driver), state_(seed) {}
  // Decisions are taken from `input` first; when it is used up, from a seed derived from it.
  HostileDriver(DriverQueue& driver, std::span<const std::uint8_t> input);

  // Bytes that plausible requests of this device begin with (request headers); mixed into buffers.
  void AddPrefix(std::span<const std::byte> bytes) {
    prefixes_.emplace_back(bytes.begin(), bytes.end());
  }

  void Step();
  [[nodiscard]] bool input_left() const { return !input_.empty(); }
  [[nodiscard]] std::uint64_t Random();
  [[nodiscard]] std::uint64_t Below(std::uint64_t limit) { return Random() % limit; }

 private:
  [[nodiscard]] std::uint64_t SomeAddress();
  [[nodiscard]] std::uint32_t SomeLength();
  [[nodiscard]] virtio::Descriptor SomeDescriptor();
  void PublishPlausible();
  void WriteSomewhere();

  DriverQueue& driver_;
  std::uint64_t state_;
  std::span<const std::uint8_t> input_;
  std::vector<std::vector<std::byte>> prefixes_;
};

}  // namespace postern::testing
