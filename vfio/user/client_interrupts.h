#pragma once

// ClientInterrupts: the interrupts of a served device: what VFIO's kernel part is to a device of
// the host. An InterruptSource whose routes signal the eventfds a client gave for its vectors.
//
//   ClientInterrupts interrupts;
//   auto vdev = Vdev::Create(..., {interrupts, loop});   // programs vector v with the message v
//   TRY(interrupts.Assign(2, std::move(event)));
//
// The client virtualises MSI-X: here every vector is enabled and unmasked all the time, and its
// message is its number. A vector nobody took keeps its signals for whoever takes it (a client that
// enables more vectors drops all of them for a moment); Forget drops them.
//
// The device's threads signal the client's eventfd themselves: a route's descriptor keeps its
// number and is made to stand for another file (dup3). A descriptor that is no eventfd is refused,
// as a write to it might block, and an eventfd is made non-blocking. A client that makes it
// blocking again and fills it stops its own device's threads until Detach, which makes room. (One
// that refills it in the very moment after, on another CPU, wins that race: whoever waits for those
// threads then waits as long as it goes on.)
//
// Ownership: outlives the function that has it as its source, and the routes. Threads: Assign,
// Clear, Forget, Attach, Detach and the routes' calls with the function's lock; signals from any.

#include <cstdint>
#include <map>
#include <memory>

#include "src/base/counters.h"
#include "src/base/fd.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::vfio {

class ClientInterrupts final : public bus::InterruptSource {
 public:
  ClientInterrupts() = default;
  ~ClientInterrupts() override;
  ClientInterrupts(const ClientInterrupts&) = delete;
  ClientInterrupts& operator=(const ClientInterrupts&) = delete;

  [[nodiscard]] Result<std::unique_ptr<bus::MsiRoute>> NewMsi() override;
  // kUnsupported: a served function has no wired interrupt.
  [[nodiscard]] Result<std::unique_ptr<bus::IrqLine>> NewLine(
      std::uint32_t gsi, const EventFd* resample = nullptr) override;

  // kInvalidArgument for what is no eventfd.
  [[nodiscard]] static Result<void> Check(const Fd& event);
  // `event` passed Check.
  [[nodiscard]] Result<void> Assign(std::uint16_t vector, Fd event);
  void Clear(std::uint16_t vector);
  [[nodiscard]] std::size_t assigned() const;
  // Signals that nobody took.
  void Forget();

  // Between the two the clients' eventfds are not touched, and signals are kept: while the function
  // does to its vectors what might wait for one.
  void Detach();
  void Attach();

 private:
  class Route;
  std::map<std::uint16_t, Route*> routes_;  // by vector
};

}  // namespace postern::vfio
