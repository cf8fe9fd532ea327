#pragma once

// InterruptHandles: the numbers by which descriptors name MSI-X vectors, and the vectors they stand
// for.
//
//   InterruptHandles handles(9);
//   TRY(handles.Open(0x41, 3));
//   handles.VectorOf(0x41);        // 3
//   handles.RevokeAll();
//
// Is not who gives the numbers: a Backend does. Several handles may stand for one vector.
//
// Threads: IsHandle and VectorOf from any thread, without a lock: each sees a handle as opened or
// as closed. All else with the function's lock.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "src/base/result.h"

namespace postern::siov {

class InterruptHandles {
 public:
  // Room for two handles a vector.
  explicit InterruptHandles(std::uint16_t vectors);

  // kInvalidArgument: no such vector; kOverlap: the handle is open already; kExhausted.
  [[nodiscard]] Result<void> Open(std::uint32_t handle, std::uint16_t vector);
  // False where it is not open.
  bool Close(std::uint32_t handle);
  // Closes all, and answers how many there were.
  std::uint32_t RevokeAll();

  [[nodiscard]] std::optional<std::uint16_t> VectorOf(std::uint32_t handle) const;
  [[nodiscard]] bool IsHandle(std::uint32_t handle) const { return VectorOf(handle).has_value(); }

  // Those that are open, ascending.
  [[nodiscard]] std::vector<std::uint32_t> List() const;
  [[nodiscard]] std::size_t capacity() const { return capacity_; }

 private:
  [[nodiscard]] std::size_t Home(std::uint32_t handle) const { return handle % capacity_; }

  std::uint16_t vectors_;
  std::size_t capacity_;
  // kOpen, the vector in bits 47:32, the handle in 31:0. A handle is looked for at its home first
  // and then everywhere: there are few, and closing one leaves no trace behind.
  std::unique_ptr<std::atomic<std::uint64_t>[]> entries_;
};

}  // namespace postern::siov
