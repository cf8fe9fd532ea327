#pragma once

// TapHost: for tests and benches of the network device: a network namespace of this process' own,
// and the host's side of a TAP in it, as a packet socket.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/base/fd.h"

namespace postern::testing {

// Moves the calling thread (and threads it starts) to a new network namespace without IPv6. Empty,
// or why that is not possible. Once per process is enough: later calls do nothing.
[[nodiscard]] std::string EnterNetworkNamespace();

// Ethertype of the test packets (IEEE 802 local experimental); what else is on the wire is skipped.
constexpr std::uint16_t kTestEthertype = 0x88b5;

// A frame of `size` bytes (at least 14) to a broadcast address, with a payload that depends on
// `seed`.
[[nodiscard]] std::vector<std::byte> TestFrame(std::size_t size, std::uint32_t seed);

class TapHost {
 public:
  // Of an interface that exists and is up.
  explicit TapHost(const std::string& name);
  // False when the interface's queue is full.
  [[nodiscard]] bool Send(std::span<const std::byte> frame) const;
  // The next test frame the guest sent; empty when there is none within `timeout_ms`.
  [[nodiscard]] std::vector<std::byte> Receive(int timeout_ms = 2000) const;

 private:
  Fd socket_;
};

}  // namespace postern::testing
